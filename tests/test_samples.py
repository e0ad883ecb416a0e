"""Sampled answers: the same wherever and however often a run is begun, and prompts as the sample in every interval."""

import numpy as np
import pytest
import xarray as xr

import gating
from gating import analysis, store
from gating.errors import GatingError
from gating.figures.samples import FIGURES
from gating.pipeline import execute, study
from tests.conftest import compose
from tests.synthetic import tree

SMALL = ("model=tiny-llama", "data.n=3", "directions.questions=2", "directions.n=4", "controls.random=0",
         "controls.reverse=false", "data.harmless=null", "sampling.n=2", "max_new_tokens=6")  # fmt: skip
SPLIT = ("backend.batch_rows=4",)  # two prompts a batch


def planned(folder, *more):
    return study.prepare(*compose(*SMALL, f"runs_dir={folder}", *more))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = planned(tmp_path_factory.mktemp("whole"), *SPLIT)
    execute.execute(made)
    return gating.open_run(made.store)


def test_each_prompt_has_its_samples_under_each_condition_judged_like_greedy_answers(whole):
    samples, greedy = whole["samples"].to_dataset().load(), whole["outcomes"].to_dataset().load()
    assert dict(samples.sizes) == {"condition": 2, "prompt": 3, "sample": 2, "token": 6}
    assert (samples["label"] >= 0).all() and samples.attrs == {"temperature": 1.0, "top_p": 0.95}
    assert samples["prompt"].values.tolist() == greedy["prompt"].values.tolist()
    ids = samples["token_ids"].values
    assert not np.array_equal(ids[:, :, 0], ids[:, :, 1])
    assert not np.array_equal(ids[:, :, 0], greedy["token_ids"].values)
    assert np.isfinite(samples["nll"].values[samples["n_tokens"].values > 0]).all()


def test_a_killed_run_goes_on_with_the_samples_that_it_would_have_drawn(whole, tmp_path, monkeypatch):
    made, real, calls = planned(tmp_path, *SPLIT), store.write_batch, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(store, "write_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(made)
    begun = gating.open_run(made.store)["samples"]["label"].values
    assert (begun[:, :2] >= 0).all() and (begun[:, 2:] == -1).all()
    monkeypatch.setattr(store, "write_batch", real)
    assert "resumed: 2 of 3" in execute.execute(made)
    again = gating.open_run(made.store)["samples"].to_dataset().load()
    assert again.equals(whole["samples"].to_dataset().load())


def test_a_server_would_draw_the_same_samples(whole, tmp_path):
    made = planned(tmp_path, *SPLIT, "backend=simulation")
    execute.execute(made)
    assert gating.open_run(made.store)["samples"]["token_ids"].equals(whole["samples"]["token_ids"])


@pytest.mark.parametrize("word", ["sampling.n=-1", "sampling.n=1001", "sampling.temperature=0"])
def test_what_cannot_be_sampled_is_refused_by_its_key(tmp_path, word):
    with pytest.raises(GatingError, match=word.split("=")[0]):
        planned(tmp_path, word)


def sampled(labels, greedy=None, categories=None):
    """A run whose samples have labels {condition: [prompt, sample]}."""
    each = {c: np.asarray(v) for c, v in labels.items()}
    made = tree({c: (greedy or {}).get(c, v[:, 0].tolist()) for c, v in each.items()}, categories=categories)
    there = made["outcomes"].to_dataset()
    ds = xr.Dataset(
        {"label": (("condition", "prompt", "sample"), np.stack(list(each.values())).astype("int8"))},
        coords={"condition": there["condition"], "prompt": there["prompt"]},
        attrs={"temperature": 1.0, "top_p": 0.95},
    )
    made["samples"] = xr.DataTree(ds)
    return made


def test_a_rate_is_the_mean_over_prompts_and_its_n_is_theirs():
    half = [[0, 1]] * 10 + [[0, 0]] * 10
    ds = analysis.sampled_rates(sampled({"baseline": [[0, 0]] * 20, "compliant": half}))
    own = ds.sel(condition="compliant")
    assert float(own["rate"]) == 0.75 and float(own["difference"]) == -0.25 and float(own["divided"]) == 0.5
    assert float(own["greedy"]) == 1.0 and int(own["n"]) == 20 and int(own["answers"]) == 40
    assert np.isnan(ds["difference"].sel(condition="baseline"))


def test_more_answers_to_the_same_prompts_do_not_make_more_of_them():
    rng = np.random.default_rng(0)
    once = rng.integers(0, 2, (30, 1))
    few, many = (
        analysis.sampled_rates(sampled({"baseline": np.repeat(once, k, 1), "compliant": np.repeat(1 - once, k, 1)}))
        for k in (1, 20)
    )
    for field in ("rate", "low", "high", "difference_low", "difference_high", "n"):
        assert np.array_equal(few[field], many[field], equal_nan=True), field
    assert int(many["answers"][0]) == 600


def test_the_interval_covers_a_rate_whose_prompts_differ():
    """Prompts have refusal probabilities of their own, of mean 0.4; as 200 answers the interval would be too short."""
    rng, labels = np.random.default_rng(1), {}
    for name in ("baseline", *(f"draw{i}" for i in range(60))):
        p = rng.beta(0.4, 0.6, (40, 1))
        labels[name] = (rng.random((40, 5)) >= p).astype(int)
    ds = analysis.sampled_rates(sampled(labels))
    rate, low, high = (ds[v].values for v in ("rate", "low", "high"))
    pooled = np.abs(rate - 0.4) <= 1.96 * np.sqrt(rate * (1 - rate) / 200)
    assert ((low <= 0.4) & (high >= 0.4)).sum() >= 55 > pooled.sum()


def test_missing_samples_are_left_out_and_a_prompt_without_any_does_not_count():
    gone = [[0, -1], [-1, -1], [1, 1], [0, 0]]
    own = analysis.sampled_rates(sampled({"baseline": gone}, greedy={"baseline": [0, 0, 1, 1]})).isel(condition=0)
    assert int(own["n"]) == 3 and int(own["answers"]) == 5
    assert float(own["rate"]) == pytest.approx(2 / 3) and float(own["greedy"]) == pytest.approx(1 / 3)


def test_a_joined_multirun_is_taken_apart_first(whole):
    joined = whole.copy()
    joined.attrs["axes"] = ["seed"]
    for analysed in (analysis.sampled_rates, analysis.stability, analysis.effect_over_directions):
        with pytest.raises(GatingError, match="joined over seed; open its runs one by one"):
            analysed(joined)


def test_a_run_without_samples_says_how_to_have_them_and_one_with_them_draws_them(whole):
    with pytest.raises(GatingError, match=r"sampling\.n=5"):
        analysis.sampled_rates(tree({"baseline": [0, 1]}))
    (picture,) = FIGURES
    assert not picture.drawable(tree({"baseline": [0, 1]})) and picture.drawable(whole)
    assert picture.draw(whole, True).axes and "of 3 prompts disagree" in picture.alt_text(whole, True)
    assert "2 a prompt" in picture.caption(whole)
