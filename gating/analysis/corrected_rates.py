"""A judge measured against a person's labels, and rates and contrasts corrected for its error: from a run's tree.

A person reads a sample of answers (`python -m gating.label`), drawn with known probabilities. Everything here is said
of each condition by itself: an error that depends on the condition is what biases a contrast. Where nothing was read
there is no corrected rate: NaN, with `n_read` 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.correction import combined, corrected, use_of_judge
from gating.analysis.judges import PERSON, labels_of, readers_of, with_judge
from gating.analysis.label_rates import described, hits, with_names
from gating.analysis.reading import check_single, read_group
from gating.errors import GatingError, choices
from gating.judging import OWN
from gating.judging.labels import LABELS, MISSING

NO_LABELS = "no person has labelled answers of this run; do so with python -m gating.label RUN."
RATE = {
    "rate": ("share of answers with the label, corrected", "1"),
    "low": ("lower end of its interval", "1"),
    "high": ("upper end of its interval", "1"),
    "judged": ("share by the judge alone", "1"),
    "n": ("answers that the judge labelled", "answer"),
    "n_read": ("of those, answers drawn and labelled by the person", "answer"),
}
CONTRAST = {
    "difference": ("corrected difference of rates, condition - baseline", "1"),
    "low": ("lower end of its interval", "1"),
    "high": ("upper end of its interval", "1"),
    "judged": ("difference by the judge alone", "1"),
    "n": ("prompts with both answers labelled by the judge", "prompt"),
    "n_read": ("answers of the condition and the baseline that the person labelled", "answer"),
}


class Readings(NamedTuple):
    """What judge and person say, as arrays [condition, prompt] with NaN where missing."""

    judged: np.ndarray  # 1 where the judge gives the label, else 0
    read: np.ndarray  # the same of the person
    weight: np.ndarray  # one over the probability that the answer was drawn to be read
    like: xr.DataArray  # of the same shape, with coordinates
    by: str
    judge: str

    @property
    def seen(self) -> np.ndarray:
        """Which answers both labelled, drawn by chance or not."""
        return np.isfinite(self.judged) & np.isfinite(self.read)


def reader_of(run: xr.DataTree, by: str | None = None) -> str:
    """The person `by`, or the one who labelled most. Raises GatingError where the run has no such person's labels."""
    known = readers_of(run)
    if not known:
        raise GatingError(NO_LABELS)
    by = known[0] if by is None else by.removeprefix(PERSON)
    if by not in known:
        raise GatingError(f"by={by!r} has labelled no answers of this run: use {choices(known, by)}.")
    return by


def readings(
    run: xr.DataTree,
    by: str | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    judge: str | None = None,
    pooled: bool = False,
) -> Readings:
    """Judge and person on the same answers. pooled: of harmful and harmless prompts together, where nothing is said of
    a rate. Raises GatingError as `refusal_rate` does, for a person without labels, and
    for a person in the place of the judge."""
    check_single(run)
    by = reader_of(run, by)
    run = with_judge(run, judge)
    name = str(run.attrs.get("labels_of", OWN))
    if name.startswith(PERSON):
        raise GatingError(f"judge={name!r} is a person, whose labels are not corrected: name a judge of the run.")
    hit, present = (
        x.transpose("condition", "prompt") for x in hits(run, label, harmful, by=("harmful",) if pooled else ())
    )
    person = labels_of(run, f"{PERSON}{by}").transpose("condition", "prompt").sel(prompt=hit["prompt"].values)
    chance = read_group(run, f"labels/{by}")["probability"].reindex_like(person).transpose("condition", "prompt").values
    return Readings(
        np.where(present, hit, np.nan),
        np.where(person != MISSING, person == LABELS.index(label), np.nan),
        1 / np.where(chance > 0, chance, np.nan),
        hit,
        by,
        name,
    )


def corrected_rate(
    run: xr.DataTree,
    by: str | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """`refusal_rate` corrected for the judge's error, over condition: rate, low, high (prediction-powered, t); the
    judge's own rate, `judged`; n answers that the judge labelled, n_read of them read by the person.

    by: the person; by default who labelled most. NaN where fewer than two answers were read. Raises
    GatingError as `readings` does.
    """
    r = readings(run, by, label, harmful, judge)
    c = use_of_judge(*r[:3])
    found = corrected(*r[:3], np.broadcast_to(c, len(r.judged)))
    low, high = found.interval(level, 0.0)
    rate = np.where(np.isfinite(low), np.clip(found.value, 0.0, 1.0), np.nan)
    columns = {"rate": rate, "low": low, "high": high, "judged": _mean(r.judged)}
    return _labelled(run, r, RATE, columns | {"n": found.n, "n_read": found.read.sum(-1)}, level, float(c))


def corrected_contrast(
    run: xr.DataTree,
    baseline: str = "baseline",
    by: str | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """`contrast` corrected for the judge's error, over condition: difference, low, high (prediction-powered, t, each
    prompt's answers taken together), `judged`, the judge's own difference, n prompts, n_read answers read.

    NaN where nothing was read of the condition or of the baseline, or one prompt of both. Raises GatingError as
    `readings` does, and for a baseline that the run does not have.
    """
    r = readings(run, by, label, harmful, judge)
    names = r.like["condition"].values.tolist()
    if baseline not in names:
        raise GatingError(f"baseline={baseline!r} is not a condition of this run: use {choices(names, baseline)}.")
    c = np.broadcast_to(use_of_judge(*r[:3]), len(names))
    at = names.index(baseline)
    both = np.isfinite(r.judged) & np.isfinite(r.judged[at])
    own = corrected(np.where(both, r.judged, np.nan), r.read, r.weight, c)
    base = corrected(np.where(both, r.judged[at], np.nan), r.read[at], r.weight[at], c)
    found = combined([own, base], [1.0, -1.0])
    low, high = found.interval(level, -1.0)
    value = np.where(np.isfinite(low), found.value, np.nan)
    columns = {"difference": value, "low": low, "high": high, "judged": _mean(r.judged - r.judged[at])}
    columns = {k: np.where(np.arange(len(names)) == at, np.nan, v) for k, v in columns.items()}  # itself is no contrast
    columns |= {"n": found.n, "n_read": own.read.sum(-1) + base.read.sum(-1)}
    return _labelled(run, r, CONTRAST, columns, level, float(c[at])).assign_attrs(baseline=baseline)


def judge_errors(
    run: xr.DataTree,
    by: str | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    judge: str | None = None,
) -> xr.Dataset:
    """How a judge errs under each condition, the person's labels being the truth: `precision` and `recall` of `label`
    with Wilson intervals (`_low`, `_high`) and the counts that they are shares of (`n_precision`, `n_recall`), and n
    answers that both labelled.

    All answers of a condition and of a kind of prompt (harmful or not) are drawn with one probability, so that none
    weighs more. Raises GatingError as `readings` does.
    """
    r = readings(run, by, label, harmful, judge)
    says, is_so = (np.where(r.seen, x, 0.0) for x in (r.judged, r.read))
    right = (says * is_so).sum(-1)
    columns: dict[str, np.ndarray] = {}
    for name, of in (("precision", says.sum(-1)), ("recall", is_so.sum(-1))):
        low, high = stats.wilson(right, of, level)
        share = np.divide(right, of, out=np.full(of.shape, np.nan), where=of > 0)
        columns |= {name: share, f"{name}_low": low, f"{name}_high": high, f"n_{name}": of.astype("int64")}
    return _labelled(run, r, {}, columns | {"n": r.seen.sum(-1)}, level).assign_attrs(interval=f"Wilson, {level:.0%}")


def _mean(values: np.ndarray) -> np.ndarray:
    """Over what is there of [condition, prompt]; NaN where nothing is."""
    n = np.isfinite(values).sum(-1)
    return np.divide(np.nansum(values, -1), n, out=np.full(n.shape, np.nan), where=n > 0)


def _labelled(
    run: xr.DataTree,
    r: Readings,
    names: dict[str, tuple[str, str]],
    columns: dict[str, np.ndarray],
    level: float,
    use: float = np.nan,
) -> xr.Dataset:
    """Columns over condition, as the other rates are."""
    condition = r.like["condition"]
    ds = xr.Dataset({k: ("condition", v) for k, v in columns.items()}, {"condition": condition})
    about = {"by": r.by, "judge": r.judge, "use_of_judge": use, "interval": f"prediction-powered, t, {level:.0%}"}
    return described(run, with_names(ds, names)).assign_attrs(about)
