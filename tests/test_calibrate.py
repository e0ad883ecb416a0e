"""Iso-KL: every condition disturbs harmless prompts equally, as measured again after the fact."""

import json

import numpy as np
import pytest

import gating
from gating import store

SMALL = ("model=tiny-llama", "data.n=2", "directions.questions=2", "directions.n=4", "controls.random=2")


def test_every_condition_reaches_the_same_kl_and_the_factors_are_kept(command):
    code, lines = command(*SMALL, "steer.coef=0.5", "steer.iso_kl=0.5")
    assert code == 0, lines
    run = gating.open_run(lines[-1].removeprefix("store: "))
    found = store.read_group(store.locate(lines[-1].removeprefix("store: ")), "calibration")
    assert np.allclose(found["kl"], 0.5, rtol=0.1)
    assert set(found["condition"].values) == set(run["/conditions"].to_dataset()["condition"].values) - {"baseline"}
    assert len(set(np.round(found["scale"].values, 3))) > 1
    assert "iso_kl: 0.5" in run.attrs["config"] and json.loads(run.attrs["warnings"]) == []


def test_a_kl_that_cannot_be_reached_is_said_and_costs_no_run(command):
    code, lines = command(*SMALL, "steer.coef=0.001", "steer.iso_kl=15")
    assert code == 2 and any("steer.iso_kl" in line for line in lines)


@pytest.mark.parametrize("value", ["-1", "inf"])
def test_a_kl_that_is_none_is_refused(command, value):
    assert command(*SMALL, f"steer.iso_kl={value}")[0] == 2
