"""Dose response: rates against one axis of the grid, and which axes are worth a picture."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import first_block, legend, series, which
from gating.steering.interventions import AXES

MOST = 10  # lines
CLOSE = 0.06  # of the axis: nearer values would write over each other, so that all are spaced evenly


def varied(run: xr.DataTree) -> list[str]:
    """Settings of which the steered conditions have more than two values: the axes worth a dose-response picture."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=(about["kind"] == "steered").values)
    return [a for a in AXES if len(set(steered[a].values.tolist())) > 2]


def _others(run: xr.DataTree, axis: str) -> list[str]:
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=(about["kind"] == "steered").values)
    return [a for a in AXES if a != axis and len(set(steered[a].values.tolist())) > 1]


def settings(run: xr.DataTree, axis: str) -> list[tuple]:
    """Each combination of the other axes that vary: a line of the picture."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=(about["kind"] == "steered").values)
    return list(dict.fromkeys(zip(*(steered[a].values.tolist() for a in _others(run, axis)), strict=True))) or [()]


def dose(run: xr.DataTree, axis: str, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates against one axis: a line for each setting of the other axes, the random controls in
    grey, the baseline as a dashed line."""
    r = analysis.rates(run, harmful=harmful)
    kinds = r["kind"].values
    figure = Figure(figsize=(7.5, 6.2), layout="constrained", dpi=150)
    numeric = r[axis].dtype.kind in "fi"
    values = sorted(set(r[axis].values[kinds == "steered"].tolist()), key=lambda v: v if numeric else first_block(v))
    near = numeric and min(np.diff(values), default=1.0) < CLOSE * (values[-1] - values[0])
    place = {v: v if numeric and not near else i for i, v in enumerate(values)}
    steered_at = r["grid"].values[kinds == "steered"]  # named conditions have random controls too, off these axes
    others = _others(run, axis)
    for ax, label in zip(
        figure.subplots(2, 1, sharex=True, height_ratios=[3, 2]), ("refusal", "degenerate"), strict=True
    ):
        one = r.sel(label=label)
        ax.axhline(100 * float(one["rate"].sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
        rand = one.isel(condition=(kinds == "random") & np.isin(one["grid"].values, steered_at))
        ax.plot(
            [place[v] for v in rand[axis].values.tolist()],
            100 * rand["rate"].values,
            ".",
            color="#8C8C8C",
            label="random directions" if rand.sizes["condition"] else None,
            zorder=4,
        )
        steered = one.isel(condition=kinds == "steered")
        groups = settings(run, axis)
        for i, group in enumerate(groups[:MOST]):
            keep = np.ones(steered.sizes["condition"], dtype=bool)
            for a, v in zip(others, group, strict=True):
                keep &= steered[a].values == v
            line = steered.isel(condition=keep)
            x, look = np.array([place[v] for v in line[axis].values.tolist()]), series(i)
            order = np.argsort(x)
            name = (
                ", ".join(
                    f"{a} {v:g}" if isinstance(v, float) else f"{a} {v}" for a, v in zip(others, group, strict=True)
                )
                or "steered"
            )
            ax.plot(x[order], 100 * line["rate"].values[order], **look, label=name)
            ax.fill_between(
                x[order],
                100 * line["low"].values[order],
                100 * line["high"].values[order],
                color=look["color"],
                alpha=0.15,
                lw=0,
            )
        ax.set_ylim(-3, 103)
        ax.set_ylabel(f"{label}, %")
        ax.spines[["top", "right"]].set_visible(False)
    spaced = ", evenly spaced" if near else ""
    ax.set_xlabel(f"steer.{axis}{spaced} ({which(harmful)} prompts; bands are 95% Wilson intervals)")
    ax.set_xticks([place[v] for v in values], [f"{v:g}" if numeric else str(v) for v in values])
    return legend(figure)
