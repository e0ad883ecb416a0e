"""Answers that directions are made from: generated under the personas' instructions, kept in the store batch by batch,
so that a killed extraction goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating import chat, progress, store, thoughts
from gating.pipeline.study import Study
from gating.steering.backend import Backend
from gating.steering.direction_specs import Chat
from gating.steering.room import in_halves
from gating.store import TEXT


def answers(study: Study, backend: Backend, group: str, chats: Sequence[Chat]) -> list[list[int]]:
    """Token ids of `directions.samples` answers to each chat, sample after sample within a chat: [chat * samples].

    group: where they are kept (`responses`, `user_responses`). Greedy at temperature 0; else sampled with top_p 0.95
    under a seed of the run's, the group's and the batch's, so that a resumed extraction gives the same answers.
    """
    how = study.run.directions
    tokens = study.tokens_of(chats, backend.loaded.tokenizer)
    ids = [list(tokens[asked]) for asked in chats for _ in range(how.samples)]
    if not store.has_group(study.store, group):
        store.create_group(
            study.store, group, _empty(chats, how.samples, how.response_tokens), "answer", study.batch_rows
        )
    kept = store.read_group(study.store, group)
    done = kept["done"].values.copy()
    with progress.bar("answers that directions are read from", len(ids), "answers", done=int(done.sum())) as advance:

        def answer_from(start: int) -> list[list[int]]:
            batch = ids[start : start + study.batch_rows]
            sampling = (how.temperature, _seed(study.run.seed, group, start)) if how.temperature else None
            about = f"answers {start} to {start + len(batch) - 1} that directions are read from"

            def answered(rows: Sequence[list[int]]) -> list[list[int]]:
                return backend.generate(rows, {}, how.response_tokens, sampling=sampling, about=about).tokens

            if sampling:  # the draws are those of the whole batch
                return answered(batch)
            return [tokens for _, part in in_halves(answered, batch) for tokens in part]

        starts = [s for s in range(0, len(ids), study.batch_rows) if not done[s : s + study.batch_rows].all()]
        for start, out in backend.each(answer_from, starts):
            texts = [said(backend.loaded.tokenizer, p, t) for p, t in zip(ids[start:], out, strict=False)]
            store.write_rows(study.store, group, "answer", start, _filled(out, texts, how.response_tokens))
            advance(len(out))
    kept = store.read_group(study.store, group)
    return [row[row >= 0].tolist() for row in kept["token_ids"].values]


def said(tokenizer: chat.Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """An answer's text, without the thought before it."""
    end = thoughts.length(tokenizer, thoughts.marks(tokenizer), prompt, tokens)
    return str(tokenizer.decode(list(tokens[end:]), skip_special_tokens=True))


def _seed(seed: int, group: str, start: int) -> int:
    return int(np.random.SeedSequence([seed, len(group), start]).generate_state(1)[0])


def _empty(chats: Sequence[Chat], samples: int, n_tokens: int) -> xr.Dataset:
    rows = [(system or "", user, s) for system, user in chats for s in range(samples)]
    n = len(rows)
    return xr.Dataset(
        {
            "system": ("answer", np.array([r[0] for r in rows], dtype=TEXT)),
            "user": ("answer", np.array([r[1] for r in rows], dtype=TEXT)),
            "sample": ("answer", np.array([r[2] for r in rows], dtype="int32")),
            "text": ("answer", np.full(n, "", dtype=TEXT)),
            "token_ids": (("answer", "token"), np.full((n, n_tokens), -1, dtype="int32")),
            "done": ("answer", np.zeros(n, dtype=bool)),
        }
    )


def _filled(tokens: Sequence[Sequence[int]], texts: Sequence[str], n_tokens: int) -> xr.Dataset:
    ids = np.full((len(tokens), n_tokens), -1, dtype="int32")
    for r, t in enumerate(tokens):
        ids[r, : len(t)] = t
    return xr.Dataset(
        {
            "text": ("answer", np.array(texts, dtype=TEXT)),
            "token_ids": (("answer", "token"), ids),
            "done": ("answer", np.ones(len(tokens), dtype=bool)),
        }
    )
