"""Which refusal direction to use, by Arditi's rule (arXiv 2406.11717, section 2.3 and appendix C): every candidate with
the reason why it was rejected, never an assertion."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.analysis.reading import asked_both, held_readouts, read_group, written_blocks
from gating.errors import GatingError

MAX_KL = 0.1  # nats, on harmless prompts
LATEST = 0.8  # of the depth: later directions act on the output tokens themselves
FAMILIES = ("bypass", "induce")  # the conditions of experiment=selection
SCORES = ("bypass_score", "induce_score", "kl")


def candidates(run: xr.DataTree, max_kl: float = MAX_KL, latest: float = LATEST) -> xr.Dataset:
    """Every candidate direction and block of a selection run: bypass_score, induce_score, kl over (direction, layer),
    why it is rejected (`reason`, empty where it is kept) and which one is `chosen`.

    bypass_score: mean first-token refusal log-odds of harmful prompts with the direction projected out of every block
    (lower is better); induce_score: that of harmless prompts with it added at its block (must be above 0); kl: mean
    first-token KL of harmless prompts under the projection. Raises GatingError for a run without those conditions.
    """
    scores = _scores(run)
    n = scores.sizes["layer"]
    reason = np.array([
        [_reason(scores.isel(direction=d, layer=i), n, max_kl, latest) for i in range(n)]
        for d in range(scores.sizes["direction"])
    ])  # fmt: skip
    kept = np.where(reason == "", scores["bypass_score"].values, np.inf)
    chosen = np.zeros(kept.shape, dtype=bool)
    if np.isfinite(kept).any():
        chosen[np.unravel_index(np.argmin(kept), kept.shape)] = True
    rule = {"max_kl": max_kl, "latest": latest, "rule": "lowest bypass_score of those that are kept"}
    dims = ("direction", "layer")
    return scores.assign(reason=(dims, reason), chosen=(dims, chosen)).assign_attrs(rule)


def _scores(run: xr.DataTree) -> xr.Dataset:
    """bypass_score, induce_score and kl over (direction, layer); NaN where a candidate was not run."""
    conditions, readouts = read_group(run, "conditions"), held_readouts(run)
    families = conditions["family"].values.tolist()
    if "kl" not in readouts or not set(FAMILIES) <= set(families) or not asked_both(run):
        raise GatingError(
            "this run holds no candidates (conditions bypass and induce, readouts, harmful and harmless prompts): "
            "make one with experiment=selection."
        )
    harmful = read_group(run, "prompts")["harmful"].values
    score, kl = read_group(run, "outcomes")["refusal_score"].values, readouts["kl"].load().values
    layers = read_group(run, "directions")["layer"].values
    written = conditions["iv_direction"].values[:, 0].tolist()
    directions = list(dict.fromkeys(d for d, family in zip(written, families, strict=True) if family in FAMILIES))
    out = {name: np.full((len(directions), len(layers)), np.nan) for name in SCORES}
    for i, family in enumerate(families):
        if family == "bypass":
            at = directions.index(written[i]), int(conditions["iv_read"].values[i, 0])
            out["bypass_score"][at], out["kl"][at] = score[i][harmful].mean(), kl[i][~harmful].mean()
        elif family == "induce":
            at = directions.index(written[i]), int(written_blocks(conditions.isel(condition=i))[0])
            out["induce_score"][at] = score[i][~harmful].mean()
    return xr.Dataset(
        {name: (("direction", "layer"), values) for name, values in out.items()},
        coords={"direction": directions, "layer": layers},
    )


def _reason(candidate: xr.Dataset, n: int, max_kl: float, latest: float) -> str:
    """Why a candidate is rejected, of n blocks; empty where it is kept."""
    bypass, induce, kl = (float(candidate[name]) for name in SCORES)
    if not np.isfinite([bypass, induce, kl]).all():
        return "missing"
    reasons = []
    if int(candidate["layer"]) >= latest * n:
        reasons.append(f"in the last {1 - latest:.0%} of the blocks")
    if kl > max_kl:
        reasons.append(f"KL {kl:.2f} above {max_kl:g} on harmless prompts")
    if induce <= 0:
        reasons.append(f"does not induce refusal (score {induce:.1f})")
    return "; ".join(reasons)
