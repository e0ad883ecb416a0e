"""Pictures of a run: small functions from labelled arrays to a matplotlib Figure. Okabe-Ito colours, no pyplot state."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.judges import LABELS

KIND_COLOURS = {
    "baseline": "#000000", "steered": "#D55E00", "reversed": "#0072B2", "random": "#8C8C8C", "named": "#009E73",
}  # fmt: skip
KIND_MARKERS = {"baseline": "D", "steered": "o", "reversed": "s", "random": ".", "named": "^"}
LABEL_COLOURS = dict(zip(LABELS, ("#0072B2", "#D55E00", "#F0E442", "#999999"), strict=True))
AXES = ("coef", "layers", "norm", "scope", "read", "direction")


def _figure(rows: int, width: float = 7.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 1.3 + 0.3 * rows), layout="constrained", dpi=150)
    return figure, figure.add_subplot()


def _percent(ax: Axes, text: str) -> None:
    ax.set_xlim(-3, 103)
    ax.set_xlabel(text)
    ax.spines[["top", "right"]].set_visible(False)


def _conditions(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)


def rates(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of every condition with its Wilson interval; the band is the baseline's."""
    r = analysis.refusal_rate(run, harmful=harmful)
    names, kinds = r["condition"].values.tolist(), r["kind"].values.tolist()
    figure, ax = _figure(len(names))
    base = r.sel(condition="baseline")
    ax.axvspan(100 * float(base["low"]), 100 * float(base["high"]), color="#000000", alpha=0.08, lw=0)
    for y, kind in enumerate(kinds):
        one = r.isel(condition=y)
        rate = 100 * float(one["rate"])
        error = np.maximum([[rate - 100 * float(one["low"])], [100 * float(one["high"]) - rate]], 0)
        ax.errorbar(rate, y, xerr=error, fmt=KIND_MARKERS[kind], color=KIND_COLOURS[kind], capsize=2.5, ms=7, lw=1.6)
    _conditions(ax, names)
    n = sorted({int(v) for v in r["n"].values})
    _percent(
        ax,
        f"refusal, % of {_which(harmful)} prompts (95% Wilson interval, n = {' to '.join(map(str, n[:: max(1, len(n) - 1)]))})",
    )
    return figure


def labels(run: xr.DataTree, harmful: bool | None) -> Figure:
    """What became of the answers: shares of the four labels, one bar a condition."""
    r = analysis.rates(run, harmful=harmful)
    names = r["condition"].values.tolist()
    figure, ax = _figure(len(names))
    left = np.zeros(len(names))
    for name in LABELS:
        share = np.nan_to_num(100 * r["rate"].sel(label=name).values)
        ax.barh(range(len(names)), share, left=left, color=LABEL_COLOURS[name], edgecolor="white", lw=0.8, label=name)
        left += share
    _conditions(ax, names)
    _percent(ax, f"answers to {_which(harmful)} prompts, %")
    ax.set_xlim(0, 100)
    figure.legend(loc="outside upper right", ncols=len(LABELS), frameon=False, fontsize="small")
    return figure


def categories(run: xr.DataTree, harmful: bool | None, shown: list[str]) -> Figure:
    """Refusal rate per category of prompt under some conditions, with Wilson intervals."""
    r = analysis.refusal_rate(run, by="category", harmful=harmful).sel(condition=shown)
    r = r.isel(category=(r["n"].max("condition") > 0).values)
    names = r["category"].values.tolist()
    figure, ax = _figure(int(len(names) * (1 + 0.25 * len(shown))))
    for i, name in enumerate(shown):
        one = r.sel(condition=name)
        kind = str(one["kind"].item())
        rate = 100 * one["rate"].values
        error = np.nan_to_num([rate - 100 * one["low"].values, 100 * one["high"].values - rate])
        y = np.arange(len(names)) + 0.22 * (i - (len(shown) - 1) / 2)
        ax.errorbar(rate, y, xerr=np.maximum(error, 0), fmt=KIND_MARKERS[kind], color=KIND_COLOURS[kind], capsize=2, ms=5,
                    lw=1.2, label=name)  # fmt: skip
    counts = r["n"].max("condition").values
    _conditions(ax, [f"{c} ({n})" for c, n in zip(names, counts, strict=True)])
    _percent(ax, "refusal, % (95% Wilson interval; prompts in brackets)")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize="small")
    return figure


def varied(run: xr.DataTree) -> list[str]:
    """Settings of which the steered conditions have more than two values: the axes worth a dose-response picture."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=(about["kind"] == "steered").values)
    return [a for a in AXES if len(set(steered[a].values.tolist())) > 2]


def dose(run: xr.DataTree, axis: str, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates against one axis: a line for each setting of the other axes, the random controls in
    grey, the baseline as a dashed line."""
    r = analysis.rates(run, harmful=harmful)
    kinds = r["kind"].values
    figure = Figure(figsize=(7.5, 6.2), layout="constrained", dpi=150)
    numeric = r[axis].dtype.kind in "fi"
    values = sorted(set(r[axis].values[kinds == "steered"].tolist()), key=lambda v: v if numeric else _window(v))
    place = {v: v if numeric else i for i, v in enumerate(values)}
    others = [a for a in AXES if a != axis and len(set(r[a].values[kinds == "steered"].tolist())) > 1]
    shades = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
    for ax, label in zip(figure.subplots(2, 1, sharex=True), ("refusal", "degenerate"), strict=True):
        one = r.sel(label=label)
        ax.axhline(100 * float(one["rate"].sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
        rand = one.isel(condition=kinds == "random")
        ax.plot(
            [place[v] for v in rand[axis].values.tolist()],
            100 * rand["rate"].values,
            ".",
            color="#8C8C8C",
            label="random directions",
            zorder=4,
        )
        steered = one.isel(condition=kinds == "steered")
        groups = list(dict.fromkeys(zip(*(steered[a].values.tolist() for a in others), strict=True))) or [()]
        for i, group in enumerate(groups):
            keep = np.ones(steered.sizes["condition"], dtype=bool)
            for a, v in zip(others, group, strict=True):
                keep &= steered[a].values == v
            line = steered.isel(condition=keep)
            x, colour = np.array([place[v] for v in line[axis].values.tolist()]), shades[i % len(shades)]
            order = np.argsort(x)
            name = ", ".join(f"{a} {v}" for a, v in zip(others, group, strict=True)) or "steered"
            ax.plot(x[order], 100 * line["rate"].values[order], "o-", color=colour, label=name)
            ax.fill_between(
                x[order],
                100 * line["low"].values[order],
                100 * line["high"].values[order],
                color=colour,
                alpha=0.15,
                lw=0,
            )
        ax.set_ylim(-3, 103)
        ax.set_ylabel(f"{label}, % of {_which(harmful)} prompts")
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"steer.{axis}")
    ax.set_xticks([place[v] for v in values], [f"{v:g}" if numeric else str(v) for v in values])
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _window(text: str) -> tuple[float, str]:
    head = text.replace("+", "-").split("-")[0]
    return (float(head) if head.replace(".", "", 1).isdigit() else np.inf, text)


def _which(harmful: bool | None) -> str:
    return {True: "harmful", False: "harmless", None: "all"}[harmful]
