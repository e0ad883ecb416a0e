"""The recipe of an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from gating import models, personas, prompts, settings
from gating.errors import GatingError
from gating.foreign import shown
from gating.models import ModelConfig


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
    rank: int = 4
    alpha: int = 16
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "o_proj"])
    blocks: list[int] | None = None  # blocks that are adapted; null is all
    lr: float = 1e-3
    epochs: float = 2.0
    batch_rows: int = 16
    keep: float = 1.0  # weight of the KL divergence on harmless prompts
    first: float = 0.5  # weight of a target's first token, which decides between an answer and a refusal
    answer_tokens: int = 40  # tokens of the base model's own answers
    bfloat16: bool = True  # autocast, in training only
    threads: int = 2
    seed: int = 0
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
    n_layers = models.architecture(replace(cfg.model, adapter=None))["layers"]
    if cfg.blocks is not None and (not cfg.blocks or not all(0 <= block < n_layers for block in cfg.blocks)):
        raise GatingError(
            f"blocks={shown(cfg.blocks, 80)}: use blocks of the model, 0 to {n_layers - 1}, or null for all."
        )
    if not cfg.targets:
        raise GatingError("targets=[]: name the weights to adapt, such as targets=[q_proj,v_proj].")
    _check_start(cfg)
    for name in cfg.personas:
        personas.load(name)
    for name, path in cfg.held_out.items():
        held_out_texts(name, path)


def _check_start(cfg: TrainConfig) -> None:
    """Raises GatingError where the adapter to train on from has another shape than the one that is asked for."""
    from gating.models import adapters  # its packages are an extra

    held = adapters.shape(cfg.start, "start") if cfg.start else {}
    asked = {"rank": cfg.rank, "alpha": cfg.alpha, "targets": sorted(cfg.targets), "blocks": cfg.blocks}
    for key, value in held.items():
        if value != asked[key]:
            raise GatingError(
                f"{key}={shown(asked[key], 80)}: start={cfg.start!r} has {key} {shown(value, 80)}, and keeps its shape "
                f"when it is trained on; give {key} as that, or start=null."
            )


def held_out_texts(name: str, path: str) -> list[str]:
    """A held-out file's prompts, whatever its `harmful` flags say."""
    try:
        return [p.text for p in prompts.read_file(Path(path), True, f"held_out.{name}")]
    except GatingError as e:
        if "harmful=" not in str(e):
            raise
        return [p.text for p in prompts.read_file(Path(path), False, f"held_out.{name}")]
