"""Several models in one answer: what is combined, how sure it is, and what is no one question."""

import json
from pathlib import Path

import numpy as np
import pytest

from gating import meta as command
from gating import store
from gating.analysis import alike, meta
from gating.errors import GatingError
from gating.figures.forest import forest
from tests.synthetic import tree

FAMILY = {"family": "mine", "alpha": 0.05, "claims": {
    "falls": {"says": "It falls.", "test": "difference", "plus": ["compliant"], "minus": ["baseline"],
              "expect": "below", "margin": 0.2},
    "falls_by_score": {"says": "Its score falls.", "test": "difference", "plus": ["compliant"], "minus": ["baseline"],
                       "expect": "below", "measure": "refusal_score"},
    "reverse_is_nothing": {"says": "Its reverse is nothing.", "test": "equivalence", "plus": ["reverse"],
                           "minus": ["baseline"], "margin": 0.1},
    "more_than_random": {"says": "It is more.", "test": "permutation", "plus": ["compliant"], "minus": ["baseline"],
                         "null": ["compliant-random-0"], "expect": "below"},
}}  # fmt: skip
CONFIG = "data: {{n: 60}}\nsteer: {{layers: {at}, scope: all}}\nmodel: {{name: m}}\n"


def model(name: str, kept: int, n=60, at=3, claimed=True, harmful=None, **attrs: object):
    """A run in which the persona leaves the first `kept` prompts refused, and its reverse changes nothing."""
    labels = {
        "baseline": [0] * n,
        "compliant": [0] * kept + [1] * (n - kept),
        "reverse": [0] * n,
        "compliant-random-0": [0] * n,
    }
    made = tree(labels, harmful)
    made.attrs |= {"model_id": name, "model_fingerprint": name, "config": CONFIG.format(at=at), "max_new_tokens": 8}
    made.attrs |= {"choices": '{"experiment": "e"}', "claims": json.dumps(FAMILY if claimed else None)} | attrs
    return made


@pytest.fixture(scope="module")
def runs():
    return {f"r{i}": model(f"m{i}", kept, at=i) for i, kept in enumerate((6, 9, 12))}


@pytest.fixture(scope="module")
def answered(runs):
    return command.answer(runs, None)


@pytest.mark.parametrize(("k", "tau", "shared"), [(2, 0.2, 0.5), (3, 0.2, 0.9), (5, 0.05, 0.9)])
def test_the_interval_covers_the_mean_over_models_that_were_drawn_from_it(k, tau, shared):
    rng, covered, narrow = np.random.default_rng(1), 0, 0
    se = np.linspace(0.05, 0.1, k)
    for _ in range(100):
        error = np.sqrt(shared) * rng.standard_normal() + np.sqrt(1 - shared) * rng.standard_normal(k)
        y = -0.3 + tau * rng.standard_normal(k) + se * error
        own, unshared = meta.random_effects(y, se, shared), meta.random_effects(y, se)
        covered += own.low <= -0.3 <= own.high
        narrow += not unshared.low <= -0.3 <= unshared.high
    assert covered >= 0.93 * 100
    assert narrow > 0.1 * 100 or shared < 0.9 or k < 5  # what five models share does not average out


def test_effects_that_differ_by_more_than_their_errors_show_as_heterogeneity():
    alike_, apart = (meta.random_effects(y, [0.05] * 4) for y in ([-0.31, -0.3, -0.3, -0.29], [-0.9, -0.5, -0.1, 0.1]))
    assert alike_.tau2 == 0 and alike_.i2 == 0 and alike_.q_p > 0.9
    assert apart.tau2 == pytest.approx(np.var([-0.9, -0.5, -0.1, 0.1], ddof=1) - 0.05**2, rel=1e-3)
    assert apart.i2 > 0.9 and apart.q_p < 0.001 and apart.predict_high > apart.high > alike_.high


def test_one_model_has_no_mean_and_two_have_no_prediction():
    assert np.isnan(meta.random_effects([-0.5], [0.1]).estimate)
    two = meta.random_effects([-0.5, -0.4], [0.1, 0.1])
    assert two.low < -0.45 < two.high and np.isnan(two.predict_low)
    assert two.high - two.low > 12.7 * 2 * 0.07  # t of one degree of freedom


def test_prompts_that_all_models_share_are_seen_in_their_answers(answered):
    falls = answered.sel(claim="falls")
    assert float(falls["estimate"]) == pytest.approx(-0.85, abs=0.01) and int(falls["k"]) == 3
    assert 0.7 < float(falls["shared"]) < 0.85  # the prompts that one keeps refusing, the others do too
    assert float(falls["low"]) >= -1


def test_the_claim_is_judged_over_models_and_a_permutation_is_not(answered):
    assert answered["verdict"].sel(claim="falls") == "supported"
    assert answered["verdict"].sel(claim="more_than_random") == ""
    assert np.isfinite(answered["low"].sel(claim="more_than_random"))


def test_a_model_whose_values_do_not_vary_is_left_out_and_not_weighed_as_certain(answered):
    score = answered.sel(claim="falls_by_score")
    assert int(score["k"]) == 0 and np.isnan(score["estimate"]) and score["verdict"] == "missing"
    assert np.isnan(score["effect_se"]).all()


def test_a_model_on_which_the_claim_cannot_be_tested_is_left_out_and_named(runs):
    lacking = {**runs, "r3": model("m3", 6)}
    lacking["r3"]["outcomes"]["label"].loc[{"condition": "compliant"}] = -1
    ds = command.answer(lacking, None)
    assert int(ds["k"].sel(claim="falls")) == 3 and int(ds["k"].sel(claim="reverse_is_nothing")) == 4
    assert np.isnan(ds["effect_se"].sel(claim="falls", model="m3"))
    assert "fewer than two prompts" in str(ds["reason"].sel(claim="falls", model="m3").item())


def test_runs_without_claims_give_contrasts_that_are_not_judged():
    ds = command.answer({f"r{i}": model(f"m{i}", k, claimed=False) for i, k in enumerate((6, 9))}, None)
    assert ds["claim"].values.tolist() == ["compliant", "reverse"] and "verdict" not in ds


@pytest.mark.parametrize(("change", "named"), [
    ({"choices": '{"experiment": "other"}'}, "experiment is e and other"),
    ({"config": CONFIG.replace("all", "prompt").format(at=3)}, "steer.scope is all and prompt"),
    ({"harmful": [False] + [True] * 59}, r"prompts is 1 \(such as p0, harmful\) and 1 \(such as p0, harmless\)"),
    ({"max_new_tokens": 16}, "max_new_tokens is 8 and 16"),
    ({"judge": "2"}, "judge is 1 and 2"),
    ({"model_fingerprint": "m0"}, "same model"),
    ({"status": "running"}, "not finished"),
    ({"claims": "{}"}, "different claims"),
    ({"n": 50}, r"prompts is 10 \(such as p50, harmful\) and nothing"),
])  # fmt: skip
def test_runs_that_were_not_asked_the_same_are_refused_by_what_differs(change, named, runs):
    with pytest.raises(GatingError, match=named) as e:
        command.answer({"r0": runs["r0"], "other": model("m9", 6, **change)}, None)
    assert "other" in str(e.value)


def test_the_same_prompts_from_another_file_and_other_readouts_are_no_difference(runs):
    other = model(
        "m9", 6, config=CONFIG.format(at=3).replace("n: 60", "harmful: elsewhere.csv") + "activations: true\n"
    )
    assert alike.check_alike({"r0": runs["r0"], "other": other}) == ["steer.layers: 0, 3"]


def test_each_models_own_blocks_and_doses_may_differ_and_are_named(runs):
    assert alike.check_alike(runs) == ["steer.layers: 0, 1, 2"]


def test_two_models_of_one_name_are_told_apart_by_their_folders(monkeypatch):
    monkeypatch.setattr(store, "locate", lambda path: Path(path) / "store.zarr")
    ds = command.answer({"a/one": model("m", 6, model_fingerprint="1"), "a/two": model("m", 9)}, None)
    assert ds["model"].values.tolist() == ["m (one)", "m (two)"]


def test_the_command_prints_every_model_and_writes_numbers_and_a_picture(runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(store, "open_run", runs.__getitem__)
    monkeypatch.setattr("sys.argv", ["gating.meta", *runs, "--out", str(tmp_path / "out")])
    command.main()
    out = capsys.readouterr().out
    assert "3 models: mine" in out and "It falls., margin 20" in out and "left out" in out
    assert "no verdict over models" in out and "steer.layers: 0, 1, 2" in out
    kept = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert [m["model"] for m in kept["claims"][0]["models"]] == ["m0", "m1", "m2"]
    assert kept["claims"][1]["estimate"] is None and (tmp_path / "out" / "forest.png").stat().st_size > 10_000


def test_the_forest_draws_measures_apart_from_rates(answered):
    figure = forest(answered)
    assert [ax.get_xlabel() for ax in figure.axes] == ["contrast, points", "contrast, refusal_score"]
    figure.savefig("/dev/null", format="png")
