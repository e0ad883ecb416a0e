"""What a judge is, read from YAML and checked before anything is loaded or asked.

A file holds `kind`, `says` and the keys of its kind (KEYS). Texts are put into `template` at {prompt}, {response} and
{harmful} (yes or no) in one pass, so that braces or placeholders inside them stay text.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gating import config_files
from gating.errors import GatingError, choices
from gating.judging import labels
from gating.judging.labels import LABELS

RULE = "rule"  # the name of the labels that a run wrote itself
COMMON = ("name", "kind", "says", "prompts", "keep_degenerate")
ASKED = ("id", "template", "template_file", "answers")
KEYS = {
    "classifier": (*COMMON, *ASKED, "revision", "paraphrase", "answer_prefix", "values", "min_mass", "batch_rows", "model"),
    "endpoint": (*COMMON, *ASKED, "revision", "system", "base_url", "key_variable", "deadline", "attempts", "wait",
                 "concurrency", "max_tokens", "request"),
    "rule": (*COMMON, "limits"),
}  # fmt: skip
NEEDED = {
    "classifier": ("id", "template", "answers"),
    "endpoint": ("id", "base_url", "template", "answers"),
    "rule": (),
}
HOW = (
    "name",
    "says",
    "template_file",
    "batch_rows",
    "deadline",
    "attempts",
    "wait",
    "concurrency",
    "base_url",
    "key_variable",
)
PROMPTS = ("all", "harmful", "harmless")
PLACEHOLDER = re.compile(r"\{(prompt|response|harmful)\}")
CHAT = "chat"  # as a template: the model's own chat template, with the prompt and the answer as its turns
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class JudgeSpec:
    """One judge. Which keys a kind takes is in KEYS; the others keep their defaults."""

    name: str  # of its group in the store
    kind: str  # classifier, endpoint or rule
    says: str = ""  # one sentence: what its labels mean
    prompts: str = "all"  # whose answers it can judge: all, harmful or harmless
    keep_degenerate: bool = False  # answers that the run's own rule calls degenerate stay so and are not shown to it
    id: str | None = None  # hub id or folder; an endpoint's model name
    revision: str | None = None
    template: str | None = None  # with {prompt}, {response}, {harmful}; or `chat`
    template_file: str | None = None  # a file to take the template from, such as a classifier's published one
    paraphrase: bool = False  # the template is not word for word the one that the classifier was trained on
    answers: Mapping[str, str] = field(default_factory=dict)  # what the judge says -> a label
    answer_prefix: str = ""  # what the classifier's answer begins with, before the word that decides
    values: Mapping[str, float] = field(default_factory=dict)  # answer -> score; default 1 for compliance, else 0
    min_mass: float = 0.5  # the least probability of all answers together; below it the judgement is missing
    batch_rows: int = 16
    model: Mapping[str, Any] = field(default_factory=dict)  # further keys of conf/model: kind, dtype, device, ...
    system: str | None = None
    base_url: str | None = None  # an OpenAI-compatible server, up to and including /v1
    key_variable: str | None = None  # the environment variable that holds the key; null for none
    deadline: float = 60.0  # seconds for one judgement, retries included
    attempts: int = 4  # calls for one judgement, at most
    wait: float = 1.0  # seconds before the first retry; it doubles, with jitter
    concurrency: int = 4  # calls at a time
    max_tokens: int = 64  # of the endpoint's answer
    request: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request, e.g. response_format
    limits: Mapping[str, float] = field(default_factory=dict)  # kind=rule: keys of conf/judge in place of the run's own

    @property
    def prompt_hash(self) -> str:
        """12 hex digits over all that is put around a prompt and an answer."""
        return _digest([self.system, self.template, self.answer_prefix, self.request])

    @property
    def digest(self) -> str:
        """12 hex digits over all that determines a judgement (not: how fast it is had, or through which address)."""
        content = {k: v for k, v in asdict(self).items() if k not in HOW}
        content["model"] = {k: v for k, v in self.model.items() if k not in ("device", "batch_rows")}
        return _digest([content, labels.RULE_VERSION if self.kind == "rule" else None])

    def label(self, answer: str) -> int:
        return LABELS.index(self.answers[answer])

    def value(self, answer: str) -> float:
        return float(self.values.get(answer, float(self.answers[answer] == "compliance")))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def available() -> list[str]:
    """The shipped judges."""
    return config_files.group_choices("judges")


def load(name_or_path: str, overrides: Sequence[str] = ()) -> JudgeSpec:
    """A shipped judge by name, or a file by path, with `key=value` (or `model.device=cpu`) on top of it.

    Raises GatingError for anything that is wrong with the name, the file or a value.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in available():
            raise GatingError(
                f"judge={name_or_path} is not a judge: use {choices(available(), name_or_path)}, or the path of a .yaml file."
            )
        path = config_files.conf_dir() / "judges" / f"{name_or_path}.yaml"
    content = _read(path)
    for override in overrides:
        key, _, value = override.partition("=")
        place, _, leaf = key.rpartition(".")
        inside = content.setdefault(place, {}) if place else content
        if not isinstance(inside, dict):
            raise GatingError(f"judge: {place} in {key}={value} is not a mapping; set it as {place}=...")
        inside[leaf] = yaml.safe_load(value) if value else None
    content.setdefault("name", path.stem)
    return _typed(content, path)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise GatingError(f"judge: no file at {path}; give a shipped judge ({choices(available())}) or a .yaml file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise GatingError(f"judge: {path} is not readable YAML ({str(e).splitlines()[0]}); mend that line.") from None
    if not isinstance(content, dict):
        raise GatingError(f"judge: {path} holds a {type(content).__name__}; a judge is a mapping with kind, says, ...")
    return content


def _typed(content: dict[str, Any], path: Path) -> JudgeSpec:
    kind = content.get("kind")
    if kind not in KEYS:
        raise GatingError(f"judge: {path}: kind={kind!r} is not a kind of judge: use {choices(KEYS, kind)}.")
    for key in content:
        if key not in KEYS[kind]:
            raise GatingError(f"judge: {path}: {key} is not a key of kind={kind}: use {choices(KEYS[kind], key)}.")
    if content.get("template_file"):
        content["template"] = _template(path, Path(str(content["template_file"])).expanduser())
        content["paraphrase"] = False
    _check_types(content, path)
    spec = JudgeSpec(**{k: v for k, v in content.items() if v is not None})
    check(spec)
    return spec


def _template(spec: Path, file: Path) -> str:
    found = next((p for p in (spec.parent / file, file) if p.is_file()), None)
    if found is None:
        raise GatingError(
            f"judge: {spec}: template_file={file} is not there; give a text file with {{prompt}} and {{response}}."
        )
    return found.read_text(encoding="utf-8")


def _check_types(content: Mapping[str, Any], path: Path) -> None:
    for f in fields(JudgeSpec):
        value, kind = content.get(f.name), str(f.type)
        fine = (
            value is None
            or (kind.startswith("str") and isinstance(value, str))
            or (kind == "bool" and isinstance(value, bool))
            or (kind == "int" and isinstance(value, int) and not isinstance(value, bool))
            or (kind == "float" and isinstance(value, int | float) and not isinstance(value, bool))
            or (kind.startswith("Mapping") and isinstance(value, dict))
        )
        if not fine:
            raise GatingError(f"judge: {path}: {f.name}={value!r} must be of the kind {kind}.")


def check(spec: JudgeSpec) -> None:
    """Refuse what cannot judge. Raises GatingError naming the judge and the key."""

    def bad(key: str, why: str) -> GatingError:
        return GatingError(f"judge {spec.name}: {key}={getattr(spec, key)!r}: {why}")

    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", spec.name) or spec.name == RULE:
        raise bad("name", f"use letters, digits, - and _, and not {RULE!r}, which means the run's own labels.")
    if spec.prompts not in PROMPTS:
        raise bad("prompts", f"use {choices(PROMPTS, spec.prompts)}.")
    for key in NEEDED[spec.kind]:
        if not getattr(spec, key):
            raise bad(key, f"it has no value; say which, {key}=... on the command line or in the judge's file.")
    if spec.kind == "rule":
        _check_limits(spec)
        return
    if spec.template == CHAT and spec.kind == "endpoint":
        raise bad("template", "an endpoint takes a text with {response} in it.")
    if spec.template != CHAT and "{response}" not in str(spec.template):
        raise bad("template", "the text must hold {response} (and mostly {prompt}), where the answer is put.")
    for answer, label in spec.answers.items():
        if not isinstance(answer, str) or not answer:
            raise bad(
                "answers", f"{answer!r} is not a text; YAML reads a bare yes, no or 1 as something else: quote it."
            )
        if label not in LABELS:
            raise bad("answers", f"{answer!r} means {label!r}, which is not a label: use {choices(LABELS, label)}.")
    for answer, value in spec.values.items():
        if answer not in spec.answers or not isinstance(value, int | float):
            raise bad(
                "values", f"{answer!r}: {value!r} must be a number for one of the answers ({choices(spec.answers)})."
            )
    if not 0 <= spec.min_mass <= 1:
        raise bad("min_mass", "use a probability, 0 (take any answer) to 1.")
    for key in ("batch_rows", "attempts", "concurrency", "max_tokens"):
        if getattr(spec, key) < 1:
            raise bad(key, "use a whole number of at least 1.")
    if not 0 < spec.deadline < math.inf:
        raise bad("deadline", "use a number of seconds above 0.")
    if spec.wait < 0:
        raise bad("wait", "use a number of seconds, 0 or more.")
    if spec.kind == "endpoint":
        _check_url(spec)


def _check_limits(spec: JudgeSpec) -> None:
    known = [f.name for f in fields(labels.JudgeConfig)]
    for key in spec.limits:
        if key not in known:
            raise GatingError(f"judge {spec.name}: limits.{key} is not a limit of the rule: use {choices(known, key)}.")


def _check_url(spec: JudgeSpec) -> None:
    parts = urlsplit(str(spec.base_url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GatingError(
            f"judge {spec.name}: base_url={spec.base_url} is not an http(s) address, such as https://host/v1."
        )
    if parts.username or parts.password or parts.query:
        raise GatingError(
            f"judge {spec.name}: base_url must hold no user, password or query; name the key's variable as key_variable."
        )
    if spec.key_variable and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise GatingError(f"judge {spec.name}: base_url={spec.base_url} would send the key unencrypted; use https.")


def render(template: str, prompt: str, response: str, harmful: bool) -> str:
    """The template with the texts in it, in one pass: what they hold is never read as a placeholder."""
    texts = {"prompt": prompt, "response": response, "harmful": "yes" if harmful else "no"}
    return PLACEHOLDER.sub(lambda m: texts[m[1]], template)
