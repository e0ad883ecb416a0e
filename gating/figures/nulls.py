"""Against chance and against oneself: each condition among all of its random controls, each prompt before and after."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis, stats
from gating.figures.base import KIND_COLOURS, SHADES, which

MOST = 24


def controlled(run: xr.DataTree) -> list[tuple[str, list[str]]]:
    """Each condition that has random controls in its place of the grid, with them; random directions that control none in
    particular stand under the name that they share."""
    about = analysis.group(run, "conditions")
    columns = list(zip(*(about[c].values.tolist() for c in ("condition", "kind", "grid")), strict=True))
    null: dict[int, list[str]] = {}
    own: dict[int, list[str]] = {}
    for name, kind, grid in columns:
        into = null if kind == "random" else own if kind in ("steered", "named") else {}
        into.setdefault(grid, []).append(name)
    return [
        (name, some)
        for grid, some in null.items()
        for name in own.get(grid, [some[0].partition("-random-")[0] + " (random)"])
    ]


def strip(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of each condition beside every one of its random controls (a dot each), with the permutation p of its
    distance from their mean: p = (1 + number at least as far) / (K + 1)."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    lines = controlled(run)[:MOST]
    first = next((name for name, _ in lines if name in rate["condition"].values), "")
    made = Figure(figsize=(8.5, 1.5 + 0.42 * len(lines)), layout="constrained", dpi=150)
    ax = made.add_subplot()
    ax.axvline(float(rate.sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
    for y, (name, null) in enumerate(lines):
        values = rate.sel(condition=null).values
        ax.plot(values, y + np.linspace(-0.25, 0.25, len(values)), ".", color=KIND_COLOURS["random"], ms=6,
                label="random directions, one a dot" if y == 0 else None)  # fmt: skip
        if name not in rate["condition"].values:
            continue
        own = float(rate.sel(condition=name))
        ax.plot([own], [y], "o", color=KIND_COLOURS["steered"], ms=8, label="the condition" if name == first else None)
        p = stats.permutation_p(abs(own - values.mean()), np.abs(values - values.mean()))
        ax.text(104, y, f"p = {p:.2f} (K = {len(values)})", va="center", fontsize="x-small")
    ax.set_yticks(range(len(lines)), [name for name, _ in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-3, 103)
    ax.set_xlabel(f"refusal, % of {which(harmful)} prompts")
    ax.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return made


def per_prompt(run: xr.DataTree, harmful: bool | None) -> Figure:
    """First-token refusal score of each prompt at baseline against each of the first conditions, with the share of prompts
    that moved against the mean (Tan et al. 2024, arXiv 2407.12404: steering is not the same for every prompt)."""
    about = analysis.group(run, "conditions")
    flags = analysis.group(run, "prompts")["harmful"].values
    keep = np.ones(flags.size, dtype=bool) if harmful is None else flags == harmful
    score = analysis.group(run, "outcomes")["refusal_score"].isel(prompt=keep)
    names = about["condition"].values[np.isin(about["kind"].values, ["steered", "named"])].tolist()[:6]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    made = Figure(figsize=(3.3 * columns, 3.3 * rows), layout="constrained", dpi=150)
    base = score.sel(condition="baseline").values
    axes = made.subplots(rows, columns, squeeze=False).flat
    ends = [float(np.nanmin(score)), float(np.nanmax(score))] if np.isfinite(score).any() else [0.0, 1.0]
    for name, ax in zip(names, axes, strict=False):
        own = score.sel(condition=name).values
        moved = own - base
        against = (
            np.mean(np.sign(moved[np.isfinite(moved)]) == -np.sign(np.nanmean(moved)))
            if np.isfinite(moved).any()
            else np.nan
        )
        ax.plot(ends, ends, "-", color="#999999", lw=0.8)
        ax.plot(base, own, "o", color=SHADES[0], ms=3.5, alpha=0.6, mec="none")
        ax.set_title(f"{name}\n{100 * against:.0f}% moved the other way", fontsize="small", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes):
        ax.set_visible(False)
    made.supxlabel("refusal score at baseline, nats", fontsize="small")
    made.supylabel("under the condition", fontsize="small")
    return made
