"""Refusal by category of prompt; categories with too few prompts are left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import (
    KIND_COLOURS,
    KIND_MARKERS,
    Picture,
    left_out,
    legend,
    percent_axis,
    reach,
    series,
    styled,
    tall_figure,
    which,
)
from gating.figures.maps import cells

MANY = 4  # more conditions than this, and points become a map
MOST = 24  # conditions
FEWEST = 5  # answers behind a rate that is drawn


def sizes(run: xr.DataTree) -> Counter[str]:
    """Prompts of each category: of harmful ones, where any were asked."""
    flags = analysis.asked(run, bool(analysis.asked(run, True).any()))
    return Counter(analysis.read_group(run, "prompts")["category"].values[flags].tolist())


def has_categories(run: xr.DataTree) -> bool:
    """Whether several categories have enough prompts."""
    return sum(count >= FEWEST for count in sizes(run).values()) > 1


@styled
def categories(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate per category of prompt, without the random controls: points with Wilson intervals for a few
    conditions, a map of numbers for many. A rate of fewer than FEWEST answers is missing."""
    r = analysis.refusal_rate(run, by="category", harmful=harmful).transpose("condition", "category")
    asked = (r["n"].max("condition") >= FEWEST).values
    r = r.isel(condition=np.flatnonzero(r["kind"].values != "random")[:MOST], category=asked)
    r = r.assign({v: r[v].where(r["n"] >= FEWEST) for v in ("rate", "low", "high")})
    shown = [analysis.shown_names(run)[name] for name in r["condition"].values.tolist()]
    names = [f"{c} ({n})" for c, n in zip(r["category"].values, r["n"].max("condition").values, strict=True)]
    return (_category_map if len(shown) > MANY else _category_points)(r, shown, names, harmful)


def _category_points(r: xr.Dataset, shown: list[str], names: list[str], harmful: bool | None) -> Figure:
    count = len(shown)
    figure, ax = tall_figure(len(names) * (0.6 + 0.4 * count), max(map(len, names), default=0))
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
    longest = max(map(len, shown))
    figure, ax = tall_figure(len(shown) + 3, longest, max(7.5, 1 + 0.085 * longest + 0.62 * len(names)))
    cells(ax, 100 * r["rate"].values, names, shown, (0, 100), "cividis", ".0f")
    ax.set_title(f"refusal, % of {which(harmful)} prompts (prompts in brackets)")
    return figure


def _hidden(run: xr.DataTree) -> str:
    few = sum(count < FEWEST for count in sizes(run).values())
    return f" Left out: {few} categories with fewer than {FEWEST} prompts." if few else ""


FIGURES = (
    Picture(
        "outcomes",
        "statistics.md",
        "categories",
        has_categories,
        categories,
        lambda run, harmful: "Refusal rate per category of prompt under every condition but the random controls.",
        lambda run: (
            "Refusal per category, without the random controls. Few prompts a category: wide intervals."
            + _hidden(run)
            + left_out(len(analysis.conditions_of_kind(run, tuple(k for k in KIND_COLOURS if k != "random"))), MOST)
        ),
    ),
)
