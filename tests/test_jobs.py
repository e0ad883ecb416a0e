"""A job's way to a server and back, with a server that is made up: what is tried again, what is not, and for how
long."""

import io
import threading
import time

import pytest
import torch
import zstandard
from nnsight.schema.response import ResponseModel, Status

from gating.errors import GatingError, TooLarge
from gating.remote import jobs
from gating.remote.expected import Sizes
from gating.remote.jobs import Limits, Remote
from gating.remote.ledger import Ledger
from gating.remote.wire import Lost, Passing
from gating.steering.calls import Call
from gating.steering.scheduler import Turn, each

CALL = Call("some", (1,), "prompts a to b under compliant")


def packed(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return zstandard.ZstdCompressor().compress(out.getvalue())


class Host:
    """Says what it is told to, one thing a question; then that jobs are done."""

    url, key = "http://host", ""

    def __init__(self, states=(), submits=(), results=(), first=None):
        self.first = first  # what is said of the first job, for ever
        self.states, self.submits, self.results = list(states), list(submits), list(results)
        self.sent, self.now, self.most, self.lock = 0, 0, 0, threading.Lock()

    def submit(self, model_key, payload, env, seconds):
        self._maybe(self.submits)
        with self.lock:
            self.sent += 1
            self.now += 1
            self.most = max(self.most, self.now)
            return f"job-{self.sent}"

    def state(self, job, seconds):
        told = self.first if job == "job-1" and self.first else self._maybe(self.states)
        if told is None:
            return ResponseModel(id=job, status=Status.COMPLETED, data="url")
        return None if told == "unknown" else ResponseModel(id=job, status=told[0], description=told[1])

    def fetch(self, url, seconds, limit):
        with self.lock:
            self.now -= 1
        return self._maybe(self.results) or packed({"out": torch.tensor(7)})

    def clean(self, text):
        return str(text)

    def _maybe(self, what):
        told = what.pop(0) if what else None
        if isinstance(told, Exception):
            raise told
        return told


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.RequestModel, "serialize", lambda tracer, compress: b"payload")
    waited = []

    def make(host, width=1, **limits):
        turn = Turn()
        monkeypatch.setattr(turn, "sleep", lambda seconds: (waited.append(seconds), time.sleep(min(seconds, 0.002)))[1])
        given = Limits(**{"deadline": 5, "outage": 0.5, "unknown": 0.05, "stalled": 0.1, "attempts": 3, **limits})
        made = Remote(host, "key", {}, Ledger(tmp_path), given, width, turn, tmp_path, Sizes(2, 8, 16))
        setattr(made, "waited", waited)  # noqa: B010 - what a test wants to know of it
        return made

    return make


RUNNING, QUEUED = (Status.RUNNING, "running"), (Status.QUEUED, "position 3")
BROKEN = (Status.ERROR, "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero")
EVICTED = (Status.ERROR, "Error submitting request to model deployment. Please try again later.")


def test_a_job_is_asked_for_until_it_is_done_ever_more_slowly(remote):
    host = Host([QUEUED, RUNNING, RUNNING, RUNNING])
    one = remote(host)
    assert one.run(CALL, None)["out"] == 7
    assert one.waited == sorted(one.waited) and len(one.waited) == 4
    assert host.sent == 1


@pytest.mark.parametrize("host", [
    Host([EVICTED]), Host(first="unknown"), Host(first=QUEUED), Host(results=[Lost("expired")]),
    Host(results=[b"not a result"]),
])  # fmt: skip
def test_a_job_that_came_to_nothing_is_sent_once_more(remote, host):
    one = remote(host)
    assert one.run(CALL, None)["out"] == 7
    assert host.sent == 2
    assert one.ledger.total["resubmitted"] == 1


def test_a_job_that_always_comes_to_nothing_is_given_up_with_its_rows_named(remote, tmp_path):
    host = Host([EVICTED] * 9)
    with pytest.raises(GatingError, match=r"prompts a to b under compliant failed 3 times.*same command") as e:
        remote(host).run(CALL, None)
    assert not isinstance(e.value, TooLarge)
    assert host.sent == 3
    assert (tmp_path / "remote.log").read_text().count("Error submitting") >= 3


def test_an_error_of_the_trace_is_not_tried_again_and_its_traceback_goes_to_the_log(remote, tmp_path):
    host = Host([RUNNING, BROKEN])
    with pytest.raises(GatingError, match="ZeroDivisionError") as e:
        remote(host).run(CALL, None)
    assert "Traceback" not in str(e.value)
    assert "Traceback" in (tmp_path / "remote.log").read_text()
    assert host.sent == 1


@pytest.mark.parametrize(
    "said",
    ["Your job exceeded the execution timeout of 30s.", "Traceback...\ntorch.OutOfMemoryError: CUDA out of memory."],
)
def test_a_job_without_room_or_time_is_too_large_and_left_to_who_can_halve_it(remote, said):
    host = Host([(Status.ERROR, said)])
    with pytest.raises(TooLarge, match=r"backend\.batch_rows"):
        remote(host).run(CALL, None)
    assert host.sent == 1


def test_silence_is_waited_out_while_sending_and_while_waiting(remote):
    silent = [Passing("no answer")] * 3
    host = Host([*silent, RUNNING], submits=silent)
    assert remote(host, outage=30).run(CALL, None)["out"] == 7
    assert host.sent == 1


@pytest.mark.parametrize("where", ["states", "submits"])
def test_silence_for_too_long_ends_it_and_the_job_can_be_collected_later(remote, where):
    host = Host(**{where: [Passing("no answer")] * 10**5})
    with pytest.raises(GatingError, match=r"backend\.outage"):
        remote(host, outage=0.1).run(CALL, None)
    host.states, host.submits = [], []
    again = remote(host)
    assert again.run(CALL, None)["out"] == 7
    assert again.ledger.total["collected"] == (1 if where == "states" else 0)
    assert host.sent == 1


def test_a_job_that_takes_longer_than_the_deadline_is_kept_and_not_sent_again(remote):
    host = Host([RUNNING] * 10**5)
    with pytest.raises(GatingError, match=r"backend\.deadline.*RUNNING"):
        remote(host, deadline=0.1).run(CALL, None)
    assert host.sent == 1


def test_a_job_that_runs_is_never_taken_for_a_lost_one(remote):
    host = Host([RUNNING] * 300)
    assert remote(host, stalled=0.01, unknown=0.01).run(CALL, None)["out"] == 7
    assert host.sent == 1


def test_never_more_jobs_are_under_way_than_allowed(remote):
    host = Host([RUNNING] * 60)
    one = remote(host, width=3)
    calls = [Call("some", (i,), "rows") for i in range(12)]
    out = dict(each(lambda i: one.run(calls[i], None)["out"], range(12), 6, one.turn))
    assert len(out) == 12
    assert host.most == 3


def test_a_repeated_command_collects_what_an_earlier_process_sent(remote):
    host = Host()
    remote(host).ledger.sent(jobs.digest(CALL), "job-of-old", "rows", 9)
    again = remote(host)
    assert again.run(CALL, None)["out"] == 7
    assert host.sent == 0
    assert again.ledger.total["collected"] == 1
