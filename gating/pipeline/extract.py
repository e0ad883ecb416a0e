"""Extracting directions: every contrast's chats through the model in one pass over all blocks and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, progress
from gating.errors import GatingError
from gating.pipeline import contrast_texts
from gating.pipeline.contrast_texts import Side, Text
from gating.pipeline.study import Study
from gating.steering import directions
from gating.steering.backend import Backend
from gating.steering.directions import Contrast, Made
from gating.store import TEXT


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
class Roles:
    """A contrast's texts as they are read: for each role its positive and its negative side, missing rows left out (of both
    sides where they are paired, and of both roles for I-Thou)."""

    contrast: Contrast
    sides: list[tuple[list[Text], list[Text]]]


@dataclass(frozen=True)
class States:
    """What was read: the mean of each side of each role [layer, hidden] float64, its rows [row, layer, hidden] where they
    were asked for, and the median residual norm [layer]."""

    mean: dict[tuple[str, int, int], np.ndarray]  # by (contrast, role, side)
    rows: dict[tuple[str, int, int], np.ndarray]
    residual_norm: np.ndarray


def extract(study: Study, backend: Backend) -> tuple[xr.Dataset, xr.Dataset | None]:
    """The /directions group, and /geometry (cosines of label-permuted directions) where permutations are asked for."""
    texts, how = contrast_texts.of(study, backend), study.run.directions
    roles = [_roles(contrast, texts[contrast.name]) for contrast in study.contrasts]
    states = _states(backend, roles, how.method == "probe" or how.permutations > 0)
    made = [_made(r, states, study) for r in roles]
    by_name = {m.name: m for m in made}
    for name, spec in how.derived.items():
        algebra = "along" if "along" in spec else "orthogonal_to"
        a, b = (by_name[directions.label(spec[k])] for k in ("of", algebra))
        vector = directions.derive(a.vector, b.vector, algebra)
        made.append(Made(name, vector, "derived", a.position, how.method, f"{a.name} {algebra} {b.name}"))
    group = directions.assemble(made, states.residual_norm)
    return group, _geometry(study, states, group) if how.permutations else None


def _roles(contrast: Contrast, by_role: dict[str, tuple[Side, Side]]) -> Roles:
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
    return Roles(contrast, roles)


def _states(backend: Backend, every: Sequence[Roles], rows: bool) -> States:
    """Every distinct text once through the model. Where nobody needs `rows`, each side's mean is formed beside the model, so
    that what leaves it (or travels from a server) does not grow with the number of texts."""
    keys = [(r.contrast.name, i, s) for r in every for i in range(len(r.sides)) for s in (0, 1)]
    texts_of = {(r.contrast.name, i, s): pair[s] for r in every for i, pair in enumerate(r.sides) for s in (0, 1)}
    position_of = {r.contrast.name: r.contrast.position for r in every}
    positions = list(dict.fromkeys(position_of.values()))
    texts = list(dict.fromkeys(t for side in texts_of.values() for t in side))
    index = {t: i for i, t in enumerate(texts)}
    weights = np.zeros((len(keys), len(texts), len(positions)))
    for g, key in enumerate(keys):
        for t in texts_of[key]:
            weights[g, index[t], positions.index(position_of[key[0]])] += 1 / len(texts_of[key])
    prompts, answers = [list(p) for p, _ in texts], [list(r) for _, r in texts]
    with progress.bar("directions", len(texts), "prompts") as advance:
        read, norm = backend.capture(
            prompts, positions, answers, None if rows else weights, "texts that directions are read from", advance
        )
    if not rows:
        return States(dict(zip(keys, read, strict=True)), {}, norm)
    of = {
        key: read[[index[t] for t in texts_of[key]], positions.index(position_of[key[0]])] for key in keys
    }  # [row, layer, hidden]
    return States({key: v.mean(axis=0, dtype="float64") for key, v in of.items()}, of, norm)


def _made(roles: Roles, states: States, study: Study) -> Made:
    """One contrast's direction."""
    c, how, n_roles = roles.contrast, study.run.directions, len(roles.sides)

    def found(role: int) -> np.ndarray:
        keys = [(c.name, role, side) for side in (0, 1)]
        if how.method == "probe":
            return directions.probe(states.rows[keys[0]], states.rows[keys[1]], study.run.seed)
        return states.mean[keys[0]] - states.mean[keys[1]]

    positive, negative = roles.sides[0]
    return Made(
        c.name,
        found(0) if n_roles == 1 else found(0) - found(1),
        c.role,
        c.position,
        how.method,
        c.digest,
        (len(positive), len(negative)),
        (min(len(set(p)) for p, _ in roles.sides), min(len(set(n)) for _, n in roles.sides)),
        (states.mean[c.name, 0, 0], states.mean[c.name, 0, 1]) if n_roles == 1 else None,
        c.texts,
    )


def _present(pair: tuple[Side, Side]) -> tuple[list[Text], list[Text]]:
    positive, negative = ([x for x in side if x is not None] for side in pair)
    return positive, negative


def _sides(states: States, c: Contrast) -> tuple[np.ndarray, np.ndarray]:
    return states.rows[c.name, 0, 0], states.rows[c.name, 0, 1]


def _geometry(study: Study, states: States, made: xr.Dataset) -> xr.Dataset:
    """Cosines of every label-permuted contrast with every real direction: a null that keeps the activations' covariance
    (contrasts of one role only: a permuted I-Thou would need both)."""
    k, seed = study.run.directions.permutations, study.run.seed
    real = directions.unit(made["vector"].values.astype("float64"))
    own = [c for c in study.contrasts if c.role != "i_thou"]
    nulls = [directions.permuted(*_sides(states, c), c.paired, k, seed) for c in own]
    cosine = np.stack([np.einsum("klh,olh->okl", directions.unit(null), real) for null in nulls])
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
