"""Writing a store: one process at a time, whole groups or batches of prompts, each write whole or not at all."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from gating.errors import GatingError
from gating.store.files import Files, settle, writing
from gating.store.provenance import now
from gating.store.schema import SCHEMA_VERSION, STORE, TEXT, empty_outcomes

LOCK = "writer.lock"


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process alone. The lock goes with the process, also when it is killed; a folder
    that nothing was written to goes too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise GatingError(
            f"runs_dir: {folder} cannot be made ({e.strerror}); choose a writable runs_dir=PATH."
        ) from None
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise GatingError(
            f"{folder} is being written by another process; wait for it, or change a setting to make a run of its own."
        ) from None
    try:
        settle(folder / STORE)
        yield
    finally:
        if [p.name for p in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder)
        lock.release()


def create(
    path: Path,
    prompts: xr.Dataset,
    conditions: xr.Dataset,
    n_tokens: int,
    prompt_batch: int,
    attrs: Mapping[str, object],
) -> None:
    """Lay out an empty store, with every outcome missing, and put it in place at once (a rename).

    prompts, conditions: the two description groups; n_tokens: the longest completion; prompt_batch: prompts a batch,
    which is the chunk of every outcome, so that no two batches share a chunk.
    """
    draft = path.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    root = xr.Dataset(attrs={"schema_version": SCHEMA_VERSION, "status": "running", "created_at": now(), **attrs})
    c, p = conditions.sizes["condition"], prompts.sizes["prompt"]
    outcomes = empty_outcomes(c, p, n_tokens).assign_coords(condition=conditions.condition, prompt=prompts.prompt)
    with _changing(draft, new=True) as files:
        for group, ds in (("/", root), ("prompts", prompts), ("conditions", conditions)):
            _write(files, group, ds)
        _write(files, "outcomes", outcomes, {"prompt": prompt_batch})
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)


@contextmanager
def _changing(path: Path, new: bool = False) -> Iterator[Files]:
    """`writing`, without zarr's warnings that version 3 has no specification yet of fixed-width text and of
    consolidated metadata: what reads them is zarr itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        with writing(path, new) as files:
            yield files


def _write(files: Files, group: str, ds: xr.Dataset, chunks: Mapping[str, int] | None = None) -> None:
    """A whole group, instead of the one that is there. chunks: of what is laid out to be filled piece by piece.

    Every array of every store is written here first, so each has a checksum in its codec, for readers of other makes,
    and text coordinates of fixed width, which xarray can draw; zarr has no name yet for their type in its version 3.
    """
    ds = ds.assign_coords({c: (v.dims, _fixed(v.values)) for c, v in ds.coords.items() if v.dtype.kind in "OTU"})
    encoding: dict[object, dict[str, object]] = {v: {"compressors": [ZstdCodec(), Crc32cCodec()]} for v in ds.variables}
    for name, v in ds.data_vars.items() if chunks is not None else ():
        encoding[name]["chunks"] = tuple(min((chunks or {}).get(str(d), n), n) for d, n in v.sizes.items())
        if v.dtype != TEXT and v.size:
            encoding[name]["fill_value"] = v.values.flat[0].item()  # laid out as missing, which takes no room
    ds.to_zarr(files, group=group, mode="w", consolidated=False, zarr_format=3, encoding=encoding)


def _fixed(text: np.ndarray) -> np.ndarray:
    return np.array(text.tolist(), dtype=str).reshape(text.shape)


def add_group(path: Path, group: str, ds: xr.Dataset) -> None:
    """Write a whole group: it is there in full, or, where this is cut, not at all."""
    with _changing(path) as files:
        _write(files, group, ds)


def create_group(path: Path, group: str, ds: xr.Dataset, chunks: Mapping[str, int]) -> None:
    """Lay out a group that is filled batch by batch: `ds` holds its missing values."""
    with _changing(path) as files:
        _write(files, group, ds, chunks)


def write_batch(path: Path, start: int, groups: Mapping[str, xr.Dataset]) -> None:
    """Write a batch of prompts, every group in full, and `done` of /outcomes last."""
    with _changing(path) as files:
        for group, ds in groups.items():
            if group != "outcomes":
                _region(files, group, "prompt", start, ds)
        _rows(files, "outcomes", "prompt", start, groups["outcomes"])


def write_rows(path: Path, group: str, dim: str, start: int, ds: xr.Dataset) -> None:
    """Write a piece of one group from `start` along `dim`, its variable `done` last."""
    with _changing(path) as files:
        _rows(files, group, dim, start, ds)


def _rows(files: Files, group: str, dim: str, start: int, ds: xr.Dataset) -> None:
    _region(files, group, dim, start, ds.drop_vars("done"))
    _region(files, group, dim, start, ds[["done"]])


def _region(files: Files, group: str, dim: str, start: int, ds: xr.Dataset) -> None:
    """Piece by piece with zarr itself: not every xarray writes variable-length text into a region."""
    arrays = zarr.open_group(files, path=group, mode="r+", use_consolidated=False)
    for name, variable in ds.variables.items():
        if dim in variable.dims and name != dim:
            part = tuple(slice(start, start + ds.sizes[dim]) if d == dim else slice(None) for d in variable.dims)
            array = arrays[str(name)]
            assert isinstance(array, zarr.Array)
            array[part] = variable.values


def set_attrs(path: Path, attrs: Mapping[str, Any], group: str = "") -> None:
    """Change some attributes of the run, or of one of its groups."""
    with _changing(path) as files:
        zarr.open_group(files, path=group, mode="r+", use_consolidated=False).attrs.update(dict(attrs))


def finish(path: Path, attrs: Mapping[str, Any], group: str = "", instead_of: str | None = None) -> None:
    """Set the attributes that say that a run, or a judge's group, is complete, and consolidate the metadata, so that
    other readers need not walk through the folders. instead_of: the group whose place this one takes now."""
    with _changing(path) as files:
        done = {"status": "complete", "finished_at": now(), **attrs}
        zarr.open_group(files, path=group, mode="r+", use_consolidated=False).attrs.update(done)
        if instead_of:
            files.copy(path, files.digests, group, instead_of)
            files.drop(group)
            parent = group.rpartition("/")[0]
            if [k for k in files.digests if k.startswith(f"{parent}/")] == [f"{parent}/zarr.json"]:
                files.drop(parent)
        zarr.consolidate_metadata(files, zarr_format=3)
