"""What `python -m gating.audit` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gating import models, personas, settings
from gating.completions import Server
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.models import ModelConfig
from gating.pipeline import config
from gating.pipeline.config import BackendConfig, DirectionsConfig

NOT_BEHIND_AN_API = (
    "model",
    "adapters",
    "backend",
    "directions",
    "kl",
    "random",
    "again",
)  # settings without a meaning
OF_A_REQUEST = frozenset({"model", "messages", "stream", "n"})


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible API, in place of `model`: asked by system message alone."""

    url: str | None = None  # up to and including /v1; null audits `model`
    model: str | None = None  # its name there
    key_variable: str | None = None  # the environment variable that holds the key; null for none
    request: dict[str, Any] = field(default_factory=dict)  # further fields of a request; null leaves one out
    concurrency: int = 4  # calls at a time
    deadline: float = 120.0  # seconds for one answer, retries included
    attempts: int = 6  # calls for one answer, at most
    wait: float = 1.0  # seconds before the first retry; it doubles, with jitter
    usd_in: float | None = None  # price of a million tokens of requests
    usd_out: float | None = None  # price of a million tokens of answers
    budget: float | None = None  # dollars for the whole audit, all its sittings together; null is no limit
    dry_run: bool = False  # say how many calls there are to make and what they may cost, and make none

    @property
    def priced(self) -> bool:
        return self.usd_in is not None and self.usd_out is not None

    @property
    def server(self) -> Server:
        names = ("endpoint.url", "endpoint.model", "endpoint.key_variable")
        return Server(
            "endpoint", str(self.url), str(self.model), self.key_variable, self.deadline, self.attempts, self.wait,
            self.concurrency, names,
        )  # fmt: skip


@dataclass
class AuditConfig:
    """An audit of a model, and of adapters of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    directions: DirectionsConfig = field(default_factory=DirectionsConfig)
    policy: dict[str, Any] = field(default_factory=dict)  # conf/policy/NAME.yaml; empty decides nothing
    personas: Any = "all"  # names of shipped personas or files of your own; all are the shipped ones
    adapters: list[str] = field(default_factory=list)  # folders of LoRA adapters, each against the model without it
    harmful: str = "harmful"  # requests that are to be refused: a set or a file
    borderline: str | None = "borderline"  # harmless, in the form of harmful: over-refusal
    harmless: str | None = "harmless"  # requests that are to be answered
    n: int = 64  # harmful prompts
    n_harmless: int = 32  # of each of the other two sets
    new_tokens: int = 32  # of an answer
    kl: float | None = None  # nats at the first token that steering may do; null is what the model's own dose does
    random: int = 3  # random directions at the same KL
    again: bool = True  # steer adapters along directions of their own too
    out: str | None = None  # folder of audit.json and audit.html; null is RUNS_DIR/MODEL-audit
    against: str | None = None  # an earlier audit.json: what has become worse since
    runs_dir: str = "runs"  # folder of its runs
    seed: int = 0  # of all that is drawn
    force: bool = False  # compute its runs again


def check(cfg: AuditConfig) -> None:
    """Refuse impossible values before a model loads. Raises GatingError naming the key."""
    settings.check_lists(cfg)
    settings.check_numbers(cfg, settings.AUDITING)
    config.check_path(cfg.runs_dir, "runs_dir")
    if cfg.out is not None:
        config.check_path(cfg.out, "out")
        if Path(cfg.out).expanduser().is_file():
            raise GatingError(f"out={shown(cfg.out)} is a file; give a folder, for audit.json and audit.html.")
    for name in names(cfg):
        personas.load(name)
    _check_endpoint(cfg.endpoint)
    seen: dict[str, str] = {}
    for path in cfg.adapters:
        models.check(replace(cfg.model, adapter=path))
        if (label := Path(path).name) in seen:
            raise GatingError(f"adapters: {shown(path)} and {shown(seen[label])} have one name; rename a folder.")
        seen[label] = path
    if cfg.against is not None and not Path(cfg.against).expanduser().is_file():
        raise GatingError(f"against={shown(cfg.against)}: there is no such file; give an earlier audit.json.")


def check_words(words: Sequence[str]) -> None:
    """Refuse words of the command line that say nothing of a model behind an API. Raises GatingError."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("@")[0] in NOT_BEHIND_AN_API:
            raise GatingError(
                f"{shown(word, 80)} with endpoint.url: a model behind an API is asked by system message alone, without "
                f"steering, adapters or another backend; leave {shown(key, 40)} out."
            )


def _check_endpoint(how: EndpointConfig) -> None:
    if how.url is None:
        set_ = [f.name for f in fields(how) if getattr(how, f.name) != getattr(EndpointConfig(), f.name)]
        if set_:
            raise GatingError(f"endpoint.{set_[0]} without endpoint.url: give the server's address, up to its /v1.")
        return
    if not how.model or not how.model.strip():
        raise GatingError("endpoint.model has no value; give the name under which the server has the model.")
    how.server.check()
    if own := sorted(OF_A_REQUEST & how.request.keys()):
        raise GatingError(f"endpoint.request.{own[0]} is not yours to set here: it is part of what an audit asks.")
    if how.budget is not None and not how.priced:
        raise GatingError(
            "endpoint.budget needs prices: give endpoint.usd_in and endpoint.usd_out, per million tokens."
        )


def names(cfg: AuditConfig) -> list[str]:
    """The personas of an audit. Raises GatingError for none."""
    if cfg.personas == "all":
        return [name for name in personas.available() if not name.startswith("compliant-")]  # wordings of another
    given = cfg.personas if isinstance(cfg.personas, list) else [cfg.personas]
    if not given or not all(isinstance(name, str) and name for name in given):
        known = choices(personas.available(), str(cfg.personas))
        raise GatingError(f"personas={shown(cfg.personas, 80)}: use all, or a list of {known}.")
    return [str(name) for name in given]
