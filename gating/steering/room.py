"""What finds no room: a batch is cut in halves, and how many rows found none is remembered."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from gating.errors import TooLarge

LOGITS_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # the largest logits block of one forward: larger ones are slower

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_ROOM = re.compile("out of memory|can't allocate memory", re.IGNORECASE)  # of a GPU, of a CPU


class Room:
    """This machine's memory. `of(what, rows)` raises TooLarge in the place of what torch raises where so many rows of a
    kind find no room, and at once where as few found none before."""

    def __init__(self) -> None:
        self.too_many: dict[str, int] = {}

    @contextmanager
    def of(self, what: str, rows: int) -> Iterator[None]:
        if rows >= self.too_many.get(what, sys.maxsize):
            raise TooLarge(f"{rows} {what} at once: {self.too_many[what]} found no memory before.")
        try:
            yield
            return
        except (MemoryError, RuntimeError) as e:  # torch.OutOfMemoryError is one of the second
            if isinstance(e, RuntimeError) and not NO_ROOM.search(str(e)):
                raise
        # only now is what the error's frames held free
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.too_many[what] = max(rows, 2)  # one is always tried
        raise TooLarge(
            f"this machine has no memory for {rows} {what} at once; lower model.batch_rows or max_new_tokens."
        )


def in_halves(do: Callable[[Sequence[Item]], Result], rows: Sequence[Item]) -> list[tuple[Sequence[Item], Result]]:
    """(rows, do(rows)), or that of each half where there is no room for all. Raises TooLarge for one row too large."""
    try:
        return [(rows, do(rows))]
    except TooLarge:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    return [*in_halves(do, rows[:half]), *in_halves(do, rows[half:])]
