"""A person's labels in words: how the judge errs by them, and rates and contrasts that are corrected for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table

from gating import analysis
from gating.analysis import agreement
from gating.analysis.judges import PERSON
from gating.analysis.wording import MISSING, interval, percent, points, signed
from gating.foreign import cell
from gating.judging import OWN, own_name
from gating.reporting.rows import own_claims

NONE = "No person has labelled answers of this run: its rates are the judge's, and not corrected for its errors."
HOW = "Corrected: prediction-powered inference from the answers read, 95%. Precision and recall of refusal: Wilson."
COLUMNS = ("condition", "read", "refusal, corrected", "by the judge", "against baseline, corrected", "by the judge",
           "precision", "recall", "kappa")  # fmt: skip

CLAIM_COLUMNS = ("claim", "contrast, corrected, points", "by the judge", "answers read")
VERDICTS = "Verdicts rest on the judge's labels; these are the same contrasts, corrected for its errors."


class Reading(NamedTuple):
    """A person's labels on one set of prompts: a row of text for each condition of which an answer was read."""

    harmful: bool
    by: str
    judge: str
    n: int  # answers read
    rows: list[tuple[str, ...]]  # as COLUMNS
    unread: list[str]  # conditions without a corrected rate

    @property
    def title(self) -> str:
        return f"{'harmful' if self.harmful else 'harmless'} prompts as read by {self.by} (n = {self.n} answers)"

    @property
    def caption(self) -> str:
        """How it was made, and what has no corrected rate."""
        none = f" No answer was read of {', '.join(self.unread)}: no corrected rate." if self.unread else ""
        return f"Judge: {self.judge}. {HOW}{none}"


def judge_of(run: xr.DataTree) -> str:
    """Whose labels a run is counted by, in words."""
    return str(run.attrs.get("labels_of") or own_name(run.attrs))


def held(run: xr.DataTree) -> bool:
    """Whether a person's labels can correct this run's rates; a person's own are not corrected."""
    return bool(analysis.readers_of(run)) and not judge_of(run).startswith(PERSON)


def readings(run: xr.DataTree, by: str | None = None) -> list[Reading]:
    """Every set of prompts that the run asked. Raises GatingError where `by`, or nobody, has labelled its answers."""
    by = analysis.reader_of(run, by)
    return [_reading(run, by, harmful) for harmful in (True, False) if analysis.asked(run, harmful).any()]


def _reading(run: xr.DataTree, by: str, harmful: bool) -> Reading:
    rates = analysis.corrected_rate(run, by, harmful=harmful)
    effects = analysis.corrected_contrast(run, by=by, harmful=harmful)
    errors = analysis.judge_errors(run, by, harmful=harmful)
    shown = analysis.shown_names(run)
    rows: list[tuple[str, ...]] = []
    names = [name for name in rates["condition"].values.tolist() if int(errors["n"].sel(condition=name))]
    for name in names:
        rate, effect, error = (ds.sel(condition=name) for ds in (rates, effects, errors))
        kappa = float(agreement.agreement(run, OWN, f"{PERSON}{by}", name, harmful)["kappa"])
        change = ("", "") if name == "baseline" else (_points(effect), _points(effect, "judged"))
        shares = (_share(error, "precision"), _share(error, "recall"))
        own = (_rate(rate), percent(rate["judged"]))
        last = "" if np.isnan(kappa) else f"{kappa:.2f}"
        rows.append((shown[name], str(int(error["n"])), *own, *change, *shares, last))
    unread = [shown[n] for n in rates["condition"].values.tolist() if np.isnan(float(rates["rate"].sel(condition=n)))]
    return Reading(harmful, by, judge_of(run), int(errors["n"].sum()), rows, unread)


def _rate(rate: xr.Dataset) -> str:
    return interval(rate) if np.isfinite(float(rate["rate"])) else MISSING


def _points(effect: xr.Dataset, field: str = "") -> str:
    value = float(effect[field or "difference"])
    return MISSING if np.isnan(value) else signed(value) if field else points(effect)


def _share(error: xr.Dataset, name: str) -> str:
    """Precision or recall with its interval and what it is a share of."""
    n = int(error[f"n_{name}"])
    if not n:
        return ""
    low, high = (f"{100 * float(error[f'{name}_{end}']):.0f}" for end in ("low", "high"))
    return f"{percent(error[name])} [{low}, {high}] of {n}"


def claim_lines(run: xr.DataTree, by: str | None = None) -> list[tuple[str, ...]]:
    """The run's own claims on labels: what each says, its contrast corrected, by the judge, and answers read; none
    where the run was begun without claims, or nothing was read of any claim's conditions."""
    family = own_claims(run)
    if not family:
        return []
    ds = analysis.corrected_claims(run, family, by)
    out: list[tuple[str, ...]] = []
    for name in ds["claim"].values.tolist():
        claim = ds.sel(claim=name)
        estimate, low, high, judged = (float(claim[k]) for k in ("estimate", "low", "high", "judged"))
        corrected = MISSING if np.isnan(estimate) else f"{signed(estimate)} [{signed(low)}, {signed(high)}]"
        own = MISSING if np.isnan(judged) else signed(judged)
        out.append((str(claim["says"].item()), corrected, own, str(int(claim["n_read"]))))
    return out if ds["n_read"].any() else []


def tables(run: xr.DataTree, by: str | None = None) -> list[Table]:
    """For a terminal. Raises GatingError as `readings` does."""
    out = [_table(reading) for reading in readings(run, by)]
    lines = claim_lines(run, by)
    if lines:
        reader = analysis.reader_of(run, by)
        out.append(_plain_table(f"claims, corrected by the labels of {reader}", CLAIM_COLUMNS, lines, VERDICTS))
    return out


def _table(reading: Reading) -> Table:
    return _plain_table(reading.title, COLUMNS, reading.rows, reading.caption)


def _plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Table:
    out = Table(title=cell(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    out.caption, out.caption_justify = cell(caption), "left"
    for i, column in enumerate(columns):
        out.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        out.add_row(*map(cell, row))
    return out


def sentences(run: xr.DataTree, names: Sequence[str], harmful: bool) -> list[str]:
    """The corrected figures of these conditions, the judge's own beside them; or that nobody has labelled answers."""
    if not held(run):
        return [] if judge_of(run).startswith(PERSON) else [NONE]
    by = analysis.reader_of(run)
    rates, effects = (f(run, by=by, harmful=harmful) for f in (analysis.corrected_rate, analysis.corrected_contrast))
    shown, base = analysis.shown_names(run), rates.sel(condition="baseline")
    out = []
    for name in names:
        rate, effect = rates.sel(condition=name), effects.sel(condition=name)
        if np.isnan(float(effect["difference"])):
            out.append(f"{shown[name]}: no corrected difference: too few of its answers, or the baseline's, were read.")
            continue
        out.append(
            f"{shown[name]}, as read by {by} (n = {int(rate['n_read'])} answers, {int(base['n_read'])} at baseline): "
            f"refusal {interval(rate)} against {interval(base)} at baseline, a paired difference of {points(effect)} "
            f"points, corrected for the judge's errors; by the judge alone {percent(rate['judged'])} against "
            f"{percent(base['judged'])}, {signed(float(effect['judged']))} points."
        )
    return out
