"""The run's zarr store: schema, one writer, blocks with `done` last, resume, provenance. Only this module knows zarr.

A run's folder is `<runs_dir>/<model>-<steer>-<key>/` with store.zarr inside. Missing is missing: labels and tokens
start as -1, floats as NaN, `done` as False, and stay so until their block is written.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout

from gating.errors import GatingError
from gating.judging.labels import LABELS, MISSING

SCHEMA_VERSION = 3
STORE = "store.zarr"
LOCK = "writer.lock"
PACKAGES = ("gating", "torch", "transformers", "nnsight", "xarray", "zarr", "numpy", "scikit-learn", "peft")
TEXT = np.dtypes.StringDType()
LABEL_ATTRS: dict[str, Any] = {  # CF flags
    "long_name": "judged behaviour",
    "flag_values": list(range(len(LABELS))),
    "flag_meanings": " ".join(LABELS),
    "missing_value_meaning": MISSING,
}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what determines a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def git_revision() -> str:
    """The source tree's commit, with `+dirty` where files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return f"{commit}+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


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
    path: Path, prompts: xr.Dataset, conditions: xr.Dataset, n_tokens: int, prompt_batch: int, attrs: Mapping[str, Any]
) -> None:
    """Lay out an empty store, with every outcome missing, and put it in place at once (a rename).

    prompts, conditions: the two description groups; n_tokens: the longest completion; prompt_batch: prompts a batch, which
    is the chunk of every outcome, so that no two batches share a chunk.
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


def _encoding(ds: xr.Dataset, chunks: Mapping[str, int]) -> dict[Any, dict[str, Any]]:
    """Chunks along the dimensions that are written piece by piece, and fill values that mean missing."""
    return {
        name: {"chunks": tuple(min(chunks.get(str(d), n), n) for d, n in v.sizes.items()), **_fill(v)}
        for name, v in ds.data_vars.items()
    }


def _fill(variable: xr.DataArray) -> dict[str, Any]:
    return {} if variable.dtype == TEXT else {"fill_value": variable.values.flat[0].item()} if variable.size else {}


def empty_outcomes(n_conditions: int, n_prompts: int, n_tokens: int) -> xr.Dataset:
    """The /outcomes group with every value missing: [condition, prompt] and token_ids [condition, prompt, token]."""
    shape, dims = (n_conditions, n_prompts), ("condition", "prompt")

    def floats(long_name: str, units: str) -> tuple:
        return dims, np.full(shape, np.nan, dtype="float32"), {"long_name": long_name, "units": units}

    return xr.Dataset(
        {
            "label": (dims, np.full(shape, MISSING, dtype="int8"), LABEL_ATTRS),
            "refusal_score": floats("log-odds of a refusal opening as first token", "nat"),
            "n_tokens": (dims, np.full(shape, -1, dtype="int32"), {"long_name": "completion length", "units": "token"}),
            "nll": floats("mean negative log-likelihood under the unsteered model", "nat/token"),
            "entropy": floats("entropy of the completion's token counts", "bit/token"),
            "repetition": floats("share of repeated token trigrams", "1"),
            "completion": (dims, np.full(shape, "", dtype=TEXT), {"long_name": "decoded completion"}),
            "token_ids": (
                (*dims, "token"),
                np.full((*shape, n_tokens), -1, dtype="int32"),
                {"long_name": "completion token ids, -1 after the end"},
            ),
            "done": (dims, np.zeros(shape, dtype=bool), {"long_name": "row is written in full"}),
        }
    )


def add_group(path: Path, group: str, ds: xr.Dataset) -> None:
    """Write a whole group; its attribute `complete` goes last, so that a killed write is seen and done again."""
    ds.drop_attrs(deep=False).to_zarr(path, group=group, mode="w", consolidated=False, zarr_format=3)
    zarr.open_group(path, path=group, mode="r+").attrs.update({**ds.attrs, "complete": True})


def create_group(path: Path, group: str, ds: xr.Dataset, chunks: Mapping[str, int]) -> None:
    """Lay out a group that is filled block by block: `ds` holds its missing values."""
    ds.to_zarr(path, group=group, mode="w", consolidated=False, zarr_format=3, encoding=_encoding(ds, chunks))
    zarr.open_group(path, path=group, mode="r+").attrs["complete"] = True


def has_group(path: Path, group: str) -> bool:
    """Whether a group is there in full."""
    try:
        return bool(zarr.open_group(path, path=group, mode="r").attrs.get("complete", False))
    except FileNotFoundError:
        return False


def read_group(path: Path, group: str) -> xr.Dataset:
    """One group, loaded into memory."""
    return xr.open_dataset(path, group=group, engine="zarr", consolidated=False).load()


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
    ds = ds.drop_vars([name for name, v in ds.variables.items() if dim not in v.dims or name == dim]).drop_attrs()
    where = {dim: slice(start, start + ds.sizes[dim])}
    ds.to_zarr(path, group=group, region=where, mode="r+", consolidated=False)


def set_attrs(path: Path, attrs: Mapping[str, Any]) -> None:
    zarr.open_group(path, mode="r+").attrs.update(dict(attrs))


def read_attrs(path: Path) -> dict[str, Any]:
    """The root attributes. Raises GatingError when the path holds no store of ours that can be read."""
    try:
        attrs = dict(zarr.open_group(path, mode="r").attrs)
    except Exception as e:  # zarr raises many types for a folder that is not a store, or a damaged one
        raise GatingError(
            f"{path} is not a readable zarr store ({type(e).__name__}); give a run's folder or its {STORE}, "
            "or remove it and run again."
        ) from None
    if attrs.get("schema_version") != SCHEMA_VERSION:
        raise GatingError(
            f"{path} has schema version {attrs.get('schema_version', 'none')}, this version of gating reads "
            f"{SCHEMA_VERSION}; open it with the version that wrote it, or run again."
        )
    return attrs


def locate(path: str | Path) -> Path:
    """The store named by a run's folder or by the store itself. Raises GatingError when there is none."""
    path = Path(path)
    store = path if path.name == STORE else path / STORE
    if not store.is_dir():
        raise GatingError(
            f"{path} is not a run: there is no {store}; give a folder that a run printed as `store: PATH`."
        )
    return store


def open_run(path: str | Path) -> xr.DataTree:
    """A run as an xarray DataTree: groups prompts, conditions, outcomes, and directions, readouts, activations if kept.

    path: the run's folder or its store.zarr. Rows not `done` are missing values. Raises GatingError for a path that is
    not a readable run.
    """
    store = locate(path)
    read_attrs(store)
    try:
        tree = xr.open_datatree(store, chunks=None, engine="zarr", consolidated=False)
        tree = tree.map_over_datasets(_plain_coordinates)
    except Exception as e:
        raise GatingError(f"{store} is damaged ({type(e).__name__}: {e}); remove it and run again.") from None
    missing = {"prompts", "conditions", "outcomes"} - set(tree.children)
    if missing:
        raise GatingError(f"{store} is damaged: group {sorted(missing)[0]} is missing; remove it and run again.")
    return tree


def _plain_coordinates(ds: xr.Dataset) -> xr.Dataset:
    """Text coordinates as fixed-width strings, which xarray can draw; zarr keeps them as variable-length ones."""
    return ds.assign_coords(
        {c: (ds[c].dims, np.array(ds[c].values.tolist())) for c in ds.coords if ds[c].dtype.kind in "OT"}
    )
