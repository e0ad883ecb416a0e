"""Extracted directions: the algebra of vectors, permuted nulls, and the /directions group that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating.steering.direction_specs import ALGEBRA, label

SITE = "resid_post"
TEXT = np.dtypes.StringDType()


def derive(a: np.ndarray, b: np.ndarray, how: str) -> np.ndarray:
    """The part of `a` along `b`, or the rest of it, layer by layer: both [layer, hidden], float64."""
    squared = (b * b).sum(-1, keepdims=True)
    along = np.divide((a * b).sum(-1, keepdims=True), squared, out=np.zeros_like(squared), where=squared > 0) * b
    return along if how == "along" else a - along


def unit(v: np.ndarray, missing: float = np.nan) -> np.ndarray:
    """Unit vectors along the last axis; `missing` where a vector is zero."""
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    return np.divide(v, norm, out=np.full_like(v, missing), where=norm > 0)


def permuted(positive: np.ndarray, negative: np.ndarray, paired: bool, k: int, seed: int) -> np.ndarray:
    """Mean differences after the labels were shuffled, [k, layer, hidden] float64: a null for cosines that keeps the
    activations' own covariance."""
    both = np.concatenate([positive, negative]).astype("float64")
    return np.einsum("kr,rlh->klh", permuted_weights(len(positive), len(negative), paired, k, seed), both)


def permuted_weights(positive: int, negative: int, paired: bool, k: int, seed: int) -> np.ndarray:
    """The weight of each row, positive ones first, in k mean differences after the labels were shuffled: [k, row].
    Paired rows swap sides pair by pair, unpaired ones are dealt out anew."""
    rng = np.random.default_rng([seed, 7])
    n = positive + negative
    weights = np.empty((k, n))
    for i in range(k):
        if paired:
            sign = rng.choice([-1.0, 1.0], size=positive)
            weights[i] = np.concatenate([sign, -sign]) / positive
        else:
            order = rng.permutation(n)
            weights[i] = np.where(order < positive, 1 / positive, -1 / negative)
    return weights


@dataclass(frozen=True)
class Extracted:
    """A direction that has been extracted: its vector [layer, hidden] float64 and where it came from."""

    name: str
    vector: np.ndarray
    role: str
    position: str
    method: str
    source: str
    n: tuple[int, int] = (-1, -1)  # rows a side; -1 where it is derived from others
    distinct: tuple[int, int] = (-1, -1)
    sides: tuple[np.ndarray, np.ndarray] | None = None  # mean state of each side [layer, hidden]
    texts: str = ""  # DirectionSpec.texts; empty where it is derived
    variant: str = ""  # DirectionSpec.variant


def derived_directions(by_name: Mapping[str, Extracted], derived: Mapping[str, Mapping[str, str]]) -> list[Extracted]:
    """The directions that `derived` (directions.derived) makes of extracted ones."""
    made = []
    for name, parts in derived.items():
        algebra = next(word for word in ALGEBRA if word in parts)
        a, b = (by_name[label(parts[word])] for word in ("of", algebra))
        vector = derive(a.vector, b.vector, algebra)
        made.append(Extracted(name, vector, "derived", a.position, a.method, f"{a.name} {algebra} {b.name}"))
    return made


def probed(group: xr.Dataset) -> xr.Dataset:
    """The directions of a group that answers are read on: whole ones. Their variants would be read on every token for
    what their cosines say."""
    return group.isel(direction=group["variant"].values == "") if "variant" in group else group


def assemble(extracted: Sequence[Extracted], residual_norm: np.ndarray) -> xr.Dataset:
    """The /directions group: vectors, norms, cosines, the sides' mean projections, and how each was made."""
    stacked = np.stack([d.vector for d in extracted])  # [direction, layer, hidden]
    units = unit(stacked)
    missing = np.full(stacked.shape[1:], np.nan)
    sides = np.stack([np.stack(d.sides or (missing, missing)) for d in extracted])  # [direction, side, layer, hidden]
    projection = np.einsum("dslh,dlh->sdl", sides, units).astype("float32")
    counts = np.array([(*d.n, *d.distinct) for d in extracted], dtype="int32").T
    ds = xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), stacked.astype("float32")),
            "norm": (("direction", "layer"), np.linalg.norm(stacked, axis=-1).astype("float32")),
            "cosine": (("direction", "other", "layer"), np.einsum("alh,blh->abl", units, units).astype("float32")),
            "projection_positive": (("direction", "layer"), projection[0]),
            "projection_negative": (("direction", "layer"), projection[1]),
            "residual_norm": ("layer", residual_norm.astype("float32")),
            "n_positive": ("direction", counts[0]),
            "n_negative": ("direction", counts[1]),
            "n_distinct_positive": ("direction", counts[2]),
            "n_distinct_negative": ("direction", counts[3]),
            "site": ("direction", np.array([SITE] * len(extracted), dtype=TEXT)),
            **{
                field: ("direction", np.array([getattr(d, field) for d in extracted], dtype=TEXT))
                for field in ("role", "position", "method", "source", "texts", "variant")
            },
        }
    )
    names = np.array([d.name for d in extracted], dtype=TEXT)
    ds = ds.assign_coords(direction=names, other=("other", names), layer=np.arange(stacked.shape[1], dtype="int32"))
    ds["vector"].attrs = {"long_name": "direction, read at resid_post of block `layer`", "units": "residual stream"}
    ds["residual_norm"].attrs = {"long_name": "median residual norm over all prompt tokens but the first"}
    for side in ("positive", "negative"):
        ds[f"projection_{side}"].attrs = {"long_name": f"mean projection of the {side} side on the unit direction"}
        ds[f"n_distinct_{side}"].attrs = {"long_name": f"distinct inputs of the {side} side: its effective n"}
    return ds
