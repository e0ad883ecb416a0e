"""Which jobs were sent and for which trace, one JSON line each, written before anybody waits for them.

A job's result can be fetched by whoever knows its id, so the file is the owner's alone, and the ids of finished jobs are
not kept beyond the run.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

FILE = "jobs.jsonl"


class Ledger:
    """The jobs of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._jobs: dict[str, str] = {}
        self.total = {"jobs": 0, "bytes_up": 0, "bytes_down": 0, "resubmitted": 0, "collected": 0}
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

    def _take(self, entry: dict[str, Any]) -> None:
        call = entry.get("call", "")
        if "job" in entry:
            self._jobs[call] = entry["job"]
            self.total["jobs"] += 1
        if "lost" in entry:
            self._jobs.pop(call, None)
            self.total["resubmitted"] += 1
        self.total["collected"] += bool(entry.get("collected"))
        for size in ("bytes_up", "bytes_down"):
            self.total[size] += int(entry.get(size, 0))

    def _write(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._take(entry)
            entry = {"time": round(time.time(), 3), **entry}
            with os.fdopen(os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "a") as f:
                f.write(json.dumps(entry) + "\n")
                f.flush()
                os.fsync(f.fileno())

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        out = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                out.append(json.loads(line))
            except ValueError:
                continue  # a line that a kill cut short
        return out
