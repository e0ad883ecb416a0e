"""What every judge is described by, and what those have in common that are asked with a text around each answer.

A kind of judge is a subclass in a file of its own (classifier.py, endpoint.py, rule_judge.py): its fields are the keys
that a judge's YAML file may hold, and it says which it needs, how they are checked, and how the judge is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from gating import foreign, settings
from gating.errors import GatingError, choices
from gating.judging import OWN, Judge
from gating.judging.degenerate import Limits
from gating.judging.labels import CODES, LABELS

PROMPTS = ("all", "harmful", "harmless")
PLACEHOLDER = re.compile(r"\{(prompt|response|harmful)\}")
CHAT = "chat"  # as a template: the model's own chat template, with the prompt and the answer as its turns


@dataclass(frozen=True)
class JudgeSpec:
    """One judge. Fields are the keys of its file; a null there leaves the default."""

    NEEDED: ClassVar[tuple[str, ...]] = ()  # keys without a default that can judge
    NOT_IN_DIGEST: ClassVar[tuple[str, ...]] = ("name", "says")  # do not determine a judgement
    TEXT_ALONE: ClassVar[bool] = False  # it reads texts on this machine, without a model or a server

    name: str = ""  # of its group in the store; default: the file's
    kind: str = ""  # a key of gating.judging.kinds.KINDS
    says: str = ""  # one sentence: what its labels mean
    prompts: str = "all"  # whose answers it can judge: all, harmful or harmless
    keep_degenerate: bool = False  # answers that are degenerate in the run stay so and are not shown to it

    @property
    def of_harm(self) -> bool:
        """Whether it scores how harmful an answer is, and gives no labels."""
        return False

    def build(self, limits: Limits) -> Judge:
        """The judge, ready. limits: the rule's in the run that is judged. Raises GatingError where it cannot be had."""
        raise NotImplementedError

    def completed(self, folder: Path) -> Self:
        """With the content of the files that it names, relative to its own file's folder."""
        return self

    def check(self) -> None:
        """Refuse what cannot judge. Raises GatingError naming the judge and the key."""
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", self.name) or self.name == OWN:
            raise self.refused(
                "name", f"use letters, digits, - and _, and not {OWN!r}, which means the run's own labels."
            )
        settings.check_numbers(self, settings.JUDGES, f"judge {self.name}: ")
        if self.prompts not in PROMPTS:
            raise self.refused("prompts", f"use {choices(PROMPTS, self.prompts)}.")
        for key in self.NEEDED:
            if not getattr(self, key):
                raise self.refused(
                    key, f"it has no value; say which, {key}=... on the command line or in the judge's file."
                )

    def refused(self, key: str, remedy: str) -> GatingError:
        return GatingError(f"judge {self.name}: {key}={getattr(self, key)!r}: {remedy}")

    def warning(self) -> str:
        """What its user should know, or nothing."""
        return ""

    def attributes(self) -> dict[str, str | bool]:
        """What the store keeps to identify it. Neither a key nor the name of its variable is among them."""
        asks = "harm" if self.of_harm else "refusal"
        return {"judge": self.name, "kind": self.kind, "asks": asks, "prompts": self.prompts, "digest": self.digest}

    @property
    def digest(self) -> str:
        """12 hex digits over all that determines a judgement (not: how fast it is given, or through which address)."""
        return hash12(self.determining())

    def determining(self) -> dict[str, object]:
        return {k: v for k, v in asdict(self).items() if k not in self.NOT_IN_DIGEST}


@dataclass(frozen=True)
class AskedSpec(JudgeSpec):
    """A model that is asked with a text around each prompt and answer, and answers with one of a few words.

    The texts are put into `template` at {prompt}, {response} and {harmful} (yes or no) in one pass, so that braces or
    placeholders inside them stay text.
    """

    NEEDED: ClassVar[tuple[str, ...]] = ("id", "template", "answers")
    NOT_IN_DIGEST: ClassVar[tuple[str, ...]] = (*JudgeSpec.NOT_IN_DIGEST, "template_file")
    AROUND: ClassVar[tuple[str, ...]] = ("template",)  # keys of what is put around a prompt and an answer

    id: str = ""  # hub id or folder; an endpoint's model name
    revision: str | None = None
    template: str = ""  # with {prompt}, {response}, {harmful}; or `chat`
    template_file: str | None = None  # a file to take the template from, such as a classifier's published one
    paraphrase: bool = False  # the template is not word for word the one that the model was trained on
    answers: dict[str, str] = field(default_factory=dict)  # the judge's word -> a label

    def completed(self, folder: Path) -> Self:
        if not self.template_file:
            return self
        file = Path(self.template_file).expanduser()
        path = next((p for p in (folder / file, file) if p.is_file()), None)
        if path is None:
            raise self.refused("template_file", "is not there; give a text file with {prompt} and {response}.")
        template = foreign.read_text(path, f"judge {self.name}: template_file", foreign.MEGABYTE)
        return replace(self, template=template, paraphrase=False)

    def check(self) -> None:
        super().check()
        if self.template != CHAT and "{response}" not in self.template:
            raise self.refused(
                "template", "the text must hold {response} (and mostly {prompt}), where the answer is put."
            )
        for answer, label in self.answers.items():
            if not answer:
                raise self.refused("answers", "an empty text is no answer; write the word that the judge gives.")
            if label not in LABELS:
                raise self.refused(
                    "answers", f"{answer!r} means {label!r}, which is not a label: use {choices(LABELS, label)}."
                )

    def at_least_one(self, *keys: str) -> None:
        """Raises GatingError for one of these whole numbers below 1."""
        for key in keys:
            if getattr(self, key) < 1:
                raise self.refused(key, "use a whole number of at least 1.")

    def warning(self) -> str:
        if not self.paraphrase:
            return ""
        return (
            f"judge {self.name}: the question is put in our words, not in those that {self.id} was trained on, so its "
            "published accuracy does not carry over; for that say template_file=FILE with the published template in it."
        )

    def attributes(self) -> dict[str, str | bool]:
        own: dict[str, str | bool] = {"id": self.id, "revision": self.revision or "none", "paraphrase": self.paraphrase}
        return {**super().attributes(), **own, "prompt_hash": self.prompt_hash}

    @property
    def prompt_hash(self) -> str:
        """12 hex digits over all that is put around a prompt and an answer."""
        return hash12({key: getattr(self, key) for key in self.AROUND})

    def code(self, answer: str) -> int:
        """The label's code that this answer of the judge stands for."""
        return CODES[self.answers[answer]]


def hash12(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def render(template: str, prompt: str, response: str, harmful: bool) -> str:
    """The template with the texts in it, in one pass: what they hold is never read as a placeholder."""
    texts = {"prompt": prompt, "response": response, "harmful": "yes" if harmful else "no"}
    return PLACEHOLDER.sub(lambda m: texts[m[1]], template)
