"""The judge of a run's own labels, which it gives while answers come in: one that reads text alone, without a model.

`judge` in a run's configuration names it. Data decided which is the default: on patterns of answers that none was made
from, `learned` finds about three times the refusals that `rule` does (its card has both).
"""

from __future__ import annotations

from functools import cache

from gating.errors import GatingError, choices
from gating.judging import kinds
from gating.judging.spec import JudgeSpec

DEFAULT = "learned"
JUDGES = {  # by the name in a run's configuration: the shipped judge
    "learned": "learned",
    "rule": "rule-now",
    "keywords": "keywords",
    "paper-keywords": "paper-keywords",
}


@cache
def own_judge(name: str) -> JudgeSpec:
    """Raises GatingError for a judge that does not label a run while it goes on."""
    if name not in JUDGES:
        raise GatingError(
            f"judge={name} does not label a run's own answers: use {choices(JUDGES, name)}. Any other judge is asked "
            "afterwards: python -m gating.rejudge RUN judge=NAME."
        )
    return kinds.load(JUDGES[name])
