"""Interventions and conditions are data: what each is, and how a window of decoder blocks is named.

condition_grid.py makes conditions of what a user wrote, lowering.py turns them into tensors, edits.py acts on
activations.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gating.errors import GatingError

SCOPES = ("all", "prompt", "generated", "last", "response")
NORMS = ("natural", "unit", "residual")  # or the name of a direction
READS = ("same", "previous")  # or a decoder block
# fields whose value may be a list, an axis
AXES = (
    "direction",
    "op",
    "layers",
    "coef",
    "norm",
    "scope",
    "read",
    "reference",
)
RANDOM = "random"
EACH = "each"
# how a random direction is drawn, and the word for it in a condition's name
DRAWS = {"isotropic": "random", "covariance": "covariance", "permuted": "permuted", "matched": "matched"}


@dataclass(frozen=True)
class Intervention:
    """One operation on the residual stream: what is written, where, how strongly and on which tokens.

    `layers` are 0-based blocks b, written at resid_post[b]. `read` says which site the direction is taken from: `same`
    (block b), `previous` (block b-1, the paper's convention: read hidden_states[b], write block b) or a fixed block.
    What `coef` counts is the operation's matter (edits.OPERATIONS): for `add` lengths set by `norm`: `natural` (as
    extracted), `unit`, `residual` (the median residual norm at the written block, so that coef is a fraction of it) or
    another direction's name (that direction's norm, at the same site or at the block `norm_read`).
    `remove` takes out again what earlier `add`s of the condition put in along the same direction. `direction` may be a
    set, a+b, for the ablation of the subspace that they span.

    `seed` makes it a control: a random direction of exactly the same norm is *written*, while what is measured stays. A
    `direction` that is `random` is random in both. `draw` says how it is drawn: `isotropic`; `covariance`, from the
    covariance of the residual within the sides that directions are extracted from; `permuted`, the contrast of the same
    rows with their labels permuted (both for `add`); `matched`, for `ablate`, which is measured too: a direction across
    the persona's that takes out as much (pipeline/matched.py). An isotropic control of an ablation adds exactly as much
    as it takes out, elsewhere; it takes nothing out there.
    `reference` says where an ablation leads the projection: `zero` (directional ablation as published), `mean` (what it
    is on average in the harmless prompts that directions are extracted from) or `own` (what the unsteered row of the
    same prompt has, so that an unsteered model is left as it is), or what it has under another condition of the run
    (an interchange: token by token in the prompt, its mean there for what is generated).
    `gate` names a direction: the edit acts only on rows whose last prompt token's projection on it, at that block,
    lies above `threshold` (0 is its negative side's mean, 1 its positive side's).
    """

    op: str
    direction: str
    layers: tuple[int, ...]
    coef: float
    norm: str = "natural"
    scope: str = "all"
    read: str = "same"
    seed: int | None = None
    norm_read: str = "same"
    gate: str = ""
    threshold: float = 0.5
    reference: str = "zero"
    draw: str = "isotropic"

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.direction.split("+"))


@dataclass(frozen=True)
class Condition:
    """A named, ordered list of interventions, with all that its name shows as data, so that nobody reads it off the
    name.

    grid: its place in the grid (-1: the baseline), which its controls share; layers: the window as the user wrote it,
    for labels; family: the name that a condition shares with its controls and with the other points of its axes
    (empty: its own); point: its place on the axes, such as `coef=2`; controls: the condition that it is a control of
    (empty where it is none, or where that condition is not in the run); system: replaces the run's system message;
    paper: the paper's own label, such as C1.
    """

    name: str
    kind: str = "baseline"  # baseline, steered, reversed, random, named
    interventions: tuple[Intervention, ...] = ()
    grid: int = -1
    layers: str = ""
    seed: int = -1
    system: str | None = None
    family: str = ""
    point: str = ""
    controls: str = ""
    paper: str = ""


def parse_layers(value: object, n_layers: int, key: str = "steer.layers") -> tuple[int, ...]:
    """Blocks named by a window: `20`, a relative depth `0.7` (block floor(0.7 n)), a range `22-26` or `0.6-0.8`, a set
    `22+24`, or `all`. Raises GatingError for anything else and for blocks the model does not have."""
    text = str(value).strip()
    if text == "all":
        return tuple(range(n_layers))
    blocks: list[int] = []
    for part in text.split("+"):
        ends = part.split("-")
        if not 1 <= len(ends) <= 2 or not all(re.fullmatch(r"[0-9]{1,9}|0?\.[0-9]{1,99}", e.strip()) for e in ends):
            raise GatingError(
                f"{key}={value!r} is not a layer window: use a block (16), a relative depth (0.55), a range (17-25), a "
                "set (22+24) or all; a list of windows, [14,16], is an axis."
            )
        numbers = [int(e) if e.strip().isdigit() else math.floor(float(e) * n_layers) for e in ends]
        if numbers[0] > numbers[-1]:
            raise GatingError(f"{key}={value!r}: the range {part} runs backwards; write the lower block first.")
        if numbers[-1] >= n_layers:
            raise GatingError(
                f"{key}={value!r}: the model has {n_layers} blocks, 0 to {n_layers - 1}; block {numbers[-1]} does not "
                "exist. A relative depth such as 0.55 fits any model."
            )
        blocks += range(numbers[0], numbers[-1] + 1)
    return tuple(sorted(set(blocks)))
