"""How a vector comes from the activations of two sides: one entry a method in METHODS.

Activations are [row, layer, hidden]; a vector is [layer, hidden], float64, with the norm of the mean difference, so
that a coefficient means the same whatever the method.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gating.errors import GatingError, choices


class Sides(NamedTuple):
    """The activations of a direction's positive and negative side. mean: [layer, hidden] float64; rows: [row, layer,
    hidden], None where the method needs the means alone; paired: row i of both sides belongs together."""

    positive_mean: np.ndarray
    negative_mean: np.ndarray
    positive_rows: np.ndarray | None
    negative_rows: np.ndarray | None
    paired: bool
    seed: int


@dataclass(frozen=True)
class Method:
    """vector: from two sides to [layer, hidden]; needs_rows: whether every row must leave the model, or the sides'
    means do (a mean is formed beside the model, so that little travels from a server)."""

    vector: Callable[[Sides], np.ndarray]
    needs_rows: bool


def mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[row, layer, hidden] of both sides give [layer, hidden] float64: mean(positive) - mean(negative), natural
    norm."""
    return positive.mean(axis=0, dtype="float64") - negative.mean(axis=0, dtype="float64")


def probe(positive: np.ndarray, negative: np.ndarray, seed: int) -> np.ndarray:
    """The normal of a logistic-regression boundary at each layer: [layer, hidden] float64.

    Features are centred and scaled by one number a layer, so that the normal stays in the residual stream's own axes.
    The vector takes the norm of the mean difference, so that coefficients mean the same for both methods.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    reference = mean_difference(positive, negative)
    x = np.concatenate([positive, negative]).astype("float64")
    y = np.array([1] * len(positive) + [0] * len(negative))
    out = np.zeros_like(reference)
    for layer in range(x.shape[1]):
        features = x[:, layer] - x[:, layer].mean(axis=0)
        features = features / (features.std() or 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a separable set has no finite optimum; l2 bounds it
            normal = LogisticRegression(C=0.1, max_iter=500, random_state=seed).fit(features, y).coef_[0]
        out[layer] = normal / (np.linalg.norm(normal) or 1.0) * np.linalg.norm(reference[layer])
    return out


def principal_component(positive: np.ndarray, negative: np.ndarray, paired: bool) -> np.ndarray:
    """The first principal component of paired differences at each layer: [layer, hidden] float64.

    Uncentred, as a pair's two orders are alike (Zou et al. 2023, arXiv 2310.01405, section 3.1); its sign is that of
    the mean difference. Sides without pairs are compared with each other's mean.
    """
    reference = mean_difference(positive, negative)
    if paired:
        differences = positive.astype("float64") - negative
    else:
        differences = np.concatenate([
            positive - negative.mean(axis=0, dtype="float64"), positive.mean(axis=0, dtype="float64") - negative
        ])  # fmt: skip
    out = np.zeros_like(reference)
    for layer in range(differences.shape[1]):
        component = np.linalg.svd(differences[:, layer], full_matrices=False)[2][0]
        sign = -1.0 if component @ reference[layer] < 0 else 1.0
        out[layer] = sign * component * np.linalg.norm(reference[layer])
    return out


def _of_means(sides: Sides) -> np.ndarray:
    return sides.positive_mean - sides.negative_mean


def _of_probe(sides: Sides) -> np.ndarray:
    return probe(*_rows(sides), sides.seed)


def _of_principal_component(sides: Sides) -> np.ndarray:
    return principal_component(*_rows(sides), sides.paired)


def _rows(sides: Sides) -> tuple[np.ndarray, np.ndarray]:
    assert sides.positive_rows is not None and sides.negative_rows is not None, "a method that needs rows says so"
    return sides.positive_rows, sides.negative_rows


METHODS = {
    "mean": Method(_of_means, needs_rows=False),
    "probe": Method(_of_probe, needs_rows=True),
    "pca": Method(_of_principal_component, needs_rows=True),
}


def check_method(method: str) -> str:
    if method not in METHODS:
        raise GatingError(f"directions.method={method!r}: use {choices(METHODS, method)}.")
    return method
