"""The typed schema of everything in conf/: an unknown key or a wrong type fails while Hydra composes, an impossible
value in `check`, both before a model loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from gating import chat, directions, interventions, judges, models, personas
from gating.errors import GatingError, choices
from gating.interventions import RANDOM, Condition
from gating.judges import JudgeConfig
from gating.models import ModelConfig


@dataclass
class SteerConfig:
    """One intervention; a list as a value is an axis. See gating/interventions.py for what each may be."""

    direction: Any = MISSING  # none, a persona, refusal, random, a persona file's path; @position may follow
    op: Any = "add"
    layers: Any = MISSING
    coef: Any = MISSING
    norm: Any = "natural"
    scope: Any = "all"
    read: Any = "same"


@dataclass
class ControlsConfig:
    """Controls of every grid point."""

    random: int = 5  # seeds of a norm-matched random direction
    reverse: bool = True  # the same direction with the opposite sign


@dataclass
class DataConfig:
    """What is asked under every condition: a set is a shipped one, a public one or a file's path; null is none."""

    harmful: str | None = "harmful"
    harmless: str | None = None
    borderline: str | None = None
    split: str = "test"  # of shipped sets
    n: int | None = None  # prompts a set, taken from the categories in turn; null is all
    allow_overlap: bool = False


@dataclass
class DirectionsConfig:
    """How directions are extracted."""

    method: str = "mean"
    position: str = "last"
    harmful: str = "harmful"  # the refusal direction's sides: a set's extract split, or a file
    harmless: str = "harmless"
    n: int | None = None  # prompts a side of the refusal direction
    questions: int | None = None  # questions of a persona; null is all
    response_tokens: int = 32  # length of the responses generated for response positions


@dataclass
class BackendConfig:
    """Where the model runs."""

    name: str = "local"
    batch_rows: int | None = None  # rows (prompt x condition) a batch; null takes the model's


@dataclass
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    conditions: dict[str, Any] = field(default_factory=dict)  # further conditions: name -> list of interventions
    data: DataConfig = field(default_factory=DataConfig)
    directions: DirectionsConfig = field(default_factory=DirectionsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    max_new_tokens: int | None = None  # null takes the model's
    readouts: bool = True  # projections and residual norms at the last prompt token
    activations: bool = False  # keep the unsteered residual stream of every prompt
    seed: int = 0
    runs_dir: str = "runs"
    force: bool = False
    dry_run: bool = False
    full_text: bool = False  # whole prompts and completions in the report


# Settings that say where and how a run is done, not what comes out of it: no part of its key.
NOT_IN_KEY = ("runs_dir", "force", "dry_run", "full_text")


def register() -> None:
    """Give Hydra the schema, under the name that conf/config.yaml starts from."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def typed(cfg: DictConfig) -> RunConfig:
    """The composed configuration as dataclasses. Raises GatingError for a mandatory value that nobody gave."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        key = sorted(missing)[0]
        raise GatingError(f"{key} has no value; give {key}=... on the command line.")
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig)
    return run


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def check(run: RunConfig) -> None:
    """Refuse impossible values that need neither a model nor a file. Raises GatingError naming the key."""
    limits = {
        "controls.random": (run.controls.random, 0, 999),
        "max_new_tokens": (run.max_new_tokens, 1, 4096),
        "data.n": (run.data.n, 1, 10**6),
        "directions.n": (run.directions.n, 2, 10**6),
        "directions.questions": (run.directions.questions, 1, 10**6),
        "directions.response_tokens": (run.directions.response_tokens, 1, 4096),
        "backend.batch_rows": (run.backend.batch_rows, 1, 10**5),
        "seed": (run.seed, 0, 2**31 - 1),
    }
    for key, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise GatingError(f"{key}={value} is out of range: use a whole number from {low} to {high}.")
    if run.backend.name != "local":
        raise GatingError(f"backend.name={run.backend.name!r}: use {choices(['local'])}.")
    if run.data.split not in ("extract", "select", "test"):
        raise GatingError(
            f"data.split={run.data.split!r}: use {choices(['extract', 'select', 'test'], run.data.split)}."
        )
    if not (run.data.harmful or run.data.harmless or run.data.borderline):
        raise GatingError(
            "data: no prompts are asked for; give at least one of data.harmful, data.harmless, data.borderline."
        )
    models.check(run.model)
    judges.check(run.judge)
    chat.check_position(run.directions.position)
    directions.check_method(run.directions.method)
    for name in direction_names(run):
        base, _ = directions.split_name(name, run.directions.position)
        if base != directions.REFUSAL:
            _check_persona(base, as_list(run.steer.norm))


def _check_persona(name: str, norms: list[Any]) -> None:
    try:
        personas.load(name)
    except GatingError as e:
        if name in norms:
            raise GatingError(
                f"steer.norm={name!r}: use {choices(interventions.NORMS, name)}, or a direction. {e}"
            ) from None
        raise


def direction_names(run: RunConfig) -> list[str]:
    """Every direction that the run extracts: what it steers along, what norms refer to, and refusal for the readouts."""
    specs = [{"direction": run.steer.direction, "norm": run.steer.norm}]
    for name, items in run.conditions.items():
        if not isinstance(items, list) or not items or not all(isinstance(i, dict) for i in items):
            raise GatingError(
                f"conditions.{name} must be a list of interventions, each a mapping such as "
                "{direction: compliant, op: ablate, layers: 17-25}."
            )
        specs += items
    named = [str(d) for s in specs for d in as_list(s.get("direction", RANDOM))]
    norms = [str(n) for s in specs for n in as_list(s.get("norm", "natural"))]
    wanted = [d for d in named if d not in (RANDOM, "none")]
    wanted += [n for n in norms if n not in interventions.NORMS]
    return list(dict.fromkeys([*wanted, directions.REFUSAL])) if wanted or run.readouts else []


def conditions(run: RunConfig, n_layers: int) -> list[Condition]:
    """The run's conditions in order: baseline, the steering grid with its controls, then the named ones."""
    names = [directions.label(n) for n in direction_names(run)]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise GatingError(f"steer.direction: two personas are called {twice!r}; rename one of the files.")
    spec = _labelled({k: getattr(run.steer, k) for k in interventions.AXES})
    out = interventions.grid(spec, names, n_layers, run.controls.random, run.controls.reverse)
    further = {name: [_labelled(item) for item in items] for name, items in run.conditions.items()}
    out += interventions.named(further, names, n_layers)
    seen = [c.name for c in out]
    again = next((n for n in seen if seen.count(n) > 1), None)
    if again:
        raise GatingError(f"conditions.{again}: the run already has a condition of this name; choose another.")
    return out


def _labelled(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec with its directions called as in the results; a list stays a list."""

    def relabel(value: Any) -> Any:
        return (
            [directions.label(str(v)) for v in value]
            if isinstance(value, list | tuple)
            else directions.label(str(value))
        )

    return {k: relabel(v) if k in ("direction", "norm") else v for k, v in spec.items()}


def steer_label(run: RunConfig) -> str:
    """A short name of what is steered, for the run's folder."""
    parts = [Path(str(d)).stem for d in as_list(run.steer.direction)]
    return "+".join(parts)[:40].replace("@", "-at-")
