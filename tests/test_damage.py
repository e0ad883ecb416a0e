"""A damaged store is named, file by file, and never printed from; a write is there whole or not at all."""

import random
import shutil
import sys
from typing import Any

import pytest

from gating import rejudge, store, verify
from gating.errors import GatingError
from gating.judging.labels import MISSING
from gating.pipeline import execute
from gating.store import files
from tests import mutations
from tests.judged_runs import a_run, asking, good, judged
from tests.mutations import MUTATIONS

RESUMED = ("folder deleted", "bit flipped in a chunk", "rewritten by zarr")  # also tried on a half-done run


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return mutations.Stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_damaged_store_is_refused_naming_the_file_or_prints_what_it_did(stores, tmp_path, kind):
    results = mutations.tried(stores, kind, 7, kind in RESUMED, tmp_path / "damaged")
    assert all(how in ("named", "unchanged") for how, _ in results), results


def test_the_command_reads_every_file_and_names_each_that_is_not_as_it_was_written(tmp_path, capsys, monkeypatch):
    folder = a_run(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["gating.verify", str(folder)])
    for code, damaged in ((0, []), (1, ["outcomes/nll/c/0/1", "prompts/text/c/0"]), (1, ["files.sha256"])):
        for key in damaged:
            (folder / store.STORE / key).write_bytes(b"x")
        with pytest.raises(SystemExit) as stop:
            verify.main()
        lines = capsys.readouterr().out.splitlines()
        assert stop.value.code == code and len(lines) == max(1, len(damaged))
        assert all(str(folder / store.STORE / key) in "\n".join(lines) for key in damaged)


def test_a_row_that_is_done_without_a_label_and_a_complete_run_with_rows_undone_are_refused(tmp_path):
    folder = a_run(tmp_path / "run", done=4)
    store.finish(folder / store.STORE, {})
    with pytest.raises(GatingError, match=r"outcomes/done: the run is complete, but 4 rows are not done"):
        store.open_run(folder)
    store.set_attrs(folder / store.STORE, {"status": "running"})
    rows = store.read_group(folder / store.STORE, "outcomes").isel(prompt=slice(0, 2))
    rows["label"].values[:] = MISSING
    store.write_batch(folder / store.STORE, 0, {"outcomes": rows})
    with pytest.raises(GatingError, match=r"outcomes/label: 4 rows are done but have no label"):
        store.open_run(folder)


def test_a_write_that_is_cut_before_the_list_never_was_and_after_it_is_whole(tmp_path, monkeypatch):
    folder = a_run(tmp_path / "run")
    path = folder / store.STORE
    before = store.open_run(path)["outcomes"].to_dataset().load()
    changed = before.isel(prompt=slice(0, 2)).copy(deep=True)
    changed["label"].values[:] = 3
    changed["nll"].values[:] = 7
    with monkeypatch.context() as m:
        m.setattr(files, "_write_list", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.write_batch(path, 0, {"outcomes": changed})
    assert store.open_run(path)["outcomes"].to_dataset().load().identical(before) and not store.problems(path)
    with monkeypatch.context() as m:
        settle, calls = files._settle, []
        m.setattr(files, "_settle", lambda *a: calls.append(1) or (settle(*a) if len(calls) == 1 else None))
        store.write_batch(path, 0, {"outcomes": changed})
    for _ in range(2):
        now = store.open_run(path)["outcomes"].to_dataset().load()
        assert (now["label"].values[:, :2] == 3).all() and (now["nll"].values[:, :2] == 7).all()
        assert now["label"].isel(prompt=slice(2, None)).equals(before["label"].isel(prompt=slice(2, None)))
        store.set_attrs(path, {"note": "the next write moves what waited"})
    assert not (path / files.PENDING).exists() and not store.problems(path)


def test_judging_again_with_the_server_down_keeps_every_judgement_and_goes_on_when_it_is_back(tmp_path, serve):
    up = [True]
    server: Any = serve(
        lambda p, r, nth: good("compliance" if len(server.bodies) > 12 else "refusal") if up[0] else (500, "")
    )
    folder = a_run(tmp_path / "run")
    rejudge.rejudge(folder, asking(server))
    before, up[0] = judged(folder, "endpoint"), False
    with pytest.raises(GatingError, match="judge endpoint"):
        rejudge.rejudge(folder, asking(server), force=True)
    assert judged(folder, "endpoint").identical(before) and before["done"].all()
    up[0] = True
    assert rejudge.rejudge(folder, asking(server), force=True) == "new: 12 judged, none missing"
    assert (judged(folder, "endpoint")["label"] == 1).all() and not store.problems(folder / store.STORE)
    assert "judging_again" not in store.open_run(folder).children


def test_a_forced_run_with_other_answers_keeps_the_store_that_was_judged(stores, tmp_path):
    folder = tmp_path / stores.done.folder.name
    shutil.copytree(stores.done.folder, folder)
    again = store.again.place(folder)
    shutil.copytree(folder / store.STORE, again / store.STORE)
    out = store.read_group(again / store.STORE, "outcomes")
    out["completion"].values[:] = "another answer"
    store.add_group(again / store.STORE, "outcomes", out)
    assert "before-1" in store.again.take_place(folder)
    assert (store.open_run(folder)["outcomes"]["completion"] == "another answer").all()
    assert store.open_run(folder / "before-1")["judgements/rule-now/done"].all() and not again.exists()


def test_a_swap_that_was_cut_between_its_two_steps_is_read_and_ended(stores, tmp_path):
    folder = tmp_path / stores.done.folder.name
    shutil.copytree(stores.done.folder, folder)
    again = store.again.place(folder)
    again.mkdir()
    (folder / store.STORE).rename(again / store.STORE)
    assert store.open_run(folder).attrs["status"] == "complete"
    planned = mutations.study.Study(**{**vars(stores.done), "folder": folder})
    assert execute.execute(planned).startswith("opened")
    assert (folder / store.STORE).is_dir() and not again.exists()


def test_random_bytes_never_pass_for_a_store(tmp_path):
    folder, rng = a_run(tmp_path / "run"), random.Random(0)
    for path in mutations.files(folder / store.STORE):
        path.write_bytes(rng.randbytes(64))
    with pytest.raises(GatingError, match=r"files\.sha256"):
        store.open_run(folder)


def test_damage_is_told_once_and_not_by_a_read_that_nobody_waits_for(caplog):
    import logging

    from gating.store.files import Damaged

    for error in (Damaged("x is missing"), OSError("another")):
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
    assert [r.exc_info[1].args[0] for r in caplog.records if r.exc_info] == ["another"]
