"""How far judges agree, and a run counted by another judge's labels."""

import numpy as np
import pytest
import xarray as xr
from statsmodels.stats.inter_rater import cohens_kappa

from gating import analysis, rejudge, store
from gating.analysis import agreement
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
