"""How far judges agree, and a run counted by another judge's labels."""

import numpy as np
import pytest
import xarray as xr
from statsmodels.stats.inter_rater import cohens_kappa

from gating import analysis, rejudge, store
from gating.analysis import agreement, claims, meta
from gating.errors import GatingError
from gating.judging.labels import MISSING
from gating.pipeline import judgements
from tests import synthetic
from tests.judged_runs import a_run, asking, good


def two_judges(a, b, reason=None):
    """A run whose rule says `a` and whose judge `other` says `b`, lists of labels."""
    tree = synthetic.tree({"baseline": a})
    made = judgements.empty(tree)
    made["label"].values[0], made["done"].values[0] = b, np.array(b) != MISSING
    made["reason"].values[0] = reason or ""
    tree["/judgements/other"] = xr.DataTree(made)
    return tree


def test_agreement_counts_only_what_both_judged_and_matches_the_published_kappa():
    # Cohen's kappa of a 2 x 2 table 20 5 10 15: observed 0.70, by chance 0.50, kappa 0.40
    a = [0] * 25 + [1] * 25 + [0, MISSING, 1]
    b = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15 + [MISSING, 0, MISSING]
    d = agreement.agreement(two_judges(a, b))
    assert int(d["n"]) == 50 and int(d["only_a"]) == 2 and int(d["only_b"]) == 1
    assert float(d["agreement"]) == 0.7 and float(d["kappa"]) == pytest.approx(0.4)
    expected = cohens_kappa(np.array([[20, 5], [10, 15]]))
    assert float(d["kappa_low"]) == pytest.approx(expected.kappa_low) and float(d["kappa_high"]) == pytest.approx(
        expected.kappa_upp
    )
    assert (float(d["low"]), float(d["high"])) == pytest.approx((0.5625, 0.8090), abs=5e-4)  # Wilson, 35 of 50
    assert int(d["confusion"].sel(label_a="refusal", label_b="compliance")) == 5
    assert int(d["confusion"].sel(label_a="compliance", label_b="refusal")) == 10
    assert int(d["confusion"].sum()) == 50


def test_kappa_has_an_interval_only_where_both_judges_used_two_labels_and_never_one_of_no_width():
    same = agreement.agreement(two_judges([0, 0, 0], [0, 0, 0]))
    assert float(same["agreement"]) == 1 and np.isnan(same["kappa"]) and float(same["low"]) < 1
    for n in (2, 50, 371):  # chance is one half; at 371 a large-sample variance is a rounding error below zero
        alike = agreement.agreement(two_judges([0, 1] * n, [0, 1] * n))
        assert float(alike["kappa"]) == float(alike["kappa_high"]) == 1
        assert float(alike["kappa_low"]) == pytest.approx(2 * float(alike["low"]) - 1) and float(alike["kappa_low"]) < 1
    uneven = agreement.agreement(two_judges([0] * 88 + [1] * 2 + [2] * 3, [0] * 87 + [1] * 3 + [2] * 3))
    assert float(uneven["kappa_low"]) < float(uneven["kappa"]) < float(uneven["kappa_high"]) <= 1
    constant = agreement.agreement(two_judges([0] * 9 + [1] * 3, [0] * 12))
    assert float(constant["kappa"]) == 0 and np.isnan(constant["kappa_low"]) and np.isnan(constant["kappa_high"])
    never = agreement.agreement(two_judges([0, 1] * 5, [1, 0] * 5))
    assert float(never["kappa"]) == pytest.approx(-1) and float(never["kappa_low"]) >= -1
    nothing = agreement.agreement(two_judges([0, 0], [MISSING, MISSING]))
    assert int(nothing["n"]) == 0 and np.isnan(nothing["agreement"]) and np.isnan(nothing["low"])


def test_agreement_can_be_asked_for_a_condition_and_for_harmful_prompts(tmp_path, serve):
    folder = a_run(tmp_path / "run")
    rejudge.rejudge(folder, asking(serve(lambda p, r, nth: good("refusal" if r.startswith("add") else "compliance"))))
    tree = store.open_run(folder)
    assert int(agreement.agreement(tree)["n"]) == 12
    d = agreement.agreement(tree, condition="add", harmful=False)
    assert int(d["n"]) == 2 and int(d["confusion"].sel(label_b="refusal").sum()) == 2
    with pytest.raises(GatingError, match="not a condition"):
        agreement.agreement(tree, condition="nope")
    with pytest.raises(GatingError, match="not one of this run's"):
        agreement.agreement(tree, b="nope")


def test_with_judge_every_analysis_counts_the_other_judges_labels_and_the_run_itself_is_unchanged():
    tree = two_judges([0, 0, 0, 1], [1, 0, MISSING, 1])
    other = agreement.with_judge(tree, "other")
    assert other["/outcomes/label"].values[0].tolist() == [1, 0, MISSING, 1]
    rate = analysis.refusal_rate(other)
    assert int(rate["n"][0]) == 3 and int(rate["k"][0]) == 1
    assert tree["/outcomes/label"].values[0].tolist() == [0, 0, 0, 1] and int(analysis.refusal_rate(tree)["k"][0]) == 3
    assert other.attrs["judge"].startswith("other") and tree.attrs["judge"] == "1"
    assert agreement.with_judge(tree, "own")["/outcomes"].to_dataset().identical(tree["/outcomes"].to_dataset())
    assert analysis.contrast(other)["n"].values.tolist() == [3]


FAMILY: claims.Family = {
    "family": "f",
    "claims": {
        "c": {"says": "x", "test": "difference", "plus": ["mine"], "minus": ["baseline"], "expect": "below"},
    },
}
COUNTED = {
    "refusal_rate": analysis.refusal_rate,
    "rates": analysis.rates,
    "contrast": analysis.contrast,
    "random_null": analysis.random_null,
    "mediation": lambda run, judge: analysis.mediation(run, "mine", "held", "given", judge=judge),
    "by_block": lambda run, judge: analysis.by_block(run, "mine", {2: "held"}, judge=judge),
    "claims": lambda run, judge: claims.evaluate(run, FAMILY, judge),
    "meta": lambda run, judge: meta.combine({"a": run, "b": run}, FAMILY, judge),
}


@pytest.fixture(scope="module")
def judged_twice():
    """A run whose rule says one thing and whose judge `other` another."""
    tree = synthetic.tree(
        {"baseline": [0] * 8, "mine": [1] * 8, "held": [0] * 8, "given": [1] * 8, "random-0": [0] * 8}
    )
    made = judgements.empty(tree)
    made["label"].values[:], made["done"].values[:] = np.arange(40).reshape(5, 8) % 3 % 2, True
    tree["/judgements/other"] = xr.DataTree(made)
    return tree


@pytest.mark.parametrize("name", COUNTED)
def test_every_analysis_takes_a_judge_by_name_and_says_which_there_are(judged_twice, name):
    count = COUNTED[name]
    own, other = (count(judged_twice, judge=judge) for judge in (None, "other"))
    assert other.drop_attrs().identical(count(agreement.with_judge(judged_twice, "other"), judge=None).drop_attrs())
    assert not other.drop_attrs().equals(own.drop_attrs())
    with pytest.raises(GatingError, match=r"judge='othr'.*own or other \(did you mean other\?\)"):
        count(judged_twice, judge="othr")


def test_an_effect_over_directions_knows_the_same_judges(judged_twice):
    with pytest.raises(GatingError, match="judge='othr'"):
        analysis.effect_over_directions(judged_twice, judge="othr")


def test_samples_have_the_rules_labels_alone_and_are_never_set_beside_another_judges(judged_twice):
    sampled = judged_twice.copy(deep=True)
    label = xr.DataArray(np.zeros((5, 8, 2), dtype="int8"), dims=("condition", "prompt", "sample"))
    sampled["/samples"] = xr.DataTree(xr.Dataset({"label": label}, judged_twice["/outcomes"].coords))
    assert float(analysis.sampled_rates(sampled)["rate"][0]) == 1
    for run, judge in ((sampled, "other"), (agreement.with_judge(sampled, "other"), None)):
        with pytest.raises(GatingError, match="no labels of sampled answers"):
            analysis.sampled_rates(run, judge=judge)
    assert (agreement.with_judge(sampled, "other")["/samples/label"] == MISSING).all()
