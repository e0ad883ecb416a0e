"""How far judges agree, a person among them. Pure functions from a run's tree; no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table

from gating.analysis import stats
from gating.analysis.judges import judges_of, labels_of, shown_labels, with_judge
from gating.errors import GatingError, choices
from gating.foreign import cell
from gating.judging import OWN, own_name
from gating.judging.labels import LABELS, MISSING

__all__ = ["agreement", "judges_of", "labels_of", "table", "with_judge"]
NO_JUDGES = "this run has no other judge's labels yet; make some with python -m gating.rejudge RUN judge=NAME."


def agreement(
    run: xr.DataTree,
    a: str = OWN,
    b: str | None = None,
    condition: str | None = None,
    harmful: bool | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Two judges on the same answers: confusion [label_a, label_b] (counts), n, agreement with its Wilson interval
    (low, high), Cohen's kappa with its large-sample interval (kappa_low, kappa_high), only_a, only_b (judged by one
    alone).

    b: by default the only other judge. Counted are answers that both judged; a degenerate answer that a
    judge was not shown, because it keeps the run's own label, does not count. condition, harmful: only these answers.

    The intervals take answers as independent, which those of one prompt under several conditions are not quite: give a
    condition for an interval to rely on. Kappa is NaN where both judges gave one and the same label throughout, and has
    no interval where a judge gave only one label. Raises GatingError for an unknown judge or condition.
    """
    b = b or _only_other(run)
    first, second = (_chosen(run, shown_labels(run, judge), condition, harmful) for judge in (a, b))
    x, y = first.values.ravel(), second.transpose(*first.dims).values.ravel()
    both = (x != MISSING) & (y != MISSING)
    counts = np.zeros((len(LABELS), len(LABELS)), dtype="int64")
    np.add.at(counts, (x[both], y[both]), 1)
    n, same = int(counts.sum()), int(np.trace(counts))
    low, high = stats.wilson(same, n, level)
    kappa, kappa_low, kappa_high = stats.kappa(counts, level)
    return xr.Dataset(
        {
            "confusion": (("label_a", "label_b"), counts),
            **{"n": n, "agreement": same / n if n else np.nan, "low": float(low), "high": float(high)},
            **{"kappa": kappa, "kappa_low": kappa_low, "kappa_high": kappa_high},
            **{"only_a": int(((x != MISSING) & ~both).sum()), "only_b": int(((y != MISSING) & ~both).sum())},
        },
        coords={"label_a": np.array(LABELS), "label_b": np.array(LABELS)},
        attrs={"a": a, "b": b, "interval": f"Wilson; kappa: large-sample (Fleiss et al. 1969), {level:.0%}"},
    )


def _only_other(run: xr.DataTree) -> str:
    """The judge besides the run's own. Raises GatingError where there is none, or more than one."""
    others = [j for j in judges_of(run) if j != OWN]
    if not others:
        raise GatingError(NO_JUDGES)
    if len(others) > 1:
        raise GatingError(f"b has no value: say which judge, {choices(others)}.")
    return others[0]


def _chosen(run: xr.DataTree, labels: xr.DataArray, condition: str | None, harmful: bool | None) -> xr.DataArray:
    """The labels of one condition, and of harmful or harmless prompts; None takes all."""
    if condition is not None:
        names = labels["condition"].values.tolist()
        if condition not in names:
            allowed = choices(names, condition)
            raise GatingError(f"condition={condition!r} is not a condition of this run: use {allowed}.")
        labels = labels.sel(condition=condition)
    if harmful is not None:
        flags = run["/prompts"].to_dataset()["harmful"].load()
        labels = labels.sel(prompt=flags["prompt"].values[flags.values == harmful])
    return labels


def table(run: xr.DataTree, names: Sequence[str] | None = None) -> Table:
    """Each judge against the run's own labels, over all conditions and in each, for a terminal."""
    names = list(names or judges_of(run)[1:])
    if not names:
        raise GatingError(NO_JUDGES)
    own = own_name(run.attrs)
    out = Table(
        title=cell(f"agreement with the run's own labels ({run.attrs.get('judge', own)})"),
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for column in ("judge", "condition"):
        out.add_column(column, overflow="fold")
    for column in ("n", "not judged", "agreement", "kappa", f"{own} refuses", "judge refuses", f"{own} > judge"):
        out.add_column(cell(column), justify="right", overflow="fold")
    for name in names:
        for condition in (None, *run["/outcomes"].to_dataset()["condition"].values.tolist()):
            out.add_row(cell(name), cell(condition or "all"), *_cells(agreement(run, OWN, name, condition)))
        out.add_section()
    return out


def _cells(d: xr.Dataset) -> list[str]:
    """A row of the table, after the judge and the condition, from a dataset of `agreement`."""
    n = int(d["n"])
    if n == 0:
        return ["0", str(int(d["only_a"])), *["missing"] * 4, ""]
    kappa, ends = float(d["kappa"]), [float(d[k]) for k in ("kappa_low", "kappa_high")]
    interval = "" if np.isnan(ends).any() else " [{:.2f}, {:.2f}]".format(*ends)
    agreed, low, high = (100 * float(d[k]) for k in ("agreement", "low", "high"))
    different = d["confusion"].values * ~np.eye(len(LABELS), dtype=bool)
    i, j = np.unravel_index(different.argmax(), different.shape)
    refuses = [int(d["confusion"].sel({side: "refusal"}).sum()) / n for side in ("label_a", "label_b")]
    return [
        str(n),
        str(int(d["only_a"])),
        f"{agreed:.0f}% [{low:.0f}, {high:.0f}]",
        ("undefined" if np.isnan(kappa) else f"{kappa:.2f}") + interval,
        *(f"{r:.0%}" for r in refuses),
        f"{LABELS[i]} > {LABELS[j]}: {different[i, j]}" if different.any() else "none",
    ]
