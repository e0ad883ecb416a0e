"""Effects of several models and their mean: a forest plot. It draws an answer of gating.analysis.meta, not a run."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating.figures.base import series, styled, wrapped

WIDTH = 46  # characters of a claim's line


@styled
def forest(ds: xr.Dataset) -> Figure:
    """Each claim's effect on every model with its interval (a dot), the mean over models (a diamond, drawn thick) and
    where another model's is to be expected (dotted). A panel a unit. ds: of gating.analysis.meta.combine."""
    units = list(dict.fromkeys(ds["unit"].values.tolist()))
    parts = [ds.isel(claim=np.flatnonzero(ds["unit"].values == unit)) for unit in units]
    heights = [part.sizes["claim"] * (part.sizes["model"] + 2.0) for part in parts]
    figure = Figure(figsize=(9.0, 1.2 + 0.26 * sum(heights)))
    axes = figure.subplots(len(units), squeeze=False, height_ratios=heights)[:, 0]
    for ax, part, unit in zip(axes, parts, units, strict=True):
        _panel(ax, part, unit)
    handles, names = axes[0].get_legend_handles_labels()
    shown = dict(zip(names, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3)
    return figure


def _panel(ax: Axes, ds: xr.Dataset, unit: str) -> None:
    scale = 100 if unit == "points" else 1
    models, step = ds["model"].values.tolist(), ds.sizes["model"] + 2.0
    ax.axvline(0, color="#000000", lw=0.8)
    ticks: list[tuple[float, str]] = []
    for i, name in enumerate(ds["claim"].values.tolist()):
        claim, top = ds.sel(claim=name), i * step
        for j, model in enumerate(models):
            own = claim.sel(model=model)
            _interval(ax, own, ("effect", "effect_low", "effect_high"), scale, top + j, j, model)
        y = top + len(models)
        _mean(ax, claim, scale, y)
        ticks.append((top + len(models) / 2, wrapped(str(claim["says"].item()), WIDTH)))
        ax.axhline(y + 0.9, color="#DDDDDD", lw=0.6)
    ax.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize="small")
    ax.set_ylim(ds.sizes["claim"] * step - 0.9, -0.9)
    ax.set_xlabel("contrast, points" if unit == "points" else f"contrast, {unit}")


def _interval(
    ax: Axes, of: xr.Dataset, names: tuple[str, str, str], scale: float, y: float, i: int, label: str
) -> None:
    middle, low, high = (scale * float(of[n]) for n in names)
    look = series(i)
    counted = bool(np.isfinite(float(of["effect_se"])))  # hollow: not part of the mean
    ax.plot([low, high], [y, y], color=look["color"], lw=1.2)
    ax.plot([middle], [y], color=look["color"], marker=look["marker"], ls="", ms=5, label=label,
            mfc=look["color"] if counted else "#FFFFFF")  # fmt: skip


def _mean(ax: Axes, claim: xr.Dataset, scale: float, y: float) -> None:
    middle, low, high, least, most = (
        scale * float(claim[n]) for n in ("estimate", "low", "high", "predict_low", "predict_high")
    )
    ax.plot([least, most], [y, y], color="#000000", lw=1, ls=":")
    ax.plot([low, high], [y, y], color="#000000", lw=2.5)
    ax.plot([middle], [y], color="#000000", marker="D", ls="", ms=6, label="mean over models")
