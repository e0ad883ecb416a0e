"""One tokeniser path: chat template to ids, once, with no second BOS; left padding; named token positions."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from gating.errors import GatingError

if TYPE_CHECKING:  # both take seconds to import, and a help text needs neither
    import torch
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase

Arguments = Mapping[str, Any]
NO_ARGUMENTS: Arguments = {}
POSITIONS = (
    "last, -1, -2, ... (tokens after the instruction, -1 is the last prompt token), response_start or response_mean"
)


def encode(
    tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None, template: Arguments = NO_ARGUMENTS
) -> list[int]:
    """Token ids of one chat prompt, ending where the answer begins.

    The template writes BOS itself where the model wants one, so nothing is added after it (a second BOS shifts every
    named position by one). A template without a system role gets the system text in front of the user's. template:
    what the template is told beside the messages (model.template).
    Raises GatingError when the model has no chat template.
    """
    turns = [{"role": "user", "content": user}]
    return encode_turns(
        tokenizer, turns if system is None else [{"role": "system", "content": system}, *turns], template
    )


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], template: Arguments = NO_ARGUMENTS
) -> list[int]:
    """Token ids of a conversation: `role` and `content` of each turn, the first of which may be a system message.
    Raises GatingError when the model has no chat template, and jinja2's TemplateError for turns that it refuses."""
    if not tokenizer.chat_template:
        raise GatingError(
            f"model.id: the tokenizer of {tokenizer.name_or_path!r} has no chat template, so prompts cannot be put as "
            "chat turns; use an instruction-tuned model."
        )
    try:
        return _apply(tokenizer, turns, template)
    except TemplateError:
        if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
            raise
        joined = f"{turns[0]['content']}\n\n{turns[1]['content']}"
        return _apply(tokenizer, [{"role": "user", "content": joined}, *turns[2:]], template)


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], template: Arguments) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **template)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def header(tokenizer: PreTrainedTokenizerBase, template: Arguments = NO_ARGUMENTS) -> list[int]:
    """Token ids with which the template opens an answer. Raises GatingError for a template that has none."""
    turns = [{"role": "user", "content": "apple"}]
    whole, before = (
        str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ends, **template))
        for ends in (True, False)
    )
    if not whole.startswith(before) or whole == before:
        raise GatingError("model.template: this chat template opens answers with nothing of its own; use act=reopen.")
    return list(tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"])


def own_arguments() -> frozenset[str]:
    """What apply_chat_template is told by this package alone."""
    from transformers import PreTrainedTokenizerBase

    return frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"kwargs"}


def suffix_length(
    tokenizer: PreTrainedTokenizerBase, system: str | None = None, template: Arguments = NO_ARGUMENTS
) -> int:
    """How many tokens of the template follow the user's text (the post-instruction tokens of Arditi et al.)."""
    a, b = (encode(tokenizer, text, system, template) for text in ("apple", "7!"))
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    return shared


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """12 hex digits of the chat template, for a run's provenance."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and attention mask, both [row, token] int64."""
    import torch

    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = 1
    return ids, mask


def begun_alike(rows: Sequence[Sequence[int]], most: int | None = None) -> int:
    """How many tokens all rows begin with, at most `most` (None: all but the last one of the shortest row)."""
    columns = itertools.islice(zip(*rows, strict=False), min(map(len, rows)) - 1 if most is None else max(0, most))
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def pad_behind(rows: Sequence[Sequence[int]], n: int, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [row, token] int64, with each row's pads behind its first n tokens."""
    import torch

    ids, mask = pad_left([row[n:] for row in rows], pad_id)
    begun = torch.tensor([list(row[:n]) for row in rows], dtype=torch.int64).reshape(len(rows), n)
    return torch.cat([begun, ids], dim=1), torch.cat([torch.ones_like(begun), mask], dim=1)


def needs_response(position: str) -> bool:
    return position.startswith("response_")


def check_position(position: str, key: str = "directions.position") -> str:
    """The position if its name is known, else GatingError."""
    if position == "last" or position in ("response_start", "response_mean") or re.fullmatch(r"-[1-9]\d?", position):
        return position
    raise GatingError(f"{key}={position!r} is not a token position: use {POSITIONS}.")


def unread(positions: Sequence[str], n_prompt: int) -> int:
    """How many of a prompt's first tokens stand before all that these positions name."""
    if "prompt_mean" in positions:
        return 0
    return n_prompt - max(1 if name == "last" or needs_response(name) else -int(name) for name in positions)


def position_weights(
    positions: Sequence[str], width: int, response_lengths: Sequence[int], lengths: Sequence[int]
) -> torch.Tensor:
    """Weights [row, position, token] that pool each named position of left-padded rows ending in their response.

    `last` and negative numbers count from the last *prompt* token; response positions cover the response's tokens;
    `prompt_mean` every prompt token but the first, whose state is an outlier. lengths: of whole rows, without pads. A
    row without a response gives NaN weights there: missing, not zero.
    """
    import torch

    weights = torch.zeros((len(response_lengths), len(positions), width))
    for r, n in enumerate(response_lengths):
        for p, name in enumerate(positions):
            if name == "prompt_mean":
                weights[r, p, width - lengths[r] + 1 : width - n] = 1.0 / max(1, lengths[r] - n - 1)
            elif needs_response(name):
                if n == 0:
                    weights[r, p] = torch.nan
                elif name == "response_start":
                    weights[r, p, width - n] = 1.0
                else:
                    weights[r, p, width - n :] = 1.0 / n
            else:
                weights[r, p, width - n + (-1 if name == "last" else int(name))] = 1.0
    return weights
