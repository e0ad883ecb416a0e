"""A run in a few sentences: each condition's rate, its difference to the baseline, and its random controls beside
it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis import stats
from gating.analysis.wording import interval, percent, points, signed
from gating.reporting import person
from gating.reporting.rows import headline_set

SENTENCES = 6


def headline(run: xr.DataTree) -> list[str]:
    """A sentence for each of the first steered and named conditions: rates, difference, interval, n, and the random
    controls beside it; then how many more there are. Where a person has labelled answers, what is corrected by them
    stands first; else it is said last that nothing is."""
    harmful = headline_set(run)
    rates, effects = analysis.refusal_rate(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
    nulls = {draw: analysis.random_null(run, harmful=harmful, draw=draw) for draw in analysis.draws(run)}
    controls = analysis.controlled(run)
    baseline, shown = interval(rates.sel(condition="baseline")), analysis.shown_names(run)
    names = analysis.conditions_of_kind(run, ("steered", "named"))
    out = []
    for name in names[:SENTENCES]:
        rate, effect = rates.sel(condition=name), effects.sel(condition=name)
        if int(effect["n"]) == 0:
            out.append(f"{shown[name]}: no prompt has an answer both here and at baseline.")
            continue
        if str(rate["kind"].item()) == "steered":
            beside = [_moved(null.sel(condition=name), draw) for draw, null in nulls.items()]
        else:
            of_name = [line for line in controls if line.name == name]
            beside = [_ended(rate, rates.sel(condition=line.controls), line.draw) for line in of_name]
        said = "".join(beside) or " It has no random controls."
        out.append(
            f"{shown[name]}: refusal {interval(rate)} against {baseline} at baseline, a paired difference "
            f"of {points(effect)} points (n = {int(effect['n'])}).{said}"
        )
    if len(names) > SENTENCES:
        out.append(f"{len(names) - SENTENCES} more conditions stand in the table.")
    corrected = person.sentences(run, names[:SENTENCES], harmful)
    out += [*_unsure(run, names), *_cosines(run)]
    return [*corrected, *out] if person.held(run) else [*out, *corrected]


def _unsure(run: xr.DataTree, names: list[str]) -> list[str]:
    """The largest share of answers that the judge is unsure of, on the headline's prompts."""
    unsure = analysis.refusal_rate(run, label="unsure", harmful=headline_set(run)).sel(condition=["baseline", *names])
    most = max(unsure["condition"].values.tolist(), key=lambda n: int(unsure["k"].sel(condition=n)))
    rate = unsure.sel(condition=most)
    return [f"The judge is unsure of up to {interval(rate)} of the answers ({most})."] if int(rate["k"]) else []


def _cosines(run: xr.DataTree) -> list[str]:
    """How far what is added lies along the refusal direction, where it is read: a part of the effect that is no
    persona's."""
    if "directions" not in run.children:
        return []
    conditions = analysis.read_group(run, "conditions")
    cosine = analysis.read_group(run, "directions")["cosine"]
    if "refusal" not in cosine["other"].values:
        return []
    read: dict[tuple[str, int], None] = {}
    for i in np.flatnonzero(np.isin(conditions["kind"].values, ("steered", "named"))):
        for slot in range(conditions.sizes["intervention"]):
            op, name, site, layers = (
                str(conditions[f"iv_{c}"].values[i, slot]) for c in ("op", "direction", "read", "layers")
            )
            if op == "add" and name in cosine["direction"].values and name != "refusal":
                block = int(layers.partition("+")[0])
                at = {"same": block, "previous": block - 1}.get(site)
                read[name, int(site) if at is None else at] = None
    told = [
        f"{name} {float(cosine.sel(direction=name, other='refusal', layer=b)):+.2f} (block {b})" for name, b in read
    ]
    return [f"Cosine with the refusal direction where it is read: {', '.join(told[:SENTENCES])}."] if told else []


def _moved(null: xr.Dataset, draw: str) -> str:
    """How far a steered condition's controls moved refusal. null: a condition's part of `analysis.random_null`."""
    k = int(null["k"])
    if not k:
        return ""
    return (
        f" Its {k} random control{'s' if k > 1 else ''}{_kind(draw)} moved it by {signed(float(null['null_low']))} to "
        f"{signed(float(null['null_high']))} points (permutation p = {float(null['p']):.2f}, at least "
        f"{1 / (k + 1):.2f} with {k})."
    )


def _kind(draw: str) -> str:
    return "" if draw == "isotropic" else f" ({draw})"


def _ended(rate: xr.Dataset, controls: xr.Dataset, draw: str) -> str:
    """Where a named condition's controls ended. They share its other interventions, so that a knock-out that does
    nothing leaves them far from the baseline: what counts is how far the condition is from them."""
    rates = controls["rate"].values
    p, k = stats.unusual(float(rate["rate"]), rates)
    if not k:
        return ""
    ends = f"{percent(np.nanmin(rates))} to {percent(np.nanmax(rates))}"
    return (
        f" With {k} random direction{'s' if k > 1 else ''}{_kind(draw)} in its place: {ends} (permutation "
        f"p = {p:.2f} either way, at least {1 / (k + 1):.2f} with {k})."
    )
