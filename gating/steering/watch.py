"""A monitor over tokens: reads one block's output at every generated token, row by row, and acts on rows it flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from gating.errors import GatingError, choices

ACTIONS = ("none", "note", "restore", "stop")
Confirm = Callable[[int, list[int]], bool]  # row, tokens of its answer so far: does the flag count?


class Monitor(Protocol):
    """What decoding tells of its rows, and asks which end now. layer: the block that it reads, None for none."""

    layer: int | None
    stops: torch.Tensor

    def read(self, h: torch.Tensor, live: torch.Tensor) -> torch.Tensor | None: ...

    def settle(self, live: torch.Tensor, tokens: torch.Tensor, ended: torch.Tensor) -> torch.Tensor: ...


class Watch:
    """What is known of each row while a batch is decoded; one batch each, or one whose rows `begin` anew.

    layer: the block; vector [hidden]: its product with the residual stream is a token's score; a row is flagged when
    the mean of `window` scores on end exceeds `threshold`. actions: of each row, from the token after the flag on:
    `none` (not watched), `note`, `restore` (the projection on `persona`, a unit vector [hidden], is led to `neutral`),
    `stop` (the answer ends). confirm: is asked before a flag counts; where it denies, the window begins anew.

    flagged: [row] tokens of the answer that were read when it was flagged, 0 where it never was; asked: how often
    `confirm` was.
    """

    def __init__(
        self,
        layer: int,
        vector: torch.Tensor,
        threshold: float,
        window: int,
        actions: Sequence[str],
        persona: torch.Tensor,
        neutral: float,
        confirm: Confirm | None = None,
    ) -> None:
        for action in actions:
            if action not in ACTIONS:
                raise GatingError(f"action={action!r}: use {choices(ACTIONS, action)}.")
        n = len(actions)
        self.layer: int | None = layer
        self.threshold, self.window, self.confirm = threshold, window, confirm
        self.vector, self.persona, self.neutral = vector.float(), persona.float(), neutral
        self.watched = torch.tensor([a != "none" for a in actions], dtype=torch.bool)
        self.restores, self.stops = (torch.tensor([a == name for a in actions]) for name in ("restore", "stop"))
        self.recent = torch.full((n, window), torch.nan)
        self.read_in = torch.zeros(n, dtype=torch.long)  # tokens since the window began
        self.flagged = torch.zeros(n, dtype=torch.long)
        self.began = torch.zeros(n, dtype=torch.long)  # the step before a row's first token
        self.step, self.asked = 0, 0

    def begin(self, row: int, action: str) -> None:
        """Nothing is known of this row any more: another answer takes its place."""
        self.watched[row], self.restores[row], self.stops[row] = action != "none", action == "restore", action == "stop"
        self.recent[row], self.read_in[row], self.flagged[row], self.began[row] = torch.nan, 0, 0, self.step

    def read(self, h: torch.Tensor, live: torch.Tensor) -> torch.Tensor | None:
        """Take in the newest token of the rows that are live: h [live, 1, hidden], live [live] row numbers. The
        changed h where a row is restored, else None."""
        self.step, rows = self.step + 1, live.cpu()
        last = h[:, -1].float()
        self.recent[rows, self.read_in[rows] % self.window] = (last @ self.vector.to(h.device)).cpu()
        self.read_in[rows] += 1
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
        over = (self.recent[rows].mean(1) > self.threshold) & self.watched[rows] & (self.flagged[rows] == 0) & open_rows
        for i in over.nonzero()[:, 0].tolist():
            row = int(rows[i])
            if self.confirm is not None:
                self.asked += 1
                if not self.confirm(row, tokens[i].tolist()):
                    self.recent[row], self.read_in[row] = torch.nan, 0
                    continue
            self.flagged[row] = self.step - self.began[row]
        return (self.stops & (self.flagged > 0))[rows] & open_rows
