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

from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.reading import asked, read_group
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS

# Weights on baseline, persona, held, given.
EFFECTS = {"total": (-1, 1, 0, 0), "direct": (-1, 0, 1, 0), "indirect": (-1, 0, 0, 1), "interaction": (1, 1, -1, -1)}
SHARES = {"share_held": (0, 1, -1, 0), "share_given": (-1, 0, 0, 1)}  # of the total


class Route(NamedTuple):
    """Conditions of a run that make a mediation: Y(1, 1), Y(1, 0) and Y(0, 1), and Y(1, 0) with the mediator held at
    one block alone."""

    mediator: str  # direction
    persona: str
    held: str
    given: str
    at: dict[int, str]  # by block


def mediation(
    run: xr.DataTree,
    persona: str,
    held: str,
    given: str,
    measure: str = "refusal",
    harmful: bool = True,
    level: float = 0.95,
) -> xr.Dataset:
    """Total, direct and indirect effect along `effect`, with intervals over prompts: estimate, low, high; n.

    persona, held, given: conditions with Y(1, 1), Y(1, 0) and Y(0, 1); Y(0, 0) is the baseline. measure: a label, of
    which it is the rate, or a number of /outcomes such as refusal_score (nats). A prompt counts where all four are
    there. Shares are NaN where the total's interval holds 0: there is nothing to mediate. Raises GatingError for a
    condition or a measure that the run does not have.
    """
    values, category = _values(run, measure, harmful)
    names = values["condition"].values.tolist()
    for name in (persona, held, given):
        if name not in names:
            raise GatingError(f"{name!r} is not a condition of this run: use {choices(names, name)}.")
    four = values.sel(condition=["baseline", persona, held, given]).transpose("prompt", "condition").values
    whole = np.isfinite(four).all(axis=1)
    four, category, bounded = four[whole], category[whole], measure in LABELS
    missing = (np.nan, np.nan, np.nan)
    rows = [missing] * (len(EFFECTS) + len(SHARES))
    if len(four) >= 2:
        rows = [_effect(four, np.array(w), category, bounded, level) for w in EFFECTS.values()]
        _, low, high = rows[0]
        there = low > 0 or high < 0  # False for NaN
        rows += [_share(four, np.array(w), category, bounded, level) if there else missing for w in SHARES.values()]
    columns = {
        name: ("effect", column) for name, column in zip(("estimate", "low", "high"), np.array(rows).T, strict=True)
    }
    return xr.Dataset(
        {**columns, "n": len(four)},
        coords={"effect": [*EFFECTS, *SHARES]},
        attrs={"persona": persona, "held": held, "given": given, "measure": measure, "level": level},
    )


def routes(run: xr.DataTree) -> list[Route]:
    """The mediations that a run's conditions make: what leads a direction's projection to that of another condition
    (given), and that condition with the same direction at the same blocks led to the unsteered row's (held)."""
    conditions = read_group(run, "conditions")
    conditions = conditions.isel(condition=conditions["kind"].values != "random")
    done = {
        str(c["condition"].item()): (str(c["system"].item()), _interventions(c))
        for _, c in conditions.groupby("condition")
    }
    found = []
    for given, (_, (*others, last)) in ((name, c) for name, c in done.items() if c[1]):
        persona = last["iv_reference"]
        if others or persona not in done:
            continue
        system, before = done[persona]
        own = {**last, "iv_reference": "own"}
        led = {
            n: after[-1] for n, (s, after) in done.items() if s == system and after[:-1] == before and after != before
        }
        held = next((name for name, iv in led.items() if iv == own), None)
        at = {
            int(iv["iv_layers"]): n
            for n, iv in led.items()
            if iv == {**own, "iv_layers": iv["iv_layers"]} and iv["iv_layers"].isdigit()
        }
        if held:
            found.append(Route(last["iv_direction"], persona, held, given, dict(sorted(at.items()))))
    return found


def _interventions(condition: xr.Dataset) -> list[dict[str, str]]:
    """A condition's interventions in order, each as its settings in text."""
    condition = condition.squeeze("condition")
    fields = [str(v) for v in condition if str(v).startswith("iv_") and condition[v].dims == ("intervention",)]
    columns = {field: condition[field].values.tolist() for field in fields}
    return [{f: str(columns[f][i]) for f in fields} for i, op in enumerate(columns["iv_op"]) if op]


def _effect(
    four: np.ndarray, weights: np.ndarray, category: np.ndarray, bounded: bool, level: float
) -> tuple[float, float, float]:
    mean = stats.mean_of(four @ weights, category, abs(weights).sum() / 2 if bounded else None)
    return (mean.estimate, *mean.interval(level))


def _share(
    four: np.ndarray, weights: np.ndarray, category: np.ndarray, bounded: bool, level: float
) -> tuple[float, float, float]:
    """A part of the total with Fieller's interval: the shares for which what is left, part - share x total, has an
    interval that holds 0."""
    total = np.array(EFFECTS["total"])

    def refuted(share: float) -> bool:
        left = weights - share * total
        low, high = _effect(four, left, category, bounded, level)[1:]
        return not low <= 0 <= high

    estimate = float((four @ weights).mean() / (four @ total).mean())
    return estimate, stats.edge(refuted, estimate, -1.0), stats.edge(refuted, estimate, 1.0)


def _values(run: xr.DataTree, measure: str, harmful: bool) -> tuple[xr.DataArray, np.ndarray]:
    """The measure [condition, prompt], NaN where it is missing, and each prompt's category [prompt]."""
    chosen = asked(run, harmful)
    outcomes = read_group(run, "outcomes").isel(prompt=chosen)
    category = read_group(run, "prompts")["category"].values[chosen]
    there = outcomes["done"] & (outcomes["label"] >= 0)
    if measure in LABELS:
        return (outcomes["label"] == LABELS.index(measure)).astype("float64").where(there), category
    if measure not in outcomes or outcomes[measure].dtype.kind != "f":
        raise GatingError(f"measure={measure!r}: use {choices([*LABELS, 'refusal_score', 'nll'], measure)}.")
    return outcomes[measure].where(there), category
