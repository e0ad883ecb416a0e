"""Against chance: each condition among all of its random controls."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gating import analysis, stats
from gating.figures.base import KIND_COLOURS, which

MOST = 24


def controlled(run: xr.DataTree) -> list[tuple[str, list[str]]]:
    """Each steered or named condition with its random controls: those of its own place in the grid; else those that do just
    what it does but for a random direction. Controls of no condition stand under the name that they share, `NAME (random)`."""
    about = analysis.group(run, "conditions")
    names, kinds, grids = (about[c].values.tolist() for c in ("condition", "kind", "grid"))
    null: dict[int, list[str]] = {}
    own: dict[int, list[str]] = {}
    for name, kind, grid in zip(names, kinds, grids, strict=True):
        into = null if kind == "random" else own if kind in ("steered", "named") else {}
        into.setdefault(grid, []).append(name)
    free = [name for some in own.values() for name in some]
    out = []
    for grid, some in null.items():
        whose = own.get(grid) or [n for n in free if _same_but_random(about, names.index(n), names.index(some[0]))]
        out += [(name, some) for name in whose or [some[0].partition("-random-")[0] + " (random)"]]
    return out


def _same_but_random(about: xr.Dataset, own: int, control: int) -> bool:
    """Whether two conditions are one but for the directions that are random in the control: the same operations at the
    same blocks and strengths on the same tokens under the same system message."""
    if "iv_op" not in about or about["system"].values[own] != about["system"].values[control]:
        return False
    a, b = ({c: about[c].values[i] for c in about.data_vars if str(c).startswith("iv_")} for i in (own, control))
    for slot in range(about.sizes["intervention"]):
        fixed = ["iv_op", "iv_layers", "iv_scope"]
        if b["iv_seed"][slot] < 0:
            fixed += ["iv_direction", "iv_norm", "iv_read"]
        elif a["iv_seed"][slot] >= 0:
            return False
        elif b["iv_op"][slot] == "add":
            fixed += ["iv_norm"]  # a projection has no length to set
        if any(a[c][slot] != b[c][slot] for c in fixed):
            return False
        if not np.array_equal(a["iv_coef"][slot], b["iv_coef"][slot], equal_nan=True):
            return False
    return bool((b["iv_seed"] >= 0).any())


def unusual(own: float, null: ArrayLike) -> tuple[float, int]:
    """Permutation p of a condition's rate among those of its random controls, either way, and their number K.

    p = (1 + controls at least as far from the mean of all K + 1) / (K + 1). The mean takes the condition in, so that under
    the null each of the K + 1 is as likely as any other to lie farthest; around the controls' own mean p would be too
    small. Missing rates do not count; NaN where the condition's own is missing or it has no controls.
    """
    known = np.asarray(null, dtype="float64")
    known = known[np.isfinite(known)]
    if not np.isfinite(own) or not known.size:
        return np.nan, int(known.size)
    middle = np.append(known, own).mean()
    far = np.round(np.abs(known - middle), 9)  # equal counts of prompts must tie, whatever the sum's rounding
    return stats.permutation_p(float(np.round(abs(own - middle), 9)), far), int(known.size)


def strip(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of each condition beside every one of its random controls (a dot each), with `unusual`'s p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    lines = controlled(run)[:MOST]
    own = [name for name, _ in lines if name in rate["condition"].values]
    longest = max(len(name) for name, _ in lines)
    made = Figure(figsize=(max(8.5, 6.5 + 0.085 * longest), 1.5 + 0.42 * len(lines)), layout="constrained", dpi=150)
    ax = made.add_subplot()
    ax.axvline(float(rate.sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
    for y, (name, null) in enumerate(lines):
        values = rate.sel(condition=null).values
        ax.plot(values, y + np.linspace(-0.25, 0.25, len(values)), ".", color=KIND_COLOURS["random"], ms=6,
                label="random directions, one a dot" if y == 0 else None)  # fmt: skip
        if name not in own:
            continue
        value = float(rate.sel(condition=name))
        ax.plot(
            [value], [y], "o", color=KIND_COLOURS["steered"], ms=8, label="the condition" if name == own[0] else None
        )
        p, k = unusual(value, values)
        ax.text(104, y, "missing" if np.isnan(p) else f"p = {p:.2f} (K = {k})", va="center", fontsize="x-small")
    ax.set_yticks(range(len(lines)), [name for name, _ in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-3, 103)
    ax.set_xlabel(f"refusal, % of {which(harmful)} prompts")
    ax.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return made


def said(run: xr.DataTree, harmful: bool | None) -> str:
    """The picture in words: each condition's rate, the range of its controls, p."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    out = []
    for name, null in controlled(run)[:MOST]:
        values = rate.sel(condition=null).values
        if not np.isfinite(values).any():
            continue
        ends = f"{len(null)} random directions {np.nanmin(values):.0f}% to {np.nanmax(values):.0f}%"
        if name not in rate["condition"].values:
            out.append(f"{name}: {ends}")
            continue
        value = float(rate.sel(condition=name))
        out.append(
            f"{name}: {value:.0f}%, {ends}, p = {unusual(value, values)[0]:.2f}"
            if np.isfinite(value)
            else f"{name}: missing, {ends}"
        )
    return "; ".join(out)
