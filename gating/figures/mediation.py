"""Where a persona acts through another direction: how much of its effect goes when that is held at one block alone."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import Picture, left_out, legend, panel_figure, series, styled, which, whole_numbers

MEASURES = {"refusal_score": "first-token score", "refusal": "refusal in the text"}
MOST = 4  # mediations
SHOWN = (-50.0, 150.0)  # percent: an interval may be unbounded


def mapped(run: xr.DataTree) -> list[analysis.Route]:
    """The mediations whose mediator was held at several blocks, each by itself."""
    return [route for route in analysis.routes(run) if len(route.at) > 1]


def shares(run: xr.DataTree, route: analysis.Route, harmful: bool | None) -> dict[str, xr.Dataset]:
    """By measure: the share of the effect that goes along `layer`, with intervals; those that have an effect."""
    found = {m: analysis.by_block(run, route.persona, route.at, m, harmful) for m in MEASURES}
    return {m: share for m, share in found.items() if share["estimate"].notnull().any()}


@styled
def by_block(run: xr.DataTree, harmful: bool | None) -> Figure:
    """The share that goes against the block where the mediator was held, a panel for each mediation."""
    routes = mapped(run)[:MOST]
    figure, axes = panel_figure(len(routes), 1, (7.5, 1 + 3 * len(routes)))
    for ax, route in zip(axes, routes, strict=True):
        found = shares(run, route, harmful)
        for i, (measure, share) in enumerate(found.items()):
            percent, low, high = (100 * share[k].values for k in ("estimate", "low", "high"))
            reach = np.stack([percent - np.maximum(low, SHOWN[0]), np.minimum(high, SHOWN[1]) - percent])
            at = share["layer"].values + 0.08 * (2 * i - 1)  # beside each other
            look = series(i)
            ax.errorbar(at, percent, np.maximum(reach, 0), **look, lw=1, capsize=2, ms=4, label=MEASURES[measure])
        if not found:
            ax.text(0.5, 0.5, "the persona has no effect here: nothing to mediate", ha="center", transform=ax.transAxes)
        for level in (0, 100):
            ax.axhline(level, color="#000000", ls=":", lw=1)
        ax.set_ylim(*SHOWN)
        ax.set_ylabel("effect that goes, %")
        ax.set_title(f"{route.persona} on {which(harmful)} prompts, {route.mediator} held at one block")
        whole_numbers(ax, "block")
    return legend(figure)


def in_words(run: xr.DataTree, harmful: bool | None) -> str:
    parts = []
    for route in mapped(run)[:MOST]:
        for measure, share in shares(run, route, harmful).items():
            blocks = zip(share["layer"].values, 100 * share["estimate"].values, strict=True)
            listed = ", ".join(f"{block}: {percent:.0f}%" for block, percent in blocks)
            parts.append(f"{route.persona} through {route.mediator}, {MEASURES[measure]}, by block {listed}")
    return "; ".join(parts) or "the persona has no effect here, so that nothing is mediated"


FIGURES = (
    Picture(
        "inside",
        "knockout.md",
        "mediation",
        lambda run: bool(mapped(run)),
        by_block,
        lambda run, harmful: (
            f"Share of the persona's effect that goes when the mediator is held: {in_words(run, harmful)}."
        ),
        lambda run: (
            "Where the persona's effect is mediated: the share of it that goes when the projection is led to the "
            "unsteered row's at one block alone, with 95% intervals over prompts. Where there is no effect there is no "
            "share." + left_out(len(mapped(run)), MOST, "mediations")
        ),
    ),
)
