"""Windows, grids, controls, norms and lowering."""

import numpy as np
import pytest
import xarray as xr

from gating.errors import GatingError
from gating.pipeline.conditions import table
from gating.steering.condition_grid import grid
from gating.steering.interventions import Condition, Intervention, parse_layers
from gating.steering.lowering import lower
from gating.steering.vectors import measured, vector
from tests.synthetic import named_conditions

NAMES = ("compliant", "refusal")
SPEC = {
    "direction": "compliant", "op": "add", "layers": 2, "coef": 3.0, "norm": "natural", "scope": "all", "read": "same",
}  # fmt: skip


@pytest.fixture
def made():
    v = np.zeros((2, 4, 3), dtype="float32")
    v[0, :, 0] = [1, 2, 3, 4]  # compliant: along axis 0, norm 1 + block
    v[1, :, 1] = 10  # refusal: along axis 1, norm 10
    return xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), v),
            "residual_norm": ("layer", np.array([5.0, 6, 7, 8])),
            "projection_negative": (("direction", "layer"), np.array([[-1.0] * 4, [np.nan] * 4])),
            "projection_positive": (("direction", "layer"), np.array([[3.0] * 4, [np.nan] * 4])),
        },
        coords={"direction": list(NAMES), "layer": range(4)},
    )


@pytest.mark.parametrize(
    ("window", "blocks"),
    [(20, [20]), ("20", [20]), (0.7, [21]), ("0.55", [16]), ("22-24", [22, 23, 24]), ("22+24", [22, 24]),
     ("0.5-0.6", [15, 16, 17, 18]), ("all", list(range(30))), ("1-2+2-3", [1, 2, 3])],
)  # fmt: skip
def test_a_layer_window_may_be_a_block_a_depth_a_range_a_set_or_all(window, blocks):
    assert list(parse_layers(window, 30)) == blocks


@pytest.mark.parametrize("window", [30, "31", "24-22", "", "x", -1, 1.5, "2-", True, None, "1-2-3"])
def test_a_window_that_is_none_is_refused_by_name(window):
    with pytest.raises(GatingError, match=r"steer\.layers"):
        parse_layers(window, 30)


def test_a_list_is_an_axis_and_each_point_has_controls_of_its_own():
    out = grid({**SPEC, "layers": [1, 2], "coef": [2, 4.5, 8]}, NAMES, 4, random=2, reverse=True)
    assert len(out) == 1 + 6 * (1 + 1 + 2)
    assert out[0] == Condition("baseline")
    assert [c.name for c in out if c.kind == "steered"][:2] == [
        "compliant[layers=1,coef=2]",
        "compliant[layers=1,coef=4.5]",
    ]
    point = [c for c in out if c.grid == 5]
    assert [c.kind for c in point] == ["steered", "reversed", "random", "random"]
    assert [c.interventions[0].coef for c in point] == [8, -8, 8, 8]
    assert [c.interventions[0].seed for c in point] == [None, None, 0, 1]
    assert len({c.name for c in out}) == len(out)


def test_no_direction_is_the_baseline_alone():
    assert grid({**SPEC, "direction": "none"}, (), 4, 5, True) == [Condition("baseline")]


def test_ablation_has_no_reversed_control():
    assert {c.kind for c in grid({**SPEC, "op": "ablate"}, NAMES, 4, 1, True)} == {"baseline", "steered", "random"}


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"op": "subtract"}, "steer.op"), ({"scope": "tokens"}, "steer.scope"), ({"norm": "l2"}, "steer.norm"),
     ({"read": "next"}, "steer.read"), ({"coef": "big"}, "steer.coef"), ({"coef": float("nan")}, "steer.coef"),
     ({"coef": []}, "steer.coef"), ({"coef": [2, 2]}, "steer.coef"), ({"direction": "complaint"}, "compliant"),
     ({"direction": "random"}, "steer.norm"), ({"layers": 0, "read": "previous"}, "steer.layers")],
)  # fmt: skip
def test_a_bad_field_is_named_with_what_is_allowed(change, culprit):
    with pytest.raises(GatingError, match=culprit.replace(".", r"\.")):
        grid({**SPEC, **change}, NAMES, 4, 1, True)


@pytest.mark.parametrize(
    ("norm", "read", "op", "length"),
    [("natural", "same", "add", 3), ("unit", "same", "add", 1), ("residual", "same", "add", 7),
     ("refusal", "same", "add", 10), ("natural", "previous", "add", 2), ("natural", "0", "add", 1),
     ("natural", "same", "ablate", 1)],
)  # fmt: skip
def test_a_norm_policy_sets_the_length_of_what_is_written_at_a_block(made, norm, read, op, length):
    iv = Intervention(op, "compliant", (2,), 3.0, norm, read=read)
    assert np.allclose(vector(iv, 2, made, seed=0)[0], [length, 0, 0])


def test_a_random_control_has_exactly_the_norm_of_what_it_replaces_and_its_own_direction(made):
    drawn = [vector(Intervention("add", "compliant", (2,), 3.0, seed=k), 2, made, 7)[0] for k in (0, 1)]
    assert np.allclose([np.linalg.norm(v) for v in drawn], 3)
    assert not np.allclose(drawn[0], drawn[1])
    again = vector(Intervention("add", "compliant", (1,), 3.0, seed=0), 1, made, 7)[0]
    assert np.allclose(again / 2, drawn[0] / 3)  # one direction at every block


def test_a_direction_that_is_zero_at_its_site_is_an_error_not_a_silent_null(made):
    made["vector"][0, 2] = 0
    with pytest.raises(GatingError, match="zero at block 2"):
        vector(Intervention("add", "compliant", (2,), 1.0), 2, made, 0)


def test_rows_of_different_conditions_share_slots_and_others_have_coefficient_zero(made):
    rows = grid({**SPEC, "coef": [1, 2]}, NAMES, 4, random=0, reverse=False)
    edits = lower(rows, made, 0)
    (edit,) = edits[2]
    assert (edit["op"], edit["scope"], edit["strength"].tolist()) == ("add", "all", [0, 1, 2])
    assert edit["write"][:, 0].tolist() == [[0, 0, 0], [3, 0, 0], [3, 0, 0]]


def test_a_rows_own_interventions_keep_their_order_in_a_mixed_batch(made):
    (both,) = named_conditions(
        {"both": [{"direction": "compliant", "layers": 1, "op": "ablate"}, {"direction": "refusal", "layers": "1-2"}]},
        NAMES,
        4,
    )
    (other,) = named_conditions({"other": [{"direction": "compliant", "layers": 1}]}, NAMES, 4)
    edits = lower([other, both], made, 0)
    own = [[e["op"] for e in edits[1] if e["strength"][row]] for row in (0, 1)]
    assert own == [["add"], ["ablate", "add"]]
    assert sorted(edits) == [1, 2]


def test_the_conditions_table_says_what_each_condition_does():
    out = table(grid({**SPEC, "coef": [1, 2]}, NAMES, 4, random=1, reverse=True), 4)
    assert out["kind"].values.tolist() == ["baseline"] + ["steered", "reversed", "random"] * 2
    assert np.isnan(out["coef"].sel(condition="baseline")) and out["seed"].sel(condition="baseline") == -1
    assert out["coef"].sel(condition="compliant-reversed[coef=2]") == -2


def test_what_a_conditions_name_shows_stands_in_the_table_as_data():
    axes = {**SPEC, "coef": [1, 2], "layers": ["1-2", 3]}
    out = table(grid(axes, NAMES, 4, random=1, reverse=True), 4).sel(condition="compliant-random-0[layers=1-2,coef=2]")
    assert out["family"] == "compliant" and out["point"] == "layers=1-2,coef=2"
    assert out["controls"] == "compliant[layers=1-2,coef=2]"
    assert out["iv_written"].sel(intervention=0).values.tolist() == [False, True, True, False]
    free = table(
        named_conditions({"only": [{"direction": "random", "op": "ablate", "layers": 1, "random": 2}]}, NAMES, 4), 4
    )
    assert free["controls"].values.tolist() == ["", ""] and free["family"].values.tolist() == ["only", "only"]


def test_a_norm_may_be_read_at_a_block_of_its_own(made):
    iv = Intervention("add", "refusal", (3,), 2.0, "compliant", norm_read="0")
    assert np.allclose(vector(iv, 3, made, 0), [[0, 1, 0]])


def test_the_papers_convention_reads_one_block_before_it_writes_and_scales_by_another_directions_norm_there(made):
    # mp_only: h += 3 |IT_20| unit(MP_20) at block 20, with _20 = hidden_states[20] = resid_post[19]
    (mp,) = named_conditions(
        {"mp": [{"direction": "compliant", "layers": 2, "coef": 3.0, "norm": "refusal", "read": "previous"}]}, NAMES, 4
    )
    edits = lower([mp], made, 0)
    assert edits[2][0]["write"].tolist() == [[[10, 0, 0]]] and edits[2][0]["strength"].tolist() == [3]


def test_a_random_control_of_an_ablation_keeps_what_is_measured(made):
    iv = Intervention("ablate", "compliant", (2,), 1.0, seed=1)
    assert np.allclose(measured(iv, 2, made, 7), [[1, 0, 0]])
    assert not np.allclose(vector(iv, 2, made, 7), [[1, 0, 0]]) and np.isclose(
        np.linalg.norm(vector(iv, 2, made, 7)), 1
    )
    pure = Intervention("ablate", "random", (2,), 1.0, seed=1)
    assert np.allclose(measured(pure, 2, made, 7), vector(pure, 2, made, 7))


def test_remove_takes_out_what_was_added_and_needs_something_to_take_out(made):
    add = {"direction": "compliant", "layers": "1-2", "coef": 2.0}
    (c,) = named_conditions({"c": [add, {"direction": "compliant", "layers": 3, "op": "remove"}]}, NAMES, 4)
    edit = lower([c], made, 0)[3][0]
    assert (edit["write"][0, 0] * edit["strength"][0]).tolist() == [-(2 * 2 + 2 * 3), 0, 0]
    with pytest.raises(GatingError, match="no earlier add"):
        named_conditions({"c": [{"direction": "compliant", "layers": 3, "op": "remove"}, add]}, NAMES, 4)


def test_a_clamp_leads_to_a_place_between_the_directions_own_sides(made):
    (c,) = named_conditions({"c": [{"direction": "compliant", "layers": 1, "op": "clamp", "coef": 0.25}]}, NAMES, 4)
    assert lower([c], made, 0)[1][0]["target"].tolist() == [[0]]  # -1 + 0.25 * (3 - -1)
    (bad,) = named_conditions({"c": [{"direction": "refusal", "layers": 1, "op": "clamp"}]}, NAMES, 4)
    with pytest.raises(GatingError, match="no two sides"):
        lower([bad], made, 0)


def test_the_strength_of_an_operation_is_how_far_its_coefficient_lies_from_the_neutral_one(made):
    strengths = {}
    for op, coef in (("add", 2.0), ("ablate", 0.5), ("scale", 3.0), ("scale", 1.0), ("rotate", 30.0), ("clamp", 0.25)):
        (c,) = named_conditions({"c": [{"direction": "compliant", "layers": 1, "op": op, "coef": coef}]}, NAMES, 4)
        strengths[op, coef] = lower([c], made, 0)[1][0]["strength"].tolist()
    assert [v for (v,) in strengths.values()] == [2, 0.5, 2, 0, 30, 1]  # a factor of 1 changes nothing
    with pytest.raises(GatingError, match="coef"):
        named_conditions({"c": [{"direction": "compliant", "layers": 1, "op": "scale"}]}, NAMES, 4)


def test_a_set_of_directions_is_a_subspace_of_orthonormal_vectors(made):
    made["vector"][1, :, 0] = 5  # refusal is no longer orthogonal to compliant
    q = vector(Intervention("ablate", "compliant+refusal", (2,), 1.0), 2, made, 0)
    assert np.allclose(q @ q.T, np.eye(2)) and np.allclose(q[0], [1, 0, 0])
    with pytest.raises(GatingError, match="subspace"):
        grid({**SPEC, "direction": "compliant+refusal"}, NAMES, 4, 0, False)


def test_lists_in_named_conditions_are_axes_and_controls_share_their_points_place():
    out = named_conditions(
        {"ko": [{"direction": "compliant", "layers": [1, 2]},
                {"direction": "compliant", "op": "ablate", "layers": [2, 3],
         "random": 2}], "only": [{"direction": "random", "op": "ablate", "layers": 1, "random": 2}]}, NAMES, 4, first=5,
    )  # fmt: skip
    assert [c.name for c in out[:3]] == [
        "ko[0.layers=1,1.layers=2]", "ko-random-0[0.layers=1,1.layers=2]", "ko-random-1[0.layers=1,1.layers=2]",
    ]  # fmt: skip
    assert [(c.kind, c.grid) for c in out[:4]] == [("named", 5), ("random", 5), ("random", 5), ("named", 6)]
    assert [iv.seed for iv in out[2].interventions] == [None, 1]
    assert [(c.name, c.kind) for c in out[-2:]] == [("only-random-0", "random"), ("only-random-1", "random")]


def test_the_conditions_table_holds_every_intervention_in_full():
    out = table([Condition("baseline"), *named_conditions(
        {"both": {"do": [{"direction": "compliant", "layers": "1+3"},
                         {"direction": "random", "op": "ablate", "layers": 2}],
         "system": "S"}}, NAMES, 4)], 4)  # fmt: skip
    both = out.sel(condition="both")
    assert both["iv_layers"].values.tolist() == ["1+3", "2"] and both["iv_op"].values.tolist() == ["add", "ablate"]
    assert both["iv_seed"].values.tolist() == [-1, 0] and both["system"] == "S"
    assert out.sel(condition="baseline")["iv_op"].values.tolist() == ["", ""]
