"""Intervals and tests, thin over statsmodels and scipy; all vectorised over arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def wilson(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of k successes in n; NaN where n is 0."""
    k, n = np.broadcast_arrays(np.asarray(k, dtype="float64"), np.asarray(n, dtype="float64"))
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    some = n > 0
    low[some], high[some] = proportion_confint(k[some], n[some], alpha=1 - level, method="wilson")
    return low, high


def paired_difference(
    a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of paired proportions p1 - p2 with the hybrid score interval (Newcombe 1998, Stat. Med. 17:2635,
    method 10). Counts of pairs: a both, b first only, c second only, d neither. NaN where there are no pairs."""
    a, b, c, d = (np.asarray(x, dtype="float64") for x in np.broadcast_arrays(a, b, c, d))
    n = a + b + c + d
    with np.errstate(invalid="ignore", divide="ignore"):
        p1, p2 = (a + b) / n, (a + c) / n
        (l1, u1), (l2, u2) = wilson(a + b, n, level), wilson(a + c, n, level)
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        cross = a * d - b * c
        numerator = np.where(cross > 0, np.maximum(cross - n / 2, 0), cross)  # the continuity correction of method 10
        phi = np.where(margins > 0, numerator / np.sqrt(np.where(margins > 0, margins, 1)), 0.0)
        below = np.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
        above = np.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    difference = p1 - p2
    return difference, difference - below, difference + above


def mcnemar_exact(b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """Two-sided exact McNemar p from the discordant counts; 1 where there are none."""
    b, c = np.broadcast_arrays(np.asarray(b), np.asarray(c))
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(b, c), b + c, 0.5))


def permutation_p(observed: float, null: ArrayLike) -> float:
    """(1 + number of null values at least as large) / (K + 1): K values cannot give less than 1/(K+1) (Phipson and
    Smyth 2010)."""
    null = np.asarray(null, dtype="float64")
    return float((1 + np.sum(null >= observed)) / (null.size + 1))


def holm(p: ArrayLike) -> np.ndarray:
    """p adjusted for the family of all values given (Holm 1979); NaN stays NaN and does not count as a member."""
    p = np.asarray(p, dtype="float64")
    adjusted, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted
