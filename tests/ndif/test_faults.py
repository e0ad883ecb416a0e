"""What can happen to long remote jobs, injected for real: nothing finished is lost, nothing hangs, one message says
why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

import nnsight
import numpy as np
import pytest

import gating
from gating.errors import GatingError, TooLarge
from gating.remote.wire import Wire
from tests.ndif.conftest import SLOW
from tests.ndif.test_equal import assert_same, finished

ROWS = [[5, 9, 30 + i] for i in range(8)]
nnsight.register("tests")


@contextlib.contextmanager
def later(seconds: float, do):
    """Do something while the body runs."""
    thread = threading.Timer(seconds, do)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def fails(process, seconds: float = 120) -> str:
    out = process.communicate(timeout=seconds)[0]
    assert process.returncode == 2, out
    assert "Traceback" not in out
    return " ".join(out.split())


def under_way(folder) -> bool:
    """Whether a run's ledger holds a job without a result."""
    lines = [json.loads(x) for p in folder.rglob("jobs.jsonl") for x in p.read_text().splitlines()]
    return {x["call"] for x in lines if "job" in x} - {x["call"] for x in lines if "bytes_down" in x} != set()


def long_answers(backend, n: int = 250):
    """A job that takes some seconds."""
    return backend.generate([[5, 9, 30 + i % 60] for i in range(48)], {}, n).tokens


def test_a_server_that_goes_away_while_jobs_are_sent_is_waited_for(serving, backend):
    here, remote = backend()
    expected = here.generate(ROWS, {}, 4).tokens
    serving.stop("api", signal.SIGKILL)
    with later(2, serving.start_api):
        assert here.generate(ROWS[::-1], {}, 4).tokens == expected[::-1]
    assert remote.ledger.total["jobs"] == 2


def test_a_job_outlives_a_restart_of_the_api_and_is_not_sent_again(serving, backend):
    here, remote = backend()

    def restart():
        serving.stop("api", signal.SIGKILL)
        time.sleep(2)
        serving.start_api()

    with later(1.0, restart):
        assert len(long_answers(here)) == 48
    assert remote.ledger.total["jobs"] == 1


def test_a_server_that_stays_silent_ends_the_run_with_what_it_has_and_the_same_command_goes_on(
    serving, client, tmp_path
):
    asked = (
        "model=tiny-llama",
        "data.n=30",
        "controls.random=2",
        "backend.outage=4",
        "backend.unknown=3",
        "backend.stalled=10",
        "max_new_tokens=24",
    )
    first = client(tmp_path, *asked)
    until(lambda: done_rows(tmp_path) > 0, first)
    serving.stop("api", signal.SIGKILL)
    said = fails(first)
    assert "backend.outage" in said
    assert "give the same command again" in said
    kept = done_rows(tmp_path)
    assert kept > 0
    serving.start_api()
    serving.until("the API", lambda: set(serving.models) <= serving.serving())
    run = gating.open_run(finished(client(tmp_path, *asked)))
    assert run["outcomes"]["done"].values.all()


def test_a_killed_worker_process_costs_one_more_try(serving, backend):
    here, remote = backend()
    pid = serving.actor("tiny-llama")
    with later(1.0, lambda: os.kill(pid, signal.SIGKILL)):
        assert len(long_answers(here)) == 48
    assert remote.ledger.total["resubmitted"] >= 1


def test_an_actor_that_the_server_ends_mid_job_costs_at_most_one_more_try(serving, backend):
    here, remote = backend()
    with later(1.0, serving.killer("tiny-llama")):
        assert len(long_answers(here)) == 48
    assert remote.ledger.total["resubmitted"] <= 1  # NDIF may put the job back into its queue by itself


def test_a_job_that_exceeds_the_servers_time_is_done_in_halves(serving, backend):
    from gating.steering.calls import Call
    from gating.steering.room import in_halves

    here, remote = backend()
    lm = here.lm

    def slow(rows):
        seconds = 2 * SLOW if len(rows) > 2 else 0.0
        ids, call = here._inputs(*_padded(here, rows)), Call("slow", (rows,), f"{len(rows)} slow rows")
        with lm.trace(ids, backend=remote.via(call)):
            time.sleep(seconds)
            out = nnsight.save(lm.output.logits[:, -1].argmax(-1))
        return out.tolist()

    parts = in_halves(slow, ROWS[:4])
    assert [len(rows) for rows, _ in parts] == [2, 2]
    with pytest.raises(TooLarge, match=r"3 slow rows.*execution timeout"):
        slow(ROWS[:3])


def _padded(backend, rows):
    from gating import chat

    return chat.pad_left(rows, backend.pad_id)


def test_an_error_in_the_block_names_the_rows_is_not_tried_again_and_leaves_its_traceback_in_the_log(
    serving, backend, tmp_path
):
    from gating.steering.calls import Call

    here, remote = backend()
    lm = here.lm
    call = Call("bad", (), "prompts a to b under compliant")
    with pytest.raises(GatingError, match=r"prompts a to b under compliant: the job failed.*ZeroDivisionError") as e:
        with lm.trace({"input_ids": _padded(here, ROWS)[0]}, backend=remote.via(call)):
            out = nnsight.save(lm.output.logits[0, 0, 0] * (1 / 0))
        del out
    assert "Traceback" not in str(e.value)
    assert "Traceback" in (tmp_path / "remote.log").read_text()
    assert remote.ledger.total["jobs"] == 1


def test_a_job_that_the_server_knows_nothing_of_is_sent_again(serving, backend):
    here, remote = backend()
    remote.host.submit = _once(lambda *a: "0" * 32, remote.host.submit)
    assert len(here.generate(ROWS, {}, 4).tokens) == 8
    assert remote.ledger.total["resubmitted"] == 1


def _once(first, then):
    calls = []
    return lambda *a: (calls.append(1), (first if len(calls) == 1 else then)(*a))[1]


def test_an_expired_result_is_computed_again(serving, backend):
    here, remote = backend()
    expected = here.generate(ROWS, {}, 4).tokens
    job = next(iter(remote.ledger._jobs.values()))
    remove = (
        "import boto3,sys; s=boto3.client('s3',endpoint_url=sys.argv[1],aws_access_key_id='test',"
        "aws_secret_access_key='testtest',region_name='us-east-1');"
        "s.delete_object(Bucket='ndif-results',Key=sys.argv[2])"
    )
    subprocess.run([serving.python, "-c", remove, f"http://127.0.0.1:{serving.port + 3}", f"{job}.pt"], check=True)
    assert here.generate(ROWS, {}, 4).tokens == expected
    assert remote.ledger.total["jobs"] == 2
    assert remote.ledger.total["resubmitted"] == 1


def test_a_client_killed_with_jobs_in_flight_collects_them_and_ends_as_an_undisturbed_one(serving, client, tmp_path):
    asked = ("model=tiny-llama", "data.n=16", "controls.random=2", "max_new_tokens=24")
    undisturbed = gating.open_run(finished(client(tmp_path / "whole", *asked)))
    first = client(tmp_path / "killed", *asked)
    until(lambda: under_way(tmp_path / "killed") and done_rows(tmp_path / "killed") >= 0, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    run = gating.open_run(finished(client(tmp_path / "killed", *asked)))
    assert json.loads(run.attrs["jobs"])["collected"] >= 1
    assert_same(undisturbed, run, within=0)
    assert not list((tmp_path / "killed").rglob("jobs.jsonl")), "ids of finished jobs are not kept"


def test_a_result_above_the_inline_limit_comes_whole(serving, backend):
    here, remote = backend()
    states, _ = here.capture([[5, 9, 30 + i % 60] for i in range(64)], ["last"] * 160)
    assert states.nbytes > 8 * 2**20
    assert remote.ledger.total["bytes_down"] > 0
    assert (states[:, 0] == states[:, -1]).all()


def test_a_full_disk_ends_the_run_in_one_message_and_the_same_command_goes_on(serving, client, tmp_path):
    """The disk is a small one that is mounted for it; where that is not allowed the test says so and skips."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True).returncode
        == 0
    )
    if not mounted:
        pytest.skip("this machine lets nobody mount a small disk")
    asked = ("model=tiny-llama", "data.n=40", "controls.random=2", "readouts.tokens=true")
    try:
        said = fails(client(disk, *asked))
        assert "free some disk space" in said
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        run = gating.open_run(finished(client(disk, *asked)))
        assert run["outcomes"]["done"].values.all()
        assert np.isfinite(run["/outcomes"].to_dataset()["refusal_score"].values).all()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_job_that_takes_longer_than_the_deadline_ends_the_run_and_is_collected_later(serving, backend):
    here, _ = backend(deadline=0.2)
    with pytest.raises(GatingError, match=r"backend\.deadline"):
        long_answers(here)
    patient, again = backend()
    assert len(long_answers(patient)) == 48
    assert again.ledger.total["collected"] == 1


def until(ready, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come so far"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def done_rows(folder) -> int:
    try:
        return sum(int(gating.open_run(p)["outcomes"]["done"].sum()) for p in folder.rglob("store.zarr"))
    except (GatingError, KeyError, OSError):
        return -1


def test_a_wire_that_meets_no_server_says_so_after_its_patience(tmp_path):
    from gating.remote.wire import Passing

    wire = Wire("http://127.0.0.1:9", "")
    with pytest.raises(Passing, match="no connection"):
        wire.get("/ping")
