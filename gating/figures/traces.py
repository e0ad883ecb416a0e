"""What steering does inside: projections over blocks and over tokens, the refusal score by block. Small multiples: each
condition has panels of its own, the baseline in every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.figures.base import (
    KIND_COLOURS,
    PLAIN,
    SHADES,
    Look,
    Picture,
    band,
    left_out,
    spaced,
    spaced_marks,
    styled,
    wrapped,
)
from gating.figures.maps import REMOVALS

MOST = 12  # conditions besides the baseline
PANELS = 2  # directions in one picture
COLUMNS = 6
WINDOW = 4  # blocks: an edit of more of them is drawn as a band
KINDS = ("baseline", "steered", "reversed", "named")
CHANGED = ("steered", "named")
OWN: Look = {"color": KIND_COLOURS["steered"], "ls": "-", "marker": "o"}
EDITS = {"added here": (SHADES[1], "-"), "taken out here": (SHADES[3], ":")}


def shown(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are not controls."""
    return analysis.conditions_of_kind(run, KINDS)[: MOST + 1]


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


def edited(run: xr.DataTree, condition: str) -> dict[str, list[int]]:
    """The blocks that a condition writes, by what it does there."""
    of = analysis.read_group(run, "conditions").sel(condition=condition)
    removal = np.isin(of["iv_op"].values, REMOVALS)
    written = of["iv_written"].transpose("intervention", "layer").values
    return {
        text: np.flatnonzero(written[rows].any(0)).tolist()
        for text, rows in zip(EDITS, (~removal, removal), strict=True)
    }


def _mark(ax: Axes, blocks: Mapping[str, list[int]]) -> None:
    for text, at in blocks.items():
        colour, style = EDITS[text]
        if len(at) > WINDOW:
            ax.axvspan(at[0], at[-1], color=colour, alpha=0.12, lw=0, label=text)
        for i, block in enumerate(at if len(at) <= WINDOW else ()):
            ax.axvline(block, color=colour, ls=style, lw=1, label=text if i == 0 else f"_{text}")


def _line(ax: Axes, values: xr.DataArray, x: np.ndarray, along: str, look: Look, name: str) -> None:
    reached, mean, half = mean_band(values, along)
    ax.plot(x[reached], mean, **look, ms=3, markevery=spaced_marks(0, len(x)), label=name, lw=1.3)
    band(ax, x[reached], mean - half, mean + half, look, name)


def _panels(rows: int, conditions: int) -> tuple[Figure, list[list[Axes]]]:
    """Panels for each condition, row by row: the rows below each other, or side by side for a single condition."""
    columns = rows if conditions == 1 else min(COLUMNS, conditions)
    lines = 1 if conditions == 1 else rows * -(-conditions // columns)
    figure = Figure(figsize=(max(7.5, 2.3 * columns + 0.6), 1.9 * lines + 1.3))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    spaced(figure, lines, columns, (0.2 if conditions > 1 else 0.6, 0.62), (0.8, 0.1, 0.85, 0.55))
    a_row = columns * -(-conditions // columns) if conditions > 1 else 1
    for i, ax in enumerate(axes):
        ax.set_visible(conditions == 1 or i % a_row < conditions)
    return figure, [axes[r * a_row : r * a_row + conditions] for r in range(rows)]


def _multiples(run: xr.DataTree, traces: Mapping[str, xr.DataArray], along: str, across: str, unit: str) -> Figure:
    """A row of panels for each trace, [condition, prompt, along] with the baseline first; blocks that a condition
    writes are marked where `along` is the block."""
    names, words = shown(run)[1:], analysis.shown_names(run)
    figure, grid = _panels(len(traces), len(names))
    for axes, (title, values) in zip(grid, traces.items(), strict=True):
        x = values["layer"].values if along == "layer" else np.arange(values.sizes[along])
        for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
            if along == "layer":
                _mark(ax, edited(run, name))
            _line(ax, values.sel(condition="baseline"), x, along, PLAIN, "baseline")
            _line(ax, values.sel(condition=name), x, along, OWN, "the condition")
            ax.set_title(
                f"{wrapped(words[name], 26)}\n{title}" if title else wrapped(words[name], 26), fontsize="x-small"
            )
            ax.tick_params(labelsize="x-small")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if i % min(COLUMNS, len(names)):
                ax.tick_params(labelleft=False)
        ends = [e for ax in axes for e in ax.get_ylim()]
        for ax in axes:
            ax.set_ylim(min(ends), max(ends))
    figure.supxlabel(across, fontsize="small", y=0.1 / figure.get_figheight())
    figure.supylabel(unit, fontsize="small", x=0.08 / figure.get_figwidth())
    return _key(figure)


def _key(figure: Figure) -> Figure:
    """A legend of all that any panel holds."""
    held: dict[str, Any] = {}
    for ax in figure.axes:
        held |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(held.values(), held.keys(), loc="upper center", ncols=len(held))
    return figure


def panelled(run: xr.DataTree) -> list[str]:
    """The directions that have panels: refusal among the first few."""
    names = analysis.held_readouts(run)["direction"].values.tolist()
    first = [n for n in names if n != "refusal"][: PANELS - ("refusal" in names)]
    return [*first, *(["refusal"] if "refusal" in names else [])]


UNIT = "projection on a unit vector, in units of the residual stream"


@styled
def over_blocks(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection on each of the first directions at every block, last prompt token, per condition."""
    projection = readout(run, "projection", harmful).sel(condition=shown(run)).load()
    traces = {f"on {d}": projection.sel(direction=d) for d in panelled(run)}
    return _multiples(run, traces, "layer", "block (last prompt token)", UNIT)


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
    traces = {f"on {d}": projection.sel(direction=d) for d in panelled(run)}
    return _multiples(run, traces, "step", f"token (0 is the last of the prompt), at block {layer}", UNIT)


@styled
def lens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """The refusal score that the residual stream carries at each block (logit lens), per condition."""
    score = readout(run, "lens_score", harmful).sel(condition=shown(run)).load()
    return _multiples(run, {"": score}, "layer", "block (last prompt token)", "refusal log-odds, nats")


def norm_in_words(run: xr.DataTree, harmful: bool | None = None) -> str:
    """How large the residual stream is where it is edited; nothing where its norm was not kept."""
    if "residual_norm" not in analysis.held_readouts(run):
        return ""
    norm = readout(run, "residual_norm", harmful).sel(condition="baseline")
    layer = late_block(run, norm["layer"].values)
    median = float(norm.sel(layer=layer).load().median())
    return f" At block {layer} the median norm of the residual stream is {median:.0f} at baseline."


def ends(run: xr.DataTree, name: str, harmful: bool | None, direction: str | None = None) -> str:
    """A trace in words: each shown condition's mean at the last block."""
    last = readout(run, name, harmful).isel(layer=-1).sel(condition=shown(run))
    mean, names = (
        (last.sel(direction=direction) if direction else last).load().mean("prompt"),
        analysis.shown_names(run),
    )
    return "; ".join(f"{names[c]} {float(mean.sel(condition=c)):.1f}" for c in shown(run))


def kept(*readouts: str) -> Callable[[xr.DataTree], bool]:
    """Whether a run kept these readouts and has a condition that changes something."""
    return lambda run: bool(
        set(readouts) <= set(analysis.held_readouts(run).data_vars) and analysis.conditions_of_kind(run, CHANGED)
    )


def _more(run: xr.DataTree) -> str:
    return left_out(len(analysis.conditions_of_kind(run, KINDS)), MOST + 1)


def _more_panels(run: xr.DataTree) -> str:
    return _more(run) + left_out(analysis.held_readouts(run).sizes["direction"], PANELS, "directions")


FIGURES = (
    Picture(
        "inside",
        "method.md",
        "blocks",
        kept("projection"),
        over_blocks,
        lambda run, harmful: (
            f"Mean projection at every block, last prompt token; on {panelled(run)[-1]} at the last block: "
            f"{ends(run, 'projection', harmful, panelled(run)[-1])}."
        ),
        lambda run: (
            "Projections over blocks: mean over prompts and its 95% band, beside the baseline's; lines stand where a "
            f"condition writes.{norm_in_words(run)}{_more_panels(run)}"
        ),
    ),
    Picture(
        "inside",
        "method.md",
        "tokens",
        kept("step_projection"),
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
        "inside",
        "method.md",
        "lens",
        kept("lens_score"),
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
)
