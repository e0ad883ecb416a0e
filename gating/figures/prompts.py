"""Against oneself: each prompt's refusal score before and under a condition."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.figures.base import SHADES, conditions, wrapped

MOST = 12  # panels


def scores(run: xr.DataTree, harmful: bool | None) -> xr.DataArray:
    """First-token refusal score in nats, [condition, prompt], of the prompts asked for; NaN where missing."""
    return analysis.group(run, "outcomes")["refusal_score"].isel(prompt=analysis.asked(run, harmful))


def moved_against(own: np.ndarray, base: np.ndarray) -> float:
    """Share of prompts whose score moved against the mean move (Tan et al. 2024, arXiv 2407.12404: steering is not the same
    for every prompt); NaN where no prompt has both."""
    moved = (own - base)[np.isfinite(own - base)]
    return float(np.mean(np.sign(moved) == -np.sign(moved.mean()))) if moved.size else np.nan


def per_prompt(run: xr.DataTree, harmful: bool | None) -> Figure:
    """A panel for each of the first steered and named conditions: every prompt's score at baseline against its score there;
    on the diagonal nothing changed."""
    score = scores(run, harmful)
    names = conditions(run, ("steered", "named"))[:MOST]
    columns = min(3 if len(names) <= 6 else 4, len(names))
    rows = -(-len(names) // columns)
    made = Figure(figsize=(11 / max(columns, 3) * columns, 3.2 * rows), layout="constrained", dpi=150)
    base = score.sel(condition="baseline").values
    axes = made.subplots(rows, columns, squeeze=False)
    drawn = score.sel(condition=["baseline", *names]).values
    ends = [float(np.nanmin(drawn)), float(np.nanmax(drawn))] if np.isfinite(drawn).any() else [0.0, 1.0]
    margin = 0.05 * (ends[1] - ends[0]) or 0.5
    for name, ax in zip(names, axes.flat, strict=False):
        own = score.sel(condition=name).values
        against = moved_against(own, base)
        ax.plot(ends, ends, "-", color="#999999", lw=0.8)
        ax.plot(base, own, "o", color=SHADES[0], ms=3.5, alpha=0.6, mec="none")
        for axis, put in ((ax.xaxis, ax.set_xlim), (ax.yaxis, ax.set_ylim)):
            axis.set_major_locator(MaxNLocator(4, integer=True))
            put(ends[0] - margin, ends[1] + margin)
        note = "missing" if np.isnan(against) else f"{100 * against:.0f}% moved the other way"
        ax.set_title(f"{wrapped(name, 34 if columns > 3 else 44)}\n{note}", fontsize="small", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    made.supxlabel("refusal score at baseline, nats", fontsize="small")
    made.supylabel("under the condition", fontsize="small")
    return made


def said(run: xr.DataTree, harmful: bool | None) -> str:
    """The picture in words: each condition's mean change in nats, and the share that moved against it."""
    score = scores(run, harmful)
    base = score.sel(condition="baseline").values
    out = []
    for name in conditions(run, ("steered", "named"))[:MOST]:
        moved = score.sel(condition=name).values - base
        against = moved_against(score.sel(condition=name).values, base)
        out.append(f"{name} missing" if np.isnan(against) else
                   f"{name} {np.nanmean(moved):+.1f} nats, {100 * against:.0f}% the other way")  # fmt: skip
    return "; ".join(out)
