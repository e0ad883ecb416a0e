"""`python -m tests.bench_run`: what a whole run costs, in CPU seconds, over plain generation of its rows.

A run is all of it: weights, directions, answers under eight conditions, readouts, scores, labels, store, report; its
imports are left out. Plain generation is transformers' own of the same prompts at batch 32, each batch for as many
steps as the longest answer of its rows in the run takes, without steering, readouts or scores. Both sides are measured
in turn, on one thread; every fourth batch of the plain side. Writes JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

import gating
from gating import chat, models
from gating.pipeline import execute, prompt_batches
from gating.steering import decode
from gating.steering.backend import Backend
from tests.bench import model_config

ROWS, EVERY = 32, 4
PARTS: dict[str, tuple[Any, str]] = {
    "scoring": (Backend, "nll"),
    "extraction": (execute, "_directions"),
    "prefill": (decode._Decoding, "_prefill"),
    "decoding": (decode, "decode"),
    "labels and measures": (prompt_batches, "_outcomes"),
}


@contextmanager
def parts() -> Iterator[dict[str, float]]:
    """CPU seconds of a run's parts, the prefill being one of decoding, while this is entered."""
    seconds = dict.fromkeys(PARTS, 0.0)
    kept = [(where, name, getattr(where, name)) for where, name in PARTS.values()]
    try:
        for part, (where, name) in PARTS.items():
            setattr(where, name, _timed(getattr(where, name), part, seconds))
        yield seconds
    finally:
        for where, name, function in kept:
            setattr(where, name, function)


def _timed(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.process_time() - start

    return timed


def whole(folder: Path, n: int, **settings: Any) -> tuple[float, dict[str, float], Any]:
    """CPU seconds of a run, its parts' shares, and the run."""
    models.forget()
    with parts() as seconds:
        start = time.process_time()
        run = gating.run(
            runs_dir=str(folder), max_new_tokens=32, **{"data.n": n, "data.harmless": None, **settings}
        )  # fmt: skip
        took = time.process_time() - start
    return took, {part: s / took for part, s in seconds.items()}, run


def plain(run: Any, offset: int) -> float:
    """CPU seconds of plain generation of the run's rows, from every fourth batch of them."""
    loaded = models.load(model_config("smollm"))
    n_tokens, texts = run.tree["outcomes"]["n_tokens"], run.tree["prompts"]["text"].values
    ids = [chat.encode(loaded.tokenizer, text) for text in texts]
    rows = [(ids[p], int(n_tokens[c, p])) for p in range(len(ids)) for c in range(n_tokens.sizes["condition"])]
    starts = range(0, len(rows), ROWS)[offset % EVERY :: EVERY]
    took = 0.0
    for start in starts:
        batch = rows[start : start + ROWS]
        steps = min(32, max(n for _, n in batch) + 1)
        pad = int(loaded.tokenizer.pad_token_id)
        padded, mask = chat.pad_left([asked for asked, _ in batch], pad)
        how = GenerationConfig(
            max_new_tokens=steps, min_new_tokens=steps, do_sample=False, eos_token_id=loaded.end_ids, pad_token_id=pad
        )
        begun = time.process_time()
        loaded.model.generate(input_ids=padded, attention_mask=mask, generation_config=how)
        took += time.process_time() - begun
    return took * len(range(0, len(rows), ROWS)) / len(starts)


def main() -> None:
    """Measure, print a summary and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench_run.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Any]] = {"first": [], "again": [], "parts_first": [], "parts_again": []}
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            first, parts_first, _ = whole(Path(folder), args.prompts, **{"steer.coef": 7.4})
            again, parts_again, run = whole(Path(folder), args.prompts)  # another dose: its directions are there
            alone = plain(run, repeat)
        found["first"].append(first / alone)
        found["again"].append(again / alone)
        found["parts_first"].append(parts_first)
        found["parts_again"].append(parts_again)
        args.out.write_text(json.dumps({"prompts": args.prompts, **found}, indent=1) + "\n")
    for name in ("first", "again"):
        ratios = found[name]
        print(f"run / plain, directions {name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
        for part in PARTS:
            print(f"  {part}: {statistics.median(p.get(part, 0.0) for p in found['parts_' + name]):.0%}")


if __name__ == "__main__":
    main()
