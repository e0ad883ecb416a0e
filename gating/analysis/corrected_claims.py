"""The contrasts of claims, corrected for the judge's error by a person's labels. Verdicts stay those of the judge's."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis.claim_files import PROMPTS, Claim, Family
from gating.analysis.claims import ALPHA, contrast_of
from gating.analysis.corrected_rates import reader_of, readings
from gating.analysis.correction import combined, corrected, use_of_judge
from gating.errors import GatingError


def corrected_claims(run: xr.DataTree, family: Family, by: str | None = None) -> xr.Dataset:
    """Each claim on labels along `claim`: estimate, low, high (prediction-powered, at the level of the claim's own
    interval), `judged`, the judge's own contrast, n prompts, n_read answers read; says.

    NaN where a condition of the claim has no answer that was read, or the run no such condition. Claims on a measure
    need no label, and are left out. Raises GatingError as `readings` does.
    """
    by, alpha = reader_of(run, by), float(family.get("alpha", ALPHA))
    kept = {name: claim for name, claim in family["claims"].items() if not claim.get("measure")}
    rows = [_of(run, claim, by, alpha) for claim in kept.values()]
    columns = {k: np.array([r[k] for r in rows], dtype="float64") for k in ("estimate", "low", "high", "judged")}
    columns |= {k: np.array([r[k] for r in rows], dtype="int64") for k in ("n", "n_read")}
    columns["says"] = np.array([claim["says"] for claim in kept.values()], dtype=str)
    return xr.Dataset(
        {k: ("claim", v) for k, v in columns.items()},
        coords={"claim": np.array(list(kept), dtype=str)},
        attrs={"family": family["family"], "by": by, "alpha": alpha},
    )


def _of(run: xr.DataTree, claim: Claim, by: str, alpha: float) -> dict[str, float]:
    out = dict.fromkeys(("estimate", "low", "high", "judged"), np.nan) | {"n": 0, "n_read": 0}
    try:
        contrast = contrast_of(run, claim)
    except GatingError:  # the claim itself is missing then, which its verdict says
        return out
    harmful = PROMPTS[claim.get("prompts", "harmful")]
    r = readings(run, by, claim.get("label", "refusal"), harmful, pooled=True)
    c = use_of_judge(*r[:3])
    names, prompts = r.like["condition"].values.tolist(), r.like["prompt"].values.tolist()
    counted = np.isin(prompts, contrast.values["prompt"].values.tolist())
    judged, read, weight = (np.where(counted, x, np.nan) for x in r[:3])
    at = [names.index(name) for name in contrast.weight]
    each = [corrected(judged[i], read[i], weight[i], c) for i in at]
    found = combined(each, list(contrast.weight.values()))
    level = 1 - 2 * alpha if claim["test"] == "equivalence" else 1 - alpha
    bound = contrast.bound or 1.0
    low, high = found.interval(level, -bound, bound)
    out |= {"judged": contrast.mean().estimate, "n": int(found.n), "n_read": int(sum(e.read.sum() for e in each))}
    return out if np.isnan(low) else out | {"estimate": float(found.value), "low": float(low), "high": float(high)}
