"""The figures of sentences: each has a name, comes from a store, and is put into a text by that name.

A text (docs/templates/*.md) holds `{RUN/CONDITION/PROMPTS/MEASURE}`, such as `{smollm-paper/mp_only/harmful/refusal}`:
a label's rate or `difference`, the paired change of refusal to the baseline; or `{RUN/claims/NAME}`, a verdict. After a
colon stands how it is said: `share`, `k` (10 of 64), `n`, `points`; without one, with its interval. What the texts name
is kept in docs/results.json, from which a test makes the sentences again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis import claims
from gating.analysis.wording import MISSING, percent, signed
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS
from gating.reporting.rows import drawn, own_claims, place, rows

PLACE = re.compile(r"\{([^{}\s]+/[^{}\s]+?)(?::(share|k|n|points))?\}")  # a condition's name may hold a colon


class Fact(TypedDict):
    """One figure of a run. Shares are 0 to 1, differences -1 to 1; None where it is missing or has no such number."""

    kind: str  # rate; spread (mean, least and largest over random directions); difference; verdict
    value: float | str | None
    low: float | None
    high: float | None
    k: int | None  # answers with the label
    n: int  # answers, or pairs; random directions of a spread
    run: str  # its key
    commit: str
    judge: str


def facts(runs: Mapping[str, xr.DataTree]) -> dict[str, Fact]:
    """Every figure of some runs, each under its run's name."""
    return {f"{name}/{what}": fact for name, run in runs.items() for what, fact in _of_run(run).items()}


def run_name(run: xr.DataTree) -> str:
    """`smollm-paper`: the model and the experiment."""
    experiment = json.loads(run.attrs["choices"]).get("experiment") or "run"
    return re.sub(r"[^\w.-]+", "-", f"{run.attrs['model_id']}-{experiment}")


def _of_run(run: xr.DataTree) -> dict[str, Fact]:
    out: dict[str, Fact] = {}
    about = {"run": str(run.attrs["key"]), "commit": str(run.attrs["git_revision"]), "judge": str(run.attrs["judge"])}
    for word, harmful in (("harmful", True), ("harmless", False)):
        if not analysis.asked(run, harmful).any():
            continue
        rates, effects = analysis.rates(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
        for name in rates["condition"].values.tolist():
            at = f"{name}/{word}"
            for label in LABELS:
                r = rates.sel(condition=name, label=label)
                out[f"{at}/{label}"] = _fact("rate", r["rate"], r["low"], r["high"], int(r["k"]), int(r["n"]), about)
            e = effects.sel(condition=name)
            if name != "baseline":
                values = (e["difference"], e["low"], e["high"])
                out[f"{at}/difference"] = _fact("difference", *values, None, int(e["n"]), about)
        for stem, shares in _spreads(run, harmful).items():
            spread = (np.mean(shares), np.min(shares), np.max(shares))
            out[f"{stem}/{word}/refusal"] = _fact("spread", *spread, None, len(shares), about)
    if family := own_claims(run):
        decided = claims.evaluate(run, family)
        for name in decided["claim"].values.tolist():
            c = decided.sel(claim=name)
            fact = _fact("verdict", c["estimate"], c["low"], c["high"], None, int(c["n"]), about)
            out[f"claims/{name}"] = {**fact, "value": str(c["verdict"].item())}
    return out


def _spreads(run: xr.DataTree, harmful: bool) -> dict[str, list[float]]:
    """Refusal rates of the random directions of each place, by the name that they share."""
    out: dict[str, list[float]] = {}
    for row in rows(run, harmful):
        if place(row)[1] and not np.isnan(row["shares"]["refusal"]):
            out.setdefault(f"{row['family']}-{drawn(row)}", []).append(row["shares"]["refusal"])
    return out


def _fact(kind: str, value: object, low: object, high: object, k: int | None, n: int, about: Mapping[str, str]) -> Fact:
    numbers = (float(np.asarray(x)) for x in (value, low, high))
    v, a, b = (None if np.isnan(x) else round(x, 6) for x in numbers)
    return {"kind": kind, "value": v, "low": a, "high": b, "k": k, "n": n, **about}  # type: ignore[typeddict-item]


def named_in(text: str) -> list[str]:
    """The names of the figures that a text asks for."""
    return [m[1] for m in PLACE.finditer(text)]


def rendered(text: str, known: Mapping[str, Fact], where: str = "the text") -> str:
    """The text with its figures in it. Raises GatingError naming a figure that no run has, or a way to say it that does
    not fit."""

    def said(m: re.Match[str]) -> str:
        if m[1] not in known:
            raise GatingError(f"{where}: {m[0]} names a figure that no run given has: use {choices(known, m[1])}.")
        return shown(known[m[1]], m[2] or "", f"{where}: {m[0]}")

    return PLACE.sub(said, text)


def shown(fact: Fact, how: str, where: str = "") -> str:
    """A figure as it stands in a sentence. Raises GatingError, after `where`, for a way that its kind does not have."""
    value = fact["value"]
    ways = {"rate": ("", "share", "k", "n"), "spread": ("", "share", "n"), "difference": ("", "points", "n")}
    allowed = ways.get(fact["kind"], ("", "n"))
    if how not in allowed:
        raise GatingError(f"{where}: a {fact['kind']} is not said as {how!r}: use {choices(allowed, how)}.")
    if how == "n" or isinstance(value, str):
        return str(fact["n"]) if how == "n" else str(value)
    if value is None:
        return MISSING
    if how == "k":
        return f"{fact['k']} of {fact['n']}"
    if how in ("share", "points"):
        return signed(value) if how == "points" else percent(value)
    low, high = (np.nan if x is None else x for x in (fact["low"], fact["high"]))
    if fact["kind"] == "difference":
        return f"{signed(value)} [{signed(low)}, {signed(high)}]"
    if fact["kind"] == "spread":
        return f"{100 * value:.0f}% ({100 * low:.0f} to {100 * high:.0f})"
    return f"{percent(value)} [{100 * low:.0f}, {100 * high:.0f}]"


def to_json(known: Mapping[str, Fact], texts: Sequence[str]) -> str:
    """The figures that the texts name, as a document with a figure a line."""
    names = sorted({name for text in texts for name in named_in(text)})
    lines = [f" {json.dumps(name)}: {json.dumps(known[name], ensure_ascii=False)}" for name in names]
    return "{\n" + ",\n".join(lines) + "\n}\n"
