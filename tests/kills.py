"""`python -m tests.kills [N]`: kill forced runs and forced judgements N times, and look that nothing finished is lost.

After every kill the finished store must open, whole, with its answers and another judge's labels; at the end the same
commands, left alone, must end as if nothing had happened.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import xarray as xr

from gating import rejudge, store
from gating.judging import kinds
from gating.pipeline import judgements
from tests import killable

SETTINGS = ("data.n=4", "directions.questions=2", "directions.n=4", "backend.batch_rows=8", "max_new_tokens=8",
            "controls.random=1")  # fmt: skip
Job = Callable[..., None]


def processes() -> ForkServerContext:
    """Processes forked from a server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gating.pipeline.execute", "gating.pipeline.study", "tests.conftest"])
    return context


def forced_run(folder: str) -> None:
    killable.go(folder, *SETTINGS, "force=true")


def forced_judge(folder: str) -> None:
    """Every batch takes a moment, as those of a real judge do."""
    module: Any = judgements

    real = module._set

    def slow(*args: Any) -> None:
        time.sleep(0.005)
        real(*args)

    module._set = slow
    rejudge.rejudge(run_of(Path(folder)), kinds.load("rule-now"), force=True)


def run_of(folder: Path) -> Path:
    return Path((folder / "run.txt").read_text())


def finished(folder: Path) -> dict[str, xr.Dataset]:
    """The answers and the judge's labels, once every file of the store is seen to be as it was written."""
    path = store.locate(run_of(folder))
    assert store.problems(path) == []
    tree = store.open_run(path)
    assert tree.attrs["status"] == "complete" and tree["judgements/rule-now"].attrs["status"] == "complete"
    return {g: tree[g].to_dataset().load().drop_attrs() for g in ("outcomes", "directions", "judgements/rule-now")}


def started(context: ForkServerContext, folder: Path) -> dict[str, xr.Dataset]:
    """A finished, judged run in the folder, and what it holds."""
    folder.mkdir(exist_ok=True)
    assert lived(context, killable.go, str(folder), *SETTINGS)
    (folder / "run.txt").write_text((folder / "how.txt").read_text().splitlines()[1])
    rejudge.rejudge(run_of(folder), kinds.load("rule-now"))
    return finished(folder)


def lived(context: ForkServerContext, job: Job, *args: str, seconds: float | None = None) -> bool:
    """Did this end by itself before it was killed?"""
    child = context.Process(target=job, args=args)
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode in (0, -9)
    return child.exitcode == 0


def killed(context: ForkServerContext, folder: Path, kills: int, seed: int = 0) -> int:
    """Kill forced runs and judgements at random moments; how many were killed before they ended."""
    before, rng, count = started(context, folder), random.Random(seed), 0
    jobs: list[Job] = [forced_run, forced_judge]
    lasts = {}
    for job in jobs:
        begun = time.monotonic()
        assert lived(context, job, str(folder))
        lasts[job] = time.monotonic() - begun
    for i in range(kills):
        job = jobs[i % 2]
        count += not lived(context, job, str(folder), seconds=rng.uniform(0.3, 1.05) * lasts[job])
        now = finished(folder)
        assert all(now[group].equals(before[group]) for group in before), f"kill {i}"
    for job in jobs:
        assert lived(context, job, str(folder))
    assert all(v.equals(before[group]) for group, v in finished(folder).items())
    run = run_of(folder)
    assert not store.again.place(run).exists() and "judging_again" not in store.open_run(run).children
    return count


def main() -> None:
    logging.disable(logging.INFO)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        count = killed(processes(), Path(folder) / "run", n)
    print(f"{n} kills, {count} of them before the end: nothing finished was lost")


if __name__ == "__main__":
    main()
