"""What steering does inside: projections over blocks and over tokens, the refusal score by block, strength."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
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
    which,
    whole_numbers,
)

MOST = 12  # conditions in one picture
PANELS = 4  # directions in one picture
BARS = 40  # conditions in the picture of strengths
KINDS = ("baseline", "steered", "reversed", "named")
CHANGED = ("steered", "named")


def shown(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are not controls."""
    return analysis.conditions_of_kind(run, KINDS)[:MOST]


def readout(run: xr.DataTree, name: str, harmful: bool | None) -> xr.DataArray:
    """A readout of the prompts asked for, not loaded yet: step_projection of a large run is best cut first."""
    return analysis.held_readouts(run)[name].isel(prompt=analysis.asked(run, harmful))


def mean_band(values: xr.DataArray, along: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over prompts at each place of `along` and half of its 95% interval (1.96 standard errors; NaN below two
    prompts), with the places that any prompt reached."""
    v = values.transpose("prompt", along).values.astype("float64")
    n = np.isfinite(v).sum(0)
    reached = np.nonzero(n > 0)[0]
    v, n = v[:, reached], n[reached]
    mean = np.nansum(v, axis=0) / n
    spread = np.nansum((v - mean) ** 2, axis=0) / np.where(n > 1, n - 1, np.nan)
    return reached, mean, 1.96 * np.sqrt(spread / n)


def _lines(ax: Axes, values: xr.DataArray, x: np.ndarray, along: str, names: dict[str, str]) -> None:
    """A line with its band for each shown condition, the baseline in black. values: [condition, prompt, along]; names:
    what each condition is called in the legend."""
    for i, condition in enumerate(values["condition"].values.tolist()):
        reached, mean, half = mean_band(values.sel(condition=condition), along)
        look = PLAIN if i == 0 else series(i - 1)
        ax.plot(x[reached], mean, **look, ms=4, markevery=spaced_marks(i, len(x)), label=names[condition], lw=1.4)
        ax.fill_between(x[reached], mean - half, mean + half, color=look["color"], alpha=0.15, lw=0)


def panelled(run: xr.DataTree) -> list[str]:
    """The directions that have a panel: refusal among the first few."""
    names = analysis.held_readouts(run)["direction"].values.tolist()
    first = [n for n in names if n != "refusal"][: PANELS - ("refusal" in names)]
    return [*first, *(["refusal"] if "refusal" in names else [])]


def _panels(directions: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(2, len(directions))
    rows = -(-len(directions) // columns)
    return panel_figure(len(directions), columns, (5.3 * columns if columns > 1 else 7.5, 3.4 * rows + 1))


@styled
def over_blocks(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection on each of the first directions at every block, last prompt token, per condition."""
    projection = readout(run, "projection", harmful).sel(condition=shown(run)).load()
    figure, axes = _panels(panelled(run))
    for ax, direction in zip(axes, panelled(run), strict=True):
        values = projection.sel(direction=direction)
        _lines(ax, values, projection["layer"].values, "layer", analysis.shown_names(run))
        whole_numbers(ax, "block")
        ax.set_title(f"projection on {direction}, last prompt token")
    return legend(figure)


def late_block(run: xr.DataTree, layers: np.ndarray) -> int:
    """The last block that a shown condition writes, so that every edit lies before it; where none is known, and where a
    condition writes all blocks, one seven tenths up."""
    written = analysis.written_blocks(analysis.read_group(run, "conditions").sel(condition=shown(run)))
    last = int(max(written, default=-1))
    return last if 0 <= last < layers[-1] and last in layers else int(layers[int(0.7 * len(layers))])


@styled
def over_tokens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection at each generated token, at the last block that is written, per condition."""
    projection = readout(run, "step_projection", harmful)
    layer = late_block(run, projection["layer"].values)
    projection = projection.sel(condition=shown(run), layer=layer).load()
    figure, axes = _panels(panelled(run))
    for ax, direction in zip(axes, panelled(run), strict=True):
        values = projection.sel(direction=direction)
        _lines(ax, values, np.arange(projection.sizes["step"]), "step", analysis.shown_names(run))
        whole_numbers(ax, "token (0 is the last of the prompt)")
        ax.set_title(f"projection on {direction}, block {layer}")
    return legend(figure)


@styled
def lens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """The refusal score that the residual stream carries at each block (logit lens), per condition."""
    score = readout(run, "lens_score", harmful).sel(condition=shown(run)).load()
    figure = Figure(figsize=(7.5, 4.6))
    ax = figure.add_subplot()
    ax.axhline(0, color="#999999", lw=0.8)
    _lines(ax, score, score["layer"].values, "layer", analysis.shown_names(run))
    whole_numbers(ax, "block")
    ax.set_ylabel("refusal log-odds, nats")
    return legend(figure)


def ends(run: xr.DataTree, name: str, harmful: bool | None, direction: str | None = None) -> str:
    """A trace in words: each shown condition's mean at the last block."""
    last = readout(run, name, harmful).isel(layer=-1).sel(condition=shown(run))
    mean, names = (
        (last.sel(direction=direction) if direction else last).load().mean("prompt"),
        analysis.shown_names(run),
    )
    return "; ".join(f"{names[c]} {float(mean.sel(condition=c)):.1f}" for c in shown(run))


def _strengths(run: xr.DataTree) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The conditions that change something: their names, relative change and KL in nats."""
    names = analysis.conditions_of_kind(run, KINDS[1:])[:BARS]
    strengths = analysis.strengths(run, analysis.undisturbed(run)).sel(condition=names)
    shown_names = analysis.shown_names(run)
    return [shown_names[name] for name in names], strengths["change"].values, strengths["kl"].values


@styled
def strength(run: xr.DataTree) -> Figure:
    """How hard each condition pushes, in units that compare."""
    names, change, kl = _strengths(run)
    figure = Figure(figsize=(max(9.5, 8 + 0.085 * max(map(len, names))), 1.4 + 0.28 * len(names)))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(names))
    left.barh(y, change, color=SHADES[1])
    left.set_xlabel("|added| / |h| at the last prompt token,\nlargest over blocks")
    right.barh(y, kl, color=SHADES[0], hatch="//", edgecolor="white")
    right.set_xlabel(f"first-token KL to baseline, nats\n({which(analysis.undisturbed(run))} prompts)")
    left.set_yticks(y, names)
    left.set_ylim(len(names) - 0.4, -0.6)
    return figure


def strengths_in_words(run: xr.DataTree) -> str:
    """Each condition's relative change and KL."""
    return "; ".join(f"{n} {a:.2f} and {b:.2f} nats" for n, a, b in zip(*_strengths(run), strict=True))


def _kept(*readouts: str) -> Callable[[xr.DataTree], bool]:
    """Whether a run kept these readouts and has a condition that changes something."""
    return lambda run: bool(
        set(readouts) <= set(analysis.held_readouts(run).data_vars) and analysis.conditions_of_kind(run, CHANGED)
    )


def _more(run: xr.DataTree) -> str:
    return left_out(len(analysis.conditions_of_kind(run, KINDS)), MOST)


def _more_panels(run: xr.DataTree) -> str:
    return _more(run) + left_out(analysis.held_readouts(run).sizes["direction"], PANELS, "directions")


FIGURES = (
    Picture(
        "blocks",
        _kept("projection"),
        over_blocks,
        lambda run, harmful: (
            f"Mean projection at every block, last prompt token; on {panelled(run)[-1]} at the last block: "
            f"{ends(run, 'projection', harmful, panelled(run)[-1])}."
        ),
        lambda run: f"Projections over blocks: mean over prompts and its 95% band.{_more_panels(run)}",
    ),
    Picture(
        "tokens",
        _kept("step_projection"),
        over_tokens,
        lambda run, harmful: (
            f"Mean projection on {', '.join(panelled(run))} at each generated token, per condition, at the last "
            "block that is written."
        ),
        lambda run: (
            "Projections over the answer's tokens: mean over prompts and its 95% band; later ones come from the "
            f"answers that are that long.{_more_panels(run)}"
        ),
    ),
    Picture(
        "lens",
        _kept("lens_score"),
        lens,
        lambda run, harmful: (
            "Refusal log-odds read off the residual stream at every block; at the last: "
            f"{ends(run, 'lens_score', harmful)}."
        ),
        lambda run: (
            "Where refusal is decided: the score through the final norm and unembedding at every block (logit lens), "
            f"mean over prompts and its 95% band.{_more(run)}"
        ),
    ),
    Picture(
        "strength",
        _kept("kl", "relative_change"),
        lambda run, harmful: strength(run),
        lambda run, harmful: f"Relative change and first-token KL of each condition: {strengths_in_words(run)}.",
        lambda run: (
            "Strength in units that compare across blocks and directions."
            + left_out(len(analysis.conditions_of_kind(run, KINDS[1:])), BARS)
        ),
    ),
)
