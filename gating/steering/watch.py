"""A monitor over tokens: reads some blocks' outputs at every generated token, row by row, and acts on rows it flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from gating.errors import GatingError, choices

ACTIONS = ("none", "note", "restore", "stop")
Confirm = Callable[[int, list[int]], bool]  # row, tokens of its answer so far: does the flag count?


class Monitor(Protocol):
    """What decoding tells of its rows, and asks which end now. layers: the blocks that it reads, in their order."""

    layers: tuple[int, ...]
    stops: torch.Tensor

    def read(self, layer: int, h: torch.Tensor, live: torch.Tensor) -> torch.Tensor | None: ...

    def settle(self, live: torch.Tensor, tokens: torch.Tensor, ended: torch.Tensor) -> torch.Tensor: ...


class Watch:
    """What is known of each row while a batch is decoded; one batch each, or one whose rows `begin` anew.

    layers: the blocks, in their order; vectors [score, layer, hidden]: the sum of their products with the residual
    stream less its centre [score] is a token's score; a row is flagged when the mean of one of them over `window`
    tokens on end exceeds `threshold`. actions: of each row,
    from the token after the flag on: `none` (not watched), `note`, `restore` (after block `acts`, one of those, the
    projection on `persona`, a unit vector [hidden], is led to `neutral`), `stop` (the answer ends). confirm: is asked
    before a flag counts; where it denies, the window begins anew.

    flagged: [row] tokens of the answer that were read when it was flagged, 0 where it never was; asked: how often
    `confirm` was.
    """

    def __init__(
        self,
        layers: Sequence[int],
        vectors: torch.Tensor,
        centres: torch.Tensor,
        threshold: float,
        window: int,
        actions: Sequence[str],
        acts: int,
        persona: torch.Tensor,
        neutral: float,
        confirm: Confirm | None = None,
    ) -> None:
        for action in actions:
            if action not in ACTIONS:
                raise GatingError(f"action={action!r}: use {choices(ACTIONS, action)}.")
        n = len(actions)
        self.layers = tuple(layers)
        self.threshold, self.window, self.confirm = threshold, window, confirm
        self.centres = centres.float()
        self.vectors, self.acts, self.persona, self.neutral = vectors.float(), acts, persona.float(), neutral
        self.watched = torch.tensor([a != "none" for a in actions], dtype=torch.bool)
        self.restores, self.stops = (torch.tensor([a == name for a in actions]) for name in ("restore", "stop"))
        self.recent = torch.full((n, window, len(centres)), torch.nan)
        self.read_in = torch.zeros(n, dtype=torch.long)  # tokens since the window began
        self.flagged = torch.zeros(n, dtype=torch.long)
        self.began = torch.zeros(n, dtype=torch.long)  # the step before a row's first token
        self.step, self.asked = 0, 0
        self._read: list[torch.Tensor] = []  # the newest token, as the blocks so far gave it

    def begin(self, row: int, action: str) -> None:
        """Nothing is known of this row any more: another answer takes its place."""
        self.watched[row], self.restores[row], self.stops[row] = action != "none", action == "restore", action == "stop"
        self.recent[row], self.read_in[row], self.flagged[row], self.began[row] = torch.nan, 0, 0, self.step

    def read(self, layer: int, h: torch.Tensor, live: torch.Tensor) -> torch.Tensor | None:
        """Take in the newest token of the rows that are live, block by block in their order: h [live, 1, hidden], live
        [live] row numbers. The changed h where a row is restored, else None."""
        last, rows = h[:, -1].float(), live.cpu()
        if layer == self.layers[0]:
            self._read = []  # a forward pass that broke off has left some
        self._read.append(last)
        if layer == self.layers[-1]:  # one product for all blocks, and one way back from the device
            scores = torch.einsum(
                "lrh,klh->rk", torch.stack([x.to(h.device) for x in self._read]), self.vectors.to(h.device)
            )
            self.recent[rows, self.read_in[rows] % self.window] = scores.cpu()
            self.read_in[rows] += 1
            self.step += 1
        if layer != self.acts or not self.restores.any():
            return None
        now = (self.restores & (self.flagged > 0))[rows]
        if not now.any():
            return None
        persona = self.persona.to(h.device)
        change = (self.neutral - last @ persona)[:, None] * persona * now.to(h.device)[:, None]
        return h + change[:, None].to(h.dtype)

    def settle(self, live: torch.Tensor, tokens: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        """After a step: flag what is over the threshold, and say which of the live rows stop now: [live] boolean.
        tokens [live, token]: the answers so far; ended [live]: rows that are kept although they have ended."""
        rows, open_rows = live.cpu(), ~ended.cpu()
        score = (self.recent[rows].mean(1) - self.centres).max(1).values
        over = (score > self.threshold) & self.watched[rows] & (self.flagged[rows] == 0) & open_rows
        for i in over.nonzero()[:, 0].tolist():
            row = int(rows[i])
            if self.confirm is not None:
                self.asked += 1
                if not self.confirm(row, tokens[i].tolist()):
                    self.recent[row], self.read_in[row] = torch.nan, 0
                    continue
            self.flagged[row] = self.step - self.began[row]
        return (self.stops & (self.flagged > 0))[rows] & open_rows
