"""The thread that runs the batch: takes requests from a bounded queue, gives each its tokens as they come, and lets
rows leave that are done, given up or too late."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gating.serving.batch import Batch
from gating.serving.rows import Row

log = logging.getLogger(__name__)
GIVEN_UP, LATE, FAILED, CLOSED = "cancelled", "timeout", "error", "closed"  # ends beside those of a row


class Full(Exception):
    """The queue holds as many requests as it may."""


class Closing(Exception):
    """The server is about to end."""


@dataclass(eq=False)
class Job:
    """A request: its row, and the time (time.monotonic) after which nobody waits for it."""

    row: Row
    deadline: float
    given_up: bool = False
    said: int = 0  # tokens of the row that were handed out


class Said(NamedTuple):
    """What a job has got since the last time: tokens, and why it ended (empty: it goes on)."""

    job: Job
    tokens: list[int]
    end: str


class Clock(NamedTuple):
    """One turn of the engine: rows and seconds of its step, newcomers and seconds of their prompts."""

    rows: int
    step: float
    newcomers: int
    reading: float


@dataclass
class Engine:
    """waiting: requests that may wait; prompt_tokens: of the prompts that are read in at once, pads included (one is
    always); tell: is given what jobs got, by the engine's thread; clock: is given every turn."""

    batch: Batch
    waiting: int
    prompt_tokens: int
    tell: Callable[[list[Said]], None]
    clock: Callable[[Clock], None] = lambda turn: None
    queue: deque[Job] = field(default_factory=deque)
    closing: bool = False
    _live: dict[int, Job] = field(default_factory=dict)  # by the id of the row

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="gating-serve", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def live(self) -> int:
        """Rows under way."""
        return len(self._live)

    def submit(self, job: Job) -> None:
        """Raises Full or Closing."""
        with self._news:
            if self.closing or not self.alive:
                raise Closing
            if len(self.queue) >= self.waiting + max(0, self.batch.capacity - len(self._live)):
                raise Full
            self.queue.append(job)
            self._news.notify()

    def give_up(self, job: Job) -> None:
        """Nobody waits for this job any more: its row leaves before the next step."""
        job.given_up = True

    def close(self, seconds: float = 10.0) -> None:
        """Take no new job, end those under way, and wait for the thread."""
        with self._news:
            self.closing = self._ends = True
            self._news.notify()
        if self.alive:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        finally:  # a failure here is a fault of this file: everyone is told, and /healthz says so
            self.closing = True
            self._end([*self._live.values(), *self.queue], CLOSED if self._ends else FAILED)

    def _wait(self) -> bool:
        with self._news:
            while not (self._ends or self.queue or self._live):
                self._news.wait()
            return not self._ends

    def _turn(self) -> None:
        self._leave()
        newcomers = self._newcomers()
        start = time.monotonic()
        if newcomers:
            self._join(newcomers)
        middle = time.monotonic()
        rows = len(self.batch.rows)
        if rows:
            try:
                self.batch.step()
            except Exception:  # of the model or the device: whoever is in the batch has lost its state
                log.exception("a step failed; %d requests end", rows)
                self.batch.clear()
                self._end(list(self._live.values()), FAILED)
            self._hand_out()
        self.clock(Clock(rows, time.monotonic() - middle, len(newcomers), middle - start))

    def _leave(self) -> None:
        """Jobs that were given up, or whose time is over, end."""
        now = time.monotonic()
        with self._news:
            held = [*self.queue, *self._live.values()]
            gone = {id(job): GIVEN_UP if job.given_up else LATE for job in held if job.given_up or now > job.deadline}
            if gone:
                ended = [job for job in held if id(job) in gone]
                self.queue = deque(job for job in self.queue if id(job) not in gone)
        if gone:
            self.batch.drop([job.row for job in ended if id(job.row) in self._live])
            for end in (GIVEN_UP, LATE):
                self._end([job for job in ended if gone[id(job)] == end], end)

    def _newcomers(self) -> list[Job]:
        """The first of the queue that have room, as many as may be read in at once."""
        out: list[Job] = []
        width = 0
        with self._news:
            while self.queue and len(out) < self.batch.capacity - len(self.batch.rows):
                width = max(width, len(self.queue[0].row.prompt))
                if out and width * (len(out) + 1) > self.prompt_tokens:
                    break
                out.append(self.queue.popleft())
        return out

    def _join(self, jobs: Sequence[Job]) -> None:
        try:
            new = self.batch.read_in([job.row for job in jobs])
        except Exception:
            log.exception("prompts of %d requests could not be read in", len(jobs))
            self._end(jobs, FAILED)
            return
        self._live |= {id(job.row): job for job in jobs}
        try:
            self.batch.join(new)
        except Exception:
            log.exception("newcomers could not join; %d requests end", len(self._live))
            self.batch.clear()
            self._end(list(self._live.values()), FAILED)
        self._hand_out()

    def _hand_out(self) -> None:
        """Tell what every row under way has got; those that have ended are no longer."""
        out = []
        for job in list(self._live.values()):
            tokens, job.said = job.row.tokens[job.said :], len(job.row.tokens)
            if tokens or job.row.finish:
                out.append(Said(job, tokens, job.row.finish))
            if job.row.finish:
                del self._live[id(job.row)]
        if out:
            self.tell(out)

    def _end(self, jobs: Sequence[Job], end: str) -> None:
        for job in jobs:
            self._live.pop(id(job.row), None)
        if jobs:
            self.tell([Said(job, [], end) for job in jobs])
