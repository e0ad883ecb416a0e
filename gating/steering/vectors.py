"""What an intervention writes and measures at a block: extracted and random directions under their norm policy."""

from __future__ import annotations

from typing import cast

import numpy as np
import xarray as xr

from gating.errors import GatingError
from gating.steering.edits import OPERATIONS
from gating.steering.interventions import RANDOM, Intervention


def site(read: str, block: int) -> int:
    return {"same": block, "previous": block - 1}[read] if read in ("same", "previous") else int(read)


def extracted(directions: xr.Dataset, name: str, layer: int) -> np.ndarray:
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


def random_direction(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """The random unit vector that a control writes at `block` in its direction's place: [hidden] float64."""
    if iv.draw == "isotropic":
        return random_unit(directions.sizes["hidden"], seed, iv.seed or 0)
    held = directions[iv.draw].sel(layer=site(iv.read, block)).isel(draw=iv.seed or 0)
    if iv.draw == "permuted":
        held = held.sel(contrast=iv.direction)
    v = held.values.astype("float64")
    if not np.linalg.norm(v) > 0:  # NaN is not
        raise GatingError(
            f"draw={iv.draw} of {iv.direction!r} is zero at block {block}: the rows that it is drawn from are all the "
            "same there; use draw=isotropic, or more extraction prompts."
        )
    return cast(np.ndarray, v / np.linalg.norm(v))


def measured(iv: Intervention, block: int, directions: xr.Dataset, seed: int) -> np.ndarray:
    """The orthonormal vectors that an intervention measures projections on: [k, hidden] float64."""
    place, hidden = site(iv.read, block), directions.sizes["hidden"]
    rows = [
        random_unit(hidden, seed, iv.seed or 0) if d == RANDOM else extracted(directions, d, place)
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
    place = site(iv.read, block)
    if iv.direction == RANDOM:
        v = random_direction(iv, block, directions, seed)
    else:
        v = extracted(directions, iv.direction, place)
    natural = float(np.linalg.norm(v))
    if iv.norm == "unit":
        target = 1.0
    elif iv.norm == "natural":
        target = natural
    elif iv.norm == "residual":
        target = float(directions["residual_norm"].sel(layer=block))
    else:
        layer = place if iv.norm_read == "same" else site(iv.norm_read, block)
        target = float(np.linalg.norm(extracted(directions, iv.norm, layer)))
    unit = v / natural if iv.seed is None else random_direction(iv, block, directions, seed)
    return cast(np.ndarray, unit[None] * target)
