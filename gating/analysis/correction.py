"""Rates corrected for a judge's error by a person's labels of some answers: prediction-powered inference, numbers only.

With f_i what the judge says of answer i (1 where it has the label), y_i what the person says, and w_i one over the
probability that answer i was drawn to be read, the mean of y over all n answers is estimated by

    theta = mean(c f) + sum over read of w (y - c f) / sum over read of w

which no error of the judge biases, whatever it depends on (Angelopoulos et al. 2023, arXiv 2301.09633). The factor c in
[0, 1] says how far the judge is used; the best one is the slope of y on f (PPI++, arXiv 2311.01453), here of all
conditions together, so that few labels do not choose it. The answers read are some of those judged (two-phase
sampling: Sarndal, Swensson and Wretman 1992, section 9.8): the error is that of each prompt's influence on theta, and
a contrast's that of its influence on both conditions, so that a prompt's answers may depend on each other.

Two pseudo-answers, read as 1 where the judge says 0 and as 0 where it says 1, keep a few answers on which judge and
person agree from claiming a judge without error (as the pseudo-prompts of stats.Mean do).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

PSEUDO = 2


class Estimate(NamedTuple):
    """Corrected means [...], and what their errors are made of."""

    value: np.ndarray  # theta [...]
    centre: np.ndarray  # theta with the pseudo-answers [...]
    influence: np.ndarray  # of each prompt on the centre [..., prompt]
    pseudo: np.ndarray  # the pseudo-answers' part of the variance [...]
    n: np.ndarray  # answers judged [...]
    read: np.ndarray  # of those, answers that a person labelled, as each prompt's flag [..., prompt]

    def interval(self, level: float, least: float, most: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """The ends of an interval about the centre that holds the value, in [least, most]: t, with the prompts read and
        the pseudo-answers, less one, as degrees of freedom. NaN below two prompts read."""
        k = self.read.sum(-1)
        error = np.sqrt((self.influence**2).sum(-1) + self.pseudo)
        reach = error * t.ppf((1 + level) / 2, np.where(k > 1, k + PSEUDO - 1.0, np.nan))
        low, high = np.minimum(self.centre - reach, self.value), np.maximum(self.centre + reach, self.value)
        return np.clip(low, least, most), np.clip(high, least, most)


def combined(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """A sum of conditions' means with these weights, all on the same prompts."""

    def total(field: str, power: int = 1) -> np.ndarray:
        return np.sum([w**power * getattr(e, field) for e, w in zip(estimates, weights, strict=True)], axis=0)

    read = np.any(np.broadcast_arrays(*(e.read for e in estimates)), axis=0)
    return Estimate(total("value"), total("centre"), total("influence"), total("pseudo", 2), estimates[0].n, read)


def use_of_judge(judged: np.ndarray, read: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """c [...]: the slope of y on f within conditions, over all of them, within [0, 1]; 1 where the judge says the same
    of every answer read.

    judged, read: 0 or 1, NaN where missing; weight: NaN where an answer was not drawn; all [..., condition, prompt].
    """
    seen = np.isfinite(judged) & np.isfinite(read) & np.isfinite(weight)
    w = np.where(seen, weight, 0.0).astype("float64")
    total = np.maximum(w.sum(-1, keepdims=True), 1e-300)
    f, y = (np.where(seen, x, 0.0) for x in (judged, read))
    f_off, y_off = (np.where(seen, x - (w * x).sum(-1, keepdims=True) / total, 0.0) for x in (f, y))
    across, own = ((w * f_off * x).sum((-2, -1)) for x in (y_off, f_off))
    return np.where(own > 1e-12, np.clip(across / np.where(own > 1e-12, own, 1.0), 0.0, 1.0), 1.0)


def corrected(judged: np.ndarray, read: np.ndarray, weight: np.ndarray, c: np.ndarray) -> Estimate:
    """The corrected mean over prompts. judged, read, weight: as in `use_of_judge`, [..., prompt]; c: [...].

    A prompt without a judge's label counts nowhere. NaN where nothing was read.
    """
    present = np.isfinite(judged)
    seen = present & np.isfinite(read) & np.isfinite(weight)
    n, k = present.sum(-1), seen.sum(-1)
    c = np.asarray(c)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        f = np.where(present, c * np.nan_to_num(judged), 0.0)
        mean = f.sum(-1) / n
        w = np.where(seen, weight, 0.0)
        w = w / w.sum(-1, keepdims=True)
        residual = np.where(seen, read - f, 0.0)
        shrunk = w * (k / (k + PSEUDO))[..., None]
        ends = np.stack([np.ones_like(c[..., 0]), -c[..., 0]])  # what a residual can be at most and at least
        off = (shrunk * residual).sum(-1) + ends.sum(0) / (k + PSEUDO)
        influence = np.where(present, (f - mean[..., None]) / n[..., None], 0.0)
        influence = influence + np.where(seen, shrunk * (residual - off[..., None]), 0.0)
        pseudo = ((ends - off) ** 2).sum(0) / (k + PSEUDO) ** 2
        value = mean + (w * residual).sum(-1)
    return Estimate(value, mean + off, influence, pseudo, n, seen)
