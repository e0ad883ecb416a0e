"""Dose response: rates against one axis of the grid, and which axes are worth a picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.figures import grids
from gating.figures.base import (
    KIND_COLOURS,
    LABEL_COLOURS,
    Look,
    Picture,
    band,
    left_out,
    panel_figure,
    spaced,
    styled,
    which,
)
from gating.steering.interventions import AXES

MOST = 12  # panels
CLOSE = 0.06  # of the axis: nearer values would write over each other, so that all are spaced evenly
LOOKS: dict[str, Look] = {
    "refusal": {"color": KIND_COLOURS["steered"], "ls": "-", "marker": "o"},
    "degenerate": {"color": LABEL_COLOURS["degenerate"], "ls": ":", "marker": "x"},
}


def varied(run: xr.DataTree) -> list[str]:
    """Settings of which the steered conditions have more than two values: the axes worth a dose-response picture."""
    return grids.varying(grids.steered(run), more_than=2)


def settings(run: xr.DataTree, axis: str) -> list[tuple[grids.Setting, xr.Dataset]]:
    """Each combination of the other axes that vary, with its conditions: a panel of the picture."""
    steered = grids.steered(run)
    return grids.settings(steered, grids.varying(steered, besides=(axis,)))


@styled
def dose(run: xr.DataTree, axis: str, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates against one axis: a panel for each setting of the other axes, the refusal of its
    random controls in grey and of the baseline as a dashed line."""
    rates, steered = analysis.rates(run, harmful=harmful), grids.steered(run)
    values = grids.ordered(steered, axis)
    numbers = [v for v in values if not isinstance(v, str)]
    near = bool(numbers) and min(np.diff(numbers), default=1.0) < CLOSE * (numbers[-1] - numbers[0])
    place = {v: float(v) if numbers and not near else float(i) for i, v in enumerate(values)}
    parts = settings(run, axis)[:MOST]
    columns = min(2 if len(parts) == 4 else 3, len(parts))
    rows = -(-len(parts) // columns)
    size = (7.5, 4.6) if columns == 1 else (4.0 * columns, 1.2 + 2.4 * rows)
    figure, axes = panel_figure(len(parts), columns, size)
    ticks = [v if isinstance(v, str) else f"{v:g}" for v in values]
    crowded = len(ticks) * max(map(len, ticks)) > (60 if columns == 1 else 26)
    for i, (ax, (setting, conditions)) in enumerate(zip(axes, parts, strict=True)):
        _panel(ax, rates, conditions, place, axis)
        ax.set_title(grids.title(setting), fontsize="small")
        ax.set_ylim(-3, 103)
        ax.set_xticks([place[v] for v in values], ticks, rotation=90 if crowded else 0)
        ax.tick_params(labelbottom=i + columns >= len(parts))
        if i % columns:
            ax.tick_params(labelleft=False)
    low = 0.55 + (0.085 * max(map(len, ticks)) if crowded else 0.15)
    spaced(figure, rows, columns, (0.2, 0.35), (0.75, 0.1, 0.6, low))
    figure.supylabel(f"% of {which(harmful)} prompts", fontsize="medium", x=0.08 / size[0])
    words = f"steer.{axis}{', evenly spaced' if near else ''} (bands: 95% Wilson intervals)"
    figure.supxlabel(words, fontsize="medium", y=0.1 / size[1])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=4)
    return figure


def _panel(ax: Axes, rates: xr.Dataset, conditions: xr.Dataset, place: Mapping[str | float, float], axis: str) -> None:
    """A setting's rates in percent with their bands. place: where each value of the axis stands."""
    baseline = float(rates["rate"].sel(condition="baseline", label="refusal"))
    ax.axhline(100 * baseline, color="#000000", ls="--", lw=1, label="baseline, refusal")
    own = (rates["kind"].values == "random") & np.isin(rates["grid"].values, conditions["grid"].values)
    controls = rates.sel(label="refusal").isel(condition=own)
    ax.plot([place[v] for v in controls[axis].values.tolist()], 100 * controls["rate"].values, ".",
            color=KIND_COLOURS["random"], label="random directions, refusal", zorder=4)  # fmt: skip
    at = np.array([place[v] for v in conditions[axis].values.tolist()])
    order = np.argsort(at)
    for label, look in LOOKS.items():
        rate = rates.sel(label=label, condition=grids.names(conditions)).isel(condition=order)
        ax.plot(at[order], 100 * rate["rate"], **look, ms=5, label=label)
        band(ax, at[order], 100 * rate["low"].values, 100 * rate["high"].values, look, label)


def _picture(axis: str) -> Picture:
    return Picture(
        "dose",
        "method.md#choosing-sites",
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
