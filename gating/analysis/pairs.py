"""Two answers to each of the same prompts: how often only one of them has a label."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gating.analysis import stats


class Pairs(NamedTuple):
    """Of pairs along the last axis: difference of rates, own - reference, low, high (Newcombe, method 10), p (exact
    McNemar), b and c (only the own, only the reference has the label), n pairs. NaN where there are none."""

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    b: np.ndarray
    c: np.ndarray
    n: np.ndarray


def pairs(own: np.ndarray, reference: np.ndarray, present: np.ndarray, level: float = 0.95) -> Pairs:
    """own, reference: boolean [..., prompt], whether the answer has the label; present: whether both are there."""
    a, b, c, d = ((present & x & y).sum(-1) for x, y in
                  ((own, reference), (own, ~reference), (~own, reference), (~own, ~reference)))  # fmt: skip
    n = a + b + c + d
    difference, low, high = stats.paired_difference(a, b, c, d, level)
    return Pairs(difference, low, high, np.where(n > 0, stats.mcnemar_exact(b, c), np.nan), b, c, n)
