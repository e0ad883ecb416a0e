"""Variants of a direction: which rows they are made of, what a run keeps of them, and the error that they show."""

import numpy as np
import pytest
import xarray as xr

import gating
from gating import analysis
from gating.analysis import direction_variants
from gating.errors import GatingError
from gating.figures.variants import FIGURES
from gating.steering import direction_specs, variants
from gating.steering.interventions import Condition
from tests.synthetic import named_conditions, tree

SMALL = ("model=tiny-llama", "data.n=2", "directions.questions=3", "directions.n=4", "controls.random=0",
         "controls.reverse=false", "data.harmless=null", "max_new_tokens=4")  # fmt: skip


def spec(name, questions=4, seed=0):
    return direction_specs.direction_spec(name, "last", None, [], questions, seed)


def test_a_bootstrap_draws_questions_and_wordings_anew_and_keeps_rows_in_pairs():
    whole, boot = spec("compliant"), spec("compliant#boot-0")
    partner = dict(zip(whole.positive, whole.negative, strict=True))
    assert len(boot.positive) == len(whole.positive) and boot.positive != whole.positive
    assert all(partner[p] == n for p, n in zip(boot.positive, boot.negative, strict=True))
    drawn = {(c.system, c.user) for c in boot.positive}
    assert drawn == {(s, u) for s, _ in drawn for _, u in drawn}  # every drawn question under every drawn wording
    assert boot == spec("compliant#boot-0") != spec("compliant#boot-0", seed=1) != spec("compliant#boot-1")


def test_halves_share_no_question_and_no_wording():
    a, b = spec("compliant#half-a"), spec("compliant#half-b")
    for part in ("system", "user"):
        of_a, of_b = ({getattr(c, part) for c in half.positive} for half in (a, b))
        assert of_a and of_b and not of_a & of_b
    assert variants.rows("half-a", 4, 1, 0, "x").size == 2  # a single wording is in both
    with pytest.raises(GatingError, match="'x': a single question has no halves"):
        variants.rows("half-a", 1, 3, 0, "x")


@pytest.mark.parametrize(("name", "label"), [
    ("compliant:user@-2#boot-12", "compliant:user@-2#boot-12"), ("a#b/my.yaml#half-a", "my#half-a"),
    ("a#b/my.yaml:user@-2", "my:user@-2"),
])  # fmt: skip
def test_a_variant_stands_behind_role_position_and_path(name, label):
    assert direction_specs.label(name) == label
    assert direction_specs.split_name(name, "last") == direction_specs.split_name(variants.split(name)[0], "last")


@pytest.mark.parametrize("name", ["compliant#boot", "compliant#boot-01", "compliant#boot-1000", "compliant@-2#half-c",
                                  "compliant#", "compliant#boot-1#boot-2", "refusal#whole"])  # fmt: skip
def test_another_variant_is_refused_with_those_that_there_are(name):
    with pytest.raises(GatingError, match="behind # stands boot-0 to boot-999, half-a or half-b"):
        direction_specs.split_name(name, "last")


@pytest.mark.parametrize(("asked", "named"), [
    ({"compliant": 3}, "write {bootstrap"), ({"compliant": {"boot": 3}}, "write {bootstrap"),
    ({"compliant": {"bootstrap": True}}, "whole number"), ({"compliant": {"bootstrap": 1001}}, "0 to 1,000"),
    ({"compliant": {"halves": 2}}, "true or false"), ({"a+b": {"halves": True}}, "one whole direction"),
    ({"compliant#boot-1": {"halves": True}}, "one whole direction"),
])  # fmt: skip
def test_what_directions_variants_cannot_be_is_refused(asked, named):
    with pytest.raises(GatingError, match=named) as e:
        variants.check(asked)
    assert f"directions.variants.{next(iter(asked))}" in str(e.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that steers along a direction, two of its bootstraps and a half, and keeps more of them."""
    from gating.pipeline import execute, study
    from tests.conftest import compose

    more = ("+directions.variants={compliant:{bootstrap:3,halves:true},refusal:{halves:true}}", "steer.coef=8",
            "steer.direction=[compliant,'compliant#boot-0','compliant#boot-2','compliant#half-a']")  # fmt: skip
    planned = study.prepare(*compose(*SMALL, f"runs_dir={tmp_path_factory.mktemp('runs')}", *more))
    execute.execute(planned)
    return gating.open_run(planned.store)


def test_a_variant_is_the_direction_of_its_own_rows(run):
    """boot-0's vector is the mean difference over the rows that it drew, as the sides' means are linear in rows."""
    from gating import models
    from gating.pipeline.study import prepare
    from gating.steering.backend import Backend
    from tests.conftest import compose

    planned = prepare(*compose(*SMALL, "steer.direction='compliant#boot-0'"))
    backend = Backend(models.load(planned.run.model), 64)
    (boot,) = [s for s in planned.direction_specs if s.variant]
    ids = [list(planned.ids(c.user, c.system)) for c in (*boot.positive, *boot.negative)]
    states, _ = backend.capture(ids, ["last"])
    means = states[:, 0].reshape(2, len(boot.positive), *states.shape[2:]).mean(1, dtype="float64")
    stored = run["directions"]["vector"].sel(direction="compliant#boot-0").values
    assert np.allclose(stored, means[0] - means[1], atol=1e-4)
    assert int(run["directions"]["n_distinct_positive"].sel(direction="compliant#boot-0")) < len(boot.positive)


def test_variants_are_steered_with_but_not_read_at_every_prompt_nor_drawn_among_traits(run):
    assert any("compliant#boot-0" in name for name in run["conditions"]["condition"].values.tolist())
    assert run["directions"].sizes["direction"] == 1 + 5 + 1 + 2
    assert run["readouts"]["direction"].values.tolist() == ["compliant", "refusal"]
    assert analysis.whole_directions(run)["direction"].values.tolist() == ["compliant", "refusal"]
    said = {}
    for picture in FIGURES:
        assert picture.drawable(run) and picture.draw(run, True).axes
        said[picture.name] = picture.alt_text(run, True)
    assert "its least stable one (K = 3)" in said["stability"] and "the halves of refusal" in said["stability"]
    assert "2 bootstraps" in said["over_directions"]


def test_cosines_with_itself_are_summed_up_by_block(run):
    ds = analysis.stability(run)
    cosine = run["directions"]["cosine"]
    assert ds["k"].values.tolist() == [3, 0] and np.isnan(ds["cosine"].sel(direction="refusal")).all()
    boots = [f"compliant#boot-{i}" for i in range(3)]
    middle = np.median(cosine.sel(direction="compliant", other=boots).values, axis=0)
    assert np.allclose(ds["cosine"].sel(direction="compliant"), middle, atol=1e-6)
    assert (ds["low"] <= ds["high"]).sel(direction="compliant").all()
    assert np.isfinite(ds["halves"]).all()


def test_a_run_without_variants_has_nothing_of_them(run):
    none = tree({"baseline": [0, 0], "compliant": [1, 1]}, directions=["compliant", "refusal"])
    assert analysis.effect_over_directions(none).sizes["condition"] == 0
    assert analysis.stability(none).sizes["direction"] == 0
    assert not any(picture.drawable(none) for picture in FIGURES)


def test_the_experiment_steers_along_every_variant_that_its_claims_name():
    from gating.pipeline import study
    from tests.conftest import compose

    planned = study.prepare(*compose(*SMALL, "experiment=directions"))
    directions = {d for c in planned.conditions for iv in c.interventions for d in iv.directions}
    assert {"compliant#boot-7", "compliant#half-b", "compliant-2", "compliant-neutral"} <= directions
    assert len([s for s in planned.direction_specs if s.variant]) == 2 * 22


def steered(effects, baseline, n=60):
    """A run whose conditions leave given shares of n prompts refused, along a direction and its bootstraps."""
    names = ["compliant", *(f"compliant#boot-{i}" for i in range(len(effects) - 1))]
    specs = {f"c{i}": [{"direction": d, "layers": 2, "coef": 1.0}] for i, d in enumerate(names)}
    made = named_conditions(specs, names, 6)
    labels = {"baseline": baseline} | {c.name: list(e) for c, e in zip(made, effects, strict=True)}
    out = tree(labels, conditions=[Condition("baseline"), *made], directions=names,
               categories=[f"k{i % 6}" for i in range(n)])  # fmt: skip
    variant = [variants.split(name)[1] for name in names]
    out["directions"] = out["directions"].to_dataset().assign(variant=("direction", np.array(variant)))
    return out


def test_the_spread_over_bootstraps_widens_the_interval_and_does_not_shrink_with_their_number():
    def kept(share):
        return [0] * round(60 * share) + [1] * (60 - round(60 * share))

    base = [0] * 60
    same = analysis.effect_over_directions(steered([kept(0.5)] * 9, base)).isel(condition=0)
    few, many = (
        analysis.effect_over_directions(steered([kept(0.5), *[kept(s) for s in (0.3, 0.7) * half]], base))
        for half in (2, 8)
    )
    assert float(same["boot_sd"]) == 0 and float(same["low"]) == pytest.approx(float(same["prompts_low"]), abs=1e-9)
    for ds in (few, many):
        one = ds.isel(condition=0)
        assert float(one["difference"]) == -0.5 and float(one["high"]) > float(one["prompts_high"]) + 0.1
        assert float(one["boot_least"]) == pytest.approx(-0.7) and int(one["n"]) == 60
    assert many["k"].item() == 16 and few["k"].item() == 4


def test_the_interval_covers_an_effect_whose_direction_is_drawn_too():
    """Truth: the effect of the direction that infinitely many rows would give. Estimates: a direction of few rows."""
    rng, covered, prompts_alone, draws = np.random.default_rng(0), 0, 0, 400
    for _ in range(draws):
        own = 0.1 * rng.standard_normal()  # of the direction that was read
        boots = own + 0.1 * rng.standard_normal(8)
        estimate = -0.4 + own + 0.05 * rng.standard_normal()
        low, high = direction_variants.both(estimate, 0.05, 59, -0.4 + boots, 0.95)
        covered += low <= -0.4 <= high
        prompts_alone += abs(estimate + 0.4) <= 2 * 0.05
    assert covered >= 0.93 * draws and prompts_alone < 0.75 * draws


def test_conditions_that_differ_in_more_than_the_variant_are_not_taken_together(run):
    groups = direction_variants.alike(run)
    own = [g for g in groups if not g.condition.endswith("-reversed")]
    assert len(own) == 1 and len(own[0].boots) == 2 and list(own[0].halves) == ["half-a"]
    changed = run.copy()
    strengths = run["conditions"].to_dataset().load().copy(deep=True)
    strengths["iv_coef"].loc[{"condition": own[0].boots[0]}] = 3.0
    changed["conditions"] = xr.DataTree(strengths)
    assert (
        len([g for g in direction_variants.alike(changed) if len(g.boots) == 2 and "reversed" not in g.condition]) == 0
    )
