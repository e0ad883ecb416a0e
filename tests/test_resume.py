"""A killed run goes on where it stopped, ends as an undisturbed one does, and computes nothing twice."""

import multiprocessing
import random
import time
from collections import Counter

import pytest

from gating import store
from gating.errors import GatingError
from gating.pipeline import execute, study
from tests import killable, kills
from tests.conftest import compose

SETTINGS = ("data.n=20", "directions.questions=2", "directions.n=8", "backend.batch_rows=16", "max_new_tokens=24")


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["gating.pipeline.execute", "gating.pipeline.study", "tests.conftest", "tests.killable"]
    )
    return context


def batches(folder):
    notes = folder / "batches.txt"
    return notes.read_text().split() if notes.exists() else []


def run(processes, folder, kill_after=None):
    """Run in a process of its own; `kill_after` (batches begun, further seconds) kills it there. Did it end by
    itself?"""
    folder.mkdir(exist_ok=True)
    before = len(batches(folder))
    child = processes.Process(target=killable.go, args=(str(folder), *SETTINGS))
    child.start()
    while kill_after and child.is_alive() and len(batches(folder)) < before + kill_after[0]:
        time.sleep(0.005)
    child.join(kill_after[1] if kill_after else None)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode in (0, -9)
    return child.exitcode == 0


def outcome(folder):
    tree = store.open_run((folder / "how.txt").read_text().splitlines()[1])
    tree.attrs = {k: v for k, v in tree.attrs.items() if k not in ("created_at", "finished_at", "config", "pace")}
    return tree.load()


def test_a_run_killed_at_six_random_moments_equals_an_undisturbed_one_and_repeats_only_batches_in_flight(
    processes, tmp_path
):
    assert run(processes, tmp_path / "calm")
    rng = random.Random(1)
    for kill in range(6):  # two while it starts, four within or between batches
        moment = (0, rng.uniform(0, 2)) if kill < 2 else (rng.randint(1, 2), rng.uniform(0, 0.3))
        assert not run(processes, tmp_path / "rough", moment), "the run ended before it could be killed"
    assert run(processes, tmp_path / "rough")
    calm, rough = outcome(tmp_path / "calm"), outcome(tmp_path / "rough")
    assert rough.identical(calm)
    counts = [Counter(batches(tmp_path / f)) for f in ("calm", "rough")]
    assert set(counts[0]) == set(counts[1]) and set(counts[0].values()) == {1}
    assert sum((counts[1] - counts[0]).values()) <= 6


@pytest.mark.parametrize("job", ["force", "rejudge --force"])
def test_a_kill_of_what_is_done_again_costs_nothing_that_was_finished(processes, tmp_path, job):
    assert kills.kills(processes, job, 2, tmp_path) == []


def planned(tmp_path, *overrides):
    return study.prepare(*compose("model=tiny-llama", f"runs_dir={tmp_path}", *SETTINGS, "data.n=6", *overrides))


def test_a_finished_run_is_opened_unless_it_is_forced(tmp_path, monkeypatch):
    assert execute.execute(planned(tmp_path)) == "new"
    with monkeypatch.context() as m:
        m.setattr("gating.models.load", lambda cfg: pytest.fail("a finished run must not load a model"))
        assert execute.execute(planned(tmp_path)).startswith("opened")
    assert execute.execute(planned(tmp_path, "force=true")) == "new"


def test_a_forced_run_that_cannot_load_its_model_keeps_the_finished_store(tmp_path, monkeypatch):
    execute.execute(planned(tmp_path))
    forced = planned(tmp_path, "force=true")

    def unreachable(cfg):
        raise GatingError("no model")

    monkeypatch.setattr("gating.models.load", unreachable)
    with pytest.raises(GatingError, match="no model"):
        execute.execute(forced)
    assert store.open_run(forced.folder).attrs["status"] == "complete"


def test_a_changed_setting_prompt_or_seed_is_a_run_of_its_own_and_where_it_goes_is_not(tmp_path):
    keys = [
        planned(tmp_path, *o).key for o in ((), ("seed=1",), ("steer.coef=2",), ("data.n=5",), ("controls.random=2",))
    ]
    assert len(set(keys)) == 5
    assert planned(tmp_path / "elsewhere", "full_text=true", "force=true").key == keys[0]


def test_a_store_that_another_model_began_is_refused_not_mixed(tmp_path):
    study_ = planned(tmp_path)
    execute.execute(study_)
    store.set_attrs(study_.store, {"status": "running", "model_fingerprint": "other"})
    with pytest.raises(GatingError, match="force=true"):
        execute.execute(study_)


def test_an_interrupt_keeps_the_finished_blocks(tmp_path, monkeypatch):
    from gating.steering.backend import Backend

    real, calls = Backend.generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Backend, "generate", interrupted)
    study_ = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(study_)
    assert store.open_run(study_.folder)["outcomes"]["done"].all("condition").sum() == 3 * study_.prompt_batch
    monkeypatch.setattr(Backend, "generate", real)
    assert execute.execute(study_).startswith("resumed: 6 of 12")
