"""Rates corrected by a person's labels: what a judge's errors do to a contrast, and what takes it back."""

import numpy as np
import pytest
import xarray as xr

from gating import analysis
from gating.analysis.correction import combined, corrected, use_of_judge
from gating.errors import GatingError
from gating.judging.labels import MISSING
from gating.labelling.sample import shares
from tests import synthetic


def a_world(draws, n, k, truth, recall, false_alarm, seed=0):
    """Two conditions on n prompts, answers to one prompt alike, k answers of each read: what the judge says, what is
    so, what was read, weights; all [draw, condition, prompt]."""
    rng = np.random.default_rng(seed)
    alike = rng.random((draws, 1, n)) < 0.5  # half of the prompts get the same luck under both conditions
    luck = np.where(alike, rng.random((draws, 1, n)), rng.random((draws, 2, n)))
    y = luck < np.array(truth)[:, None]
    f = rng.random((draws, 2, n)) < np.where(y, np.array(recall)[:, None], np.array(false_alarm)[:, None])
    drawn = rng.random((draws, 2, n)).argsort(-1).argsort(-1) < k
    return f * 1.0, y * 1.0, np.where(drawn, y, np.nan), np.full(f.shape, n / k)


@pytest.mark.parametrize("k", [12, 50])
def test_a_judge_whose_errors_depend_on_the_condition_biases_a_contrast_and_the_corrected_one_covers_the_truth(k):
    n, truth = 200, (0.9, 0.5)
    f, _, read, weight = a_world(500, n, k, truth, recall=(0.95, 0.45), false_alarm=(0.02, 0.1))
    plain = f[:, 1] - f[:, 0]
    mean, reach = plain.mean(-1), 1.96 * plain.std(-1, ddof=1) / np.sqrt(n)
    assert (abs(mean - (truth[1] - truth[0])) > reach).mean() > 0.8, "the judge's own interval misses the truth"
    c = use_of_judge(f, read, weight)
    of = [corrected(f[:, i], read[:, i], weight[:, i], c) for i in (0, 1)]
    difference = combined(of, [-1.0, 1.0])
    low, high = difference.interval(0.95, -1.0)
    assert ((low <= -0.4) & (high >= -0.4)).mean() >= 0.94
    assert abs(difference.value.mean() + 0.4) < 0.02
    for i in (0, 1):
        low, high = of[i].interval(0.95, 0.0)
        assert ((low <= truth[i]) & (high >= truth[i])).mean() >= 0.94
    by_labels_alone = np.nanmean(read[:, 1], -1) - np.nanmean(read[:, 0], -1)
    assert difference.value.std() < by_labels_alone.std(), "the judge's labels add to the person's"


def test_reading_every_answer_gives_the_persons_own_rate_whatever_the_judge_says():
    f, y, _, _ = a_world(1, 40, 40, (0.7, 0.2), (0.1, 0.9), (0.9, 0.1))
    found = corrected(f[0], y[0], np.ones_like(f[0]), np.array([0.3, 1.0]))
    assert found.value == pytest.approx(y[0].mean(-1))
    assert np.sqrt((found.influence**2).sum(-1)) == pytest.approx(y[0].std(-1) / np.sqrt(40), rel=0.1)


def test_answers_that_were_less_likely_to_be_read_weigh_more():
    f, y = np.zeros(100), np.r_[np.ones(50), np.zeros(50)]
    read = np.where(np.r_[np.ones(40), np.zeros(10), np.ones(10), np.zeros(40)], y, np.nan)
    weight = np.r_[np.full(50, 50 / 40), np.full(50, 50 / 10)]
    assert float(corrected(f, read, weight, np.array(1.0)).value) == pytest.approx(0.5)
    assert np.nanmean(read) == 0.8, "where every label weighs the same"


def test_a_few_answers_on_which_both_agree_claim_no_judge_without_error():
    f = np.r_[np.ones(30), np.zeros(30)]
    read = np.where(np.arange(60) % 10 == 0, f, np.nan)
    low, high = corrected(f, read, np.full(60, 10.0), np.array(1.0)).interval(0.95, 0.0)
    assert low < 0.25 and high > 0.75
    one = np.where(np.arange(60) == 0, f, np.nan)
    assert np.isnan(corrected(f, one, np.full(60, 60.0), np.array(1.0)).interval(0.95, 0.0)).all()


def test_the_numbers_are_those_of_the_published_estimator_where_the_labels_are_few_of_many():
    # PPI++ with power tuning c: var = c^2 var(f) / N + var(y - c f) / n (arXiv 2311.01453, section 3), all but equal to
    # ours where the answers read are a small part of all
    rng = np.random.default_rng(3)
    f = (rng.random(20_000) < 0.4) * 1.0
    y = np.where(rng.random(20_000) < 0.85, f, 1 - f)
    drawn = np.arange(20_000) < 400
    c = use_of_judge(f[None], np.where(drawn, y, np.nan)[None], np.ones((1, 20_000)))
    found = corrected(f, np.where(drawn, y, np.nan), np.ones(20_000), c)
    residual = y[drawn] - c * f[drawn]
    assert float(found.value) == pytest.approx(c * f.mean() + residual.mean())
    published = np.sqrt(c**2 * f.var() / 20_000 + residual.var() / 400)
    assert np.sqrt((found.influence**2).sum() + found.pseudo) == pytest.approx(published, rel=0.02)


def a_read_run(own, read, harmful=None, **more):
    """A run whose rule says `own` and of which `dana` read some answers: condition -> labels, -1 where not read."""
    tree = synthetic.tree(own, harmful=harmful, **more)
    dims, label = ("condition", "prompt"), np.array([read[c] for c in own], dtype="int8")
    flags = np.array(harmful or [True] * label.shape[1])
    chance = shares(label != MISSING, np.ones(label.shape, dtype=bool), flags)
    coords = {d: tree["/outcomes"][d].values for d in dims}
    group = {"label": (dims, label), "done": (dims, label != MISSING), "probability": (dims, chance)}
    tree["/labels/dana"] = xr.DataTree(xr.Dataset(group, coords))
    return tree


@pytest.fixture(scope="module")
def read_run():
    own = {"baseline": [0] * 18 + [1] * 2, "mine": [0] * 4 + [1] * 16, "other": [1] * 20}
    read = {"baseline": [0] * 20, "mine": [0, -1] * 8 + [1] * 4, "other": [-1] * 20}
    return a_read_run(own, read)


def test_a_judge_is_measured_condition_by_condition_and_no_label_is_no_rate(read_run):
    errors = analysis.judge_errors(read_run)
    mine = errors.sel(condition="mine")
    assert int(mine["n"]) == 12 and int(mine["n_recall"]) == 8 and float(mine["recall"]) == 2 / 8
    assert float(mine["precision"]) == 1 and float(mine["precision_low"]) < 0.5
    assert float(errors["recall"].sel(condition="baseline")) == 0.9
    rate = analysis.corrected_rate(read_run)
    assert float(rate["rate"].sel(condition="baseline")) == 1 and float(rate["judged"].sel(condition="baseline")) == 0.9
    assert float(rate["judged"].sel(condition="mine")) == 0.2 and 0.4 < float(rate["rate"].sel(condition="mine")) < 0.9
    other = rate.sel(condition="other")
    assert np.isnan([float(other[k]) for k in ("rate", "low", "high")]).all() and int(other["n_read"]) == 0
    effect = analysis.corrected_contrast(read_run)
    assert np.isnan(effect["difference"].sel(condition=["baseline", "other"])).all()
    assert float(effect["judged"].sel(condition="mine")) == pytest.approx(-0.7)
    assert -0.5 < float(effect["difference"].sel(condition="mine")) < 0
    assert effect.attrs["by"] == "dana" and rate.attrs["judge"] == "own"


def test_what_a_person_said_of_answers_drawn_by_nobody_knows_what_chance_corrects_no_rate(read_run):
    unknown = read_run.copy(deep=True)
    unknown["/labels/dana/probability"].values[:] = np.nan
    assert np.isnan(analysis.corrected_rate(unknown)["rate"]).all()
    assert int(analysis.judge_errors(unknown)["n"].sel(condition="mine")) == 12


def test_an_unknown_person_or_judge_is_refused_with_those_that_there_are(read_run):
    with pytest.raises(GatingError, match=r"by='dan'.*did you mean dana"):
        analysis.corrected_rate(read_run, by="dan")
    with pytest.raises(GatingError, match=r"judge='nobody'.*own or labels/dana"):
        analysis.refusal_rate(read_run, judge="nobody")
    with pytest.raises(GatingError, match="is a person, whose labels are not corrected"):
        analysis.corrected_rate(read_run, judge="labels/dana")
    with pytest.raises(GatingError, match=r"python -m gating\.label"):
        analysis.corrected_rate(synthetic.tree({"baseline": [0, 1]}))


def test_harmful_and_harmless_prompts_are_not_pooled_and_each_is_corrected_by_its_own_labels():
    own, harmful = {"baseline": [0] * 10 + [1] * 10}, [True] * 10 + [False] * 10
    tree = a_read_run(own, {"baseline": [0] * 5 + [1] * 5 + [1] * 10}, harmful)
    with pytest.raises(GatingError, match="not to be pooled"):
        analysis.corrected_rate(tree)
    rates = [float(analysis.corrected_rate(tree, harmful=h)["rate"][0]) for h in (True, False)]
    assert rates == [0.5, 0.0]


def test_a_claim_keeps_the_judges_contrast_and_has_a_corrected_one_where_its_answers_were_read(read_run):
    def claim(*plus):
        return {"says": "x", "test": "difference", "plus": list(plus), "minus": ["baseline"], "expect": "below"}

    claims = {"mine": claim("mine"), "both": claim("mine", "mine"), "other": claim("other"), "nothing": claim("none")}
    claims["score"] = claim("mine") | {"measure": "refusal_score"}
    found = analysis.corrected_claims(read_run, {"family": "f", "claims": claims})
    assert found["claim"].values.tolist() == ["mine", "both", "other", "nothing"]
    effect = analysis.corrected_contrast(read_run).sel(condition="mine")
    mine, both = (found.sel(claim=name) for name in ("mine", "both"))
    assert [float(mine[k]) for k in ("estimate", "low", "high")] == pytest.approx(
        [float(effect[k]) for k in ("difference", "low", "high")]
    )
    assert float(mine["judged"]) == pytest.approx(-0.7) and int(mine["n_read"]) == 32
    assert float(both["high"]) - float(both["low"]) > float(mine["high"]) - float(mine["low"])
    assert np.isnan(found["estimate"].sel(claim=["other", "nothing"])).all()
