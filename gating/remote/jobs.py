"""One trace's way to the server and back: sent, noted, waited for, collected; sent again where that can help.

`Remote.via` gives gating.steering.backend the nnsight backend of a trace. It returns when the result is in the
caller's variables, so a trace reads the same wherever it runs; other traces have their turn while it waits.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import nnsight
import numpy as np
import tenacity
import torch
from nnsight.schema.request import RequestModel
from nnsight.schema.response import Status
from nnsight.tracing.backend import Backend as Runner
from nnsight.tracing.tracer import save
from nnsight.tracing.util import push

from gating import foreign
from gating.errors import GatingError, TooLarge
from gating.remote import expected, results, wire
from gating.remote.ledger import Ledger
from gating.remote.wire import Lost, Passing, Wire
from gating.steering import edits, ops
from gating.steering.calls import Call
from gating.steering.scheduler import Turn

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

LOG = "remote.log"
SHORTEST = 0.1  # seconds that a question gets at least
SLOWEST = 50_000  # bytes a second of a connection that still counts as one
LOGGED = 20_000  # characters of a server's message that are kept, from its end
POLL = (0.05, 2.0)  # seconds between questions about a job: at first, and at most
NO_ROOM = ("out of memory", "outofmemory", "exceeded the execution timeout")
OWN_ERROR = ("Traceback (most recent call last)", "ModuleNotFoundError", "doesn't match")
GO_ON = "Finished rows are kept, and so are the ids of jobs under way: give the same command again to go on."


class Failed(GatingError):
    """The trace itself raised on the server."""


@dataclass(frozen=True)
class Limits:
    """How long and how often, from backend.* (gating/pipeline/config.py)."""

    deadline: float
    outage: float
    unknown: float
    stalled: float
    attempts: int


@dataclass
class Remote:
    """A served model. env: what the server applies to it for each job (the attention kernel, as resolved here)."""

    host: Wire
    model_key: str
    env: dict[str, object]
    ledger: Ledger
    limits: Limits
    in_flight: int
    turn: Turn
    folder: Path  # of the run: remote.log goes there
    sizes: expected.Sizes  # what results are checked against
    _slots: threading.Semaphore = field(init=False)
    _passed: float = 0.0  # when the latest of the jobs that are done was sent

    def __post_init__(self) -> None:
        self._slots = threading.Semaphore(self.in_flight)
        nnsight.register("gating")  # ops.py and edits.py go with the job, by value: the server has neither

    def via(self, call: Call) -> Runner:
        return _Trace(self, call)

    def run(self, call: Call, tracer: Any) -> dict[str, object]:
        """The values that a trace saved. Raises GatingError, TooLarge, or turns.Stopped."""
        key, until = digest(call), time.monotonic() + self.limits.deadline
        tries = tenacity.stop_after_attempt(self.limits.attempts)
        again = self._retrying(call, Lost, tries, "sending it again", until)
        try:
            return again(self._once, call, key, tracer, until)
        except Lost as e:
            self._note(call, f"given up: {e}")
            raise GatingError(
                f"{self.host.url}: {call.about} failed {self.limits.attempts} times (last: {self.host.clean(e)}). "
                f"{GO_ON}"
            ) from None

    def _once(self, call: Call, key: str, tracer: Any, until: float) -> dict[str, object]:
        """Send a trace, unless a job of it is under way, and collect its result."""
        job = self.ledger.job(key)
        payload = b"" if job else RequestModel.serialize(tracer, compress=True)
        with self.turn.away(), self._slots:
            sent = time.monotonic()
            if job is None:
                job = self._patiently(call, self.host.submit, until, len(payload), self.model_key, payload, self.env)
                self.ledger.sent(key, job, call.about, len(payload))
            else:
                self.ledger.collected(key)
            try:
                values = self._collected(call, key, self._wait(call, job, sent, until), until)
            except (Lost, TooLarge, Failed) as e:
                self.ledger.lost(key, str(e))
                raise
            self._passed = max(self._passed, sent)
            return values

    def _collected(self, call: Call, key: str, url: object, until: float) -> dict[str, object]:
        """The result, fetched and found to be what was asked for."""
        size = expected.size(call, self.sizes)

        def fetch(seconds: float) -> bytes:
            return self.host.fetch(url, seconds, size + results.OVERHEAD)

        content = self._patiently(call, fetch, until, size)
        try:
            values = expected.check(call, self.sizes, results.unpack(content, size))
        except expected.NotFinite as e:
            raise Failed(f"{call.about}: {e}, on {self.host.url}. {GO_ON}") from None
        self.ledger.done(key, len(content))
        return values

    def _patiently(self, call: Call, ask: Callable[..., Answer], until: float, size: int, *args: object) -> Answer:
        """Ask the server, with the seconds that it may take as the last argument, for as long as an outage may last.
        Errors in the request itself are not asked again. size: the bytes that travel."""
        end, most = min(until, time.monotonic() + self.limits.outage), self.limits.outage + size / SLOWEST
        retry = self._retrying(call, Passing, lambda state: time.monotonic() >= end, "asking again", end)
        try:
            return retry(lambda: ask(*args, max(min(most, until - time.monotonic()), SHORTEST)))
        except Lost:
            raise
        except Passing as e:
            if time.monotonic() >= until:
                raise self._too_long(call, self.host.clean(e)) from None
            raise self._silent(e) from None

    def _retrying(
        self, call: Call, fault: type[Passing], stop: Callable[[tenacity.RetryCallState], bool], what: str, end: float
    ) -> tenacity.Retrying:
        """Tries again after exactly this fault, more and more slowly, until `stop`, pausing no longer than until `end`.
        A lost job is sent again, which asking again would not do, so that a subclass of the fault does not count."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: type(e) is fault),
            stop=stop,
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            sleep=lambda seconds: self._pause(min(seconds, max(end - time.monotonic(), SHORTEST))),
            before_sleep=lambda state: self._note(call, f"{what}: {_why(state)}"),
            reraise=True,
        )

    def _silent(self, e: Exception) -> GatingError:
        return GatingError(
            f"backend.outage: {self.host.url} has not answered for {self.limits.outage:g} s ({self.host.clean(e)}). "
            f"{GO_ON}"
        )

    def _too_long(self, call: Call, state: str) -> GatingError:
        return GatingError(
            f"backend.deadline: {call.about} had no result after {self.limits.deadline:g} s (state: {state}). {GO_ON} "
            "A larger backend.deadline=SECONDS waits longer."
        )

    def _wait(self, call: Call, job: str, sent: float, until: float) -> object:
        """The address of a job's result, once it has one."""
        start = answered = changed = time.monotonic()
        pause, known, was = POLL[0], False, None
        while True:
            now = time.monotonic()
            silent_at = answered + self.limits.outage
            try:
                state = self.host.state(job, max(min(wire.PATIENCE, silent_at - now, until - now), SHORTEST))
                answered = now
            except Passing as e:
                state = None
                if time.monotonic() > min(silent_at, until):
                    raise (self._silent(e) if silent_at < until else self._too_long(call, str(e))) from None
            if state is not None:
                known = True
                if (now_is := (state.status, state.description)) != was:
                    was, changed = now_is, now
                if state.status == Status.COMPLETED:
                    return state.data
                if state.status == Status.ERROR:
                    raise self._failure(call, state.description)
                # A server that was restarted keeps a job's state and not always the job. One that runs ends by itself;
                # another is lost when jobs that were sent after it are done, or when nothing has happened for long.
                patience = self.limits.unknown if self._passed > sent else self.limits.stalled
                if state.status != Status.RUNNING and now - changed > patience:
                    raise Lost(f"its state was {state.status.value} for {patience:g} s")
            elif not known and answered - start > self.limits.unknown:
                raise Lost(f"the server knows nothing of this job after {self.limits.unknown:g} s")
            if time.monotonic() > until:
                raise self._too_long(call, state.status.value if state else "unknown")
            self.turn.sleep(pause)
            pause = min(pause * 1.5, POLL[1])

    def _failure(self, call: Call, message: str) -> Exception:
        """What a failed job's message means: the trace's own error, no room, or a fault of the server that may pass."""
        message = self.host.clean(message)
        self._note(call, message)
        last = _last(message) or "no message"
        if any(mark in message.lower() for mark in NO_ROOM):
            return TooLarge(
                f"{call.about}: the server has not the room or the time for this job ({last}); lower "
                f"backend.batch_rows or max_new_tokens. {GO_ON}"
            )
        if any(mark in message for mark in OWN_ERROR):
            where = f"{last} (all of it in {self.folder / LOG})"
            return Failed(f"{call.about}: the job failed on {self.host.url}: {where}. {GO_ON}")
        return Lost(f"the server gave the job up ({last})")

    def _pause(self, seconds: float) -> None:
        with self.turn.away():
            self.turn.sleep(seconds)

    def _note(self, call: Call, text: str) -> None:
        """Keep what the server said in the run's remote.log; one line of it for whoever watches."""
        lines = [_indented(line) for line in self.host.clean(text)[-LOGGED:].splitlines()]
        log.info("%s: %s", call.about, _last("\n".join(lines)))
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with (self.folder / LOG).open("a", encoding="utf-8") as f:
            f.write(f"== {stamp} {call.kind}: {call.about}\n" + "\n".join(lines) + "\n")


class _Trace(Runner):
    """The nnsight backend of one trace: its saved values are in the caller's variables when it returns."""

    def __init__(self, remote: Remote, call: Call) -> None:
        self.remote, self.call = remote, call

    def __call__(self, tracer: Any) -> None:
        values = self.remote.run(self.call, tracer)
        for value in values.values():
            save(value)
        push(tracer.info.frame, values)


def digest(call: Call) -> str:
    """16 hex digits of what determines a trace's result: a job is found again by it, whatever order batches come in."""
    h = hashlib.sha256((inspect.getsource(edits) + inspect.getsource(ops)).encode())

    def walk(x: object) -> None:
        if isinstance(x, dict):
            for k in x:
                h.update(repr(k).encode())
                walk(x[k])
        elif isinstance(x, list | tuple):
            h.update(f"[{len(x)}".encode())
            for each in x:
                walk(each)
        elif isinstance(x, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(x)
            h.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            h.update(repr(x).encode() + b";")

    walk((call.kind, call.content))
    return h.hexdigest()[:16]


def _indented(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))][:40] + foreign.shown(line)


def _last(text: str) -> str:
    """The last line of what a server says, fit to show."""
    return foreign.shown(text[-LOGGED:].strip().splitlines()[-1]) if text.strip() else ""


def _why(state: tenacity.RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome else ""
