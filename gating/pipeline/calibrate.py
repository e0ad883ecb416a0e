"""Iso-KL: the factor on each condition's strength at which its first-token KL from the baseline, on harmless prompts
of the `select` split, reaches one value for all, so that directions are compared at equal disturbance, not at equal
norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating import progress, store
from gating.errors import GatingError
from gating.pipeline import batching
from gating.pipeline.key import calibration_prompts
from gating.pipeline.study import Study
from gating.steering import lowering
from gating.steering.backend import Backend
from gating.steering.condition_grid import REFERENCES
from gating.steering.interventions import Condition
from gating.steering.readouts import Readouts
from gating.store import TEXT

STEPS = 10  # halvings, in the logarithm of the factor: a precision of 0.6% of a range of 2**-4 to 2**3
LOW, HIGH = -4.0, 3.0


def scales(study: Study, backend: Backend, extracted: xr.Dataset) -> dict[str, float]:
    """Factors by condition, from the store where they stand there, else by bisection; written with the KL reached.

    Raises GatingError for a condition that cannot reach the value within a factor of 1/16 to 8.
    """
    if not store.has_group(study.store, "calibration"):
        store.add_group(study.store, "calibration", _calibrated(study, backend, extracted))
    kept = store.read_group(study.store, "calibration")
    return dict(zip(kept["condition"].values.tolist(), kept["scale"].values.tolist(), strict=True))


def _calibrated(study: Study, backend: Backend, extracted: xr.Dataset) -> xr.Dataset:
    target = float(study.run.steer.iso_kl or 0)
    ids = [study.ids(p.text, study.run.model.system) for p in calibration_prompts(study.run.seed)]
    moved = scaled(study)
    if not moved:
        raise GatingError(
            f"steer.iso_kl={target:g}: no condition has a strength to scale (an ablation takes out what is there); "
            "drop steer.iso_kl."
        )
    low, high = np.full(len(moved), LOW), np.full(len(moved), HIGH)
    with progress.bar("calibration", (STEPS + 2) * len(moved), "conditions") as advance:

        def measure(power: np.ndarray) -> np.ndarray:
            factors = {c.name: 2.0**x for c, x in zip(moved, power.tolist(), strict=True)}
            kl = _kl(study, backend, extracted, ids, moved, factors)
            advance(len(moved))
            return kl

        out_of_reach = (measure(high) < target) | (measure(low) > target)
        if out_of_reach.any():
            name = moved[int(np.argmax(out_of_reach))].name
            raise GatingError(
                f"steer.iso_kl={target:g}: {name} does not reach it between 1/16 and 8 times its coefficient; choose "
                "another value, or a steer.coef nearer to it."
            )
        for _ in range(STEPS - 1):
            middle = (low + high) / 2
            above = measure(middle) > target
            high, low = np.where(above, middle, high), np.where(above, low, middle)
        middle = (low + high) / 2
        reached = measure(middle)
    names = np.array([c.name for c in moved], dtype=TEXT)
    return xr.Dataset(
        {"scale": ("condition", 2.0**middle), "kl": ("condition", reached)},
        coords={"condition": names},
        attrs={"target": target, "n": len(ids), "prompts": "shipped harmless, select split"},
    )


def scaled(study: Study) -> list[Condition]:
    """The conditions whose strengths are calibrated: those with a dose, without a system message of their own, and not
    led to what another condition has."""
    return [
        c
        for c in study.conditions
        if c.system is None
        and any(lowering.is_dose(iv) for iv in c.interventions)
        and all(iv.reference in REFERENCES for iv in c.interventions)
    ]


class Part(NamedTuple):
    """One batch of a calibration: conditions, and prompts from start to stop."""

    conditions: list[int]
    start: int
    stop: int


def parts(conditions: int, prompts: int, rows: int) -> list[Part]:
    """Batches of at most `rows`, or of one prompt's conditions where those are more."""
    return [
        Part(chosen, start, min(start + step, prompts))
        for chosen in batching.batches(conditions, rows)
        for step in [max(1, rows // len(chosen))]
        for start in range(0, prompts, step)
    ]


def _kl(
    study: Study,
    backend: Backend,
    extracted: xr.Dataset,
    ids: Sequence[list[int]],
    conditions: Sequence[Condition],
    factors: Mapping[str, float],
) -> np.ndarray:
    """Mean first-token KL of each condition over the prompts, nats: [condition]. They share each prompt's baseline
    row."""
    with_baseline = [Condition("baseline"), *conditions]
    kl = np.full((len(ids), len(with_baseline)), np.nan)

    def measure(part: Part) -> np.ndarray:
        n, applied, asked = (
            len(part.conditions),
            [with_baseline[c] for c in part.conditions],
            ids[part.start : part.stop],
        )
        edits = lowering.lower(applied * len(asked), extracted, study.run.seed, factors)
        readouts = Readouts(score_ids=[0], reference=[p * n for p in range(len(asked)) for _ in applied])
        rows = [i for i in asked for _ in applied]
        generation = backend.generate(rows, edits, 1, readouts, about="strengths being calibrated")
        return generation.read["kl"].reshape(len(asked), n)

    for part, measured in backend.each(measure, parts(len(with_baseline), len(ids), study.batch_rows)):
        kl[part.start : part.stop, part.conditions] = measured
    return kl[:, 1:].mean(axis=0)
