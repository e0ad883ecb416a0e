"""The loop that trains an adapter: the terms of gating/training/terms.py, weighed, with checkpoints on the way."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gating import progress
from gating.extras import require
from gating.models import Loaded, adapters
from gating.models.parts import decoder_blocks, move, unembedding
from gating.training import checkpoint
from gating.training.checkpoint import Checkpoint
from gating.training.config import TrainConfig
from gating.training.curve import Curve
from gating.training.rows import Row, batches, pad_id
from gating.training.terms import Step, loss
from gating.training.vectors import Reader, Vectors

if TYPE_CHECKING:
    from peft import PeftModel

CURVE_POINTS = 10  # at which the loss of unseen prompts is taken


def fit(
    cfg: TrainConfig, loaded: Loaded, rows: Sequence[Row], kept: Checkpoint, unseen: Sequence[Row] = ()
) -> tuple[PeftModel, Curve]:
    """The base model with a trained adapter. AdamW, linear warm-up, then linear decay to zero.

    kept: where to go on from, and where to say how far it is. unseen: rows whose loss is taken on the way, for the
    curve alone.
    """
    torch.manual_seed(cfg.seed)
    model = start(cfg, loaded)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=0.0)
    steps = max(1, round(cfg.epochs * math.ceil(len(rows) / cfg.batch_rows)))
    warm = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm)))
    maker, curve, vectors, done = _Maker(cfg, loaded, model, rows), Curve(), None, 0
    if (state := kept.read()) is not None:
        done, vectors = checkpoint.unpack(state, model, adam, rate, curve)
    with progress.bar("training", steps, "steps", done) as advance:
        for number, batch in itertools.islice(enumerate(_epochs(cfg, rows)), done, steps):
            torch.manual_seed(cfg.seed + number)  # of dropout, where a model has some
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bfloat16):
                vectors = maker.vectors(number, vectors)
                total, values = loss(maker.step(number, batch, vectors), cfg.terms)
            if total.requires_grad:  # not where a batch has no row that a term is about
                total.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            curve.steps.append({"step": number, "rate": float(rate.get_last_lr()[0]), **values})
            adam.step()
            rate.step()
            adam.zero_grad()
            if unseen and (number + 1) % math.ceil(steps / CURVE_POINTS) == 0:
                curve.steps[-1] |= maker.unseen(number, unseen)
            if kept.due():
                kept.save(checkpoint.pack(number + 1, model, adam, rate, curve, vectors))
            advance(1)
    return model.eval(), curve


def start(cfg: TrainConfig, loaded: Loaded) -> PeftModel:
    """The model with the adapter that training begins with: a new one, or that of `start`. Changes it in place."""
    if cfg.bfloat16:
        move(loaded.model, dtype=torch.bfloat16)  # the adapter itself is kept in float32
    if not cfg.start:
        return _with_adapter(cfg, loaded)
    model = adapters.resume(loaded.model, cfg.start)
    if cfg.taught == "own":
        adapters.remember(model, cfg.start)
    return model


class _Maker:
    """Makes the steps of one training."""

    def __init__(self, cfg: TrainConfig, loaded: Loaded, model: PeftModel, rows: Sequence[Row]) -> None:
        self.cfg, self.model = cfg, model
        self.head, self.pad = unembedding(loaded.model), pad_id(loaded)
        base = adapters.base_model(model)
        self.reader = Reader(cfg, loaded, rows, base.base_model, decoder_blocks(base))

    def vectors(self, number: int, now: Vectors | None) -> Vectors | None:
        """The directions of a step: those of now, or read again where that is due. None where no term has any."""
        every = self.cfg.edits.every
        due = now is None or (every and number % every == 0)
        return self.reader.read(number) if self.reader.sides and due else now

    def step(self, number: int, batch: Sequence[Row], vectors: Vectors | None) -> Step:
        draw = random.Random(f"{self.cfg.seed}:{number}:edits")
        return Step(self.model, self.head, batch, self.pad, self.cfg.first, self.cfg.edits, draw, vectors)

    def unseen(self, number: int, rows: Sequence[Row]) -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.cfg.bfloat16):
            _, values = loss(self.step(number, rows, None), {"teach": 1, "keep": 1})
        return {f"select {name}": value for name, value in values.items()}


def _with_adapter(cfg: TrainConfig, loaded: Loaded) -> PeftModel:
    require("peft", "training")
    from peft import LoraConfig

    lora = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        target_modules=list(cfg.targets),
        layers_to_transform=cfg.blocks,
        task_type="CAUSAL_LM",
    )
    return adapters.attach(loaded.model, lora)


def _epochs(cfg: TrainConfig, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Batches without end, in an order that the seed decides."""
    rng = random.Random(cfg.seed)
    while True:
        yield from batches(rows, cfg.batch_rows, rng)
