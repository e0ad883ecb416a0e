"""How far judges agree, and a run seen with another judge's labels. Pure functions from a run's tree; no model.

`rule` names the labels that the run wrote itself (/outcomes); any other name is a group under /judgements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table

from gating.analysis import stats
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS, MISSING
from gating.judging.spec import RULE


def judges_of(run: xr.DataTree) -> list[str]:
    """Whose labels a run has: `rule`, then the judges under /judgements."""
    group = run.children.get("judgements")
    return [RULE, *sorted(group.children)] if group is not None else [RULE]


def labels_of(run: xr.DataTree, judge: str = RULE) -> xr.DataArray:
    """One judge's labels, int8 over condition and prompt as in /outcomes; -1 where there is none.

    Raises GatingError for a judge that the run does not have.
    """
    outcomes = run["/outcomes"].to_dataset()[["label", "done"]].load()
    own = outcomes["label"].where(outcomes["done"], MISSING).astype("int8")
    return own if judge == RULE else _made(run, judge, own, kept=True)


def with_judge(run: xr.DataTree, judge: str) -> xr.DataTree:
    """The run with this judge's labels in /outcomes, so that every analysis counts them; all else is as it was.

    An answer that the judge did not label is missing there. Raises GatingError for a judge that the run does not have.
    """
    out = run.copy(deep=False)
    label = labels_of(run, judge)
    label.attrs = run["/outcomes/label"].attrs
    out["/outcomes"].dataset = run["/outcomes"].to_dataset().assign(label=label)
    digest = "" if judge == RULE else f" {run[f'/judgements/{judge}'].attrs.get('digest', '')}".rstrip()
    out.attrs = {**run.attrs, **({} if judge == RULE else {"judge": f"{judge}{digest}"})}
    return out


def agreement(
    run: xr.DataTree,
    a: str = RULE,
    b: str | None = None,
    condition: str | None = None,
    harmful: bool | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Two judges on the same answers: confusion [label_a, label_b] (counts), n, agreement with its Wilson interval (low,
    high), Cohen's kappa with its large-sample interval (kappa_low, kappa_high), only_a, only_b (judged by one alone).

    b: the only judge besides the rule where it is not given. Counted are answers that both judged; a degenerate one that
    a judge took over from the rule without seeing it is none. condition, harmful: only these answers. The intervals
    take answers as independent; those of one prompt under several conditions are not quite, so give a condition for an
    interval to rely on. Kappa is NaN where all labels are one, and has no interval where a judge gave but one. Raises GatingError for an unknown judge or condition.
    """
    others = [j for j in judges_of(run) if j != RULE]
    if b is None and len(others) != 1:
        raise GatingError(f"b has no value: say which judge, {choices(others)}." if others else _none_yet())
    first, second = (_seen(run, j) for j in (a, b or others[0]))
    if condition is not None:
        names = first["condition"].values.tolist()
        if condition not in names:
            raise GatingError(
                f"condition={condition!r} is not a condition of this run: use {choices(names, condition)}."
            )
        first, second = first.sel(condition=condition), second.sel(condition=condition)
    if harmful is not None:
        flags = run["/prompts"].to_dataset()["harmful"].load()
        chosen = flags["prompt"].values[flags.values == harmful]
        first, second = first.sel(prompt=chosen), second.sel(prompt=chosen)
    x, y = first.values.ravel(), second.transpose(*first.dims).values.ravel()
    both = (x != MISSING) & (y != MISSING)
    counts = np.zeros((len(LABELS), len(LABELS)), dtype="int64")
    np.add.at(counts, (x[both], y[both]), 1)
    n, same = int(counts.sum()), int(np.trace(counts))
    low, high = stats.wilson(same, n, level)
    kappa, kappa_low, kappa_high = stats.kappa(counts, level)
    names = np.array(LABELS)
    return xr.Dataset(
        {
            "confusion": (("label_a", "label_b"), counts), "n": n, "agreement": same / n if n else np.nan,
            "low": float(low), "high": float(high), "kappa": kappa, "kappa_low": kappa_low, "kappa_high": kappa_high,
            "only_a": int(((x != MISSING) & (y == MISSING)).sum()), "only_b": int(((x == MISSING) & (y != MISSING)).sum()),
        },
        coords={"label_a": names, "label_b": names},
        attrs={"a": a, "b": b or others[0], "interval": f"Wilson; kappa: large-sample (Fleiss et al. 1969), {level:.0%}"},
    )  # fmt: skip


def _seen(run: xr.DataTree, judge: str) -> xr.DataArray:
    """A judge's labels for answers that it saw itself."""
    own = labels_of(run)
    return own if judge == RULE else _made(run, judge, own, kept=False)


def _made(run: xr.DataTree, judge: str, like: xr.DataArray, kept: bool) -> xr.DataArray:
    known = judges_of(run)
    if judge not in known:
        raise GatingError(f"judge {judge!r} is not one of this run's: use {choices(known, judge)}, or judge it first.")
    made = run[f"/judgements/{judge}"].to_dataset()[["label", "reason", "done"]].load()
    there = made["done"] & (kept | (made["reason"] == ""))
    return (
        made["label"].where(there, MISSING).astype("int8").transpose(*like.dims).reindex_like(like, fill_value=MISSING)
    )


def _none_yet() -> str:
    return "this run has no other judge's labels yet; make some with python -m gating.rejudge RUN judge=NAME."


def table(run: xr.DataTree, names: Sequence[str] | None = None) -> Table:
    """Each judge against the run's rule, over all conditions and in each, for a terminal."""
    names = list(names or judges_of(run)[1:])
    if not names:
        raise GatingError(_none_yet())
    out = Table(
        title=f"agreement with the run's own labels ({RULE})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in ("judge", "condition"):
        out.add_column(column, overflow="fold")
    for column in ("n", "not judged", "agreement", "kappa", "rule refuses", "judge refuses", f"{RULE} > judge"):
        out.add_column(column, justify="right", overflow="fold")
    for name in names:
        for condition in (None, *run["/outcomes"].to_dataset()["condition"].values.tolist()):
            out.add_row(name, condition or "all", *_cells(agreement(run, RULE, name, condition)))
        out.add_section()
    return out


def _cells(d: xr.Dataset) -> list[str]:
    n = int(d["n"])
    if n == 0:
        return ["0", str(int(d["only_a"])), *["missing"] * 4, ""]
    kappa, ends = float(d["kappa"]), [float(d[k]) for k in ("kappa_low", "kappa_high")]
    shown = "undefined" if np.isnan(kappa) else f"{kappa:.2f}"
    interval = "" if np.isnan(ends).any() else " [{:.2f}, {:.2f}]".format(*ends)
    off = d["confusion"].values * ~np.eye(len(LABELS), dtype=bool)
    i, j = np.unravel_index(off.argmax(), off.shape)
    worst = f"{LABELS[i]} > {LABELS[j]}: {off[i, j]}" if off.any() else "none"
    refuses = [int(d["confusion"].sel({side: "refusal"}).sum()) / n for side in ("label_a", "label_b")]
    return [
        str(n), str(int(d["only_a"])), "{:.0%} [{:.0f}, {:.0f}]".format(float(d["agreement"]), 100 * float(d["low"]), 100 * float(d["high"])),
        shown + interval, *(f"{r:.0%}" for r in refuses), worst,
    ]  # fmt: skip
