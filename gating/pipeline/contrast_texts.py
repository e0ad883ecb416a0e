"""Which texts a direction is read from: the chats themselves, the answers to them, those answers as a user's message,
and which of them a filter keeps. Rows of the two sides stay pairs; a row that is missing is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, progress, store, thoughts
from gating.judging import Item, degenerate, kinds
from gating.pipeline import responses
from gating.pipeline.study import Study
from gating.steering.backend import Backend
from gating.steering.direction_specs import Chat, DirectionSpec
from gating.store import TEXT

Ids = tuple[int, ...]
Text = tuple[Ids, Ids]  # token ids of a prompt, and of the answer that follows it (empty: none)
Side = list[Text | None]  # None: missing
THRESHOLD = 0.5  # of a judge's score: a positive answer shows the trait from here on, a negative one below
USER_ROLES = ("user", "i_thou")  # read where an answer stands as a user's message


@dataclass(frozen=True)
class Answers:
    """The answers to each chat, and to each of them when it came as a user's message; and what the filter made of
    them."""

    first: dict[Chat, list[Ids]]
    text: dict[Ids, str]
    second: dict[Chat, list[Ids]]
    thought: dict[Ids, int]  # how many of an answer's first tokens are its thought (gating/thoughts.py)
    passed: set[tuple[Chat, Ids, bool]] | None  # (chat, answer, on the positive side); None: there is no filter

    def kept(self, asked: Chat, answer: Ids, positive: bool) -> bool:
        """Whether an answer may stand for its side; one without a judgement may not."""
        return self.passed is None or (asked, answer, positive) in self.passed

    def read(self, prompt: Ids, answer: Ids, reads_answer: bool) -> Text | None:
        """The text to read for an answer: the prompt alone, or with the answer behind its thought, None without one."""
        end = self.thought.get(answer, 0)
        if not reads_answer:
            return prompt, ()
        return ((*prompt, *answer[:end]), answer[end:]) if answer[end:] else None


def by_direction(study: Study, backend: Backend) -> dict[str, dict[str, tuple[Side, Side]]]:
    """For each direction the texts to read, by role (`model`, `user`): positive and negative side, rows in pairs."""
    answers = _answers(study, backend)
    tokenizer, system = backend.loaded.tokenizer, study.run.model.system
    ids = study.tokens_of({*study.chats, *answers.second}, tokenizer)
    texts: dict[str, dict[str, tuple[Side, Side]]] = {}
    for spec in study.direction_specs:
        answered = spec.needs_answers(study.run.directions.filter)
        sides = (spec.positive, True), (spec.negative, False)
        texts[spec.name] = {}
        if spec.role != "user":
            pos, neg = (
                _model_side(spec, side, positive, answers, ids) if answered else _as_asked(side, ids)
                for side, positive in sides
            )
            texts[spec.name]["model"] = (pos, neg)
        if spec.role in USER_ROLES:
            pos, neg = (_user_side(spec, side, positive, answers, ids, system) for side, positive in sides)
            texts[spec.name]["user"] = (pos, neg)
    return texts


def _as_asked(side: Sequence[Chat], ids: dict[Chat, Ids]) -> Side:
    return [(ids[asked], ()) for asked in side]


def _model_side(
    spec: DirectionSpec, side: Sequence[Chat], positive: bool, answers: Answers, ids: dict[Chat, Ids]
) -> Side:
    reads_answer = chat.needs_response(spec.position)
    rows: Side = []
    for asked in side:
        for answer in answers.first[asked]:
            kept = answers.kept(asked, answer, positive)
            rows.append(answers.read(ids[asked], answer, reads_answer) if kept else None)
    return rows


def _user_side(
    spec: DirectionSpec,
    side: Sequence[Chat],
    positive: bool,
    answers: Answers,
    ids: dict[Chat, Ids],
    system: str | None,
) -> Side:
    reads_answer = chat.needs_response(spec.position)
    rows: Side = []
    for asked in side:
        for i, answer in enumerate(answers.first[asked]):
            quote = Chat(system, answers.text[answer])
            replies = answers.second.get(quote)
            if replies is None or not answers.kept(asked, answer, positive):
                rows.append(None)
                continue
            reply = replies[min(i, len(replies) - 1)]
            rows.append(answers.read(ids[quote], reply, reads_answer))
    return rows


def _answers(study: Study, backend: Backend) -> Answers:
    tokenizer, how, system = backend.loaded.tokenizer, study.run.directions, study.run.model.system
    chats = study.answered
    first = _by_chat(chats, responses.answers(study, backend, "responses", chats) if chats else [], how.samples)
    thought = _thoughts(study, tokenizer, first)
    text = {ids: str(tokenizer.decode(list(ids[end:]), skip_special_tokens=True)) for ids, end in thought.items()}
    quoting = [s for s in study.direction_specs if s.needs_answers(how.filter) and s.role in USER_ROLES]
    quoted = [Chat(system, text[ids]) for s in quoting for asked in (*s.positive, *s.negative) for ids in first[asked]]
    quotes = list(dict.fromkeys(quote for quote in quoted if quote.user.strip()))
    second: dict[Chat, list[Ids]] = {quote: [()] for quote in quotes}
    if quotes and any(chat.needs_response(s.position) for s in quoting):
        second = _by_chat(quotes, responses.answers(study, backend, "user_responses", quotes), how.samples)
        thought |= _thoughts(study, tokenizer, second)
    pairs = [(asked, ids) for asked in chats for ids in first[asked]]
    return Answers(first, text, second, thought, _passed(study, pairs, text, thought) if how.filter else None)


def _thoughts(study: Study, tokenizer: chat.Tokenizer, answers: dict[Chat, list[Ids]]) -> dict[Ids, int]:
    """How many of the first tokens of each answer are its thought."""
    marks, prompts = thoughts.marks(tokenizer), study.tokens_of(answers, tokenizer)
    return {ids: thoughts.length(tokenizer, marks, prompts[c], ids) for c, each in answers.items() for ids in each}


def _passed(
    study: Study, pairs: Sequence[tuple[Chat, Ids]], text: dict[Ids, str], thought: dict[Ids, int]
) -> set[tuple[Chat, Ids, bool]]:
    """`fluent` asks both sides for an answer that is one; a judge's score puts each answer on one side, or on none."""
    if study.run.directions.filter == "fluent":
        limits = study.run.label_rule
        unlikely = float("nan")  # not scored
        fluent = [
            (c, ids)
            for c, ids in pairs
            if not degenerate.is_degenerate(text[ids], ids[thought[ids] :], unlikely, limits)
        ]
        return {(c, ids, side) for c, ids in fluent for side in (True, False)}
    scores = _scores(study, pairs, text, thought)
    return {(c, ids, bool(s >= THRESHOLD)) for (c, ids), s in zip(pairs, scores, strict=True) if np.isfinite(s)}


def _by_chat(chats: Sequence[Chat], flat: Sequence[list[int]], samples: int) -> dict[Chat, list[Ids]]:
    return {c: [tuple(ids) for ids in flat[i * samples : (i + 1) * samples]] for i, c in enumerate(chats)}


def _scores(
    study: Study, pairs: Sequence[tuple[Chat, Ids]], text: dict[Ids, str], thought: dict[Ids, int]
) -> np.ndarray:
    """A judge's score of every answer [answer], kept in /responses_judged with the reason where there is none."""
    group = "responses_judged"
    if not store.has_group(study.store, group):
        spec = kinds.load(str(study.run.directions.filter))
        judge = spec.build(study.run.label_rule)
        with progress.bar(f"answers judged by {spec.name}", len(pairs), "answers") as advance:
            judgements = judge.judge([Item(c.user, text[ids], False, ids[thought[ids] :]) for c, ids in pairs], advance)
        ds = xr.Dataset(
            {
                "score": ("answer", np.array([j.score for j in judgements], dtype="float32")),
                "reason": ("answer", np.array([j.reason for j in judgements], dtype=TEXT)),
            },
            attrs={"judge": spec.name, "digest": spec.digest, "fingerprint": judge.fingerprint, "threshold": THRESHOLD},
        )
        store.add_group(study.store, group, ds)
    return store.read_group(study.store, group)["score"].values
