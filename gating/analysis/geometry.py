"""How directions lie to one another: cosines against two nulls, and the axis that they share."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import beta

from gating.analysis.reading import read_group, whole_directions
from gating.errors import GatingError


def cosines(run: xr.DataTree, level: float = 0.95) -> xr.Dataset:
    """Every pair's `cosine` at every layer, beside what chance gives: `gaussian`, the bound that |cosine| of two
    isotropic random vectors stays within at `level` (t = cos^2 is Beta(1/2, (d-1)/2)), and `permuted_low`,
    `permuted_high`, the central `level` of label-permuted directions against `other` (missing where the run kept
    none)."""
    directions = whole_directions(run)
    ds = directions[["cosine"]].copy()
    ds["gaussian"] = ((), float(np.sqrt(beta.ppf(level, 0.5, (directions.sizes["hidden"] - 1) / 2))))
    if "geometry" in run.children:
        null = read_group(run, "geometry")["permuted_cosine"]
        ends = null.quantile([(1 - level) / 2, (1 + level) / 2], dim="permutation")
        for name, q in (("permuted_low", 0), ("permuted_high", 1)):
            ds[name] = ends.isel(quantile=q, drop=True).reindex(direction=ds["direction"], other=ds["other"])
    ds.attrs = {"level": level, "gaussian": "bound on |cosine| of isotropic vectors", "permuted": "labels permuted"}
    return ds


def shared_axis(run: xr.DataTree) -> xr.Dataset:
    """Do the traits share one axis? Uncentred PCA (SVD) of their unit directions at each layer: `explained` (layer,
    component), shares of the squared length, and `loading` (layer, direction), cosines with the first component. Its
    sign, which PCA leaves open, follows from block to block (`_followed`). Refusal is left out of the PCA but has a
    loading. Raises GatingError below two traits."""
    directions = whole_directions(run)
    names = directions["direction"].values
    traits = np.array([str(r) not in ("refusal", "derived") for r in directions["role"].values])
    if traits.sum() < 2:
        raise GatingError("a shared axis needs two traits or more: run experiment=geometry, or add directions.extra.")
    v = directions["vector"].transpose("layer", "direction", "hidden").values.astype("float64")
    unit = np.divide(
        v, np.linalg.norm(v, axis=-1, keepdims=True), out=np.zeros_like(v), where=np.abs(v).sum(-1, keepdims=True) > 0
    )
    _, singular, right = np.linalg.svd(unit[:, traits], full_matrices=False)
    first = right[:, 0]
    loading = np.einsum("ldh,lh->ld", unit, first)
    sign = _followed(loading[:, traits])[:, None]
    explained = singular**2 / (singular**2).sum(1, keepdims=True)
    return xr.Dataset(
        {"explained": (("layer", "component"), explained), "loading": (("layer", "direction"), loading * sign)},
        coords={"layer": directions["layer"].values, "direction": np.array(names.tolist())},
        attrs={"traits": int(traits.sum()), "method": "uncentred SVD of unit directions"},
    )


def _followed(loading: np.ndarray) -> np.ndarray:
    """A sign for each block's component, 1 or -1 [block]: its loadings [block, trait] go with those of the block before
    (their products sum to 0 or more), and their mean over all blocks and traits is not negative."""
    along = np.where((loading[1:] * loading[:-1]).sum(1) < 0, -1.0, 1.0)
    sign = np.cumprod(np.concatenate([[1.0], along]))
    return np.asarray(-sign if (loading * sign[:, None]).mean() < 0 else sign)
