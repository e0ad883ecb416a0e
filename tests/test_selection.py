"""Arditi's rule on runs with a known answer."""

import numpy as np
import pytest
import xarray as xr

from gating import selection
from gating.errors import GatingError
from gating.steering.interventions import Condition
from tests import synthetic
from tests.synthetic import named_conditions

N = 10  # blocks


@pytest.fixture
def run():
    """Ten blocks; harmful prompts 0, 1 and harmless 2, 3. Block 4 is the best, each other one is bad in its own way."""
    spec = {"direction": "refusal", "layers": "each"}
    conditions = named_conditions(
        {"bypass": [{**spec, "op": "ablate", "layers": "all", "read": "each"}], "induce": [spec]}, ("refusal",), N
    )
    conditions = [Condition("baseline"), *conditions]
    tree = synthetic.tree({c.name: [0, 0, 1, 1] for c in conditions}, [True, True, False, False], conditions=conditions)
    score = tree["outcomes"]["refusal_score"].values
    kl = np.zeros(score.shape, dtype="float32")
    for i, c in enumerate(conditions[1:], start=1):
        block = int(c.name.split("=")[1].rstrip("]"))
        if c.name.startswith("bypass"):
            score[i] = [-3.0, -3.0 - (block == 4), 9, 9]
            kl[i] = 0.5 if block == 2 else 0.01
        else:
            score[i] = [9, 9, -1.0, -1.0] if block == 3 else [9, 9, 2.0, 2.0]
    names = tree["outcomes"]["condition"].values
    tree["readouts"] = xr.DataTree(
        xr.Dataset(
            {"kl": (("condition", "prompt"), kl)}, {"condition": names, "prompt": tree["prompts"]["prompt"].values}
        )
    )
    tree["directions"] = xr.DataTree(xr.Dataset(coords={"layer": np.arange(N)}))
    return tree


def test_the_lowest_bypass_score_of_those_that_pass_is_chosen_and_each_rejection_has_a_reason(run):
    found = selection.candidates(run).sel(direction="refusal")
    assert found["layer"].values[found["chosen"].values].tolist() == [4]
    reasons = found["reason"].values.tolist()
    assert "KL 0.50 above 0.1" in reasons[2] and "does not induce" in reasons[3] and "last 20%" in reasons[8]
    assert reasons[4] == "" and np.isclose(found["bypass_score"][4], -3.5)


def test_where_nothing_passes_nothing_is_chosen(run):
    found = selection.candidates(run, max_kl=0.0001)
    assert not found["chosen"].any() and "no candidate passes" in selection.table(found).caption


def test_a_run_without_candidates_is_told_how_to_make_one():
    with pytest.raises(GatingError, match="experiment=selection"):
        selection.candidates(synthetic.tree({"baseline": [0, 1]}))
