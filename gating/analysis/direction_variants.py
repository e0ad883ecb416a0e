"""How far a direction's own rows decide what it is and what it does: from its variants (bootstraps, halves)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import t

from gating.analysis import stats
from gating.analysis.judges import with_judge
from gating.analysis.label_rates import described, hits
from gating.analysis.reading import asked, check_single, read_group

HALVES = ("half-a", "half-b")
FEWEST = 2  # bootstraps that have a spread


def variants_held(run: xr.DataTree) -> dict[str, dict[str, str]]:
    """The variants of each direction of the run that has any, by what they are: {compliant: {boot-0: compliant#boot-0,
    ...}}."""
    check_single(run)
    if "directions" not in run.children or "variant" not in run["directions"]:
        return {}
    held: dict[str, dict[str, str]] = {}
    group = read_group(run, "directions")
    for name, variant in zip(group["direction"].values.tolist(), group["variant"].values.tolist(), strict=True):
        if variant:
            held.setdefault(name.removesuffix(f"#{variant}"), {})[variant] = name
    return held


def stability(run: xr.DataTree, level: float = 0.95) -> xr.Dataset:
    """Each direction with variants, [direction, layer]: `cosine`, the median cosine of its bootstraps with itself,
    their `low` and `high` (percentiles), and `halves`, the cosine of its two halves with each other; `k` bootstraps.
    NaN where the run has no such variants, or not the whole direction."""
    held, cosine = variants_held(run), read_group(run, "directions")["cosine"]
    known, layers = set(cosine["direction"].values.tolist()), cosine["layer"].values
    ends = [0.5, (1 - level) / 2, (1 + level) / 2]
    rows, halves, counts = [], [], []
    for whole, variants in held.items():
        boots = [name for variant, name in variants.items() if variant not in HALVES]
        there = len(boots) >= FEWEST and whole in known
        own = cosine.sel(direction=whole, other=boots).quantile(ends, "other").values if there else None
        rows.append(np.full((3, len(layers)), np.nan) if own is None else own)
        pair = [variants[half] for half in HALVES if half in variants]
        both = len(pair) == 2
        halves.append(cosine.sel(direction=pair[0], other=pair[1]).values if both else np.full(len(layers), np.nan))
        counts.append(len(boots))
    dims, stacked = ("direction", "layer"), np.array(rows).reshape(len(held), 3, len(layers))
    return xr.Dataset(
        {
            "cosine": (dims, stacked[:, 0]),
            "low": (dims, stacked[:, 1]),
            "high": (dims, stacked[:, 2]),
            "halves": (dims, np.array(halves).reshape(len(held), len(layers))),
            "k": ("direction", np.array(counts, dtype="int64")),
        },
        coords={"direction": np.array(list(held), dtype=object).astype(str), "layer": layers},
        attrs={"interval": f"percentiles of bootstraps, {level:.0%}"},
    )


class Alike(NamedTuple):
    """A condition, and those that do the same along variants of its direction."""

    condition: str
    boots: list[str]
    halves: dict[str, str]


def alike(run: xr.DataTree) -> list[Alike]:
    """Each condition along a whole direction with the conditions that differ from it in the variant alone."""
    of = {name: (whole, v) for whole, held in variants_held(run).items() for v, name in held.items()}
    conditions = read_group(run, "conditions")
    by_shape: dict[str, dict[str, str]] = {}  # what a condition does but for variants -> {variant: condition}
    for i, name in enumerate(conditions["condition"].values.tolist()):
        one = conditions.isel(condition=i)
        if one["kind"].item() not in ("steered", "reversed", "named"):
            continue
        used = {of[d][1] for each in one["iv_direction"].values.tolist() for d in each.split("+") if d in of}
        if len(used) <= 1:
            by_shape.setdefault(_shape(one, of), {})[next(iter(used), "")] = name
    return [
        Alike(
            held[""], [n for v, n in held.items() if v and v not in HALVES], {v: held[v] for v in HALVES if v in held}
        )
        for held in by_shape.values()
        if "" in held and len(held) > 1
    ]


def _shape(condition: xr.Dataset, of: dict[str, tuple[str, str]]) -> str:
    """All that a condition does, its directions by their whole ones."""
    columns = {str(c): v.values.tolist() for c, v in condition.data_vars.items() if str(c).startswith("iv_")}
    columns["iv_direction"] = [
        "+".join(of.get(d, (d,))[0] for d in each.split("+")) for each in columns["iv_direction"]
    ]
    return repr((condition["system"].item(), condition["kind"].item(), columns))


def effect_over_directions(
    run: xr.DataTree,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """Effects on a label with the uncertainty of prompts *and* of the direction, for every condition whose direction's
    bootstraps the run tried in its place: `difference` to the baseline, `low`, `high`; the interval over prompts alone,
    `prompts_low`, `prompts_high`; the bootstraps' `boot_mean`, `boot_sd`, `boot_least`, `boot_most`; each half's
    effect, `half_a`, `half_b`; `n` prompts, `k` bootstraps.

    The errors are independent, the rows of a direction being no test prompts: their variances add, se(prompts)^2 +
    sd(bootstraps)^2, with t of Satterthwaite's degrees of freedom. The spread of K bootstraps is the error of one
    direction, so that it does not shrink with K. NaN ends with fewer than two bootstraps. Prompts that every one of
    these conditions answered count. judge: whose labels, as in `refusal_rate`.
    """
    run = with_judge(run, judge)
    groups = alike(run)
    hit, present = hits(run, label, harmful)
    category = read_group(run, "prompts")["category"].values[asked(run, harmful)]
    rows = [_effect(group, hit, present, category, level) for group in groups]
    fields = list(Effect._fields)
    ds = xr.Dataset(
        {f: ("condition", np.array([getattr(r, f) for r in rows])) for f in fields},
        coords={"condition": np.array([g.condition for g in groups], dtype=object).astype(str)},
        attrs={"label": label, "interval": f"prompts and direction, {level:.0%}"},
    )
    return described(run, ds)


class Effect(NamedTuple):
    """What `effect_over_directions` says of a condition; NaN where nothing is there to say it from."""

    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    prompts_low: float = math.nan
    prompts_high: float = math.nan
    boot_mean: float = math.nan
    boot_sd: float = math.nan
    boot_least: float = math.nan
    boot_most: float = math.nan
    half_a: float = math.nan
    half_b: float = math.nan
    n: int = 0
    k: int = 0


def _effect(group: Alike, hit: xr.DataArray, present: xr.DataArray, category: np.ndarray, level: float) -> Effect:
    names = [group.condition, *group.boots, *group.halves.values()]
    counted = present.sel(condition=[*names, "baseline"]).all("condition").values
    if counted.sum() < 2:
        return Effect(k=len(group.boots))
    values = hit.isel(prompt=counted).astype("float64")
    d = (values.sel(condition=names) - values.sel(condition="baseline")).transpose("condition", "prompt")
    means = dict(zip(names, d.mean("prompt").values.tolist(), strict=True))
    own = stats.mean_of(d.sel(condition=group.condition).values, category[counted])
    prompts_low, prompts_high = own.interval(level)
    found = Effect(own.estimate, prompts_low=prompts_low, prompts_high=prompts_high, n=own.n, k=len(group.boots))
    found = found._replace(**{f"half_{variant[-1]}": means[name] for variant, name in group.halves.items()})
    boots = np.array([means[name] for name in group.boots])
    if len(boots) < FEWEST:
        return found
    low, high = both(own.estimate, own.se, own.n - 1, boots, level)
    low, high = min(low, prompts_low), max(high, prompts_high)  # near a bound the latter is the more cautious
    sd = float(boots.std(ddof=1))
    return found._replace(
        low=low,
        high=high,
        boot_mean=float(boots.mean()),
        boot_sd=sd,
        boot_least=float(boots.min()),
        boot_most=float(boots.max()),
    )


def both(
    estimate: float, se: float, df: float, boots: Sequence[float] | np.ndarray, level: float
) -> tuple[float, float]:
    """The interval of a difference of rates whose error is `se` over prompts (`df` degrees of freedom) and the spread
    of `boots` over directions."""
    parts = np.array([se**2, np.var(boots, ddof=1)])
    total = parts.sum()
    freedom = total**2 / (parts**2 / [df, len(boots) - 1]).sum()
    reach = math.sqrt(total) * float(t.ppf((1 + level) / 2, freedom))
    return max(estimate - reach, -1.0), min(estimate + reach, 1.0)
