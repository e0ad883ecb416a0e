"""Which texts a contrast is read from: the chats themselves, the answers to them, those answers as a user's message, and
which of them a filter keeps. Rows of the two sides stay pairs; a row that is missing is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, progress, store
from gating.judging import Item, degenerate, kinds
from gating.pipeline import responses
from gating.pipeline.study import Study
from gating.steering.backend import Backend
from gating.steering.directions import Chat, Contrast
from gating.store import TEXT

Ids = tuple[int, ...]
Text = tuple[Ids, Ids]  # token ids of a prompt, and of the answer that follows it ((): none)
Side = list[Text | None]  # None: missing
THRESHOLD = 0.5  # of a judge's score: a positive answer shows the trait from here on, a negative one below


@dataclass(frozen=True)
class Answers:
    """What was said: to each chat, and to each answer when it came as a user's message; and what the filter made of it."""

    first: dict[Chat, list[Ids]]
    text: dict[Ids, str]
    second: dict[Chat, list[Ids]]
    passed: set[tuple[Chat, Ids, bool]] | None  # (chat, answer, on the positive side); None: there is no filter

    def kept(self, asked: Chat, answer: Ids, positive: bool) -> bool:
        """Whether an answer may stand for its side; one without a judgement may not."""
        return self.passed is None or (asked, answer, positive) in self.passed


def of(study: Study, backend: Backend) -> dict[str, dict[str, tuple[Side, Side]]]:
    """For each contrast the texts to read, by role (`model`, `user`): positive and negative side, rows in pairs."""
    said = _answers(study, backend)
    tokenizer = backend.loaded.tokenizer
    ids = {x: tuple(chat.encode(tokenizer, x[1], x[0])) for x in {*study.chats, *said.second}}
    out: dict[str, dict[str, tuple[Side, Side]]] = {}
    for c in study.contrasts:
        answered = c.needs_answers(study.run.directions.filter)
        sides = (c.positive, True), (c.negative, False)
        out[c.name] = {}
        if c.role != "user":
            pos, neg = (
                _model_side(c, side, positive, said, ids) if answered else _as_asked(side, ids)
                for side, positive in sides
            )
            out[c.name]["model"] = (pos, neg)
        if c.role in ("user", "i_thou"):
            pos, neg = (_user_side(c, side, positive, said, ids, study.run.model.system) for side, positive in sides)
            out[c.name]["user"] = (pos, neg)
    return out


def _as_asked(side: Sequence[Chat], ids: dict[Chat, Ids]) -> Side:
    return [(ids[x], ()) for x in side]


def _model_side(c: Contrast, side: Sequence[Chat], positive: bool, said: Answers, ids: dict[Chat, Ids]) -> Side:
    reads = chat.needs_response(c.position)
    rows: Side = []
    for x in side:
        for t in said.first[x]:
            fine = (bool(t) or not reads) and said.kept(x, t, positive)
            rows.append((ids[x], t if reads else ()) if fine else None)
    return rows


def _user_side(
    c: Contrast, side: Sequence[Chat], positive: bool, said: Answers, ids: dict[Chat, Ids], system: str | None
) -> Side:
    reads = chat.needs_response(c.position)
    rows: Side = []
    for x in side:
        for i, t in enumerate(said.first[x]):
            quote = (system, said.text[t])
            replies = said.second.get(quote)
            if replies is None or not said.kept(x, t, positive):
                rows.append(None)
                continue
            reply = replies[min(i, len(replies) - 1)]
            rows.append((ids[quote], reply if reads else ()) if reply or not reads else None)
    return rows


def _answers(study: Study, backend: Backend) -> Answers:
    tokenizer, how, system = backend.loaded.tokenizer, study.run.directions, study.run.model.system
    answered = [c for c in study.contrasts if c.needs_answers(how.filter)]
    chats = study.answered
    first = _by_chat(chats, responses.answers(study, backend, "responses", chats) if chats else [], how.samples)
    text = {t: str(tokenizer.decode(list(t), skip_special_tokens=True)) for ts in first.values() for t in ts}
    quoting = [c for c in answered if c.role in ("user", "i_thou")]
    told = [(system, text[t]) for c in quoting for x in (*c.positive, *c.negative) for t in first[x]]
    quotes = list(dict.fromkeys(q for q in told if q[1].strip()))
    second: dict[Chat, list[Ids]] = {q: [()] for q in quotes}
    if quotes and any(chat.needs_response(c.position) for c in quoting):
        second = _by_chat(quotes, responses.answers(study, backend, "user_responses", quotes), how.samples)
    pairs = [(x, t) for x in chats for t in first[x]]
    return Answers(first, text, second, _passed(study, pairs, text) if how.filter else None)


def _passed(study: Study, pairs: Sequence[tuple[Chat, Ids]], text: dict[Ids, str]) -> set[tuple[Chat, Ids, bool]]:
    """`fluent` asks both sides for an answer that is one; a judge's score puts each answer on one side, or on none."""
    if study.run.directions.filter == "fluent":
        limits = study.run.label_rule
        fine = [(x, t) for x, t in pairs if not degenerate.is_degenerate(text[t], t, float("nan"), limits)]
        return {(x, t, side) for x, t in fine for side in (True, False)}
    scores = _scores(study, pairs, text)
    return {(x, t, bool(s >= THRESHOLD)) for (x, t), s in zip(pairs, scores, strict=True) if np.isfinite(s)}


def _by_chat(chats: Sequence[Chat], flat: Sequence[list[int]], samples: int) -> dict[Chat, list[Ids]]:
    return {x: [tuple(t) for t in flat[i * samples : (i + 1) * samples]] for i, x in enumerate(chats)}


def _scores(study: Study, pairs: Sequence[tuple[Chat, Ids]], text: dict[Ids, str]) -> np.ndarray:
    """A judge's score of every answer [answer], kept in /responses_judged with the reason where there is none."""
    group = "responses_judged"
    if not store.has_group(study.store, group):
        spec = kinds.load(str(study.run.directions.filter))
        judge = spec.build(study.run.label_rule)
        with progress.bar(f"answers judged by {spec.name}", len(pairs), "answers") as advance:
            made = judge.judge([Item(x[1], text[t], False, t) for x, t in pairs], advance)
        ds = xr.Dataset(
            {
                "score": ("answer", np.array([j.score for j in made], dtype="float32")),
                "reason": ("answer", np.array([j.reason for j in made], dtype=TEXT)),
            },
            attrs={"judge": spec.name, "digest": spec.digest, "fingerprint": judge.fingerprint, "threshold": THRESHOLD},
        )
        store.add_group(study.store, group, ds)
    return store.read_group(study.store, group)["score"].values
