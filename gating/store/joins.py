"""Joining the stores of a multirun along the settings that were overridden."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating.errors import GatingError
from gating.store.reading import locate, open_run
from gating.store.schema import SCHEMA_VERSION, STORE, TEXT

Settings = dict[str, object]  # of one run, by dotted key
Part = tuple[xr.Dataset, Settings]


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
    line (`steer`, `steer.coef`, `model`, ...; `run.seed`, where a variable has that name); prompts and conditions align
    by their coordinates, and what no run has is missing. A judge's labels (/judgements) join over the runs that it
    judged. The attribute `incomplete` names the runs that are not complete, whose rows may be missing.

    folder: a runs_dir, or a list of runs. Raises GatingError when the runs differ in nothing that was overridden, two
    runs have the same place, or one calls a prompt harmful that another calls harmless.
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
    taken = {str(name) for t in trees for group in t.subtree for name in (*group.variables, *group.dims)}
    named = {a: f"run.{a}" if a in taken else a for a in axes}
    axes, settings = list(named.values()), [{named.get(k, k): v for k, v in s.items()} for s in settings]
    groups = {}
    judged = sorted({g for t in trees for g in t.groups if g.startswith(("/judgements/", "/labels/"))})
    for group in ("/prompts", "/conditions", "/outcomes", "/samples", "/stops", "/directions", "/readouts", *judged):
        parts = [(t[group].to_dataset().load(), s) for t, s in zip(trees, settings, strict=True) if group in t.groups]
        if parts:
            groups[group] = _join(parts, axes)
    groups["/prompts"] = _shared(groups["/prompts"], axes)
    joined = xr.DataTree.from_dict(groups)
    incomplete = [str(p) for p, t in zip(paths, trees, strict=True) if t.attrs.get("status") != "complete"]
    runs = {"runs": [str(p) for p in paths], "incomplete": incomplete}
    joined.attrs = {"axes": axes, **runs, "schema_version": SCHEMA_VERSION}
    return joined


def _join(parts: Sequence[Part], axes: Sequence[str]) -> xr.Dataset:
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


def _shared(prompts: xr.Dataset, axes: Sequence[str]) -> xr.Dataset:
    """What is said of a prompt without the axes where every run says the same of it (its text; not its number of
    tokens, where models differ). Raises GatingError where one calls a prompt harmful that another calls harmless."""
    each = {
        name: v.transpose(*axes, "prompt").values.reshape(-1, prompts.sizes["prompt"]) for name, v in prompts.items()
    }
    asked = each["text"] != ""  # [run, prompt]
    first, out = asked.argmax(0), {}
    for name, values in each.items():
        own = values[first, np.arange(len(first))]
        differs = (asked & (values != own)).any(0)
        if name == "harmful" and differs.any():
            which = prompts["prompt"].values[differs][0]
            raise GatingError(
                f"prompt {which} is harmful in one of these runs and harmless in another; give a list of runs that "
                "agree, or open them one by one."
            )
        same = prompts[name].isel(dict.fromkeys(axes, 0), drop=True).copy(data=own)
        out[name] = prompts[name] if differs.any() else same
    return xr.Dataset(out)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _union(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Every value once, in order of first appearance; numbers sorted."""
    values = list(dict.fromkeys(v for column in columns for v in column.tolist()))
    if all(_number(v) for v in values):
        return np.array(sorted(values))
    return np.array([str(v) for v in values])
