"""How hard each condition pushes, in units that compare across blocks and directions."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import SHADES, Picture, left_out, styled, which
from gating.figures.traces import KINDS, kept

BARS = 40  # conditions


def _strengths(run: xr.DataTree) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The conditions that change something: their names, relative change and KL in nats."""
    names = analysis.conditions_of_kind(run, KINDS[1:])[:BARS]
    strengths = analysis.strengths(run, analysis.undisturbed(run)).sel(condition=names)
    shown_names = analysis.shown_names(run)
    return [shown_names[name] for name in names], strengths["change"].values, strengths["kl"].values


@styled
def strength(run: xr.DataTree) -> Figure:
    """How hard each condition pushes, in units that compare."""
    names, change, kl = _strengths(run)
    figure = Figure(figsize=(max(9.5, 8 + 0.085 * max(map(len, names))), 1.4 + 0.28 * len(names)))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(names))
    left.barh(y, change, color=SHADES[1])
    left.set_xlabel("|added| / |h| at the last prompt token,\nlargest over blocks")
    right.barh(y, kl, color=SHADES[0], hatch="//", edgecolor="white")
    right.set_xlabel(f"first-token KL to baseline, nats\n({which(analysis.undisturbed(run))} prompts)")
    left.set_yticks(y, names)
    left.set_ylim(len(names) - 0.4, -0.6)
    return figure


def strengths_in_words(run: xr.DataTree) -> str:
    """Each condition's relative change and KL."""
    return "; ".join(f"{n} {a:.2f} and {b:.2f} nats" for n, a, b in zip(*_strengths(run), strict=True))


FIGURES = (
    Picture(
        "inside",
        "method.md",
        "strength",
        kept("kl", "relative_change"),
        lambda run, harmful: strength(run),
        lambda run, harmful: f"Relative change and first-token KL of each condition: {strengths_in_words(run)}.",
        lambda run: (
            "Strength in units that compare across blocks and directions."
            + left_out(len(analysis.conditions_of_kind(run, KINDS[1:])), BARS)
        ),
    ),
)
