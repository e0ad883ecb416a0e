"""How often each label was given: rates with Wilson intervals, from a run's tree to labelled Datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.reading import read_group
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS, MISSING

GROUPINGS = ("category", "source", "harmful")
CONDITION_COORDINATES = (
    "kind", "family", "point", "paper", "direction", "op", "layers", "coef", "norm", "scope", "read", "seed", "grid",
)  # fmt: skip


def refusal_rate(
    run: xr.DataTree,
    by: str | Sequence[str] | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """How often each condition's answers have `label`: rate, low, high (Wilson), k, n over condition.

    by: one or more of category, source, harmful: a further dimension each. harmful: count only harmful (True) or only
    harmless (False) prompts; None counts both. Raises GatingError for an unknown label or grouping.
    """
    return described(run, _rate(run, by, label, harmful, level))


def rates(
    run: xr.DataTree, by: str | Sequence[str] | None = None, harmful: bool | None = None, level: float = 0.95
) -> xr.Dataset:
    """`refusal_rate` for every label, along a dimension `label`."""
    each = [_rate(run, by, name, harmful, level) for name in LABELS]
    dim = xr.DataArray(np.array(LABELS), dims="label", name="label")
    return described(run, xr.concat(each, dim=dim, combine_attrs="drop_conflicts"))


def _rate(
    run: xr.DataTree, by: str | Sequence[str] | None, label: str, harmful: bool | None, level: float
) -> xr.Dataset:
    hit, present = hits(run, label, harmful)
    for name in [by] if isinstance(by, str) else list(by or []):
        if name not in GROUPINGS:
            raise GatingError(f"by={name!r} is not a grouping of prompts: use {choices(GROUPINGS, name)}.")
        column = read_group(run, "prompts")[name].reindex(prompt=hit["prompt"])
        values = sorted(set(column.values.tolist()))
        member = xr.DataArray(
            np.array([column.values == v for v in values]), dims=(name, "prompt"), coords={name: np.array(values)}
        )
        hit, present = hit & member, present & member
    k, n = hit.sum("prompt"), present.sum("prompt")
    low, high = stats.wilson(k.values, n.values, level)
    rate = k / n.where(n > 0)
    ds = xr.Dataset({"rate": rate, "low": (k.dims, low), "high": (k.dims, high), "k": k, "n": n})
    ds.attrs = {"label": label, "interval": f"Wilson, {level:.0%}"}
    return ds


def hits(run: xr.DataTree, label: str, harmful: bool | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Which answers have the label, and which are done and have any at all: both boolean [condition, prompt]."""
    if label not in LABELS:
        raise GatingError(f"label={label!r} is not a label: use {choices(LABELS, label)}.")
    outcomes = run["/outcomes"].to_dataset()[["label", "done"]].load()
    if harmful is not None:
        flags = read_group(run, "prompts")["harmful"]
        outcomes = outcomes.sel(prompt=flags["prompt"].values[flags.values == harmful])
    present = outcomes["done"] & (outcomes["label"] != MISSING)
    return present & (outcomes["label"] == LABELS.index(label)), present


def described(run: xr.DataTree, ds: xr.Dataset) -> xr.Dataset:
    """With what each condition is, as coordinates along condition (and the axes of a joined multirun, where it
    differs)."""
    conditions = read_group(run, "conditions").sel(condition=ds["condition"].values)
    columns = {c: conditions[c] for c in CONDITION_COORDINATES if c in conditions}
    plain = {c: v.dtype if v.dtype.kind in "biuf" else str for c, v in columns.items()}
    return ds.assign_coords({c: (v.dims, np.array(v.values.tolist(), dtype=plain[c])) for c, v in columns.items()})
