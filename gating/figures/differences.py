"""Each condition less the mean of its own random controls, on the same prompts: maps with intervals and n."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis.wording import signed
from gating.figures import grids
from gating.figures.base import Picture, left_out, styled, which
from gating.figures.maps import cells, has_grid, panels

MOST = 24  # lines
PANELS = 3  # maps of a grid


def written(line: xr.Dataset) -> str:
    """A cell: the difference in points with its interval, and n. line: a single one of `analysis.against_random`."""
    ends = f"[{signed(float(line['low']))}, {signed(float(line['high']))}]"
    return f"{signed(float(line['difference']))} {ends}\nn = {int(line['n'])}"


def sides(run: xr.DataTree, harmful: bool | None) -> list[tuple[str, bool | None]]:
    """What each column of the map counts: a label, and of which prompts."""
    both: list[tuple[str, bool | None]] = [("refusal", True), ("refusal", False), ("degenerate", True)]
    return both if analysis.asked_both(run) else [("refusal", harmful), ("degenerate", harmful)]


@styled
def by_condition(run: xr.DataTree, harmful: bool | None) -> Figure:
    """A row for each condition with controls of one kind."""
    columns = sides(run, harmful)
    found = [analysis.against_random(run, label, flag).isel(line=slice(MOST)) for label, flag in columns]
    shown = analysis.shown_names(run)
    rows = [
        f"{shown[c]}\nless {k} {'random' if d == 'isotropic' else d}"
        for c, d, k in zip(*(found[0][v].values.tolist() for v in ("condition", "draw", "k")), strict=True)
    ]
    longest = max(len(part) for row in rows for part in row.split("\n"))
    figure = Figure(figsize=(0.085 * longest + 1.9 * len(columns), 1 + 0.5 * len(rows)))
    ax = figure.add_subplot()
    values = np.stack([100 * ds["difference"].values for ds in found], axis=-1)
    texts = np.array([[written(ds.isel(line=i)) for ds in found] for i in range(len(rows))])
    names = [f"{label},\n{which(flag)} prompts" for label, flag in columns]
    cells(ax, values, names, rows, (-100, 100), "RdBu_r", ".0f", texts)
    ax.set_xticks(ax.get_xticks(), names, rotation=0, ha="center")
    ax.set_title("less the mean of its random controls, points")
    return figure


@styled
def by_place(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal over block and coefficient, a map for each setting of what varies besides."""
    found = analysis.against_random(run, "refusal", harmful)
    maps = panels(run)[:PANELS]
    drawn = xr.concat([conditions for _, conditions in maps], "condition")
    layers, coefs = grids.ordered(drawn, "layers"), grids.ordered(drawn, "coef")
    figure = Figure(figsize=(max(6.0, 1.5 + 1.3 * len(coefs)), len(maps) * (1.2 + 0.42 * len(layers))))
    for ax, (setting, conditions) in zip(figure.subplots(len(maps), squeeze=False)[:, 0], maps, strict=True):
        values = np.full((len(layers), len(coefs)), np.nan)
        texts = np.full(values.shape, "", dtype=object)
        for name, layer, coef in zip(*(conditions[c].values.tolist() for c in ("condition", "layers", "coef")),
                                     strict=True):  # fmt: skip
            own = np.flatnonzero(found["condition"].values == name)
            if own.size:
                line, at = found.isel(line=own[0]), (layers.index(layer), coefs.index(coef))
                values[at], texts[at] = 100 * float(line["difference"]), written(line)
        cells(ax, values, [f"{c:g}" for c in coefs], list(map(str, layers)), (-100, 100), "RdBu_r", ".0f", texts)
        words = f"refusal of {which(harmful)} prompts less that of random controls, points"
        ax.set_title(f"{grids.title(setting)}\n{words}" if setting else words)
        ax.set_xlabel("coefficient")
        ax.set_ylabel("block")
    return figure


def in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each condition's difference with its interval, n and k."""
    found, shown = analysis.against_random(run, "refusal", harmful).isel(line=slice(MOST)), analysis.shown_names(run)
    each = (found.isel(line=i) for i in range(found.sizes["line"]))
    return "; ".join(
        f"{shown[str(one['condition'].item())]} less {int(one['k'])} {one['draw'].item()} "
        + written(one).replace("\n", ", ")
        for one in each
    )


def _drawn(run: xr.DataTree, harmful: bool | None) -> Figure:
    return (by_place if has_grid(run) else by_condition)(run, harmful)


def lines(run: xr.DataTree) -> int:
    """How many conditions have controls."""
    known = set(analysis.shown_names(run))
    return sum(line.name in known for line in analysis.controlled(run))


FIGURES = (
    Picture(
        "controls",
        "method.md#conventions",
        "differences",
        lambda run: lines(run) > 0,
        _drawn,
        lambda run, harmful: f"Refusal less the mean of the random controls, in points: {in_words(run, harmful)}.",
        lambda run: (
            "What a condition does beyond its own random controls, on the same prompts. Intervals are over prompts, "
            "not over the choice of directions: with few of those, look at each (below)."
            + ("" if has_grid(run) else left_out(lines(run), MOST))
            + (left_out(len(panels(run)), PANELS, "settings") if has_grid(run) else "")
        ),
    ),
)
