"""Claims as data: what a run is to decide is written down before it (conf/claims/), and evaluated from its tree alone.

A claim is a contrast of conditions on the same prompts, d_i = sum over `plus` - sum over `minus` of prompt i's
indicator (what a pattern names counts as its mean), a test and a margin:

    difference   the mean of d lies beyond the margin: below -margin or above +margin, as `expect` says
    equivalence  it lies within (-margin, margin): TOST
    permutation  it is more extreme than under the random directions of `null`, each in the place of `plus`, and its own
                 interval lies beyond the margin too: one prompt among nulls at zero proves nothing

Only prompts with a label (or a value of the measure) under every condition of a claim count. p values are adjusted over
the family (Holm 1979); permutation tests form a family of their own, since K directions cannot give a p below 1/(K + 1)
however clear the effect. A claim whose premises (`requires`) are not supported is not testable, whatever its numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr
import yaml

from gating.analysis import stats
from gating.analysis.claim_conditions import Kinds, members, weights
from gating.analysis.claim_files import PROMPTS, Claim, Family, check, check_conditions, digest, load
from gating.analysis.judges import with_judge
from gating.analysis.reading import asked, read_group
from gating.analysis.verdicts import Evidence, decide, testable
from gating.errors import GatingError
from gating.judging import OWN
from gating.judging.labels import LABELS

__all__ = [
    "Claim",
    "Contrast",
    "Family",
    "check",
    "check_conditions",
    "contrast_of",
    "digest",
    "evaluate",
    "evaluate_many",
    "load",
    "to_json",
]

ALPHA = 0.05
GARBLED = 0.1  # share of degenerate or unsure answers from which a verdict is told with it


def evaluate(run: xr.DataTree, family: Family, judge: str | None = None) -> xr.Dataset:
    """Every claim of a family on one run, along `claim`: estimate, low, high, boot_low, boot_high (bootstrap over
    categories), p, p_holm, n, n_clusters, k (random directions), margin, verdict, n_to_decide, reason, says, test,
    paper.

    Intervals are two-sided at 1 - alpha, for equivalence at 1 - 2 alpha (the interval that TOST inverts). `supported`:
    the claim's null is rejected after Holm; `refuted`: the opposite is shown (the contrast lies short of the margin, or
    outside it), also after Holm over the family; `undecided`: neither, with the n that would decide it; `not testable`:
    a premise does not hold; `missing`: the run has no such condition, or no prompt with a label under all of them.
    """
    return evaluate_many({"run": run}, {"run": family}, judge)["run"]


def evaluate_many(
    runs: Mapping[str, xr.DataTree], families: Mapping[str, Family], judge: str | None = None
) -> dict[str, xr.Dataset]:
    """Each run's own family, with p values adjusted over all claims of all runs together. judge: whose labels, as in
    `refusal_rate`."""
    runs = {name: with_judge(run, judge) for name, run in runs.items()}
    asked_of = [(name, claim) for name in runs for claim in families[name]["claims"].values()]
    evidence = _adjusted([_weigh(runs[name], claim, _alpha(families[name])) for name, claim in asked_of])
    return {
        name: _decided(
            [e for e, (owner, _) in zip(evidence, asked_of, strict=True) if owner == name],
            families[name],
            _untested_sites(runs[name], families[name]),
        ).assign_attrs(_provenance(runs[name], families[name]))
        for name in runs
    }


def _provenance(run: xr.DataTree, family: Family) -> dict[str, object]:
    """The digests of the family and of the code that made the run, whether the run was begun with this family, and
    whose labels were counted."""
    own = digest(family)
    registered = run.attrs.get("claims_digest") == own
    return {
        "digest": own,
        "registered": registered,
        "code": run.attrs.get("code", ""),
        "labels_of": run.attrs.get("labels_of", OWN),
    }


def _alpha(family: Family) -> float:
    return float(family.get("alpha", ALPHA))


def _values(run: xr.DataTree, claim: Claim) -> tuple[xr.DataArray, np.ndarray]:
    """What is contrasted, [condition, prompt] with NaN where missing, and each prompt's category [prompt]."""
    outcomes = read_group(run, "outcomes")
    chosen = asked(run, PROMPTS[claim.get("prompts", "harmful")])
    present = outcomes["done"]
    if claim.get("measure"):  # needs no label: an answer of one token has none
        values = outcomes[claim["measure"]]
    else:
        present = present & (outcomes["label"] >= 0)
        values = (outcomes["label"] == LABELS.index(claim.get("label", "refusal"))).astype("float64")
    return values.where(present).isel(prompt=chosen), read_group(run, "prompts")["category"].values[chosen]


class Contrast(NamedTuple):
    """A claim's conditions on the prompts that have a value under all of them."""

    values: xr.DataArray  # [condition, prompt]
    category: np.ndarray  # [prompt]
    weight: dict[str, float]  # of each condition in the contrast
    null: list[str]  # conditions that hold a random direction
    bound: float | None  # the largest size of a difference; None for a measure

    def differences(self) -> xr.DataArray:
        """d [prompt]: plus minus minus, what a pattern names as its mean."""
        weight = xr.DataArray(list(self.weight.values()), dims="condition")
        return (self.values.sel(condition=list(self.weight)) * weight).sum("condition")

    def mean(self) -> stats.Mean:
        return stats.mean_of(self.differences().values, self.category, self.bound)


def contrast_of(run: xr.DataTree, claim: Claim, judge: str | None = None) -> Contrast:
    """What a claim contrasts. Raises GatingError where the run has no such condition, or fewer than two prompts."""
    values, category = _values(with_judge(run, judge), claim)
    kinds = _kinds(run)
    weight = weights(claim["plus"], claim["minus"], kinds)
    null = dict.fromkeys(n for entry in claim.get("null", []) for n in members(entry, kinds))
    asked_of = [n for n in null if values.sel(condition=n).notnull().any()]
    counted = values.sel(condition=[*weight, *asked_of]).notnull().all("condition").values
    if counted.sum() < 2:
        raise GatingError("fewer than two prompts have an answer under every condition")
    bound = None if claim.get("measure") else sum(abs(w) for w in weight.values()) / 2
    return Contrast(values.isel(prompt=counted), category[counted], weight, asked_of, bound)


def _weigh(run: xr.DataTree, claim: Claim, alpha: float) -> Evidence:
    """A claim on a run, before its family is adjusted."""
    evidence = Evidence(claim["test"], margin=float(claim.get("margin", 0.0)))
    try:
        contrast = contrast_of(run, claim)
    except GatingError as e:
        return replace(evidence, reason=str(e))
    mean = contrast.mean()
    level = 1 - 2 * alpha if claim["test"] == "equivalence" else 1 - alpha
    low, high = mean.interval(level)
    boot_low, boot_high = stats.bootstrap_mean(contrast.differences().values, contrast.category, level)
    evidence = replace(
        evidence, estimate=mean.estimate, low=low, high=high, boot_low=boot_low, boot_high=boot_high,
        n=mean.n, n_clusters=mean.clusters, caution=_caution(run, claim, list(contrast.weight)),
    )  # fmt: skip
    if claim["test"] == "permutation":
        return _permuted(evidence, claim, contrast, _kinds(run))
    return _tested(evidence, claim, mean)


def _kinds(run: xr.DataTree) -> Kinds:
    conditions = read_group(run, "conditions")
    return dict(zip(conditions["condition"].values.tolist(), conditions["kind"].values.tolist(), strict=True))


def _caution(run: xr.DataTree, claim: Claim, names: Sequence[str]) -> str:
    """What weakens any verdict: answers that are garbled or that the judge is unsure of, a run that is half done."""
    outcomes = read_group(run, "outcomes").sel(condition=names)
    outcomes = outcomes.isel(prompt=asked(run, PROMPTS[claim.get("prompts", "harmful")]))
    done = outcomes["done"]
    said = []
    for label in ("degenerate", "unsure"):
        share = ((outcomes["label"] == LABELS.index(label)) & done).sum("prompt") / done.sum("prompt").clip(1)
        worst = max(names, key=lambda n: float(share.sel(condition=n)))
        if claim.get("label") != label and float(share.sel(condition=worst)) >= GARBLED:
            said.append(f"{float(share.sel(condition=worst)):.0%} of the answers under {worst} are {label}")
    ready, total = int(done.all("condition").sum()), done.sizes["prompt"]
    if ready < total:
        said.append(f"half done: {ready} of {total} prompts, the shortest first, which is no fair sample")
    return "; ".join(said)


def _untested_sites(run: xr.DataTree, family: Family) -> str:
    """Why claims on the model's sites cannot be tested; empty where they can."""
    if not family.get("sites"):
        return ""
    config = yaml.safe_load(str(run.attrs.get("config", ""))) or {}
    if ((config.get("model") or {}).get("sites") or {}).get("chosen"):
        return ""
    return "blocks and doses were never chosen on this model: python -m gating.choose model=NAME does it"


def _tested(evidence: Evidence, claim: Claim, mean: stats.Mean) -> Evidence:
    """With p of a difference or an equivalence, and of its opposite."""
    margin = evidence.margin
    if claim["test"] == "equivalence":
        p, against = mean.p_within(margin), min(mean.p_above(margin), mean.p_below(-margin))
        distance = margin - abs(mean.estimate)
    else:
        line = -margin if claim["expect"] == "below" else margin
        below, above = mean.p_below(line), mean.p_above(line)
        p, against = (below, above) if claim["expect"] == "below" else (above, below)
        distance = mean.estimate - line
    return replace(evidence, p=p, p_against=against, sd=mean.sd, distance=distance)


def _permuted(evidence: Evidence, claim: Claim, contrast: Contrast, kinds: Kinds) -> Evidence:
    """With p among random directions in the place of `plus`: each condition of the null minus the same `minus`, on the
    same prompts. There is no p against: a null that fails to be exceeded proves nothing."""
    drawn, values = contrast.null, contrast.values
    if not drawn:
        return replace(evidence, reason="no random direction of the null has an answer")
    base = sum(-w * values.sel(condition=c, drop=True) for c, w in weights([], claim["minus"], kinds).items())
    null = (values.sel(condition=drawn) - base).mean("prompt").values
    sign = -1.0 if claim["expect"] == "below" else 1.0
    scale, digits, unit = (1, 2, claim["measure"]) if claim.get("measure") else (100, 0, "points")
    reason = (
        f"{len(drawn)} random directions: {scale * null.min():+.{digits}f} to {scale * null.max():+.{digits}f} {unit}, "
        f"p at least {1 / (len(drawn) + 1):.2g}"
    )
    nearest = evidence.low if claim["expect"] == "above" else -evidence.high
    p = stats.permutation_p(sign * evidence.estimate, sign * null)
    return replace(evidence, k=len(drawn), p=p, reason=reason, clears=bool(nearest > evidence.margin))


def _adjusted(evidence: Sequence[Evidence]) -> list[Evidence]:
    """With p values adjusted over the family; permutation tests are a family of their own."""
    out = list(evidence)
    for permutation in (False, True):
        members = [i for i, e in enumerate(out) if (e.test == "permutation") is permutation]
        p, against = stats.holm([out[i].p for i in members]), stats.holm([out[i].p_against for i in members])
        for place, i in enumerate(members):
            out[i] = replace(out[i], p_holm=float(p[place]), p_against_holm=float(against[place]))
    return out


def _decided(evidence: Sequence[Evidence], family: Family, untestable: str) -> xr.Dataset:
    alpha, claims = _alpha(family), list(family["claims"].values())
    tested = sum(math.isfinite(e.p) and e.test != "permutation" for e in evidence)
    decisions = dict(zip(family["claims"], (decide(e, alpha, tested) for e in evidence), strict=True))
    decisions = {name: testable(name, family, decisions, untestable) for name in decisions}
    numbers = ("estimate", "low", "high", "boot_low", "boot_high", "p", "p_holm", "margin")
    columns = {k: np.array([getattr(e, k) for e in evidence], dtype="float64") for k in numbers}
    columns["n_to_decide"] = np.array([d.n_to_decide for d in decisions.values()])
    columns |= {k: np.array([getattr(e, k) for e in evidence], dtype="int64") for k in ("n", "n_clusters", "k")}
    columns |= {k: np.array([getattr(d, k) for d in decisions.values()]) for k in ("verdict", "reason")}
    columns["caution"] = np.array([e.caution for e in evidence])
    columns |= {k: np.array([str(c.get(k, "")) for c in claims]) for k in ("says", "test", "paper", "needs")}
    return xr.Dataset(
        {k: ("claim", v) for k, v in columns.items()},
        coords={"claim": np.array(list(family["claims"]))},
        attrs={"family": family["family"], "alpha": alpha, "adjusted": "Holm"},
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
