"""Statistics against published values and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from gating import stats


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(6, 313, 0.9, 4.1), (304, 313, 94.6, 98.5), (10, 10, 72, 100), (0, 313, 0, 1.2)]
)
def test_wilson_gives_the_published_intervals(k, n, low, high):
    got = [100 * float(v) for v in stats.wilson(k, n)]
    assert got == pytest.approx([low, high], abs=0.06 if n > 10 else 0.5)


def test_wilson_of_no_prompts_is_missing():
    assert np.isnan(stats.wilson([0, 1], [0, 2])[0]).tolist() == [True, False]


def test_the_paired_interval_is_newcombes_method_10():
    # Newcombe 1998, Stat. Med. 17:2635, the worked example: 0.2 from 0.0569 to 0.3404
    assert [float(v) for v in stats.paired_difference(36, 12, 2, 0)] == pytest.approx([0.2, 0.0569, 0.3404], abs=5e-5)


def test_the_paired_interval_corrects_a_positive_correlation_as_method_10_does():
    # the airway data of Bentur et al. in Fagerland et al. 2014, Stat. Med. 33:2850, where ad > bc: -0.507 to -0.026
    assert [float(v) for v in stats.paired_difference(1, 1, 7, 12)] == pytest.approx(
        [-6 / 21, -0.507, -0.026], abs=5e-4
    )


def test_the_paired_interval_of_equal_answers_is_that_of_two_wilson_limits():
    low, high = (float(v) for v in stats.wilson(30, 30))
    assert [float(v) for v in stats.paired_difference(30, 0, 0, 0)] == pytest.approx([0, low - high, high - low])


def test_the_paired_interval_covers_at_about_its_level():
    rng = np.random.default_rng(0)
    p = np.array([0.3, 0.35, 0.05, 0.3])  # both, first only, second only, neither: a true difference of 0.3
    a, b, c, d = rng.multinomial(60, p, size=2000).T
    _, low, high = stats.paired_difference(a, b, c, d)
    assert 0.93 <= np.mean((low <= 0.3) & (high >= 0.3)) <= 0.985


@pytest.mark.parametrize(("b", "c"), [(6, 0), (0, 6), (3, 4), (10, 2), (1, 0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(b, c):
    assert stats.mcnemar_exact(b, c) == pytest.approx(binomtest(b, b + c).pvalue)


def test_mcnemar_without_discordant_pairs_is_one():
    assert stats.mcnemar_exact(0, 0) == 1


def test_a_permutation_p_cannot_be_smaller_than_its_number_of_draws_allows():
    assert stats.permutation_p(9, [1, 2, 3]) == 0.25
    assert stats.permutation_p(2, [1, 2, 3]) == 0.75


def test_holm_multiplies_the_smallest_p_by_the_size_of_the_family_and_leaves_what_is_missing_out():
    got = stats.holm([0.01, np.nan, 0.04, 0.03])
    assert got[[0, 2, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06]) and np.isnan(got[1])


def test_holm_of_nothing_is_nothing():
    assert np.isnan(stats.holm([np.nan])).all() and stats.holm([]).size == 0
