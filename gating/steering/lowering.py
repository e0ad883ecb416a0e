"""Lowering: from one condition a row to plain tensors a block, which is all that a model (or a server) gets to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from gating.errors import GatingError
from gating.steering.interventions import RANDOM, Condition, Intervention

Edit = dict[str, Any]  # see gating/steering/ops.py
Edits = dict[int, list[Edit]]


def _site(read: str, block: int) -> int:
    return {"same": block, "previous": block - 1}[read] if read in ("same", "previous") else int(read)


def _extracted(directions: xr.Dataset, name: str, layer: int) -> np.ndarray:
    v = directions["vector"].sel(direction=name, layer=layer).values.astype("float64")
    if not np.linalg.norm(v) > 0:
        raise GatingError(
            f"steer.direction={name!r} is zero at block {layer}: its two sides do not differ there; choose another block "
            "(steer.layers, steer.read) or position (directions.position)."
        )
    return v


def random_unit(hidden: int, seed: int, k: int) -> np.ndarray:
    """The k-th isotropic random unit vector of a run's seed: [hidden] float64."""
    v = np.random.default_rng([seed, k]).standard_normal(hidden)
    return v / np.linalg.norm(v)


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
    return (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T


def vector(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """What an intervention writes at `block` before its coefficient: [k, hidden] float64.

    For `add` the direction under its norm policy, for the others the orthonormal vectors that they measure. A random
    control is drawn once a seed, the same at every block, and takes the exact norm of the vector it replaces.
    """
    site, hidden = _site(iv.read, block), directions.sizes["hidden"]
    if iv.op != "add":
        own = measured(iv, block, directions, seed)
        if iv.seed is None:
            return own
        draws = [random_unit(hidden, seed, iv.seed + 1000 * i) for i in range(len(own))]
        return _orthonormal(np.stack(draws))
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
    return unit[None] * target


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


def _parts(
    condition: Condition, i: int, block: int, directions: xr.Dataset, seed: int
) -> tuple[np.ndarray, np.ndarray | None, float, float]:
    """One intervention at one block: write, measure, strength, target."""
    iv = condition.interventions[i]
    if iv.op == "remove":
        added = [e for e in condition.interventions[:i] if e.op == "add" and e.direction == iv.direction]
        total = sum(e.coef * vector(e, b, directions, seed) for e in added for b in e.layers)
        return np.asarray(total), None, -iv.coef, 0.0
    write = vector(iv, block, directions, seed)
    if iv.op == "add":
        return write, None, iv.coef, 0.0
    measure = measured(iv, block, directions, seed)
    if iv.op in ("ablate", "rotate"):
        return write, measure, iv.coef, 0.0
    target = _between(directions, iv.direction, _site(iv.read, block), iv.coef, f"op={iv.op}, direction")
    return write, measure, 1.0, target


def lower(
    rows: Sequence[Condition], directions: xr.Dataset, seed: int, scale: Mapping[str, float] | None = None
) -> Edits:
    """Lower one condition per row to plain tensors: {block: [edit, ...]}; gating/steering/ops.py says what an edit holds.

    Rows of different conditions share an edit when op, scope and place in the order agree; a row outside it has strength
    0 there. A row's own interventions keep their order. scale: a factor on the strengths of a condition, by name.
    """
    hidden, n = directions.sizes["hidden"], len(rows)
    slots: dict[tuple[int, int, str, str, bool], Edit] = {}
    cache: dict[tuple[Condition, int, int], tuple] = {}
    for r, condition in enumerate(rows):
        factor = (scale or {}).get(condition.name, 1.0)
        for order, iv in enumerate(condition.interventions):
            op = "add" if iv.op == "remove" else iv.op
            for block in iv.layers:
                key = (block, order, op, iv.scope, bool(iv.gate))
                at = (condition, order, block)
                if at not in cache:
                    cache[at] = _parts(condition, order, block, directions, seed)
                write, measure, strength, target = cache[at]
                if key not in slots:
                    slots[key] = _empty(n, hidden, op, iv)
                edit = slots[key]
                _widen(edit, len(write))
                edit["write"][r, : len(write)] = torch.from_numpy(write)
                if measure is not None:
                    edit["measure"][r, : len(measure)] = torch.from_numpy(measure)
                edit["strength"][r], edit["target"][r] = strength * factor, target
                if iv.gate:
                    edit["gate"][0][r] = torch.from_numpy(_unit(_extracted(directions, iv.gate, block)))
                    edit["gate"][1][r] = _between(directions, iv.gate, block, iv.threshold, "gate")
    edits: Edits = {}
    for (block, *_), edit in sorted(slots.items(), key=lambda item: item[0]):
        edits.setdefault(block, []).append(edit)
    return edits


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def _empty(n: int, hidden: int, op: str, iv: Intervention) -> Edit:
    return {
        "op": op,
        "scope": iv.scope,
        "write": torch.zeros(n, 1, hidden),
        "measure": None if op == "add" else torch.zeros(n, 1, hidden),
        "strength": torch.zeros(n),
        "target": torch.zeros(n),
        "gate": (torch.zeros(n, hidden), torch.full((n,), torch.inf)) if iv.gate else None,
    }


def _widen(edit: Edit, k: int) -> None:
    """Room for k vectors a row; what is not used stays zero and does nothing."""
    for name in ("write", "measure"):
        held = edit[name]
        if held is not None and held.shape[1] < k:
            edit[name] = torch.cat([held, torch.zeros(held.shape[0], k - held.shape[1], held.shape[2])], dim=1)
