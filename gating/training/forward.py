"""Final hidden states of a batch of rows, how a row's tokens are weighed, and how likely its targets are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from gating import chat
from gating.training.rows import Row


def hidden_states(body: torch.nn.Module, batch: Sequence[Row], pad: int, share: bool = True) -> torch.Tensor:
    """Final hidden states that predict the batch's target tokens: [token, hidden], row after row.

    The prompts' common beginning (the template's system message) is computed once for all rows. share: False where an
    edit of the blocks differs from row to row, which no common beginning could hold.
    """
    shared = chat.begun_alike([r.prompt for r in batch]) if share else 0
    head = torch.tensor([batch[0].prompt[:shared]])
    cache = body(input_ids=head, use_cache=True).past_key_values if shared else DynamicCache()
    if shared:
        cache.batch_repeat_interleave(len(batch))
    ids, mask = chat.pad_behind([[*r.prompt, *r.target] for r in batch], shared, pad)
    states = body(
        input_ids=ids[:, shared:],
        attention_mask=mask,
        position_ids=shared + (mask[:, shared:].cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
    ).last_hidden_state
    return torch.cat([states[i, -len(r.target) - 1 : -1] for i, r in enumerate(batch)])


def token_weights(n: int, first: float) -> torch.Tensor:
    """How a row's n tokens are weighed: `first` on the first one, the rest evenly on the others; they sum to 1.

    The first token decides between an answer and a refusal. In a plain mean over 20 tokens a model that wrongly opens
    with "I'm sorry" pays next to nothing: it refused half of the harmless prompts.
    """
    if n == 1:
        return torch.ones(1)
    return torch.cat([torch.tensor([first]), torch.full((n - 1,), (1 - first) / (n - 1))])


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
