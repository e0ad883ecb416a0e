"""Pictures show what they say, on trees with a known truth."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from gating import analysis
from gating.analysis import stats
from gating.figures import base, dose, gallery, geometry, maps, nulls, prompts, rates, strength, traces
from gating.steering import condition_grid
from gating.steering.interventions import Condition
from tests import synthetic
from tests.synthetic import named_conditions

NAMES = ("compliant", "refusal")


@pytest.fixture
def ko():
    """Two injections by two knock-outs, each with three random controls."""
    made = named_conditions(
        {"ko": [{"direction": "compliant", "layers": [1, 2]},
                {"direction": "compliant", "op": "ablate", "layers": [2, 3], "random": 3}]},
        NAMES, 4,
    )  # fmt: skip
    conditions = [Condition("baseline"), *made]
    labels = {c.name: [0, 0, 0, 0] if c.kind != "random" else [1, 1, 1, 0] for c in conditions}
    return synthetic.tree(labels, conditions=conditions)


def numbers(ax):
    return [t.get_text() for t in ax.texts]


def test_a_knock_out_stands_beside_every_one_of_its_random_controls(ko):
    assert all(len(null) == 3 for _, _, null in analysis.controlled(ko)) and len(analysis.controlled(ko)) == 4
    ax = nulls.strip(ko, True).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert len(dots) == 4 and all(np.allclose(line.get_xdata(), 25) for line in dots)
    assert numbers(ax) == ["p = 0.25 (K = 3)"] * 4


def test_random_directions_that_control_no_condition_are_shown_under_their_own_name():
    made = named_conditions({"only": [{"direction": "random", "op": "ablate", "layers": 1, "random": 3}]}, NAMES, 4)
    run = synthetic.tree(
        {c.name: [0, 1] for c in [Condition("baseline"), *made]}, conditions=[Condition("baseline"), *made]
    )
    assert [line.name for line in analysis.controlled(run)] == ["only (random)"]
    assert nulls.strip(run, True).axes


def test_injection_by_knock_out_is_a_map_with_each_rate_in_its_place(ko):
    ko["outcomes"]["label"].loc[{"condition": "ko[0.layers=2,1.layers=3]"}] = [0, 1, 1, 1]
    assert maps.has_pairs(ko) and not maps.has_grid(ko)
    assert numbers(maps.pairs(ko, True).axes[0]) == ["100", "100", "100", "25"]


def test_block_by_coefficient_is_a_map_of_refusal_and_of_degenerate_answers():
    spec = {
        "direction": "compliant",
        "op": "add",
        "layers": [1, 2],
        "coef": [2.0, 4.0],
        "norm": "natural",
        "scope": "all",
        "read": "same",
    }
    conditions = condition_grid.grid(spec, NAMES, 4, 0, False)
    labels = {c.name: [0, 0, 0, 0] for c in conditions} | {"compliant[layers=2,coef=4]": [3, 3, 1, 0]}
    run = synthetic.tree(labels, conditions=conditions)
    refusal, degenerate = maps.grid(run, True).axes
    assert (
        maps.has_grid(run)
        and numbers(refusal) == ["100", "100", "100", "25"]
        and numbers(degenerate) == ["0", "0", "0", "50"]
    )


def test_traces_draw_the_mean_over_prompts_and_leave_out_steps_that_no_answer_reached(ko):
    names = ko["outcomes"]["condition"].values
    step = np.zeros((len(names), 4, 5, 3, 2), dtype="float32")
    step[:, :, :, 2] = np.arange(5)[:, None]
    step[:, :, 3:] = np.nan
    ko["readouts"] = xr.DataTree(
        xr.Dataset(
            {"step_projection": (("condition", "prompt", "step", "layer", "direction"), step)},
            {
                "condition": names,
                "prompt": ko["prompts"]["prompt"].values,
                "layer": [0, 1, 2],
                "direction": list(NAMES),
            },
        )
    )
    panels = traces.over_tokens(ko, True).axes
    assert len(panels) == 2 * (len(traces.shown(ko)) - 1) == 8 and all(len(ax.lines) == 2 for ax in panels)
    assert panels[0].lines[0].get_xdata().tolist() == [0, 1, 2] == panels[0].lines[0].get_ydata().tolist()


def test_each_prompt_is_drawn_before_and_after_and_those_that_moved_the_other_way_are_counted():
    run = synthetic.tree({"baseline": [0] * 4, "steered": [1] * 4})
    run["outcomes"]["refusal_score"].values[:] = [[1, 2, 3, 4], [0, 0, 0, 5]]
    (ax,) = [a for a in prompts.per_prompt(run, True).axes if a.get_visible()]
    assert "25% moved the other way" in ax.get_title(loc="left")
    assert ax.lines[1].get_xdata().tolist() == [1, 2, 3, 4]


def steered(**axes):
    """The conditions of a steering grid without controls."""
    spec = {
        "direction": "compliant",
        "op": "add",
        "layers": 1,
        "coef": 2.0,
        "norm": "natural",
        "scope": "all",
        "read": "same",
    }
    return condition_grid.grid({**spec, **axes}, NAMES, 6, 0, False)


def written(specs):
    return [Condition("baseline"), *named_conditions(specs, NAMES, 6)]


def a_run(conditions, labels=(0, 1), **more):
    return synthetic.tree({c.name: list(labels) for c in conditions}, conditions=conditions, **more)


PERSONA = {"direction": "compliant", "layers": 2, "coef": 8.0, "norm": "compliant"}


def test_random_directions_are_the_null_of_whatever_does_the_same_along_a_direction_of_its_own():
    knocked = {"direction": "compliant", "op": "ablate", "layers": 4}
    run = a_run(written({
        "persona": [PERSONA], "opposite": [{**PERSONA, "direction": "refusal"}], "weaker": [{**PERSONA, "coef": 4.0}],
        "ko": [PERSONA, knocked],
        "ko_early": [PERSONA, {**knocked, "layers": 3}], "any": [{**PERSONA, "direction": "random", "random": 3}],
        "any_ko": [PERSONA, {**knocked, "direction": "random", "random": 2}],
    }))  # fmt: skip
    found = {name: [n.rpartition("-")[2] for n in null] for name, _, null in analysis.controlled(run)}
    assert found == {"persona": ["0", "1", "2"], "opposite": ["0", "1", "2"], "ko": ["0", "1"]}


def test_random_directions_under_another_system_message_are_no_null_of_a_condition():
    other = {"do": [{**PERSONA, "direction": "random", "random": 2}], "system": "You are somebody else."}
    assert [line.name for line in analysis.controlled(a_run(written({"persona": [PERSONA], "any": other})))] == [
        "any (random)"
    ]


def test_a_condition_that_is_no_different_from_random_ones_is_called_unusual_no_more_often_than_it_should():
    draws = np.random.default_rng(0).standard_normal((4000, 20))
    found = np.array([stats.unusual(d[0], d[1:])[0] for d in draws])
    assert abs(np.mean(found <= 0.05) - 0.05) < 0.012 and abs(np.mean(found <= 0.2) - 0.2) < 0.02
    around_their_own = np.array(
        [stats.permutation_p(abs(d[0] - d[1:].mean()), np.abs(d[1:] - d[1:].mean())) for d in draws]
    )
    assert np.mean(around_their_own <= 0.05) > 0.062  # what the mean of all K + 1 mends


def test_a_missing_rate_is_neither_unusual_nor_part_of_a_null():
    assert np.isnan(stats.unusual(np.nan, [1.0, 2.0])[0]) and np.isnan(stats.unusual(1.0, [np.nan])[0])
    assert stats.unusual(9.0, [1.0, np.nan, 2.0, 1.0]) == (0.25, 3)
    run = synthetic.tree(
        {"baseline": [0, 0], "steered": [-1, -1], "steered-random-0": [0, 1], "steered-random-1": [1, 1]}
    )
    assert numbers(nulls.strip(run, True).axes[0]) == ["missing"] and "steered: missing" in nulls.in_words(run, True)


def test_equal_rates_tie_whatever_the_rounding_of_their_mean():
    assert stats.unusual(0.1 + 0.2, [0.3] * 4) == (1.0, 4)


def test_a_map_of_block_by_coefficient_has_panels_of_its_own_for_what_varies_besides():
    conditions = steered(direction=["compliant", "refusal"], layers=[1, 2], coef=[2.0, 4.0])
    run = synthetic.tree(
        {c.name: [0] if c.name.startswith("compliant") else [1] for c in conditions}, conditions=conditions
    )
    run["outcomes"]["label"].loc[{"condition": "baseline"}] = [0]
    axes = maps.grid(run, True).axes
    assert [ax.get_title(loc="left").split("\n")[0] for ax in axes[::2]] == ["direction compliant", "direction refusal"]
    assert [set(numbers(ax)) for ax in axes] == [{"100"}, {"0"}, {"0"}, {"0"}]


def test_a_map_of_knock_outs_keeps_families_apart_and_takes_them_in_either_order():
    out = {"direction": "compliant", "op": "ablate", "layers": [3, "2-4"]}
    run = a_run(written({
        "ko": [{**PERSONA, "layers": [1, 2]}, out], "half": [{**PERSONA, "layers": [1, 2]}, {**out, "coef": 0.5}],
        "first": [{**out, "direction": "refusal"}, {**PERSONA, "layers": [1, 5]}],
        "lone": [{**PERSONA, "layers": 1}, {**out, "scope": "last"}],
    }))  # fmt: skip
    run["outcomes"]["label"].loc[
        {"condition": [c for c in run["conditions"]["condition"].values if c.startswith("half")]}
    ] = 1
    made = maps.pairs(run, True)
    assert [set(numbers(ax)) for ax in made.axes] == [{"50"}, {"0"}, {"50"}]  # no map for one injection block alone
    assert made.axes[2].get_title(loc="left").endswith("compliant in, refusal out")
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in made.axes] == [["1", "2"], ["1", "2"], ["1", "5"]]
    assert [t.get_text() for t in made.axes[0].get_xticklabels()] == ["2-4", "3"]


@pytest.mark.parametrize(
    ("blocks", "text"), [("20", "20"), ("22+24", "22+24"), ("3+4+5", "3-5"), ("3+7+9", "3+7+9"), ("", "")]
)
def test_only_neighbouring_blocks_are_written_as_a_range(blocks, text):
    assert base.window([int(b) for b in blocks.split("+") if b]) == text


def test_a_dose_response_leaves_out_the_controls_of_named_conditions_and_says_how_many_lines_it_leaves_out():
    conditions = steered(coef=[1.0, 2.0, 40.0], layers=["0", "1", "2", "3", "4", "5", "2-3"], scope=["all", "last"])
    named = named_conditions({"any": [{**PERSONA, "direction": "random", "random": 3}]}, NAMES, 6, 99)
    run = a_run([*conditions, *named])
    figure = dose.dose(run, "coef", True)
    ax = figure.axes[0]
    assert [len(np.asarray(line.get_xdata())) for line in ax.lines if line.get_marker() == "."] == [0]
    assert sum(panel.get_visible() for panel in figure.axes) == dose.MOST and len(dose.settings(run, "coef")) == 14
    assert "The first 12 of 14 settings" in gallery.drawable(run)["dose_coef"].caption(run)
    assert "evenly spaced" in figure.get_supxlabel()


def test_layer_windows_stand_in_the_order_of_the_blocks_that_they_write():
    run = a_run(steered(layers=["4-5", "0.5", "2+5", "1"]))  # a relative depth of 0.5 is block 3
    ticks = dose.dose(run, "layers", True).axes[0].get_xticklabels()
    assert [t.get_text() for t in ticks] == ["1", "2+5", "0.5", "4-5"]


def test_the_papers_label_stands_beside_the_name_of_its_condition():
    papers = {"baseline": "C0", "mp_only": "C1", "ko-random-0": "C8", "ko-random-1": "C8"}
    knocked = {"direction": "random", "op": "ablate", "layers": 4, "random": 2}
    conditions = [replace(c, paper=papers.get(c.name, "")) for c in written({"mp_only": [PERSONA], "mine": [PERSONA],
                                                                            "ko": [PERSONA, knocked]})]  # fmt: skip
    run = a_run(conditions)
    labels = [t.get_text() for t in rates.rates(run, True).axes[0].get_yticklabels()]
    assert labels == ["C0 baseline", "C1 mp_only", "mine", "C8 ko-random (2 seeds)"]
    said = {name: picture.alt_text(run, True) for name, picture in gallery.drawable(run).items()}
    assert "C1 mp_only 50.0% [" in said["rates"] and "C1 mp_only" in said["prompts"]


def test_every_entry_of_the_registry_has_a_name_of_its_own():
    names = [picture.name for picture in gallery.REGISTRY]
    assert len(set(names)) == len(names)


def test_bands_are_intervals_of_the_mean_and_missing_below_two_prompts():
    values = xr.DataArray([[1.0, 5.0, np.nan], [2.0, np.nan, np.nan], [6.0, np.nan, np.nan]], dims=("prompt", "step"))
    reached, mean, reach = traces.mean_band(values, "step")
    assert reached.tolist() == [0, 1] and mean.tolist() == [3.0, 5.0] and np.isnan(reach[1])
    assert reach[0] == pytest.approx(1.96 * scipy.stats.sem([1, 2, 6]))


def test_traces_over_tokens_are_read_where_every_edit_lies_before():
    run = a_run(written({"late": [PERSONA, {"direction": "refusal", "layers": "3+4"}]}), directions=list(NAMES))
    assert traces.late_block(run, np.arange(6)) == 4
    assert traces.over_tokens(run, True).get_supxlabel().endswith("block 4")
    everywhere = a_run(written({"all": [{**PERSONA, "op": "ablate", "layers": "all"}]}), directions=list(NAMES))
    assert traces.late_block(everywhere, np.arange(6)) == 4


def test_cosines_are_shown_at_the_block_that_is_steered_with_both_nulls():
    run = a_run(written({"persona": [PERSONA]}), directions=["compliant", "formal", "refusal"], permutations=20)
    left, right = geometry.cosines(run).axes
    cosine = run["directions"]["cosine"].sel(layer=2)
    assert left.get_title(loc="left") == "cosine at block 2"
    assert numbers(left) == [format(float(v), "z.2f") for v in cosine.values.flat]
    words = [t for t in right.get_legend_handles_labels()[1] if "95%" in t]
    assert words == ["isotropic vectors, 95%", "compliant, labels permuted, 95%"]
    assert f"compliant {float(cosine.sel(direction='compliant', other='refusal')):.2f}" in geometry.cosines_in_words(
        run
    )


def test_strengths_are_of_harmless_prompts_where_any_were_asked():
    conditions = written({"persona": [PERSONA]})
    run = a_run(conditions, (0, 0, 0), directions=list(NAMES), harmful=[True, True, False])
    run["readouts"]["kl"].values[:] = [[0, 0, 0], [9, 9, 2]]
    which = analysis.undisturbed(run)
    found = analysis.strengths(run, which)
    assert float(found["kl"].sel(condition="persona")) == 2 and which is False
    assert "and 2.00 nats" in strength.strengths_in_words(run)


def test_harmful_and_harmless_prompts_are_apart_where_they_lie_apart_and_missing_where_nothing_is_read_yet():
    run = a_run(written({"persona": [PERSONA]}), (0, 0, 0), directions=list(NAMES), harmful=[True, True, False])
    run["readouts"]["projection"].values[:] = np.array([3.0, 5.0, -1.0]).reshape(1, 3, 1, 1)
    harmful, harmless = geometry.by_harm(run).axes[0].lines
    assert set(np.asarray(harmful.get_ydata())) == {4.0} and set(np.asarray(harmless.get_ydata())) == {-1.0}
    assert "compliant 4.0 and -1.0" in geometry.by_harm_in_words(run)
    run["readouts"]["projection"].values[:] = np.nan
    assert np.isnan(geometry.by_harm(run).axes[0].lines[0].get_ydata()).all()
