"""Writing a store: one process at a time, whole groups or batches of prompts, `done` and `complete` last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from filelock import FileLock, Timeout

from gating.errors import GatingError
from gating.store.provenance import now
from gating.store.schema import SCHEMA_VERSION, TEXT, empty_outcomes

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
    root.to_zarr(draft, mode="w", consolidated=False, zarr_format=3)
    c, p = conditions.sizes["condition"], prompts.sizes["prompt"]
    outcomes = empty_outcomes(c, p, n_tokens).assign_coords(condition=conditions.condition, prompt=prompts.prompt)
    for group, ds in (("prompts", prompts), ("conditions", conditions)):
        ds.to_zarr(draft, group=group, mode="a", consolidated=False, zarr_format=3)
    outcomes.to_zarr(
        draft,
        group="outcomes",
        mode="a",
        consolidated=False,
        zarr_format=3,
        encoding=_encoding(outcomes, {"prompt": prompt_batch}),
    )
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)


def _encoding(ds: xr.Dataset, chunks: Mapping[str, int]) -> dict[object, dict[str, object]]:
    """Chunks along the dimensions that are written piece by piece, and fill values that mean missing."""
    return {
        name: {"chunks": tuple(min(chunks.get(str(d), n), n) for d, n in v.sizes.items()), **_fill(v)}
        for name, v in ds.data_vars.items()
    }


def _fill(variable: xr.DataArray) -> dict[str, object]:
    return {} if variable.dtype == TEXT else {"fill_value": variable.values.flat[0].item()} if variable.size else {}


def add_group(path: Path, group: str, ds: xr.Dataset) -> None:
    """Write a whole group; its attribute `complete` goes last, so that a killed write is seen and done again."""
    ds.drop_attrs(deep=False).to_zarr(path, group=group, mode="w", consolidated=False, zarr_format=3)
    zarr.open_group(path, path=group, mode="r+").attrs.update({**ds.attrs, "complete": True})


def create_group(path: Path, group: str, ds: xr.Dataset, chunks: Mapping[str, int]) -> None:
    """Lay out a group that is filled batch by batch: `ds` holds its missing values."""
    ds.to_zarr(path, group=group, mode="w", consolidated=False, zarr_format=3, encoding=_encoding(ds, chunks))
    zarr.open_group(path, path=group, mode="r+").attrs["complete"] = True


def write_batch(path: Path, start: int, groups: Mapping[str, xr.Dataset]) -> None:
    """Write a batch of prompts, every group in full, and `done` of /outcomes last."""
    for group, ds in groups.items():
        if group != "outcomes":
            _region(path, group, "prompt", start, ds)
    write_rows(path, "outcomes", "prompt", start, groups["outcomes"])


def write_rows(path: Path, group: str, dim: str, start: int, ds: xr.Dataset) -> None:
    """Write a piece of one group from `start` along `dim`, its variable `done` last."""
    _region(path, group, dim, start, ds.drop_vars("done"))
    _region(path, group, dim, start, ds[["done"]])


def _region(path: Path, group: str, dim: str, start: int, ds: xr.Dataset) -> None:
    """Piece by piece with zarr itself: not every xarray writes variable-length text into a region."""
    arrays = zarr.open_group(path, path=group, mode="r+")
    for name, variable in ds.variables.items():
        if dim in variable.dims and name != dim:
            part = tuple(slice(start, start + ds.sizes[dim]) if d == dim else slice(None) for d in variable.dims)
            array = arrays[str(name)]
            assert isinstance(array, zarr.Array)
            array[part] = variable.values


def set_attrs(path: Path, attrs: Mapping[str, Any]) -> None:
    zarr.open_group(path, mode="r+").attrs.update(dict(attrs))
