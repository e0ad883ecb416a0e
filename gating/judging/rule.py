"""The built-in rule once more, as it is now: after a change of the rule or of its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from gating.judging import Item, Judgement, labels
from gating.judging.labels import JudgeConfig
from gating.judging.spec import JudgeSpec


class RuleJudge:
    """Labels by gating.judging.labels.label. limits: the run's own, with the judge's on top."""

    def __init__(self, spec: JudgeSpec, limits: Mapping[str, float]) -> None:
        self.config = JudgeConfig(**{**asdict(JudgeConfig()), **limits, **spec.limits})
        labels.check(self.config)

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        out = [Judgement(labels.label(i.response, i.token_ids, i.nll, self.config)) for i in items]
        advance(len(out))
        return out
