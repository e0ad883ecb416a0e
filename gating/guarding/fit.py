"""From windows of projections to one score and one threshold, and what they are worth on answers held out.

A token's score is a weighted sum of its projections on every direction of the run at a few blocks, a row's the largest
mean over any `window` tokens on end: evidence that persists. Weights are Fisher's linear discriminant, its covariance
shrunk (Ledoit and Wolf 2004): there are more projections than positives. The threshold is the split-conformal quantile
of benign scores (Vovk et al. 2005), each row's by the weights of the folds without it (cross-conformal, Vovk 2015):
weights fit their own rows too well. Answers of a prompt are alike: the rates on held-out folds are those to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from gating.extras import require
from gating.guarding.rows import Rows

FOLDS, DRAWS = 5, 20
BLOCKS = (3, 5, 10)  # how many blocks may be read; all of them is tried, too
NEARLY = 0.02  # true positives that more blocks must bring


class Fitted(NamedTuple):
    """Where is read (positions on the layer axis), weights [layer, direction], and the score above which a row is
    flagged."""

    layers: tuple[int, ...]
    weights: np.ndarray
    threshold: float


def spread(n_layers: int) -> list[tuple[int, ...]]:
    """Sets of blocks, the smallest first: spread over the depth from a quarter on, where a direction has come to be
    something; and all of them."""
    few = (np.linspace(0.25 * (n_layers - 1), n_layers - 1, k).round().astype(int) for k in BLOCKS if k < n_layers)
    return [*dict.fromkeys(tuple(sorted(set(each.tolist()))) for each in few), tuple(range(n_layers))]


def discriminant(means: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Fisher's discriminant of two classes of rows: weights [feature]. means: a row's mean window [row, feature], NaN
    where it is shorter than one; positive [row]."""
    require("sklearn", "gating.guard RUN")
    from sklearn.covariance import ledoit_wolf

    there = np.isfinite(means).all(1)
    groups = means[there & positive], means[there & ~positive]
    apart = np.concatenate([g - g.mean(0) for g in groups])
    scale = np.maximum(apart.std(0), 1e-12)
    within, _ = ledoit_wolf(apart / scale, assume_centered=True)
    centres = [g.mean(0) / scale for g in groups]
    weights = np.linalg.solve(within + 1e-9 * np.eye(len(within)), centres[0] - centres[1])
    return np.asarray(weights / scale)


def highest(values: np.ndarray) -> np.ndarray:
    """The largest window of each row: [row, place] gives [row]; -inf for an answer shorter than one."""
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
    """Blocks, weights and threshold. The fewest blocks whose flags find nearly as many positives of held-out folds as
    any do. All rows but the positives and the benign ones are left out."""
    used = rows.where(positive | benign)
    own, fold = positive[positive | benign], folds(used)[0]
    tried: list[tuple[float, tuple[int, ...], float]] = []
    for layers in spread(used.windows.shape[2]):
        scores = _crossed(features(used, layers), own, fold)
        cut = threshold(scores[~own], fpr)
        tried.append((float((scores[own] > cut).mean()), layers, cut))
    most = max(found for found, _, _ in tried)
    _, layers, cut = next(each for each in tried if each[0] >= most - NEARLY)
    values = features(used, layers)
    weights = discriminant(_means(values), own)
    centre, deviation = _benign(values, weights, own)
    return Fitted(layers, weights.reshape(len(layers), -1), centre + cut * deviation)


def features(rows: Rows, layers: Sequence[int]) -> np.ndarray:
    """[row, place, layer x direction]."""
    return rows.windows[:, :, list(layers)].reshape(*rows.windows.shape[:2], -1)


def _means(values: np.ndarray) -> np.ndarray:
    """The mean window of each row [row, feature], NaN for an answer shorter than one. A row counts once."""
    there = np.isfinite(values[..., :1])
    n = there.sum(1)
    return np.where(n > 0, np.where(there, values, 0).sum(1) / np.maximum(n, 1), np.nan)


def _crossed(values: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each row's score by the weights of the other folds [row], in deviations from those folds' benign rows, which all
    folds and the final weights have in common. Where the other folds lack a class: -inf."""
    scores, means = np.full(len(values), -np.inf), _means(values)
    for outside, inside in _splits(fold):
        if positive[outside].sum() > 1 and (~positive[outside]).sum() > 1:
            weights = discriminant(means[outside], positive[outside])
            centre, deviation = _benign(values[outside], weights, positive[outside])
            scores[inside] = (highest(values[inside] @ weights) - centre) / deviation
    return scores


def _benign(values: np.ndarray, weights: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the scores of benign rows."""
    scores = highest(values[~positive] @ weights)
    scores = scores[np.isfinite(scores)]
    return float(scores.mean()), max(float(scores.std()), 1e-12)


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
    """Which rows are flagged by blocks, weights and threshold of the other folds, [row] boolean, and the mean AUROC
    within folds."""
    flagged, areas = np.zeros(len(rows.label), dtype=bool), []
    for outside, inside in _splits(folds(rows)[0]):
        if not ((positive & outside).sum() > 1 and (benign & outside).sum() > 1):
            continue
        found = fit(rows, positive & outside, benign & outside, fpr)
        own = highest(features(rows, found.layers) @ found.weights.ravel())
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
