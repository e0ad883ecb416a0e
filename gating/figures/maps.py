"""Heat maps of rates: block by coefficient, and injection block by knock-out block."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import first_block, which, window
from gating.steering.interventions import AXES

MOST = 4  # panels of each rate
REMOVALS = ("ablate", "remove")


def cells(
    ax: Axes, values: np.ndarray, columns: list[str], rows: list[str], low: float, high: float, cmap: str, form: str
) -> ScalarMappable:
    """A labelled grid of numbers on colours, dark letters on light cells; a dash where there is none."""
    image = ax.pcolormesh(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, edgecolors="white", lw=1)
    for (i, j), v in np.ndenumerate(values):
        red, green, blue, _ = image.to_rgba(v) if np.isfinite(v) else (1, 1, 1, 1)
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
        text = "–" if np.isnan(v) else format(v, f"z{form}")  # z: what rounds to nothing has no sign
        ax.text(
            j + 0.5, i + 0.5, text, ha="center", va="center", fontsize="x-small", color="black" if light else "white"
        )
    slant: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 4 else {}
    )
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, **slant)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_ylim(len(rows), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _steered(run: xr.DataTree) -> list[tuple[str, xr.Dataset]]:
    """The steered conditions, apart for each combination of what varies besides block and coefficient, named by it."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=about["kind"].values == "steered")
    others = [a for a in AXES if a not in ("layers", "coef") and len(set(steered[a].values.tolist())) > 1]
    points = list(zip(*(steered[a].values.tolist() for a in others), strict=True)) or [()] * steered.sizes["condition"]
    out = []
    for point in dict.fromkeys(points):
        title = ", ".join(f"{a} {v}" for a, v in zip(others, point, strict=True))
        out.append((title, steered.isel(condition=np.array([p == point for p in points], dtype=bool))))
    return out


def panels(run: xr.DataTree) -> int:
    """How many maps of block by coefficient the run has: one for each setting of what varies besides."""
    return len(_steered(run))


def has_grid(run: xr.DataTree) -> bool:
    """Whether the steered conditions vary in both block and coefficient."""
    found = _steered(run)
    return bool(found) and all(len(set(found[0][1][a].values.tolist())) > 1 for a in ("layers", "coef"))


def grid(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates of steered conditions over block (window) and coefficient; a row of maps for each
    setting of what varies besides (direction, operation, tokens)."""
    rates = 100 * analysis.rates(run, harmful=harmful)["rate"]
    families = _steered(run)[:MOST]
    layers = sorted({v for _, one in families for v in one["layers"].values.tolist()}, key=first_block)
    coefs = sorted({v for _, one in families for v in one["coef"].values.tolist()})
    made = Figure(
        figsize=(max(7.5, 2.5 + 1.3 * len(coefs)), len(families) * (1.6 + 0.33 * len(layers))),
        layout="constrained",
        dpi=150,
    )
    axes = made.subplots(len(families), 2, sharey=True, squeeze=False)
    for row, (title, about) in zip(axes, families, strict=True):
        for ax, label in zip(row, ("refusal", "degenerate"), strict=True):
            values = np.full((len(layers), len(coefs)), np.nan)
            columns = (about[c].values.tolist() for c in ("condition", "layers", "coef"))
            for name, layer, coef in zip(*columns, strict=True):
                values[layers.index(layer), coefs.index(coef)] = float(rates.sel(label=label, condition=name))
            cells(ax, values, [f"{c:g}" for c in coefs], layers, 0, 100, "cividis", ".0f")
            what = f"{label}, % of {which(harmful)} prompts"
            ax.set_title(f"{title}\n{what}" if title else what, fontsize="medium", loc="left")
            ax.set_xlabel("coefficient")
        row[0].set_ylabel("block")
    return made


def _pairs(run: xr.DataTree) -> list[tuple[str, dict[tuple[str, str], str]]]:
    """Families of named conditions that inject once and knock out once and differ in blocks alone: {(injection blocks,
    knock-out blocks): condition} with a title, only where both vary. The two may stand in either order."""
    about = analysis.group(run, "conditions")
    if about.sizes.get("intervention", 0) < 2:
        return []
    found: dict[tuple, dict[tuple[str, str], str]] = {}
    columns = [c for c in about.data_vars if str(c).startswith("iv_")]
    for i in np.nonzero(about["kind"].values == "named")[0]:
        one = {str(c): about[c].values[i].tolist() for c in columns}
        ops = [op for op in one["iv_op"] if op]
        if len(ops) != 2 or sorted(op == "add" for op in ops) != [False, True] or not any(op in REMOVALS for op in ops):
            continue
        inject = ops.index("add")
        rest = tuple(
            str(one[c][s]) for c in sorted(one) if c not in ("iv_layers", "iv_read") for s in (inject, 1 - inject)
        )
        title = f"{one['iv_direction'][inject]} in, {one['iv_direction'][1 - inject]} out"
        place = (one["iv_layers"][inject], one["iv_layers"][1 - inject])
        found.setdefault((title, rest, str(about["system"].values[i])), {})[place] = str(about["condition"].values[i])
    return [(key[0], each) for key, each in found.items() if all(len({p[s] for p in each}) > 1 for s in (0, 1))]


def has_pairs(run: xr.DataTree) -> bool:
    """Whether named conditions vary in the block of injection and in that of knock-out."""
    return bool(_pairs(run))


def pairs(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate over injection block and knock-out block, a map for each pair of directions and strengths."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    families = _pairs(run)[:MOST]
    ends = [[sorted({p[s] for p in each}, key=first_block) for s in (0, 1)] for _, each in families]
    size = (max(6.5, 3 + 0.8 * max(len(e[1]) for e in ends)), sum(1.9 + 0.4 * len(e[0]) for e in ends))
    made = Figure(figsize=size, layout="constrained", dpi=150)
    axes = made.subplots(len(families), 1, squeeze=False, height_ratios=[1.9 + 0.4 * len(e[0]) for e in ends])[:, 0]
    for ax, (title, each), (inject, out) in zip(axes, families, ends, strict=True):
        values = np.full((len(inject), len(out)), np.nan)
        for (a, b), name in each.items():
            values[inject.index(a), out.index(b)] = float(rate.sel(condition=name))
        cells(ax, values, [window(w) for w in out], [window(w) for w in inject], 0, 100, "cividis", ".0f")
        ax.set_xlabel("knock-out block (or window)")
        ax.set_ylabel("injection block")
        ax.set_title(f"refusal, % of {which(harmful)} prompts: {title}", fontsize="medium", loc="left")
    return made


def said(run: xr.DataTree, harmful: bool | None) -> str:
    """The map of injection by knock-out in words."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    return "; ".join(
        f"in at {window(a)}, out at {window(b)}: {float(rate.sel(condition=name)):.0f}%"
        for _, each in _pairs(run)[:MOST]
        for (a, b), name in each.items()
    )
