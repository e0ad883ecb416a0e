"""Reading a store: one group, its attributes, or the whole run as an xarray DataTree. Every file is checked when it is
read (gating/store/files.py), so that an error names the file and a number that was printed is one that was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gating.errors import GatingError, cause
from gating.judging.labels import MISSING
from gating.store.fetched import fetch, is_address
from gating.store.files import LIST, REMEDY, Damaged, Files, missing, read_list
from gating.store.schema import AGAIN, REQUIRED, SCHEMA_VERSION, STORE


def has_group(path: Path, group: str) -> bool:
    """Whether a group is there; a group that is there is there in full."""
    return f"{group}/zarr.json" in read_list(path)


def read_group(path: Path, group: str, names: Sequence[str] | None = None) -> xr.Dataset:
    """One group, or those of `names` that it has, loaded into memory. Raises GatingError naming a file that is not as
    it was written."""
    with named(path):
        files: Any = _files(path)  # a zarr store, which xarray takes but does not name
        ds = xr.open_dataset(files, group=group, chunks=None, engine="zarr", consolidated=False)
        return (ds if names is None else ds[[n for n in names if n in ds]]).load()


def read_attrs(path: Path) -> Mapping[str, Any]:
    """The root attributes. Raises GatingError when the path holds no store of ours that can be read."""
    return _attrs(path, _files(path))


def locate(path: str | Path) -> Path:
    """The store named by a run's folder or by the store itself; of one at an address, its copy on this machine
    (gating/store/fetched.py). Raises GatingError when there is none."""
    if is_address(path):
        return fetch(str(path))
    path = Path(path)
    store = path if path.name == STORE else path / STORE
    try:
        there = store.is_dir()
        if not there and (store.parent / AGAIN / STORE).is_dir():  # killed just before it took this place
            return store.parent / AGAIN / STORE
    except OSError as e:
        raise GatingError(f"{store} cannot be read ({cause(e)}); mend its permissions or the path.") from None
    if not there:
        raise GatingError(
            f"{path} is not a run: there is no {store}; give a folder that a run printed as `store: PATH`."
        )
    return store


def open_run(path: str | Path) -> xr.DataTree:
    """A run as an xarray DataTree: groups prompts, conditions, outcomes, and directions, readouts, activations if kept.

    path: the run's folder or its store.zarr, or its address (s3://..., https://...). Rows not `done` are missing
    values. Raises GatingError for a path that is not a readable run, or that lacks a file; a file that was changed is
    an error, naming it, when it is read.
    """
    store = locate(path)
    whole, attrs = whole_files(store)
    files: Any = whole
    with named(store):
        tree = xr.open_datatree(files, chunks=None, engine="zarr", consolidated=False)
        out = tree["outcomes"].to_dataset()
        check_rows(store, attrs, out["done"].load().values, out["label"].load().values, out.sizes["token"])
    return tree


def whole_files(store: Path) -> tuple[Files, Mapping[str, Any]]:
    """The files and root attributes of a store that lacks no file and no group. Raises GatingError for any other."""
    files = _files(store)
    attrs = _attrs(store, files)
    if gone := missing(store, files.digests):
        raise Damaged(f"{store / gone[0]} is missing ({len(gone)} of the store's files are); {REMEDY}.")
    if absent := [group for group in sorted(REQUIRED) if f"{group}/zarr.json" not in files.digests]:
        raise Damaged(f"{store} has no group {absent[0]}; {REMEDY}.")
    return files, attrs


def check_rows(store: Path, attrs: Mapping[str, Any], done: np.ndarray, label: np.ndarray, tokens: int) -> None:
    """Raises Damaged where a row is `done` and has no label, or a complete run has a row that is not done. done, label:
    of /outcomes [condition, prompt]; tokens: the longest answer."""
    unlabelled = int((done & (label == MISSING)).sum())
    if unlabelled and tokens > 1:  # an answer of one token has no label
        raise Damaged(f"{store / 'outcomes' / 'label'}: {unlabelled} rows are done but have no label; {REMEDY}.")
    if attrs.get("status") == "complete" and not done.all():
        raise Damaged(
            f"{store / 'outcomes' / 'done'}: the run is complete, but {int((~done).sum())} rows are not done; {REMEDY}."
        )


def problems(path: Path) -> list[str]:
    """All that is wrong with a store, a paragraph for each file: every file is read, and every array decoded."""
    try:
        files = _files(path)
        found = [why for key in files.digests if (why := _wrong(files, key))]
        if not found:
            open_run(path).load()
    except GatingError as e:
        return [str(e)]
    return found


def _wrong(files: Files, key: str) -> str:
    try:
        files.read(key)
    except Damaged as e:
        return str(e)
    return ""


def _files(path: Path) -> Files:
    """The store's files. Raises GatingError where the path holds no store of ours, or one of another version."""
    if (path / LIST).is_file():
        return Files(path, read_list(path))
    version = _version(path)
    if version is None:
        raise GatingError(
            f"{path} is not a readable zarr store; give a run's folder or its {STORE}, or remove it and run again."
        )
    if version != SCHEMA_VERSION:
        raise _another_version(path, version)
    raise Damaged(f"{path / LIST}, the list of the store's files, is missing; {REMEDY}.")


def _attrs(path: Path, files: Files) -> Mapping[str, Any]:
    with named(path):
        attrs: dict[str, Any] = json.loads(files.read("zarr.json"))["attributes"]
    if attrs.get("schema_version") != SCHEMA_VERSION:
        raise _another_version(path, attrs.get("schema_version", "none"))
    return attrs


def _version(path: Path) -> object:
    """The schema version that a store of any version gives itself; None where it gives none."""
    try:
        return json.loads((path / "zarr.json").read_bytes())["attributes"]["schema_version"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _another_version(path: Path, version: object) -> GatingError:
    return GatingError(
        f"{path} has schema version {version}, this version of gating reads {SCHEMA_VERSION}; open it with the version "
        "that wrote it, or run again."
    )


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever else zarr or xarray raise of a store, as one error that names it."""
    try:
        yield
    except GatingError:
        raise
    except Exception as e:  # many types
        raise Damaged(f"{path} cannot be read ({cause(e)}); {REMEDY}.") from None
