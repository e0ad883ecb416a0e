"""Whose labels a run has, and the run seen with another's: the one place that takes a judge's name.

`own` names the labels that the run wrote itself (/outcomes), `labels/BY` those of a person (/labels/BY), any other
name a judge's under /judgements.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis.reading import harm_judges
from gating.errors import GatingError, choices
from gating.judging import OWN
from gating.judging.labels import MISSING

PERSON = "labels/"  # what the name of a person's labels begins with


def judges_of(run: xr.DataTree) -> list[str]:
    """Whose labels a run has: `own`, then the judges under /judgements, then people, `labels/BY`; not those that score
    harm and give none."""
    group = run.children.get("judgements")
    judges = sorted(set(group.children) - set(harm_judges(run))) if group is not None else []
    return [OWN, *judges, *(f"{PERSON}{name}" for name in readers_of(run))]


def readers_of(run: xr.DataTree) -> list[str]:
    """The people whose labels a run has, who labelled most first."""
    group = run.children.get("labels")
    counts = {n: int((group[n]["label"] != MISSING).sum()) for n in group.children} if group is not None else {}
    return sorted(counts, key=lambda name: (-counts[name], name))


def labels_of(run: xr.DataTree, judge: str = OWN) -> xr.DataArray:
    """One judge's labels, int8 over condition and prompt as in /outcomes; -1 where there is none.

    Raises GatingError for a judge that the run does not have.
    """
    outcomes = run["/outcomes"].to_dataset()[["label", "done"]].load()
    own = outcomes["label"].where(outcomes["done"], MISSING).astype("int8")
    return own if judge == OWN else _judged(run, judge, own, kept=True)


def shown_labels(run: xr.DataTree, judge: str) -> xr.DataArray:
    """As `labels_of`, without what a judge took over from the run's own instead of being shown it."""
    own = labels_of(run)
    return own if judge == OWN else _judged(run, judge, own, kept=False)


def with_judge(run: xr.DataTree, judge: str | None) -> xr.DataTree:
    """The run with this judge's labels in /outcomes, so that every analysis counts them; all else is as it was. None,
    or `own`, is the run itself.

    An answer that the judge did not label is missing there, and so is every sampled answer: only the run's own judge
    labels those. Raises GatingError for a judge that the run does not have.
    """
    if judge is None or judge == OWN:
        return run
    label = labels_of(run, judge)
    label.attrs = run["/outcomes/label"].attrs
    out = run.copy(deep=False)
    out["/outcomes"].dataset = run["/outcomes"].to_dataset().assign(label=label)
    if "samples" in run.children:
        samples = run["/samples"].to_dataset()
        out["/samples"].dataset = samples.assign(label=xr.full_like(samples["label"], MISSING))
    about = run[_group(judge)].attrs
    out.attrs = {**run.attrs, "judge": f"{judge} {about.get('digest', '')}".rstrip(), "labels_of": judge}
    return out


def _judged(run: xr.DataTree, judge: str, like: xr.DataArray, kept: bool) -> xr.DataArray:
    """A judge's labels in the shape of `like`. kept: also those that it took over from the run's own."""
    known = judges_of(run)
    if judge in harm_judges(run):
        raise GatingError(
            f"judge {judge!r} scores harm and gives no labels: read gating.harm_scores(run, {judge!r}), or use "
            f"{choices(known)} here."
        )
    if judge not in known:
        raise GatingError(f"judge={judge!r} is not one of this run's: use {choices(known, judge)}, or judge it first.")
    judgements = run[_group(judge)].to_dataset().load()
    present = judgements["done"]
    if not kept and "reason" in judgements:
        present = present & (judgements["reason"] == "")
    label = judgements["label"].where(present, MISSING).astype("int8")
    return label.transpose(*like.dims).reindex_like(like, fill_value=np.int8(MISSING))


def _group(judge: str) -> str:
    return f"/{judge}" if judge.startswith(PERSON) else f"/judgements/{judge}"
