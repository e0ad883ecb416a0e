"""Which refusal direction to use, by Arditi's rule (arXiv 2406.11717, section 2.3 and appendix C): every candidate with
the reason why it was rejected, never an assertion. `python -m gating.selection RUN` after experiment=selection."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from gating import analysis, store
from gating.errors import GatingError

MAX_KL = 0.1  # nats, on harmless prompts
LATEST = 0.8  # of the depth: later directions act on the output tokens themselves
NEEDED = ("bypass", "induce")


def candidates(run: xr.DataTree, max_kl: float = MAX_KL, latest: float = LATEST) -> xr.Dataset:
    """Every candidate direction and block of a selection run: bypass_score, induce_score, kl over (direction, layer), why
    it is rejected (`reason`, empty where it is kept) and which one is `chosen`.

    bypass_score: mean first-token refusal log-odds of harmful prompts with the direction projected out of every block
    (lower is better); induce_score: that of harmless prompts with it added at its block (must be above 0); kl: mean
    first-token KL of harmless prompts under the projection. Raises GatingError for a run without those conditions.
    """
    about = analysis.group(run, "conditions")
    harmful = analysis.group(run, "prompts")["harmful"]
    score = analysis.group(run, "outcomes")["refusal_score"]
    kl = analysis.group(run, "readouts")["kl"] if "readouts" in run.children else None
    names = about["condition"].values.tolist()
    kinds = [n.split("[", 1)[0] for n in names]
    if kl is None or not set(NEEDED) <= set(kinds) or not harmful.any() or harmful.all():
        raise GatingError(
            "this run holds no candidates (conditions bypass and induce, readouts, harmful and harmless prompts): make one "
            "with experiment=selection."
        )
    layers = analysis.group(run, "directions")["layer"].values
    directions = list(dict.fromkeys(about["iv_direction"].values[[k in NEEDED for k in kinds], 0].tolist()))
    shape = (len(directions), len(layers))
    out = {name: np.full(shape, np.nan) for name in ("bypass_score", "induce_score", "kl")}
    for i, kind in enumerate(kinds):
        if kind not in NEEDED:
            continue
        one = about.isel(condition=i)
        direction = directions.index(str(one["iv_direction"].values[0]))
        if kind == "bypass":
            at = direction, int(one["iv_read"].values[0])
            out["bypass_score"][at] = score.isel(condition=i)[harmful.values].mean()
            out["kl"][at] = kl.isel(condition=i)[~harmful.values].mean()
        else:
            at = direction, int(one["iv_layers"].values[0])
            out["induce_score"][at] = score.isel(condition=i)[~harmful.values].mean()
    reason = np.array([
        [_reason({k: float(v[d, i]) for k, v in out.items()}, layer, len(layers), max_kl, latest) for i, layer in enumerate(layers)]
        for d in range(len(directions))
    ])  # fmt: skip
    chosen = np.zeros(shape, dtype=bool)
    kept = np.where(reason == "", out["bypass_score"], np.inf)
    if np.isfinite(kept).any():
        chosen[np.unravel_index(np.argmin(kept), shape)] = True
    dims = ("direction", "layer")
    return xr.Dataset(
        {**{k: (dims, v) for k, v in out.items()}, "reason": (dims, reason), "chosen": (dims, chosen)},
        coords={"direction": directions, "layer": layers},
        attrs={"max_kl": max_kl, "latest": latest, "rule": "lowest bypass_score of those that are kept"},
    )


def _reason(one: dict[str, float], layer: int, n: int, max_kl: float, latest: float) -> str:
    if not np.isfinite(list(one.values())).all():
        return "missing"
    reasons = []
    if layer >= latest * n:
        reasons.append(f"in the last {1 - latest:.0%} of the blocks")
    if one["kl"] > max_kl:
        reasons.append(f"KL {one['kl']:.2f} above {max_kl:g} on harmless prompts")
    if one["induce_score"] <= 0:
        reasons.append(f"does not induce refusal (score {one['induce_score']:.1f})")
    return "; ".join(reasons)


def table(found: xr.Dataset) -> Table:
    """Every candidate, best bypass first, with the reason why it was rejected."""
    out = Table("direction", "block", "bypass", "induce", "KL", "verdict", title="candidates (select split)")
    rows = [
        found.isel(direction=d, layer=i) for d in range(found.sizes["direction"]) for i in range(found.sizes["layer"])
    ]
    for r in sorted(
        rows, key=lambda r: (not bool(r["chosen"]), bool(str(r["reason"].item())), float(r["bypass_score"]))
    ):
        verdict = "chosen" if r["chosen"] else str(r["reason"].item()) or "kept, not the lowest"
        numbers = [f"{float(r[k]):.2f}" for k in ("bypass_score", "induce_score", "kl")]
        out.add_row(str(r["direction"].item()), str(int(r["layer"])), *numbers, verdict)
    if not found["chosen"].any():
        out.caption = "no candidate passes: the refusal direction of this model is not one that the rule accepts"
    return out


def main() -> None:
    """Print the candidates of a selection run and write them to selection.csv in its folder."""
    parser = argparse.ArgumentParser(prog="python -m gating.selection", description=main.__doc__)
    parser.add_argument("run", help="a run's folder or its store.zarr")
    parser.add_argument("--max-kl", type=float, default=MAX_KL)
    parser.add_argument("--latest", type=float, default=LATEST, help="blocks from this relative depth on are rejected")
    args = parser.parse_args()
    try:
        found = candidates(store.open_run(args.run), args.max_kl, args.latest)
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)
    Console(width=None if sys.stdout.isatty() else 140).print(table(found))
    path = Path(store.locate(args.run)).parent / "selection.csv"
    found.to_dataframe().reset_index().to_csv(path, index=False)
    print(f"table: {path}")


if __name__ == "__main__":
    main()
