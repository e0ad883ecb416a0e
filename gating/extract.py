"""Extracting directions: every contrast's chats through the model in one pass over all blocks and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, directions, progress, responses
from gating.backend import Backend
from gating.directions import Chat, Contrast, Made
from gating.errors import GatingError
from gating.store import TEXT
from gating.study import Study

Text = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt, and of the answer that follows it ((): none)
Side = list[Text | None]  # None: missing


def check_positions(study: Study, backend: Backend) -> None:
    """Positions before the end of the prompt must lie after the instruction, in the template's own tokens."""
    suffix = chat.suffix_length(backend.loaded.tokenizer, study.run.model.system)
    for p in {k.position for k in study.contrasts}:
        if p.startswith("-") and -int(p) > suffix:
            raise GatingError(
                f"directions.position={p} is not after the instruction: this template has {suffix} tokens there, so "
                f"use last, or -1 to -{suffix}."
            )


@dataclass(frozen=True)
class States:
    """What was read: `of[text][position]` is [layer, hidden] float32; the median residual norm [layer]."""

    of: dict[tuple[Text, str], np.ndarray]
    residual_norm: np.ndarray


def extract(study: Study, backend: Backend) -> tuple[xr.Dataset, xr.Dataset | None]:
    """The /directions group, and /geometry (cosines of label-permuted directions) where permutations are asked for."""
    sides = _sides(study, backend)
    states = _states(backend, sides, list(dict.fromkeys(c.position for c in study.contrasts)))
    how = study.run.directions
    made: list[Made] = []
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for contrast in study.contrasts:
        one, kept[contrast.name] = _made(contrast, sides, states, study)
        made.append(one)
    by_name = {m.name: m for m in made}
    for name, spec in how.derived.items():
        algebra = "along" if "along" in spec else "orthogonal_to"
        a, b = (by_name[directions.label(spec[k])] for k in ("of", algebra))
        vector = directions.derive(a.vector, b.vector, algebra)
        made.append(Made(name, vector, "derived", a.position, how.method, f"{a.name} {algebra} {b.name}"))
    group = directions.assemble(made, states.residual_norm)
    return group, _geometry(study, kept, group) if how.permutations else None


def _sides(study: Study, backend: Backend) -> dict[str, dict[str, tuple[Side, Side]]]:
    """For each contrast the texts to read, by role (`model`, `user`), positive and negative side, rows in pairs."""
    tokenizer, how = backend.loaded.tokenizer, study.run.directions
    answered = [c for c in study.contrasts if _needs_answers(c, how.filter)]
    chats = list(dict.fromkeys(x for c in answered for x in (*c.positive, *c.negative)))
    first = _by_chat(chats, responses.answers(study, backend, "responses", chats) if chats else [], how.samples)
    text_of = {t: str(tokenizer.decode(list(t), skip_special_tokens=True)) for ts in first.values() for t in ts}
    system = study.run.model.system
    quoting = [c for c in answered if c.role in ("user", "i_thou")]
    quotes = list(dict.fromkeys(
        (system, text_of[t]) for c in quoting for x in (*c.positive, *c.negative) for t in first[x] if text_of[t].strip()
    ))  # fmt: skip
    second: dict[Chat, list[tuple[int, ...]]] = {q: [()] for q in quotes}
    if quotes and any(chat.needs_response(c.position) for c in quoting):
        second = _by_chat(quotes, responses.answers(study, backend, "user_responses", quotes), how.samples)
    encoded = {
        x: tuple(chat.encode(tokenizer, x[1], x[0])) for c in study.contrasts for x in (*c.positive, *c.negative)
    }
    encoded |= {q: tuple(chat.encode(tokenizer, q[1], q[0])) for q in quotes}
    good = {t: f for t, f in zip(text_of, responses.fluent(backend, list(text_of), study.run.judge), strict=True)}

    def model_side(c: Contrast, side: Sequence[Chat]) -> Side:
        if not _needs_answers(c, how.filter):
            return [(encoded[x], ()) for x in side]
        reads = chat.needs_response(c.position)
        rows: Side = []
        for x in side:
            for t in first[x]:
                fine = (bool(t) or not reads) and (how.filter is None or good[t])
                rows.append((encoded[x], t if reads else ()) if fine else None)
        return rows

    def user_side(c: Contrast, side: Sequence[Chat]) -> Side:
        reads = chat.needs_response(c.position)
        rows: Side = []
        for x in side:
            for i, t in enumerate(first[x]):
                quote = (system, text_of[t])
                if quote not in second or (how.filter is not None and not good[t]):
                    rows.append(None)
                    continue
                reply = second[quote][min(i, len(second[quote]) - 1)]
                rows.append((encoded[quote], reply if reads else ()) if reply or not reads else None)
        return rows

    out: dict[str, dict[str, tuple[Side, Side]]] = {}
    for c in study.contrasts:
        out[c.name] = {}
        if c.role != "user":
            out[c.name]["model"] = (model_side(c, c.positive), model_side(c, c.negative))
        if c.role in ("user", "i_thou"):
            out[c.name]["user"] = (user_side(c, c.positive), user_side(c, c.negative))
    return out


def _needs_answers(contrast: Contrast, keep: str | None) -> bool:
    return (
        chat.needs_response(contrast.position)
        or contrast.role in ("user", "i_thou")
        or (keep is not None and contrast.paired)
    )


def _by_chat(chats: Sequence[Chat], flat: Sequence[list[int]], samples: int) -> dict[Chat, list[tuple[int, ...]]]:
    return {x: [tuple(t) for t in flat[i * samples : (i + 1) * samples]] for i, x in enumerate(chats)}


def _states(backend: Backend, sides: dict[str, dict[str, tuple[Side, Side]]], positions: list[str]) -> States:
    """Every distinct text once, at every position that some contrast reads; NaN where a text has no such position."""
    wanted: dict[Text, None] = {}
    for roles in sides.values():
        for pair in roles.values():
            wanted.update(dict.fromkeys(t for side in pair for t in side if t is not None))
    texts = list(wanted)
    if not texts:
        raise GatingError("directions: no answer is left to read from; set directions.filter=null, or more samples.")
    with progress.bar("directions", len(texts), "prompts") as advance:
        pooled, norm = backend.capture([list(p) for p, _ in texts], positions, [list(r) for _, r in texts], advance)
    of = {(t, p): pooled[i, j] for i, t in enumerate(texts) for j, p in enumerate(positions)}
    return States(of, norm)


def _made(
    contrast: Contrast, sides: dict[str, dict[str, tuple[Side, Side]]], states: States, study: Study
) -> tuple[Made, tuple[np.ndarray, np.ndarray]]:
    """One contrast's direction, and the states [row, layer, hidden] of its sides that it was made from. Missing rows are
    left out, of both sides where they are paired (and of both roles for I-Thou)."""
    roles = [_present(pair) for pair in sides[contrast.name].values()]
    if contrast.paired:
        both = list(zip(*(side for pair in sides[contrast.name].values() for side in pair), strict=True))
        kept = [row for row in both if None not in row]
        columns = [list(column) for column in zip(*kept, strict=True)] or [[]] * (2 * len(roles))
        roles = [(columns[2 * i], columns[2 * i + 1]) for i in range(len(roles))]
    if not all(side for pair in roles for side in pair):
        raise GatingError(
            f"steer.direction={contrast.name!r}: no prompt gave an answer to read {contrast.position} from; choose "
            "directions.position=last, or directions.filter=null."
        )
    read = [(_read(states, pos, contrast.position), _read(states, neg, contrast.position)) for pos, neg in roles]
    how, seed = study.run.directions, study.run.seed
    found = [
        directions.probe(p, n, seed) if how.method == "probe" else directions.mean_difference(p, n) for p, n in read
    ]
    one = Made(
        contrast.name,
        found[0] if len(found) == 1 else found[0] - found[1],
        contrast.role,
        contrast.position,
        how.method,
        contrast.digest,
        (len(roles[0][0]), len(roles[0][1])),
        (min(len(set(pos)) for pos, _ in roles), min(len(set(neg)) for _, neg in roles)),
        (read[0][0].mean(axis=0, dtype="float64"), read[0][1].mean(axis=0, dtype="float64"))
        if len(read) == 1
        else None,
    )
    return one, read[0]


def _present(pair: tuple[Side, Side]) -> tuple[list[Text], list[Text]]:
    positive, negative = ([x for x in side if x is not None] for side in pair)
    return positive, negative


def _read(states: States, side: Sequence[Text], position: str) -> np.ndarray:
    return np.stack([states.of[text, position] for text in side])


def _geometry(study: Study, kept: dict[str, tuple[np.ndarray, np.ndarray]], made: xr.Dataset) -> xr.Dataset:
    """Cosines of every label-permuted contrast with every real direction: a null that keeps the activations' covariance
    (contrasts of one role only: a permuted I-Thou would need both)."""
    k, seed = study.run.directions.permutations, study.run.seed
    real = directions.unit(made["vector"].values.astype("float64"))
    own = [c for c in study.contrasts if c.role != "i_thou"]
    cosine = np.stack([
        np.einsum("klh,olh->okl", directions.unit(directions.permuted(*kept[c.name], c.paired, k, seed)), real) for c in own
    ])  # fmt: skip
    return xr.Dataset(
        {
            "permuted_cosine": (
                ("direction", "other", "permutation", "layer"),
                cosine.astype("float32"),
                {"long_name": "cosine of a label-permuted direction with the real `other`"},
            )
        },
        coords={
            "direction": np.array([c.name for c in own], dtype=TEXT),
            "other": made["direction"].values.astype(TEXT),
            "layer": made["layer"].values,
        },
    )
