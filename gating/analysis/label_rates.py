"""How often each label was given: rates with Wilson intervals, from a run's tree to labelled Datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.judges import with_judge
from gating.analysis.reading import read_group
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS, MISSING

GROUPINGS = ("category", "source", "harmful")
CONDITION_COORDINATES = (
    "kind", "family", "point", "paper", "direction", "op", "layers", "coef", "norm", "scope", "read", "draw", "seed",
    "grid",
)  # fmt: skip


def refusal_rate(
    run: xr.DataTree,
    by: str | Sequence[str] | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """How often each condition's answers have `label`: rate, low, high (Wilson), k, n over condition.

    by: one or more of category, source, harmful: a further dimension each. harmful: count only harmful (True) or only
    harmless (False) prompts; None counts what was asked, which must not be both in one rate. judge: whose labels count,
    `own`, a judge of the run or `labels/BY`; by default the run's own. Raises GatingError for an unknown label,
    grouping or judge, and where harmful and harmless prompts would be pooled.
    """
    run = with_judge(run, judge)
    return described(run, _rate(run, by, label, harmful, level))


def rates(
    run: xr.DataTree,
    by: str | Sequence[str] | None = None,
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """`refusal_rate` for every label, along a dimension `label`."""
    run = with_judge(run, judge)
    each = [_rate(run, by, name, harmful, level) for name in LABELS]
    dim = xr.DataArray(np.array(LABELS), dims="label", name="label")
    return described(run, xr.concat(each, dim=dim, combine_attrs="drop_conflicts"))


def _rate(
    run: xr.DataTree, by: str | Sequence[str] | None, label: str, harmful: bool | None, level: float
) -> xr.Dataset:
    groupings = [by] if isinstance(by, str) else list(by or [])
    for name in groupings:
        if name not in GROUPINGS:
            raise GatingError(f"by={name!r} is not a grouping of prompts: use {choices(GROUPINGS, name)}.")
    hit, present = hits(run, label, harmful, groupings)
    for name in groupings:
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
    ds = with_names(ds, {
        "rate": ("share of answers with the label", "1"), "low": ("lower end of the rate's interval", "1"),
        "high": ("upper end of the rate's interval", "1"), "k": ("answers with the label", "answer"),
        "n": ("answers that have any label", "answer"),
    })  # fmt: skip
    ds.attrs = {"label": label, "interval": f"Wilson, {level:.0%}"}
    return ds


def with_names(ds: xr.Dataset, named: dict[str, tuple[str, str]]) -> xr.Dataset:
    """With each variable's own long_name and units, by which it is drawn, instead of those of what it was made of."""
    return ds.assign({v: ds[v].drop_attrs().assign_attrs(long_name=n, units=u) for v, (n, u) in named.items()})


def hits(
    run: xr.DataTree, label: str, harmful: bool | None, by: Sequence[str] = ()
) -> tuple[xr.DataArray, xr.DataArray]:
    """Which answers have the label, and which are done and have any at all: both boolean [condition, prompt].

    by: what the prompts will be split by. Raises GatingError for an unknown label, and where harmful and harmless
    prompts would be pooled.
    """
    if label not in LABELS:
        raise GatingError(f"label={label!r} is not a label: use {choices(LABELS, label)}.")
    if harmful is None:
        _check_not_pooled(run, by)
    outcomes = run["/outcomes"].to_dataset()[["label", "done"]].load()
    if harmful is not None:
        flags = read_group(run, "prompts")["harmful"]
        outcomes = outcomes.sel(prompt=flags["prompt"].values[flags.values == harmful])
    present = outcomes["done"] & (outcomes["label"] != MISSING)
    return present & (outcomes["label"] == LABELS.index(label)), present


def _check_not_pooled(run: xr.DataTree, by: Sequence[str]) -> None:
    """A rate over harmful and harmless prompts together answers no question, and its effect is not that of either."""
    prompts = read_group(run, "prompts")
    groups = zip(*(prompts[name].values.tolist() for name in by), strict=True) if by else [()] * prompts.sizes["prompt"]
    kinds: dict[tuple[object, ...], set[bool]] = {}
    for group, flag in zip(groups, prompts["harmful"].values.tolist(), strict=True):
        kinds.setdefault(group, set()).add(flag)
    if any(len(both) > 1 for both in kinds.values()):
        raise GatingError(
            "harmful has no value, and this run asked harmful and harmless prompts, which are not to be pooled: say "
            "harmful=True or harmful=False (or, for rates, by='harmful')."
        )


def described(run: xr.DataTree, ds: xr.Dataset) -> xr.Dataset:
    """With what each condition is, as coordinates along condition (and the axes of a joined multirun, where it
    differs)."""
    conditions = read_group(run, "conditions").sel(condition=ds["condition"].values)
    columns = {c: conditions[c] for c in CONDITION_COORDINATES if c in conditions}
    plain = {c: v.dtype if v.dtype.kind in "biuf" else str for c, v in columns.items()}
    return ds.assign_coords({c: (v.dims, np.array(v.values.tolist(), dtype=plain[c])) for c, v in columns.items()})
