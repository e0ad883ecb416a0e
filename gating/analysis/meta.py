"""Several models in one answer: each claim's contrast on each model, and its mean over models, which are a sample.

Random effects (statsmodels): y_i = mu + u_i + e_i, u_i the model's own departure (variance tau2, Paule and Mandel
1982), e_i the sampling error of its prompts. The interval is Hartung and Knapp's, t of k - 1 degrees of freedom, with a
scale of at least 1 (Knapp and Hartung 2003; Rover et al. 2015): with Paule and Mandel's tau2 the scale is 1 where tau2
is positive and smaller elsewhere, so that it is 1. Two models that agree prove little: t of one degree of freedom.

The models are asked the same prompts, so that their errors are correlated: a prompt that one gives in to, others do.
`shared` is the mean correlation of d_i over pairs of models. That share of each error is one draw for all models: it is
taken out before tau2 is estimated (it would hide it) and put back into the error of the mean (it does not average out).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import t

from gating.analysis import stats
from gating.analysis.claims import ALPHA, Claim, Family, contrast_of, evaluate
from gating.analysis.judges import with_judge
from gating.analysis.reading import conditions_of_kind

MOST_SHARED = 0.95  # of a correlation: the rest is each model's own, without which nothing tells models apart
OF_ALL = ("estimate", "low", "high", "predict_low", "predict_high", "se", "tau2", "i2", "q", "q_p", "shared")


class Combined(NamedTuple):
    """The mean effect over models; NaN below two. Effects are differences of rates, or in a measure's units."""

    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    predict_low: float = math.nan  # where another such model's effect is to be expected; from three models on
    predict_high: float = math.nan
    se: float = math.nan
    tau2: float = math.nan  # variance of effects between models
    i2: float = math.nan  # share of the effects' variance that is between models
    q: float = math.nan
    q_p: float = math.nan  # of homogeneity
    shared: float = math.nan  # correlation of the models' errors
    k: int = 0  # models


def random_effects(
    effect: ArrayLike, se: ArrayLike, shared: float = 0.0, level: float = 0.95, bound: float = math.inf
) -> Combined:
    """The mean of models' effects. effect, se: [model], se positive; shared: correlation of their errors; bound: the
    largest size that an effect can have, where intervals end."""
    from statsmodels.stats.meta_analysis import combine_effects  # takes a second to import

    y, s, k = np.asarray(effect, dtype="float64"), np.asarray(se, dtype="float64"), np.size(effect)
    if k < 2:
        return Combined(k=k)
    rho = min(max(shared, 0.0), MOST_SHARED)
    scale = float(np.mean(s))  # statsmodels' iteration has a fixed tolerance: it is given numbers about 1
    with np.errstate(divide="ignore"):  # of h2, where all effects are equal
        fit = combine_effects(y / scale, (1 - rho) * (s / scale) ** 2, method_re="pm", use_t=True, maxiter=1000)
    weights = np.asarray(fit.weights_rel_re)
    estimate, tau2 = scale * float(fit.mean_effect_re), scale**2 * float(fit.tau2)
    error = math.sqrt((scale * float(fit.sd_eff_w_re)) ** 2 + rho * float(weights @ s) ** 2)
    spread = math.sqrt(tau2 + error**2)
    near = error * float(t.ppf((1 + level) / 2, k - 1))
    far = spread * float(t.ppf((1 + level) / 2, k - 2)) if k > 2 else math.nan
    q = float(fit.q)
    ends = np.clip([estimate - near, estimate + near, estimate - far, estimate + far], -bound, bound)
    low, high, least, most = ends.tolist()
    i2 = max(0.0, (q - k + 1) / q) if q > 0 else 0.0
    return Combined(estimate, low, high, least, most, error, tau2, i2, q, float(fit.test_homogeneity().pvalue), rho, k)


def combine(runs: Mapping[str, xr.DataTree], family: Family, judge: str | None = None) -> xr.Dataset:
    """Each claim of a family on every run (`effect`, `effect_low`, `effect_high`, `effect_se`, `n`, `found`, `reason`:
    [claim, model]) and over them (fields of `Combined`: [claim]). runs: by the model's name, alike
    (gating.analysis.alike).

    A model counts where the claim can be tested on it: a missing condition, a premise that does not hold and values
    that do not vary leave it out, and `k` counts the rest. Intervals are two-sided at 1 - alpha, of an equivalence at
    1 - 2 alpha. judge: whose labels, as in `refusal_rate`.
    """
    runs = {name: with_judge(run, judge) for name, run in runs.items()}
    alpha = float(family.get("alpha", ALPHA))
    decided = {name: evaluate(run, family) for name, run in runs.items()}
    effects = xr.concat([_of_model(runs[m], decided[m], family) for m in runs], xr.Variable("model", list(runs)))
    effects = effects.transpose("claim", "model")
    out: list[Combined] = []
    for name, claim in family["claims"].items():
        of_claim = effects.sel(claim=name)
        counted = of_claim.isel(model=np.flatnonzero(np.isfinite(of_claim["effect_se"].values)))
        level = 1 - 2 * alpha if claim["test"] == "equivalence" else 1 - alpha
        kept = {m: runs[m] for m in counted["model"].values.tolist()}
        held = [contrast_of(run, claim) for run in kept.values()]
        bound = max((c.bound for c in held if c.bound is not None), default=math.inf)
        shared = correlation([c.differences() for c in held])
        out.append(random_effects(counted["effect"].values, counted["effect_se"].values, shared, level, bound))
    ds = effects.assign({f: ("claim", np.array([getattr(c, f) for c in out])) for f in (*OF_ALL, "k")})
    ds = ds.assign({f: ("claim", np.array([str(c[f]) for c in family["claims"].values()])) for f in ("says", "test")})
    ds["unit"] = ("claim", np.array([c.get("measure", "points") for c in family["claims"].values()]))
    ds["margin"] = ("claim", np.array([float(c.get("margin", 0.0)) for c in family["claims"].values()]))
    return ds.assign_attrs(family=family["family"], alpha=alpha)


def _of_model(run: xr.DataTree, decided: xr.Dataset, family: Family) -> xr.Dataset:
    """Each claim's effect on one run, its standard error NaN where it does not count."""
    se = [
        contrast_of(run, claim).mean().se if decided["verdict"].sel(claim=name) not in LEFT_OUT else np.nan
        for name, claim in family["claims"].items()
    ]
    columns = {"effect": "estimate", "effect_low": "low", "effect_high": "high", "n": "n", "found": "verdict"}
    out = decided[list(columns.values())].rename({v: k for k, v in columns.items()})
    return out.assign(effect_se=("claim", np.array(se)), reason=decided["reason"]).drop_attrs()


LEFT_OUT = ("missing", "not testable")


def correlation(differences: Sequence[xr.DataArray]) -> float:
    """Mean correlation over pairs of models of their d [prompt] on the prompts that both answered; one of which d does
    not vary has none with it."""
    pairs = [_correlation(a, b) for a, b in itertools.combinations(differences, 2)]
    return float(np.mean(pairs)) if pairs else 0.0


def _correlation(a: xr.DataArray, b: xr.DataArray) -> float:
    a, b = xr.align(a, b, join="inner")
    if a.size < 2 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a.values, b.values)[0, 1])


def judged(ds: xr.Dataset, family: Family) -> xr.Dataset:
    """`combine`'s answer with p, p_holm and verdict [claim] over models. `supported` and `refuted`: the mean over
    models lies beyond the margin, or short of it, after Holm over the family. A permutation claim has no error over its
    random directions and no verdict over models: its interval stands alone."""
    both = np.array([_p(ds.sel(claim=name), claim) for name, claim in family["claims"].items()])
    p, against = stats.holm(both[:, 0]), stats.holm(both[:, 1])
    alpha = float(ds.attrs["alpha"])
    cases = [ds["k"].values < 2, ds["test"].values == "permutation", p < alpha, against < alpha]
    verdict = np.select(cases, ["missing", "", "supported", "refuted"], "undecided")
    return ds.assign(p=("claim", both[:, 0]), p_holm=("claim", p), verdict=("claim", verdict))


def to_json(ds: xr.Dataset) -> str:
    """Every number of `combine`, a claim with its models; missing numbers as null."""

    def plain(value: xr.DataArray) -> object:
        item = value.item()
        return None if isinstance(item, float) and not math.isfinite(item) else item

    def record(of: xr.Dataset, dims: int) -> dict[str, object]:
        return {str(k): plain(v) for k, v in of.data_vars.items() if ds[k].ndim == dims}

    rows = [
        {"claim": name, **record(ds.sel(claim=name), 1),
         "models": [{"model": m, **record(ds.sel(claim=name, model=m), 2)} for m in ds["model"].values.tolist()]}
        for name in ds["claim"].values.tolist()
    ]  # fmt: skip
    return json.dumps({**ds.attrs, "claims": rows}, indent=2, ensure_ascii=False)


def _p(of: xr.Dataset, claim: Claim) -> tuple[float, float]:
    """One-sided p of a claim's null and of its opposite's; NaN where it has none."""
    if of["k"] < 2 or claim["test"] == "permutation":
        return math.nan, math.nan
    estimate, se, margin, df = float(of["estimate"]), float(of["se"]), float(of["margin"]), int(of["k"]) - 1

    def above(value: float) -> float:  # p that the mean is at most value
        return float(t.sf((estimate - value) / se, df))

    if claim["test"] == "equivalence":
        return max(above(-margin), 1 - above(margin)), min(above(margin), 1 - above(-margin))
    if claim["expect"] == "below":
        return 1 - above(-margin), above(-margin)
    return above(margin), 1 - above(margin)


def contrasts(runs: Mapping[str, xr.DataTree], prompts: str = "harmful") -> Family:
    """The contrasts of refusal against the baseline that every run has, as a family, for runs without claims: what
    nobody claimed beforehand is combined and not judged."""
    kinds = ("steered", "reversed", "named")
    held = [conditions_of_kind(run, kinds) for run in runs.values()]
    names = [name for name in held[0] if all(name in other for other in held[1:])]
    made: dict[str, Claim] = {
        name: {"says": f"{name} - baseline", "test": "difference", "plus": [name], "minus": ["baseline"],
               "expect": "below", "prompts": prompts}
        for name in names
    }  # fmt: skip
    return {"family": "contrasts", "claims": made}
