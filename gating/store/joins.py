"""Joining the stores of a multirun along the settings that were overridden."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating.errors import GatingError
from gating.store.held import Columns, Group, Known, held_groups
from gating.store.lazy import Part, variable
from gating.store.reading import check_rows, locate, named, whole_files
from gating.store.schema import SCHEMA_VERSION, STORE

Settings = dict[str, object]  # of one run, by dotted key
Place = dict[str, object]  # a run's value of each axis
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, seven times faster


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

    folder: a runs_dir, or a list of runs. Values are read when they are asked for, prompts and coordinates at once.
    Raises GatingError when the runs differ in nothing that was overridden, two runs have the same place, one calls a
    prompt harmful that another calls harmless, or one is not whole (`open_run`); a file that was changed is an error,
    naming it, when it is read.
    """
    paths = find_runs(folder) if isinstance(folder, str | Path) else [locate(p) for p in folder]
    known = Known()
    runs = [_opened(path, known) for path in paths]
    axes, places = _axes(runs)
    groups = {}
    judged = sorted({g for run in runs for g in run.groups if g.startswith(("judgements/", "labels/"))})
    for group in ("prompts", "conditions", "outcomes", "samples", "stops", "directions", "readouts", *judged):
        members = [(run.groups[group], place) for run, place in zip(runs, places, strict=True) if group in run.groups]
        if members:
            groups[f"/{group}"] = _join(members, axes, known)
    groups["/prompts"] = _shared(groups["/prompts"].load(), axes)
    joined = xr.DataTree.from_dict(groups)
    incomplete = [str(run.path) for run in runs if run.attrs.get("status") != "complete"]
    about = {"runs": [str(run.path) for run in runs], "incomplete": incomplete}
    joined.attrs = {"axes": axes, **about, "schema_version": SCHEMA_VERSION}
    return joined


@dataclass(frozen=True)
class _Run:
    """A store that is whole, its arrays not read."""

    path: Path
    attrs: Mapping[str, Any]
    groups: Mapping[str, Group]
    settings: Settings


def _opened(path: Path, known: Known) -> _Run:
    files, attrs = whole_files(path)
    with named(path):
        groups = held_groups(files, known)
        outcomes = groups["outcomes"]
        done, label = (known.values(outcomes.arrays[name]) for name in ("done", "label"))
        check_rows(path, attrs, done, label, outcomes.sizes["token"])
        for name, values in (("done", done), ("label", label)):
            outcomes.arrays[name] = replace(outcomes.arrays[name], values=values)
    settings = {**flatten(yaml.load(attrs["config"], Loader=LOADER)), **json.loads(attrs["choices"])}
    return _Run(path, attrs, groups, settings)


def _axes(runs: Sequence[_Run]) -> tuple[list[str], list[Place]]:
    """The overridden settings in which runs differ, and each run's place along them. Raises GatingError where two have
    the same."""
    settings = [run.settings for run in runs]
    overridden = {key for run in runs for key in json.loads(run.attrs["overrides"])}
    axes = sorted(k for k in overridden if len({json.dumps(s.get(k)) for s in settings}) > 1)
    places: dict[tuple[str, ...], Path] = {}
    for run in runs:
        place = tuple(json.dumps(run.settings.get(a)) for a in axes)
        if place in places:
            where = ", ".join(f"{a}={v}" for a, v in zip(axes, place, strict=True)) or "no differing override"
            raise GatingError(
                f"{places[place]} and {run.path} have the same place ({where}); give a list of the runs to join."
            )
        places[place] = run.path
    taken = {name for run in runs for g in run.groups.values() for name in (*g.arrays, *g.sizes)}
    return [f"run.{a}" if a in taken else a for a in axes], [
        {f"run.{a}" if a in taken else a: s.get(a) for a in axes} for s in settings
    ]


def _join(members: Sequence[tuple[Group, Place]], axes: Sequence[str], known: Known) -> xr.Dataset:
    """One dataset over the union of the members' coordinates and the axes; what no member has is missing. A dimension
    without a coordinate (hidden, token) is as long as the longest."""
    numbers = {a for a in axes if all(_number(place[a]) for _, place in members)}
    columns = []
    for group, place in members:
        own = {a: np.array([place[a] if a in numbers else str(place[a])]) for a in axes}
        columns.append(own | group.columns(known))
    dims = dict.fromkeys(d for own in columns for d in own)
    union = {d: _union([own[d] for own in columns if d in own]) for d in dims}
    parts: dict[str, list[Part]] = {}
    for (group, _), at in zip(members, _places(columns, union), strict=True):
        for name in group.arrays.keys() - union.keys():
            parts.setdefault(name, []).append(Part(group.arrays[name], at))
    joined = {name: variable(parts[name], axes, union) for name in sorted(parts)}
    return xr.Dataset(joined, union, members[0][0].attrs)


def _places(columns: Sequence[Columns], union: Columns) -> list[Columns]:
    """Where each member's coordinates stand in their union."""
    index = {d: {v: i for i, v in enumerate(values.tolist())} for d, values in union.items()}
    found: dict[tuple[str, int], np.ndarray] = {}  # many members have the same column
    for own in columns:
        for d, column in own.items():
            if (d, id(column)) not in found:
                found[d, id(column)] = np.array([index[d][v] for v in column.tolist()], dtype=int)
    return [{d: found[d, id(column)] for d, column in own.items()} for own in columns]


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
