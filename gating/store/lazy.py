"""Arrays of many stores as one, of which nothing is read until a value is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gating.store.held import Columns, Held
from gating.store.schema import TEXT

FIRST = np.zeros(1, dtype=int)


@dataclass(frozen=True)
class Part:
    """An array of a store in a joined one. at: the places of its store along each dimension."""

    held: Held
    at: Columns


def variable(parts: Sequence[Part], axes: Sequence[str], union: Columns) -> xr.Variable:
    """One variable's values from every part in their places, missing elsewhere, in a dtype that holds all of them. A
    part without a dimension has the first place of it."""
    dims = (*axes, *dict.fromkeys(d for part in parts for d in part.held.about.dims))
    placed = [
        (part.held, [part.at[d] if d in axes or d in part.held.about.dims else FIRST for d in dims]) for part in parts
    ]
    data: Any = indexing.LazilyIndexedArray(_Joined(placed, dims, tuple(len(union[d]) for d in dims)))
    attrs = dict(parts[0].held.about.attrs)
    return xr.Variable(dims, indexing.MemoryCachedArray(indexing.CopyOnWriteArray(data)), attrs)


class _Joined(BackendArray):
    """[place, ...] of all parts; read with NumPy's outer indexing."""

    def __init__(
        self, parts: Sequence[tuple[Held, list[np.ndarray]]], dims: tuple[str, ...], shape: tuple[int, ...]
    ) -> None:
        dtypes = [held.about.dtype for held, _ in parts]
        self.text = any(t.kind in "OTU" for t in dtypes)
        self.dtype: Any = TEXT if self.text else np.result_type(*dtypes)
        self.parts, self.dims, self.shape = parts, dims, shape

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._values)

    def _values(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)]
        fill: object = {"b": False, "i": -1}.get(self.dtype.kind, "" if self.text else np.nan)
        values = np.full([len(w) for w in wanted], fill, dtype=self.dtype)
        read: dict[object, np.ndarray] = {}
        for held, at in self.parts:
            pairs = [_common(w, a, n) for w, a, n in zip(wanted, at, self.shape, strict=True)]
            if all(here.size for here, _ in pairs):
                there = {d: own for d, (_, own) in zip(self.dims, pairs, strict=True)}
                values[np.ix_(*(here for here, _ in pairs))] = self._read(held, there, read)
        return values.reshape([len(w) for w, k in zip(wanted, key, strict=True) if not isinstance(k, int | np.integer)])

    def _read(self, held: Held, there: Columns, read: dict[object, np.ndarray]) -> np.ndarray:
        """A part's values at these of its places, in the dimensions of the joined array. read: what was read so far,
        by the digests of files that were as the store's list has them."""
        own = held.about.dims
        name = (held.digests, *(there[d].tobytes() for d in own))
        if name in read:
            return read[name]
        values = held.read([there[d] for d in own])
        values = np.array(values.tolist(), dtype=TEXT).reshape(values.shape) if self.text else values
        order = [own.index(d) for d in self.dims if d in own]
        values = values.transpose(order).reshape([len(w) if d in own else 1 for d, w in there.items()])
        if not held.files.anew:
            read[name] = values
        return values


def _common(wanted: np.ndarray, at: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where what is wanted of n places (in any order, any number of times) and is in `at` stands in each."""
    places = np.full(n, -1)
    places[at] = np.arange(len(at))
    there = places[wanted]
    here = np.flatnonzero(there >= 0)
    return here, there[here]
