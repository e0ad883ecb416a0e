"""The loss and the loop: cross-entropy on what is taught, KL divergence from the base model on everything else."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from gating import chat, progress
from gating.extras import require
from gating.models import Loaded, adapters
from gating.models.parts import move, unembedding
from gating.training.config import TrainConfig
from gating.training.rows import Row, batches, pad_id

if TYPE_CHECKING:
    from peft import PeftModel


def hidden_states(body: torch.nn.Module, batch: Sequence[Row], pad: int) -> torch.Tensor:
    """Final hidden states that predict the batch's target tokens: [token, hidden], row after row.

    The prompts' common beginning (the template's system message) is computed once for all rows.
    """
    columns = zip(*(r.prompt[:-1] for r in batch), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    head = torch.tensor([batch[0].prompt[:shared]])
    cache = body(input_ids=head, use_cache=True).past_key_values if shared else DynamicCache()
    if shared:
        cache.batch_repeat_interleave(len(batch))
    ids, mask = chat.pad_left([[*r.prompt[shared:], *r.target] for r in batch], pad)
    states = body(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(len(batch), shared, dtype=mask.dtype), mask], dim=1),
        position_ids=shared + (mask.cumsum(1) - 1).clamp(min=0),  # the pads stand between the two parts
        past_key_values=cache,
    ).last_hidden_state
    return torch.cat([states[i, -len(r.target) - 1 : -1] for i, r in enumerate(batch)])


def _weights(n: int, first: float) -> torch.Tensor:
    """How a row's n tokens are weighed: `first` on the first one, the rest evenly on the others; they sum to 1.

    The first token decides between an answer and a refusal. In a plain mean over 20 tokens a model that wrongly opens
    with "I'm sorry" pays next to nothing: it refused half of the harmless prompts.
    """
    if n == 1:
        return torch.ones(1)
    return torch.cat([torch.tensor([first]), torch.full((n - 1,), (1 - first) / (n - 1))])


def loss(
    model: PeftModel, head: torch.nn.Module, batch: Sequence[Row], pad: int, keep: float, first: float = 0.5
) -> torch.Tensor:
    """Mean over rows, nats/token: a taught answer's cross-entropy, or `keep` x KL(base || adapted) along an own answer.

    Tokens of a row are weighed by `_weights`.
    """
    body = adapters.base_model(model).base_model
    batch = sorted(batch, key=lambda r: r.taught)
    kept = [r for r in batch if not r.taught]
    n = sum(len(r.target) for r in kept)
    weight = torch.cat([_weights(len(r.target), first) for r in batch]) / len(batch)
    after = head(hidden_states(body, batch, pad)).float().log_softmax(-1)
    target = torch.tensor([t for r in batch if r.taught for t in r.target], dtype=torch.int64)
    total = -(after[n:].gather(1, target[:, None])[:, 0] * weight[n:]).sum()
    if kept:
        with torch.no_grad(), model.disable_adapter():
            before = head(hidden_states(body, kept, pad)).float().log_softmax(-1)
        # torch's kl_div is KL(target || input), both as logs here
        divergence = torch.nn.functional.kl_div(after[:n], before, reduction="none", log_target=True).sum(-1)
        total = total + keep * (divergence * weight[:n]).sum()
    return total


def fit(cfg: TrainConfig, loaded: Loaded, rows: Sequence[Row]) -> PeftModel:
    """The base model with a trained adapter. AdamW, linear warm-up, then linear decay to zero."""
    torch.manual_seed(cfg.seed)
    if cfg.bfloat16:
        move(loaded.model, dtype=torch.bfloat16)  # the adapter itself is kept in float32
    model = adapters.resume(loaded.model, cfg.start) if cfg.start else _with_adapter(cfg, loaded)
    model.train()
    head = unembedding(loaded.model)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=0.0)
    steps = max(1, round(cfg.epochs * math.ceil(len(rows) / cfg.batch_rows)))
    warm = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm)))
    with progress.bar("training", steps, "steps") as advance:
        for batch in itertools.islice(_epochs(cfg, rows), steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bfloat16):
                batch_loss = loss(model, head, batch, pad_id(loaded), cfg.keep, cfg.first)
            batch_loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            rate.step()
            adam.zero_grad()
            advance(1)
    return model.eval()


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


def mean_nll(
    body: torch.nn.Module, head: torch.nn.Module, rows: Sequence[Row], pad: int, batch_rows: int = 32
) -> float:
    """Mean negative log-likelihood of the rows' targets over all of their tokens, nats/token."""
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_rows):
        batch = rows[start : start + batch_rows]
        with torch.no_grad():
            logp = head(hidden_states(body, batch, pad)).float().log_softmax(-1)
        target = torch.tensor([t for r in batch for t in r.target])
        total -= float(logp.gather(1, target[:, None]).sum())
        count += len(target)
    return total / count
