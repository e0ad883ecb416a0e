"""From windows of projections to one score and one threshold, and what they are worth on answers held out.

A token has one score for each attack: a weighted sum of its projections on every direction of the run at a few blocks,
in standard deviations from benign answers. A row's is the largest mean over any `window` tokens on end, of any attack:
evidence that persists. Attacks differ, and one sum for all of them tells each less well. Weights are Fisher's linear
discriminant of an attack's positives and benign answers, its covariance shrunk (Ledoit and Wolf 2004): there are more
projections than positives. The threshold is the split-conformal quantile of benign scores (Vovk et al. 2005), each
row's by the weights of the folds without it (cross-conformal, Vovk 2015): weights fit their own rows too well. Answers
of a prompt are alike: the rates on held-out folds are those to read.
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
BLOCKS = (3, 5, 10, 15)  # how many blocks may be read; all of them is tried, too
FEW = 5  # positives of an attack from which it has a score of its own


class Scores(NamedTuple):
    """One score for each attack: weights [attack, feature] and what is subtracted, the benign answers' mean [attack],
    both in deviations of benign answers."""

    weights: np.ndarray
    centres: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """The largest score of each window: [row, place, feature] gives [row, place], NaN where there is no window."""
        return np.asarray((values @ self.weights.T - self.centres).max(-1))


class Fitted(NamedTuple):
    """Where is read (positions on the layer axis), the scores there, of which attacks, and the score above which a row
    is flagged."""

    layers: tuple[int, ...]
    scores: Scores
    attacks: tuple[str, ...]
    threshold: float


def spread(n_layers: int, acts: int) -> list[tuple[int, ...]]:
    """Sets of blocks, the smallest first: spread over the depth from a quarter on, where a direction has come to be
    something; and all of them. Each has `acts`, the block where an action holds the persona."""
    few = (np.linspace(0.25 * (n_layers - 1), n_layers - 1, k).round().astype(int) for k in BLOCKS if k < n_layers)
    return [*dict.fromkeys(tuple(sorted({*each.tolist(), acts})) for each in few), tuple(range(n_layers))]


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
    """The largest window of each row: [row, place, ...] gives [row, ...]; -inf for an answer shorter than one."""
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


def fit(rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float, acts: int) -> Fitted:
    """Blocks, weights and threshold. The blocks whose flags find most positives of held-out folds, the fewest of
    equals. All rows but the positives and the benign ones are left out."""
    used = rows.where(positive | benign)
    own, fold = positive[positive | benign], folds(used)[0]
    tried: list[tuple[float, tuple[int, ...], float]] = []
    for layers in spread(used.windows.shape[2], acts):
        scores = _crossed(features(used, layers), own, used.condition, fold)
        cut = threshold(scores[~own], fpr)
        tried.append((float((scores[own] > cut).mean()), layers, cut))
    _, layers, cut = max(tried, key=lambda each: each[0])
    values = features(used, layers)
    return Fitted(layers, *scored(values, own, used.condition), cut)


def scored(values: np.ndarray, positive: np.ndarray, condition: np.ndarray) -> tuple[Scores, tuple[str, ...]]:
    """A score for each attack that has `FEW` positives, and the attacks' names; where none has, one of all positives.
    values: windows [row, place, feature]; condition: of each row [row]."""
    means = _means(values)
    attacks, counts = np.unique(condition[positive], return_counts=True)
    names = [str(name) for name in attacks[counts >= FEW]]
    groups = [positive & (condition == name) for name in names] or [positive]
    each = np.stack([discriminant(means[g | ~positive], g[g | ~positive]) for g in groups])
    highs = highest(values[~positive] @ each.T)
    there = np.isfinite(highs).all(1)
    centres, deviations = highs[there].mean(0), np.maximum(highs[there].std(0), 1e-12)
    return Scores(each / deviations[:, None], centres / deviations), tuple(names) or ("all",)


def features(rows: Rows, layers: Sequence[int]) -> np.ndarray:
    """[row, place, layer x direction]."""
    return rows.windows[:, :, list(layers)].reshape(*rows.windows.shape[:2], -1)


def _means(values: np.ndarray) -> np.ndarray:
    """The mean window of each row [row, feature], NaN for an answer shorter than one. A row counts once."""
    there = np.isfinite(values[..., :1])
    n = there.sum(1)
    return np.where(n > 0, np.where(there, values, 0).sum(1) / np.maximum(n, 1), np.nan)


def _crossed(values: np.ndarray, positive: np.ndarray, condition: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each row's score by the weights of the other folds [row], in deviations from those folds' benign rows, which all
    folds and the final weights have in common. Where the other folds lack a class: -inf."""
    scores = np.full(len(values), -np.inf)
    for outside, inside in _splits(fold):
        if positive[outside].sum() > 1 and (~positive[outside]).sum() > 1:
            found, _ = scored(values[outside], positive[outside], condition[outside])
            scores[inside] = highest(found.of(values[inside]))
    return scores


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


def held_out(rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float, acts: int) -> tuple[np.ndarray, float]:
    """Which rows are flagged by blocks, weights and threshold of the other folds, [row] boolean, and the mean AUROC
    within folds."""
    flagged, areas = np.zeros(len(rows.label), dtype=bool), []
    for outside, inside in _splits(folds(rows)[0]):
        if not ((positive & outside).sum() > 1 and (benign & outside).sum() > 1):
            continue
        found = fit(rows, positive & outside, benign & outside, fpr, acts)
        own = highest(found.scores.of(features(rows, found.layers)))
        flagged[inside] = own[inside] > found.threshold
        areas.append(auroc(own[positive & inside], own[benign & inside]))
    known = [a for a in areas if not math.isnan(a)]
    return flagged, float(np.mean(known)) if known else math.nan


def random_labels(
    rows: Rows, positive: np.ndarray, benign: np.ndarray, fpr: float, acts: int, seed: int = 0
) -> np.ndarray:
    """AUROC on held-out folds where labels are dealt out anew over prompts (whose rows are alike): [draw], about 0.5
    unless something of the answers leaks."""
    used = rows.where(positive | benign)
    prompts, member = np.unique(used.prompt, return_inverse=True)
    own = np.array([positive[positive | benign][member == i].any() for i in range(len(prompts))])
    rng, out = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        drawn = rng.permutation(own)[member]
        out.append(held_out(used, drawn, ~drawn, fpr, acts)[1])
    return np.array(out)


def _splits(fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for k in sorted(set(fold.tolist())):
        yield fold != k, fold == k
