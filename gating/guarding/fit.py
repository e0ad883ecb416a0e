"""From windows of projections to one score and one threshold, and what they are worth on answers held out.

A row's score is the largest mean, over any `window` tokens on end, of a weighted sum of its projections: evidence that
persists. Weights are Fisher's linear discriminant; the threshold is the split-conformal quantile of benign scores
(Vovk et al. 2005), which keeps the false-positive rate for exchangeable answers and given weights. Here weights and
layer come from the same answers, and answers of a prompt are alike: the rates on held-out folds are those to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from gating.guarding.rows import Rows

FOLDS, DRAWS = 5, 20


class Fitted(NamedTuple):
    """Where is read (position on the layer axis), weights [direction] of norm 1, and the score above which a row is
    flagged."""

    layer: int
    weights: np.ndarray
    threshold: float


def discriminant(windows: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Fisher's direction between two classes of rows, of norm 1: windows [row, place, direction], positive [row] give
    [direction]. A row counts once, as the mean of its windows."""
    there = np.isfinite(windows[:, 0, 0])
    means, own = np.nanmean(windows[there], axis=1), positive[there]
    groups = means[own], means[~own]
    apart = np.concatenate([g - g.mean(0) for g in groups])
    within = apart.T @ apart / max(1, len(apart) - 2)
    ridge = 1e-6 * np.trace(within) / len(within) + 1e-12
    weights = np.linalg.solve(within + ridge * np.eye(len(within)), groups[0].mean(0) - groups[1].mean(0))
    return weights / max(float(np.linalg.norm(weights)), 1e-12)


def scores(windows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The largest window of each row: [row, place, direction] gives [row]; -inf for an answer shorter than one."""
    values = windows @ weights
    return np.where(np.isfinite(values), values, -np.inf).max(1)


def threshold(benign: np.ndarray, fpr: float) -> float:
    """The score above which at most a share `fpr` of benign answers lies. With fewer than 1/fpr - 1 of them it is the
    largest, which promises less."""
    place = min(math.ceil((1 - fpr) * (len(benign) + 1)), len(benign))
    return float(np.sort(benign)[place - 1])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive's score exceeds a negative's, ties half; NaN without either."""
    if not len(positive) or not len(negative):
        return math.nan
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def fit(rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float) -> Fitted:
    """The layer that tells most positives from benign answers at its own threshold, then by AUROC; of equals the last,
    which sees what was added at any block before it."""
    best: tuple[tuple[float, float, int], Fitted] | None = None
    used = positive | benign
    for layer in range(rows.windows.shape[2]):
        windows = rows.windows[:, :, layer]
        weights = discriminant(windows[used], positive[used])
        own = scores(windows, weights)
        cut = threshold(own[benign], fpr)
        rank = float((own[positive] > cut).mean()), auroc(own[positive], own[benign]), layer
        if best is None or rank > best[0]:
            best = rank, Fitted(layer, weights, cut)
    assert best is not None
    return best[1]


def folds(rows: Rows) -> tuple[np.ndarray, str]:
    """The fold of each row, and what is kept together in one: categories, or prompts where there are too few. Harmful
    and harmless ones are dealt out apart, so that a fold has both."""
    few = min(len(set(rows.category[rows.harmful == side])) for side in (True, False)) < 2
    by, of = ("prompt", rows.prompt) if few else ("category", rows.category)
    fold = np.zeros(len(of), dtype=int)
    for side in (True, False):
        groups = sorted(set(of[rows.harmful == side]))
        fold[rows.harmful == side] = [groups.index(g) % FOLDS for g in of[rows.harmful == side]]
    return fold, by


def held_out(rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float) -> tuple[np.ndarray, float]:
    """Which rows are flagged by layer, weights and threshold of the other folds, [row] boolean, and the mean AUROC
    within folds."""
    flagged, areas = np.zeros(len(rows.label), dtype=bool), []
    for outside, inside in _splits(folds(rows)[0]):
        if not ((positive & outside).sum() > 1 and (benign & outside).sum() > 1):
            continue
        found = fit(rows, positive & outside, benign & outside, fpr)
        own = scores(rows.windows[:, :, found.layer], found.weights)
        flagged[inside] = own[inside] > found.threshold
        areas.append(auroc(own[positive & inside], own[benign & inside]))
    known = [a for a in areas if not math.isnan(a)]
    return flagged, float(np.mean(known)) if known else math.nan


def random_labels(rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float, seed: int = 0) -> np.ndarray:
    """AUROC on held-out folds where labels are dealt out anew over prompts (whose rows are alike): [draw], about 0.5
    unless something of the answers leaks."""
    used = rows.where(positive | benign)
    prompts, member = np.unique(used.prompt, return_inverse=True)
    own = np.array([positive[positive | benign][member == i].any() for i in range(len(prompts))])
    rng, out = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        drawn = rng.permutation(own)[member]
        out.append(held_out(used, drawn, ~drawn, fpr)[1])
    return np.array(out)


def _splits(fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for k in sorted(set(fold.tolist())):
        yield fold != k, fold == k
