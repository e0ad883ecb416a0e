"""The built-in rule that labels a completion: refusals.py, evasions.py and degenerate.py in their order. No model."""

from __future__ import annotations

from collections.abc import Sequence

from gating.judging.degenerate import Limits, is_degenerate
from gating.judging.evasions import is_evasive
from gating.judging.features import answer_of
from gating.judging.labels import COMPLIANCE, DEGENERATE, EVASIVE, MISSING, REFUSAL
from gating.judging.refusals import is_refusal

RULE_VERSION = "3"  # part of a run's key: raise it with every change of what a text is judged to be


def label(text: str | None, token_ids: Sequence[int], nll: float, limits: Limits) -> int:
    """The code of one completion's label: degenerate, else refusal, else evasive, else compliance.

    A completion that does not exist (None) is MISSING; an empty one, or one that is all thought, is degenerate.
    nll: as in `is_degenerate`.
    """
    if text is None:
        return MISSING
    said = answer_of(text)
    if is_degenerate(said, token_ids, nll, limits):
        return DEGENERATE
    if is_refusal(said):
        return REFUSAL
    return EVASIVE if is_evasive(said) else COMPLIANCE
