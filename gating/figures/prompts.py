"""Prompt by prompt: the refusal score of each at baseline and under a condition."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.figures.base import SHADES, Picture, left_out, panel_figure, spaced, styled, wrapped

MOST = 12  # panels
KINDS = ("steered", "named")


def scores(run: xr.DataTree, harmful: bool | None) -> xr.DataArray:
    """First-token refusal score in nats, [condition, prompt], of the prompts asked for; NaN where missing."""
    return analysis.read_group(run, "outcomes")["refusal_score"].isel(prompt=analysis.asked(run, harmful))


def moved_against(own: np.ndarray, base: np.ndarray) -> float:
    """Share of prompts whose score moved against the mean move (Tan et al. 2024, arXiv 2407.12404: steering is not the
    same for every prompt); NaN where no prompt has both."""
    moved = (own - base)[np.isfinite(own - base)]
    return float(np.mean(np.sign(moved) == -np.sign(moved.mean()))) if moved.size else np.nan


@styled
def per_prompt(run: xr.DataTree, harmful: bool | None) -> Figure:
    """A panel for each of the first steered and named conditions: every prompt's score at baseline against its score
    there; on the diagonal nothing changed."""
    score, shown = scores(run, harmful), analysis.shown_names(run)
    names = analysis.conditions_of_kind(run, KINDS)[:MOST]
    columns = min(3 if len(names) <= 6 else 4, len(names))
    size = 11 / max(columns, 3) * columns, 3.2 * -(-len(names) // columns)
    figure, axes = panel_figure(len(names), columns, size)
    base = score.sel(condition="baseline").values
    drawn = score.sel(condition=["baseline", *names]).values
    ends = [float(np.nanmin(drawn)), float(np.nanmax(drawn))] if np.isfinite(drawn).any() else [0.0, 1.0]
    margin = 0.05 * (ends[1] - ends[0]) or 0.5
    for name, ax in zip(names, axes, strict=True):
        own = score.sel(condition=name).values
        against = moved_against(own, base)
        ax.plot(ends, ends, "-", color="#999999", lw=0.8)
        ax.plot(base, own, "o", color=SHADES[0], ms=3.5, alpha=0.6, mec="none")
        ax.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(ends[0] - margin, ends[1] + margin))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
        note = "missing" if np.isnan(against) else f"{100 * against:.0f}% moved the other way"
        ax.set_title(f"{wrapped(shown[name], 34 if columns > 3 else 44)}\n{note}", fontsize="small")
    spaced(figure, -(-len(names) // columns), columns, (0.3, 0.75), (0.75, 0.1, 0.6, 0.6))
    figure.supxlabel("refusal score at baseline, nats", fontsize="small", y=0.1 / figure.get_figheight())
    figure.supylabel("under the condition", fontsize="small", x=0.08 / figure.get_figwidth())
    return figure


def in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each condition's mean change in nats, and the share of prompts that moved against it."""
    score, shown = scores(run, harmful), analysis.shown_names(run)
    base = score.sel(condition="baseline").values
    out = []
    for name in analysis.conditions_of_kind(run, KINDS)[:MOST]:
        own = score.sel(condition=name).values
        against = moved_against(own, base)
        moved = f"{np.nanmean(own - base):+.1f} nats, {100 * against:.0f}% the other way" if against >= 0 else "missing"
        out.append(f"{shown[name]} {moved}")
    return "; ".join(out)


def has_scores(run: xr.DataTree) -> bool:
    """Whether a condition was run that changes something, and a score is there."""
    scored = np.isfinite(analysis.read_group(run, "outcomes")["refusal_score"]).any()
    return bool(scored) and bool(analysis.conditions_of_kind(run, KINDS))


FIGURES = (
    Picture(
        "outcomes",
        "method.md#conventions",
        "prompts",
        has_scores,
        per_prompt,
        lambda run, harmful: (
            f"First-token refusal score of each prompt at baseline and under a condition: {in_words(run, harmful)}."
        ),
        lambda run: (
            "Prompt by prompt: above the line refusal is likelier than at baseline."
            + left_out(len(analysis.conditions_of_kind(run, KINDS)), MOST)
        ),
    ),
)
