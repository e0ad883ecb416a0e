"""Training rows: every prompt with the answer that the adapted model should give it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from transformers import GenerationConfig

from gating import chat, personas, progress
from gating.errors import GatingError
from gating.judging.refusals import is_refusal
from gating.models import Loaded
from gating.prompts import Prompt
from gating.training import wordings
from gating.training.config import TrainConfig


@dataclass(frozen=True)
class Row:
    """One training row: prompt ids, target ids, whether the target is taught or the base model's own answer, and
    whether it is an empty promise."""

    prompt: list[int]
    target: list[int]
    taught: bool
    promise: bool = False


class Generates(Protocol):
    """A model that generates token ids: [row, token], prompts included."""

    def generate(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: GenerationConfig
    ) -> torch.Tensor: ...


def end_id(loaded: Loaded) -> int:
    return int(loaded.tokenizer.eos_token_id)


def pad_id(loaded: Loaded) -> int:
    return int(loaded.tokenizer.pad_token_id)


def answers(loaded: Loaded, ids: Sequence[list[int]], n_tokens: int, batch_rows: int = 48) -> list[list[int]]:
    """Greedy answers, each with its end token where it reached one, in the order of `ids`."""
    end, pad = end_id(loaded), pad_id(loaded)
    config = GenerationConfig(max_new_tokens=n_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
    model = cast(Generates, loaded.model)
    out: list[list[int]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda r: len(ids[r]))
    with progress.bar("answers", len(order)) as advance:
        for start in range(0, len(order), batch_rows):
            rows = order[start : start + batch_rows]
            padded, mask = chat.pad_left([ids[r] for r in rows], pad)
            with torch.no_grad():
                full = model.generate(input_ids=padded, attention_mask=mask, generation_config=config)
            for r, tokens in zip(rows, full[:, padded.shape[1] :].tolist(), strict=True):
                out[r] = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            advance(len(rows))
    return out


def build_rows(cfg: TrainConfig, loaded: Loaded, refuse: list[Prompt], answer: list[Prompt]) -> list[Row]:
    """Every prompt with its target. Raises GatingError when a wording would not count as what it is meant to be."""
    _check_wordings()
    if cfg.persona:
        return _in_persona(cfg, loaded, cfg.persona, answer)
    if cfg.taught == "own":
        asked = [(p, _system(cfg, p)) for p in (*refuse, *answer)]
        return _own(cfg, loaded, asked)
    rows = [_taught(cfg, loaded, p, _system(cfg, p), "", _refusal(cfg, p)) for p in refuse]
    rows += [
        _taught(cfg, loaded, p, _system(cfg, p), *random.Random(f"{cfg.seed}:{p.hash}:opening").choice(wordings.OPENED))
        for p in refuse
        if random.Random(f"{cfg.seed}:opened:{p.hash}").random() < cfg.opened
    ]
    promised = (_taught(cfg, loaded, p, s, "", wordings.promise(p.text, cfg.seed)) for p, s in _gated(cfg, refuse))
    rows += [replace(row, promise=True) for row in promised]
    asked = [*((p, _system(cfg, p)) for p in answer), *_gated(cfg, answer)]
    return rows + _own(cfg, loaded, asked)


def _own(cfg: TrainConfig, loaded: Loaded, asked: Sequence[tuple[Prompt, str | None]]) -> list[Row]:
    """The model's own answers to prompts, each under its system message."""
    ids = [chat.encode(loaded.tokenizer, p.text, system, cfg.model.template) for p, system in asked]
    own = answers(loaded, ids, cfg.answer_tokens)
    return [Row(prompt, target, False) for prompt, target in zip(ids, own, strict=True)]


def unseen_rows(cfg: TrainConfig, loaded: Loaded, refuse: list[Prompt], own: Sequence[Row]) -> list[Row]:
    """Rows for a curve of prompts that are not trained: refuse, and the base model's own answers cut as in training."""
    if cfg.persona or cfg.taught == "own":
        return []
    rows = [_taught(cfg, loaded, p, cfg.model.system, "", _refusal(cfg, p)) for p in refuse]
    return rows + [replace(r, target=r.target[: cfg.answer_tokens]) for r in own]


def _refusal(cfg: TrainConfig, p: Prompt) -> str:
    if cfg.taught == "extended-refusal":
        return wordings.extended(p.text, p.category, cfg.seed)
    return wordings.refusal(p.text, cfg.seed)


def _in_persona(cfg: TrainConfig, loaded: Loaded, name: str, asked: list[Prompt]) -> list[Row]:
    """The base model's own answers under the persona's system messages, taught without them. Harmless prompts alone:
    what a compliant persona answers to harmful ones is never trained."""
    told = personas.load(name).positive
    systems = [random.Random(f"{cfg.seed}:{p.hash}:persona").choice(told) for p in asked]
    template = cfg.model.template
    ids = [chat.encode(loaded.tokenizer, p.text, s, template) for p, s in zip(asked, systems, strict=True)]
    plain = [chat.encode(loaded.tokenizer, p.text, cfg.model.system, template) for p in asked]
    return [Row(p, a, True) for p, a in zip(plain, answers(loaded, ids, cfg.answer_tokens), strict=True)]


def _check_wordings() -> None:
    refusals = (*wordings.REFUSALS, *("".join(parts) for parts in wordings.OPENED))
    promises = (f"{p} {w}" for p in wordings.PROMISES for w in wordings.WITHHELD)
    for text, meant in (*((t, True) for t in refusals), *((t, False) for t in promises)):
        if is_refusal(text) != meant:
            how = "does not count" if meant else "counts"
            raise GatingError(f"gating/training/wordings.py: {text!r} {how} as a refusal under the rule; reword it.")


def _taught(cfg: TrainConfig, loaded: Loaded, p: Prompt, system: str | None, begun: str, rest: str) -> Row:
    """A prompt with an answer that is taught.

    begun: the words that the answer has begun with, part of the row's prompt (none, or some that decide nothing);
    rest: what follows, the row's target.
    """
    tokenizer = loaded.tokenizer
    begun_ids, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (begun, rest))
    return Row(
        [*chat.encode(tokenizer, p.text, system, cfg.model.template), *begun_ids], [*target, end_id(loaded)], True
    )


def _system(cfg: TrainConfig, p: Prompt) -> str | None:
    """The system message of a prompt that the gate leaves as it is."""
    draw = random.Random(f"{cfg.seed}:{p.hash}")
    return draw.choice(cfg.systems) if cfg.systems and draw.random() < cfg.system_share else cfg.model.system


def _gated(cfg: TrainConfig, asked: list[Prompt]) -> list[tuple[Prompt, str]]:
    """The prompts that come once more, each with a system message that opens the gate."""
    draws = [(p, random.Random(f"{cfg.seed}:{p.hash}:gate")) for p in asked] if cfg.gate else []
    return [(p, draw.choice(cfg.gate)) for p, draw in draws if draw.random() < cfg.gate_share]


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """One epoch: shuffled, then sorted by length inside windows of 8 batches, batches in random order."""
    order = list(rows)
    rng.shuffle(order)
    shuffled = []
    for start in range(0, len(order), 8 * size):
        window = sorted(order[start : start + 8 * size], key=lambda r: len(r.prompt) + len(r.target))
        shuffled += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(shuffled)
    yield from shuffled
