"""How the directions lie: their cosines, the axis that traits share, and where harmful and harmless prompts lie on
them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis import geometry
from gating.figures import traces
from gating.figures.base import (
    PLAIN,
    SHADES,
    Picture,
    left_out,
    legend,
    panel_figure,
    series,
    spaced_marks,
    styled,
    whole_numbers,
)
from gating.figures.maps import cells

MOST = 8  # directions in one picture


def written_block(run: xr.DataTree, n_layers: int) -> int:
    """The block that the first intervened condition writes first; six tenths up where none says so."""
    conditions = analysis.read_group(run, "conditions")
    intervened = conditions.isel(condition=np.isin(conditions["kind"].values, ("steered", "named")))
    written = np.argwhere(intervened["iv_written"].transpose("condition", "intervention", "layer").values)
    return min(int(written[0][-1]), n_layers - 1) if len(written) else int(0.6 * n_layers)


def _shown_place(run: xr.DataTree, layers: np.ndarray) -> int:
    """Where in `layers` the block lies that pictures of directions are read at."""
    return int(np.argmin(np.abs(layers - written_block(run, int(layers[-1]) + 1))))


def _reference(names: list[str]) -> str:
    """The direction that the others are compared with: refusal, or the last one where there is none."""
    return "refusal" if "refusal" in names else names[-1]


@styled
def cosines(run: xr.DataTree) -> Figure:
    """Cosines of all directions at the block that is steered, and with the refusal direction (the last one where there
    is none) at every block: the band is where isotropic vectors stay, dotted lines are the first direction's with
    permuted labels."""
    cosine = geometry.cosines(run)
    names, layers = cosine["direction"].values.tolist(), cosine["layer"].values
    at = _shown_place(run, layers)
    side, longest = max(3.4, 0.42 * len(names)), max(map(len, names))
    figure = Figure(figsize=(side + 0.075 * longest + 5.6, max(4.2, side + 0.06 * longest + 0.8)))
    left, right = figure.subplots(1, 2, width_ratios=[side + 0.075 * longest, 5.2])
    cells(left, cosine["cosine"].isel(layer=at).values, names, names, (-1, 1), "RdBu_r", ".2f")
    left.set_title(f"cosine at block {int(layers[at])}")
    _cosines_by_block(right, cosine, _reference(names))
    return legend(figure, 4, right)


def _cosines_by_block(ax: Axes, cosine: xr.Dataset, other: str) -> None:
    """Every direction's cosine with `other` at every block, and the two nulls."""
    layers, bound = cosine["layer"].values, float(cosine["gaussian"])
    ax.axhspan(-bound, bound, color="#000000", alpha=0.1, lw=0, label="isotropic vectors, 95%")
    names = [n for n in cosine["direction"].values.tolist() if n != other]
    for i, name in enumerate(names):
        values = cosine["cosine"].sel(direction=name, other=other)
        ax.plot(layers, values, **series(i), ms=4, lw=1.3, markevery=spaced_marks(i, len(layers)), label=name)
    if "permuted_low" in cosine and names:
        null = cosine.sel(direction=names[0], other=other)
        ax.fill_between(layers, null["permuted_low"], null["permuted_high"], facecolor="none", hatch="....",
                        edgecolor=SHADES[0], lw=0.8, alpha=0.6, label=f"{names[0]}, labels permuted, 95%")  # fmt: skip
    whole_numbers(ax, "block")
    ax.set_title(f"cosine with {other}")


def cosines_in_words(run: xr.DataTree) -> str:
    """Each direction's cosine with refusal at the steered block, and the null of isotropic vectors there."""
    cosine = geometry.cosines(run)
    names, layers = cosine["direction"].values.tolist(), cosine["layer"].values
    other, at = _reference(names), _shown_place(run, layers)
    values = cosine["cosine"].isel(layer=at).sel(other=other)
    each = "; ".join(f"{n} {float(values.sel(direction=n)):.2f}" for n in names if n != other)
    bound = float(cosine["gaussian"])
    return f"cosines with {other} at block {int(layers[at])}: {each}; isotropic vectors stay within {bound:.2f}"


def has_directions(run: xr.DataTree) -> bool:
    """Whether the run has several directions."""
    return "directions" in run.children and analysis.whole_directions(run).sizes["direction"] > 1


def has_traits(run: xr.DataTree) -> bool:
    """Whether the run has directions of several traits."""
    if "directions" not in run.children:
        return False
    return sum(str(r) not in ("refusal", "derived") for r in analysis.whole_directions(run)["role"].values) > 2


@styled
def shared(run: xr.DataTree) -> Figure:
    """Do the traits share one axis, and is refusal on it: the first component's share, and each direction's cosine with
    it."""
    axis = geometry.shared_axis(run)
    layers = axis["layer"].values
    figure = Figure(figsize=(10.5, 4.6))
    right, left = figure.subplots(1, 2)
    left.plot(layers, 100 * axis["explained"].isel(component=0), "o-", color=SHADES[1], ms=3)
    left.axhline(100 / axis.attrs["traits"], color="#000000", ls=":", lw=1)
    left.set_ylim(0, 103)
    left.set_title("first component's share of the traits, %\n(dotted: as if they shared nothing)")
    for i, name in enumerate(axis["direction"].values.tolist()):
        look, marks = PLAIN if name == "refusal" else series(i), spaced_marks(i, len(layers))
        right.plot(layers, axis["loading"].sel(direction=name), **look, ms=4, lw=1.3, markevery=marks, label=name)
    right.axhline(0, color="#999999", lw=0.8)
    right.set_title("cosine with the first component")
    for ax in (left, right):
        whole_numbers(ax, "block")
    return legend(figure, 5)


def shared_in_words(run: xr.DataTree) -> str:
    """The first component's share and each direction's cosine with it at the steered block."""
    axis = geometry.shared_axis(run)
    layers = axis["layer"].values
    at = _shown_place(run, layers)
    here = axis.isel(layer=at)
    each = "; ".join(f"{n} {float(here['loading'].sel(direction=n)):.2f}" for n in axis["direction"].values.tolist())
    share = 100 * float(here["explained"].isel(component=0))
    return f"at block {int(layers[at])} the first component has {share:.0f}%, cosines with it: {each}"


def has_both_sides(run: xr.DataTree) -> bool:
    """Whether the run asked harmful and harmless prompts and read their projections."""
    return analysis.asked_both(run) and "projection" in analysis.held_readouts(run)


def _sides(run: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard deviation of the baseline's projections on the first directions, [side, layer, direction], of
    harmful and of harmless prompts; missing where nothing is read yet."""
    sides = xr.DataArray(np.array(["harmful", "harmless"]), dims="side", name="side")
    baseline = [traces.readout(run, "projection", flag).sel(condition="baseline", drop=True) for flag in (True, False)]
    projections = [each.isel(direction=slice(MOST)).load() for each in baseline]
    mean, spread = [p.mean("prompt") for p in projections], [p.std("prompt") for p in projections]
    return xr.concat(mean, sides), xr.concat(spread, sides)


@styled
def by_harm(run: xr.DataTree) -> Figure:
    """Where harmful and harmless prompts lie on each direction at baseline: mean and one standard deviation by
    block."""
    mean, spread = _sides(run)
    names, layers = mean["direction"].values.tolist(), mean["layer"].values
    columns = min(4, len(names))
    figure, axes = panel_figure(len(names), columns, (3.4 * columns, 0.6 + 3.0 * -(-len(names) // columns)))
    _, every = spaced_marks(0, len(layers))
    for name, ax in zip(names, axes, strict=True):
        for i, side in enumerate(mean["side"].values.tolist()):
            at, look = {"side": side, "direction": name}, series(i)
            middle, width = mean.sel(at).values, spread.sel(at).values
            ax.plot(layers, middle, **look, ms=3, lw=1.3, markevery=every, label=f"{side} prompts")
            ax.fill_between(layers, middle - width, middle + width, color=look["color"], alpha=0.15, lw=0)
        ax.set_title(f"projection on {name}")
        whole_numbers(ax, "block")
    return legend(figure, 2)


def by_harm_in_words(run: xr.DataTree) -> str:
    """Mean projections of harmful and of harmless prompts at the steered block."""
    mean, _ = _sides(run)
    layers = mean["layer"].values
    at = _shown_place(run, layers)
    here = mean.isel(layer=at)
    harmful, harmless = (here.sel(side=side).values.tolist() for side in ("harmful", "harmless"))
    names = here["direction"].values.tolist()
    each = "; ".join(f"{n} {a:.1f} and {b:.1f}" for n, a, b in zip(names, harmful, harmless, strict=True))
    return f"harmful and harmless at block {int(layers[at])}: {each}"


FIGURES = (
    Picture(
        "directions",
        "method.md",
        "cosines",
        has_directions,
        lambda run, harmful: cosines(run),
        lambda run, harmful: f"How the directions lie: {cosines_in_words(run)}.",
        lambda run: (
            "How the directions lie. The grey band is what isotropic vectors keep to; activations are far from "
            "isotropic, which is what directions with permuted labels (dotted, experiment=geometry) show."
        ),
    ),
    Picture(
        "directions",
        "method.md",
        "shared",
        has_traits,
        lambda run, harmful: shared(run),
        lambda run, harmful: (
            f"The first principal component of the traits' directions by block: {shared_in_words(run)}."
        ),
        lambda run: "Do the traits share one axis? Uncentred PCA of their unit directions; refusal is not part of it.",
    ),
    Picture(
        "directions",
        "method.md",
        "harm",
        has_both_sides,
        lambda run, harmful: by_harm(run),
        lambda run, harmful: (
            f"Mean projections on each direction at every block, without steering: {by_harm_in_words(run)}."
        ),
        lambda run: (
            "Where harmful and harmless prompts lie on each direction at baseline; bands are one standard deviation."
            + left_out(analysis.held_readouts(run).sizes["direction"], MOST, "directions")
        ),
    ),
)
