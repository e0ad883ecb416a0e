"""Intervals and tests, thin over statsmodels and scipy; all vectorised over arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom, bootstrap, norm, t
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint


def wilson(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of k successes in n; NaN where n is 0."""
    k, n = np.broadcast_arrays(np.asarray(k, dtype="float64"), np.asarray(n, dtype="float64"))
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    counted = n > 0
    low[counted], high[counted] = proportion_confint(k[counted], n[counted], alpha=1 - level, method="wilson")
    return np.where(counted & (k == 0), 0.0, low), np.where(counted & (k == n), 1.0, high)  # not 7e-18


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
    Smyth 2010). Missing values of the null do not count; values equal up to rounding tie; NaN with nothing to compare.
    """
    known = np.asarray(null, dtype="float64")
    known = known[np.isfinite(known)]
    if not np.isfinite(observed) or not known.size:
        return np.nan
    tie = 1e-9 * max(1.0, abs(observed))
    return float((1 + np.sum(known >= observed - tie)) / (known.size + 1))


def unusual(own: float, null: ArrayLike) -> tuple[float, int]:
    """Permutation p of a condition's rate among those of its random controls, either way, and their number K.

    p = (1 + controls at least as far from the mean of all K + 1) / (K + 1). The mean takes the condition in, so that
    under the null each of the K + 1 is as likely as any other to lie farthest; around the controls' own mean p would be
    too small. Missing rates do not count; NaN where the condition's own is missing or it has no controls.
    """
    known = np.asarray(null, dtype="float64")
    known = known[np.isfinite(known)]
    if not np.isfinite(own) or not known.size:
        return np.nan, int(known.size)
    middle = np.append(known, own).mean()
    return permutation_p(abs(own - middle), np.abs(known - middle)), int(known.size)


def holm(p: ArrayLike) -> np.ndarray:
    """p adjusted for the family of all values given (Holm 1979); NaN stays NaN and does not count as a member.

    Ours, and tested against statsmodels: its multipletests collects garbage at every call, which takes most of the time
    of deciding a family.
    """
    p = np.asarray(p, dtype="float64")
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


@dataclass(frozen=True)
class Mean:
    """The mean of per-prompt values d in [-bound, bound], with what tests and intervals need.

    estimate is the raw mean. `centre` and the standard errors are those of the sample with two pseudo-prompts, +bound
    and -bound, added: for a difference of paired proportions this is the adjusted Wald interval of Bonett and Price
    (2012, J. Educ. Behav. Stat. 37:479), and it keeps a sample of equal values from claiming certainty. `clustered` is
    the cluster-robust standard error (prompts of one category are alike; Miller 2024, arXiv 2411.00640), with t of C -
    1 degrees of freedom. An unbounded measure (bound None) has no pseudo-prompts.

    Every answer is the most cautious of several: either standard error, about the centre and about the raw mean (near a
    bound the pseudo-prompts pull the centre off it), and the exact binomial test of a contrast whose values have one
    sign. Any one of them alone rejects a true null too often somewhere: 9% instead of 5% at n = 24 and margin 0.8.
    """

    estimate: float
    centre: float
    plain: float  # standard error
    clustered: float  # NaN below two clusters
    n: int
    clusters: int
    bound: float | None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of the mean, within its bounds; NaN where the values do not vary at all."""
        reaches = [scale * _quantile((1 + level) / 2, df) for scale, df in self._scales()]
        ends = [(middle - reach, middle + reach) for reach in reaches for middle in (self.centre, self.estimate)]
        if not ends:
            return np.nan, np.nan
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return (low, high) if self.bound is None else (max(low, -self.bound), min(high, self.bound))

    def p_above(self, value: float) -> float:
        """One-sided p of the null that the mean is at most `value`."""
        return self._p(value, 1.0)

    def p_below(self, value: float) -> float:
        """One-sided p of the null that the mean is at least `value`."""
        return self._p(value, -1.0)

    def p_within(self, margin: float) -> float:
        """TOST: p of the null that the mean lies outside (-margin, margin) (Schuirmann 1987)."""
        return max(self.p_above(-margin), self.p_below(margin))

    def _p(self, value: float, side: float) -> float:
        found = [
            float(t.sf(side * (middle - value) / scale, df))
            for scale, df in self._scales()
            for middle in (self.centre, self.estimate)
        ]
        if not found:
            return 1.0
        return max(*found, self._binomial(value, side))

    def _binomial(self, value: float, side: float) -> float:
        """p as if every value were 0 or the bound on the null's side: exact where that is so, too small elsewhere."""
        if self.bound is None or not value:
            return 0.0
        sign, share = float(np.sign(value)), min(1.0, abs(value) / self.bound)
        hits = sign * self.estimate * self.n / self.bound
        if side == sign:  # shown by many
            return float(binom.sf(np.floor(hits + 1e-9) - 1, self.n, share))
        return float(binom.cdf(np.ceil(hits - 1e-9), self.n, share))

    @property
    def sd(self) -> float:
        """Standard deviation of one prompt that the wider standard error amounts to."""
        return self.se * float(np.sqrt(self.n + 2))

    @property
    def se(self) -> float:
        """The wider standard error; NaN where the values do not vary at all."""
        return max((s for s, _ in self._scales()), default=np.nan)

    def _scales(self) -> list[tuple[float, float]]:
        """Standard errors with their degrees of freedom; one of zero says nothing (all values, or all clusters,
        equal)."""
        return [(s, df) for s, df in ((self.plain, self.n - 1.0), (self.clustered, self.clusters - 1.0)) if s > 1e-12]


@lru_cache(maxsize=256)  # an interval that a test makes asks for the same one again and again
def _quantile(p: float, df: float) -> float:
    """Of Student's t."""
    return float(t.ppf(p, df))


def mean_of(d: ArrayLike, clusters: ArrayLike | None = None, bound: float | None = 1.0) -> Mean:
    """`Mean` of per-prompt values d [prompt], with each prompt's cluster [prompt]. Needs two prompts."""
    d = np.asarray(d, dtype="float64")
    n = d.size
    extra = 0 if bound is None else 2
    m = n + extra
    centre = d.sum() / m
    squares = ((d - centre) ** 2).sum()
    ends = np.zeros(0) if bound is None else np.array([bound - centre, -bound - centre])
    plain = np.sqrt((squares + (ends**2).sum()) / (m if extra else n - 1) / m)
    clustered, count = np.nan, 0
    if clusters is not None:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        count = int(member.max()) + 1
        if 1 < count < n:
            sums = np.bincount(member, weights=d - centre)
            clustered = np.sqrt(count / (count - 1) * ((sums**2).sum() + (ends**2).sum())) / m
    return Mean(float(d.mean()), float(centre), float(plain), float(clustered), n, count, bound)


def edge(refuted: Callable[[float], bool], inside: float, side: float) -> float:
    """The end of an interval that a test makes, from a value inside it: the farthest value on one side (-1 or 1) that
    is not refuted, to a thousandth of its distance; infinite where none is."""
    low, high = 0.0, 1e-3
    while not refuted(inside + side * high):
        low, high = high, 2 * high
        if high > 1e6:
            return side * np.inf
    while high - low > 1e-3 * high and high > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(inside + side * middle) else (middle, high)
    return inside + side * high


def bootstrap_mean(
    d: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, whole clusters drawn (Davison and Hinkley 1997, section 3.8)."""
    d = np.asarray(d, dtype="float64")
    member = np.arange(d.size) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if member.max() < 1:
        return np.nan, np.nan
    sums, counts = np.bincount(member, weights=d), np.bincount(member).astype("float64")
    result = bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=draws,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def n_to_decide(sd: float, distance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Prompts at which a one-sided test finds a mean that lies `distance` from its margin: ((z_a + z_b) sd /
    distance)^2."""
    if not distance:
        return np.inf
    return float(np.ceil(((norm.ppf(1 - alpha) + norm.ppf(power)) * sd / distance) ** 2))


def n_to_show_equal(sd: float, mean: float, margin: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Prompts at which both one-sided tests of TOST reject for a mean within (-margin, margin); infinite on it.

    Both must: at a mean of 0 each has to do so with (1 + power) / 2, which is more prompts than a single test needs.
    """
    near, far, z = margin - abs(mean), margin + abs(mean), norm.ppf(1 - alpha)
    if near <= 0:
        return np.inf

    def lacking(scale: float) -> float:  # power at a standard error of near / scale
        return float(norm.cdf(scale - z) + norm.cdf(far / near * scale - z) - 1 - power)

    return float(np.ceil((brentq(lacking, 0.0, 100.0) * sd / near) ** 2))


def minimum_detectable_difference(n: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference of paired proportions that McNemar's test finds with `power` among n pairs of which a
    share `discordance` differ (Connor 1987, Biometrics 43:207); NaN where even all discordant pairs one way do not
    do."""

    def lacking(delta: float) -> float:
        need = norm.ppf(1 - alpha / 2) * np.sqrt(discordance) + norm.ppf(power) * np.sqrt(
            max(discordance - delta**2, 0)
        )
        return need - delta * np.sqrt(n)

    return float(brentq(lacking, 1e-9, discordance)) if lacking(discordance) < 0 else np.nan


def kappa(counts: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Cohen's kappa, low, high; NaN where no label but one was given, and 0 without an interval where one of the judges
    gave a single label (it is 0 then whatever the other says).

    Judges that agree everywhere have a large-sample error of zero, which says nothing about the next answer: there the
    lower end is kappa at the lower end of the agreement's Wilson interval, with agreement by chance held as it is.
    """
    counts = np.asarray(counts)
    used = (counts.sum(0) + counts.sum(1)) > 0
    table, n = counts[np.ix_(used, used)], int(counts.sum())
    if len(table) < 2:
        return np.nan, np.nan, np.nan
    if np.trace(table) == n:
        by_chance = float((table.sum(0) * table.sum(1)).sum()) / n**2
        return 1.0, (float(wilson(n, n, level)[0]) - by_chance) / (1 - by_chance), 1.0
    if (table.sum(0) > 0).sum() == 1 or (table.sum(1) > 0).sum() == 1:
        return 0.0, np.nan, np.nan
    with np.errstate(invalid="ignore"):  # a variance of 0 may come out as a rounding error below it
        result = cohens_kappa(table)
    spread = float(norm.ppf((1 + level) / 2) * np.sqrt(max(float(result.var_kappa), 0.0)))
    return float(result.kappa), max(-1.0, float(result.kappa) - spread), min(1.0, float(result.kappa) + spread)
