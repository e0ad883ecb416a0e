"""Against chance: each condition among all of its random controls."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis import stats
from gating.figures.base import KIND_COLOURS, Picture, left_out, percent_axis, styled, which

MOST = 24


@styled
def strip(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of each condition beside every one of its random controls (a dot each), with `unusual`'s p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    shown, lines = analysis.shown_names(run), analysis.controlled(run)[:MOST]
    texts = [f"{shown.get(line.name, line.name)}, {line.draw}" for line in lines]
    own = [line.name for line in lines if line.name in shown]
    figure = Figure(figsize=(max(8.5, 6.5 + 0.085 * max(map(len, texts))), 1.5 + 0.42 * len(lines)))
    ax = figure.add_subplot()
    ax.axvline(float(rate.sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
    for y, (name, _, null) in enumerate(lines):
        values = rate.sel(condition=null).values
        ax.plot(values, y + np.linspace(-0.25, 0.25, len(values)), ".", color=KIND_COLOURS["random"], ms=6,
                label="random directions, one a dot" if y == 0 else None)  # fmt: skip
        if name not in own:
            continue
        value = float(rate.sel(condition=name))
        label = "the condition" if name == own[0] and not ax.get_legend_handles_labels()[1][2:] else None
        ax.plot([value], [y], "o", color=KIND_COLOURS["steered"], ms=8, label=label)
        p, k = stats.unusual(value, values)
        ax.text(104, y, "missing" if np.isnan(p) else f"p = {p:.2f} (K = {k})", va="center", fontsize="x-small")
    ax.set_yticks(range(len(lines)), texts)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    percent_axis(ax, f"refusal, % of {which(harmful)} prompts")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each condition's rate, the range of its controls, p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    shown, out = analysis.shown_names(run), []
    for name, draw, null in analysis.controlled(run)[:MOST]:
        values = rate.sel(condition=null).values
        if not np.isfinite(values).any():
            continue
        ends = f"{len(null)} random directions ({draw}) {np.nanmin(values):.0f}% to {np.nanmax(values):.0f}%"
        if name not in shown:
            out.append(f"{name}: {ends}")
            continue
        value = float(rate.sel(condition=name))
        p = stats.unusual(value, values)[0]
        own = f"{value:.0f}%, {ends}, p = {p:.2f}" if np.isfinite(value) else f"missing, {ends}"
        out.append(f"{shown[name]}: {own}")
    return "; ".join(out)


FIGURES = (
    Picture(
        "controls",
        "method.md#conventions",
        "null",
        lambda run: any(len(line.controls) > 1 for line in analysis.controlled(run)),
        strip,
        lambda run, harmful: (
            f"Refusal rate of each condition beside all of its random controls: {in_words(run, harmful)}."
        ),
        lambda run: (
            "Each condition against its whole random null: do random directions in its place do the same? p is for "
            "its distance, either way, from the mean of all; K directions cannot give less than 1/(K + 1)."
            + left_out(len(analysis.controlled(run)), MOST)
        ),
    ),
)
