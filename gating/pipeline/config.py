"""The typed schema of everything in conf/: an unknown key or a wrong type fails while Hydra composes, an impossible
value in `check`, both before a model loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from gating import addresses, chat, models, settings
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.judging import degenerate, kinds, own
from gating.judging.degenerate import Limits
from gating.models import ModelConfig
from gating.steering import direction_methods, direction_specs, variants


@dataclass
class SteerConfig:
    """One intervention; a list as a value is an axis. See gating/steering/interventions.py for what each may be."""

    direction: Any = MISSING  # none, a persona, refusal, random, a persona file's path; :role and @position may follow
    op: Any = "add"
    layers: Any = MISSING
    coef: Any = None  # null takes the model's for add, and all of it (1) for ablate
    norm: Any = "natural"
    scope: Any = "all"
    read: Any = "same"
    reference: Any = "zero"  # of ablate: zero, mean (of harmless prompts) or own (the unsteered row's)
    gate: str = ""  # act only on rows whose last prompt token lies along this direction
    threshold: float = 0.5  # of the gate: 0 is its negative side's mean projection, 1 its positive side's
    iso_kl: float | None = None  # scale every strength to this first-token KL on harmless prompts, nats


@dataclass
class ControlsConfig:
    """Controls of every grid point."""

    random: int = 5  # seeds of a norm-matched random direction
    draw: Any = "isotropic"  # how it is drawn, or several: isotropic, covariance, permuted (add), matched (ablate)
    reverse: bool = True  # the same direction with the opposite sign


@dataclass
class DataConfig:
    """What is asked under every condition: a set is a shipped one, a public one or a file's path; null is none."""

    harmful: str | None = "harmful"
    harmless: str | None = None
    borderline: str | None = None
    split: str = "test"  # of shipped sets
    n: int | None = None  # prompts a set, taken from the categories in turn; null is all
    n_harmless: int | None = None  # where harmless and borderline sets are to be of another size
    allow_overlap: bool = False


@dataclass
class SamplingConfig:
    """Sampled answers beside the greedy ones, which stay the headline."""

    n: int = 0  # a prompt and condition
    temperature: float = 1.0


@dataclass
class DirectionsConfig:
    """How directions are extracted."""

    method: str = "mean"
    position: str = "last"
    harmful: str = "harmful"  # the refusal direction's sides: a set's extract split, or a file
    harmless: str = "harmless"
    n: int | None = None  # prompts a side of the refusal direction
    questions: int | None = None  # questions of a persona; null is all
    response_tokens: int = 32  # length of the answers generated for response positions and user personas
    samples: int = 1  # answers a chat; more than one needs a temperature
    temperature: float = 0.0  # 0 is greedy
    source: str | None = None  # take them from another run instead: its folder
    other_weights: bool = False  # the source may be of other weights: directions of a base model, for its fine-tunes
    filter: str | None = (
        None  # leave out pairs: fluent, of which an answer is empty or loops; a judge (conf/judges or a
    )
    # file), of which the positive answer scores below 0.5, or the negative one not, or one could not be judged
    extra: list[str] = field(default_factory=list)  # further directions, for the readouts and the geometry
    derived: dict[str, Any] = field(default_factory=dict)  # name: {of: A, orthogonal_to: B} or {of: A, along: B}
    # further ones made of other rows: name: {bootstrap: B, halves: true} gives name#boot-0 to name#boot-(B-1),
    # name#half-a and name#half-b
    variants: dict[str, Any] = field(default_factory=dict)
    permutations: int = 0  # label-permuted directions whose cosines are kept as a null


@dataclass
class ReadoutsConfig:
    """What is read off the residual stream beside the answers."""

    last: bool = True  # projections, norms, relative change, KL: at the last prompt token
    tokens: bool = False  # projections at every generated token too
    lens: bool = False  # refusal score at every block (logit lens)
    extra: list[str] = field(default_factory=list)  # further ones by name (docs/schema.md), such as cosine


@dataclass
class BackendConfig:
    """Where the model runs."""

    name: str = "local"  # local (this process), ndif (a server), simulation (as shipped to a server, in this process)
    batch_rows: int | None = None  # rows (prompt x condition) a batch; null takes the model's
    host: str | None = None  # of an NDIF server, http(s)://...; null takes NDIF_HOST, else https://api.ndif.us
    deploy: bool = False  # let the server load a model that it does not serve now
    in_flight: int = 4  # jobs under way at once
    deadline: float = 3600.0  # seconds that one trace may take: the queue and being sent again included
    outage: float = 300.0  # seconds that the server may be silent before the run stops (and can be gone on with)
    unknown: float = 60.0  # seconds after which a job that the server knows nothing of is sent again
    stalled: float = 600.0  # seconds after which a job that waits without any news is sent again
    attempts: int = 5  # times that one job is sent, where the server lost it


@dataclass
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    conditions: dict[str, Any] = field(default_factory=dict)  # further conditions: name -> list of interventions
    parts: dict[str, Any] = field(default_factory=dict)  # interventions with a name, for use in conditions
    claims: dict[str, Any] = field(default_factory=dict)  # what the run is to decide (conf/claims), kept with the store
    data: DataConfig = field(default_factory=DataConfig)
    directions: DirectionsConfig = field(default_factory=DirectionsConfig)
    judge: str = own.DEFAULT  # who labels the answers (gating/judging/own.py)
    label_rule: Limits = field(default_factory=Limits)
    backend: BackendConfig = field(default_factory=BackendConfig)
    max_new_tokens: int | None = None  # null takes the model's
    stop: str = "end"  # of an answer: at its own end, or, for screening, where its label is settled (label)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    readouts: ReadoutsConfig = field(default_factory=ReadoutsConfig)
    activations: bool = False  # keep the unsteered residual stream of every prompt
    seed: int = 0
    runs_dir: str = "runs"
    force: bool = False
    reuse: bool = True  # take directions from a run of runs_dir that extracted the very same ones
    dry_run: bool = False
    full_text: bool = False  # whole prompts and completions in the report


BACKENDS = ("local", "ndif", "simulation")
STOPS = ("end", "label")

# Settings that say where and how a run is done, not what comes out of it: no part of its key.
NOT_IN_KEY = ("runs_dir", "force", "reuse", "dry_run", "full_text")
CALIBRATION_PROMPTS = 16  # of the select split, for steer.iso_kl
MATCHING_PROMPTS = 32  # of each select split, harmful and harmless, for draw=matched
NOT_IN_KEY_OF_BACKEND = ("host", "deploy", "in_flight", "deadline", "outage", "unknown", "stalled", "attempts")


def register() -> None:
    """Give Hydra the schema, under the name that conf/config.yaml starts from, and `${times:A,B}` for doses."""
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    ConfigStore.instance().store(name="schema", node=RunConfig)


def typed(cfg: DictConfig) -> RunConfig:
    """The composed configuration as dataclasses. Raises GatingError for a mandatory value that nobody gave."""
    settings.check_keys(cfg)
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
    settings.check_lists(run)
    settings.check_numbers(run, settings.RANGES)
    check_path(run.runs_dir, "runs_dir")
    if run.backend.name not in BACKENDS:
        raise GatingError(f"backend.name={run.backend.name!r}: use {choices(BACKENDS, run.backend.name)}.")
    if run.backend.host is not None:
        addresses.checked(run.backend.host, "backend.host")
    if run.data.split not in ("extract", "select", "test"):
        raise GatingError(
            f"data.split={run.data.split!r}: use {choices(['extract', 'select', 'test'], run.data.split)}."
        )
    if not (run.data.harmful or run.data.harmless or run.data.borderline):
        raise GatingError(
            "data: no prompts are asked for; give at least one of data.harmful, data.harmless, data.borderline."
        )
    _check_directions(run.directions)
    models.check(run.model)
    own.own_judge(run.judge)
    if run.stop not in STOPS:
        raise GatingError(f"stop={run.stop!r}: use {choices(STOPS, run.stop)}.")
    if run.stop == "label" and run.backend.name != "local":
        raise GatingError(
            f"stop=label with backend.name={run.backend.name}: rows are looked at between tokens, which only "
            "backend=local does; leave stop out."
        )
    degenerate.check(run.label_rule)
    if run.readouts.extra:
        from gating.steering import readouts  # torch comes with it

        readouts.check_extra(run.readouts.extra)
    if run.readouts.extra and not run.readouts.last:
        raise GatingError(
            f"readouts.extra={run.readouts.extra} with readouts.last=false, which reads nothing off the residual "
            "stream; leave readouts.last=true, or drop readouts.extra."
        )


def check_path(path: str, key: str) -> None:
    """Raises GatingError for a text that can name no file."""
    if not path.strip() or "\0" in path or len(path) > 4000:
        raise GatingError(f"{key}={shown(repr(path), 80)} is no path; give one.")


def _check_directions(how: DirectionsConfig) -> None:
    if how.samples > 1 and how.temperature == 0:
        raise GatingError(
            f"directions.samples={how.samples} with directions.temperature=0: greedy answers are all the same; give a "
            "temperature, such as 1.0, or one sample."
        )
    if how.filter not in (None, "fluent"):
        try:
            if kinds.load(str(how.filter)).of_harm:
                raise GatingError("It scores harm, not whether an answer shows a trait.")
        except GatingError as e:
            raise GatingError(
                f"directions.filter={how.filter!r}: use null, fluent, or a judge of answers. {e}"
            ) from None
    if how.source is not None:
        check_path(how.source, "directions.source")
    chat.check_position(how.position)
    direction_methods.check_method(how.method)
    direction_specs.check_derived(how.derived)
    variants.check(how.variants)
