"""A run in a process of its own, for tests that kill it. Every batch is noted in a file before it is computed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def go(runs_dir: str, *overrides: str) -> None:
    from gating.pipeline import execute, study
    from gating.steering import backend
    from tests.conftest import compose

    notes = os.open(Path(runs_dir) / "batches.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    real = backend.Backend.generate

    def noted(self, prompts, *args, **kwargs):
        os.write(notes, hashlib.sha256(repr(prompts).encode()).hexdigest()[:12].encode() + b"\n")
        return real(self, prompts, *args, **kwargs)

    backend.Backend.generate = noted
    planned = study.prepare(*compose("model=tiny-llama", f"runs_dir={runs_dir}", *overrides))
    how = execute.execute(planned)
    (Path(runs_dir) / "how.txt").write_text(f"{how}\n{planned.folder}")
