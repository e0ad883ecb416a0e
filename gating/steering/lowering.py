"""Lowering: from one condition a row to plain tensors a block, which is all that a model (or a server) gets to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

import numpy as np
import torch
import xarray as xr

from gating.errors import GatingError
from gating.steering.edits import OPERATIONS
from gating.steering.interventions import RANDOM, Condition, Intervention


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


def _site(read: str, block: int) -> int:
    return {"same": block, "previous": block - 1}[read] if read in ("same", "previous") else int(read)


def _extracted(directions: xr.Dataset, name: str, layer: int) -> np.ndarray:
    v = directions["vector"].sel(direction=name, layer=layer).values.astype("float64")
    if not np.linalg.norm(v) > 0:
        raise GatingError(
            f"steer.direction={name!r} is zero at block {layer}: its two sides do not differ there; choose another "
            "block (steer.layers, steer.read) or position (directions.position)."
        )
    return cast(np.ndarray, v)


def random_unit(hidden: int, seed: int, k: int) -> np.ndarray:
    """The k-th isotropic random unit vector of a run's seed: [hidden] float64."""
    v = np.random.default_rng([seed, k]).standard_normal(hidden)
    return cast(np.ndarray, v / np.linalg.norm(v))


def measured(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """The orthonormal vectors that an intervention measures projections on: [k, hidden] float64."""
    site, hidden = _site(iv.read, block), directions.sizes["hidden"]
    rows = [
        random_unit(hidden, seed, iv.seed or 0) if d == RANDOM else _extracted(directions, d, site)
        for d in iv.directions
    ]
    return _orthonormal(np.stack(rows))


def _orthonormal(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis [k, hidden] of the span of rows; the first keeps its sign."""
    q, r = np.linalg.qr(rows.T)
    return cast(np.ndarray, (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T)


def vector(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """What an intervention writes at `block` before its coefficient: [k, hidden] float64.

    For `add` the direction under its norm policy, for the others the orthonormal vectors that they measure. A random
    control is drawn once a seed, the same at every block, and takes the exact norm of the vector it replaces.
    """
    hidden = directions.sizes["hidden"]
    if OPERATIONS[iv.op]["writes"] == "vector":
        return _with_norm(iv, block, directions, seed)
    own = measured(iv, block, directions, seed)
    if iv.seed is None:
        return own
    draws = [random_unit(hidden, seed, iv.seed + 1000 * i) for i in range(len(own))]
    return _orthonormal(np.stack(draws))


def _with_norm(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """The added vector under its norm policy: [1, hidden] float64."""
    site, hidden = _site(iv.read, block), directions.sizes["hidden"]
    if iv.direction == RANDOM:
        v = random_unit(hidden, seed, iv.seed or 0)
    else:
        v = _extracted(directions, iv.direction, site)
    natural = float(np.linalg.norm(v))
    if iv.norm == "unit":
        target = 1.0
    elif iv.norm == "natural":
        target = natural
    elif iv.norm == "residual":
        target = float(directions["residual_norm"].sel(layer=block))
    else:
        layer = site if iv.norm_read == "same" else _site(iv.norm_read, block)
        target = float(np.linalg.norm(_extracted(directions, iv.norm, layer)))
    unit = v / natural if iv.seed is None else random_unit(hidden, seed, iv.seed)
    return cast(np.ndarray, unit[None] * target)


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


def _lowered(condition: Condition, order: int, block: int, directions: xr.Dataset, seed: int) -> Lowered:
    """One intervention of a condition at one block, by the row of its operation in OPERATIONS."""
    iv = condition.interventions[order]
    row = OPERATIONS[iv.op]
    if row["writes"] == "undo":
        earlier = [e for e in condition.interventions[:order] if e.op == "add" and e.direction == iv.direction]
        total = sum(e.coef * vector(e, b, directions, seed) for e in earlier for b in e.layers)
        write, measure = -np.asarray(total), None
    else:
        write = vector(iv, block, directions, seed)
        measure = measured(iv, block, directions, seed) if row["writes"] == "unit" else None
    strength, target = iv.coef - row["neutral"], np.zeros(len(write))
    if row["target"]:
        place = _between(directions, iv.direction, _site(iv.read, block), iv.coef, f"op={iv.op}, direction")
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


def lower(
    rows: Sequence[Condition], directions: xr.Dataset, seed: int, scale: Mapping[str, float] | None = None
) -> Edits:
    """Lower one condition per row to plain tensors: {block: [edit, ...]}; gating/steering/edits.py says what an edit
    holds.

    Rows of different conditions share an edit when their slots agree; a row outside it has strength 0 there. A row's
    own interventions keep their order. scale: a factor on the strengths of a condition, by name.
    """
    hidden, n = directions.sizes["hidden"], len(rows)
    held: dict[Slot, Edit] = {}
    cache: dict[tuple[Condition, Slot], Lowered] = {}
    for r, condition in enumerate(rows):
        factor = (scale or {}).get(condition.name, 1.0)
        for slot in slots(condition):
            if (condition, slot) not in cache:
                cache[condition, slot] = _lowered(condition, slot.order, slot.block, directions, seed)
            if slot not in held:
                held[slot] = _empty(n, hidden, slot)
            edit = held[slot]
            iv = condition.interventions[slot.order]
            _fill(edit, r, cache[condition, slot], factor if is_dose(iv) else 1.0)
            edit["of"][r] = _source(rows, r, iv.reference)
            if edit["gate"] is not None:
                gate = _extracted(directions, iv.gate, slot.block)
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
