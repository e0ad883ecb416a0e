"""Random controls: how each kind is drawn, that a matched removal takes out as much, and what is refused."""

import numpy as np
import pytest

import gating
from gating import analysis
from gating.errors import GatingError
from gating.pipeline import drawn, estimate, matched
from gating.pipeline.execute import execute
from gating.pipeline.study import prepare
from gating.reporting.headline import headline
from gating.reporting.rows import folded, rows
from gating.steering.directions import permuted_weights, unit
from tests.conftest import compose

SMALL = ("model=tiny-qwen", "steer=none", "data.n=3", "data.harmless=harmless", "data.n_harmless=3",
         "directions.n=6", "directions.questions=3", "max_new_tokens=2")  # fmt: skip
ADD = "{direction: compliant, layers: 2, coef: 2}"
KINDS = "isotropic, covariance, permuted"


def ko(reference, layers="3", draw="matched"):
    return f"{{direction: compliant, op: ablate, layers: {layers}, reference: {reference}, random: 2, draw: {draw}}}"


CONDITIONS = (
    f"+conditions.persona=[{ADD[:-1]}, random: 2, draw: [{KINDS}]}}]",
    *(f"+conditions.ko_{name}=[{ADD},{ko(name)}]" for name in ("zero", "mean", "own")),
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same conditions in this process and as shipped to a server."""

    def run(name):
        chosen = CONDITIONS if name == "local" else (CONDITIONS[0], CONDITIONS[-1])
        folder = tmp_path_factory.mktemp("runs")
        cfg, choices, keys = compose(*SMALL, *chosen, f"runs_dir={folder}", f"backend={name}")
        study = prepare(cfg, choices, keys)
        execute(study)
        return study.folder

    return {name: run(name) for name in ("local", "simulation")}


@pytest.fixture(scope="module")
def runs(folders):
    return {name: gating.open_run(folder) for name, folder in folders.items()}


def test_a_direction_in_the_residuals_covariance_holds_no_contrast_of_sides():
    rng = np.random.default_rng(0)
    spread, contrast = np.array([3.0, 1.0, 0.1, 0.0]), np.array([0.0, 0.0, 0.0, 50.0])
    rows = np.concatenate([rng.standard_normal((40, 4)) * spread + side * contrast for side in (1, 0)])
    sides = [drawn.Side("a", s == 0, 0, True, np.arange(40) + 40 * s) for s in (0, 1)]
    vectors = drawn.within_sides(sides, 4000, 80, 0) @ rows
    within = np.concatenate([rows[:40] - rows[:40].mean(0), rows[40:] - rows[40:].mean(0)])
    assert np.allclose(np.cov(vectors.T, bias=True), np.cov(within.T, bias=True), atol=0.6)
    assert np.abs(vectors[:, 3]).max() < 1e-9


def test_a_permuted_control_is_the_contrast_of_the_same_rows_under_shuffled_labels():
    sides = [drawn.Side("a", s == 0, 0, True, np.array([2 * i + s for i in range(5)])) for s in (0, 1)]
    asked = drawn.Wanted(4, False, ["a"], [0])
    rows = np.random.default_rng(1).standard_normal((10, 3))
    w = permuted_weights(5, 5, True, 4, 7)
    assert np.allclose(drawn.weights(asked, sides, 10, 7) @ rows, w[:, :5] @ rows[::2] + w[:, 5:] @ rows[1::2])
    assert set(np.sign(w[:, :5] + w[:, 5:]).ravel()) == {0.0}  # a pair swaps sides, or does not


def test_controls_of_every_kind_have_the_personas_norm_and_are_different_directions(runs):
    run = runs["local"]
    names = [n for n in run["conditions"]["condition"].values.tolist() if n.startswith("persona")]
    assert names == [
        "persona",
        *(f"persona-{kind}-{k}" for kind in ("random", "covariance", "permuted") for k in range(2)),
    ]
    norms = run["readouts"]["change_norm"].sel(condition=names, layer=2).values
    assert np.allclose(norms, norms[0, 0], rtol=1e-4)
    vectors = [run["directions"]["covariance"].sel(layer=2), run["directions"]["permuted"].sel(layer=2)[0]]
    units = unit(np.concatenate([v.values for v in vectors]).astype("float64"))
    assert np.abs(units @ units.T - np.eye(4)).max() < 0.95
    assert not np.isfinite(run["directions"]["covariance"].sel(layer=3)).any()  # nothing is written there


def test_a_matched_removal_takes_out_as_much_as_the_ablation_across_its_direction(runs):
    run = runs["local"]
    held = run["matched"].to_dataset().load()
    assert held.sizes["control"] == 6 and np.allclose(held["removed"], held["removed_by_own"], rtol=1e-6)
    persona = unit(run["directions"]["vector"].sel(direction="compliant", layer=3).values.astype("float64"))
    assert np.abs(held["vector"].values @ persona).max() < 1e-5
    removed = analysis.strengths(run, None)["removed"]
    for name in ("ko_zero", "ko_mean", "ko_own"):
        controls = removed.sel(condition=[f"{name}-matched-{k}" for k in range(2)]).values
        assert np.allclose(controls, float(removed.sel(condition=name)), rtol=0.25), name  # on six prompts of its own
    assert np.isnan(removed.sel(condition="persona")) and float(removed.sel(condition="ko_own")) > 1


def test_random_controls_are_the_same_where_they_are_shipped_to_a_server(runs):
    local, shipped = runs["local"], runs["simulation"]
    names = shipped["conditions"]["condition"].values
    assert np.allclose(local["matched"]["vector"][-2:], shipped["matched"]["vector"], atol=1e-4)
    assert (local["outcomes"]["token_ids"].sel(condition=names) == shipped["outcomes"]["token_ids"]).all()
    changes = local["readouts"]["change_norm"].sel(condition=names)
    assert np.allclose(changes, shipped["readouts"]["change_norm"], rtol=1e-3)


def test_a_run_on_the_prompts_that_matching_used_says_so_and_a_dry_run_counts_the_matching():
    select, test = (prepare(*compose(*SMALL, CONDITIONS[1], f"data.split={split}")) for split in ("select", "test"))
    asked = "2 of 6 test prompts are also those that matched controls are matched on"
    assert any(w.endswith(asked[1:]) for w in select.warnings) and not any("matched" in w for w in test.warnings)
    counted = {job.kind: job.n for job in estimate.jobs(test, [30] * 6)}
    assert counted["matched controls"] >= 1


def test_each_kind_of_control_is_a_null_of_its_own(runs):
    lines = analysis.controlled(runs["local"])
    assert [line.draw for line in lines if line.name == "persona"] == ["isotropic", "covariance", "permuted"]
    assert all(len(line.controls) == 2 for line in lines)
    (said, *_) = headline(runs["local"])
    assert "2 random directions in its place" in said and "(covariance)" in said and "(permuted)" in said
    names = [r["name"] for r in folded(rows(runs["local"], True), most=1)]
    assert "persona-covariance (2 directions)" in names and "ko_zero-matched (2 directions)" in names


def test_tokens_that_a_removal_is_matched_on_stand_in_the_reference_too():
    assert matched._tokens([5, 6, 7, 8], None, "all") == [-1, -2, -3]
    assert matched._tokens([5, 6, 7, 8], [1, 2, 3, 9, 7, 8], "all") == [-1, -2]
    assert matched._tokens([5, 6, 7, 8], None, "last") == [-1]
    chosen = matched._tokens(list(range(200)), None, "all")
    assert len(set(chosen)) == matched.TOKENS and min(chosen) >= -199


def test_a_removal_that_cannot_be_matched_by_direction_alone_says_by_how_much_it_was_raised():
    rng = np.random.default_rng(3)
    led_away = np.outer(rng.standard_normal(200), [10.0, 0, 0, 0]) + 0.1 * rng.standard_normal((200, 4))
    basis = np.array([[1.0, 0, 0, 0]])
    match = matched._matched(led_away, basis, float((led_away[:, 0] ** 2).mean()), 0, 0)
    assert match.coefficient > 10 and abs(match.vector @ basis[0]) < 1e-9
    easy = matched._matched(led_away[:, ::-1].copy(), basis, 90.0, 0, 0)
    assert easy.coefficient == pytest.approx(1.0, abs=1e-6) and easy.removed == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"+conditions.c=[{ADD[:-1]}, random: 2, draw: matched}}]", "conditions.c[0].draw='matched'"),
        (f"+conditions.c=[{ADD},{ko('own', draw='covariance')}]", "conditions.c[1].draw='covariance'"),
        (f"+conditions.c=[{ADD[:-1]}, draw: covariance}}]", "give random=K"),
        (f"+conditions.c=[{ADD[:-1]}, random: 2, draw: wild}}]", "conditions.c[0].draw='wild'"),
        (f"+conditions.c=[{ADD[:-1]}, random: 2, draw: [{{a: b}}]}}]", "conditions.c[0].draw"),
        (f"+conditions.c=[{ADD[:-1]}, random: 2}},{ko('own')}]", "give them the same draw"),
        (f"+conditions.own=[{ADD},{ko('own')}]", "choose another name"),
        ("controls.draw=wild", "controls.draw"),
    ],
)
def test_a_control_that_cannot_be_drawn_is_refused_before_the_run(command, override, said):
    code, lines = command(*SMALL, override)
    assert code == 2 and said in " ".join(lines).replace("\n", " ")


def test_a_permuted_control_of_a_derived_direction_and_matching_under_iso_kl_are_refused(command):
    derived = "+directions.derived.rest={of: compliant, orthogonal_to: refusal}"
    item = "+conditions.c=[{direction: rest, layers: 2, norm: compliant, random: 2, draw: permuted}]"
    code, lines = command(*SMALL, derived, item)
    assert code == 2 and "no labels of its own" in " ".join(lines)
    code, lines = command(*SMALL, f"+conditions.c=[{ADD},{ko('own')}]", "steer.iso_kl=0.5")
    assert code == 2 and "steer.iso_kl" in " ".join(lines)


def test_directions_of_another_run_have_no_rows_to_draw_from(folders, tmp_path):
    cfg, choices, keys = compose(*SMALL, CONDITIONS[0], f"runs_dir={tmp_path}", f"directions.source={folders['local']}")
    with pytest.raises(GatingError, match="drawn from"):
        execute(prepare(cfg, choices, keys))


def test_a_random_direction_is_added_where_nothing_else_is_extracted(command):
    small = [s for s in SMALL if not s.startswith("steer")]
    code, lines = command(*small, "steer=random", "steer.norm=residual", "readouts.last=false", "controls.random=0")
    assert code == 0, lines
    score = gating.open_run(lines[-1].removeprefix("store: "))["outcomes"]["refusal_score"]
    assert float(np.abs(score.sel(condition="random") - score.sel(condition="baseline")).max()) > 0.1
