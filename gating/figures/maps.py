"""Heat maps: two settings of a grid against a rate, injection block against knock-out block, cosines of directions."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis, geometry
from gating.figures.base import SHADES, STYLES, which


def cells(
    ax: Axes, values: np.ndarray, columns: list[str], rows: list[str], low: float, high: float, cmap: str, form: str
):
    """A labelled grid of numbers on colours; `missing` where there is none."""
    image = ax.pcolormesh(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, edgecolors="white", lw=1)
    middle = (low + high) / 2
    for (i, j), v in np.ndenumerate(values):
        text = "–" if np.isnan(v) else format(v, form)
        dark = v < middle if cmap == "cividis" else abs(v - middle) > 0.35 * (high - low)
        ax.text(
            j + 0.5, i + 0.5, text, ha="center", va="center", fontsize="x-small", color="white" if dark else "black"
        )
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_ylim(len(rows), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def has_grid(run: xr.DataTree) -> bool:
    """Whether the steered conditions vary in both block and coefficient."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=about["kind"].values == "steered")
    return all(len(set(steered[a].values.tolist())) > 1 for a in ("layers", "coef"))


def grid(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates of steered conditions over block (window) and coefficient."""
    rates = analysis.rates(run, harmful=harmful)
    steered = rates.isel(condition=rates["kind"].values == "steered")
    layers = list(dict.fromkeys(steered["layers"].values.tolist()))
    coefs = sorted(set(steered["coef"].values.tolist()))
    made = Figure(figsize=(2.5 + 1.0 * len(coefs) * 2, 2.2 + 0.35 * len(layers)), layout="constrained", dpi=150)
    for ax, label in zip(made.subplots(1, 2, sharey=True), ("refusal", "degenerate"), strict=True):
        one = steered["rate"].sel(label=label)
        values = np.full((len(layers), len(coefs)), np.nan)
        for place, v in zip(
            zip(steered["layers"].values.tolist(), steered["coef"].values.tolist(), strict=True),
            one.values,
            strict=True,
        ):
            values[layers.index(place[0]), coefs.index(place[1])] = 100 * v
        cells(ax, values, [f"{c:g}" for c in coefs], layers, 0, 100, "cividis", ".0f")
        ax.set_title(f"{label}, % of {which(harmful)} prompts", fontsize="medium", loc="left")
        ax.set_xlabel("coefficient")
    made.axes[0].set_ylabel("block")
    return made


def has_pairs(run: xr.DataTree) -> bool:
    """Whether named conditions vary in the block of their first and of their second intervention."""
    about = _pairs(run)
    return about is not None and all(len(set(about["iv_layers"].values[:, i].tolist())) > 1 for i in (0, 1))


def _pairs(run: xr.DataTree) -> xr.Dataset | None:
    about = analysis.group(run, "conditions")
    if about.sizes.get("intervention", 0) < 2:
        return None
    two = (
        (about["kind"].values == "named")
        & (about["iv_op"].values[:, 0] == "add")
        & (about["iv_op"].values[:, 1] == "ablate")
    )
    return about.isel(condition=two) if two.any() else None


def pairs(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate over injection block and knock-out block."""
    about = _pairs(run)
    assert about is not None
    rate = 100 * analysis.refusal_rate(run, harmful=harmful)["rate"]
    inject, out = ([*dict.fromkeys(about["iv_layers"].values[:, i].tolist())] for i in (0, 1))
    values = np.full((len(inject), len(out)), np.nan)
    for name, (a, b) in zip(about["condition"].values.tolist(), about["iv_layers"].values[:, :2].tolist(), strict=True):
        values[inject.index(a), out.index(b)] = float(rate.sel(condition=name))
    short = [w if w.count("+") < 2 else f"{w.split('+')[0]}-{w.split('+')[-1]}" for w in out]
    made = Figure(figsize=(3 + 0.8 * len(out), 2.2 + 0.4 * len(inject)), layout="constrained", dpi=150)
    ax = made.add_subplot()
    cells(ax, values, short, inject, 0, 100, "cividis", ".0f")
    ax.set_xlabel("knock-out block (or window)")
    ax.set_ylabel("injection block")
    ax.set_title(f"refusal, % of {which(harmful)} prompts", fontsize="medium", loc="left")
    return made


def cosines(run: xr.DataTree) -> Figure:
    """Cosines of all directions at the block where they matter most, and by block against the two nulls: |cosine| of
    isotropic vectors (band) and of label-permuted directions (dotted)."""
    found = geometry.cosines(run)
    names = found["direction"].values.tolist()
    layer = int(0.6 * found.sizes["layer"])
    made = Figure(figsize=(10.5, 3 + 0.3 * len(names)), layout="constrained", dpi=150)
    left, right = made.subplots(1, 2, width_ratios=[3, 4])
    cells(left, found["cosine"].isel(layer=layer).values, names, names, -1, 1, "RdBu_r", ".2f")
    left.set_title(f"cosine at block {int(found['layer'][layer])}", fontsize="medium", loc="left")
    x, bound = found["layer"].values, float(found["gaussian"])
    right.axhspan(-bound, bound, color="#000000", alpha=0.1, lw=0, label="isotropic vectors, 95%")
    for i, name in enumerate(n for n in names if n != "refusal"):
        one = found.sel(direction=name, other="refusal")
        colour, style = SHADES[i % len(SHADES)], STYLES[i // len(SHADES) % len(STYLES)]
        right.plot(x, one["cosine"], style, color=colour, label=name)
        if "permuted_low" in found and i == 0:
            for end in ("permuted_low", "permuted_high"):
                right.plot(
                    x,
                    one[end],
                    ":",
                    color=colour,
                    lw=1,
                    label=f"{name}, labels permuted, 95%" if end.endswith("low") else None,
                )
    right.set_xlabel("block")
    right.set_title("cosine with the refusal direction", fontsize="medium", loc="left")
    right.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", frameon=False, fontsize="x-small", ncols=5)
    return made


def has_traits(run: xr.DataTree) -> bool:
    """Whether the run has directions of several traits."""
    if "directions" not in run.children:
        return False
    return sum(str(r) not in ("refusal", "derived") for r in analysis.group(run, "directions")["role"].values) > 2


def shared(run: xr.DataTree) -> Figure:
    """Do the traits share one axis, and is refusal on it: the first component's share, and each direction's cosine with it."""
    found = geometry.shared_axis(run)
    made = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=150)
    left, right = made.subplots(1, 2)
    left.plot(found["layer"], 100 * found["explained"].isel(component=0), "o-", color=SHADES[1], ms=3)
    left.axhline(100 / found.attrs["traits"], color="#000000", ls=":", lw=1)
    left.set_ylim(0, 103)
    left.set_title(
        "first component's share of the traits, %\n(dotted: as if they shared nothing)", fontsize="medium", loc="left"
    )
    for i, name in enumerate(found["direction"].values.tolist()):
        colour = "#000000" if name == "refusal" else SHADES[i % len(SHADES)]
        right.plot(
            found["layer"],
            found["loading"].sel(direction=name),
            STYLES[i // len(SHADES) % len(STYLES)],
            color=colour,
            label=name,
        )
    right.axhline(0, color="#999999", lw=0.8)
    right.set_title("cosine with the first component", fontsize="medium", loc="left")
    handles, labels = right.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", frameon=False, fontsize="x-small", ncols=5)
    for ax in (left, right):
        ax.set_xlabel("block")
        ax.spines[["top", "right"]].set_visible(False)
    return made
