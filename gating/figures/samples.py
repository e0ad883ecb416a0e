"""Sampled answers beside greedy ones."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis.wording import percent
from gating.figures.base import KIND_COLOURS, Picture, left_out, legend, percent_axis, styled, tall_figure, which

MOST = 40  # conditions in one picture


@styled
def sampled(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Each condition's refusal rate among sampled answers with its interval over prompts, and the greedy rate."""
    ds = analysis.sampled_rates(run, harmful=harmful).isel(condition=slice(MOST))
    shown = analysis.shown_names(run)
    names = [shown[n] for n in ds["condition"].values.tolist()]
    figure, ax = tall_figure(len(names), max(map(len, names)))
    y = np.arange(len(names))
    rate, low, high = (100 * ds[v].values for v in ("rate", "low", "high"))
    ax.errorbar(rate, y, xerr=np.maximum([rate - low, high - rate], 0), fmt="o", color=KIND_COLOURS["steered"],
                label="sampled answers")  # fmt: skip
    ax.plot(100 * ds["greedy"], y, "x", color=KIND_COLOURS["baseline"], label="greedy answers, the same prompts")
    ax.set_yticks(y, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    percent_axis(ax, f"refusal, % of {which(harmful)} prompts")
    return legend(figure, 2)


def sampled_in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each condition's sampled and greedy rate, and how many prompts' samples disagree."""
    ds = analysis.sampled_rates(run, harmful=harmful).isel(condition=slice(MOST))
    said = []
    for name in ds["condition"].values.tolist():
        one = ds.sel(condition=name)
        if int(one["n"]) >= 2:
            ends = f"[{100 * float(one['low']):.0f}, {100 * float(one['high']):.0f}]"
            said.append(
                f"{name} {percent(one['rate'])} {ends}, greedy {percent(one['greedy'])}, samples of "
                f"{percent(one['divided'])} of {int(one['n'])} prompts disagree"
            )
    return "; ".join(said) or "missing"


FIGURES = (
    Picture(
        "outcomes",
        "statistics.md",
        "sampled",
        lambda run: "samples" in run.children,
        sampled,
        lambda run, harmful: f"Refusal among sampled answers and greedy ones: {sampled_in_words(run, harmful)}.",
        lambda run: (
            f"Answers drawn at temperature {float(run['samples'].attrs['temperature']):g} (top_p "
            f"{float(run['samples'].attrs['top_p']):g}), {run['samples'].sizes['sample']} a prompt, beside the greedy "
            "one. Intervals are over prompts: more answers to the same prompts do not narrow them without end."
            + left_out(run["conditions"].sizes["condition"], MOST)
        ),
    ),
)
