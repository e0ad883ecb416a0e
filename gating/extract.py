"""Extracting directions: every contrast's chats through the model in one pass over all blocks and positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating import chat, directions, progress
from gating.backend import Backend
from gating.directions import Contrast
from gating.errors import GatingError
from gating.study import Study


def check_positions(study: Study, backend: Backend) -> None:
    """Positions before the end of the prompt must lie after the instruction, in the template's own tokens."""
    suffix = chat.suffix_length(backend.loaded.tokenizer, study.run.model.system)
    for p in {k.position for k in study.contrasts}:
        if p.startswith("-") and -int(p) > suffix:
            raise GatingError(
                f"directions.position={p} is not after the instruction: this template has {suffix} tokens there, so "
                f"use last, or -1 to -{suffix}."
            )


def extract(study: Study, backend: Backend) -> xr.Dataset:
    """The /directions group: every contrast's chats in one pass over all blocks and positions."""
    tokenizer = backend.loaded.tokenizer
    chats = list(dict.fromkeys(c for k in study.contrasts for c in (*k.positive, *k.negative)))
    row = {c: r for r, c in enumerate(chats)}
    ids = [chat.encode(tokenizer, user, system) for system, user in chats]
    positions = list(dict.fromkeys(k.position for k in study.contrasts))
    responses = None
    if any(chat.needs_response(p) for p in positions):
        responses = _answers(backend, ids, study.run.directions.response_tokens)
    with progress.bar("directions", len(ids), "prompts") as advance:
        pooled, norm = backend.capture(ids, positions, responses, advance)
    vectors = [_vector(k, pooled[:, positions.index(k.position)], row, study) for k in study.contrasts]
    return directions.assemble(study.contrasts, vectors, study.run.directions.method, norm)


def _answers(backend: Backend, ids: Sequence[list[int]], n_tokens: int) -> list[list[int]]:
    out: list[list[int]] = []
    with progress.bar("answers for response positions", len(ids), "prompts") as advance:
        for start in range(0, len(ids), backend.batch_rows):
            batch = ids[start : start + backend.batch_rows]
            out += backend.generate(batch, {}, n_tokens).tokens
            advance(len(batch))
    return out


def _vector(contrast: Contrast, states: np.ndarray, row: dict, study: Study) -> np.ndarray:
    """One contrast's direction [layer, hidden] from states [row, layer, hidden]; rows with no such position are left
    out of both means, in pairs where the sides are paired."""
    positive = states[[row[c] for c in contrast.positive]]
    negative = states[[row[c] for c in contrast.negative]]
    positive, negative = (s[np.isfinite(s).all(axis=(1, 2))] for s in (positive, negative))
    if not len(positive) or not len(negative):
        raise GatingError(
            f"steer.direction={contrast.name!r}: no prompt gave an answer to read {contrast.position} from; choose "
            "directions.position=last."
        )
    if study.run.directions.method == "probe":
        return directions.probe(positive, negative, study.run.seed)
    return directions.mean_difference(positive, negative)
