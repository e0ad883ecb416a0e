"""`python -m tests.kills [N]`: kill every command N times in all, each time as it touches the file system once more.

A command must never leave less than it found, and the same command given again must end as an undisturbed one. A child
counts what it opens to write, renames, makes and removes below its folder, and kills itself at the k-th of them.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests import same_arrays
from tests.same_arrays import arrays

WRITES = os.O_WRONLY | os.O_RDWR
RUN = ("model=tiny-llama", "data.n=5", "data.n_harmless=3", "directions.questions=2", "directions.n=4")
SMALL = (*RUN, "backend.batch_rows=12", "max_new_tokens=4", "controls.random=1")
RESPONSES = (*SMALL, "directions.position=response_mean", "directions.response_tokens=4")
CALIBRATED = (*SMALL, "steer.coef=0.5", "steer.iso_kl=0.5")


@dataclass(frozen=True)
class Job:
    """A command that is killed: what stands before it, what it does, and whether all is there that stood before."""

    before: Callable[[Path], None]
    go: Callable[[Path], None]
    kept: Callable[[Path], bool]
    result: Callable[[Path], object]


def run(folder: Path, *overrides: str) -> Path:
    from gating.pipeline import execute, study
    from tests.conftest import compose

    planned = study.prepare(*compose(f"runs_dir={folder}", *overrides))
    execute.execute(planned)
    return Path(planned.folder)


def running(*overrides: str) -> Job:
    return Job(lambda f: None, lambda f: void(run(f, *overrides)), anything, outcomes)


def void(_: object) -> None:
    """For a function whose value nobody wants."""


def anything(folder: Path) -> bool:
    return True


def outcomes(folder: Path) -> object:
    """Every array of the only store of a folder, by its path."""
    return arrays(str(store_of(folder) / "store.zarr"))


def store_of(folder: Path) -> Path:
    (found,) = folder.glob("*/store.zarr")
    return found.parent


def complete(folder: Path) -> bool:
    import gating
    from gating import store

    tree = gating.open_run(store_of(folder))
    assert store.problems(store_of(folder) / store.STORE) == []
    return tree.attrs["status"] == "complete" and bool(tree["outcomes"]["done"].all())


def judge(folder: Path, force: bool = True) -> None:
    from gating.judging import kinds
    from gating.pipeline.judgements import rejudge

    spec = folder.with_name("mine.yaml")
    spec.write_text("kind: rule\nname: mine\n", encoding="utf-8")
    rejudge(store_of(folder), kinds.load(str(spec)), force)


def judged(folder: Path) -> bool:
    import gating

    group = gating.open_run(store_of(folder))["judgements/mine"]
    return bool(group["done"].any("condition").all())


def ran(folder: Path) -> None:
    run(folder, *SMALL)


def ran_and_judged(folder: Path) -> None:
    ran(folder)
    judge(folder)


def report(folder: Path) -> None:
    import gating
    from gating.reporting import page

    page.write(gating.open_run(store_of(folder)), store_of(folder))


def reported(folder: Path) -> bool:
    files = [*store_of(folder).glob("*.html"), *store_of(folder).glob("*.png")]
    ends = (b"</html>", b"IEND\xaeB`\x82")
    return len(files) > 3 and all(f.read_bytes().rstrip().endswith(ends) for f in files)


def pages(folder: Path) -> object:
    return sorted(p.name for p in store_of(folder).iterdir() if p.suffix in (".html", ".png", ".json"))


def train(folder: Path) -> None:
    from gating.training import adapter
    from tests.test_train import small_recipe

    adapter.train(small_recipe(folder, "adapter"))


def trained(folder: Path) -> bool:
    from gating.training import adapter

    names = {p.name for p in (folder / "adapter").iterdir()}
    return names == adapter.OURS


def weights(folder: Path) -> object:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def forced(folder: Path) -> None:
    run(folder, *SMALL, "force=true")


JOBS = {
    "run": running(*SMALL),
    "responses": running(*RESPONSES),
    "calibration": running(*CALIBRATED),
    "rejudge": Job(ran, lambda f: judge(f, force=False), complete, outcomes),
    "rejudge --force": Job(ran_and_judged, judge, lambda f: complete(f) and judged(f), outcomes),
    "force": Job(ran_and_judged, forced, lambda f: complete(f) and judged(f), outcomes),
    "report": Job(lambda f: (ran(f), report(f))[0], report, reported, pages),
    "train": Job(train, train, trained, weights),
}


def child(name: str, folder: str, kill_at: int) -> None:
    """Do a job and tell how many times it touched the file system, or die at the k-th (kill_at > 0)."""
    seen = 0

    def touched(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            writes = isinstance(args[2], int) and bool(args[2] & WRITES)
        else:
            writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
        if not writes or not isinstance(args[0], str | os.PathLike) or not str(args[0]).startswith(folder):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.addaudithook(touched)
    JOBS[name].go(Path(folder))
    Path(folder).with_name("touched").write_text(str(seen))


def attempt(context: ForkServerContext, name: str, folder: Path, kill_at: int = 0) -> int | None:
    """The exit code of a job in a process of its own."""
    process = context.Process(target=child, args=(name, str(folder), kill_at))
    process.start()
    process.join()
    return process.exitcode


def kills(context: ForkServerContext, name: str, n: int, folder: Path) -> list[str]:
    """Kill a job at n of its touches of the file system, spread evenly; what was wrong, in words."""
    job = JOBS[name]
    start, calm, place = folder / "start", folder / "calm", folder / "work" / "runs"
    start.mkdir(parents=True)
    job.before(start)

    def fresh() -> None:
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(start, place)

    fresh()
    assert attempt(context, name, place) == 0, name
    shutil.copytree(place, calm)
    expected = job.result(calm)
    total = int(place.with_name("touched").read_text())
    wrong = []
    for i in range(n):
        at = 1 + i * total // n
        fresh()
        code = attempt(context, name, place, at)
        where = f"{name} killed at {at} of {total}"
        try:
            if code == -signal.SIGKILL and not job.kept(place):
                wrong.append(f"{where}: less than before")
            elif (again := attempt(context, name, place)) != 0:
                wrong.append(f"{where}: the command given again exits {again}")
            elif not same(job.result(place), expected):
                wrong.append(f"{where}: another result{different(job.result(place), expected)}")
        except Exception as e:  # anything that a reader says is a loss
            wrong.append(f"{where}: {type(e).__name__}: {e}")
    print(f"{name:18} {n} kills at {total} moments, {len(wrong)} wrong", flush=True)
    return wrong


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_arrays.same(one[k], other[k]) for k in one)
    return one == other


def different(one: object, other: object) -> str:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    names = [
        k for k in one.keys() | other.keys() if k not in one or k not in other or not same_arrays.same(one[k], other[k])
    ]
    return f" in {names}"


def forkserver() -> ForkServerContext:
    """Processes forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["gating.pipeline.execute", "gating.pipeline.study", "gating.training.adapter", "tests.conftest", "tests.kills"]
    )
    return context


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    names = sys.argv[2].split(",") if len(sys.argv) > 2 else list(JOBS)
    sys.argv[1:] = []  # the commands that are killed read it
    context, wrong = forkserver(), []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            wrong += kills(context, name, -(-n // len(names)), Path(folder))
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
