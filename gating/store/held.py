"""The arrays of a store, not opened, by the digests of their files: what many stores have alike is read once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import StorePath

from gating.store.files import Files
from gating.store.schema import TEXT

ABOUT = "/zarr.json"
CHUNK = re.compile(r"/c(/\d+)*$")  # the end of a chunk's name
Digests = tuple[tuple[str, str], ...]  # of an array's files, by the end of their names
Columns = dict[str, np.ndarray]  # by dimension


@dataclass(frozen=True)
class About:
    """What a zarr.json says. metadata: of an array; None for a group."""

    attrs: Mapping[str, Any]
    metadata: ArrayV3Metadata | None
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = TEXT


@dataclass(frozen=True)
class Held:
    """An array of one store, not read yet. Arrays of equal digests hold equal values."""

    files: Files
    path: str
    about: About
    digests: Digests
    values: np.ndarray | None = None  # where they were read

    def read(self, places: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Its values, or those at some places along each dimension. Raises GatingError naming a damaged file."""
        if self.values is not None:
            return self.values if places is None else self.values[np.ix_(*places)]
        metadata: Any = self.about.metadata
        array: Any = zarr.Array(zarr.AsyncArray(metadata, StorePath(self.files, self.path)))
        if places is None or all(map(_all, places, array.shape)):
            return np.asarray(array[...])
        return np.asarray(array.oindex[tuple(places)])


def _all(places: np.ndarray, n: int) -> bool:
    return np.array_equal(places, np.arange(n))


class Known:
    """What was read of stores, by the digests of the files that it was read from. A store of which a file was read as
    it is written anew meanwhile shares nothing."""

    def __init__(self) -> None:
        self.abouts: dict[str, About] = {}
        self.columns: dict[Digests | int, np.ndarray] = {}

    def about(self, files: Files, key: str) -> About:
        of = files.digests[key]
        found = self.abouts.get(of)
        if found is None:
            found = _about(json.loads(files.read(key)))
            if not files.anew:
                self.abouts[of] = found
        return found

    def values(self, held: Held) -> np.ndarray:
        """Every value of an array, kept."""
        found = self.columns.get(held.digests)
        if found is None:
            found = held.read()
            if not held.files.anew:
                self.columns[held.digests] = found
        return found

    def numbers(self, n: int) -> np.ndarray:
        """What a dimension without a coordinate is counted by."""
        return self.columns.setdefault(n, np.arange(n))


def _about(said: dict[str, Any]) -> About:
    attrs = {k: v for k, v in said.get("attributes", {}).items() if k != "_FillValue"}  # NaN, of every float
    if said["node_type"] == "group":
        return About(attrs, None)
    metadata = ArrayV3Metadata.from_dict(said)
    dims = tuple(str(d) for d in metadata.dimension_names or ())
    return About(attrs, metadata, dims, metadata.shape, metadata.dtype.to_native_dtype())


@dataclass(frozen=True)
class Group:
    """A group of one store: its attributes and its arrays."""

    attrs: Mapping[str, Any]
    arrays: dict[str, Held]

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each dimension."""
        return {d: n for held in self.arrays.values() for d, n in zip(held.about.dims, held.about.shape, strict=True)}

    def columns(self, known: Known) -> Columns:
        """Each dimension's coordinate; 0, 1, ... where it has none."""
        arrays = self.arrays
        return {d: known.values(arrays[d]) if d in arrays else known.numbers(n) for d, n in self.sizes.items()}


def held_groups(files: Files, known: Known) -> dict[str, Group]:
    """Every group of a store, by its path (`outcomes`, `judgements/NAME`, ...)."""
    named: dict[str, list[tuple[str, str]]] = {}
    for key, of in files.digests.items():
        path = key.removesuffix(ABOUT) if key.endswith(ABOUT) else CHUNK.sub("", key)
        named.setdefault(path, []).append((key[len(path) :], of))
    out: dict[str, Group] = {}
    for path, ends in named.items():
        if path in files.digests:  # the root's own zarr.json
            continue
        about = known.about(files, path + ABOUT)
        if about.metadata is None:
            out[path] = Group(about.attrs, out[path].arrays if path in out else {})
        else:
            parent, _, name = path.rpartition("/")
            out.setdefault(parent, Group({}, {})).arrays[name] = Held(files, path, about, tuple(ends))
    return out
