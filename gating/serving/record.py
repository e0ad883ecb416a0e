"""What the server says of itself: figures for Prometheus, and a line for each decision. No text of a user in either."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gating.errors import GatingError, cause
from gating.foreign import shown
from gating.serving.answers import Answer
from gating.serving.engine import Clock, Engine

log = logging.getLogger(__name__)
STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds
WAITS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Figures:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        self.requests = Counter(
            "gating_requests", "Requests by how they ended: a finish_reason, cancelled, timeout, error, closed, or the "
            "HTTP status of a refusal", ["end"], registry=self._all
        )  # fmt: skip
        self.tokens = Counter("gating_tokens", "Tokens of prompts read and answers made", ["kind"], registry=self._all)
        self.flags = Counter("gating_flags", "Answers that the guard flagged", ["action"], registry=self._all)
        self.unlogged = Counter("gating_unlogged", "Decisions that could not be written down", registry=self._all)
        self.rows = Gauge("gating_rows", "Answers under way", registry=self._all)
        self.waiting = Gauge("gating_waiting", "Requests that wait for a row", registry=self._all)
        self.step = Histogram("gating_step_seconds", "A step of all rows", registry=self._all, buckets=STEPS)
        self.reading = Histogram(
            "gating_reading_seconds", "Reading in of newcomers' prompts", registry=self._all, buckets=STEPS
        )
        self.first = Histogram(
            "gating_first_token_seconds", "From a request to its first token", registry=self._all, buckets=WAITS
        )

    def turn(self, clock: Clock) -> None:
        if clock.rows:
            self.step.observe(clock.step)
        if clock.newcomers:
            self.reading.observe(clock.reading)

    def page(self, engine: Engine) -> bytes:
        """In Prometheus' text form."""
        self.rows.set(engine.live)
        self.waiting.set(len(engine.queue))
        return generate_latest(self._all)


class Decisions:
    """A JSON line for each request that was taken: when, its id, how it was steered and guarded, how it ended.

    Raises GatingError where the file cannot be opened. A line that cannot be written is said once and counted.
    """

    def __init__(self, path: str | None, figures: Figures) -> None:
        self.figures, self.failed = figures, False
        self._file: TextIO | None = None
        if path is not None:
            try:
                self._file = Path(path).expanduser().open("a", encoding="utf-8", buffering=1)
            except OSError as e:
                raise GatingError(f"log={shown(path)} cannot be written ({cause(e)}); give another file.") from None

    def ended(self, answer: Answer, end: str, seconds: float) -> None:
        row = answer.row
        self.figures.requests.labels(end).inc()
        self.figures.tokens.labels("prompt").inc(len(row.prompt))
        self.figures.tokens.labels("answer").inc(len(row.tokens))
        if row.flagged:
            self.figures.flags.labels(row.action).inc()
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write({"time": when, "id": answer.id, "model": answer.model, **answer.gating, "end": end,
                     "sampled": row.draw is not None, **answer.usage, "seconds": round(seconds, 3)})  # fmt: skip

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as e:
            self.figures.unlogged.inc()
            if not self.failed:
                log.error("log: decisions cannot be written (%s); /healthz says so until they can", cause(e))
            self.failed = True
        else:
            self.failed = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
