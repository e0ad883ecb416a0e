"""Joining the stores of a multirun along the settings that were overridden."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import yaml

from gating.errors import GatingError
from gating.store.reading import locate, open_run
from gating.store.schema import SCHEMA_VERSION, STORE, TEXT

Settings = dict[str, object]  # of one run, by dotted key


def find_runs(folder: str | Path) -> list[Path]:
    """Every store below a folder, by name. Raises GatingError when there is none."""
    stores = sorted(Path(folder).glob(f"*/{STORE}"))
    if not stores:
        raise GatingError(f"{folder} holds no runs (no */{STORE}); give the runs_dir of a multirun.")
    return stores


def flatten(config: Settings, prefix: str = "") -> Settings:
    """A nested mapping with dotted keys."""
    flat: Settings = {}
    for k, v in config.items():
        flat |= flatten(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
    return flat


def open_runs(folder: str | Path | Sequence[str | Path]) -> xr.DataTree:
    """Join runs along the settings that were overridden and differ: one dimension a setting, named as on the command
    line (`steer`, `steer.coef`, `model`, ...); prompts and conditions align by their coordinates, and what no run has
    is missing. A judge's labels (/judgements) join over the runs that it judged.

    folder: a runs_dir, or a list of runs. Raises GatingError when the runs differ in nothing that was overridden, or
    two runs have the same place.
    """
    paths = [locate(p) for p in folder] if not isinstance(folder, str | Path) else find_runs(folder)
    trees = [open_run(p) for p in paths]
    settings = [{**flatten(yaml.safe_load(t.attrs["config"])), **json.loads(t.attrs["choices"])} for t in trees]
    overridden = {key for t in trees for key in json.loads(t.attrs["overrides"])}
    axes = sorted(k for k in overridden if len({json.dumps(s.get(k)) for s in settings}) > 1)
    places = [tuple(json.dumps(s.get(a)) for a in axes) for s in settings]
    for i, place in enumerate(places):
        j = places.index(place)
        if j < i:
            where = ", ".join(f"{a}={v}" for a, v in zip(axes, place, strict=True)) or "no differing override"
            raise GatingError(
                f"{paths[j]} and {paths[i]} have the same place ({where}); give a list of the runs to join."
            )
    groups = {}
    judged = sorted({g for t in trees for g in t.groups if g.startswith("/judgements/")})
    for group in ("/prompts", "/conditions", "/outcomes", "/directions", "/readouts", *judged):
        parts = [(t[group].to_dataset(), s) for t, s in zip(trees, settings, strict=True) if group in t.groups]
        if parts:
            groups[group] = _join(parts, axes, shared=group == "/prompts")
    joined = xr.DataTree.from_dict(groups)
    joined.attrs = {"axes": axes, "runs": [str(p) for p in paths], "schema_version": SCHEMA_VERSION}
    return joined


def _join(parts: list[tuple[xr.Dataset, Settings]], axes: list[str], shared: bool) -> xr.Dataset:
    if shared or not axes:
        return xr.merge([ds.load() for ds, _ in parts], join="outer", compat="no_conflicts", combine_attrs="override")
    placed = []
    for ds, settings in parts:
        place = {a: [settings.get(a)] for a in axes}
        placed.append(ds.load().expand_dims({a: [str(v[0]) if not _number(v[0]) else v[0]] for a, v in place.items()}))
    placed = [ds.assign_coords({d: np.arange(n) for d, n in ds.sizes.items() if d not in ds.coords}) for ds in placed]
    union = {d: _union([ds[d].values for ds in placed]) for d in placed[0].dims}
    out = _missing_like(placed[0], union)
    for ds in placed:
        for name, v in ds.data_vars.items():
            out[name].loc[{d: ds[d].values for d in v.dims}] = v.transpose(*out[name].dims).values
    return out


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _union(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Every value once, in order of first appearance; numbers sorted."""
    values = list(dict.fromkeys(v for column in columns for v in column.tolist()))
    if all(_number(v) for v in values):
        return np.array(sorted(values))
    return np.array(values)


def _missing_like(ds: xr.Dataset, union: Mapping[Hashable, np.ndarray]) -> xr.Dataset:
    """A dataset of missing values over the union of coordinates, with the variables' dtypes kept."""
    data = {}
    for name, v in ds.data_vars.items():
        shape = tuple(len(union[d]) for d in v.dims)
        kind = v.dtype.kind
        is_text = v.dtype == TEXT or kind in "OT"
        fill: object = "" if is_text else False if kind == "b" else -1 if kind == "i" else np.nan
        data[name] = (v.dims, np.full(shape, fill, dtype=v.dtype), v.attrs)
    return xr.Dataset(data, coords={d: (d, values) for d, values in union.items()}, attrs=ds.attrs)
