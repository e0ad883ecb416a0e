"""The preamble: what all prompts of a batch begin with, as a template's system message. On this machine it goes through
the model once for every kind of edits, and not once a row.

Rows are then [preamble | pads | rest]: as positions are counted without pads, each token sees what it would without
this. That holds where a family keeps plain keys and values, and where an edit looks at its own token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gating import chat
from gating.models import padding
from gating.steering import prefill
from gating.steering.calls import Inputs, Plan
from gating.steering.lowering import Edits

LEAST = 6  # tokens: a shorter one is not worth a forward pass of its own
ALIKE, TOGETHER = 12, 4  # first tokens by which rows are sorted, and how many alike are worth a batch of their own


def length(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], edits: Edits | None = None, most: int | None = None
) -> int:
    """How many tokens all rows begin with, at most `most` (all but the last one); 0 where it does not pay or cannot
    be."""
    edited = [edit for of_block in (edits or {}).values() for edit in of_block]
    if len(rows) < 2 or not _plain(model) or not all(map(_by_token, edited)):
        return 0
    n = chat.begun_alike(rows, most)
    return n if n >= LEAST else 0


def batches(model: PreTrainedModel, rows: Sequence[Sequence[int]], at_once: int) -> list[list[int]]:
    """The numbers of rows in batches: those that begin alike together, the shortest first."""
    alike: dict[tuple[int, ...], list[int]] = {}
    first = ALIKE if _plain(model) else 0
    for r, row in enumerate(rows):
        alike.setdefault(tuple(row[:first]), []).append(r)
    groups = [group for group in alike.values() if len(group) >= TOGETHER]
    groups.append([r for group in alike.values() if len(group) < TOGETHER for r in group])
    ordered = [sorted(group, key=lambda r: len(rows[r])) for group in groups]
    return [group[start : start + at_once] for group in ordered for start in range(0, len(group), at_once)]


def _plain(model: PreTrainedModel) -> bool:
    """Whether all that the family keeps of a token is keys and values behind a mask and positions of its own."""
    if model._is_stateful or not padding.takes_positions(model):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _by_token(edit: Any) -> bool:
    return edit["gate"] is None and not bool((edit["of"] >= 0).any())


def kinds(edits: Edits, rows: int) -> list[int]:
    """The number of each row's edits: rows that are edited alike have the same."""
    tables = [
        x.reshape(rows, -1).cpu().numpy()
        for of_block in edits.values() for edit in of_block for k in ("write", "measure", "strength", "target")
        if (x := edit[k]) is not None
    ]  # fmt: skip
    return prefill.numbered([b"".join(table[r].tobytes() for table in tables) for r in range(rows)])


@dataclass
class Preamble:
    """One batch's: n tokens; `of`, each row's kind [row]; a plan for one row of each kind. Read by `read`, which fills
    `cache` and, as each block gives it before its edits, `streams` [kind, token, hidden]."""

    n: int
    of: torch.Tensor
    plan: Plan
    cache: DynamicCache
    streams: dict[int, torch.Tensor] = field(default_factory=dict)
    reading: bool = False

    def read(self, model: Any, asked: dict[str, Any]) -> None:
        """The preamble through the model. asked: what the model would be asked for whole prompts."""
        first = prefill.firsts(self.of.tolist())
        short = {k: x[first][:, : self.n] if isinstance(x, torch.Tensor) else x for k, x in asked.items()}
        self.reading = True
        try:
            model(**{**short, "past_key_values": self.cache}, return_dict=True)
        finally:
            self.reading = False

    def rest(self, asked: dict[str, Any], config: Any, rows: Sequence[torch.Tensor]) -> dict[str, Any]:
        """What the model is asked for the rest of each row. rows: for every layer the kinds of the rows it sees."""
        cache = DynamicCache(config=config)
        for i, ((keys, values), of) in enumerate(zip(_kept(self.cache), rows, strict=True)):
            cache.update(keys[of], values[of], i)
        cut = {k: asked[k][:, self.n :] for k in ("input_ids", "position_ids")}
        return {**asked, **cut, "past_key_values": cache}

    def whole(self, block: int, h: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """A block's output at every token [row, token, hidden], of its output behind the preamble."""
        return torch.cat([self.streams[block][of], h], dim=1)


def _kept(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer of a cache of plain ones, each [row, head, token, head_dim]."""
    return [
        (x.keys, x.values)
        for x in cast("list[DynamicLayer]", cache.layers)
        if x.keys is not None and x.values is not None
    ]


def cached(model: PreTrainedModel, ids: torch.Tensor) -> DynamicCache:
    """What the unsteered model keeps of one row [1, token]; nothing of no token."""
    cache = DynamicCache(config=model.config)
    if ids.shape[1]:
        inputs = padding.placed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with torch.no_grad():
            model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def behind(model: PreTrainedModel, inputs: Inputs, n: int, cache: DynamicCache) -> dict[str, Any]:
    """Inputs for an unsteered forward pass over what stands behind a preamble of n tokens, which `cache` holds for one
    row."""
    placed, mask = padding.placed(model, inputs), inputs["attention_mask"]
    begun = DynamicCache(config=model.config)
    for i, (keys, values) in enumerate(_kept(cache) if n else ()):
        begun.update(keys.expand(len(mask), -1, -1, -1), values.expand(len(mask), -1, -1, -1), i)
    cut = {k: x[:, n:] for k, x in placed.items() if k in ("input_ids", "position_ids")}
    return {**placed, **cut, "past_key_values": begun}
