"""The steered conditions as a grid: which of their axes vary, and the conditions at each setting of some axes."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from gating import analysis
from gating.steering.interventions import AXES

Setting = dict[str, str | float]


def steered(run: xr.DataTree) -> xr.Dataset:
    """The rows of /conditions that are steered, without their controls."""
    conditions = analysis.read_group(run, "conditions")
    return conditions.isel(condition=conditions["kind"].values == "steered")


def varying(conditions: xr.Dataset, besides: Sequence[str] = (), more_than: int = 1) -> list[str]:
    """The axes along which these conditions have more than so many values, in the order of AXES."""
    return [a for a in AXES if a not in besides and len(set(conditions[a].values.tolist())) > more_than]


def settings(conditions: xr.Dataset, axes: Sequence[str]) -> list[tuple[Setting, xr.Dataset]]:
    """The conditions apart for each combination of values along `axes`, in order of appearance."""
    points = list(zip(*(conditions[a].values.tolist() for a in axes), strict=True))
    if not axes:
        return [({}, conditions)] if conditions.sizes["condition"] else []
    return [
        (dict(zip(axes, point, strict=True)), conditions.isel(condition=[p == point for p in points]))
        for point in dict.fromkeys(points)
    ]


def title(setting: Setting) -> str:
    """A setting in words: `direction compliant, coef 2`."""
    return ", ".join(
        f"{axis} {value:g}" if isinstance(value, float) else f"{axis} {value}" for axis, value in setting.items()
    )


def ordered(conditions: xr.Dataset, axis: str) -> list[str | float]:
    """The values that an axis has, in the order of an axis: layer windows by the first block that they write."""
    if axis == "layers":
        written = conditions["iv_written"].any("intervention").values.argmax(-1)
        first = dict(zip(conditions["layers"].values.tolist(), written.tolist(), strict=True))
        return sorted(first, key=lambda window: (first[window], window))
    values = set(conditions[axis].values.tolist())
    if conditions[axis].dtype.kind in "fi":
        return sorted(values)
    return sorted(values, key=lambda v: v.zfill(4) if v.isdigit() else v)  # `read` may be a block


def names(conditions: xr.Dataset) -> list[str]:
    return conditions["condition"].values.tolist()
