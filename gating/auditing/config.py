"""What `python -m gating.audit` is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gating import models, personas, settings
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.models import ModelConfig
from gating.pipeline import config
from gating.pipeline.config import BackendConfig, DirectionsConfig


@dataclass
class AuditConfig:
    """An audit of a model, and of adapters of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
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
    seen: dict[str, str] = {}
    for path in cfg.adapters:
        models.check(replace(cfg.model, adapter=path))
        if (label := Path(path).name) in seen:
            raise GatingError(f"adapters: {shown(path)} and {shown(seen[label])} have one name; rename a folder.")
        seen[label] = path
    if cfg.against is not None and not Path(cfg.against).expanduser().is_file():
        raise GatingError(f"against={shown(cfg.against)}: there is no such file; give an earlier audit.json.")


def names(cfg: AuditConfig) -> list[str]:
    """The personas of an audit. Raises GatingError for none."""
    if cfg.personas == "all":
        return [name for name in personas.available() if not name.startswith("compliant-")]  # wordings of another
    given = cfg.personas if isinstance(cfg.personas, list) else [cfg.personas]
    if not given or not all(isinstance(name, str) and name for name in given):
        known = choices(personas.available(), str(cfg.personas))
        raise GatingError(f"personas={shown(cfg.personas, 80)}: use all, or a list of {known}.")
    return [str(name) for name in given]
