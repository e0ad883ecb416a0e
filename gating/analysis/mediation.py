"""What a persona's effect goes through: interchange of a mediator's projection between a prompt's rows.

With Y(a, m) an outcome under persona (a = 1) or none (a = 0), and the mediator set as under persona (m = 1) or none
(m = 0), row by row of the same prompt (Pearl 2001; Vig et al. 2020, arXiv 2004.12265):

    total              Y(1, 1) - Y(0, 0)
    natural direct     Y(1, 0) - Y(0, 0)   persona, the mediator held at the unsteered row's
    natural indirect   Y(0, 1) - Y(0, 0)   no persona, the mediator set to the persona row's
    share held         1 - natural direct / total: how much of the effect goes when the mediator is held
    share given        natural indirect / total: how much of it comes with the mediator alone

The two routes need not add up to the total: what is left over is their interaction.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.judges import with_judge
from gating.analysis.reading import asked, read_group
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS

# Weights on baseline, persona, held, given.
EFFECTS = {"total": (-1, 1, 0, 0), "direct": (-1, 0, 1, 0), "indirect": (-1, 0, 0, 1), "interaction": (1, 1, -1, -1)}
SHARES = {"share_held": (0, 1, -1, 0), "share_given": (-1, 0, 0, 1)}  # of the total
NEGLIGIBLE = 1e-3  # of the measure's largest value (at least of 1): an effect below it may be rounding
Interval = tuple[float, float, float]  # estimate, low, high


class Sample(NamedTuple):
    """Values [prompt, condition], each prompt's category, whether values are shares, and the intervals' level."""

    values: np.ndarray
    category: np.ndarray
    bounded: bool
    level: float


def mediation(
    run: xr.DataTree,
    persona: str,
    held: str,
    given: str,
    measure: str = "refusal",
    harmful: bool | None = True,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """Total, direct and indirect effect along `effect`, with intervals over prompts: estimate, low, high; n.

    persona, held, given: conditions with Y(1, 1), Y(1, 0) and Y(0, 1); Y(0, 0) is the baseline. measure: a label, of
    which it is the rate, or a number of /outcomes such as refusal_score (nats). A prompt counts where all four are
    there. Shares are NaN where the total's interval holds 0, or it is negligible: there is nothing to mediate.
    judge: whose labels, as in `refusal_rate`. Raises GatingError for a condition, measure or judge that the run does
    not have.
    """
    values = _values(with_judge(run, judge), measure, harmful)
    sample = _sample(values, ["baseline", persona, held, given], measure in LABELS, level)
    rows = [_effect(sample, np.array(w)) for w in EFFECTS.values()]
    rows += [_share(sample, np.array(w), np.array(EFFECTS["total"])) for w in SHARES.values()]
    about = {"persona": persona, "held": held, "given": given, "measure": measure, "level": level}
    return _labelled("effect", [*EFFECTS, *SHARES], rows).assign(n=len(sample.values)).assign_attrs(about)


def by_block(
    run: xr.DataTree,
    persona: str,
    at: Mapping[int, str],
    measure: str = "refusal",
    harmful: bool | None = True,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """How much of the effect goes when the mediator is held at one block alone: `share_held` along `layer`, with its
    interval and n, as in `mediation`. at: the condition with Y(1, 0), by block."""
    weights, total = np.array([0, 1, -1]), np.array([-1, 1, 0])
    values = _values(with_judge(run, judge), measure, harmful)
    samples = [_sample(values, ["baseline", persona, held], measure in LABELS, level) for held in at.values()]
    rows = [_share(sample, weights, total) for sample in samples]
    return _labelled("layer", [*at], rows).assign(n=("layer", [len(sample.values) for sample in samples]))


def _labelled(dim: str, names: Sequence[Hashable], rows: Sequence[Interval]) -> xr.Dataset:
    columns = dict(zip(("estimate", "low", "high"), np.array(rows).reshape(-1, 3).T, strict=True))
    return xr.Dataset({k: (dim, v) for k, v in columns.items()}, coords={dim: list(names)})


def _values(run: xr.DataTree, measure: str, harmful: bool | None) -> xr.DataArray:
    """The measure [condition, prompt], NaN where it is missing, with each prompt's `category`."""
    chosen = asked(run, harmful)
    outcomes = read_group(run, "outcomes").isel(prompt=chosen)
    present = outcomes["done"]
    if measure in LABELS:
        present = present & (outcomes["label"] >= 0)
        values = (outcomes["label"] == LABELS.index(measure)).astype("float64")
    elif measure in outcomes and outcomes[measure].dtype.kind == "f":
        values = outcomes[measure].astype("float64")
    else:
        raise GatingError(f"measure={measure!r}: use {choices([*LABELS, 'refusal_score', 'nll'], measure)}.")
    category = read_group(run, "prompts")["category"].values[chosen]
    return values.where(present).assign_coords(category=("prompt", category))


def _sample(values: xr.DataArray, names: Sequence[str], bounded: bool, level: float) -> Sample:
    """The prompts that have a value under all of these conditions."""
    known = values["condition"].values.tolist()
    if absent := [name for name in names if name not in known]:
        raise GatingError(f"{absent[0]!r} is not a condition of this run: use {choices(known, absent[0])}.")
    rows = values.sel(condition=list(names)).transpose("prompt", "condition").values
    whole = np.isfinite(rows).all(axis=1)
    return Sample(rows[whole], values["category"].values[whole], bounded, level)


def _effect(sample: Sample, weights: np.ndarray) -> Interval:
    """A contrast's mean over prompts, with its interval; NaN below two prompts."""
    if len(sample.values) < 2:
        return np.nan, np.nan, np.nan
    bound = abs(weights).sum() / 2 if sample.bounded else None
    mean = stats.mean_of(sample.values @ weights, sample.category, bound)
    return (mean.estimate, *mean.interval(sample.level))


def _share(sample: Sample, weights: np.ndarray, total: np.ndarray) -> Interval:
    """A part of the total with Fieller's interval: the shares for which what is left, part - share x total, has an
    interval that holds 0. NaN where the total's own holds it, or where it is no more than rounding."""
    whole, low, high = _effect(sample, total)
    least = NEGLIGIBLE * max(1.0, float(abs(sample.values).max(initial=0)))
    if not (low > 0 or high < 0) or abs(whole) < least:  # nor for NaN
        return np.nan, np.nan, np.nan

    def refuted(share: float) -> bool:
        _, low, high = _effect(sample, weights - share * total)
        return not low <= 0 <= high

    share = float((sample.values @ weights).mean()) / whole + 0.0
    return share, stats.edge(refuted, share, -1.0), stats.edge(refuted, share, 1.0)
