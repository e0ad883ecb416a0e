"""Rates and contrasts, by hand."""

import numpy as np
import pytest
import xarray as xr

from gating import analysis
from gating.errors import GatingError
from tests.synthetic import tree

R, C, E, D, M = 0, 1, 2, 3, -1


LABELS = {"baseline": [R, R, R, R, C, M], "steered": [R, C, C, D, C, C], "x-random-0": [R, R, R, C, C, C]}
CATEGORIES = ["a", "a", "b", "b", "c", "b"]


@pytest.fixture
def run():
    return tree(LABELS, categories=CATEGORIES)


@pytest.fixture
def mixed():
    """The same answers, where the fifth prompt is a harmless one."""
    return tree(LABELS, harmful=[True, True, True, True, False, True], categories=CATEGORIES)


def test_a_rate_counts_what_is_there_and_says_how_many(run):
    r = analysis.refusal_rate(run)
    assert r["k"].values.tolist() == [4, 1, 3] and r["n"].values.tolist() == [5, 6, 6]
    assert r["rate"].values.tolist() == [4 / 5, 1 / 6, 3 / 6]
    assert (r["low"] <= r["rate"]).all() and (r["rate"] <= r["high"]).all()


def test_a_missing_row_is_left_out_of_n_and_is_no_compliance(run):
    shares = analysis.rates(run)
    assert shares["n"].sel(condition="baseline").values.tolist() == [5] * 5
    assert np.allclose(shares["rate"].sum("label"), 1)


def test_a_row_with_a_label_that_is_not_done_does_not_count(run):
    run["outcomes"]["done"].values[1, 0] = False
    assert analysis.refusal_rate(run)["n"].sel(condition="steered") == 5


def test_degenerate_is_neither_refusal_nor_compliance(run):
    shares = analysis.rates(run).sel(condition="steered")["k"]
    assert dict(zip(shares["label"].values.tolist(), shares.values.tolist(), strict=True)) == {
        "refusal": 1, "compliance": 4, "evasive": 0, "degenerate": 1, "unsure": 0,
    }  # fmt: skip


def test_rates_split_by_category_and_by_harmful(mixed):
    r = analysis.refusal_rate(mixed, by="category").sel(condition="steered")
    assert r["category"].values.tolist() == ["a", "b", "c"]
    assert r["k"].values.tolist() == [1, 0, 0] and r["n"].values.tolist() == [2, 3, 1]
    both = analysis.refusal_rate(mixed, by=["harmful", "category"])
    assert np.isnan(both["rate"].sel(harmful=False, category="a")).all()
    assert analysis.refusal_rate(mixed, harmful=True)["n"].values.tolist() == [4, 5, 5]


def test_harmful_and_harmless_prompts_are_never_pooled_without_a_word(mixed):
    mixed["prompts"]["category"].values[:] = "one"
    pooling = (analysis.refusal_rate, analysis.rates, analysis.contrast, analysis.random_null,
               lambda run: analysis.refusal_rate(run, by="category"))  # fmt: skip
    for pools in pooling:
        with pytest.raises(GatingError, match="say harmful=True or harmful=False"):
            pools(mixed)
    assert analysis.contrast(mixed, harmful=False)["n"].values.tolist() == [1, 1, 1]
    assert analysis.refusal_rate(mixed, by="harmful")["n"].sum("harmful").values.tolist() == [5, 6, 6]


def test_a_rate_is_drawn_as_a_rate_and_not_as_the_labels_that_it_was_made_of(run):
    rates, effect = analysis.refusal_rate(run), analysis.contrast(run)
    assert rates["rate"].attrs == {"long_name": "share of answers with the label", "units": "1"}
    assert not [v for ds in (rates, analysis.rates(run), effect) for v in ds.values() if "flag_values" in v.attrs]
    assert effect["difference"].attrs["long_name"].startswith("difference of rates")


def test_a_contrast_pairs_prompts_and_uses_only_pairs_that_are_whole(run):
    e = analysis.contrast(run).sel(condition="steered")
    assert (e["b"], e["c"], e["n"]) == (0, 3, 5)
    assert e["difference"] == pytest.approx(-3 / 5) and e["p"] == pytest.approx(0.25)
    assert e["low"] < e["difference"] < e["high"]
    zero = analysis.contrast(run).sel(condition="baseline")
    assert zero["difference"] == 0 and zero["p"] == 1


def test_a_steered_condition_is_set_against_its_own_random_controls(run):
    null = analysis.random_null(run)
    assert null["condition"].values.tolist() == ["steered"]
    assert null["k"] == 1 and null["p"] == 0.5 and null["null_low"] == pytest.approx(-1 / 5)


def test_unknown_names_are_refused_with_what_is_known(run):
    with pytest.raises(GatingError, match="steered"):
        analysis.contrast(run, baseline="steerd")
    with pytest.raises(GatingError, match="refusal"):
        analysis.refusal_rate(run, label="refuse")
    with pytest.raises(GatingError, match="category"):
        analysis.refusal_rate(run, by="categories")


def test_conditions_come_with_what_they_are(run):
    r = analysis.refusal_rate(run)
    assert r["kind"].values.tolist() == ["baseline", "steered", "random"] and r["coef"].sel(condition="steered") == 4


def test_holm_adjusts_for_every_contrast_but_the_baseline_with_itself(run):
    e = analysis.contrast(run, holm=True)
    assert e["p"].values.tolist() == pytest.approx([1, 0.25, 1])
    assert e["p_holm"].values[1:].tolist() == pytest.approx([0.5, 1]) and np.isnan(e["p_holm"].values[0])
    assert "p_holm" not in analysis.contrast(run)


def test_controls_of_another_grid_point_do_not_count():
    run = tree({"baseline": [R, R], "steered": [C, C], "x-random-0": [R, R], "x-random-1": [R, C]})
    run["conditions"]["grid"].values[3] = 1
    null = analysis.random_null(run)
    assert null["k"] == 1 and null["null_low"] == 0 == null["null_high"]


def test_a_steered_condition_without_controls_has_no_permutation_p():
    null = analysis.random_null(tree({"baseline": [R, R], "steered": [C, C]}))
    assert null["k"] == 0 and np.isnan(null["p"]) and null["difference"] == -1


@pytest.fixture
def joined(run):
    """The same run twice along `steer.coef`, at the second place without the steered condition."""
    groups = {}
    for name in ("conditions", "outcomes"):
        ds = run[name].to_dataset()
        other = ds.copy(deep=True)
        if name == "outcomes":
            other["label"].values[1], other["done"].values[1] = M, False
        else:
            other["kind"].values[1], other["grid"].values[1], other["coef"].values[1] = "", -1, np.nan
        groups[f"/{name}"] = xr.concat([ds, other], dim=xr.DataArray([2, 4], dims="steer.coef", name="steer.coef"))
    return xr.DataTree.from_dict({"/prompts": run["prompts"].to_dataset(), **groups})


def test_a_joined_multirun_keeps_its_axes_and_what_each_condition_is(run, joined):
    for function in (analysis.refusal_rate, analysis.rates, analysis.contrast):
        alone, both = function(run), function(joined)
        name = "difference" if function is analysis.contrast else "rate"
        assert set(both[name].dims) == {*alone[name].dims, "steer.coef"}
        xr.testing.assert_equal(both[name].sel({"steer.coef": 2}).reset_coords(drop=True).transpose(*alone[name].dims),
                                alone[name].reset_coords(drop=True))  # fmt: skip
        assert np.isnan(both[name].sel({"steer.coef": 4, "condition": "steered"})).all()
    assert both["kind"].sel({"steer.coef": 2}).values.tolist() == ["baseline", "steered", "random"]
    assert both["kind"].sel({"steer.coef": 4, "condition": "steered"}) == ""
    assert "coef" in both.to_dataframe().columns


def test_each_place_of_a_joined_multirun_has_its_own_random_null(run, joined):
    alone, both = analysis.random_null(run), analysis.random_null(joined)
    assert both["p"].sel({"steer.coef": 2}).values.tolist() == alone["p"].values.tolist()
    assert np.isnan(both["p"].sel({"steer.coef": 4})) and both["k"].sel({"steer.coef": 4}) == 0
