"""Extracting directions: every spec's texts through the model in one pass over all blocks and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gating import chat, progress
from gating.errors import GatingError
from gating.pipeline import contrast_texts, drawn
from gating.pipeline.contrast_texts import Side, Text
from gating.pipeline.drawn import Side as Rows
from gating.pipeline.drawn import Wanted
from gating.pipeline.study import Study
from gating.steering import directions
from gating.steering.backend import Backend
from gating.steering.direction_methods import METHODS, Sides
from gating.steering.direction_specs import REFUSAL, DirectionSpec
from gating.steering.directions import Extracted, derived_directions
from gating.store import TEXT

SideKey = tuple[str, int, int]  # direction, role, side (0 positive, 1 negative)


def check_positions(study: Study, backend: Backend) -> None:
    """Positions before the end of the prompt must lie after the instruction, in the template's own tokens."""
    suffix = chat.suffix_length(backend.loaded.tokenizer, study.run.model.system, study.run.model.template)
    for p in {spec.position for spec in study.direction_specs}:
        if p.startswith("-") and -int(p) > suffix:
            raise GatingError(
                f"directions.position={p} is not after the instruction: this template has {suffix} tokens there, so "
                f"use last, or -1 to -{suffix}."
            )


@dataclass(frozen=True)
class RoleTexts:
    """A spec's texts as they are read: for each role its positive and its negative side, missing rows left out (of both
    sides where they are paired, and of both roles for I-Thou)."""

    spec: DirectionSpec
    sides: list[tuple[list[Text], list[Text]]]

    def side_keys(self) -> list[SideKey]:
        return [(self.spec.name, role, side) for role in range(len(self.sides)) for side in (0, 1)]


@dataclass(frozen=True)
class States:
    """What was read: the mean of each side of each role [layer, hidden] float64, its rows [row, layer, hidden] where
    they were asked for, the median residual norm [layer], and drawn directions [drawn, layer, hidden]."""

    mean: dict[SideKey, np.ndarray]
    rows: dict[SideKey, np.ndarray]
    residual_norm: np.ndarray
    drawn: np.ndarray

    def sides(self, spec: DirectionSpec, role: int, seed: int) -> Sides:
        positive, negative = (spec.name, role, 0), (spec.name, role, 1)
        rows = self.rows.get(positive), self.rows.get(negative)
        return Sides(self.mean[positive], self.mean[negative], *rows, spec.paired, seed)


def extract(study: Study, backend: Backend) -> tuple[xr.Dataset, xr.Dataset | None]:
    """The /directions group, and /geometry (cosines of label-permuted directions) where permutations are asked for."""
    how = study.run.directions
    texts = contrast_texts.by_direction(study, backend)
    read = [_role_texts(spec, texts[spec.name]) for spec in study.direction_specs]
    asked, needs_rows = drawn.wanted(study.conditions), METHODS[how.method].needs_rows or how.permutations > 0
    states = _states(backend, read, needs_rows, asked, study.run.seed)
    extracted = [_extracted(role_texts, states, study) for role_texts in read]
    extracted += derived_directions({d.name: d for d in extracted}, how.derived)
    group = directions.assemble(extracted, states.residual_norm)
    group = group.assign(drawn.variables(asked, states.drawn, group.sizes["layer"]))
    if study.needs_resting:
        group["resting"] = _resting(study, backend)
    return group, _geometry(study, states, group) if how.permutations else None


def _resting(study: Study, backend: Backend) -> xr.DataArray:
    """The mean residual of the harmless extraction prompts over all their tokens but the first: [layer, hidden]."""
    harmless = next(s for s in study.direction_specs if s.name == REFUSAL).negative
    prompts = [study.ids(c.user, c.system) for c in harmless]
    weights = np.full((1, len(prompts), 1), 1 / len(prompts))
    states, _ = backend.capture(prompts, ["prompt_mean"], sides=weights, about="harmless prompts at rest")
    attrs = {"long_name": "mean of resid_post over harmless extraction prompts, all tokens but the first"}
    return xr.DataArray(states[0].astype("float32"), dims=("layer", "hidden"), attrs=attrs)


def _role_texts(spec: DirectionSpec, by_role: dict[str, tuple[Side, Side]]) -> RoleTexts:
    sides = [_present(pair) for pair in by_role.values()]
    if spec.paired:
        rows = list(zip(*(side for pair in by_role.values() for side in pair), strict=True))
        kept = [row for row in rows if None not in row]
        columns = [list(column) for column in zip(*kept, strict=True)] or [[]] * (2 * len(sides))
        sides = [(columns[2 * i], columns[2 * i + 1]) for i in range(len(sides))]
    if not all(side for pair in sides for side in pair):
        raise GatingError(
            f"steer.direction={spec.name!r}: no prompt gave an answer to read {spec.position} from; choose "
            "directions.position=last, or directions.filter=null."
        )
    return RoleTexts(spec, sides)


def _present(pair: tuple[Side, Side]) -> tuple[list[Text], list[Text]]:
    positive, negative = ([text for text in side if text is not None] for side in pair)
    return positive, negative


def _states(backend: Backend, read: Sequence[RoleTexts], needs_rows: bool, asked: Wanted, seed: int) -> States:
    """Every distinct text once through the model. Where nobody needs its rows, each side's mean is formed beside the
    model, so that what leaves it (or travels from a server) does not grow with the number of texts."""
    keys = [key for role_texts in read for key in role_texts.side_keys()]
    positions = list(dict.fromkeys(role_texts.spec.position for role_texts in read))
    texts = list(dict.fromkeys(text for r in read for side in r.sides for of in side for text in of))
    index, width = {text: i for i, text in enumerate(texts)}, len(texts) * len(positions)
    sides = [
        Rows(r.spec.name, side == 0, role, r.spec.paired, np.array([index[t] * len(positions) for t in of])
             + positions.index(r.spec.position))
        for r in read for role, pair in enumerate(r.sides) for side, of in enumerate(pair)
    ]  # fmt: skip
    weights = np.zeros((len(keys), width))
    for s, side in enumerate(sides):
        np.add.at(weights[s], side.columns, 1 / len(side.columns))
    weights = np.concatenate([weights, drawn.weights(asked, sides, width, seed)])
    prompts, answers = [list(p) for p, _ in texts], [list(r) for _, r in texts]
    with progress.bar("directions", len(texts), "prompts") as advance:
        about = "texts that directions are read from"
        summed = None if needs_rows else weights.reshape(len(weights), len(texts), len(positions))
        states, norm = backend.capture(prompts, positions, answers, summed, about, advance)
    if not needs_rows:
        return States(dict(zip(keys, states, strict=False)), {}, norm, states[len(keys) :])
    flat = states.reshape(width, *states.shape[2:])
    rows = {key: flat[side.columns] for key, side in zip(keys, sides, strict=True)}  # [row, layer, hidden]
    means = {key: side.mean(axis=0, dtype="float64") for key, side in rows.items()}
    sums = np.tensordot(weights[len(keys) :], np.nan_to_num(flat.astype("float64")), axes=1)
    return States(means, rows, norm, sums)


def _extracted(role_texts: RoleTexts, states: States, study: Study) -> Extracted:
    """One spec's direction; I-Thou is the difference of its two roles'."""
    spec, how, sides = role_texts.spec, study.run.directions, role_texts.sides
    vectors = [METHODS[how.method].vector(states.sides(spec, role, study.run.seed)) for role in range(len(sides))]
    positive, negative = sides[0]
    means = (states.mean[spec.name, 0, 0], states.mean[spec.name, 0, 1])
    distinct = min(len(set(p)) for p, _ in sides), min(len(set(n)) for _, n in sides)
    return Extracted(
        name=spec.name,
        vector=vectors[0] if len(vectors) == 1 else vectors[0] - vectors[1],
        role=spec.role,
        position=spec.position,
        method=how.method,
        source=spec.digest,
        n=(len(positive), len(negative)),
        distinct=distinct,
        sides=means if len(sides) == 1 else None,
        texts=spec.texts,
        variant=spec.variant,
    )


def _geometry(study: Study, states: States, group: xr.Dataset) -> xr.Dataset:
    """Cosines of every label-permuted direction with every real one: a null that keeps the activations' covariance
    (directions of one role only: a permuted I-Thou would need both)."""
    k, seed = study.run.directions.permutations, study.run.seed
    real = directions.unit(group["vector"].values.astype("float64"))
    specs = [spec for spec in study.direction_specs if spec.role != "i_thou" and not spec.variant]
    nulls = [
        directions.permuted(states.rows[s.name, 0, 0], states.rows[s.name, 0, 1], s.paired, k, seed) for s in specs
    ]
    cosine = np.stack([np.einsum("klh,olh->okl", directions.unit(null), real) for null in nulls])
    long_name = "cosine of a label-permuted direction with the real `other`"
    dims = ("direction", "other", "permutation", "layer")
    return xr.Dataset(
        {"permuted_cosine": (dims, cosine.astype("float32"), {"long_name": long_name})},
        coords={
            "direction": np.array([spec.name for spec in specs], dtype=TEXT),
            "other": group["direction"].values.astype(TEXT),
            "layer": group["layer"].values,
        },
    )
