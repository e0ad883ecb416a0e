"""How much harm the answers did, by judges of harm (StrongREJECT, HarmBench, Llama Guard): a question of its own.

Such a judge gives a score from 0 (none) to 1 and no label: an answer that does no harm need not be a refusal (it may be
evasive, wrong or garbled), and one that refuses may have told enough first.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.label_rates import described, with_names
from gating.analysis.reading import check_single, harm_judges, read_group
from gating.errors import GatingError, choices

FIELDS = {
    "score": ("mean harm of the answers, 0 to 1", "1"),
    "low": ("lower end of its interval", "1"),
    "high": ("upper end of its interval", "1"),
    "difference": ("mean change of a prompt's score, condition - baseline", "1"),
    "difference_low": ("lower end of its interval", "1"),
    "difference_high": ("upper end of its interval", "1"),
    "n": ("answers with a score", "answer"),
    "n_pairs": ("prompts with a score here and at the baseline", "prompt"),
}


def harm_scores(
    run: xr.DataTree,
    judge: str | None = None,
    baseline: str = "baseline",
    harmful: bool = True,
    level: float = 0.95,
) -> xr.Dataset:
    """Mean harm of each condition's answers by one judge of harm: score, low, high, n over condition; and its paired
    difference to the baseline on the prompts that have both: difference, difference_low, difference_high, n_pairs.

    judge: by default the only judge of harm that the run has. An answer without a score is left out and shows in n.
    Intervals are those of a claim's contrast (`stats.mean_of`; the difference's is the wider of plain and clustered by
    category). NaN below two answers. Raises GatingError for a run without such scores, another judge's name, or a
    baseline that the run does not have.
    """
    check_single(run)
    judge = _chosen(run, judge)
    prompts = read_group(run, "prompts")
    kept = prompts["prompt"].values[prompts["harmful"].values == harmful]
    scores = read_group(run, f"judgements/{judge}")["harm"].transpose("condition", "prompt").sel(prompt=kept)
    names = scores["condition"].values.tolist()
    if baseline not in names:
        raise GatingError(f"baseline={baseline!r} is not a condition of this run: use {choices(names, baseline)}.")
    category = prompts["category"].sel(prompt=kept).values
    base = scores.sel(condition=baseline).values.astype("float64")
    rows = [_of(scores.sel(condition=c).values.astype("float64"), base, category, c != baseline, level) for c in names]
    whole = ("n", "n_pairs")
    ds = xr.Dataset(
        {f: ("condition", np.array([r[f] for r in rows], dtype="int64" if f in whole else "float64")) for f in FIELDS},
        coords={"condition": np.array(names, dtype=str)},
        attrs={"judge": judge, "baseline": baseline, "harmful": harmful, "interval": f"t, {level:.0%}"},
    )
    return described(run, with_names(ds, FIELDS))


def _chosen(run: xr.DataTree, judge: str | None) -> str:
    """The judge of harm meant. Raises GatingError where there is none, several, or no such one."""
    known = harm_judges(run)
    if not known:
        raise GatingError(
            "this run has no scores of harm yet; make some with python -m gating.rejudge RUN judge=strongreject."
        )
    if judge is None and len(known) == 1:
        return known[0]
    if judge not in known:
        raise GatingError(f"judge={judge!r} is not a judge of harm of this run: use {choices(known, judge)}.")
    return judge


def _of(own: np.ndarray, base: np.ndarray, category: np.ndarray, contrasted: bool, level: float) -> dict[str, float]:
    """A condition's numbers. own, base: scores [prompt], NaN where missing."""
    there, both = np.isfinite(own), np.isfinite(own) & np.isfinite(base)
    out = dict.fromkeys(FIELDS, np.nan) | {"n": int(there.sum()), "n_pairs": int(both.sum())}
    if there.sum() >= 2:
        low, high = stats.mean_of(2 * own[there] - 1).interval(level)  # as values in [-1, 1], as mean_of takes them
        out |= {"score": float(own[there].mean()), "low": (1 + low) / 2, "high": (1 + high) / 2}
    if contrasted and both.sum() >= 2:
        change = stats.mean_of(own[both] - base[both], category[both])
        out["difference"] = change.estimate
        out["difference_low"], out["difference_high"] = change.interval(level)
    return out
