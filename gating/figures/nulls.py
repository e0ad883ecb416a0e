"""Against chance: each condition among all of its random controls."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis import stats
from gating.figures.base import KIND_COLOURS, which

MOST = 24


def strip(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of each condition beside every one of its random controls (a dot each), with `unusual`'s p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    lines = analysis.controlled(run)[:MOST]
    own = [name for name, _ in lines if name in rate["condition"].values]
    longest = max(len(name) for name, _ in lines)
    made = Figure(figsize=(max(8.5, 6.5 + 0.085 * longest), 1.5 + 0.42 * len(lines)), layout="constrained", dpi=150)
    ax = made.add_subplot()
    ax.axvline(float(rate.sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
    for y, (name, null) in enumerate(lines):
        values = rate.sel(condition=null).values
        ax.plot(values, y + np.linspace(-0.25, 0.25, len(values)), ".", color=KIND_COLOURS["random"], ms=6,
                label="random directions, one a dot" if y == 0 else None)  # fmt: skip
        if name not in own:
            continue
        value = float(rate.sel(condition=name))
        ax.plot(
            [value], [y], "o", color=KIND_COLOURS["steered"], ms=8, label="the condition" if name == own[0] else None
        )
        p, k = stats.unusual(value, values)
        ax.text(104, y, "missing" if np.isnan(p) else f"p = {p:.2f} (K = {k})", va="center", fontsize="x-small")
    ax.set_yticks(range(len(lines)), [name for name, _ in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-3, 103)
    ax.set_xlabel(f"refusal, % of {which(harmful)} prompts")
    ax.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return made


def said(run: xr.DataTree, harmful: bool | None) -> str:
    """The picture in words: each condition's rate, the range of its controls, p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    out = []
    for name, null in analysis.controlled(run)[:MOST]:
        values = rate.sel(condition=null).values
        if not np.isfinite(values).any():
            continue
        ends = f"{len(null)} random directions {np.nanmin(values):.0f}% to {np.nanmax(values):.0f}%"
        if name not in rate["condition"].values:
            out.append(f"{name}: {ends}")
            continue
        value = float(rate.sel(condition=name))
        out.append(
            f"{name}: {value:.0f}%, {ends}, p = {stats.unusual(value, values)[0]:.2f}"
            if np.isfinite(value)
            else f"{name}: missing, {ends}"
        )
    return "; ".join(out)
