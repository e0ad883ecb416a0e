"""Scoring answers on this machine: one unsteered prefill a prompt serves the answers of all its conditions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gating import chat
from gating.models import padding
from gating.steering import ops, preamble
from gating.steering.calls import Inputs, Scored
from gating.steering.room import LOGITS_BYTES, Room, in_halves


def rows_at_once(model: PreTrainedModel, longest: int) -> int:
    """How many answers of so many tokens are scored in one forward."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return max(1, LOGITS_BYTES.get(model.device.type, LOGITS_BYTES["cpu"]) // (4 * vocabulary * (longest + 1)))


def scores(
    model: PreTrainedModel, rows: Sequence[Scored], pad: int, prompts_at_once: int, room: Room
) -> list[float] | None:
    """Mean negative log-likelihood of every row's answer behind its prompt, nats a token; None where the family keeps
    more of a prompt than a cache."""
    if model._is_stateful:
        return None
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for r, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(tuple(prompt), []).append(r)

    def behind(together: Sequence[tuple[int, ...]]) -> dict[int, float] | None:
        with room.of("prompts that are scored behind", len(together)):
            prefill = Prefill(model, together, pad)
        if not prefill.holds:
            return None
        asked = [(p, rows[r][1], r) for p, prompt in enumerate(together) for r in by_prompt[prompt]]
        return _scored(prefill, sorted(asked, key=lambda row: len(row[1])), room)

    prompts = sorted(by_prompt, key=len)
    found: dict[int, float] = {}
    for start in range(0, len(prompts), prompts_at_once):
        for _, part in in_halves(behind, prompts[start : start + prompts_at_once]):
            if part is None:
                return None
            found |= part
    return [found[r] for r in range(len(rows))]


def _scored(prefill: Prefill, asked: list[tuple[int, Sequence[int], int]], room: Room) -> dict[int, float]:
    """The scores of answers, the shortest first, each with the number of its prompt and of its row: by row."""

    def mean_nll(batch: Sequence[tuple[int, Sequence[int], int]]) -> list[float]:
        with room.of("answers", len(batch)):
            nll: list[float] = prefill.mean_nll([(p, answer) for p, answer, _ in batch]).tolist()
            return nll

    found: dict[int, float] = {}
    while asked:  # the longest first, so that what finds room for them finds room for all
        n = rows_at_once(prefill.model, len(asked[-1][1]))
        batch, asked = asked[-n:], asked[:-n]
        for part, nll in in_halves(mean_nll, batch):
            found |= dict(zip((r for _, _, r in part), nll, strict=True))
    return found


class Prefill:
    """Prompts read once by the unsteered model, for answers to be scored behind them."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.model, self.prompts = model, prompts
        begun = preamble.length(model, prompts)
        ids, mask = (x.to(model.device) for x in chat.pad_behind(prompts, begun, pad))
        inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            asked = preamble.behind(model, inputs, begun, preamble.cached(model, ids[:1, :begun]))
            out = model(**asked, use_cache=True, logits_to_keep=1)
        self.mask, self.cache, self.first = mask, asked["past_key_values"], out.logits[:, -1]

    def mean_nll(self, rows: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Mean negative log-likelihood of answers, each with the number of its prompt: [row] float32, nats a token."""
        of = torch.tensor([prompt for prompt, _ in rows], device=self.mask.device)
        backwards = chat.pad_left([answer[::-1] for _, answer in rows], 0)
        answers, there = (x.flip(1) for x in backwards)
        logits = self.first[of][:, None]
        if answers.shape[1] > 1:
            logits = torch.cat([logits, self._behind(of, answers[:, :-1].to(of.device))], dim=1)
        return ops.mean_nll(logits, answers, there == 1)

    @property
    def holds(self) -> bool:
        """Whether all that the family keeps of a prompt is in the cache, row by row."""
        plain = all(isinstance(x, DynamicLayer) and not hasattr(x, "conv_states") for x in self.cache.layers)
        return plain and self.cache.get_seq_length() > 0

    def _behind(self, of: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [row, token, vocab] behind each of these tokens, which follow the prompts `of`. Pads come after all
        that is scored, where nothing looks at them."""
        mask = torch.cat([self.mask[of], torch.ones_like(tokens)], dim=1)
        inputs = padding.placed(self.model, {"input_ids": tokens, "attention_mask": mask})
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -tokens.shape[1] :]
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.reorder_cache(cast(torch.LongTensor, of))  # new tensors: those of the prefill stay as they are
        with torch.no_grad():
            return self.model(**inputs, past_key_values=cache, use_cache=True).logits
