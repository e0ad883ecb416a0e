"""Heat maps of rates: block by coefficient, and injection block by knock-out block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from gating import analysis
from gating.figures import grids
from gating.figures.base import Picture, left_out, styled, which, window

MOST = 4  # panels of each rate
REMOVALS = ("ablate", "remove")
Blocks = tuple[int, ...]


def cells(
    ax: Axes,
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    limits: tuple[float, float],
    cmap: str,
    form: str,
    texts: np.ndarray | None = None,
) -> ScalarMappable:
    """A labelled grid of numbers on colours, dark letters on light cells; a dash where there is none. texts: what
    stands in the cells instead of the numbers."""
    low, high = limits
    image = ax.pcolormesh(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, edgecolors="white", lw=1)
    for (i, j), v in np.ndenumerate(values):
        red, green, blue, _ = image.to_rgba(v) if np.isfinite(v) else (1, 1, 1, 1)
        colour = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"
        number = format(v, f"z{form}")  # z: what rounds to nothing has no sign
        text = "–" if np.isnan(v) else number if texts is None else str(texts[i, j])
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize="x-small", color=colour)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    if max(map(len, columns)) > 4:
        ax.set_xticks(ax.get_xticks(), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_ylim(len(rows), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def panels(run: xr.DataTree) -> list[tuple[grids.Setting, xr.Dataset]]:
    """The maps of block by coefficient: the steered conditions for each setting of what varies besides."""
    steered = grids.steered(run)
    return grids.settings(steered, grids.varying(steered, besides=("layers", "coef")))


def has_grid(run: xr.DataTree) -> bool:
    """Whether the steered conditions vary in both block and coefficient."""
    maps = panels(run)
    return bool(maps) and {"layers", "coef"} <= set(grids.varying(maps[0][1]))


@styled
def grid(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates of steered conditions over block (window) and coefficient; a row of maps for each
    setting of what varies besides (direction, operation, tokens)."""
    rates = 100 * analysis.rates(run, harmful=harmful)["rate"]
    maps = panels(run)[:MOST]
    drawn = xr.concat([conditions for _, conditions in maps], "condition")
    layers, coefs = grids.ordered(drawn, "layers"), grids.ordered(drawn, "coef")
    figure = Figure(figsize=(max(7.5, 2.5 + 1.3 * len(coefs)), len(maps) * (1.6 + 0.33 * len(layers))))
    axes = figure.subplots(len(maps), 2, sharey=True, squeeze=False)
    for row, (setting, conditions) in zip(axes, maps, strict=True):
        for ax, label in zip(row, ("refusal", "degenerate"), strict=True):
            values = np.full((len(layers), len(coefs)), np.nan)
            columns = (conditions[c].values.tolist() for c in ("condition", "layers", "coef"))
            for name, layer, coef in zip(*columns, strict=True):
                values[layers.index(layer), coefs.index(coef)] = float(rates.sel(label=label, condition=name))
            cells(ax, values, [f"{c:g}" for c in coefs], list(map(str, layers)), (0, 100), "cividis", ".0f")
            what = f"{label}, % of {which(harmful)} prompts"
            ax.set_title(f"{grids.title(setting)}\n{what}" if setting else what)
            ax.set_xlabel("coefficient")
        row[0].set_ylabel("block")
    return figure


def _pairs(run: xr.DataTree) -> list[tuple[str, dict[tuple[Blocks, Blocks], str]]]:
    """Families of named conditions that inject once and knock out once and differ in blocks alone: {(injection blocks,
    knock-out blocks): condition} with a title, only where both vary. The two may stand in either order."""
    conditions = analysis.read_group(run, "conditions")
    settings = sorted(str(c) for c in conditions if str(c).startswith("iv_"))
    fixed = [c for c in settings if c not in ("iv_layers", "iv_written", "iv_read")]
    families: dict[tuple[str, ...], dict[tuple[Blocks, Blocks], str]] = {}
    for i in np.flatnonzero(conditions["kind"].values == "named"):
        condition = conditions.isel(condition=i)
        ops = [op for op in condition["iv_op"].values.tolist() if op]
        if len(ops) != 2 or ops.count("add") != 1 or not set(ops) & set(REMOVALS):
            continue
        inject = condition.isel(intervention=ops.index("add"))
        out = condition.isel(intervention=1 - ops.index("add"))
        title = f"{inject['iv_direction'].item()} in, {out['iv_direction'].item()} out"
        same = [str(end[c].item()) for c in fixed for end in (inject, out)]
        blocks = tuple(tuple(np.flatnonzero(end["iv_written"].values).tolist()) for end in (inject, out))
        family = families.setdefault((title, *same, str(condition["system"].item())), {})
        family[blocks[0], blocks[1]] = str(condition["condition"].item())
    return [
        (title, family)
        for (title, *_), family in families.items()
        if all(len(set(ends)) > 1 for ends in zip(*family, strict=True))
    ]


def has_pairs(run: xr.DataTree) -> bool:
    """Whether named conditions vary in the block of injection and in that of knock-out."""
    return bool(_pairs(run))


@styled
def pairs(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate over injection block and knock-out block, a map for each pair of directions and strengths."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    families = _pairs(run)[:MOST]
    ends = [[sorted(set(blocks)) for blocks in zip(*family, strict=True)] for _, family in families]
    heights = [1.9 + 0.4 * len(inject) for inject, _ in ends]
    figure = Figure(figsize=(max(6.5, 3 + 0.8 * max(len(out) for _, out in ends)), sum(heights)))
    axes = figure.subplots(len(families), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, family), (inject, out) in zip(axes, families, ends, strict=True):
        values = np.full((len(inject), len(out)), np.nan)
        for (a, b), name in family.items():
            values[inject.index(a), out.index(b)] = float(rate.sel(condition=name))
        cells(ax, values, list(map(window, out)), list(map(window, inject)), (0, 100), "cividis", ".0f")
        ax.set_xlabel("knock-out block (or window)")
        ax.set_ylabel("injection block")
        ax.set_title(f"refusal, % of {which(harmful)} prompts: {title}")
    return figure


def pairs_in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """The map of injection by knock-out in words."""
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    return "; ".join(
        f"in at {window(a)}, out at {window(b)}: {float(rate.sel(condition=name)):.0f}%"
        for _, family in _pairs(run)[:MOST]
        for (a, b), name in family.items()
    )


FIGURES = (
    Picture(
        "dose",
        "method.md#choosing-sites",
        "grid",
        has_grid,
        grid,
        lambda run, harmful: (
            "Refusal and degenerate rates of every steered condition by block and coefficient, as numbers on a map; "
            "they are in the table too."
        ),
        lambda run: (
            "Block by coefficient. Choose on the select split, where refusal falls and answers stay whole."
            + left_out(len(panels(run)), MOST, "settings")
        ),
    ),
    Picture(
        "dose",
        "knockout.md",
        "pairs",
        has_pairs,
        pairs,
        lambda run, harmful: f"Refusal rate by injection block and knock-out block: {pairs_in_words(run, harmful)}.",
        lambda run: "Injection block by knock-out block. A knock-out before the injection cannot undo it.",
    ),
)
