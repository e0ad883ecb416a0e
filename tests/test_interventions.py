"""Windows, grids, controls, norms and lowering."""

import numpy as np
import pytest
import xarray as xr

from gating.errors import GatingError
from gating.interventions import Condition, Intervention, grid, lower, named, parse_layers, table, vector

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
        {"vector": (("direction", "layer", "hidden"), v), "residual_norm": ("layer", np.array([5.0, 6, 7, 8]))},
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
    assert np.allclose(vector(iv, 2, made, made["residual_norm"], seed=0), [length, 0, 0])


def test_a_random_control_has_exactly_the_norm_of_what_it_replaces_and_its_own_direction(made):
    drawn = [
        vector(Intervention("add", "compliant", (2,), 3.0, seed=k), 2, made, made["residual_norm"], 7) for k in (0, 1)
    ]
    assert np.allclose([np.linalg.norm(v) for v in drawn], 3)
    assert not np.allclose(drawn[0], drawn[1])
    again = vector(Intervention("add", "compliant", (1,), 3.0, seed=0), 1, made, made["residual_norm"], 7)
    assert np.allclose(again / 2, drawn[0] / 3)  # one direction at every block


def test_a_direction_that_is_zero_at_its_site_is_an_error_not_a_silent_null(made):
    made["vector"][0, 2] = 0
    with pytest.raises(GatingError, match="zero at block 2"):
        vector(Intervention("add", "compliant", (2,), 1.0), 2, made, made["residual_norm"], 0)


def test_rows_of_different_conditions_share_slots_and_others_have_coefficient_zero(made):
    rows = grid({**SPEC, "coef": [1, 2]}, NAMES, 4, random=0, reverse=False)
    edits = lower(rows, made, made["residual_norm"], 0)
    ((op, scope, vectors, coefs),) = edits[2]
    assert (op, scope, coefs.tolist()) == ("add", "all", [0, 1, 2])
    assert vectors.tolist() == [[0, 0, 0], [3, 0, 0], [3, 0, 0]]


def test_a_rows_own_interventions_keep_their_order_in_a_mixed_batch(made):
    (both,) = named(
        {"both": [{"direction": "compliant", "layers": 1, "op": "ablate"}, {"direction": "refusal", "layers": "1-2"}]},
        NAMES,
        4,
    )
    (other,) = named({"other": [{"direction": "compliant", "layers": 1}]}, NAMES, 4)
    edits = lower([other, both], made, made["residual_norm"], 0)
    own = [[op for op, _, _, coefs in edits[1] if coefs[row]] for row in (0, 1)]
    assert own == [["add"], ["ablate", "add"]]
    assert sorted(edits) == [1, 2]


def test_the_conditions_table_says_what_each_condition_does():
    out = table(grid({**SPEC, "coef": [1, 2]}, NAMES, 4, random=1, reverse=True))
    assert out["kind"].values.tolist() == ["baseline"] + ["steered", "reversed", "random"] * 2
    assert np.isnan(out["coef"].sel(condition="baseline")) and out["seed"].sel(condition="baseline") == -1
    assert out["coef"].sel(condition="compliant-reversed[coef=2]") == -2
