"""Random directions out of the very rows that directions are extracted from: in the covariance of the residual within
their sides, and contrasts of permuted labels.

Either is a weighted sum of rows, so that it is formed beside the model like a side's mean: what leaves the model grows
with the number of directions, not of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.steering import variants
from gating.steering.directions import permuted_weights
from gating.steering.interventions import Condition, Intervention
from gating.store import TEXT

COVARIANCE = 11  # of a run's seed, beside 7 for permuted labels


class Side(NamedTuple):
    """The rows of one side of a direction in one role: their columns among all that is read."""

    direction: str
    positive: bool
    role: int
    paired: bool
    columns: np.ndarray


class Wanted(NamedTuple):
    """What the conditions of a run draw: how many directions of a kind, whose labels are permuted, at which blocks."""

    n: int
    covariance: bool
    permuted: list[str]
    sites: list[int]


def wanted(conditions: Sequence[Condition]) -> Wanted:
    drawn = [iv for c in conditions for iv in c.interventions if iv.seed is not None]
    drawn = [iv for iv in drawn if iv.draw in ("covariance", "permuted")]
    sites = sorted({block - (iv.read == "previous") for iv in drawn for block in _read(iv)})
    permuted = list(dict.fromkeys(iv.direction for iv in drawn if iv.draw == "permuted"))
    n = 1 + max((iv.seed or 0 for iv in drawn), default=-1)
    return Wanted(n, any(iv.draw == "covariance" for iv in drawn), permuted, sites)


def _read(iv: Intervention) -> tuple[int, ...]:
    return iv.layers if iv.read in ("same", "previous") else (int(iv.read),)


def weights(asked: Wanted, sides: Sequence[Side], width: int, seed: int) -> np.ndarray:
    """The weight of each row in each drawn direction, [drawn, column] float64: those in the residual's covariance
    first, then the permuted contrasts, direction by direction."""
    whole = [side for side in sides if not variants.split(side.direction)[1]]  # a variant is made of the same rows
    blocks = [within_sides(whole, asked.n, width, seed)] if asked.covariance else []
    for name in asked.permuted:
        blocks.append(_permuted(name, sides, asked.n, width, seed))
    return np.concatenate(blocks) if blocks else np.zeros((0, width))


def within_sides(sides: Sequence[Side], k: int, width: int, seed: int) -> np.ndarray:
    """Gaussian weights that sum to 0 within each side, so that neither a contrast of two sides nor what all rows share
    is drawn: the sums have the rows' covariance within sides. [k, column] float64."""
    rng = np.random.default_rng([seed, COVARIANCE])
    total = sum(len(side.columns) for side in sides)
    out = np.zeros((k, width))
    for side in sides:
        z = rng.standard_normal((k, len(side.columns)))
        z -= z.mean(axis=1, keepdims=True)
        for i in range(k):
            np.add.at(out[i], side.columns, z[i] / np.sqrt(total))
    return out


def _permuted(name: str, sides: Sequence[Side], k: int, width: int, seed: int) -> np.ndarray:
    """Contrasts of a direction's own rows after their labels were permuted, the same way in each of its roles."""
    out = np.zeros((k, width))
    of = [side for side in sides if side.direction == name]
    for role in sorted({side.role for side in of}):
        positive, negative = (next(s for s in of if s.role == role and s.positive is flag) for flag in (True, False))
        n = len(positive.columns), len(negative.columns)
        columns = np.concatenate([positive.columns, negative.columns])
        for i, w in enumerate(permuted_weights(*n, positive.paired, k, seed)):
            np.add.at(out[i], columns, w if role == 0 else -w)  # I-Thou: the model's contrast minus the user's
    return out


def variables(asked: Wanted, sums: np.ndarray, n_layers: int) -> dict[str, xr.DataArray]:
    """The drawn directions as variables of /directions, NaN at blocks where none is written.

    sums: [drawn, layer, hidden], in the order of `weights`.
    """
    kept = np.where(np.isin(np.arange(n_layers), asked.sites)[None, :, None], sums, np.nan).astype("float32")
    kept = kept.reshape(-1, asked.n, *kept.shape[1:]) if asked.n else kept
    out = {}
    if asked.covariance:
        attrs = {"long_name": "random direction in the residual's covariance within the sides of all directions"}
        out["covariance"] = xr.DataArray(kept[0], dims=("draw", "layer", "hidden"), attrs=attrs)
    if asked.permuted:
        out["permuted"] = xr.DataArray(
            kept[int(asked.covariance) :],
            dims=("contrast", "draw", "layer", "hidden"),
            coords={"contrast": np.array(asked.permuted, dtype=TEXT)},
            attrs={"long_name": "the direction's contrast after its labels were permuted"},
        )
    return out
