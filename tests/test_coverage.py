"""Simulations with a known truth: intervals cover at their nominal rate, nulls are 'supported' at most at the stated
level, planted effects are found. Outcomes come from a threshold model: each prompt (and each category) has a propensity
of its own, so conditions are correlated within prompts and prompts within categories, as real ones are."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from gating.analysis import claims, stats
from tests import synthetic

DRAWS = 1000
ERROR = 3 * np.sqrt(0.05 * 0.95 / DRAWS)  # three Monte Carlo standard errors of a 5% rate


def outcomes(rng, rates, n, clusters, between=0.5, within=0.8):
    """Indicators [condition, prompt]: 1 where cut + prompt + category + noise < 0, with just these marginal rates."""
    category = np.arange(n) % clusters
    shared = between * rng.standard_normal(clusters)[category] + within * rng.standard_normal(n)
    scale = np.sqrt(between**2 + within**2 + 1)
    noise = rng.standard_normal((len(rates), n))
    return (shared + noise < scale * norm.ppf(rates)[:, None]).astype(float), category


def contrasts(rates, weights, n, clusters, between, seed):
    """`DRAWS` samples of a contrast's per-prompt values, as Means."""
    rng = np.random.default_rng(seed)
    weights = np.array(weights)
    bound = np.abs(weights).sum() / 2
    for _ in range(DRAWS):
        y, category = outcomes(rng, np.array(rates), n, clusters, between)
        yield stats.mean_of(weights @ y, category, bound)


@pytest.mark.parametrize(
    ("rates", "weights", "n", "between"),
    [([0.95, 0.3], [-1, 1], 100, 0.0), ([0.9, 0.88], [-1, 1], 100, 0.0), ([0.5, 0.4], [-1, 1], 60, 0.7),
     ([0.95, 0.3], [-1, 1], 100, 0.7), ([0.3, 0.9, 0.35], [-1, 1, 0], 60, 0.3),
     ([0.3, 0.8, 0.3, 0.5], [-1, 1, 1, -1], 100, 0.5)],
)  # fmt: skip
def test_95_percent_intervals_hold_the_truth_95_percent_of_the_time(rates, weights, n, between):
    truth = float(np.dot(weights, rates))
    inside = np.mean(
        [low <= truth <= high for low, high in (m.interval() for m in contrasts(rates, weights, n, 10, between, 1))]
    )
    assert 0.95 - ERROR <= inside <= 0.998


@pytest.mark.parametrize("between", [0.0, 0.6])
@pytest.mark.parametrize(
    ("rates", "weights", "margin"),
    [([0.9, 0.7], [-1, 1], 0.2), ([0.95, 0.85], [-1, 1], 0.1), ([0.3, 0.6, 0.3, 0.4], [-1, 1, 1, -1], 0.2)],
)
def test_a_contrast_that_lies_on_its_margin_is_rarely_called_beyond_it(rates, weights, margin, between):
    truth = float(np.dot(weights, rates))
    assert np.isclose(abs(truth), margin)
    p = [m.p_below(-margin) if truth < 0 else m.p_above(margin) for m in contrasts(rates, weights, 100, 10, between, 2)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + ERROR


@pytest.mark.parametrize(
    ("rates", "n"), [([0.95, 0.85], 100), ([0.95, 0.85], 24), ([0.5, 0.6], 100), ([1 - 1e-9, 0.9], 40)]
)
def test_two_rates_a_margin_apart_are_rarely_called_equivalent(rates, n):
    p = [m.p_within(0.1) for m in contrasts(rates, [-1, 1], n, 8, 0.4, 3)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + ERROR


def test_planted_effects_are_found_with_good_power():
    fall = [m.p_below(-0.2) for m in contrasts([0.95, 0.5], [-1, 1], 100, 10, 0.3, 4)]
    same = [m.p_within(0.1) for m in contrasts([0.97, 0.97], [-1, 1], 150, 10, 0.0, 5)]
    assert np.mean(np.array(fall) < 0.05) > 0.9 and np.mean(np.array(same) < 0.05) > 0.9


def test_a_whole_family_of_nulls_calls_one_supported_at_most_at_the_stated_level_and_finds_the_planted_one():
    """Through claims.evaluate: three claims whose truth lies on the margin, on synthetic stores; then one that
    holds."""
    family: Any = {"family": "f", "alpha": 0.05, "claims": {
        "fall": {"says": "", "test": "difference", "plus": ["a"], "minus": ["baseline"], "expect": "below",
                 "margin": 0.2},
        "same": {"says": "", "test": "equivalence", "plus": ["b"], "minus": ["baseline"], "margin": 0.1},
        "more": {"says": "", "test": "difference", "plus": ["c"], "minus": ["a"], "expect": "above", "margin": 0.1},
    }}  # fmt: skip
    rng = np.random.default_rng(6)
    any_supported, found = [], []
    for rates, into in (([0.9, 0.7, 0.8, 0.8], any_supported), ([0.95, 0.3, 0.95, 0.9], found)):
        for _ in range(100):
            y, category = outcomes(rng, np.array(rates), 80, 10, 0.3)
            names = ("baseline", "a", "b", "c")
            tree = synthetic.tree(
                {c: (1 - row).astype(int).tolist() for c, row in zip(names, y, strict=True)},
                categories=[f"c{k}" for k in category],
            )
            into.append(claims.evaluate(tree, family)["verdict"].values.tolist())
    assert np.mean([("supported" in v) for v in any_supported]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean([v[0] == "supported" and v[2] == "supported" for v in found]) > 0.8
