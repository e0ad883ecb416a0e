"""Bad input over every command: `python -m tests.bad_inputs [PART...] [--every N]` prints what was not refused.

A case is refused when the command exits with 2 and says one paragraph, without a traceback, within SECONDS of its own
time. Each runs in a process forked from one that has imported everything.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

SECONDS = 10.0  # of processor time
WALL = 90.0  # seconds; a machine may be shared
LONGEST = 2500  # characters of a refusal


@dataclass(frozen=True)
class Case:
    """A command with its words, in a folder with these files."""

    part: str
    command: str  # of python -m gating.COMMAND
    argv: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    before: Callable[[Path], object] | None = None  # what else the folder needs
    named: str = ""  # what the refusal must hold

    def __str__(self) -> str:
        files = [(name, content[:50]) for name, content in self.files.items()]
        return f"{self.part}: {self.command} {' '.join(a[:70] for a in self.argv)} {files}"


@dataclass(frozen=True)
class Outcome:
    case: Case
    verdict: str  # refused, traceback, hang, accepted, long, unnamed
    said: str
    seconds: float


def run(case: Case) -> Outcome:
    """The case in a fork, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bad-input-"))
    try:
        for name, content in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if case.before:
            case.before(folder)
        return _judged(case, *_forked(case, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forked(case: Case, folder: Path) -> tuple[int | None, str, float]:
    """Exit code (None where it was stopped), what it said, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as out:
        pid = os.fork()
        if pid == 0:
            _child(case, folder, out.fileno())
        end, status = time.monotonic() + WALL, None
        while status is None and time.monotonic() < end:
            done, code = os.waitpid(pid, os.WNOHANG)
            status = code if done else None
            time.sleep(0.02)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        out.seek(0)
        said = out.read().decode(errors="replace")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if status is None else os.waitstatus_to_exitcode(status), said, used


def _child(case: Case, folder: Path, out: int) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True)
        os.chdir(folder)
        sys.argv = [f"gating.{case.command}", *case.argv]
        module = import_module(f"gating.{case.command}")
        if hasattr(module, "console"):
            module.console.file = sys.stdout
        module.main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _judged(case: Case, code: int | None, said: str, seconds: float) -> Outcome:
    words = " ".join(said.split())
    error = words[words.find("error:") :] if "error:" in words else ""
    if "Traceback" in said or "AssertionError" in said:
        verdict = "traceback"
    elif code is None or seconds > SECONDS:
        verdict = "hang"
    elif code != 2 or not error:
        verdict = "accepted" if code == 0 else f"exit {code}"
    elif len(error) > LONGEST:
        verdict = "long"
    else:
        verdict = "refused" if case.named in words else "unnamed"
    return Outcome(case, verdict, said, seconds)


def warm() -> None:
    """Import what the commands import, once."""
    for name in ("run", "choose", "worst", "train", "report", "results", "rejudge", "selection", "meta"):
        import_module(f"gating.{name}")
    for name in (
        "pipeline.execute",
        "pipeline.study",
        "pipeline.dryrun",
        "reporting.page",
        "training.adapter",
        "choosing.stages",
    ):
        import_module(f"gating.{name}")


def main() -> None:
    from tests.bad_input_cases import cases

    words = sys.argv[1:]
    every = int(words[words.index("--every") + 1]) if "--every" in words else 1
    parts = [w for w in words if not w.startswith("--") and not w.isdigit()]
    chosen = [c for c in cases() if not parts or c.part in parts][::every]
    warm()
    counted: Counter[str] = Counter()
    for i, case in enumerate(chosen):
        outcome = run(case)
        counted[outcome.verdict] += 1
        if outcome.verdict != "refused":
            tail = " ".join(outcome.said.split())[-400:]
            print(f"[{i}] {outcome.verdict} ({outcome.seconds:.1f} s) {case}\n      {tail}", flush=True)
    print(f"{len(chosen)} cases: {dict(counted)}")


if __name__ == "__main__":
    main()
