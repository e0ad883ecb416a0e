"""A line for each run of a folder, from a small index beside the stores, which is made again where it is stale."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating import analysis, store, swap
from gating.analysis import claims
from gating.analysis.wording import interval, percent
from gating.errors import GatingError
from gating.reporting.rows import headline_set, own_claims
from gating.store.files import LIST
from gating.store.joins import flatten

INDEX = ".gating-runs.json"  # of a folder of runs
FORM = 1
Line = dict[str, Any]


def listing(folder: str | Path) -> list[Line]:
    """A line a run: `run`, `status` (complete, running, or why it cannot be read), `model`, `about`, `done` and `rows`,
    `n` harmful and `n_harmless`, `headline` with `rate`, `low`, `high`, `verdicts` by word, `created`, `settings` by
    dotted key. What is known of a store is taken from the index as long as the store's list of files is as it was.

    Raises GatingError where the folder holds no runs.
    """
    folder = Path(folder)
    known, fresh = _index(folder), dict[str, dict[str, Any]]()
    for path in store.find_runs(folder):
        stamp = _stamp(path)
        held = known.get(path.parent.name)
        same = held is not None and held["stamp"] == stamp
        fresh[path.parent.name] = held if held and same else {"stamp": stamp, "line": _line(path)}
    if fresh != known:
        _keep(folder, fresh)
    return [{"run": str(folder / name), **entry["line"]} for name, entry in fresh.items()]


def _stamp(path: Path) -> list[int]:
    """What changes whenever a store is written."""
    try:
        stat = (path / LIST).stat()
    except OSError:
        return [0, 0]
    return [stat.st_mtime_ns, stat.st_size]


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """What was known of each run. An entry that is not of this form, whoever wrote it, is none."""
    try:
        held = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        runs = held["runs"] if held["form"] == FORM else {}
        return {
            name: entry for name, entry in runs.items() if isinstance(entry["line"]["status"], str) and "stamp" in entry
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _keep(folder: Path, fresh: dict[str, dict[str, Any]]) -> None:
    try:
        swap.write(folder / INDEX, json.dumps({"form": FORM, "runs": fresh}))
    except OSError:  # a folder that may only be read
        return


def _line(path: Path) -> Line:
    try:
        return line(store.open_run(path))
    except GatingError as e:
        return {"status": f"unreadable: {e}"}


def line(run: xr.DataTree) -> Line:
    """What one run is and says, as plain values. The headline is the steered or named condition that moves refusal
    most: picked as the largest of several."""
    attrs, done = run.attrs, analysis.read_group(run, "outcomes")["done"]
    choices = json.loads(attrs["choices"])
    asked = {name: int(analysis.asked(run, harmful).sum()) for name, harmful in (("n", True), ("n_harmless", False))}
    out: Line = {
        "status": str(attrs.get("status", "running")),
        "model": str(choices.get("model") or attrs["model_id"]),
        "about": str(choices.get("experiment") or choices.get("steer") or ""),
        "done": int(done.sum()),
        "rows": int(done.size),
        **asked,
        "created": str(attrs.get("created_at", "")),
        "key": str(attrs["key"]),
        "code": str(attrs.get("code", "")),
        "settings": flatten(yaml.safe_load(attrs["config"])) | {k: v for k, v in choices.items() if v},
    }
    return out | _headline(run) | {"verdicts": _verdicts(run) if out["status"] == "complete" else {}}


def _headline(run: xr.DataTree) -> Line:
    harmful = headline_set(run)
    rates, effects = analysis.refusal_rate(run, harmful=harmful), analysis.contrast(run, harmful=harmful)["difference"]
    names = analysis.conditions_of_kind(run, ("steered", "named"))
    moved = np.abs(effects.sel(condition=names).values) if names else np.zeros(0)
    if not np.isfinite(moved).any():
        row = rates.sel(condition="baseline")
        return {"headline": f"baseline {percent(float(row['rate']))}", **_numbers(row)}
    name = names[int(np.nanargmax(moved))]
    row, before = rates.sel(condition=name), rates.sel(condition="baseline")
    said = f"{percent(float(before['rate']))} -> {interval(row)} {analysis.shown_names(run)[name]}"
    return {"headline": said, **_numbers(row)}


def _numbers(row: xr.Dataset) -> Line:
    values = {k: float(row[k]) for k in ("rate", "low", "high")}
    return {k: v if np.isfinite(v) else None for k, v in values.items()}


def _verdicts(run: xr.DataTree) -> dict[str, int]:
    family = own_claims(run)
    if not family:
        return {}
    words = claims.evaluate(run, family)["verdict"].values.tolist()
    return {word: words.count(word) for word in dict.fromkeys(words)}


def matching(lines: Iterable[Line], wanted: dict[str, str]) -> list[Line]:
    """The lines whose column or setting has each value, as texts; a `*` at an end stands for anything. Raises
    GatingError for a key that no run has."""
    held = list(lines)
    for key in wanted:
        if held and not any(key in each or key in each.get("settings", {}) for each in held):
            raise GatingError(
                f"{key} is neither a column nor a setting of these runs; use model, about, status, or data.n."
            )
    return [
        each for each in held if all(_is(each.get(k, each.get("settings", {}).get(k)), v) for k, v in wanted.items())
    ]


def _is(value: object, wanted: str) -> bool:
    text = str(value)
    if wanted.endswith("*"):
        return text.startswith(wanted[:-1])
    return text.lower() == wanted.lower()
