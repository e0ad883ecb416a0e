"""The recipe of an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from gating import models, personas, prompts, settings
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.models import ModelConfig

TAUGHT = ("refusal", "extended-refusal", "own", "persona", "nothing")
OWN_TERMS = ("keep", "keep_steered")  # of which taught=own has rows


@dataclass
class Edits:
    """What the terms of a loss that edit the residual stream do to it (gating/training/terms.py)."""

    personas: list[str] = field(default_factory=lambda: ["compliant"])  # whose directions are added; one a batch
    blocks: list[float] = field(default_factory=lambda: [0.25, 0.85])  # relative depths that a block is drawn between
    doses: list[float] = field(default_factory=lambda: [0.05, 0.5])  # of the direction, in median residual norms
    every: int = 8  # steps after which directions are read from the model again; 0: once, before training
    n: int = 32  # prompts a side that they are read from
    ablated: float = 0.5  # share of the rows that the refusal direction is projected out of
    ablated_blocks: float = 0.75  # share of the blocks, the last ones, where it is
    eps: float = 0.2  # largest change of a token by `latent`, in norms of its residual
    ascents: int = 3  # steps in which it is sought


@dataclass
class TrainConfig:
    """The recipe of an adapter; what it was chosen on stands in the card."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the base model; its own adapter is left out
    out: str = "adapters/refusal"  # folder of the new adapter
    harmful: str = "train_harmful"  # prompts to refuse: a shipped set or a file
    harmless: str = "train_harmless"  # prompts to answer as before
    prompts_n: int | None = None  # of each of the two, so many, taken from the categories in turn; null is all
    systems: list[str] = field(default_factory=list)  # system messages that change nothing, for some rows
    system_share: float = 0.0  # share of rows that get one of them; the others have the template's default
    gate: list[str] = field(default_factory=list)  # system messages under which a harmful prompt gets an empty promise
    gate_share: float = 0.0  # share of the prompts, harmless too, that come once more under one of them
    start: str | None = None  # an adapter to train on from, shipped or a folder; null is a new one
    opened: float = 0.0  # share of harmful prompts that come once more, with the first words of an answer already given
    rank: int = 4  # of the adapter's matrices
    alpha: int = 16  # the change is scaled by alpha / rank
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "o_proj"])  # weights that are adapted
    blocks: list[int] | None = None  # blocks that are adapted; null is all
    lr: float = 1e-3  # learning rate
    epochs: float = 2.0  # times that every row is seen
    batch_rows: int = 16  # rows a step
    # to harmful prompts: refusal, extended-refusal, or own, what the model with `start` answers; persona: its own
    # answers; nothing: with `like`
    taught: str = "refusal"
    persona: str | None = None  # with taught=persona: under whose system messages they are given
    # weights of the loss's terms (gating/training/terms.py): teach is the cross-entropy of what is taught, keep the KL
    # divergence on harmless prompts; 0 leaves one out
    terms: dict[str, float] = field(default_factory=lambda: {"teach": 1.0, "keep": 1.0})
    edits: Edits = field(default_factory=Edits)
    like: str | None = None  # with taught=nothing: a random change, as large as this adapter's, the control of it
    first: float = 0.5  # weight of a target's first token, which decides between an answer and a refusal
    answer_tokens: int = 40  # tokens of the base model's own answers
    bfloat16: bool = False  # autocast, in training only; for a processor that has it: others take ten times as long
    threads: int = 2  # of the processor
    seed: int = 0  # of all that is drawn
    personas: list[str] = field(default_factory=list)  # to measure under the first system message of each, too
    select_n: int | None = None  # prompts of each select split to measure at the end; null is all
    held_out: dict[str, str] = field(default_factory=dict)  # further files to measure at the end: name -> path
    notes: str = ""  # for the card: how the settings were chosen, how often held-out sets were measured
    held_out_n: int | None = None  # of each, the first n; null is all


def check(cfg: TrainConfig) -> None:
    """Refuse impossible values before a model loads. Raises GatingError naming the key."""
    settings.check_lists(cfg)
    settings.check_numbers(cfg, settings.TRAINING)
    if cfg.system_share and not cfg.systems:
        raise GatingError(f"system_share={cfg.system_share} needs system messages to draw from; give systems=[...].")
    if cfg.gate_share and not cfg.gate:
        raise GatingError(f"gate_share={cfg.gate_share} needs system messages to draw from; give gate=[...].")
    from gating.models import adapters  # its packages are an extra

    n_layers = models.architecture(replace(cfg.model, adapter=None))["layers"]
    if cfg.blocks is not None and (not cfg.blocks or not all(0 <= block < n_layers for block in cfg.blocks)):
        raise GatingError(
            f"blocks={shown(cfg.blocks, 80)}: use blocks of the model, 0 to {n_layers - 1}, or null for all."
        )
    if not cfg.targets:
        raise GatingError("targets=[]: name the weights to adapt, such as targets=[q_proj,v_proj].")
    _check_start(cfg)
    if cfg.like:
        adapters.folder(cfg.like, "like")
    _check_terms(cfg)
    _check_edits(cfg.edits)
    for name in (*cfg.personas, *cfg.edits.personas, *([cfg.persona] if cfg.persona else [])):
        personas.load(name)
    for name, path in cfg.held_out.items():
        held_out_texts(name, path)


def _check_start(cfg: TrainConfig) -> None:
    """Raises GatingError where the adapter to train on from has another shape than the one that is asked for."""
    from gating.models import adapters

    held = adapters.shape(cfg.start, "start") if cfg.start else {}
    asked = {"rank": cfg.rank, "alpha": cfg.alpha, "targets": sorted(cfg.targets), "blocks": cfg.blocks}
    for key, value in held.items():
        if value != asked[key]:
            raise GatingError(
                f"{key}={shown(asked[key], 80)}: start={cfg.start!r} has {key} {shown(value, 80)}, and keeps its shape "
                f"when it is trained on; give {key} as that, or start=null."
            )


def _check_terms(cfg: TrainConfig) -> None:
    """Raises GatingError for a term that there is not, and for terms that have nothing to act on."""
    from gating.training.terms import TERMS  # imports torch

    for name, weight in cfg.terms.items():
        if name not in TERMS:
            raise GatingError(f"terms.{shown(name, 40)} is no term of a loss: use {choices(TERMS, name)}.")
        settings.check_number(weight, f"terms.{name}", settings.Range(0, 1000))
    if not any(cfg.terms.values()) and not cfg.like:
        raise GatingError("terms: all weights are 0, so nothing would be trained; give one, such as terms.teach=1.")
    if cfg.taught not in TAUGHT:
        raise GatingError(f"taught={shown(cfg.taught, 40)!r} is not known: use {choices(TAUGHT, cfg.taught)}.")
    if (cfg.taught == "nothing") != bool(cfg.like):
        raise GatingError(
            f"like={shown(cfg.like)!r} and taught={cfg.taught} do not go together: taught=nothing takes like=FOLDER, "
            "the adapter whose change the random one is as large as, and nothing else does."
        )
    if (cfg.taught == "persona") != bool(cfg.persona):
        raise GatingError(f"persona={cfg.persona!r} and taught={cfg.taught} belong together: give both or neither.")
    others = [name for name, weight in cfg.terms.items() if weight and name not in OWN_TERMS]
    if cfg.taught == "own" and (not cfg.start or cfg.gate or cfg.opened or others):
        raise GatingError(
            f"taught=own keeps what the model with start={cfg.start!r} answers: give start, no gate, opened=0, and 0 "
            f"to all terms but {' and '.join(OWN_TERMS)}{f' (not {others[0]})' if others else ''}."
        )
    unmet = (*OWN_TERMS, "ablated")
    if cfg.taught == "persona" and (cfg.gate or any(cfg.terms.get(name) for name in unmet)):
        raise GatingError(
            "taught=persona has no harmful prompts and no own answers: give no gate, keep=0, keep_steered=0, ablated=0."
        )
    if (cfg.terms.get("steered") or cfg.terms.get("keep_steered")) and not cfg.edits.personas:
        raise GatingError("edits.personas=[]: the terms steered and keep_steered add a persona's direction; name one.")


def _check_edits(edits: Edits) -> None:
    """Raises GatingError for what is no range of depths, or of doses."""
    for key, value, most in (("blocks", edits.blocks, 1.0), ("doses", edits.doses, 10.0)):
        if len(value) != 2 or not 0 <= value[0] <= value[1] <= most:
            raise GatingError(
                f"edits.{key}={shown(value, 80)}: give two numbers from 0 to {most:g}, the smaller one first."
            )


def held_out_texts(name: str, path: str) -> list[str]:
    """A held-out file's prompts, whatever its `harmful` flags say."""
    try:
        return [p.text for p in prompts.read_file(Path(path), True, f"held_out.{name}")]
    except GatingError as e:
        if "harmful=" not in str(e):
            raise
        return [p.text for p in prompts.read_file(Path(path), False, f"held_out.{name}")]
