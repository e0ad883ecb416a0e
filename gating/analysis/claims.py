"""Claims as data: what a run is to decide is written down before it (conf/claims/), and evaluated from its tree alone.

A claim is a contrast of conditions on the same prompts, d_i = sum over `plus` - sum over `minus` of prompt i's
indicator (a pattern that several conditions match is their mean), a test and a margin:

    difference   the mean of d lies beyond the margin: below -margin or above +margin, as `expect` says
    equivalence  it lies within (-margin, margin): TOST
    permutation  it is more extreme than under the random directions of `null`, each in the place of `plus`

Only prompts with a label under every condition of a claim count. p values are adjusted over the family (Holm 1979);
permutation tests form a family of their own, since K directions cannot give a p below 1/(K + 1) however clear the
effect.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.claim_files import PROMPTS, Claim, Family, check, load
from gating.analysis.reading import asked, read_group
from gating.judging.labels import LABELS

__all__ = ["Claim", "Family", "check", "evaluate", "evaluate_many", "load", "to_json"]

ALPHA = 0.05


@dataclass(frozen=True)
class Evidence:
    """What a run says on a claim. Numbers are NaN where the claim's test has none, or where nothing could be tested."""

    test: str
    reason: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    boot_low: float = math.nan  # bootstrap over categories
    boot_high: float = math.nan
    p: float = math.nan  # of the claim's null
    p_against: float = math.nan  # of the opposite claim's null
    p_holm: float = math.nan  # both adjusted, once the family is complete
    p_against_holm: float = math.nan
    sd: float = math.nan  # of one prompt
    distance: float = math.nan  # of the estimate from the margin
    n: int = 0  # prompts
    n_clusters: int = 0
    k: int = 0  # random directions


class Decision(NamedTuple):
    verdict: str  # supported, refuted, undecided or missing
    reason: str
    n_to_decide: float  # prompts, NaN where the claim is not a matter of them


def evaluate(run: xr.DataTree, family: Family) -> xr.Dataset:
    """Every claim of a family on one run, along `claim`: estimate, low, high, boot_low, boot_high (bootstrap over
    categories), p, p_holm, n, n_clusters, k (random directions), margin, verdict, n_to_decide, reason, says, test,
    paper.

    Intervals are two-sided at 1 - alpha, for equivalence at 1 - 2 alpha (the interval that TOST inverts). `supported`:
    the claim's null is rejected after Holm; `refuted`: the opposite is shown (the contrast lies short of the margin, or
    outside it), also after Holm over the family; `undecided`: neither, with the n that would decide it; `missing`: the
    run has no such condition, or no prompt with a label under all of them.
    """
    return evaluate_many({"run": run}, {"run": family})["run"]


def evaluate_many(runs: Mapping[str, xr.DataTree], families: Mapping[str, Family]) -> dict[str, xr.Dataset]:
    """Each run's own family, with p values adjusted over all claims of all runs together."""
    asked_of = [(name, claim) for name in runs for claim in families[name]["claims"].values()]
    evidence = _adjusted([_weigh(runs[name], claim, _alpha(families[name])) for name, claim in asked_of])
    return {
        name: _decided([e for e, (owner, _) in zip(evidence, asked_of, strict=True) if owner == name], families[name])
        for name in runs
    }


def _alpha(family: Family) -> float:
    return float(family.get("alpha", ALPHA))


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    """The conditions that a pattern names: the one called so (names may hold brackets), else those that its wildcards
    fit."""
    return [pattern] if pattern in names else [n for n in names if fnmatch.fnmatchcase(n, pattern)]


def _weights(names: Sequence[str], plus: Sequence[str], minus: Sequence[str]) -> tuple[dict[str, float], str]:
    """Each condition's weight in the contrast, and the first pattern that no condition matches (empty where all do)."""
    out: dict[str, float] = {}
    for patterns, sign in ((plus, 1.0), (minus, -1.0)):
        for pattern in patterns:
            matching = _matches(names, pattern)
            if not matching:
                return {}, pattern
            for name in matching:
                out[name] = out.get(name, 0.0) + sign / len(matching)
    return out, ""


def _values(run: xr.DataTree, claim: Claim) -> tuple[xr.DataArray, np.ndarray]:
    """What is contrasted, [condition, prompt] with NaN where missing, and each prompt's category [prompt]."""
    outcomes = read_group(run, "outcomes")
    chosen = asked(run, PROMPTS[claim.get("prompts", "harmful")])
    present = outcomes["done"] & (outcomes["label"] >= 0)
    if claim.get("measure"):
        values = outcomes[claim["measure"]]
    else:
        values = (outcomes["label"] == LABELS.index(claim.get("label", "refusal"))).astype("float64")
    return values.where(present).isel(prompt=chosen), read_group(run, "prompts")["category"].values[chosen]


def _weigh(run: xr.DataTree, claim: Claim, alpha: float) -> Evidence:
    """A claim on a run, before its family is adjusted."""
    values, category = _values(run, claim)
    evidence = Evidence(claim["test"])
    weights, lacking = _weights(values["condition"].values.tolist(), claim["plus"], claim["minus"])
    if lacking:
        return replace(evidence, reason=f"the run has no condition {lacking!r}")
    weighted = values.sel(condition=list(weights)) * xr.DataArray(list(weights.values()), dims="condition")
    d = weighted.sum("condition", skipna=False).values
    keep = np.isfinite(d)
    if keep.sum() < 2:
        return replace(evidence, reason="fewer than two prompts have an answer under every condition")
    d, category = d[keep], category[keep]
    bound = None if claim.get("measure") else sum(abs(w) for w in weights.values()) / 2
    mean = stats.mean_of(d, category, bound)
    level = 1 - 2 * alpha if claim["test"] == "equivalence" else 1 - alpha
    low, high = mean.interval(level)
    boot_low, boot_high = stats.bootstrap_mean(d, category, level)
    evidence = replace(
        evidence, estimate=mean.estimate, low=low, high=high, boot_low=boot_low, boot_high=boot_high,
        n=mean.n, n_clusters=mean.clusters,
    )  # fmt: skip
    if claim["test"] == "permutation":
        return _permuted(evidence, claim, values, keep)
    return _tested(evidence, claim, mean)


def _tested(evidence: Evidence, claim: Claim, mean: stats.Mean) -> Evidence:
    """With p of a difference or an equivalence, and of its opposite."""
    margin = float(claim.get("margin", 0.0))
    if claim["test"] == "equivalence":
        p, against = mean.p_within(margin), min(mean.p_above(margin), mean.p_below(-margin))
        distance = margin - abs(mean.estimate)
    else:
        line = -margin if claim["expect"] == "below" else margin
        below, above = mean.p_below(line), mean.p_above(line)
        p, against = (below, above) if claim["expect"] == "below" else (above, below)
        distance = mean.estimate - line
    return replace(evidence, p=p, p_against=against, sd=mean.sd, distance=distance)


def _permuted(evidence: Evidence, claim: Claim, values: xr.DataArray, keep: np.ndarray) -> Evidence:
    """With p among random directions in the place of `plus`: each condition of the null minus the same `minus`. There
    is no p against: a null that fails to be exceeded proves nothing."""
    names = values["condition"].values.tolist()
    drawn = dict.fromkeys(n for pattern in claim["null"] for n in _matches(names, pattern))
    minus, _ = _weights(names, [], claim["minus"])
    base = sum(-w * values.sel(condition=c).values for c, w in minus.items())
    null = np.array([np.nanmean((values.sel(condition=n).values - base)[keep]) for n in drawn])
    if not null.size:
        return evidence
    sign = -1.0 if claim["expect"] == "below" else 1.0
    reason = f"random directions: {100 * null.min():+.0f} to {100 * null.max():+.0f} points"
    p = stats.permutation_p(sign * evidence.estimate, sign * null)
    return replace(evidence, k=int(null.size), p=p, reason=reason)


def _adjusted(evidence: Sequence[Evidence]) -> list[Evidence]:
    """With p values adjusted over the family; permutation tests are a family of their own."""
    out = list(evidence)
    for permutation in (False, True):
        members = [i for i, e in enumerate(out) if (e.test == "permutation") is permutation]
        p, against = stats.holm([out[i].p for i in members]), stats.holm([out[i].p_against for i in members])
        for place, i in enumerate(members):
            out[i] = replace(out[i], p_holm=float(p[place]), p_against_holm=float(against[place]))
    return out


def _decided(evidence: Sequence[Evidence], family: Family) -> xr.Dataset:
    alpha, claims = _alpha(family), list(family["claims"].values())
    tested = sum(math.isfinite(e.p) and e.test != "permutation" for e in evidence)
    decisions = [_decide(e, alpha, tested) for e in evidence]
    numbers = ("estimate", "low", "high", "boot_low", "boot_high", "p", "p_holm")
    columns = {k: np.array([getattr(e, k) for e in evidence], dtype="float64") for k in numbers}
    columns["margin"] = np.array([float(c.get("margin", 0.0)) for c in claims])
    columns["n_to_decide"] = np.array([d.n_to_decide for d in decisions])
    columns |= {k: np.array([getattr(e, k) for e in evidence], dtype="int64") for k in ("n", "n_clusters", "k")}
    columns |= {k: np.array([getattr(d, k) for d in decisions]) for k in ("verdict", "reason")}
    columns |= {k: np.array([str(c.get(k, "")) for c in claims]) for k in ("says", "test", "paper")}
    return xr.Dataset(
        {k: ("claim", v) for k, v in columns.items()},
        coords={"claim": np.array(list(family["claims"]))},
        attrs={"family": family["family"], "alpha": alpha, "adjusted": "Holm"},
    )


def _decide(evidence: Evidence, alpha: float, tested: int) -> Decision:
    """tested: the family's claims with a p, which share alpha: the smallest p is held to alpha / tested."""
    n = math.nan
    if not math.isnan(evidence.distance):
        needed = stats.n_to_decide(evidence.sd, evidence.distance, alpha / tested)
        n = needed if math.isnan(needed) else max(needed, evidence.n + 1)  # never fewer than were asked
    if evidence.n == 0:
        return Decision("missing", evidence.reason, n)
    if evidence.p_holm < alpha:
        return Decision("supported", evidence.reason, n)
    if evidence.p_against_holm < alpha:
        return Decision("refuted", evidence.reason, n)
    if evidence.test == "permutation":
        return Decision("undecided", _among_random(evidence, alpha), n)
    if math.isnan(n):
        return Decision("undecided", "every prompt gives the same value, which decides nothing", n)
    return Decision(
        "undecided", f"about {n:.0f} prompts would decide it" if n < 1e6 else "on the margin: no n decides it", n
    )


def _among_random(evidence: Evidence, alpha: float) -> str:
    """Why a permutation test is undecided: something random does as much, or there are too few directions."""
    if evidence.k == 0 or evidence.p * (evidence.k + 1) > 1.5:
        return f"not more extreme than every random direction; {evidence.reason}".removesuffix("; ")
    enough = math.floor(evidence.p_holm / evidence.p / alpha)
    return (
        f"more extreme than all {evidence.k} random directions, which is the least p that they can give: {enough} or "
        f"more would decide it; {evidence.reason}"
    )


def to_json(ds: xr.Dataset) -> str:
    """Claims and verdicts as JSON, missing numbers as null."""

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [
        {"claim": name, **{str(k): plain(v.sel(claim=name).item()) for k, v in ds.data_vars.items()}}
        for name in ds["claim"].values.tolist()
    ]
    return json.dumps({**ds.attrs, "claims": rows}, indent=2, ensure_ascii=False)
