"""Attacks on verdicts: ties, missing answers, single prompts, ceilings, patterns, tiny samples. None may decide."""

import itertools
from typing import Any

import numpy as np
import pytest

from gating.analysis import claims, stats
from gating.errors import GatingError
from tests import synthetic
from tests.test_claims import family, verdict

DECIDED = ("supported", "refuted")
PERMUTATION = {"test": "permutation", "null": [{"like": "steered-random-*"}], "margin": None}


def cases(*axes):
    return list(itertools.product(*axes))


def nulls(columns):
    return {f"steered-random-{k}": list(column) for k, column in enumerate(columns)}


def refusing(n, but=0):
    """n prompts that are refused (0), but for the last `but`."""
    return [0] * (n - but) + [1] * but


@pytest.mark.parametrize(("n", "k", "changed"), cases((16, 64, 100), (20, 39, 99), (1, 2)))
def test_a_prompt_or_two_among_nulls_at_zero_are_no_effect(n, k, changed):
    tree = synthetic.tree({"baseline": refusing(n), "steered": refusing(n, changed), **nulls([refusing(n)] * k)})
    found = verdict(tree, **PERMUTATION)
    assert found["verdict"] == "undecided" and float(found["high"]) >= 0


@pytest.mark.parametrize(("n", "share"), cases((24, 60, 99), (0.3, 0.5, 1.0)))
def test_a_null_that_does_exactly_as_much_is_a_tie_however_it_is_rounded(n, share):
    but = int(share * n)
    others = [refusing(n, but)[i:] + refusing(n, but)[:i] for i in range(20)]  # the same rate from other prompts
    tree = synthetic.tree({"baseline": refusing(n), "steered": refusing(n, but), **nulls(others)})
    assert float(verdict(tree, **PERMUTATION)["p"]) == 1.0
    assert verdict(tree, **PERMUTATION)["verdict"] not in DECIDED


@pytest.mark.parametrize("shift", [1e-16, -1e-16, 1e-12, -1e-12, 1e-10])
def test_rounding_breaks_no_tie_in_a_permutation_p(shift):
    assert stats.permutation_p(0.1 + 0.2, [0.3 + shift] * 19) == 1.0


@pytest.mark.parametrize(("absent", "k"), cases((20, 15, 10), (20, 22)))
def test_random_directions_without_answers_are_missing_not_less_extreme(absent, k):
    columns = [[-1] * 60] * absent + [refusing(60)] * (k - absent)
    tree = synthetic.tree({"baseline": refusing(60), "steered": refusing(60, 40), **nulls(columns)})
    found = verdict(tree, **PERMUTATION)
    assert found["verdict"] not in DECIDED and int(found["k"]) == k - absent


def test_a_null_is_compared_on_its_own_prompts_only():
    half = [0] * 30 + [-1] * 30
    tree = synthetic.tree({"baseline": refusing(60), "steered": refusing(60, 30), **nulls([half] * 20)})
    found = verdict(tree, **PERMUTATION)  # nothing changes on the prompts that the nulls were asked
    assert found["n"] == 30 and float(found["estimate"]) == 0 and found["verdict"] not in DECIDED


def test_a_null_with_no_overlap_leaves_nothing_to_compare():
    tree = synthetic.tree(
        {"baseline": [0] * 30 + [-1] * 30, "steered": [1] * 30 + [-1] * 30, **nulls([[-1] * 30 + [0] * 30] * 20)}
    )
    assert verdict(tree, **PERMUTATION)["verdict"] == "missing"


@pytest.mark.parametrize("margin", [0.2, 0.4, 0.6, 0.9])
def test_a_permutations_margin_acts(margin):
    tree = synthetic.tree({"baseline": refusing(40), "steered": refusing(40, 8), **nulls([refusing(40)] * 20)})
    assert verdict(tree, **{**PERMUTATION, "margin": 0.05})["verdict"] == "supported"
    assert verdict(tree, **{**PERMUTATION, "margin": margin})["verdict"] not in DECIDED


PREMISE = {"says": "It acts.", "test": "difference", "plus": ["steered"], "minus": ["baseline"], "expect": "below"}


@pytest.mark.parametrize(
    ("rate", "claim"),
    cases(
        (60, 59, 57, 50),
        (
            {"test": "equivalence", "expect": None, "margin": 0.1, "plus": ["restored"], "minus": ["baseline"]},
            {"test": "equivalence", "expect": None, "margin": 0.3, "plus": ["restored"], "minus": ["steered"]},
            {"plus": ["restored"], "minus": ["steered"], "expect": "above", "margin": 0.2},
            {"plus": ["restored"], "minus": ["steered"], "expect": "above", "margin": -0.5},
        ),
    ),
)
def test_what_restores_nothing_because_nothing_was_lost_is_not_testable(rate, claim):
    tree = synthetic.tree({"baseline": refusing(60), "steered": refusing(60, 60 - rate), "restored": refusing(60)})
    given = family(**claim)
    given["claims"]["premise"] = {**PREMISE, "margin": 0.2}
    given["claims"]["one"]["requires"] = ["premise"]
    found = claims.evaluate(tree, claims.check(given)).sel(claim="one")
    assert found["verdict"] == "not testable" and "premise premise is" in str(found["reason"].item())


def test_a_chain_of_premises_falls_with_its_first():
    tree = synthetic.tree({"baseline": refusing(60), "steered": refusing(60), "far": refusing(60, 60)})
    given = family(plus=["far"])
    given["claims"] |= {
        "first": {**PREMISE, "margin": 0.2},
        "second": {**PREMISE, "plus": ["far"], "margin": 0.2, "requires": ["first"]},
    }
    given["claims"]["one"]["requires"] = ["second"]
    found = claims.evaluate(tree, claims.check(given))
    assert found.sel(claim=["one", "second"])["verdict"].values.tolist() == ["not testable"] * 2


def test_claims_on_sites_that_were_never_chosen_are_not_testable():
    tree = synthetic.tree({"baseline": refusing(60), "steered": refusing(60, 50)})
    given: Any = {**family(), "sites": True}
    tree.attrs["config"] = "model: {sites: {chosen: null}}"
    assert claims.evaluate(tree, given)["verdict"].item() == "not testable"
    tree.attrs["config"] = "model: {sites: {chosen: select split}}"
    assert claims.evaluate(tree, given)["verdict"].item() == "supported"


KINDS = {
    "baseline": "baseline",
    "compliant[coef=2]": "steered",
    "compliant[coef=4]": "steered",
    "compliant-reversed[coef=2]": "reversed",
    "compliant-random-0[coef=2]": "random",
    "compliant-random-1[coef=4]": "random",
    "a*b": "named",
}


@pytest.mark.parametrize(
    "entry",
    ["*[coef=2]", "compliant-random-*[coef=2]", "compliant*", "*", "compliant", "[cb]aseline", "baselin?", "BASELINE",
     {"like": "*[coef=2]"}, {"like": "compliant*"}, {"like": "*"}, {"like": "compliant-random-?[coef=2]"},
     {"like": "compliant-random-[01]*"}, {"like": "nothing*"}, {"like": "compliant*", "kind": "named"}],
)  # fmt: skip
def test_a_name_is_literal_and_a_pattern_names_one_kind(entry):
    with pytest.raises(GatingError, match=r"no condition|several kinds"):
        claims.check_conditions(family(plus=[entry]), KINDS)


@pytest.mark.parametrize(
    "entry",
    ["compliant[coef=2]", "a*b", {"like": "compliant-random-*[coef=2]"}, {"like": "compliant*", "kind": "steered"}],
)
def test_brackets_and_stars_of_a_name_are_its_own(entry):
    claims.check_conditions(family(plus=[entry]), KINDS)


@pytest.mark.parametrize(
    ("plus", "minus"),
    [(["a", "b"], ["c"]), (["a"], ["b", "c"]), (["a"], ["a"]), ([{"like": "a*"}], ["a"]), (["a", "b"], ["b", "c"]),
     ([], ["a"]), ([{"like": ""}], ["a"]), ([{"kind": "named"}], ["a"]),
     ([{"like": "a", "x": "b"}], ["a"]), ([3], ["a"])],
)  # fmt: skip
def test_weights_that_do_not_make_a_contrast_are_refused(plus, minus):
    with pytest.raises(GatingError):
        claims.check_conditions(claims.check(family(plus=plus, minus=minus)), dict.fromkeys("abc", "named"))


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
@pytest.mark.parametrize(("test", "margin"), [("difference", 0.8), ("equivalence", 0.1), ("equivalence", 0.2)])
def test_a_handful_of_prompts_that_all_agree_decides_nothing(n, test, margin):
    tree = synthetic.tree({"baseline": refusing(n), "steered": refusing(n, n if test == "difference" else 0)})
    claim = {"test": test, "margin": margin, "expect": None if test == "equivalence" else "below"}
    assert verdict(tree, **claim)["verdict"] not in DECIDED


@pytest.mark.parametrize("measure", ["refusal_score", "nll"])
def test_a_measure_without_any_variation_decides_nothing(measure):
    tree = synthetic.tree({"baseline": refusing(30), "steered": refusing(30)})
    tree["outcomes"][measure].values[:] = 1.0
    assert verdict(tree, measure=measure, margin=0.5)["verdict"] not in DECIDED


@pytest.mark.parametrize(("n", "margin"), cases((16, 24, 32, 48, 100), (0.2, 0.5, 0.8)))
def test_a_truth_on_the_margin_is_decided_no_more_often_than_the_level_without_categories(n, margin):
    """d is -1 with probability `margin`, which is on the margin: 5% either way, at most. (It was 9.3% at n = 24.)"""
    rng = np.random.default_rng([n, int(10 * margin)])
    counts, drawn = np.unique(rng.binomial(n, margin, 4000), return_counts=True)
    wrong = np.zeros(2)
    for hits, times in zip(counts.tolist(), drawn.tolist(), strict=True):
        mean = stats.mean_of([-1] * hits + [0] * (n - hits))
        wrong += times * np.array([mean.p_below(-margin) < 0.05, mean.p_above(-margin) < 0.05])
    assert (wrong / 4000 <= 0.06).all(), wrong / 4000


def test_what_weakens_a_verdict_stands_beside_it():
    tree = synthetic.tree({"baseline": refusing(40) + [-1] * 10, "steered": [1] * 30 + [3] * 10 + [-1] * 10})
    said = str(verdict(tree)["caution"].item())
    assert "25% of the answers under steered are degenerate" in said and "40 of 50 prompts, the shortest first" in said


def test_the_n_that_would_show_an_equivalence_gives_its_power():
    sd, margin = 0.4, 0.1
    for mean in (0.0, 0.03):
        n = int(stats.n_to_show_equal(sd, mean, margin))
        found = np.random.default_rng(0).normal(mean, sd / np.sqrt(n), 40000)
        z = 1.6449 * sd / np.sqrt(n)
        assert abs(np.mean((found - z > -margin) & (found + z < margin)) - 0.8) < 0.01
