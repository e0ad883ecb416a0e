"""One running batch: rows join, take a token a step in one forward pass, and leave.

Newcomers go through their prompts by themselves; then their cache is put behind that of the rows under way. Tokens of a
row are those that it has alone, but for the last bits of a sum, whose order is a matter of a batch's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gating import chat
from gating.guarding import monitor
from gating.guarding.file import Guard
from gating.models import Loaded, padding
from gating.models.parts import decoder_blocks
from gating.serving import caches
from gating.serving.rows import GUARDED, LENGTH, LOST, STOP, Row
from gating.serving.steering import Steering, acting
from gating.steering.edits import apply_edits, stream
from gating.steering.lowering import Edits


@dataclass(frozen=True)
class Newcomers:
    """Rows whose prompts were read in: their cache, mask [row, token], logits [row, vocab] of the first token, and what
    their edits keep for later steps."""

    rows: Sequence[Row]
    cache: Any
    mask: torch.Tensor
    logits: torch.Tensor
    kept: dict[Any, torch.Tensor]


class Batch:
    """At most `capacity` rows. Used by one thread; `close` takes the model's hooks off again."""

    def __init__(
        self, loaded: Loaded, steering: Steering, capacity: int, guard: Guard | None = None, cascade: bool = False
    ) -> None:
        """cascade: a second judge is asked before a flag of the guard counts."""
        self.loaded, self.steering, self.capacity, self.end = loaded, steering, capacity, frozenset(loaded.end_ids)
        self.rows: list[Row] = []
        confirm = self._counts if cascade else None
        self.watch = monitor.watch(guard, ["none"] * capacity, confirm) if guard is not None else None
        self._free = list(range(capacity))[::-1]  # rows of the watch
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=loaded.device)
        self._kept: dict[Any, torch.Tensor] = {}
        self._steered: Edits = {}  # of the rows under way
        self._live = torch.zeros(0, dtype=torch.long)  # their rows of the watch
        self._guarded = self._acts = False  # whether a row is watched; whether a forward pass is this batch's
        self._positions = padding.takes_positions(loaded.model)
        self._plan: dict[str, Any] | None = None  # of the newcomers that are read in
        blocks = decoder_blocks(loaded.model)
        self._handles = [blocks[b].register_forward_hook(self._edited(b)) for b in steering.one]
        if guard is not None:
            self._handles += [blocks[b].register_forward_hook(self._watched(b)) for b in guard.layers]

    @property
    def by_row(self) -> bool:
        """Whether all that the model keeps of the rows under way is keys and values."""
        return caches.is_by_row(self._cache, self.loaded.n_layers, self._mask.shape[1])

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def read_in(self, rows: Sequence[Row]) -> Newcomers:
        """The prompts of newcomers go through the model; the batch is left as it is."""
        ids, mask = chat.pad_left([row.prompt for row in rows], int(self.loaded.tokenizer.pad_token_id))
        last = torch.zeros_like(mask)
        last[:, -1] = 1
        ids, mask, last = (x.to(self.loaded.device) for x in (ids, mask, last))
        cache = caches.empty()
        self._plan = {"ids": ids, "prompt_mask": mask, "last_mask": last, "kept": {}, "edits": self._edits(rows)}
        try:
            return Newcomers(rows, cache, mask, self._logits(ids, mask, cache), self._plan["kept"])
        finally:
            self._plan = None

    @torch.inference_mode()
    def join(self, new: Newcomers) -> None:
        """Newcomers take their places and their first token."""
        for row in new.rows:
            row.slot = self._free.pop()
            if self.watch is not None:
                self.watch.begin(row.slot, row.action)
        if self.rows:
            width = max(self._mask.shape[1], new.mask.shape[1])
            caches.join(self._cache, new.cache, width)
            self._mask = torch.cat([caches.padded(x, width, 1) for x in (self._mask, new.mask)])
            self._kept = {place: torch.cat([x, new.kept[place]]) for place, x in self._kept.items()}
        else:
            self._cache, self._mask, self._kept = new.cache, new.mask, new.kept
        self.rows = [*self.rows, *new.rows]
        self._say(new.rows, new.logits)
        self._arrange()
        self._settle()

    @torch.inference_mode()
    def step(self) -> None:
        """Give every row its next token."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.loaded.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        logits = self._logits(ids, self._mask, self._cache)
        self._say(self.rows, logits, self._stops())
        self._settle()

    @torch.inference_mode()
    def drop(self, rows: Sequence[Row]) -> None:
        """These rows leave, whether they have ended or not."""
        gone = set(map(id, rows))
        self._keep([i for i, row in enumerate(self.rows) if id(row) not in gone])

    def clear(self) -> None:
        """All rows leave, whatever state a failure left them in."""
        self._free = list(range(self.capacity))[::-1]
        self.rows, self._cache, self._kept, self._mask = [], None, {}, self._mask[:0, :0]

    def _edits(self, rows: Sequence[Row]) -> Edits:
        return self.steering.edits([(row.condition, row.coef) for row in rows], self.loaded.device)

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Of the next token: [row, vocab] float32."""
        placed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self._positions:
            placed["position_ids"] = padding.positions(mask)[:, -ids.shape[1] :]
        self._acts = True
        try:
            out = self.loaded.model(**placed, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True)
        finally:
            self._acts = False
        return out.logits[:, -1].float()

    def _edited(self, block: int) -> Any:
        def hook(module: torch.nn.Module, args: object, output: Any) -> Any:
            new = self._plan
            edits = (self._steered if new is None else new["edits"]).get(block)
            if edits is None or not self._acts:
                return None
            plan, step = ({"kept": self._kept}, 1) if new is None else (new, 0)
            h = apply_edits(stream(output), edits, step, plan, block)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    def _watched(self, block: int) -> Any:
        def hook(module: torch.nn.Module, args: object, output: Any) -> Any:
            if self._plan is not None or self.watch is None or not (self._acts and self._guarded):
                return None
            h = self.watch.read(block, stream(output), self._live)
            return output if h is None else (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    def _counts(self, slot: int, _tokens: list[int]) -> bool:
        """Whether a flag of the row in a slot counts."""
        row = next(r for r in self.rows if r.slot == slot)
        return monitor.second_judge(self.loaded.tokenizer, {slot: row.asked})(slot, row.tokens)

    def _stops(self) -> list[bool]:
        """Whose answer the guard ends now; what it has flagged is written into the rows."""
        if self.watch is None or not self._guarded:
            return [False] * len(self.rows)
        ended = torch.zeros(len(self.rows), dtype=torch.bool)
        stops = self.watch.settle(self._live, self._live.new_zeros(len(self.rows), 0), ended)
        for row, flagged in zip(self.rows, self.watch.flagged[self._live].tolist(), strict=True):
            row.flagged = flagged
        return [bool(x) for x in stops.tolist()]

    def _say(self, rows: Sequence[Row], logits: torch.Tensor, stops: Sequence[bool] = ()) -> None:
        """One token for each of these rows, or its end."""
        most = logits.max(-1)
        for i, (row, value, token) in enumerate(zip(rows, most.values.tolist(), most.indices.tolist(), strict=True)):
            if stops and stops[i]:
                row.finish = GUARDED
            elif not math.isfinite(value):
                row.finish = LOST
            elif (own := token if row.draw is None else row.draw(logits[i])) in self.end:
                row.finish = STOP
            else:
                row.tokens.append(own)
                row.finish = LENGTH if len(row.tokens) >= row.most else ""

    def _settle(self) -> None:
        """Rows that have ended leave."""
        stays = [i for i, row in enumerate(self.rows) if not row.finish]
        if len(stays) < len(self.rows):
            self._keep(stays)

    def _keep(self, stays: list[int]) -> None:
        if not stays:
            self.clear()
            return
        at, kept = torch.tensor(stays, device=self.loaded.device), set(stays)
        self._free += [row.slot for i, row in enumerate(self.rows) if i not in kept]
        self.rows = [self.rows[i] for i in stays]
        mask = self._mask[at]
        pads = int(mask.shape[1] - mask.sum(1).max())
        self._mask = mask[:, pads:]
        caches.change(self._cache, lambda x: x.index_select(0, at.to(x.device))[:, :, pads:])
        self._kept = {place: x.index_select(0, at.to(x.device)) for place, x in self._kept.items()}
        self._arrange()

    def _arrange(self) -> None:
        """What the hooks need to know of the rows under way."""
        self._live = torch.tensor([row.slot for row in self.rows])
        self._guarded = any(row.action != "none" for row in self.rows)
        self._steered = acting(self._edits(self.rows))
