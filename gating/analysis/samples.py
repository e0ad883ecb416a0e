"""Sampled answers (`sampling.n`): how often a label comes when answers are drawn, with prompts as the sample.

Answers to one prompt are alike, so that n is the number of prompts, however many answers each has: a prompt's value is
the share of its answers that have the label, and errors are taken over prompts.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.judges import with_judge
from gating.analysis.label_rates import described, hits, with_names
from gating.analysis.reading import asked, check_single, read_group
from gating.errors import GatingError
from gating.judging.labels import LABELS, MISSING

FIELDS = {
    "rate": ("mean over prompts of the share of sampled answers with the label", "1"),
    "low": ("lower end of its interval, over prompts", "1"),
    "high": ("upper end of its interval, over prompts", "1"),
    "difference": ("difference of these shares, condition - baseline", "1"),
    "difference_low": ("lower end of its interval", "1"),
    "difference_high": ("upper end of its interval", "1"),
    "greedy": ("share of the same prompts whose greedy answer has the label", "1"),
    "divided": ("share of prompts of which some samples have the label and some do not", "1"),
    "n": ("prompts", "prompt"),
    "answers": ("sampled answers", "answer"),
}


def sampled_rates(
    run: xr.DataTree,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """How often sampled answers have `label` under each condition: rate, low, high over prompts (never over answers);
    the difference to the baseline by prompt; the greedy rate on the same prompts; `divided`, the share of prompts whose
    samples disagree; n prompts, answers.

    Intervals are those of a claim's contrast (stats.mean_of: two pseudo-prompts; the difference's is the wider of
    plain and category-clustered). Raises GatingError for a run without samples, for a judge other than the run's own,
    which alone labels samples, and as `refusal_rate` does.
    """
    run = with_judge(run, judge)
    check_single(run)
    if "samples" not in run.children:
        raise GatingError("this run has no sampled answers; give it sampling.n=5, say, to draw five a prompt.")
    if "labels_of" in run.attrs:
        raise GatingError(
            f"judge={run.attrs['labels_of']!r} has no labels of sampled answers: leave judge out, or take refusal_rate."
        )
    greedy, _ = hits(run, label, harmful)
    chosen = asked(run, harmful)
    labels = read_group(run, "samples")["label"].transpose("condition", "prompt", "sample").isel(prompt=chosen)
    present = labels != MISSING
    drawn = present.sum("sample")
    share = ((labels == LABELS.index(label)) & present).sum("sample") / drawn.where(drawn > 0)
    category = read_group(run, "prompts")["category"].values[chosen]
    names = share["condition"].values.tolist()
    columns: dict[str, list[float]] = {name: [] for name in FIELDS}
    for name in names:
        for field, value in _of(share, greedy, drawn, category, name, level).items():
            columns[field].append(value)
    kinds = {"n": "int64", "answers": "int64"}
    ds = xr.Dataset(
        {f: ("condition", np.array(v, dtype=kinds.get(f, "float64"))) for f, v in columns.items()},
        coords={"condition": np.array(names, dtype=str)},
        attrs={"label": label, "interval": f"over prompts, {level:.0%}", **read_group(run, "samples").attrs},
    )
    return described(run, with_names(ds, FIELDS))


def _of(
    share: xr.DataArray, greedy: xr.DataArray, drawn: xr.DataArray, category: np.ndarray, name: str, level: float
) -> dict[str, float]:
    """A condition's numbers. share: [condition, prompt], NaN where a prompt has no samples; drawn: their number."""
    own, base = (share.sel(condition=c).values for c in (name, "baseline"))
    there = np.isfinite(own)
    both = there & np.isfinite(base)
    out = dict.fromkeys(FIELDS, np.nan) | {"n": int(there.sum()), "answers": int(drawn.sel(condition=name).sum())}
    if there.sum() >= 2:
        mean = stats.mean_of(2 * own[there] - 1)  # shares as values in [-1, 1], about which mean_of is cautious
        low, high = mean.interval(level)
        divided = (own[there] > 0) & (own[there] < 1)
        greedily = greedy.sel(condition=name).values[there]
        out |= {"rate": float(own[there].mean()), "low": (1 + low) / 2, "high": (1 + high) / 2}
        out |= {"greedy": float(greedily.mean()), "divided": float(divided.mean())}
    if name != "baseline" and both.sum() >= 2:
        change = stats.mean_of(own[both] - base[both], category[both])
        out["difference"] = change.estimate
        out["difference_low"], out["difference_high"] = change.interval(level)
    return out
