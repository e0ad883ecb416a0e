"""A run's numbers as text: a row for each condition, and a row for each claim."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis.claims import Family
from gating.analysis.wording import MISSING, interval, p_value, percent, plus_minus, points, share_range
from gating.judging import OWN
from gating.judging.labels import LABELS

FOLD = 5  # random controls of a place: more of them share a row


class Row(TypedDict):
    """What a table shows of a condition. Text is empty where a column does not apply."""

    name: str
    family: str  # shared with its controls and the other points of its axes
    point: str  # its place on the axes, `coef=2`
    paper: str  # the paper's label, `C1`
    kind: str
    draw: str  # how a random control was drawn
    grid: int
    n: int
    refusal: str  # each label's rate with its interval
    compliance: str
    evasive: str
    degenerate: str
    rates: dict[str, str]  # by label, without intervals
    shares: dict[str, float]
    difference: str
    p: str
    p_holm: str
    score: str
    change: str
    removed: str
    kl: str


def shown(row: Row) -> str:
    """A row's name after the paper's label."""
    return f"{row['paper']} {row['name']}".strip()


def headline_set(run: xr.DataTree) -> bool:
    """Which prompts the headline counts: the harmful ones where there are any, else the harmless ones."""
    return bool(analysis.asked(run, True).any())


def rows(run: xr.DataTree, harmful: bool | None, digits: int = 0) -> list[Row]:
    """A row for each condition: n, rates with intervals, the paired difference to the baseline, p and p adjusted for
    all conditions (Holm), the mean first-token score in nats, strengths."""
    rates, effects = analysis.rates(run, harmful=harmful), analysis.contrast(run, harmful=harmful, holm=True)
    asked = analysis.asked(run, harmful)
    score = analysis.read_group(run, "outcomes")["refusal_score"].isel(prompt=asked).mean("prompt")
    columns = {
        "score": {name: float(score.sel(condition=name)) for name in rates["condition"].values.tolist()},
        "change": _strength(run, "change", None),
        "removed": _strength(run, "removed", None),
        "kl": _strength(run, "kl", analysis.undisturbed(run)),
    }
    return [
        _row(
            name,
            rates.sel(condition=name),
            effects.sel(condition=name),
            {k: v.get(name) for k, v in columns.items()},
            digits,
        )
        for name in columns["score"]
    ]


def _row(name: str, rates: xr.Dataset, effect: xr.Dataset, means: Mapping[str, float | None], digits: int) -> Row:
    """A condition's row. rates: along `label`; means: its mean score and strengths, None where the run kept none."""
    by_label = {label: rates.sel(label=label) for label in LABELS}
    text = {label: interval(rate, digits) for label, rate in by_label.items()}
    contrasted = name != "baseline"
    score, change, removed, kl = (means[k] for k in ("score", "change", "removed", "kl"))
    return {
        "name": name,
        "family": str(rates["family"].item()),
        "point": str(rates["point"].item()),
        "paper": str(rates["paper"].item()) if "paper" in rates.coords else "",
        "kind": str(rates["kind"].item()),
        "draw": str(rates["draw"].item()),
        "grid": int(rates["grid"]),
        "n": int(by_label["refusal"]["n"]),
        "refusal": text["refusal"],
        "compliance": text["compliance"],
        "evasive": text["evasive"],
        "degenerate": text["degenerate"],
        "rates": {label: percent(rate["rate"], digits) for label, rate in by_label.items()},
        "shares": {label: float(rate["rate"]) for label, rate in by_label.items()},
        "difference": points(effect, digits) if contrasted else "",
        "p": p_value(float(effect["p"])) if contrasted else "",
        "p_holm": p_value(float(effect["p_holm"])) if contrasted else "",
        "score": MISSING if score is None or np.isnan(score) else f"{score:.2f}",
        "change": "" if change is None else f"{change:.2f}",
        "removed": "" if removed is None else f"{removed:.3g}",
        "kl": "" if kl is None else f"{kl:.2f}",
    }


def _strength(run: xr.DataTree, name: str, harmful: bool | None) -> dict[str, float]:
    """A strength of each condition that has it: `change`, `removed` or `kl`."""
    strengths = analysis.strengths(run, harmful)
    return strengths[name].to_series().dropna().to_dict() if name in strengths else {}


def folded(lines: Sequence[Row], most: int = FOLD) -> list[Row]:
    """The rows with the random controls of a place in a single row, where they are more than `most`: how many, and the
    range of their rates. lines: from `rows`."""
    out: list[Row] = []
    for _, together in itertools.groupby(lines, place):
        members = list(together)
        fold = members[0]["kind"] == "random" and len(members) > most
        out += [_folded(members)] if fold else members
    return out


def _folded(controls: Sequence[Row]) -> Row:
    first = controls[0]
    point = f"[{first['point']}]" if first["point"] else ""
    ranges = {label: share_range([r["shares"][label] for r in controls]) for label in LABELS}
    return {
        **first,
        "name": f"{first['family']}-{drawn(first)} ({len(controls)} directions){point}",
        "refusal": ranges["refusal"],
        "compliance": ranges["compliance"],
        "evasive": ranges["evasive"],
        "degenerate": ranges["degenerate"],
        "rates": ranges,
        "difference": "",
        "p": "",
        "p_holm": "",
        "score": "",
        "change": "",
        "removed": _spread([r["removed"] for r in controls]),
        "kl": "",
    }


def _spread(numbers: Sequence[str]) -> str:
    """The smallest and the largest of the numbers that are there."""
    known = sorted((n for n in numbers if n), key=float)
    return f"{known[0]} to {known[-1]}" if known else ""


def place(row: Row) -> tuple[int, str]:
    """A row's place in the grid, and the name that the random controls there share (empty for other conditions)."""
    return row["grid"], f"{row['family']}-{drawn(row)}" if row["kind"] == "random" else ""


def drawn(row: Row) -> str:
    """The word for how a random control was drawn, as in the names of conditions."""
    return "random" if row["draw"] == "isotropic" else row["draw"]


def own_claims(run: xr.DataTree) -> Family | None:
    """The family of claims that the run was begun with."""
    return json.loads(run.attrs.get("claims", "null")) or None


def registered(decided: xr.Dataset) -> str:
    """Which claims and which code a verdict is of, in words. decided: from `claims.evaluate`."""
    attrs = decided.attrs
    when = "kept with the run from its start" if attrs["registered"] else "not what the run was begun with"
    labels = "" if attrs["labels_of"] == OWN else f"; labels of {attrs['labels_of']}"
    return f"claims {attrs['digest']}, {when}; code {attrs['code'] or 'not known'}{labels}"


class Verdict(TypedDict):
    """What a table shows of a claim: a contrast of labels in points, that of a measure in its own units."""

    name: str
    says: str
    test: str
    n: str
    k: str  # random directions; empty where the test has none
    contrast: str
    unit: str
    margin: str
    bootstrap: str
    p: str
    verdict: str
    reason: str
    caution: str  # what a reader has to know beside any verdict
    needs: str  # what the claim stands or falls with, in the words of its family
    paper: str  # what was reported elsewhere


def verdict_rows(decided: xr.Dataset, family: Family) -> list[Verdict]:
    """A row for each claim. decided: from `claims.evaluate`."""
    return [
        _verdict(decided.sel(claim=name), name, family["claims"][name].get("measure", ""))
        for name in decided["claim"].values.tolist()
    ]


def _verdict(claim: xr.Dataset, name: str, measure: str) -> Verdict:
    scale, digits = (1, 2) if measure else (100, 0)
    estimate, low, high, least, most = (
        plus_minus(scale * float(claim[k]), digits) for k in ("estimate", "low", "high", "boot_low", "boot_high")
    )
    n, test = int(claim["n"]), str(claim["test"].item())
    level = " at 90%" if test == "equivalence" else ""  # the interval that TOST inverts
    return {
        "name": name,
        "says": str(claim["says"].item()),
        "test": test,
        "n": str(n),
        "k": str(int(claim["k"]) or ""),
        "contrast": f"{estimate} [{low}, {high}]{level}" if n else MISSING,
        "unit": measure or "points",
        "margin": f"{scale * float(claim['margin']):g}",
        "bootstrap": f"[{least}, {most}]" if np.isfinite(float(claim["boot_low"])) else "",
        "p": p_value(float(claim["p_holm"])),
        "verdict": str(claim["verdict"].item()),
        "reason": str(claim["reason"].item()),
        "caution": str(claim["caution"].item()),
        "needs": str(claim["needs"].item()),
        "paper": str(claim["paper"].item()),
    }
