"""The store: laid out empty, written block by block with `done` last, joined along overrides."""

import json

import numpy as np
import pytest
import xarray as xr
import yaml

from gating import store
from gating.errors import GatingError
from gating.store import TEXT, files, writing
from gating.store.joins import open_runs

ATTRS = {"config": yaml.safe_dump({"steer": {"coef": 8}}), "choices": '{"steer": "compliant"}', "overrides": "[]"}


def lay_out(folder, n_prompts=5, n_conditions=3, block=2, names=None, **attrs):
    prompts = xr.Dataset(
        {"text": ("prompt", np.array([f"text {i}" for i in range(n_prompts)], dtype=TEXT))},
        coords={"prompt": np.array([f"p{i}" for i in range(n_prompts)], dtype=TEXT)},
    )
    names = np.array(names or [f"c{i}" for i in range(n_conditions)], dtype=TEXT)
    conditions = xr.Dataset({"coef": ("condition", np.arange(float(len(names))))}, coords={"condition": names})
    folder.mkdir(parents=True, exist_ok=True)
    store.create(folder / "store.zarr", prompts, conditions, 4, block, {**ATTRS, **attrs})
    return folder / "store.zarr"


def filled(n_conditions, n_prompts, label):
    ds = store.empty_outcomes(n_conditions, n_prompts, 4)
    ds["label"].values[:] = label
    ds["completion"].values[:] = "I can’t"
    ds["done"].values[:] = True
    return ds.assign_coords(prompt=np.arange(n_prompts), condition=np.arange(n_conditions))


def test_a_new_store_is_missing_everywhere_and_keeps_its_dtypes(tmp_path):
    out = store.open_run(lay_out(tmp_path))["outcomes"]
    assert (out["label"] == -1).all() and out["label"].dtype == "int8"
    assert np.isnan(out["nll"]).all() and (out["token_ids"] == -1).all() and not out["done"].any()
    assert (out["completion"].values == "").all()
    assert out["label"].attrs["flag_meanings"] == "refusal compliance evasive degenerate unsure"


def test_a_block_fills_its_own_prompts_under_every_condition_and_no_other(tmp_path):
    path = lay_out(tmp_path)
    store.write_batch(path, 2, {"outcomes": filled(3, 2, 1)})
    store.write_batch(path, 4, {"outcomes": filled(3, 1, 2)})  # the last block is shorter
    out = store.open_run(path)["outcomes"]
    assert out["label"].values.tolist() == [[-1, -1, 1, 1, 2]] * 3
    assert out["done"].values.tolist() == [[False, False, True, True, True]] * 3
    assert out["completion"].values[0].tolist() == ["", "", "I can’t", "I can’t", "I can’t"]
    assert out["condition"].values.tolist() == ["c0", "c1", "c2"] and out["prompt"].values[4] == "p4"


def test_done_is_written_last(tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    real, calls = writing._region, []

    def dies_on_the_second_write(*args):
        calls.append(args[4])
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(writing, "_region", dies_on_the_second_write)
    with pytest.raises(KeyboardInterrupt):
        store.write_batch(path, 0, {"outcomes": filled(3, 2, 1)})
    assert "done" not in calls[0] and list(calls[1]) == ["done"]
    assert not store.open_run(path)["outcomes"]["done"].any()


def test_a_group_whose_write_was_cut_does_not_count_as_there(tmp_path):
    path = lay_out(tmp_path)
    assert not store.has_group(path, "directions")
    ds = xr.Dataset({"vector": ("layer", np.arange(3.0))}, attrs={"note": "x"})
    ds.to_zarr(path, group="directions", mode="w", consolidated=False, zarr_format=3)  # died before it was listed
    assert not store.has_group(path, "directions")
    store.add_group(path, "directions", ds)
    assert store.has_group(path, "directions")
    assert store.read_group(path, "directions").identical(ds)


def test_a_group_that_is_laid_out_keeps_what_is_known_and_takes_no_memory_for_what_is_missing(tmp_path):
    path, names = lay_out(tmp_path), np.array(list("abcde"), dtype=TEXT)
    known = xr.Dataset({"text": ("row", names), "n": ("row", np.arange(5)), "a": (("k", "row"), np.eye(2, 5))})
    known = known.assign_coords(row=np.arange(5) * 2, k=[3, 1]).assign_attrs(judge="x")
    store.create_group(path, "known", known, "row", 2)
    assert store.read_group(path, "known").identical(known)
    one = xr.Dataset({"x": (("k", "row", "step"), np.full((8, 1, 100), np.nan))})
    store.create_group(path, "missing", store.repeated(one, "row", np.arange(10**6)), "row", 4)  # 6 GB
    there = xr.open_zarr(path, group="missing", consolidated=False, chunks=None)["x"]
    assert there.shape == (8, 10**6, 100) and np.isnan(there[0, -3:, -1]).all()


def test_a_store_has_few_files_when_it_is_finished_and_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MOST_CHUNKS", 8)
    n = 23
    path = lay_out(tmp_path, n_prompts=n, n_conditions=2, block=1)
    for start in (0, 3, n - 1):
        store.write_batch(path, start, {"outcomes": filled(2, 1, start % 3)})
    chunks = xr.open_zarr(path, group="outcomes", consolidated=False)["label"].encoding["chunks"]
    before = store.read_group(path, "outcomes")
    assert chunks == (2, 3)  # of several batches, so that no variable has more chunks than may be
    assert before["done"].values[0].nonzero()[0].tolist() == [0, 3, n - 1]
    opened = store.open_run(path)["outcomes"]
    store.finish(path, {})
    with pytest.raises(GatingError, match="finished since it was opened"):
        opened["completion"].load()
    assert store.read_group(path, "outcomes").identical(before)
    assert len([k for k in files.read_list(path) if k.startswith("outcomes/label/c/")]) == 1
    assert not store.problems(path) or "rows are not done" in store.problems(path)[0]
    store.write_batch(path, 1, {"outcomes": filled(2, 1, 2)})  # what is joined can still be written to
    assert store.read_group(path, "outcomes")["label"].values[0, :4].tolist() == [0, 2, -1, 0]


def test_two_writers_cannot_hold_one_run_and_an_empty_folder_is_not_left_behind(tmp_path):
    with store.writer(tmp_path / "run"):
        with pytest.raises(GatingError, match="another process"), store.writer(tmp_path / "run"):
            pass
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    with store.writer(tmp_path / "run"):
        lay_out(tmp_path / "run")
    assert store.open_run(tmp_path / "run").attrs["status"] == "running"


def test_a_run_opens_by_its_folder_or_its_store_and_nothing_else_does(tmp_path):
    path = lay_out(tmp_path / "run")
    assert store.open_run(tmp_path / "run").identical(store.open_run(path))
    with pytest.raises(GatingError, match="is not a run"):
        store.open_run(tmp_path)
    (tmp_path / "empty" / "store.zarr").mkdir(parents=True)
    with pytest.raises(GatingError, match="readable zarr store"):
        store.open_run(tmp_path / "empty")
    store.set_attrs(path, {"schema_version": 99})
    with pytest.raises(GatingError, match="schema version 99"):
        store.open_run(path)


def sweep(tmp_path, values):
    for coef, steer in values:
        config = yaml.safe_dump({"steer": {"coef": coef}, "seed": 0})
        attrs = {
            "config": config,
            "choices": json.dumps({"steer": steer}),
            "overrides": json.dumps(["steer.coef", "steer"]),
        }
        path = lay_out(tmp_path / f"{steer}-{coef}", names=["baseline", steer], **attrs)
        store.write_batch(path, 0, {"outcomes": filled(2, 2, int(coef))})
    return open_runs(tmp_path)


def test_a_multirun_joins_along_what_was_overridden_and_differs(tmp_path):
    joined = sweep(tmp_path, [(1.0, "compliant"), (2.0, "compliant")])
    out = joined["outcomes"]
    assert out["steer.coef"].values.tolist() == [1, 2] and "steer" not in out.dims
    assert out["label"].dtype == "int8"
    assert out["label"].sel({"steer.coef": 2.0, "condition": "compliant", "prompt": "p0"}) == 2
    assert joined.attrs["incomplete"] == joined.attrs["runs"] and len(joined.attrs["runs"]) == 2
    assert joined.attrs["axes"] == ["steer.coef"] and joined["prompts"].sizes == {"prompt": 5}


def test_a_place_that_no_run_has_is_missing(tmp_path):
    out = sweep(tmp_path, [(1.0, "compliant"), (1.0, "uncompliant"), (2.0, "compliant")])["outcomes"]
    assert set(out.dims) == {"steer", "steer.coef", "condition", "prompt", "token"}
    hole = out.sel({"steer": "uncompliant", "steer.coef": 2.0})
    assert (hole["label"] == -1).all() and not hole["done"].any()
    assert (out.sel({"steer": "uncompliant", "steer.coef": 1.0})["label"].sel(condition="compliant") == -1).all()


def test_a_judges_labels_join_over_the_runs_that_it_judged(tmp_path):
    sweep(tmp_path, [(1.0, "compliant"), (2.0, "compliant"), (3.0, "compliant")])
    for coef in (1.0, 2.0):
        path = tmp_path / f"compliant-{coef}" / "store.zarr"
        labels = xr.open_zarr(path, group="outcomes", consolidated=False, chunks=None)[["label", "done"]].load()
        store.add_group(path, "judgements/other", labels)
    theirs = open_runs(tmp_path)["judgements/other"]
    assert theirs["steer.coef"].values.tolist() == [1, 2]
    assert theirs["label"].sel({"steer.coef": 2.0, "condition": "compliant", "prompt": "p0"}) == 2
    assert (theirs["label"].sel(prompt="p4") == -1).all() and not theirs["done"].sel(prompt="p4").any()


def test_runs_in_the_same_place_cannot_be_joined(tmp_path):
    lay_out(tmp_path / "a")
    lay_out(tmp_path / "b")
    with pytest.raises(GatingError, match="same place"):
        open_runs(tmp_path)
    with pytest.raises(GatingError, match="holds no runs"):
        open_runs(tmp_path / "a" / "store.zarr")
