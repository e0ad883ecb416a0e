"""What a persona's effect goes through: interchange of a mediator's projection between a prompt's rows.

With Y(a, m) an outcome under persona (a = 1) or none (a = 0), and the mediator set as under persona (m = 1) or none
(m = 0), row by row of the same prompt (Pearl 2001; Vig et al. 2020, arXiv 2004.12265):

    total              Y(1, 1) - Y(0, 0)
    natural direct     Y(1, 0) - Y(0, 0)   persona, the mediator held at the unsteered row's
    natural indirect   Y(0, 1) - Y(0, 0)   no persona, the mediator set to the persona row's
    share held         1 - natural direct / total: how much of the effect goes when the mediator is held

The two routes need not add up to the total: what is left over is their interaction.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.reading import asked, read_group
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS

DRAWS = 2000  # of the bootstrap
EFFECTS = ("total", "direct", "indirect", "interaction", "share_held", "share_given")


def mediation(
    run: xr.DataTree,
    persona: str,
    held: str,
    given: str,
    measure: str = "refusal",
    harmful: bool = True,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Total, direct and indirect effect along `effect`, with bootstrap intervals over prompts: estimate, low, high; n.

    persona, held, given: conditions with Y(1, 1), Y(1, 0) and Y(0, 1); Y(0, 0) is the baseline. measure: a label, of
    which it is the rate, or a number of /outcomes such as refusal_score (nats). A prompt counts where all four are
    there. Shares are NaN where the total's interval holds 0: there is nothing to mediate. Raises GatingError for a
    condition or a measure that the run does not have.
    """
    values = _values(run, measure, harmful)
    names = values["condition"].values.tolist()
    for name in (persona, held, given):
        if name not in names:
            raise GatingError(f"{name!r} is not a condition of this run: use {choices(names, name)}.")
    four = values.sel(condition=["baseline", persona, held, given]).transpose("prompt", "condition").values
    four = four[np.isfinite(four).all(axis=1)]
    n = len(four)
    estimate, low, high = (np.full(len(EFFECTS), np.nan) for _ in range(3))
    if n >= 2:
        estimate = _effects(four.mean(axis=0))
        rows = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
        drawn = _effects(four[rows].mean(axis=1).T)
        total_low, total_high = stats.mean_of(four[:, 1] - four[:, 0], bound=_bound(measure)).interval(level)
        if total_low <= 0 <= total_high or not np.isfinite(total_low):
            estimate[4:], drawn[4:] = np.nan, np.nan
        with np.errstate(invalid="ignore"):
            low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
        low[0], high[0] = total_low, total_high
    return xr.Dataset(
        {"estimate": ("effect", estimate), "low": ("effect", low), "high": ("effect", high), "n": n},
        coords={"effect": list(EFFECTS)},
        attrs={"persona": persona, "held": held, "given": given, "measure": measure, "level": level},
    )


def _effects(mean: np.ndarray) -> np.ndarray:
    """[effect, ...] of the means [condition, ...] of baseline, persona, held, given."""
    base, both, held, given = mean
    total, direct, indirect = both - base, held - base, given - base
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([total, direct, indirect, total - direct - indirect, 1 - direct / total, indirect / total])


def _bound(measure: str) -> float | None:
    return 1.0 if measure in LABELS else None


def _values(run: xr.DataTree, measure: str, harmful: bool) -> xr.DataArray:
    outcomes = read_group(run, "outcomes").isel(prompt=asked(run, harmful))
    there = outcomes["done"] & (outcomes["label"] >= 0)
    if measure in LABELS:
        return (outcomes["label"] == LABELS.index(measure)).astype("float64").where(there)
    if measure not in outcomes or outcomes[measure].dtype.kind != "f":
        raise GatingError(f"measure={measure!r}: use {choices([*LABELS, 'refusal_score', 'nll'], measure)}.")
    return outcomes[measure].where(there)
