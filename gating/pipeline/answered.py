"""Rows that were generated: their thoughts told apart, their answers scored and labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gating import thoughts
from gating.judging import Item
from gating.judging.own import own_judge
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering.backend import Backend
from gating.steering.readouts import Generation


class Answered(NamedTuple):
    """Rows that are answered: the tokens of each one's thought and of its answer, what was read, the answers' nll."""

    said: list[tuple[list[int], list[int]]]
    generation: Generation
    nll: np.ndarray


def score(backend: Backend, asked: Sequence[Sequence[int]], generation: Generation, about: str) -> Answered:
    """asked: each row's prompt under the run's own system message, behind which its answer is scored by the unsteered
    model."""
    tokenizer = backend.loaded.tokenizer
    marks = thoughts.marks(tokenizer)
    ends = [thoughts.length(tokenizer, marks, *row) for row in zip(asked, generation.tokens, strict=True)]
    said = [(t[:end], t[end:]) for t, end in zip(generation.tokens, ends, strict=True)]
    behind = [[*p, *thought] for p, (thought, _) in zip(asked, said, strict=True)]
    return Answered(said, generation, backend.nll(behind, [answer for _, answer in said], about))


def texts(backend: Backend, rows: Sequence[Sequence[int]]) -> list[str]:
    return [str(backend.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in rows]


def labels(study: Study, prompts: Sequence[Prompt], rows: Answered, texts: Sequence[str]) -> list[int]:
    """What the run's own judge calls each row. prompts, texts: of each row, and of its answer."""
    each = zip(prompts, texts, rows.said, rows.nll.tolist(), strict=True)
    items = [Item(p.text, text, p.harmful, tuple(ids), nll) for p, text, (_, ids), nll in each]
    judge = own_judge(study.run.judge).build(study.run.label_rule)
    return [judgement.label for judgement in judge.judge(items, lambda n: None)]
