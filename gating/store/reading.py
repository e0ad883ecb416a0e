"""Reading a store: one group, its attributes, or the whole run as an xarray DataTree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from gating.errors import GatingError
from gating.store.schema import REQUIRED, SCHEMA_VERSION, STORE


def has_group(path: Path, group: str) -> bool:
    """Whether a group is there in full."""
    try:
        return bool(zarr.open_group(path, path=group, mode="r").attrs.get("complete", False))
    except FileNotFoundError:
        return False


def read_group(path: Path, group: str) -> xr.Dataset:
    """One group, loaded into memory."""
    return xr.open_dataset(path, group=group, engine="zarr", consolidated=False).load()


def read_attrs(path: Path) -> Mapping[str, Any]:
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
    missing = set(REQUIRED) - set(tree.children)
    if missing:
        raise GatingError(f"{store} is damaged: group {sorted(missing)[0]} is missing; remove it and run again.")
    return tree


def _plain_coordinates(ds: xr.Dataset) -> xr.Dataset:
    """Text coordinates as fixed-width strings, which xarray can draw; zarr keeps them as variable-length ones."""
    return ds.assign_coords(
        {c: (ds[c].dims, np.array(ds[c].values.tolist())) for c in ds.coords if ds[c].dtype.kind in "OT"}
    )
