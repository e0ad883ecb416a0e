"""How sure directions are: cosines of their bootstraps and halves, and what each of these does to refusal."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis import direction_variants
from gating.analysis.wording import signed
from gating.figures.base import (
    KIND_COLOURS,
    Picture,
    legend,
    series,
    spaced_marks,
    styled,
    tall_figure,
    which,
    whole_numbers,
)


@styled
def stability(run: xr.DataTree) -> Figure:
    """Cosine of each direction's bootstraps with itself (median and 95% band) and of its halves with each other (thin
    line), at every block."""
    ds = analysis.stability(run)
    layers = ds["layer"].values
    figure = Figure(figsize=(7.5, 4.4))
    ax = figure.add_subplot()
    for i, name in enumerate(ds["direction"].values.tolist()):
        one, look = ds.sel(direction=name), series(i)
        ax.plot(layers, one["cosine"], **look, ms=4, lw=1.5, markevery=spaced_marks(i, len(layers)),
                label=f"{name}, {int(one['k'])} bootstraps")  # fmt: skip
        ax.fill_between(layers, one["low"], one["high"], color=look["color"], alpha=0.15, lw=0)
        ax.plot(layers, one["halves"], color=look["color"], lw=0.8, ls=":", label=f"{name}, its halves")
    ax.set_ylim(top=1.02)
    ax.set_title("cosine with itself, made of other rows")
    whole_numbers(ax, "block")
    return legend(figure, 2)


def stability_in_words(run: xr.DataTree) -> str:
    """Each direction's least stable block."""
    ds, said = analysis.stability(run), []
    for name in ds["direction"].values.tolist():
        one = ds.sel(direction=name)
        if np.isfinite(one["low"]).any():
            at = one.isel(layer=int(np.nanargmin(one["low"].values)))
            ends = f"{float(at['cosine']):.2f} [{float(at['low']):.2f}, {float(at['high']):.2f}]"
            said.append(f"{name} {ends} at block {int(at['layer'])}, its least stable one (K = {int(one['k'])})")
        if np.isfinite(one["halves"]).any():
            said.append(f"the halves of {name} {float(one['halves'].min()):.2f} or more")
    return "; ".join(said) or "missing"


@styled
def effects(run: xr.DataTree, harmful: bool | None) -> Figure:
    """What each condition does to refusal, beside the same along every bootstrap and half of its direction: thick the
    interval over prompts, thin the one over prompts and the direction."""
    ds, groups = analysis.effect_over_directions(run, harmful=harmful), direction_variants.alike(run)
    contrast = 100 * analysis.contrast(run, harmful=harmful)["difference"]
    shown = analysis.shown_names(run)
    texts = [shown[g.condition] for g in groups]
    figure, ax = tall_figure(2 * len(groups) + 1, max(map(len, texts)))
    ax.axvline(0, color="#000000", lw=0.8)
    for y, group in enumerate(groups):
        first, one = y == 0, ds.sel(condition=group.condition)
        for values, mark, colour, text in (
            (group.boots, ".", KIND_COLOURS["random"], "bootstraps of its direction"),
            (list(group.halves.values()), "x", KIND_COLOURS["reversed"], "halves"),
        ):
            found = contrast.sel(condition=values).values
            places = y + 0.25 + np.linspace(-0.1, 0.1, len(found))
            ax.plot(found, places, mark, color=colour, ls="", label=text if first else None)
        for ends, width in (("low", "high"), 1.0), (("prompts_low", "prompts_high"), 3.0):
            ax.plot([100 * float(one[e]) for e in ends], [y, y], color=KIND_COLOURS["steered"], lw=width)
        ax.plot([100 * float(one["difference"])], [y], "o", color=KIND_COLOURS["steered"],
                label="the whole direction" if first else None)  # fmt: skip
    ax.set_yticks(range(len(groups)), texts)
    ax.set_ylim(len(groups) - 0.3, -0.7)
    ax.set_xlabel(f"change of refusal, points, {which(harmful)} prompts")
    return legend(figure, 3)


def effects_in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each condition's effect with both intervals and the range of its bootstraps."""
    ds, said = analysis.effect_over_directions(run, harmful=harmful), []
    for name in ds["condition"].values.tolist():
        one = {str(k): float(v) for k, v in ds.sel(condition=name).data_vars.items()}
        if not np.isfinite(one["difference"]):
            continue
        text = f"{name} {signed(one['difference'])} points over prompts"
        text += f" [{signed(one['prompts_low'])}, {signed(one['prompts_high'])}]"
        if np.isfinite(one["low"]):
            text += f", over prompts and the direction [{signed(one['low'])}, {signed(one['high'])}]"
            text += f", {one['k']:.0f} bootstraps {signed(one['boot_least'])} to {signed(one['boot_most'])}"
        said.append(text + f", n = {one['n']:.0f}")
    return "; ".join(said) or "missing"


FIGURES = (
    Picture(
        "directions",
        "method.md",
        "stability",
        lambda run: bool(direction_variants.variants_held(run)),
        lambda run, harmful: stability(run),
        lambda run, harmful: f"Cosines of directions with themselves, made of other rows: {stability_in_words(run)}.",
        lambda run: (
            "How far a direction is that of its rows: cosines of bootstraps (questions and wordings drawn anew) with "
            "it, and of two halves, which share no question and no wording, with each other."
        ),
    ),
    Picture(
        "directions",
        "method.md",
        "over_directions",
        lambda run: bool(direction_variants.alike(run)),
        effects,
        lambda run, harmful: f"Effects with the uncertainty of the direction: {effects_in_words(run, harmful)}.",
        lambda run: (
            "What a condition does, and what it does along bootstraps and halves of its direction. Thick: the interval "
            "over prompts; thin: over prompts and the direction."
        ),
    ),
)
