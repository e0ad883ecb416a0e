"""`make bench`: what steering and packing cost, as ratios measured in one run (absolute times mean nothing elsewhere).

Every figure is the median over alternating repeats of the two sides that it compares.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table

from gating import chat, models, prompts
from gating.config_files import conf_dir
from gating.steering.backend import Backend
from gating.steering.interventions import Condition, Intervention
from gating.steering.lowering import lower
from gating.steering.readouts import Readouts


def model_config(name: str) -> models.ModelConfig:
    from hydra import compose, initialize_config_dir

    from gating import cli
    from gating.pipeline import config

    cli.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config.typed(compose("config", [f"model={name}"])).model


def ratio(a: Callable[[], object], b: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median, least and greatest of a's time over b's, pair by pair, after one warm-up each."""
    a(), b()
    out = []
    for _ in range(repeats):
        times = []
        for side in (a, b):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
        out.append(times[0] / times[1])
    return statistics.median(out), min(out), max(out)


def comparisons(args: argparse.Namespace) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is timed against what, by name."""
    torch.manual_seed(0)
    loaded = models.load(model_config(args.model))
    backend = Backend(loaded, args.rows)
    texts = [p.text for p in prompts.load("harmful", True, "select")][: args.rows]
    ids = [chat.encode(loaded.tokenizer, t) for t in texts]
    ids = [ids[i % len(ids)] for i in range(args.rows)]
    v = np.random.default_rng(0).standard_normal((1, loaded.n_layers, loaded.hidden)).astype("float32")
    made = xr.Dataset(
        {"vector": (("direction", "layer", "hidden"), v), "residual_norm": ("layer", np.ones(loaded.n_layers))},
        coords={"direction": ["d"], "layer": range(loaded.n_layers)},
    )
    middle, everywhere = (loaded.n_layers // 2,), tuple(range(loaded.n_layers))
    edits = {
        blocks: lower([Condition("c", "steered", (Intervention("add", "d", blocks, 0.01),))] * args.rows, made, 0)
        for blocks in (middle, everywhere)
    }  # fmt: skip
    probes = made["vector"].transpose("layer", "direction", "hidden").values
    different = [[i + 10] * args.tokens for i in range(args.rows)]
    ids_shared, same = [ids[0]] * args.rows, [different[i % 4] for i in range(args.rows)]
    enc = dict(zip(("input_ids", "attention_mask"), chat.pad_left(ids, backend.pad_id), strict=True))

    def plain() -> None:
        loaded.model.generate(**enc, generation_config=backend._decoding(args.tokens, None))

    def run(blocks: tuple[int, ...], **more: Any) -> Callable[[], object]:
        return lambda: backend.generate(ids, edits[blocks], args.tokens, **more)

    def one_by_one() -> None:
        for row in ids[:8]:
            backend.generate([row], {}, args.tokens)

    return {
        "one steered block / transformers' own generate": (run(middle), plain),
        "every block steered / transformers' own generate": (run(everywhere), plain),
        "readouts at every block / without": (run(middle, readouts=Readouts(probes)), run(middle)),
        "with the logit lens and every token / without": (
            run(middle, readouts=Readouts(probes, [5], extra=("lens_score", "step_projection"))),
            run(middle, readouts=Readouts(probes)),
        ),
        "scoring answers that conditions share / all different": (
            lambda: backend.nll(ids_shared, same),
            lambda: backend.nll(ids_shared, different),
        ),
        "8 rows one by one / packed in one batch": (one_by_one, lambda: backend.generate(ids[:8], {}, args.tokens)),
    }


def main() -> None:
    """Print each comparison's ratio of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    title = f"{args.model}, {args.rows} rows, {args.tokens} tokens"
    table = Table("ratio of times", "median", "least", "greatest", title=title)
    for name, (a, b) in comparisons(args).items():
        table.add_row(name, *(f"{x:.2f}" for x in ratio(a, b, args.repeats)))
    Console().print(table)


if __name__ == "__main__":
    main()
