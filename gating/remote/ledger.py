"""Which jobs were sent and for which trace, one JSON line each, written before anybody waits for them.

A job's result can be fetched by whoever knows its id, so the file is the owner's alone, and the ids of finished jobs
are not kept beyond the run.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TypedDict, cast

FILE = "jobs.jsonl"


class Entry(TypedDict, total=False):
    """One line: the digest of a trace, and what became of it."""

    time: float
    call: str
    job: str
    about: str
    bytes_up: int
    bytes_down: int
    lost: str  # why
    collected: bool


class Totals(TypedDict):
    """What was sent and came back, over all processes of the run."""

    jobs: int
    bytes_up: int
    bytes_down: int
    resubmitted: int
    collected: int


class Ledger:
    """The jobs of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._jobs: dict[str, str] = {}
        self.total: Totals = {"jobs": 0, "bytes_up": 0, "bytes_down": 0, "resubmitted": 0, "collected": 0}
        for entry in self._read():
            self._take(entry)

    def job(self, call: str) -> str | None:
        """The job that was sent for a trace and not found wanting."""
        return self._jobs.get(call)

    def sent(self, call: str, job: str, about: str, size: int) -> None:
        self._write({"call": call, "job": job, "about": about, "bytes_up": size})

    def done(self, call: str, size: int) -> None:
        self._write({"call": call, "bytes_down": size})

    def lost(self, call: str, why: str) -> None:
        """The job of a trace came to nothing: the trace has to be sent again."""
        self._write({"call": call, "lost": why})

    def collected(self, call: str) -> None:
        """A job that an earlier process sent was found and waited for."""
        self._write({"call": call, "collected": True})

    def close(self) -> None:
        """The run is complete: forget the ids, keep the counts (in the store)."""
        self.path.unlink(missing_ok=True)

    def _take(self, entry: Entry) -> None:
        call = entry.get("call", "")
        if "job" in entry:
            self._jobs[call] = entry["job"]
            self.total["jobs"] += 1
        if "lost" in entry:
            self._jobs.pop(call, None)
            self.total["resubmitted"] += 1
        self.total["collected"] += bool(entry.get("collected"))
        self.total["bytes_up"] += int(entry.get("bytes_up", 0))
        self.total["bytes_down"] += int(entry.get("bytes_down", 0))

    def _write(self, entry: Entry) -> None:
        with self._lock:
            self._take(entry)
            line = json.dumps({"time": round(time.time(), 3), **entry})
            with os.fdopen(os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "a") as f:
                f.write(line + "\n")
                f.flush()
                os.fsync(f.fileno())

    def _read(self) -> list[Entry]:
        if not self.path.is_file():
            return []
        entries: list[Entry] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(cast(Entry, json.loads(line)))
            except ValueError:
                continue  # a line that a kill cut short
        return entries
