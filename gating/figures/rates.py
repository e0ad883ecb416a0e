"""Rates of every condition, what became of the answers, and rates by category of prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis.wording import interval
from gating.figures.base import (
    KIND_COLOURS,
    KIND_MARKERS,
    LABEL_COLOURS,
    Picture,
    legend,
    percent_axis,
    reach,
    series,
    styled,
    tall_figure,
    which,
)
from gating.judging.labels import LABELS

MANY = 4  # more series than this in the picture of categories, and it becomes a map


@dataclass(frozen=True)
class Line:
    """A line of a picture: a condition, or all random controls of a grid point together, at height `y`."""

    text: str
    kind: str
    names: tuple[str, ...]
    y: float


def lines(run: xr.DataTree) -> list[Line]:
    """The conditions in order, the random controls of a grid point on one line, a gap where a grid point with controls
    begins or ends."""
    conditions, shown = analysis.read_group(run, "conditions"), analysis.shown_names(run)
    fields = ("condition", "kind", "grid", "direction", "family", "point", "draw")
    columns = (conditions[c].values.tolist() for c in fields)
    out: list[Line] = []
    place: dict[tuple[int, str, str], int] = {}  # where the controls of a grid point stand
    alone = {g for g, count in Counter(conditions["grid"].values.tolist()).items() if count == 1}
    y, last = -1.0, None
    for name, kind, grid, direction, family, point, draw in zip(*columns, strict=True):
        if kind == "random" and (grid, direction, draw) in place:
            at = place[grid, direction, draw]
            names = (*out[at].names, name)
            label = shown[names[0]].removesuffix(names[0])  # the paper's
            word, at_point = "random" if draw == "isotropic" else draw, f"[{point}]" if point else ""
            text = f"{label}{family}-{word} ({len(names)} seeds){at_point}"
            out[at] = replace(out[at], text=text, names=names)
            continue
        if kind == "random":
            place[grid, direction, draw] = len(out)
        y += 1 if last in (None, grid) or {last, grid} <= alone else 1.6
        last = grid
        out.append(Line(shown[name], kind, (name,), y))
    return out


def _lines(run: xr.DataTree) -> tuple[list[Line], Figure, Axes]:
    shown = lines(run)
    figure, ax = tall_figure(shown[-1].y + 1, max(len(line.text) for line in shown))
    ax.set_yticks([line.y for line in shown], [line.text for line in shown])
    ax.set_ylim(shown[-1].y + 0.7, -0.7)
    return shown, figure, ax


@styled
def rates(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of every condition with its Wilson interval; the band is the baseline's. Random controls of a grid
    point share a line, each seed a dot with its own interval."""
    r = analysis.refusal_rate(run, harmful=harmful)
    shown, figure, ax = _lines(run)
    base = r.sel(condition="baseline")
    ax.axvspan(100 * float(base["low"]), 100 * float(base["high"]), color="#000000", alpha=0.08, lw=0)
    for line in shown:
        many = len(line.names) > 1
        rate, ends = reach(r.sel(condition=list(line.names)))
        y = line.y + (np.linspace(-0.3, 0.3, len(rate)) if many else np.zeros(1))
        if np.isnan(rate).all():
            ax.text(0, line.y, "missing", va="center", color="#666666", fontsize="small")
        ax.errorbar(rate, y, xerr=ends, fmt=KIND_MARKERS[line.kind], color=KIND_COLOURS[line.kind],
                    capsize=0 if many else 2.5, ms=5 if many else 7, lw=0.7 if many else 1.6)  # fmt: skip
    n = sorted({int(v) for v in r["n"].values})
    counts = " to ".join(map(str, n[:: max(1, len(n) - 1)]))
    percent_axis(ax, f"refusal, % of {which(harmful)} prompts\n95% Wilson interval, n = {counts}")
    return figure


def rates_in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """The refusal rate of each condition that is not a random control, with its interval."""
    r, shown = analysis.refusal_rate(run, harmful=harmful), analysis.shown_names(run)
    own = r["condition"].values[r["kind"].values != "random"].tolist()
    return "; ".join(f"{shown[name]} {interval(r.sel(condition=name), 1)}" for name in own)


@styled
def labels(run: xr.DataTree, harmful: bool | None) -> Figure:
    """What became of the answers: shares of the four labels, one bar a condition; the mean over the random controls of
    a grid point."""
    r = analysis.rates(run, harmful=harmful)["rate"]
    shown, figure, ax = _lines(run)
    y = [line.y for line in shown]
    left = np.zeros(len(shown))
    for name in LABELS:
        share = np.array([100 * float(r.sel(label=name, condition=list(line.names)).mean()) for line in shown])
        ax.barh(y, np.nan_to_num(share), left=left, color=LABEL_COLOURS[name], edgecolor="white", lw=0.8, label=name)
        left += np.nan_to_num(share)
    for line, end in zip(shown, left, strict=True):
        if end == 0:
            ax.text(1, line.y, "missing", va="center", color="#666666", fontsize="small")
    seeds = "\nrandom controls: the mean of their seeds" if any(len(line.names) > 1 for line in shown) else ""
    percent_axis(ax, f"answers to {which(harmful)} prompts, %{seeds}")
    ax.set_xlim(0, 100)
    figure.legend(loc="outside upper right", ncols=len(LABELS))
    return figure


@styled
def categories(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate per category of prompt, without the random controls: points with Wilson intervals for a few
    conditions, a map of numbers for many."""
    r = analysis.refusal_rate(run, by="category", harmful=harmful).transpose("condition", "category")
    asked = (r["n"].max("condition") > 0).values
    r = r.isel(condition=r["kind"].values != "random", category=asked if asked.any() else slice(None))
    shown = [analysis.shown_names(run)[name] for name in r["condition"].values.tolist()]
    names = [f"{c} ({n})" for c, n in zip(r["category"].values, r["n"].max("condition").values, strict=True)]
    return (_category_map if len(shown) > MANY else _category_points)(r, shown, names, harmful)


def _category_points(r: xr.Dataset, shown: list[str], names: list[str], harmful: bool | None) -> Figure:
    count = len(shown)
    figure, ax = tall_figure(len(names) * (0.6 + 0.4 * count), max(map(len, names)))
    kinds = r["kind"].values.tolist()
    for i, (text, kind) in enumerate(zip(shown, kinds, strict=True)):
        rate, ends = reach(r.isel(condition=i))
        y = np.arange(len(names)) + 0.7 / count * (i - (count - 1) / 2)
        colour, marker = KIND_COLOURS[kind], KIND_MARKERS[kind]
        if kinds.count(kind) > 1:
            colour, marker = series(i - 1)["color"], series(i - 1)["marker"]
        ax.errorbar(rate, y, xerr=np.nan_to_num(ends), fmt=marker, color=colour, capsize=2, ms=5, lw=1.2, label=text)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    for edge in range(1, len(names)):
        ax.axhline(edge - 0.5, color="#DDDDDD", lw=0.6, zorder=0)
    percent_axis(ax, f"refusal, % of {which(harmful)} prompts\n95% Wilson interval; prompts in brackets")
    return legend(figure, 2)


def _category_map(r: xr.Dataset, shown: list[str], names: list[str], harmful: bool | None) -> Figure:
    share, longest = 100 * r["rate"].values, max(map(len, shown))
    figure, ax = tall_figure(len(shown) + 3, longest, max(7.5, 1 + 0.085 * longest + 0.62 * len(names)))
    image = ax.pcolormesh(share, cmap="cividis", vmin=0, vmax=100, edgecolors="white", lw=1)
    for (i, j), v in np.ndenumerate(share):
        text, colour = ("missing", "#666666") if np.isnan(v) else (f"{v:.0f}", "white" if v < 50 else "black")
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=colour, fontsize="small")
    ax.set_yticks(np.arange(len(shown)) + 0.5, shown)
    ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_ylim(len(shown), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    text = f"refusal, % of {which(harmful)} prompts (prompts in brackets)"
    figure.colorbar(image, ax=ax, location="top", shrink=0.5, aspect=40, label=text)
    return figure


FIGURES = (
    Picture(
        "rates",
        lambda run: True,
        rates,
        lambda run, harmful: (
            f"Refusal rate of each condition with its interval: {rates_in_words(run, harmful)}. Random controls are "
            "in the table."
        ),
        lambda run: (
            "Refusal. The grey band is the baseline's interval; grey dots are random directions of the same norm, "
            "one a seed."
        ),
    ),
    Picture(
        "labels",
        lambda run: True,
        labels,
        lambda run, harmful: (
            "Shares of refusal, compliance, evasive and degenerate answers per condition; the numbers are in the table."
        ),
        lambda run: "What became of the answers. A degenerate answer (empty, looping, gibberish) is no compliance.",
    ),
    Picture(
        "categories",
        lambda run: True,
        categories,
        lambda run, harmful: "Refusal rate per category of prompt under every condition but the random controls.",
        lambda run: "Refusal per category, without the random controls. Few prompts a category: wide intervals.",
    ),
)
