"""A judge of kind `rule`: the built-in rule as it is now, for a run's own labels or after a change of its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

from gating.errors import GatingError, choices
from gating.judging import UNSEEN, Item, Judgement, degenerate, rule
from gating.judging.degenerate import Limits
from gating.judging.labels import LABELS
from gating.judging.spec import JudgeSpec


@dataclass(frozen=True)
class RuleSpec(JudgeSpec):
    """The rule, with limits of its own on top of those of the run that it judges."""

    TEXT_ALONE: ClassVar[bool] = True
    answers: ClassVar[dict[str, str]] = {name: name for name in LABELS}  # its words are the labels themselves

    limits: dict[str, float] = field(default_factory=dict)  # keys of conf/label_rule in place of the run's own

    def check(self) -> None:
        super().check()
        known = [f.name for f in fields(Limits)]
        for key in self.limits:
            if key not in known:
                raise GatingError(
                    f"judge {self.name}: limits.{key} is not a limit of the rule: use {choices(known, key)}."
                )

    def build(self, limits: Limits) -> RuleJudge:
        return RuleJudge(Limits(**{**asdict(limits), **self.limits}))

    def attributes(self) -> dict[str, str | bool]:
        version = f"rule {rule.RULE_VERSION}"
        return {**super().attributes(), "id": version, "revision": "none", "prompt_hash": "none", "paraphrase": False}

    def determining(self) -> dict[str, object]:
        return {**super().determining(), "version": rule.RULE_VERSION}


class RuleJudge:
    """Labels by gating.judging.rule.label, without a score. Raises GatingError for impossible limits."""

    fingerprint = UNSEEN

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        degenerate.check(limits)

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        judgements = [Judgement(rule.label(i.response, i.token_ids, i.nll, self.limits)) for i in items]
        advance(len(judgements))
        return judgements
