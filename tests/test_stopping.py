"""`stop=label`: rows end where their label is settled, and the run measures how often a settled label turns."""

import numpy as np
import pytest
import torch
import xarray as xr

import gating
from gating import analysis
from gating.errors import GatingError
from gating.judging.labels import COMPLIANCE, EVASIVE, MISSING, REFUSAL
from gating.pipeline import execute, stopping, study
from tests.conftest import compose

SMALL = ("model=planted", "model.architecture=gated", "data.n=8", "data.harmless=null", "controls.random=5",
         "steer.layers=[1]", "steer.coef=[1]", "max_new_tokens=40", "directions.n=4")  # fmt: skip


def test_a_row_ends_after_two_looks_with_the_same_label_and_a_checked_row_goes_on():
    said = {(0, 6): REFUSAL, (0, 9): REFUSAL, (1, 6): REFUSAL, (1, 9): COMPLIANCE, (2, 6): REFUSAL, (2, 9): REFUSAL}
    stop = stopping.LabelStop(lambda row, ids: said.get((row, len(ids)), EVASIVE), [False, False, True])
    live, ended = torch.arange(3), torch.zeros(3, dtype=torch.bool)
    stops = {n: stop.settle(live, torch.zeros(3, n, dtype=torch.long), ended).tolist() for n in range(1, 10)}
    assert not any(any(stops[n]) for n in range(1, 9)) and stops[9] == [True, False, False]
    assert stop.settled.tolist() == [[9, REFUSAL], [0, MISSING], [9, REFUSAL]]


def test_what_is_neither_refusal_nor_compliance_is_never_settled_and_an_ended_row_is_not_looked_at():
    looked = []
    stop = stopping.LabelStop(lambda row, ids: looked.append(row) or EVASIVE, [False, False])
    for n in (6, 9, 12):
        assert not stop.settle(torch.tensor([0, 1]), torch.zeros(2, n), torch.tensor([False, True])).any()
    assert set(looked) == {0} and stop.settled[:, 0].tolist() == [0, 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with answers to their end, and ended early. They are short, so that every token is looked at."""
    folder, made = tmp_path_factory.mktemp("stops"), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stopping, "LOOKS", frozenset(range(2, 40)))
        for how in ("stop=end", "stop=label"):
            planned = study.prepare(*compose(*SMALL, f"runs_dir={folder}", how))
            execute.execute(planned)
            made.append(gating.open_run(planned.store))
    return made


def test_an_answer_that_was_ended_is_the_beginning_of_the_whole_one_and_others_are_whole(runs):
    whole, early = (run["outcomes"].to_dataset().load() for run in runs)
    stops = runs[1]["stops"].to_dataset().load()
    n, full = early["n_tokens"].values, whole["token_ids"].values
    assert (np.where(np.arange(full.shape[-1]) < n[..., None], full, -1) == early["token_ids"].values).all()
    shorter = n < whole["n_tokens"].values
    assert shorter.any() and (n[shorter] == stops["settled_at"].values[shorter]).all()
    assert not (shorter & stops["goes_on"].values).any()


def test_the_run_says_how_many_it_ended_and_how_many_of_the_others_turned(runs):
    found = analysis.early_stops(runs[1])
    stops, labels = runs[1]["stops"].to_dataset().load(), runs[1]["outcomes"]["label"]
    settled_on = (stops["goes_on"] & (stops["settled_at"] > 0)).values
    assert int(found["checked"]) == settled_on.sum() and 0 < int(found["stopped"]) <= int(found["rows"])
    assert int(found["changed"]) == (labels.values != stops["settled_label"].values)[settled_on].sum()
    assert "stop=label" in runs[1].attrs["warnings"] and "stop=label" not in runs[0].attrs["warnings"]
    with pytest.raises(GatingError, match="stop=label"):
        analysis.early_stops(runs[0])


def test_rows_are_ended_on_this_machine_only(tmp_path):
    for bad, said in (("stop=never", "stop='never'"), ("backend=simulation", "backend.name=simulation")):
        with pytest.raises(GatingError, match=said):
            study.prepare(*compose(*SMALL, f"runs_dir={tmp_path}", "stop=label", bad))


def test_a_settled_label_that_turned_is_counted_and_one_of_another_judge_is_not_compared(runs):
    told = {name: runs[1][name].to_dataset().load().copy(deep=True) for name in ("outcomes", "stops")}
    told["stops"]["settled_at"].values[:2, :3] = 4
    told["stops"]["settled_label"].values[:] = told["outcomes"]["label"].values
    told["stops"]["goes_on"].values[:] = False
    told["stops"]["goes_on"].values[:2, :3] = True
    told["stops"]["settled_label"].values[0, :2] = (told["outcomes"]["label"].values[0, :2] + 1) % 3
    tree = xr.DataTree.from_dict({f"/{name}": ds for name, ds in told.items()})
    found = analysis.early_stops(tree)
    assert (int(found["checked"]), int(found["changed"])) == (6, 2) and float(found["rate"]) == pytest.approx(1 / 3)
    tree.attrs["labels_of"] = "learned"
    with pytest.raises(GatingError, match="settled no label"):
        analysis.early_stops(tree)
