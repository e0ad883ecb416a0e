"""Claims on runs with a known truth: verdicts, what is missing, and files that cannot be."""

import json
from typing import Any

import numpy as np
import pytest

from gating.analysis import claims
from gating.errors import GatingError
from tests import synthetic

N = 120


def labels(rate, n=N, seed=0):
    """Refusal (0) for a share of the prompts, compliance (1) for the others."""
    return np.where(np.random.default_rng(seed).random(n) < rate, 0, 1).tolist()


def run(**rates):
    categories = [f"c{i % 10}" for i in range(N)]
    return synthetic.tree(
        {c.replace("_r", "-random-"): labels(v, seed=i) for i, (c, v) in enumerate(rates.items())},
        categories=categories,
    )


def family(**claim) -> Any:
    base = {
        "says": "It is so.",
        "test": "difference",
        "plus": ["steered"],
        "minus": ["baseline"],
        "expect": "below",
        "margin": 0.2,
    }
    one = {k: v for k, v in {**base, **claim}.items() if v is not None}
    return {"family": "f", "alpha": 0.05, "claims": {"one": one}}


def verdict(tree, **claim):
    return claims.evaluate(tree, family(**claim)).sel(claim="one")


def test_a_large_fall_is_supported_none_is_refuted_and_one_near_the_margin_undecided_with_an_n():
    assert verdict(run(baseline=0.95, steered=0.3))["verdict"] == "supported"
    assert verdict(run(baseline=0.95, steered=0.95))["verdict"] == "refuted"
    near = verdict(run(baseline=0.95, steered=0.72))
    assert (
        near["verdict"] == "undecided"
        and near["n_to_decide"] > N
        and "prompts would decide" in str(near["reason"].item())
    )


def test_restored_to_baseline_is_an_equivalence_that_a_few_prompts_cannot_show():
    equal = {"test": "equivalence", "expect": None, "margin": 0.1}
    tree = run(baseline=0.97, steered=0.97)
    assert verdict(tree, **equal)["verdict"] == "supported"
    assert verdict(run(baseline=0.97, steered=0.5), **equal)["verdict"] == "refuted"
    few = synthetic.tree({c: [0] * 10 for c in ("baseline", "steered")})
    assert verdict(few, **equal)["verdict"] == "undecided"


def test_a_difference_in_differences_takes_the_mean_of_a_pattern():
    tree = run(baseline=0.95, steered=0.9, a_r0=0.3, a_r1=0.5)
    found = verdict(tree, plus=["steered"], minus=[{"like": "a-random-*"}], expect="above")
    labels_of = tree["outcomes"]["label"]
    refused = (labels_of == 0).mean("prompt")
    mean = refused.sel(condition=["a-random-0", "a-random-1"]).mean()
    assert np.isclose(found["estimate"], refused.sel(condition="steered") - mean) and found["verdict"] == "supported"


def test_a_permutation_needs_20_random_directions_and_is_beaten_by_one_that_does_as_much():
    rates = {"baseline": 0.95, "steered": 0.3, **{f"a_r{k}": 0.9 for k in range(19)}}
    claim = {"test": "permutation", "null": [{"like": "a-random-*"}], "margin": None}
    few = verdict(run(**rates), **claim)
    assert few["verdict"] == "undecided" and np.isclose(few["p"], 0.05) and few["k"] == 19
    assert "20 or more would decide it" in str(few["reason"].item())
    enough = {**rates, "a_r19": 0.9}
    assert verdict(run(**enough), **claim)["verdict"] == "supported"
    beaten = verdict(run(**{**enough, "a_r5": 0.1}), **claim)
    assert beaten["verdict"] == "undecided" and "not more extreme" in str(beaten["reason"].item())


def test_permutations_are_adjusted_among_themselves():
    tree = run(baseline=0.95, steered=0.3, **{f"a_r{k}": 0.9 for k in range(20)})
    one = family(test="permutation", null=[{"like": "a-random-*"}], margin=None)["claims"]["one"]
    both: Any = {"family": "f", "alpha": 0.05, "claims": {"a": one, "b": family()["claims"]["one"]}}
    found = claims.evaluate(tree, both)
    assert np.allclose(found["p_holm"], found["p"])
    both["claims"] = {"a": one, "b": one}
    twice = claims.evaluate(tree, both)
    assert np.allclose(twice["p_holm"], 2 / 21) and (twice["verdict"] == "undecided").all()


def test_a_condition_that_is_not_there_makes_a_claim_missing_not_wrong():
    found = verdict(run(baseline=0.9, other=0.1))
    assert found["verdict"] == "missing" and "'steered'" in str(found["reason"].item()) and np.isnan(found["estimate"])
    assert json.loads(claims.to_json(claims.evaluate(run(baseline=0.9, other=0.1), family())))["claims"][0]["p"] is None


def test_only_prompts_with_a_label_under_every_condition_count():
    base, steered = labels(0.9), labels(0.2, seed=1)
    steered[:30] = [-1] * 30
    found = verdict(synthetic.tree({"baseline": base, "steered": steered}))
    pairs = np.array(base[30:]) == 0
    assert found["n"] == N - 30 and np.isclose(found["estimate"], (np.array(steered[30:]) == 0).mean() - pairs.mean())


def test_p_is_adjusted_over_the_family_and_over_runs():
    tree, other = run(baseline=0.95, steered=0.3), run(baseline=0.95, steered=0.6)
    both: Any = {"family": "f", "alpha": 0.05, "claims": {n: family()["claims"]["one"] for n in ("a", "b")}}
    one, two = claims.evaluate(tree, family()), claims.evaluate(tree, both)
    assert np.allclose(two["p_holm"], 2 * float(one["p"][0]))
    many = claims.evaluate_many({"x": tree, "y": other}, {"x": both, "y": both})
    assert np.allclose(many["x"]["p_holm"], 4 * float(one["p"][0]))


def test_a_measure_may_take_the_place_of_a_label():
    tree = run(baseline=0.9, steered=0.9)
    tree["outcomes"]["refusal_score"].values[:] = np.random.default_rng(0).normal(2, 0.5, (2, N))
    tree["outcomes"]["refusal_score"].values[1] -= 3
    found = verdict(tree, measure="refusal_score", margin=1.0)
    assert found["verdict"] == "supported" and np.isclose(found["estimate"], -3, atol=0.3)


@pytest.mark.parametrize("name", ["paper", "refute", "reversal"])
def test_the_shipped_families_can_be_read_and_name_conditions_of_their_experiment(name):
    from gating.models import architecture
    from gating.pipeline import conditions
    from tests.conftest import compose

    shipped = claims.load(name)
    run_config, _, _ = compose("model=qwen", f"experiment={name}")
    known = conditions.resolve(run_config).conditions(architecture(run_config.model)["layers"])
    claims.check_conditions(shipped, {c.name: c.kind for c in known})


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"test": "similar"}, "test"), ({"expect": "less"}, "expect"), ({"margin": 2}, "margin"), ({"plus": []}, "plus"),
     ({"label": "rude"}, "label"), ({"prompts": "bad"}, "prompts"), ({"why": "x"}, "why"), ({"says": None}, "says"),
     ({"test": "equivalence", "margin": 0.1}, "expect"),
     ({"test": "equivalence", "expect": None, "margin": -0.1}, "margin"),
     ({"test": "permutation"}, "null")],
)  # fmt: skip
def test_a_claim_that_could_not_be_evaluated_is_refused_by_name(change, culprit):
    with pytest.raises(GatingError, match=rf"claims\.one\.{culprit}"):
        claims.check(family(**change))


def test_a_family_that_is_none_is_refused(tmp_path):
    with pytest.raises(GatingError, match="paper"):
        claims.load("papers")
    bad = tmp_path / "bad.yaml"
    bad.write_text("family: [")
    with pytest.raises(GatingError, match=r"bad\.yaml"):
        claims.load(str(bad))
    with pytest.raises(GatingError, match="alpha"):
        claims.check({"family": "f", "alpha": 2.0, "claims": {"a": {}}})


def test_a_claim_on_a_measure_counts_answers_without_a_label_and_one_on_a_label_does_not():
    tree = run(baseline=0.9, steered=0.1)
    outcomes = tree["/outcomes"].to_dataset()
    outcomes["refusal_score"].values[:] += np.random.default_rng(0).normal(size=outcomes["refusal_score"].shape)
    tree["/outcomes"].dataset = outcomes.assign(label=outcomes["label"] * 0 - 1)  # as in a run of max_new_tokens=1
    assert verdict(tree, measure="refusal_score", margin=1.0)["n"] == N
    assert verdict(tree)["verdict"] == "missing"


def test_a_measure_that_does_not_vary_leaves_a_claim_undecided():
    tree = run(baseline=0.9, steered=0.5)
    tree["outcomes"]["repetition"].values[:] = 0
    found = verdict(tree, measure="repetition", margin=0.1)
    assert found["verdict"] == "undecided" and "same value" in str(found["reason"].item())
