"""Statistics against published values and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm, t, ttest_1samp
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from gating.analysis import stats


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


def test_holm_is_statsmodels_holm():
    p = np.random.default_rng(0).uniform(0, 0.2, 40).round(2)  # with ties
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])


def test_holm_of_nothing_is_nothing():
    assert np.isnan(stats.holm([np.nan])).all() and stats.holm([]).size == 0


def test_published_intervals_come_out():
    low, high = stats.wilson([6, 0, 10], [313, 313, 10])
    assert np.allclose(low, [0.0088, 0, 0.722], atol=5e-4) and np.allclose(high, [0.0412, 0.0121, 1.0], atol=5e-4)


def test_a_paired_mean_covers_bonett_and_prices_adjusted_wald_interval_and_the_raw_means():
    a, b, c, d = 20, 12, 3, 5  # both, first only, second only, neither
    n = a + b + c + d
    mean = stats.mean_of([0] * (a + d) + [1] * b + [-1] * c)
    p12, p21 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    reach = t.ppf(0.975, n - 1) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert np.allclose(mean.interval(), (p12 - p21 - reach, (b - c) / n + reach))
    assert np.isclose(mean.estimate, (b - c) / n)


def test_an_unbounded_mean_is_students_and_its_tost_statsmodels():
    d = np.random.default_rng(0).normal(0.1, 0.5, 40)
    mean = stats.mean_of(d, bound=None)
    assert np.allclose(mean.interval(), ttest_1samp(d, 0).confidence_interval(0.95))
    p, _, _ = DescrStatsW(d).ttost_mean(-0.3, 0.3)
    assert np.isclose(mean.p_within(0.3), p)
    assert np.isclose(mean.p_above(0.0), ttest_1samp(d, 0, alternative="greater").pvalue)


def test_prompts_that_are_alike_within_a_category_widen_the_interval_as_cluster_robust_errors_do():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(10), 8)
    d = rng.normal(0, 1, 10)[clusters] + rng.normal(0, 0.1, 80)
    mean = stats.mean_of(d, clusters, bound=None)
    fit = OLS(d, np.ones(80)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}, use_t=True
    )
    assert np.isclose(mean.clustered, fit.bse[0] * np.sqrt(10 / 9))
    low, high = mean.interval()
    assert high - low > 2 * np.ptp(stats.mean_of(d, bound=None).interval())


def test_the_bootstrap_without_clusters_is_scipys_own():
    d = np.random.default_rng(2).choice([-1.0, 0, 1], 50)
    own = stats.bootstrap_mean(d, draws=1000, seed=3)
    theirs = bootstrap((d,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(3))
    assert np.allclose(own, [theirs.confidence_interval.low, theirs.confidence_interval.high])


def test_equal_values_claim_no_certainty():
    nothing = stats.mean_of(np.zeros(20))
    assert nothing.interval()[1] > 0.08 and nothing.p_within(0.05) > 0.05
    assert stats.mean_of(np.zeros(200)).p_within(0.05) < 0.05


def test_the_detectable_difference_is_found_by_mcnemar_with_the_power_it_says():
    n, discordance = 100, 0.3
    delta = stats.minimum_detectable_difference(n, discordance)
    rng = np.random.default_rng(4)
    p = [(discordance + delta) / 2, (discordance - delta) / 2]
    b, c, _ = rng.multinomial(n, [*p, 1 - discordance], size=4000).T
    found = np.abs(b - c) / np.sqrt(np.maximum(b + c, 1)) > norm.ppf(0.975)
    assert abs(found.mean() - 0.8) < 0.04
    assert stats.minimum_detectable_difference(10, 0.1) != stats.minimum_detectable_difference(10, 0.1)  # NaN


def test_the_n_that_would_decide_gives_its_power():
    sd, distance = 0.5, 0.1
    n = int(stats.n_to_decide(sd, distance))
    means = np.random.default_rng(5).normal(distance, sd / np.sqrt(n), 20000)
    assert abs(np.mean(means / (sd / np.sqrt(n)) > norm.ppf(0.95)) - 0.8) < 0.02


def test_kappa_is_statsmodels_and_has_no_interval_where_a_judge_gives_one_label():
    table = [[20, 5], [10, 15]]
    assert np.isclose(stats.kappa(table)[0], 0.4)
    zero, low, _ = stats.kappa([[5, 0], [7, 0]])
    assert zero == 0 and np.isnan(low)
    assert stats.kappa([[9, 0], [0, 9]])[1] < 0.9  # agreement everywhere is not certainty


def test_values_that_do_not_vary_decide_nothing_and_no_interval_leaves_the_possible_range():
    same = stats.mean_of(np.full(30, 0.2), np.arange(30) % 5, bound=None)
    assert np.isnan(same.interval()).all() and same.p_above(0.0) == same.p_below(1.0) == 1.0
    assert stats.mean_of(-np.ones(12)).interval()[0] == -1.0
