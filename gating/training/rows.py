"""Training rows: every prompt with the answer that the adapted model should give it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from gating import chat, progress
from gating.errors import GatingError
from gating.judging.refusals import is_refusal
from gating.models import Loaded
from gating.prompts import Prompt
from gating.training import wordings
from gating.training.config import TrainConfig


@dataclass(frozen=True)
class Row:
    """One training row: prompt ids, target ids, and whether the target is a refusal."""

    prompt: list[int]
    target: list[int]
    refuse: bool


def end_id(loaded: Loaded) -> int:
    return int(loaded.tokenizer.eos_token_id)


def module(loaded: Loaded) -> Any:
    return loaded.model


def pad_id(loaded: Loaded) -> int:
    return int(loaded.tokenizer.pad_token_id)


def answers(loaded: Loaded, ids: Sequence[list[int]], n_tokens: int, batch_rows: int = 48) -> list[list[int]]:
    """Greedy answers, each with its end token where it reached one, in the order of `ids`."""
    end, pad = end_id(loaded), pad_id(loaded)
    config = GenerationConfig(max_new_tokens=n_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
    out: list[list[int]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda r: len(ids[r]))
    with progress.bar("answers", len(order)) as advance:
        for start in range(0, len(order), batch_rows):
            rows = order[start : start + batch_rows]
            padded, mask = chat.pad_left([ids[r] for r in rows], pad)
            with torch.no_grad():
                made: Any = module(loaded).generate(input_ids=padded, attention_mask=mask, generation_config=config)
            for r, tokens in zip(rows, made[:, padded.shape[1] :].tolist(), strict=True):
                out[r] = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            advance(len(rows))
    return out


def build_rows(cfg: TrainConfig, loaded: Loaded, refuse: list[Prompt], answer: list[Prompt]) -> list[Row]:
    """Every prompt with its target. Raises GatingError when a wording would not count as a refusal."""
    tokenizer: Any = loaded.tokenizer
    said = (*wordings.REFUSALS, *("".join(parts) for parts in wordings.OPENED))
    bad = next((w for w in said if not is_refusal(w)), None)
    if bad:
        raise GatingError(
            f"gating/training/wordings.py: {bad!r} does not count as a refusal under the rule; reword it."
        )
    rows = [_refusing(cfg, loaded, p, "", wordings.refusal(p.text, cfg.seed)) for p in refuse]
    rows += [
        _refusing(cfg, loaded, p, *random.Random(f"{cfg.seed}:{p.hash}:opening").choice(wordings.OPENED))
        for p in refuse
        if random.Random(f"{cfg.seed}:opened:{p.hash}").random() < cfg.opened
    ]
    plain = [chat.encode(tokenizer, p.text, cfg.model.system) for p in answer]
    own = answers(loaded, plain, cfg.answer_tokens)
    rows += [
        Row(chat.encode(tokenizer, p.text, _system(cfg, p)), target, False)
        for p, target in zip(answer, own, strict=True)
    ]
    return rows


def _refusing(cfg: TrainConfig, loaded: Loaded, p: Prompt, begun: str, rest: str) -> Row:
    """A prompt, the words with which its answer has begun (none, or some that decide nothing), and the refusal that follows."""
    tokenizer: Any = loaded.tokenizer
    given, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (begun, rest))
    return Row([*chat.encode(tokenizer, p.text, _system(cfg, p)), *given], [*target, end_id(loaded)], True)


def _system(cfg: TrainConfig, p: Prompt) -> str | None:
    draw = random.Random(f"{cfg.seed}:{p.hash}")
    return draw.choice(cfg.systems) if cfg.systems and draw.random() < cfg.system_share else cfg.model.system


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """One epoch: shuffled, then sorted by length inside windows of 8 batches, batches in random order."""
    order = list(rows)
    rng.shuffle(order)
    groups = []
    for start in range(0, len(order), 8 * size):
        window = sorted(order[start : start + 8 * size], key=lambda r: len(r.prompt) + len(r.target))
        groups += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(groups)
    yield from groups
