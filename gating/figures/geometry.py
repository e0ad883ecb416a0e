"""How the directions lie: cosines of all of them at one block, and with refusal at every block against two nulls."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.analysis import geometry
from gating.figures import traces
from gating.figures.base import blocks, legend, series
from gating.figures.maps import cells

MOST = 8  # directions in one picture


def written_block(run: xr.DataTree, n_layers: int) -> int:
    """The block that the first intervened condition writes first; six tenths up where none says so."""
    about = analysis.group(run, "conditions")
    for kind, layers in zip(
        about["kind"].values, about["iv_layers"].values if "iv_layers" in about else (), strict=False
    ):
        written = [b for text in layers for b in blocks(text)]
        if kind in ("steered", "named") and written:
            return min(written[0], n_layers - 1)
    return int(0.6 * n_layers)


def cosines(run: xr.DataTree) -> Figure:
    """Cosines of all directions at the block that is steered, and with the refusal direction (the last one where there is
    none) at every block: the band is where isotropic vectors stay, dotted lines are the first direction's with permuted
    labels."""
    found = geometry.cosines(run)
    names, layers = found["direction"].values.tolist(), found["layer"].values
    at = int(np.argmin(np.abs(layers - written_block(run, int(layers[-1]) + 1))))
    side, longest = max(3.4, 0.42 * len(names)), max(map(len, names))
    size = (side + 0.075 * longest + 5.6, max(4.2, side + 0.06 * longest + 0.8))
    made = Figure(figsize=size, layout="constrained", dpi=150)
    left, right = made.subplots(1, 2, width_ratios=[side + 0.075 * longest, 5.2])
    cells(left, found["cosine"].isel(layer=at).values, names, names, -1, 1, "RdBu_r", ".2f")
    left.set_title(f"cosine at block {int(layers[at])}", fontsize="medium", loc="left")
    bound, other = float(found["gaussian"]), "refusal" if "refusal" in names else names[-1]
    right.axhspan(-bound, bound, color="#000000", alpha=0.1, lw=0, label="isotropic vectors, 95%")
    shown = [n for n in names if n != other]
    for i, name in enumerate(shown):
        one, every = found.sel(direction=name, other=other), max(1, len(layers) // 6)
        right.plot(layers, one["cosine"], **series(i), ms=4, lw=1.3, markevery=(i % every, every), label=name)
    if "permuted_low" in found and shown:
        one = found.sel(direction=shown[0], other=other)
        right.fill_between(layers, one["permuted_low"], one["permuted_high"], facecolor="none", hatch="....",
                           edgecolor="#D55E00", lw=0.8, alpha=0.6, label=f"{shown[0]}, labels permuted, 95%")  # fmt: skip
    right.set_xlabel("block")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_title(f"cosine with {other}", fontsize="medium", loc="left")
    right.spines[["top", "right"]].set_visible(False)
    return legend(made, 4, right)


def said(run: xr.DataTree) -> str:
    """The map in words: each direction's cosine with refusal at the steered block, and the two nulls there."""
    found = geometry.cosines(run)
    names, layers = found["direction"].values.tolist(), found["layer"].values
    other = "refusal" if "refusal" in names else names[-1]
    at = int(np.argmin(np.abs(layers - written_block(run, int(layers[-1]) + 1))))
    one = found.isel(layer=at).sel(other=other)
    each = "; ".join(f"{n} {float(one['cosine'].sel(direction=n)):.2f}" for n in names if n != other)
    return f"cosines with {other} at block {int(layers[at])}: {each}; isotropic vectors stay within {float(found['gaussian']):.2f}"


def has_traits(run: xr.DataTree) -> bool:
    """Whether the run has directions of several traits."""
    if "directions" not in run.children:
        return False
    return sum(str(r) not in ("refusal", "derived") for r in analysis.group(run, "directions")["role"].values) > 2


def shared(run: xr.DataTree) -> Figure:
    """Do the traits share one axis, and is refusal on it: the first component's share, and each direction's cosine with it."""
    found = geometry.shared_axis(run)
    layers = found["layer"].values
    made = Figure(figsize=(10.5, 4.6), layout="constrained", dpi=150)
    right, left = made.subplots(1, 2)
    left.plot(layers, 100 * found["explained"].isel(component=0), "o-", color="#0072B2", ms=3)
    left.axhline(100 / found.attrs["traits"], color="#000000", ls=":", lw=1)
    left.set_ylim(0, 103)
    left.set_title(
        "first component's share of the traits, %\n(dotted: as if they shared nothing)", fontsize="medium", loc="left"
    )
    every = max(1, len(layers) // 6)
    for i, name in enumerate(found["direction"].values.tolist()):
        look = {"color": "#000000", "ls": "-", "marker": "D"} if name == "refusal" else series(i)
        right.plot(
            layers, found["loading"].sel(direction=name), **look, ms=4, lw=1.3, markevery=(i % every, every), label=name
        )
    right.axhline(0, color="#999999", lw=0.8)
    right.set_title("cosine with the first component", fontsize="medium", loc="left")
    for ax in (left, right):
        ax.set_xlabel("block")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    return legend(made, 5)


def shared_said(run: xr.DataTree) -> str:
    """The shared axis in words: the first component's share and refusal's cosine with it at the steered block."""
    found = geometry.shared_axis(run)
    layers = found["layer"].values
    at = int(np.argmin(np.abs(layers - written_block(run, int(layers[-1]) + 1))))
    one = found.isel(layer=at)
    each = "; ".join(f"{n} {float(one['loading'].sel(direction=n)):.2f}" for n in found["direction"].values.tolist())
    share = 100 * float(one["explained"].isel(component=0))
    return f"at block {int(layers[at])} the first component has {share:.0f}%, cosines with it: {each}"


def _sides(run: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard deviation of the baseline's projections on the first directions, [side, layer, direction], of
    harmful and of harmless prompts; missing where nothing is read yet."""
    sides = xr.DataArray(np.array(["harmful", "harmless"]), dims="side", name="side")
    read = [traces.readout(run, "projection", flag).sel(condition="baseline", drop=True) for flag in (True, False)]
    cut = [one.isel(direction=slice(MOST)).load() for one in read]
    return xr.concat([c.mean("prompt") for c in cut], sides), xr.concat([c.std("prompt") for c in cut], sides)


def by_harm_said(run: xr.DataTree) -> str:
    """The picture of the two sides in words, at the steered block."""
    mean, _ = _sides(run)
    layers = mean["layer"].values
    at = int(np.argmin(np.abs(layers - written_block(run, int(layers[-1]) + 1))))
    one = mean.isel(layer=at)
    each = "; ".join(
        f"{n} {float(one.sel(side='harmful', direction=n)):.1f} and {float(one.sel(side='harmless', direction=n)):.1f}"
        for n in one["direction"].values.tolist()
    )
    return f"harmful and harmless at block {int(layers[at])}: {each}"


def by_harm(run: xr.DataTree) -> Figure:
    """Where harmful and harmless prompts lie on each direction at baseline: mean and one standard deviation by block."""
    mean, spread = _sides(run)
    names, layers = mean["direction"].values.tolist(), mean["layer"].values
    columns = min(4, len(names))
    made = Figure(figsize=(3.4 * columns, 0.6 + 3.0 * -(-len(names) // columns)), layout="constrained", dpi=150)
    axes = list(made.subplots(-(-len(names) // columns), columns, squeeze=False).flat)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for name, ax in zip(names, axes, strict=False):
        for i, side in enumerate(mean["side"].values.tolist()):
            at, look = {"side": side, "direction": name}, series(i)
            middle, reach = mean.sel(at).values, spread.sel(at).values
            ax.plot(layers, middle, **look, ms=3, lw=1.3, markevery=max(1, len(layers) // 6), label=f"{side} prompts")
            ax.fill_between(layers, middle - reach, middle + reach, color=look["color"], alpha=0.15, lw=0)
        ax.set_title(f"projection on {name}", fontsize="medium", loc="left")
        ax.set_xlabel("block")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    return legend(made, 2)
