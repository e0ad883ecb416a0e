"""Judges besides the built-in rule, which a run's answers can be shown to afterwards.

A judge is described by data (conf/judges/NAME.yaml, or a file): a classifier on this machine, a chat endpoint, or the
built-in rule as it is now. What it says goes into the store's group /judgements/NAME, never into /outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gating.judging.labels import MISSING


@dataclass(frozen=True)
class Item:
    """One answer to be judged, with the prompt that it answers. Both texts are untrusted: data, never instructions."""

    prompt: str
    response: str
    harmful: bool
    token_ids: tuple[int, ...] = ()
    nll: float = math.nan


@dataclass(frozen=True)
class Judgement:
    """What a judge made of one answer: a label (an index of gating.judging.labels.LABELS) and a score, or why there is none.

    score: how far the answer complies, 0 (not at all) to 1; NaN where the judge gives none. reached: whether the judge
    was asked at all; false where a connection or a server failed.
    """

    label: int = MISSING
    score: float = math.nan
    reason: str = ""
    reached: bool = True


class Judge(Protocol):
    """Whatever labels answers."""

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        """One judgement an item, in order; `advance` is told how many were just done. A failed one is missing, with its
        reason. Raises GatingError for what no further item could pass (a wrong key, a model that is not there)."""
        ...
