"""Pictures show what they say, on trees with a known truth."""

import numpy as np
import pytest
import xarray as xr

from gating import interventions
from gating.figures import maps, nulls, prompts, traces
from gating.interventions import Condition
from tests import synthetic

NAMES = ("compliant", "refusal")


@pytest.fixture
def ko():
    """Two injections by two knock-outs, each with three random controls."""
    made = interventions.named(
        {"ko": [{"direction": "compliant", "layers": [1, 2]}, {"direction": "compliant", "op": "ablate", "layers": [2, 3], "random": 3}]},
        NAMES, 4,
    )  # fmt: skip
    conditions = [Condition("baseline"), *made]
    labels = {c.name: [0, 0, 0, 0] if c.kind != "random" else [1, 1, 1, 0] for c in conditions}
    return synthetic.tree(labels, conditions=conditions)


def numbers(ax):
    return [t.get_text() for t in ax.texts]


def test_a_knock_out_stands_beside_every_one_of_its_random_controls(ko):
    assert all(len(null) == 3 for _, null in nulls.controlled(ko)) and len(nulls.controlled(ko)) == 4
    ax = nulls.strip(ko, True).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert len(dots) == 4 and all(np.allclose(line.get_xdata(), 25) for line in dots)
    assert numbers(ax) == ["p = 0.25 (K = 3)"] * 4


def test_random_directions_that_control_no_condition_are_shown_under_their_own_name():
    made = interventions.named({"only": [{"direction": "random", "op": "ablate", "layers": 1, "random": 3}]}, NAMES, 4)
    run = synthetic.tree(
        {c.name: [0, 1] for c in [Condition("baseline"), *made]}, conditions=[Condition("baseline"), *made]
    )
    assert [name for name, _ in nulls.controlled(run)] == ["only (random)"]
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
    conditions = interventions.grid(spec, NAMES, 4, 0, False)
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
    left, _ = traces.over_tokens(ko, True).axes
    assert len(left.lines) == len(traces.shown(ko)) == 5
    assert left.lines[0].get_xdata().tolist() == [0, 1, 2] == left.lines[0].get_ydata().tolist()


def test_each_prompt_is_drawn_before_and_after_and_those_that_moved_the_other_way_are_counted():
    run = synthetic.tree({"baseline": [0] * 4, "steered": [1] * 4})
    run["outcomes"]["refusal_score"].values[:] = [[1, 2, 3, 4], [0, 0, 0, 5]]
    (ax,) = [a for a in prompts.per_prompt(run, True).axes if a.get_visible()]
    assert "25% moved the other way" in ax.get_title(loc="left")
    assert ax.lines[1].get_xdata().tolist() == [1, 2, 3, 4]
