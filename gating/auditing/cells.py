"""The cells of an audit, model x induction x persona: labels gathered from its runs, and what they say, as pure
functions on labelled arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from gating.analysis import stats
from gating.analysis.pairs import pairs
from gating.analysis.reading import read_group
from gating.auditing.stages import AGAIN, BASE, NONE, PROMPT, RANDOM, STEERING, Audited, rows
from gating.judging.labels import CODES, LABELS, MISSING

SETS = ("harmful", "borderline", "harmless")
FEWEST = 5  # prompts of a category: fewer say nothing about it
DRAWS = 2000  # of a bootstrap


def gathered(audited: Audited) -> xr.Dataset:
    """label int8 [cell, prompt] with model, induction and persona of each cell, set and category of each prompt. Labels
    that a run does not have are missing."""
    labels: list[xr.DataArray] = []
    index: list[tuple[str, str, str]] = []
    columns: dict[str, tuple[str, str]] = {}
    for part in audited.parts:
        asked, outcomes = read_group(part.tree, "prompts"), read_group(part.tree, "outcomes")
        for i, name in enumerate(asked["prompt"].values.tolist()):
            kind = (
                "harmful" if bool(asked["harmful"][i]) else "borderline" if name in audited.borderline else "harmless"
            )
            columns[name] = kind, str(asked["category"].values[i])
        label = outcomes["label"].where(outcomes["done"], MISSING)
        for condition, induction, persona in rows(part):
            if (part.model, induction, persona) not in index:  # an adapter's baseline stands in two of its runs
                index.append((part.model, induction, persona))
                labels.append(label.sel(condition=condition, drop=True))
    prompt = list(columns)
    table = np.array([x.reindex(prompt=prompt, fill_value=MISSING).values for x in labels], dtype="int8")
    coords = {name: ("cell", [i[k] for i in index]) for k, name in enumerate(("model", "induction", "persona"))}
    of_prompt = {name: ("prompt", [columns[p][k] for p in prompt]) for k, name in enumerate(("set", "category"))}
    return xr.Dataset({"label": (("cell", "prompt"), table)}, coords | of_prompt | {"prompt": prompt})


def findings(cells: xr.Dataset, level: float = 0.95) -> xr.Dataset:
    """Of every cell and set of prompts: rates of labels with Wilson intervals, n; `change` from the same model without
    a persona, and `against_base`, the change from the base model's same cell, both paired (Newcombe), with exact
    McNemar p and, over the family of a set's cells, Holm's.

    Over (cell, set); NaN where nothing was asked or there is nothing to compare with.
    """
    found = [_of_set(cells.isel(prompt=cells["set"].values == name), level) for name in SETS]
    return xr.concat(found, xr.DataArray(list(SETS), dims="set", name="set")).transpose("cell", "set", ...)


def _of_set(cells: xr.Dataset, level: float) -> xr.Dataset:
    label = cells["label"].values
    present, hit = label != MISSING, label == CODES["refusal"]
    n = present.sum(1)
    out = {"n": n}
    for name in LABELS:
        k = (label == CODES[name]).sum(1)
        out[name] = np.where(n > 0, k / np.maximum(n, 1), np.nan)
        out[f"{name}_low"], out[f"{name}_high"] = stats.wilson(k, n, level)
    for name, references in (("change", _unprompted(cells)), ("against_base", _in_base(cells))):
        compared = [paired(hit, present, i, ref, level) for i, ref in enumerate(references)]
        for k, field in enumerate(("", "_low", "_high", "_p", "_n")):
            out[f"{name}{field}"] = np.array([row[k] for row in compared])
        out[f"{name}_holm"] = stats.holm(out[f"{name}_p"])
    return xr.Dataset({k: ("cell", v) for k, v in out.items()}, cells[["model", "induction", "persona"]].coords)


def paired(
    hit: np.ndarray, present: np.ndarray, own: int, reference: int | None, level: float
) -> tuple[float, float, float, float, float]:
    """Difference of refusal rates, low, high, p, n of pairs; NaN without a reference or without pairs."""
    if reference is None or reference == own:
        return np.nan, np.nan, np.nan, np.nan, 0
    found = pairs(hit[own], hit[reference], present[own] & present[reference], level)
    return float(found.difference), float(found.low), float(found.high), float(found.p), int(found.n)


def places(cells: xr.Dataset) -> list[tuple[str, str, str]]:
    """Model, induction and persona of each cell."""
    return list(zip(*(cells[c].values.tolist() for c in ("model", "induction", "persona")), strict=True))


def _unprompted(cells: xr.Dataset) -> list[int | None]:
    """For each cell the one of its model without a persona."""
    at = {place: i for i, place in enumerate(places(cells))}
    return [at.get((model, NONE, "")) for model, _, _ in places(cells)]


def _in_base(cells: xr.Dataset) -> list[int | None]:
    """For each cell of an adapter the base model's. Steering along directions of its own is held against steering."""
    at = {place: i for i, place in enumerate(places(cells))}
    return [None if m == BASE else at.get((BASE, STEERING if i == AGAIN else i, p)) for m, i, p in places(cells)]


def rank_correlation(cells: xr.Dataset, model: str, one: str, other: str, seed: int = 0) -> dict[str, float]:
    """Spearman's correlation over personas of what two inductions do to the refusal of harmful prompts, with a 95%
    percentile interval over personas x prompts, both drawn anew. NaN below four personas, or where nothing differs."""
    own = cells.isel(prompt=cells["set"].values == "harmful")
    at = {place: i for i, place in enumerate(places(own))}
    shared = [p for m, i, p in at if m == model and i == one and (model, other, p) in at]
    refused = np.where(own["label"].values == MISSING, np.nan, own["label"].values == CODES["refusal"])
    pair = np.array([[refused[at[model, i, p]] for p in shared] for i in (one, other)])  # [induction, persona, prompt]
    if len(shared) < 4:
        return {"rho": np.nan, "low": np.nan, "high": np.nan, "personas": len(shared), "prompts": pair.shape[-1]}
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        personas = rng.integers(0, len(shared), len(shared))
        prompts = rng.integers(0, pair.shape[-1], pair.shape[-1])
        drawn.append(_rho(pair[:, personas][:, :, prompts]))
    known = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size > DRAWS / 2 else (np.nan, np.nan)
    return {
        "rho": _rho(pair), "low": float(low), "high": float(high), "personas": len(shared), "prompts": pair.shape[-1],
    }  # fmt: skip


def _rho(pair: np.ndarray) -> float:
    means = np.nanmean(pair, axis=-1)
    if any(np.ptp(m) < 1e-12 for m in means):
        return np.nan
    return float(spearmanr(means[0], means[1]).statistic)


def weakest(cells: xr.Dataset, most: int = 10) -> list[dict[str, object]]:
    """Harmful categories x cells by the upper end of their refusal rate's interval, lowest first, of categories with at
    least FEWEST prompts. Picked as the worst of many: where to look next, not a finding."""
    own = cells.isel(prompt=cells["set"].values == "harmful")
    out = []
    for category in sorted(set(own["category"].values.tolist())):
        label = own["label"].values[:, own["category"].values == category]
        n = (label != MISSING).sum(1)
        k = (label == CODES["refusal"]).sum(1)
        low, high = stats.wilson(k, n)
        out += [
            {"category": category, "model": m, "induction": i, "persona": p, "refused": int(k[c]), "n": int(n[c]),
             "low": float(low[c]), "high": float(high[c])}
            for c, (m, i, p) in enumerate(places(own)) if n[c] >= FEWEST and i != RANDOM
        ]  # fmt: skip
    return sorted(out, key=lambda r: (r["high"], r["low"], r["category"]))[:most]


def correlations(cells: xr.Dataset, models: Sequence[str], seed: int = 0) -> list[dict[str, object]]:
    """Does what a prompt does predict what steering does? For every model."""
    return [
        {"model": model, "one": PROMPT, "other": other, **rank_correlation(cells, model, PROMPT, other, seed)}
        for model in models
        for other in (STEERING, AGAIN)
        if any(m == model and i == other for m, i, _ in places(cells))
    ]
