"""Stores joined by reading every value of each: what the lazy join of gating/store/joins.py must equal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from gating.store.joins import _number, _union
from gating.store.schema import TEXT


def join(parts: Sequence[tuple[xr.Dataset, dict[str, object]]], axes: Sequence[str]) -> xr.Dataset:
    """One dataset over the union of the parts' coordinates and the axes; what no part has is missing. A dimension
    without a coordinate (hidden, token) is as long as the longest."""
    placed = []
    numbers = {a for a in axes if all(_number(s.get(a)) for _, s in parts)}
    for ds, settings in parts:
        place = {a: [settings.get(a) if a in numbers else str(settings.get(a))] for a in axes}
        counted = {d: np.arange(n) for d, n in ds.sizes.items() if d not in ds.coords}
        placed.append(ds.reset_coords(drop=True).assign_coords(counted).expand_dims(place))
    dims = dict.fromkeys(d for ds in placed for d in ds.dims)
    union = {d: _union([ds[d].values for ds in placed if d in ds.dims]) for d in dims}
    names = dict.fromkeys(name for ds in placed for name in ds.data_vars)
    joined = {name: _filled([ds[name] for ds in placed if name in ds.data_vars], union) for name in names}
    return xr.Dataset(joined, union, parts[0][0].attrs)


def _filled(arrays: Sequence[xr.DataArray], union: Mapping[Hashable, np.ndarray]) -> xr.DataArray:
    """One variable's values from every part in their places, missing elsewhere, in a dtype that holds all of them."""
    dims = list(dict.fromkeys(d for a in arrays for d in a.dims))
    text = any(a.dtype.kind in "OTU" for a in arrays)
    dtype: Any = TEXT if text else np.result_type(*(a.dtype for a in arrays))
    fill: object = {"b": False, "i": -1}.get(dtype.kind, "" if text else np.nan)
    values = np.full([len(union[d]) for d in dims], fill, dtype=dtype)
    places = {d: {v: i for i, v in enumerate(union[d].tolist())} for d in dims}
    for a in arrays:
        whole = a.expand_dims([d for d in dims if d not in a.dims]).transpose(*dims)
        at = [[places[d][v] for v in whole[d].values.tolist()] if d in whole.coords else [0] for d in dims]
        values[np.ix_(*at)] = np.array(whole.values.tolist(), dtype=TEXT).reshape(whole.shape) if text else whole.values
    return xr.DataArray(values, {d: union[d] for d in dims}, dims, attrs=arrays[0].attrs)
