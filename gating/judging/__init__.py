"""Who labels a run's answers: its own judge while they come in (own.py), and judges asked afterwards (kinds.py).

A judge is described by data (conf/judges/NAME.yaml, or a file): a classifier on this machine, a chat endpoint, or the
built-in rule as it is now. Its labels go into the store's group /judgements/NAME, never into /outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gating.judging.labels import MISSING

OWN = "own"  # in place of a judge's name: the labels that a run wrote itself
UNSEEN = "none"  # the fingerprint of a judge whose weights cannot be seen


def own_name(attrs: Mapping[Any, Any]) -> str:
    """Who gave a run's own labels, from its attributes; a version alone, in older stores, is the rule's."""
    name = str(attrs.get("judge", "")).partition(" ")[0]
    return "rule" if not name or name.isdigit() else name


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
    """A judge's label and score for one answer, or the reason why there is none.

    label: a code of gating.judging.labels. score: how far the answer complies, 0 (not at all) to 1; NaN where the judge
    gives none. harm: what a judge of harm gives instead of both, 0 (none) to 1. reached: whether the judge was asked at
    all; false where a connection or a server failed.
    """

    label: int = MISSING
    score: float = math.nan
    reason: str = ""
    reached: bool = True
    harm: float = math.nan

    @property
    def given(self) -> bool:
        """Whether there is a verdict."""
        return self.label != MISSING or not math.isnan(self.harm)


class Judge(Protocol):
    """Whatever labels answers."""

    fingerprint: str  # of its weights, or UNSEEN

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        """One judgement an item, in order; `advance` is called with the number of items just done.

        A judgement that failed is missing, with its reason. Raises GatingError for what would fail for every further
        item too (a wrong key, no such model).
        """
        ...
