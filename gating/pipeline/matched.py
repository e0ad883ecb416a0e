"""Matched removals: for a projection that takes the persona out, random directions across it that take out as much.

An isotropic direction carries next to nothing of the residual stream, so that projecting it out removes nothing: no
control. Here a direction is drawn from the second moment of what the ablation leads away (the residual minus its
reference, under the very condition) and mixed with an isotropic one until the mean square of what it takes out is the
persona's. Where even the drawn one holds less, its coefficient makes up for the rest, and is kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating import progress, store
from gating.pipeline.key import matching_prompts
from gating.pipeline.study import Study
from gating.steering import lowering, vectors
from gating.steering.backend import Backend
from gating.steering.interventions import Condition
from gating.steering.lowering import Drawn
from gating.store import TEXT

TOKENS = 64  # of each prompt, at most
HALVINGS = 40
STREAM = 13  # of a run's seed, for what is drawn here


class Removal(NamedTuple):
    """An ablation with matched controls: the condition that it stands in, its place there, and the blocks it writes."""

    condition: Condition
    order: int
    blocks: tuple[int, ...]
    seeds: list[int]


def removals(conditions: Sequence[Condition]) -> list[Removal]:
    """The ablations of a run that have matched controls."""
    found: dict[tuple[str, int], Removal] = {}
    by_name = {c.name: c for c in conditions}
    for c in conditions:
        for order, iv in enumerate(c.interventions):
            if iv.draw == "matched" and iv.seed is not None:
                own = by_name[c.controls]
                removal = found.setdefault((own.name, order), Removal(own, order, iv.layers, []))
                removal.seeds.append(iv.seed)
    return list(found.values())


def directions(study: Study, backend: Backend, extracted: xr.Dataset) -> dict[lowering.Place, Drawn]:
    """The direction and coefficient of every matched control, from the store where they stand there, else drawn."""
    wanted = removals(study.conditions)
    if not wanted:
        return {}
    if not store.has_group(study.store, "matched"):
        with progress.bar("matched controls", len(wanted), "ablations") as advance:
            parts = []
            for removal in wanted:
                parts += _drawn(study, backend, extracted, removal)
                advance(1)
        store.add_group(study.store, "matched", xr.concat(parts, "control"))
    kept = store.read_group(study.store, "matched")
    names, orders, blocks = (kept[c].values.tolist() for c in ("condition", "intervention", "block"))
    vectors, coefficients = kept["vector"].values.astype("float64"), kept["coefficient"].values.tolist()
    seeds = kept["seed"].values.tolist()
    return {
        (name, order, block, seed): Drawn(vector[None], coefficient)
        for name, order, block, seed, vector, coefficient in zip(
            names, orders, blocks, seeds, vectors, coefficients, strict=True
        )
    }


def _drawn(study: Study, backend: Backend, extracted: xr.Dataset, removal: Removal) -> list[xr.Dataset]:
    iv = removal.condition.interventions[removal.order]
    out = []
    for block, led_away in _led_away(study, backend, extracted, removal).items():
        basis = vectors.measured(iv, block, extracted, study.run.seed)
        target = float(((led_away @ basis.T) ** 2).sum(1).mean()) * iv.coef**2
        rows = [_matched(led_away, basis, target, study.run.seed, seed) for seed in removal.seeds]
        n, text = len(rows), np.array([removal.condition.name], dtype=TEXT)
        out.append(
            xr.Dataset(
                {
                    "vector": (("control", "hidden"), np.stack([r.vector for r in rows]).astype("float32")),
                    "coefficient": ("control", np.array([r.coefficient for r in rows]), {"long_name": COEFFICIENT}),
                    "removed": ("control", np.sqrt([r.removed for r in rows]), {"long_name": REMOVED}),
                    "removed_by_own": ("control", np.full(n, target**0.5), {"long_name": REMOVED_BY_OWN}),
                    "condition": ("control", np.repeat(text, n)),
                    "intervention": ("control", np.full(n, removal.order, dtype="int32")),
                    "block": ("control", np.full(n, block, dtype="int32")),
                    "seed": ("control", np.array(removal.seeds, dtype="int32")),
                }
            )
        )
    return out


COEFFICIENT = "factor on the ablation's coefficient; 1 where the direction itself holds as much"
REMOVED = "root mean square of what it takes out, on the prompts that it was matched on"
REMOVED_BY_OWN = "root mean square of what the ablation itself takes out there"


class Match(NamedTuple):
    """A unit vector [hidden], the factor on the ablation's coefficient, and the mean square that it takes out."""

    vector: np.ndarray
    coefficient: float
    removed: float


def _matched(led_away: np.ndarray, basis: np.ndarray, target: float, seed: int, k: int) -> Match:
    """The k-th direction across `basis` [k, hidden] that takes a mean square of `target` out of rows
    [sample, hidden]."""
    z = np.random.default_rng([seed, k, STREAM]).standard_normal(len(led_away))
    isotropic = _across(vectors.random_unit(led_away.shape[1], seed, k), basis)
    held = _across(z @ led_away, basis)
    low, high = 0.0, 1.0  # shares of the drawn direction: of these two, `high` takes out more
    if _mean_square(led_away, isotropic) >= target:
        vector = isotropic
    elif _mean_square(led_away, held) <= target:
        vector = held
    else:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            takes = _mean_square(led_away, _mixed(isotropic, held, middle))
            low, high = (middle, high) if takes < target else (low, middle)
        vector = _mixed(isotropic, held, high)
    takes = _mean_square(led_away, vector)
    coefficient = (target / takes) ** 0.5 if takes > 0 else 1.0
    return Match(vector, coefficient, takes * coefficient**2)


def _across(v: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The unit vector along what is left of `v` without its part in the span of `basis`."""
    rest = v - (basis @ v) @ basis
    norm = float(np.linalg.norm(rest))
    return rest / norm if norm > 0 else rest


def _mixed(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    mix = (1 - share) * a + share * b
    return mix / np.linalg.norm(mix)


def _mean_square(rows: np.ndarray, v: np.ndarray) -> float:
    return float(((rows @ v) ** 2).mean())


def _led_away(study: Study, backend: Backend, extracted: xr.Dataset, removal: Removal) -> dict[int, np.ndarray]:
    """What an ablation leads away at each of its blocks, over tokens of the matching prompts: the residual under its
    condition, as the ablation finds it, minus the reference: [sample, hidden] float64."""
    own, iv = removal.condition, removal.condition.interventions[removal.order]
    by_name = {c.name: c for c in study.conditions}
    rows = [Condition("baseline"), *([by_name[iv.reference]] if iv.reference in by_name else []), own]
    led_to = None if iv.reference in ("zero", "mean") else len(rows) - 2  # the row of the reference
    before = lowering.places(rows, own, removal.order)

    def led_away(texts: Sequence[str]) -> np.ndarray:
        ids = [study.ids(text, c.system or study.run.model.system) for text in texts for c in rows]
        pairs = [(ids[i + len(rows) - 1], ids[i + (led_to or 0)]) for i in range(0, len(ids), len(rows))]
        read = [_tokens(own_ids, None if led_to is None else other, iv.scope) for own_ids, other in pairs]
        width = max(map(len, read))
        at = [[*tokens, *[-1] * (width - len(tokens))] for tokens in read for _ in rows]
        edits = lowering.lower(rows * len(texts), extracted, study.run.seed)
        states = backend.states(ids, edits, before, at, f"matched controls of {own.name}")
        states = states.reshape(len(texts), len(rows), *states.shape[1:]).astype("float64")
        led = states[:, -1] - (0.0 if led_to is None else states[:, led_to])  # [prompt, token, block, hidden]
        return np.concatenate([rows[: len(tokens)] for rows, tokens in zip(led, read, strict=True)])

    texts, step = [p.text for p in matching_prompts(study.run.seed)], max(1, study.batch_rows // len(rows))
    chunks = [tuple(texts[start : start + step]) for start in range(0, len(texts), step)]
    by_chunk = dict(backend.each(led_away, chunks))
    samples = np.concatenate([by_chunk[chunk] for chunk in chunks])  # [sample, block, hidden]
    if iv.reference == "mean":
        samples = samples - extracted["resting"].sel(layer=sorted(before)).values
    return {block: samples[:, i] for i, block in enumerate(sorted(before))}


def _tokens(ids: Sequence[int], reference: Sequence[int] | None, scope: str) -> list[int]:
    """Tokens to read, counted from the prompt's end (-1 is its last): those that the ablation writes and, where it is
    led to another row, that stand in that row too; of a long prompt, TOKENS at random. The first token is left out: its
    norm is an outlier."""
    shared = len(ids) if reference is None else 0
    if reference is not None:
        while shared < min(len(ids), len(reference)) and ids[-1 - shared] == reference[-1 - shared]:
            shared += 1
    last = 1 if scope in ("last", "response") else max(1, min(shared, len(ids) - 1))
    if last <= TOKENS:
        return [-i for i in range(1, last + 1)]
    return (-1 - np.random.default_rng([*ids, STREAM]).permutation(last)[:TOKENS]).tolist()
