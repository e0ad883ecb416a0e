"""Extracting directions: every contrast's chats through the model in one pass over all blocks and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, directions, progress, sides
from gating.backend import Backend
from gating.directions import Contrast, Made
from gating.errors import GatingError
from gating.sides import Side, Text
from gating.store import TEXT
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


@dataclass(frozen=True)
class States:
    """What was read: `of[text][position]` is [layer, hidden] float32; the median residual norm [layer]."""

    of: dict[tuple[Text, str], np.ndarray]
    residual_norm: np.ndarray


def extract(study: Study, backend: Backend) -> tuple[xr.Dataset, xr.Dataset | None]:
    """The /directions group, and /geometry (cosines of label-permuted directions) where permutations are asked for."""
    texts = sides.of(study, backend)
    states = _states(backend, texts, list(dict.fromkeys(c.position for c in study.contrasts)))
    how = study.run.directions
    made: list[Made] = []
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for contrast in study.contrasts:
        one, kept[contrast.name] = _made(contrast, texts[contrast.name], states, study)
        made.append(one)
    by_name = {m.name: m for m in made}
    for name, spec in how.derived.items():
        algebra = "along" if "along" in spec else "orthogonal_to"
        a, b = (by_name[directions.label(spec[k])] for k in ("of", algebra))
        vector = directions.derive(a.vector, b.vector, algebra)
        made.append(Made(name, vector, "derived", a.position, how.method, f"{a.name} {algebra} {b.name}"))
    group = directions.assemble(made, states.residual_norm)
    return group, _geometry(study, kept, group) if how.permutations else None


def _states(backend: Backend, by_contrast: dict[str, dict[str, tuple[Side, Side]]], positions: list[str]) -> States:
    """Every distinct text once, at every position that some contrast reads; NaN where a text has no such position."""
    wanted: dict[Text, None] = {}
    for roles in by_contrast.values():
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
    contrast: Contrast, by_role: dict[str, tuple[Side, Side]], states: States, study: Study
) -> tuple[Made, tuple[np.ndarray, np.ndarray]]:
    """One contrast's direction, and the states [row, layer, hidden] of its sides that it was made from. Missing rows are
    left out, of both sides where they are paired (and of both roles for I-Thou)."""
    roles = [_present(pair) for pair in by_role.values()]
    if contrast.paired:
        both = list(zip(*(side for pair in by_role.values() for side in pair), strict=True))
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
