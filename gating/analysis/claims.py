"""Claims as data: what a run is to decide is written down before it (conf/claims/), and evaluated from its tree alone.

A claim is a contrast of conditions on the same prompts, d_i = sum over `plus` - sum over `minus` of prompt i's indicator
(a pattern that several conditions match is their mean), a test and a margin:

    difference   the mean of d lies beyond the margin: below -margin or above +margin, as `expect` says
    equivalence  it lies within (-margin, margin): TOST
    permutation  it is more extreme than under the random directions of `null`, each in the place of `plus`

Only prompts with a label under every condition of a claim count. p values are adjusted over the family (Holm 1979);
permutation tests form a family of their own, since K directions cannot give a p below 1/(K + 1) however clear the effect.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating import analysis
from gating.analysis import stats
from gating.config_files import conf_dir
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS

TESTS = ("difference", "equivalence", "permutation")
EXPECT = ("below", "above")
PROMPTS = {"harmful": True, "harmless": False, "all": None}
KEYS = ("says", "test", "plus", "minus", "null", "expect", "margin", "label", "measure", "prompts", "paper", "needs")
MEASURES = ("refusal_score", "nll", "entropy", "repetition")


def load(name_or_path: str) -> dict[str, Any]:
    """A family from conf/claims/NAME.yaml, or a file of one's own. Raises GatingError where there is none."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        folder = conf_dir() / "claims"
        path = folder / f"{name_or_path}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "none")
            raise GatingError(
                f"claims={name_or_path!r}: use {choices(known, name_or_path)}, or the path of a .yaml file."
            )
    try:
        family = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise GatingError(f"claims: {path} cannot be read ({' '.join(str(e).split())}); mend the file.") from None
    check(family, str(path))
    return family


def check(family: Any, source: str = "claims") -> None:
    """Refuse a family that could not be evaluated. Raises GatingError naming the claim and the key."""
    if not isinstance(family, Mapping) or set(family) - {"family", "alpha", "claims"} or not family.get("family"):
        raise GatingError(f"{source}: a family of claims has the keys family, alpha and claims.")
    alpha = family.get("alpha", 0.05)
    if not isinstance(alpha, float) or not 0 < alpha < 0.5:
        raise GatingError(f"{source}: alpha={alpha!r}: use a level such as 0.05.")
    if not isinstance(family.get("claims"), Mapping) or not family["claims"]:
        raise GatingError(f"{source}: claims must map a name to each claim.")
    for name, claim in family["claims"].items():
        _check_claim(f"{source}: claims.{name}", claim)


def _check_claim(key: str, claim: Any) -> None:
    if not isinstance(claim, Mapping):
        raise GatingError(f"{key} must be a mapping with says, test, plus, minus and margin.")

    def need(field: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise GatingError(f"{key}.{field}={claim.get(field)!r}: use {allowed}.")

    for field in claim:
        need(str(field), field in KEYS, f"one of the keys {choices(KEYS, str(field))}")
    test, margin = claim.get("test"), claim.get("margin", 0.0)
    need("says", isinstance(claim.get("says"), str), "a sentence that says what is claimed")
    need("test", test in TESTS, choices(TESTS, str(test)))
    for field in ("plus", "minus", *(["null"] if test == "permutation" else [])):
        given = claim.get(field)
        need(
            field,
            isinstance(given, list) and bool(given) and all(isinstance(g, str) for g in given),
            "a list of conditions",
        )
    need(
        "expect",
        (claim.get("expect") in EXPECT) is (test != "equivalence"),
        f"{choices(EXPECT)}, for difference and permutation",
    )
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
    limit = math.inf if claim.get("measure") else 1.0
    need("margin", number and -limit < margin < limit, "a number, for rates between -1 and 1 (0.1 is ten points)")
    need("margin", test != "equivalence" or margin > 0, "a positive number for equivalence")
    need("label", claim.get("label", "refusal") in LABELS, choices(LABELS))
    need("measure", claim.get("measure", "refusal_score") in MEASURES, choices(MEASURES))
    need("prompts", claim.get("prompts", "harmful") in PROMPTS, choices(PROMPTS))


def evaluate(run: xr.DataTree, family: Mapping[str, Any]) -> xr.Dataset:
    """Every claim of a family on one run, along `claim`: estimate, low, high, boot_low, boot_high (bootstrap over
    categories), p, p_holm, n, n_clusters, k (random directions), margin, verdict, n_to_decide, reason, says, test, paper.

    Intervals are two-sided at 1 - alpha, for equivalence at 1 - 2 alpha (the interval that TOST inverts). `supported`: the
    claim's null is rejected after Holm; `refuted`: the opposite is shown (the contrast lies short of the margin, or outside
    it), also after Holm over the family; `undecided`: neither, with the n that would decide it; `missing`: the run has no
    such condition, or no prompt with a label under all of them.
    """
    return evaluate_many({"run": run}, {"run": family})["run"]


def evaluate_many(runs: Mapping[str, xr.DataTree], families: Mapping[str, Mapping[str, Any]]) -> dict[str, xr.Dataset]:
    """Each run's own family, with p values adjusted over all claims of all runs together."""
    found = {
        name: [_one(run, claim, _level(families[name])) for claim in families[name]["claims"].values()]
        for name, run in runs.items()
    }
    _adjust([one for each in found.values() for one in each])
    return {name: _decided(each, families[name]) for name, each in found.items()}


def _level(family: Mapping[str, Any]) -> float:
    return float(family.get("alpha", 0.05))


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    """Conditions that a pattern names: itself where there is such a one (names may hold brackets), else by wildcards."""
    return [pattern] if pattern in names else [n for n in names if fnmatch.fnmatchcase(n, pattern)]


def _weights(names: Sequence[str], claim: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Each condition's weight in the contrast, and the first pattern that names none (empty where all do)."""
    out: dict[str, float] = {}
    for field, sign in (("plus", 1.0), ("minus", -1.0)):
        for pattern in claim[field]:
            some = _matches(names, pattern)
            if not some:
                return {}, pattern
            for name in some:
                out[name] = out.get(name, 0.0) + sign / len(some)
    return out, ""


def _values(run: xr.DataTree, claim: Mapping[str, Any]) -> tuple[xr.DataArray, np.ndarray]:
    """What is contrasted, [condition, prompt] with NaN where missing, and each prompt's category."""
    out = analysis.group(run, "outcomes")
    chosen = analysis.asked(run, PROMPTS[claim.get("prompts", "harmful")])
    present = out["done"] & (out["label"] >= 0)
    if claim.get("measure"):
        values = out[claim["measure"]]
    else:
        values = (out["label"] == LABELS.index(claim.get("label", "refusal"))).astype("float64")
    return values.where(present).isel(prompt=chosen), analysis.group(run, "prompts")["category"].values[chosen]


def _one(run: xr.DataTree, claim: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """One claim before the family is adjusted: p is of the claim's null, p_against of the opposite one's."""
    blank = dict.fromkeys(
        ("estimate", "low", "high", "boot_low", "boot_high", "p", "p_against", "n_to_decide"), math.nan
    )
    one: dict[str, Any] = {
        **blank,
        "n": 0,
        "n_clusters": 0,
        "k": 0,
        "reason": "",
        **{k: claim.get(k, "") for k in ("says", "test", "paper")},
    }
    one["margin"] = float(claim.get("margin", 0.0))
    values, category = _values(run, claim)
    names = values["condition"].values.tolist()
    weights, lacking = _weights(names, claim)
    if lacking:
        return {**one, "reason": f"the run has no condition {lacking!r}"}
    per_prompt = values.sel(condition=list(weights))
    d = (per_prompt * xr.DataArray(list(weights.values()), dims="condition")).sum("condition", skipna=False).values
    keep = np.isfinite(d)
    if keep.sum() < 2:
        return {**one, "reason": "fewer than two prompts have an answer under every condition"}
    d, category = d[keep], category[keep]
    bound = None if claim.get("measure") else sum(abs(w) for w in weights.values()) / 2
    mean = stats.mean_of(d, category, bound)
    level = 1 - 2 * alpha if claim["test"] == "equivalence" else 1 - alpha
    one["low"], one["high"] = mean.interval(level)
    one["boot_low"], one["boot_high"] = stats.bootstrap_mean(d, category, level)
    one |= {"estimate": mean.estimate, "n": mean.n, "n_clusters": mean.clusters}
    margin = one["margin"]
    if claim["test"] == "equivalence":
        one["p"] = mean.p_within(margin)
        one["p_against"] = min(mean.p_above(margin), mean.p_below(-margin))
        one |= {"sd": mean.sd, "distance": margin - abs(mean.estimate)}
    elif claim["test"] == "difference":
        line = -margin if claim["expect"] == "below" else margin
        tails = (mean.p_below(line), mean.p_above(line))
        one["p"], one["p_against"] = tails if claim["expect"] == "below" else tails[::-1]
        one |= {"sd": mean.sd, "distance": mean.estimate - line}
    else:
        _permutation(one, claim, values, keep)
    return one


def _permutation(one: dict[str, Any], claim: Mapping[str, Any], values: xr.DataArray, keep: np.ndarray) -> None:
    """p against random directions in the place of `plus`: each null condition minus the same `minus`."""
    names = values["condition"].values.tolist()
    others = [n for pattern in claim["null"] for n in _matches(names, pattern)]
    minus, _ = _weights(names, {"plus": [], "minus": claim["minus"]})
    base = sum(-w * values.sel(condition=c).values for c, w in minus.items())
    null = np.array([np.nanmean((values.sel(condition=n).values - base)[keep]) for n in dict.fromkeys(others)])
    sign = -1.0 if claim["expect"] == "below" else 1.0
    one["k"] = int(null.size)
    if null.size:
        one["p"] = stats.permutation_p(sign * one["estimate"], sign * null)
        one["p_against"] = math.nan  # a null of random directions can fail to be exceeded; it proves nothing then
        one["reason"] = f"random directions: {100 * null.min():+.0f} to {100 * null.max():+.0f} points"


def _adjust(found: Sequence[dict[str, Any]]) -> None:
    for of_permutation in (False, True):
        some = [one for one in found if (one["test"] == "permutation") is of_permutation]
        for name in ("p", "p_against"):
            for one, p in zip(some, stats.holm([one[name] for one in some]), strict=True):
                one[f"{name}_holm"] = float(p)


def _decided(found: list[dict[str, Any]], family: Mapping[str, Any]) -> xr.Dataset:
    alpha = _level(family)
    tested = sum(math.isfinite(one["p"]) and one["test"] != "permutation" for one in found)
    for one in found:
        if "sd" in one:  # at the level that the family leaves to its smallest p, and never fewer than were asked
            needed = stats.n_to_decide(one["sd"], one["distance"], alpha / tested)
            one["n_to_decide"] = needed if math.isnan(needed) else max(needed, one["n"] + 1)
        one["verdict"], one["reason"] = _verdict(one, alpha)
    numbers = ("estimate", "low", "high", "boot_low", "boot_high", "p", "p_holm", "margin", "n_to_decide")
    return xr.Dataset(
        {
            **{k: ("claim", np.array([one[k] for one in found], dtype="float64")) for k in numbers},
            **{k: ("claim", np.array([one[k] for one in found], dtype="int64")) for k in ("n", "n_clusters", "k")},
            **{
                k: ("claim", np.array([str(one[k]) for one in found]))
                for k in ("verdict", "reason", "says", "test", "paper")
            },
        },
        coords={"claim": np.array(list(family["claims"]))},
        attrs={"family": family["family"], "alpha": alpha, "adjusted": "Holm"},
    )


def _verdict(one: Mapping[str, Any], alpha: float) -> tuple[str, str]:
    if one["n"] == 0:
        return "missing", one["reason"]
    if one["p_holm"] < alpha:
        return "supported", one["reason"]
    if one["p_against_holm"] < alpha:
        return "refuted", one["reason"]
    if one["test"] == "permutation":
        if one["k"] == 0 or one["p"] * (one["k"] + 1) > 1.5:
            return "undecided", f"not more extreme than every random direction; {one['reason']}".removesuffix("; ")
        enough = math.floor(one["p_holm"] / one["p"] / alpha)
        return "undecided", (
            f"more extreme than all {one['k']} random directions, which is the least p that they can give: {enough} or more "
            f"would decide it; {one['reason']}"
        )
    n = one["n_to_decide"]
    if math.isnan(n):
        return "undecided", "every prompt gives the same value, which decides nothing"
    return "undecided", f"about {n:.0f} prompts would decide it" if n < 1e6 else "on the margin: no n decides it"


def to_json(ds: xr.Dataset) -> str:
    """Claims and verdicts as JSON, missing numbers as null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [
        {"claim": name, **{k: plain(v.sel(claim=name).item()) for k, v in ds.data_vars.items()}}
        for name in ds["claim"].values.tolist()
    ]
    return json.dumps({**ds.attrs, "claims": rows}, indent=2, ensure_ascii=False)
