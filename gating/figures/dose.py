"""Dose response: rates against one axis of the grid, and which axes are worth a picture."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.figures import grids
from gating.figures.base import KIND_COLOURS, Look, Picture, left_out, legend, series, styled, which
from gating.steering.interventions import AXES

MOST = 10  # lines
CLOSE = 0.06  # of the axis: nearer values would write over each other, so that all are spaced evenly


def varied(run: xr.DataTree) -> list[str]:
    """Settings of which the steered conditions have more than two values: the axes worth a dose-response picture."""
    return grids.varying(grids.steered(run), more_than=2)


def settings(run: xr.DataTree, axis: str) -> list[tuple[grids.Setting, xr.Dataset]]:
    """Each combination of the other axes that vary, with its conditions: a line of the picture."""
    steered = grids.steered(run)
    return grids.settings(steered, grids.varying(steered, besides=(axis,)))


@styled
def dose(run: xr.DataTree, axis: str, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates against one axis: a line for each setting of the other axes, the random controls in
    grey, the baseline as a dashed line."""
    rates, steered = analysis.rates(run, harmful=harmful), grids.steered(run)
    values = grids.ordered(steered, axis)
    numbers = [v for v in values if not isinstance(v, str)]
    near = bool(numbers) and min(np.diff(numbers), default=1.0) < CLOSE * (numbers[-1] - numbers[0])
    place = {v: v if numbers and not near else i for i, v in enumerate(values)}
    # named conditions have random controls too, off these axes
    random = (rates["kind"].values == "random") & np.isin(rates["grid"].values, steered["grid"].values)
    figure = Figure(figsize=(7.5, 6.2))
    axes = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for ax, label in zip(axes, ("refusal", "degenerate"), strict=True):
        rate = rates.sel(label=label)
        ax.axhline(
            100 * float(rate["rate"].sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline"
        )
        controls = rate.isel(condition=random)
        at = [place[v] for v in controls[axis].values.tolist()]
        shown = "random directions" if at else None
        ax.plot(at, 100 * controls["rate"].values, ".", color=KIND_COLOURS["random"], label=shown, zorder=4)
        for i, (setting, conditions) in enumerate(settings(run, axis)[:MOST]):
            at = [place[v] for v in conditions[axis].values.tolist()]
            _line(
                ax,
                np.array(at),
                rate.sel(condition=grids.names(conditions)),
                series(i),
                grids.title(setting) or "steered",
            )
        ax.set_ylim(-3, 103)
        ax.set_ylabel(f"{label}, %")
    spaced = ", evenly spaced" if near else ""
    axes[-1].set_xlabel(f"steer.{axis}{spaced} ({which(harmful)} prompts; bands are 95% Wilson intervals)")
    axes[-1].set_xticks([place[v] for v in values], [v if isinstance(v, str) else f"{v:g}" for v in values])
    return legend(figure)


def _line(ax: Axes, x: np.ndarray, rate: xr.Dataset, look: Look, name: str) -> None:
    """A setting's rates in percent with their band. x: the place of each condition of `rate`."""
    order = np.argsort(x)
    share, low, high = (100 * rate[v].values[order] for v in ("rate", "low", "high"))
    ax.plot(x[order], share, **look, label=name)
    ax.fill_between(x[order], low, high, color=look["color"], alpha=0.15, lw=0)


def _picture(axis: str) -> Picture:
    return Picture(
        f"dose_{axis}",
        lambda run: axis in varied(run),
        lambda run, harmful: dose(run, axis, harmful),
        lambda run, harmful: (
            f"Refusal and degenerate rates against steer.{axis}, with the baseline and the random controls; the "
            "numbers are in the table."
        ),
        lambda run: (
            f"Dose response along steer.{axis}: a fall in refusal counts only where degenerate answers stay few."
            + left_out(len(settings(run, axis)), MOST, "settings")
        ),
    )


FIGURES = tuple(map(_picture, AXES))
