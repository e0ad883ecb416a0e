"""`stop=label`: how many rows ended when their label was settled, and how often a settled label turns."""

from __future__ import annotations

import xarray as xr

from gating.analysis import stats
from gating.analysis.reading import read_group
from gating.errors import GatingError


def early_stops(run: xr.DataTree, level: float = 0.95) -> xr.Dataset:
    """Of the rows that are done: `rows`; `stopped`, ended when their label was settled; `checked`, settled and gone on
    to the end; `changed`, those of the checked with another label at the end, and their share: rate, low, high
    (Wilson).

    The labels are the run's own judge's. Raises GatingError for a run whose rows all go on, and for one with another
    judge's labels in their place (`with_judge`).
    """
    if "stops" not in run.children:
        raise GatingError("no row of this run ended early; stop=label lets rows end when their label is settled.")
    if "labels_of" in run.attrs:
        raise GatingError(
            f"judge={run.attrs['labels_of']!r} settled no label: the run's own judge did; leave judge out."
        )
    outcomes, stops = read_group(run, "outcomes"), read_group(run, "stops")
    settled = outcomes["done"] & (stops["settled_at"] > 0)
    length = outcomes["n_tokens"] + outcomes["n_thought"]
    stopped = settled & ~stops["goes_on"] & (length == stops["settled_at"])
    checked = settled & stops["goes_on"]
    changed = checked & (outcomes["label"] != stops["settled_label"])
    k, n = int(changed.sum()), int(checked.sum())
    low, high = stats.wilson(k, n, level)
    rate = k / n if n else float("nan")
    counts = {"rows": int(outcomes["done"].sum()), "stopped": int(stopped.sum()), "checked": n, "changed": k}
    return xr.Dataset({**counts, "rate": rate, "low": float(low), "high": float(high)})
