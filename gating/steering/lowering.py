"""Lowering: from one condition a row to plain tensors a block, which is all that a model (or a server) gets to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
import xarray as xr

from gating.errors import GatingError
from gating.steering.edits import OPERATIONS
from gating.steering.interventions import Condition, Intervention
from gating.steering.vectors import extracted, measured, site, vector


class Edit(TypedDict):
    """One edit of a block's output, one entry a row; gating/steering/edits.py says what each holds."""

    op: str
    scope: str
    write: torch.Tensor
    measure: torch.Tensor | None
    strength: torch.Tensor
    target: torch.Tensor
    of: torch.Tensor
    gate: tuple[torch.Tensor, torch.Tensor] | None


Edits = dict[int, list[Edit]]


class Slot(NamedTuple):
    """Where an edit stands: rows of different conditions share it when all of this agrees."""

    block: int
    order: int  # place among the condition's interventions
    op: str
    scope: str
    gated: bool


class Lowered(NamedTuple):
    """One intervention at one block: what is written and measured, both [k, hidden] float64, how strongly, led
    where [k]."""

    write: np.ndarray
    measure: np.ndarray | None
    strength: float
    target: np.ndarray


class Drawn(NamedTuple):
    """A direction that a control takes out in the persona's place: unit vectors [k, hidden] float64, and the factor on
    the coefficient."""

    vectors: np.ndarray
    coefficient: float


Place = tuple[str, int, int, int]  # of a matched control: the condition it controls, intervention, block, seed
Matched = Mapping[Place, Drawn]


def _between(directions: xr.Dataset, name: str, layer: int, place: float, what: str) -> float:
    """A projection on the unit direction, `place` of the way from its negative side's mean to its positive side's."""
    sides = [
        float(directions[f"projection_{side}"].sel(direction=name, layer=layer)) for side in ("negative", "positive")
    ]
    if not np.isfinite(sides).all():
        raise GatingError(
            f"{what}={name!r}: this direction has no two sides of its own (it is derived from others), so there is no "
            "projection to lead to; name an extracted one."
        )
    return sides[0] + place * (sides[1] - sides[0])


def _lowered(
    condition: Condition, order: int, block: int, directions: xr.Dataset, seed: int, matched: Matched
) -> Lowered:
    """One intervention of a condition at one block, by the row of its operation in OPERATIONS."""
    iv = condition.interventions[order]
    row, factor = OPERATIONS[iv.op], 1.0
    if iv.seed is not None and iv.draw == "matched":
        write, factor = matched[condition.controls, order, block, iv.seed]
        measure: np.ndarray | None = write
    elif row["writes"] == "undo":
        earlier = [e for e in condition.interventions[:order] if e.op == "add" and e.direction == iv.direction]
        total = sum(e.coef * vector(e, b, directions, seed) for e in earlier for b in e.layers)
        write, measure = -np.asarray(total), None
    else:
        write = vector(iv, block, directions, seed)
        measure = measured(iv, block, directions, seed) if row["writes"] == "unit" else None
    strength, target = factor * (iv.coef - row["neutral"]), np.zeros(len(write))
    if row["target"]:
        place = _between(directions, iv.direction, site(iv.read, block), iv.coef, f"op={iv.op}, direction")
        strength, target = 1.0, np.full(len(write), place)
    elif iv.reference == "mean" and measure is not None:
        target = measure @ directions["resting"].sel(layer=block).values.astype("float64")
    return Lowered(write, measure, strength, target)


def is_dose(iv: Intervention) -> bool:
    """Whether a calibrated factor applies: to what adds a length of its own, or scales by a number, not to what leads a
    projection to a place."""
    return OPERATIONS[iv.op]["writes"] != "unit" or iv.op in ("scale", "rotate")


def slots(condition: Condition) -> Iterator[Slot]:
    """Where the edits of a condition stand."""
    for order, iv in enumerate(condition.interventions):
        for block in iv.layers:
            yield Slot(block, order, iv.op, iv.scope, bool(iv.gate))


def vectors_a_row(conditions: Sequence[Condition]) -> int:
    """Vectors [hidden] that a plan of these conditions holds for each of its rows: what is written, measured and
    gated."""
    held: dict[Slot, int] = {}
    for condition in conditions:
        for slot in slots(condition):
            k = len(condition.interventions[slot.order].directions)
            measures = OPERATIONS[slot.op]["writes"] == "unit"
            held[slot] = max(held.get(slot, 0), (2 * k if measures else 1) + slot.gated)
    return sum(held.values())


def places(rows: Sequence[Condition], condition: Condition, order: int) -> dict[int, int]:
    """How many edits of these rows come before one intervention of a condition, at each block that it writes."""
    there = sorted({slot for row in rows for slot in slots(row)})
    return {
        slot.block: [s for s in there if s.block == slot.block].index(slot)
        for slot in slots(condition)
        if slot.order == order
    }


def lower(
    rows: Sequence[Condition],
    directions: xr.Dataset,
    seed: int,
    scale: Mapping[str, float] | None = None,
    matched: Matched | None = None,
) -> Edits:
    """Lower one condition per row to plain tensors: {block: [edit, ...]}; gating/steering/edits.py says what an edit
    holds.

    Rows of different conditions share an edit when their slots agree; a row outside it has strength 0 there. A row's
    own interventions keep their order. scale: a factor on the strengths of a condition, by name; matched: the
    directions of matched controls.
    """
    hidden, n = directions.sizes["hidden"], len(rows)
    held: dict[Slot, Edit] = {}
    cache: dict[tuple[Condition, Slot], Lowered] = {}
    for r, condition in enumerate(rows):
        factor = (scale or {}).get(condition.name, 1.0)
        for slot in slots(condition):
            if (condition, slot) not in cache:
                cache[condition, slot] = _lowered(condition, slot.order, slot.block, directions, seed, matched or {})
            if slot not in held:
                held[slot] = _empty(n, hidden, slot)
            edit = held[slot]
            iv = condition.interventions[slot.order]
            _fill(edit, r, cache[condition, slot], factor if is_dose(iv) else 1.0)
            edit["of"][r] = _source(rows, r, iv.reference)
            if edit["gate"] is not None:
                gate = extracted(directions, iv.gate, slot.block)
                edit["gate"][0][r] = torch.from_numpy(gate / np.linalg.norm(gate))
                edit["gate"][1][r] = _between(directions, iv.gate, slot.block, iv.threshold, "gate")
    edits: Edits = {}
    for slot, edit in sorted(held.items(), key=lambda item: item[0]):
        edits.setdefault(slot.block, []).append(edit)
    return edits


def _source(rows: Sequence[Condition], r: int, reference: str) -> int:
    """The row that row r is led to the projections of: another condition's of the same prompt, -1 for none. A prompt's
    rows begin with its baseline; without one, `own` is the row itself."""
    if reference in ("zero", "mean"):
        return -1
    start = next((i for i in range(r, -1, -1) if rows[i].kind == "baseline"), None)
    if reference == "own":
        return r if start is None else start
    first = start or 0
    end = next((i for i in range(first + 1, len(rows)) if rows[i].kind == "baseline"), len(rows))
    return next(i for i in range(first, end) if rows[i].name == reference)


def _empty(n: int, hidden: int, slot: Slot) -> Edit:
    """An edit that does nothing to any of its n rows."""
    measures = OPERATIONS[slot.op]["writes"] == "unit"
    return {
        "op": slot.op,
        "scope": slot.scope,
        "write": torch.zeros(n, 1, hidden),
        "measure": torch.zeros(n, 1, hidden) if measures else None,
        "strength": torch.zeros(n),
        "target": torch.zeros(n, 1),
        "of": torch.full((n,), -1),
        "gate": (torch.zeros(n, hidden), torch.full((n,), torch.inf)) if slot.gated else None,
    }


def _fill(edit: Edit, r: int, lowered: Lowered, factor: float) -> None:
    """Row r of an edit; what it does not use of the room for k vectors stays zero and does nothing."""
    k = len(lowered.write)
    edit["write"] = _widened(edit["write"], k)
    edit["write"][r, :k] = torch.from_numpy(lowered.write)
    if edit["measure"] is not None and lowered.measure is not None:
        edit["measure"] = _widened(edit["measure"], k)
        edit["measure"][r, :k] = torch.from_numpy(lowered.measure)
        edit["target"] = _widened(edit["target"], k)
    edit["target"][r, : len(lowered.target)] = torch.from_numpy(lowered.target)
    edit["strength"][r] = lowered.strength * factor


def _widened(vectors: torch.Tensor, k: int) -> torch.Tensor:
    """[row, held, ...] with room for k entries a row."""
    n, held, *rest = vectors.shape
    return vectors if held >= k else torch.cat([vectors, torch.zeros(n, k - held, *rest)], dim=1)
