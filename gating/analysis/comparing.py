"""Two runs beside each other: what they were told that differs, and what they say of the prompts that both asked."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import xarray as xr
import yaml

from gating.analysis.label_rates import hits
from gating.analysis.pairs import pairs
from gating.analysis.reading import check_single, read_group
from gating.errors import GatingError
from gating.store.joins import flatten

FIELDS = ("model_fingerprint", "template_hash", "code", "judge", "dtype", "device")


class Setting(NamedTuple):
    """A setting, or a fact of a store, that differs; None where a run has none."""

    key: str
    one: object
    other: object


def differing(one: xr.DataTree, other: xr.DataTree) -> list[Setting]:
    """What differs between two runs: settings by dotted key, and facts of the weights, the template, the code."""
    held = []
    for run in (one, other):
        check_single(run)
        facts = {field: run.attrs.get(field) for field in FIELDS}
        held.append(flatten(yaml.safe_load(run.attrs["config"])) | facts)
    keys = dict.fromkeys([*held[0], *held[1]])
    return [Setting(k, held[0].get(k), held[1].get(k)) for k in keys if _told(held[0].get(k)) != _told(held[1].get(k))]


def _told(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def compare(
    one: xr.DataTree, other: xr.DataTree, label: str = "refusal", harmful: bool | None = True, level: float = 0.95
) -> xr.Dataset:
    """Every condition that both runs have, on the prompts that both asked: rate in each, difference other - one
    with its paired interval (Newcombe, method 10), exact McNemar p, n pairs. Over condition.

    Raises GatingError where they share no prompt, or no condition by name.
    """
    for run in (one, other):
        check_single(run)
    held = [hits(run, label, harmful) for run in (one, other)]
    prompts, names = ([v for v in held[0][0][d].values.tolist() if v in set(held[1][0][d].values.tolist())]
                      for d in ("prompt", "condition"))  # fmt: skip
    for what, shared in (("prompt", prompts), ("condition", names)):
        if not shared:
            raise GatingError(f"these runs share no {what}, so nothing is to be compared; make one like the other.")
    at = {"prompt": prompts, "condition": names}
    (x, x_there), (y, y_there) = ([a.sel(at).transpose("condition", "prompt").values for a in h] for h in held)
    both = x_there & y_there
    found = pairs(y, x, both, level)
    with np.errstate(invalid="ignore"):
        rates = {"one": (both & x).sum(1) / found.n, "other": (both & y).sum(1) / found.n}
    columns = rates | {k: getattr(found, k) for k in ("difference", "low", "high", "p", "n")}
    kinds = read_group(one, "conditions")["kind"].sel(condition=names).values.tolist()
    ds = xr.Dataset(
        {k: ("condition", v) for k, v in columns.items()}, {"condition": names, "kind": ("condition", kinds)}
    )
    return ds.assign_attrs(label=label, shared=len(prompts), interval=f"Newcombe method 10, {level:.0%}")
