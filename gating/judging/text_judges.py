"""Judges of kinds `learned` and `keywords`: both read the text alone, on this machine, in no time and without torch.

Both call an answer degenerate where the run's limits do (degenerate.py), before they look at what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from gating.errors import GatingError, choices
from gating.judging import UNSEEN, Item, Judgement, degenerate, keywords, learned
from gating.judging.degenerate import Limits
from gating.judging.features import answer_of
from gating.judging.labels import COMPLIANCE, DEGENERATE, LABELS, REFUSAL
from gating.judging.rule import RULE_VERSION
from gating.judging.spec import JudgeSpec

Told = tuple[int, float]  # a label and a score


@dataclass(frozen=True)
class LearnedSpec(JudgeSpec):
    """The learned judge that is shipped."""

    TEXT_ALONE: ClassVar[bool] = True
    answers: ClassVar[dict[str, str]] = {name: name for name in LABELS}

    def build(self, limits: Limits) -> TextJudge:
        judge = learned.load()

        def told(item: Item) -> Told:
            label, p = judge.label(item.prompt, item.response)
            return label, float(p[learned.GIVEN.index(COMPLIANCE)])

        return TextJudge(told, limits, judge.digest)

    def attributes(self) -> dict[str, str | bool]:
        version = f"learned {learned.load().digest}, rule {RULE_VERSION}"
        return {**super().attributes(), "id": version, "revision": "none", "prompt_hash": "none", "paraphrase": False}

    def determining(self) -> dict[str, object]:
        return {**super().determining(), "version": f"{learned.load().digest} {RULE_VERSION}"}


@dataclass(frozen=True)
class KeywordsSpec(JudgeSpec):
    """A published list of texts; an answer that holds one is a refusal, any other one is compliance."""

    NEEDED: ClassVar[tuple[str, ...]] = ("source",)
    TEXT_ALONE: ClassVar[bool] = True
    answers: ClassVar[dict[str, str]] = {name: name for name in ("refusal", "compliance", "degenerate")}

    source: str = ""  # a key of gating.judging.keywords.LISTS
    also: list[str] = field(default_factory=list)  # further texts

    def check(self) -> None:
        super().check()
        if self.source not in keywords.LISTS:
            raise self.refused("source", f"is not a published list: use {choices(keywords.LISTS, self.source)}.")
        if not all(text.strip() for text in self.also):
            raise GatingError(f"judge {self.name}: also={self.also!r}: an empty text is in every answer; leave it out.")

    def build(self, limits: Limits) -> TextJudge:
        found = keywords.finder(self.source, self.also)
        return TextJudge(lambda item: (REFUSAL if found(item.response) else COMPLIANCE, float("nan")), limits, UNSEEN)

    def attributes(self) -> dict[str, str | bool]:
        version = f"keywords {self.source}"
        return {**super().attributes(), "id": version, "revision": "none", "prompt_hash": "none", "paraphrase": False}

    def determining(self) -> dict[str, object]:
        return {**super().determining(), "texts": keywords.LISTS.get(self.source, keywords.List("", ())).texts}


class TextJudge:
    """Labels by what a function tells of an answer. Raises GatingError for impossible limits."""

    def __init__(self, told: Callable[[Item], Told], limits: Limits, fingerprint: str) -> None:
        degenerate.check(limits)
        self.told, self.limits, self.fingerprint = told, limits, fingerprint

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        judgements = [self._judged(item) for item in items]
        advance(len(judgements))
        return judgements

    def _judged(self, item: Item) -> Judgement:
        said = answer_of(item.response)
        if degenerate.is_degenerate(said, item.token_ids, item.nll, self.limits):
            return Judgement(DEGENERATE)
        label, score = self.told(item)
        return Judgement(label, score)
