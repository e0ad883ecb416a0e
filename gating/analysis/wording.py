"""Numbers as text: shares, intervals, differences in points, p values. `missing` where there is no number."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

MISSING = "missing"


def percent(value: ArrayLike, digits: int = 0) -> str:
    """A share as text; one that is not quite 0 or 1 is never rounded to 0% or 100%."""
    share = float(np.asarray(value))
    if np.isnan(share):
        return MISSING
    least = 10.0**-digits
    if share > 0 and round(100 * share, digits) == 0:
        return f"<{least:.{digits}f}%"
    if share < 1 and round(100 * share, digits) == 100:
        return f">{100 - least:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def interval(rate: xr.Dataset, digits: int = 0) -> str:
    """A condition's rate with its interval, `25% [5, 70]`. rate: rate, low, high, n, each a single value."""
    if int(rate["n"]) == 0:
        return MISSING
    low, high = (f"{100 * float(rate[v]):.{digits}f}" for v in ("low", "high"))
    return f"{percent(rate['rate'], digits)} [{low}, {high}]"


def points(effect: xr.Dataset, digits: int = 0) -> str:
    """A condition's contrast in points, `-75 [-95, -10]`. effect: difference, low, high, n, each a single value."""
    if int(effect["n"]) == 0:
        return MISSING
    difference, low, high = (signed(float(effect[v]), digits) for v in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def signed(share: float, digits: int = 0) -> str:
    """A difference of shares in points, with its sign."""
    return plus_minus(100 * share, digits)


def plus_minus(value: float, digits: int) -> str:
    """A number with its sign; what rounds to nothing has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def p_value(p: float) -> str:
    return MISSING if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def share_range(shares: list[float]) -> str:
    """The least and the largest of some shares, `0% to 29%`."""
    known = [s for s in shares if not np.isnan(s)]
    if not known:
        return MISSING
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"
