"""Writing a store: one process at a time, whole groups or batches of prompts, each write whole or not at all.

A group that is filled batch by batch is laid out as metadata alone, so that its size costs no memory. While it is
filled a chunk is a batch of prompts, or several where there would be over MOST_CHUNKS; when it is complete the chunks
are joined (gating/store/chunks.py).
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from gating.errors import GatingError
from gating.store import chunks
from gating.store.fetched import origin
from gating.store.files import Files, read_list, settle, writing
from gating.store.provenance import now
from gating.store.schema import SCHEMA_VERSION, STORE, TEXT, empty_outcomes

LOCK = "writer.lock"
Encoding = dict[str, Any]  # of one variable
MOST_CHUNKS = 256  # of a variable that is being filled: every write lists every file


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process alone. The lock goes with the process, also when it is killed; a folder
    that nothing was written to goes too. Raises GatingError for the copy of a run that lies at an address."""
    if address := origin(folder):
        raise GatingError(
            f"{folder} is a copy of {address}, which is only read; copy its {STORE} into a folder of yours, and name "
            "that."
        )
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

    prompts, conditions: the two description groups; n_tokens: the longest completion; prompt_batch: prompts a batch.
    """
    draft = path.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    root = xr.Dataset(attrs={"schema_version": SCHEMA_VERSION, "status": "running", "created_at": now(), **attrs})
    one = empty_outcomes(conditions.sizes["condition"], 1, n_tokens).assign_coords(condition=conditions.condition)
    outcomes = repeated(one, "prompt", prompts.prompt.values)
    with _changing(draft, new=True) as files:
        for group, ds in (("/", root), ("prompts", prompts), ("conditions", conditions)):
            _write(files, group, ds, {})
        _lay_out(files, "outcomes", outcomes, "prompt", prompt_batch)
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


def _write(files: Files, group: str, ds: xr.Dataset, more: dict[str, Encoding], mode: Literal["w", "a"] = "w") -> None:
    """A whole group, instead of the one that is there, or (a) beside its other variables. more: of some of them.

    Every array of every store is written here first, so each has a checksum in its codec, for readers of other makes,
    and text coordinates of fixed width, which xarray can draw; zarr has no name yet for their type in its version 3.
    """
    ds = ds.assign_coords({c: (v.dims, _fixed(v.values)) for c, v in ds.coords.items() if v.dtype.kind in "OTU"})
    encoding: dict[Any, Encoding] = {
        v: {"compressors": [ZstdCodec(), Crc32cCodec()], **more.get(str(v), {})} for v in ds.variables
    }
    ds.to_zarr(files, group=group, mode=mode, consolidated=False, zarr_format=3, encoding=encoding)


def _lay_out(files: Files, group: str, ds: xr.Dataset, dim: str, batch: int) -> None:
    """A group to be filled along `dim`, `batch` by `batch`: the arrays of one place are written, then made as long as
    all of them. What is `repeated` is missing, and so is not written."""
    n = ds.sizes[dim]
    chunk = min(n, batch * math.ceil(n / batch / MOST_CHUNKS))
    one = ds.isel({dim: slice(0, 1)}).drop_vars(dim, errors="ignore")
    more: dict[str, Encoding] = {}
    for name, v in one.data_vars.items():
        more[str(name)] = {"chunks": tuple(chunk if d == dim else size for d, size in v.sizes.items())}
        if v.dtype != TEXT and v.size:
            more[str(name)]["fill_value"] = v.values.flat[0].item()
    _write(files, group, one, more)
    arrays = zarr.open_group(files, path=group, mode="r+", use_consolidated=False)
    for name, v in ds.data_vars.items():
        array, values = arrays[str(name)], v.values
        assert isinstance(array, zarr.Array)
        array.resize(v.shape)
        if dim in v.dims and values.strides[v.dims.index(dim)]:
            array[...] = values
    if dim in ds.coords:
        _write(files, group, xr.Dataset(coords={dim: ds[dim]}, attrs=ds.attrs), {}, "a")


def repeated(ds: xr.Dataset, dim: str, values: np.ndarray) -> xr.Dataset:
    """A dataset of one place along `dim` as if it were the same at each of these; takes no memory for them."""
    axes = {name: v.dims for name, v in ds.data_vars.items()}
    many = ds.isel({dim: 0}, drop=True).expand_dims({dim: values})
    return many.assign({name: many[name].transpose(*dims) for name, dims in axes.items()})


def _fixed(text: np.ndarray) -> np.ndarray:
    return np.array(text.tolist(), dtype=str).reshape(text.shape)


def add_group(path: Path, group: str, ds: xr.Dataset) -> None:
    """Write a whole group: it is there in full, or, where this is cut, not at all."""
    with _changing(path) as files:
        _write(files, group, ds, {})


def create_group(path: Path, group: str, ds: xr.Dataset, dim: str, batch: int) -> None:
    """Lay out a group that is filled along `dim`, `batch` by `batch`: `ds` holds what is known of it, or its missing
    values (`repeated`, where there are many)."""
    with _changing(path) as files:
        _lay_out(files, group, ds, dim, batch)


def copy_groups(source: Path, path: Path, groups: Sequence[str], note: Mapping[str, Any]) -> None:
    """Those groups that another store has, byte for byte, instead of those that are here, and attributes of the last
    one. Raises Damaged where the other's files are not as they were written."""
    theirs = read_list(source)
    with _changing(path) as files:
        for group in groups:
            if f"{group}/zarr.json" in theirs:
                files.copy(source, theirs, group)
        zarr.open_group(files, path=groups[-1], mode="r+", use_consolidated=False).attrs.update(dict(note))


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
    """Set the attributes that say that a run, or a judge's group, is complete, join its chunks, and consolidate the
    metadata, so that other readers need not walk through the folders. instead_of: the group whose place this one takes
    now."""
    with _changing(path) as files:
        chunks.join(Files(path, read_list(path)), files, group)
        done = {"status": "complete", "finished_at": now(), **attrs}
        zarr.open_group(files, path=group, mode="r+", use_consolidated=False).attrs.update(done)
        if instead_of:
            files.copy(path, files.digests, group, instead_of)
            files.drop(group)
            parent = group.rpartition("/")[0]
            if [k for k in files.digests if k.startswith(f"{parent}/")] == [f"{parent}/zarr.json"]:
                files.drop(parent)
        zarr.consolidate_metadata(files, zarr_format=3)
