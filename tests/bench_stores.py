"""`python -m tests.bench_stores`: what a store of many rows and a folder of many stores cost: files, time, MiB.

Every figure is of a process of its own: its peak of memory less what the imports took. Synthetic answers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

import gating
from gating import analysis, store
from gating.store import TEXT

STEPS, LAYERS, PROBES, TOKENS = 32, 30, 2, 32  # smollm's, with two directions read


def _mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def described(conditions: int, prompts: int) -> tuple[xr.Dataset, xr.Dataset]:
    """The two groups that a store is laid out with."""
    hashes = np.array([f"{i:012x}" for i in range(prompts)], dtype=TEXT)
    names = np.array([f"condition-{i}" for i in range(conditions)], dtype=TEXT)
    texts = np.array([f"Say what number {i} is and why it is of any interest" for i in range(prompts)], dtype=TEXT)
    one = xr.Dataset(
        {"text": ("prompt", texts), "harmful": ("prompt", np.ones(prompts, dtype=bool))}, coords={"prompt": hashes}
    )
    return one, xr.Dataset({"kind": ("condition", names)}, coords={"condition": names})


def lay_out(path: Path, conditions: int, prompts: int, batch: int) -> None:
    """An empty store with per-token readouts."""
    asked, steered = described(conditions, prompts)
    attrs = {"config": "seed: 0", "choices": "{}", "overrides": "[]"}
    store.create(path, asked, steered, TOKENS, batch, attrs)
    shape = (conditions, prompts, STEPS, LAYERS, PROBES)
    dims = ("condition", "prompt", "step", "layer", "direction")
    ds = xr.Dataset({"step_projection": (dims, np.broadcast_to(np.float32(np.nan), shape))}, asked.coords)
    store.create_group(path, "readouts", ds, "prompt", batch)


def fill(path: Path, conditions: int, prompts: int, batch: int, seed: int = 0) -> None:
    """Answers for every row, and nothing per token (11 GB); then the store is finished."""
    said = "An answer of usual length, which says one thing and then another"
    for start in range(0, prompts, batch):
        n = min(batch, prompts - start)
        ds = store.empty_outcomes(conditions, n, TOKENS)
        rng = np.random.default_rng([seed, start])
        ds["label"].values[:] = rng.integers(0, 3, (conditions, n))
        ds["completion"].values[:] = [[f"{said} {i}" for i in range(n)] for _ in range(conditions)]
        ds["token_ids"].values[:] = rng.integers(0, 49152, ds["token_ids"].shape)
        for name in ("nll", "refusal_score", "entropy", "repetition"):
            ds[name].values[:] = rng.random((conditions, n))
        ds["done"].values[:] = True
        store.write_batch(path, start, {"outcomes": ds.assign_coords(prompt=np.arange(n))})


def rate(path: Path) -> None:
    """The refusal rate of every condition."""
    analysis.refusal_rate(store.open_run(path), harmful=True)


def alone(task: Callable[..., object], *args: object) -> tuple[float, float]:
    """Seconds of CPU and MiB beyond the imports of a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_measured, args=(there, task, args))
    child.start()
    out = here.recv()
    child.join()
    return out


def _measured(pipe, task, args) -> None:
    before, start = _mib(), time.process_time()
    task(*args)
    pipe.send((time.process_time() - start, _mib() - before))


def joined(folder: Path) -> None:
    """Every store of a folder, as one tree."""
    gating.open_runs(folder)


def joined_rate(folder: Path) -> None:
    """The refusal rate of every condition of every store of a folder."""
    analysis.refusal_rate(gating.open_runs(folder), harmful=True)


def sweep(folder: Path, n: int) -> None:
    """n finished stores of 8 conditions and 64 prompts, with answers of their own, which differ in one setting."""
    for i in range(n):
        place = folder / f"run-{i}" / store.STORE
        place.parent.mkdir(parents=True)
        lay_out(place, 8, 64, 64)
        fill(place, 8, 64, 64, i)
        store.finish(place, {"config": f"seed: {i}", "overrides": json.dumps(["seed"])})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=125_000)
    parser.add_argument("--conditions", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stores", type=int, default=300)
    args = parser.parse_args()
    table = Table("what", "files", "CPU seconds", "MiB", title=f"{args.prompts * args.conditions:,} rows")
    shape = (args.conditions, args.prompts, args.batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run" / store.STORE
        path.parent.mkdir()

        def row(name: str, task: Callable[..., object], *given: object) -> None:
            seconds, mib = alone(task, *given)
            files = len((path / "files.sha256").read_text().splitlines()) - 1
            table.add_row(name, str(files), f"{seconds:.2f}", f"{mib:.0f}")

        row("laid out, with readouts of every token", lay_out, path, *shape)
        row("filled batch by batch", fill, path, *shape)
        row("finished", store.finish, path, {})
        row("refusal_rate", rate, path)
        sweep(Path(folder) / "sweep", args.stores)
        row(f"open_runs of {args.stores} stores", joined, Path(folder) / "sweep")
        row("the same and refusal_rate", joined_rate, Path(folder) / "sweep")
    Console().print(table)


if __name__ == "__main__":
    main()
