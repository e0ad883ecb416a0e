"""What pictures share: their entry in the registry, style, colours, sizes, words for what is left out. No pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating.judging.labels import TABLE

KIND_COLOURS = {
    "baseline": "#000000", "steered": "#D55E00", "reversed": "#0072B2", "random": "#8C8C8C", "named": "#009E73",
}  # fmt: skip
KIND_MARKERS = {"baseline": "D", "steered": "o", "reversed": "s", "random": ".", "named": "^"}
LABEL_COLOURS = {label.name: label.colour for label in TABLE}
SHADES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
TOPICS = {
    "outcomes": "What became of the answers", "dose": "Block and dose", "controls": "Against random directions",
    "inside": "Inside the model", "directions": "The directions",
}  # fmt: skip
STYLES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "v", "P")

styled = matplotlib.rc_context({  # a decorator of every function that draws
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": "medium",
    "figure.constrained_layout.use": True, "figure.dpi": 150, "legend.fontsize": "small", "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a category is one
    "svg.fonttype": "none", "svg.hashsalt": "gating",  # text that can be edited; the same bytes each time
})  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An entry of the registry. `harmful` says whose answers are drawn: those to harmful prompts (True), to harmless
    ones (False), or all (None)."""

    topic: str  # one of TOPICS
    method: str  # where its numbers are explained: a page of docs/, with a heading

    name: str  # of its file, without .png
    drawable: Callable[[xr.DataTree], bool]  # whether the run has what it draws
    draw: Callable[[xr.DataTree, bool | None], Figure]
    alt_text: Callable[[xr.DataTree, bool | None], str]  # what it shows, for those who do not see it
    caption: Callable[[xr.DataTree], str]


class Look(TypedDict):
    """How a line is drawn, as matplotlib's keywords."""

    color: str
    ls: str
    marker: str


PLAIN: Look = {"color": "#000000", "ls": "-", "marker": "D"}  # what the others are compared with


def series(i: int) -> Look:
    """How the i-th of several lines is drawn, so that any two of the first twenty differ in style or marker as well as,
    within six, in colour. The three cycles have different lengths (6, 4, 5)."""
    return {"color": SHADES[i % len(SHADES)], "ls": STYLES[i % len(STYLES)], "marker": MARKS[i % len(MARKS)]}


def spaced_marks(i: int, n: int) -> tuple[int, int]:
    """matplotlib's markevery for the i-th line of n points: about six marks, not on those of its neighbours."""
    every = max(1, n // 6)
    return i % every, every


def band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, look: Look, name: str) -> None:
    """An interval along a line, named as the line is."""
    ax.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0, gid=name)


def tall_figure(rows: float, longest: int = 0, width: float = 7.5) -> tuple[Figure, Axes]:
    """rows: lines at 0.3 inches each; longest: characters of the longest name, which the width makes room for."""
    figure = Figure(figsize=(max(width, 5 + 0.085 * longest), 1.3 + 0.3 * rows))
    return figure, figure.add_subplot()


def panel_figure(panels: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of `size` (inches) with that many panels in rows of `columns`."""
    figure = Figure(figsize=size)
    axes = list(figure.subplots(-(-panels // columns), columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.set_visible(False)
    return figure, axes[:panels]


def spaced(figure: Figure, rows: int, columns: int, gaps: tuple[float, float], margins: tuple[float, ...]) -> None:
    """Put the panels at fixed distances, in inches: gaps between columns and rows, margins left, right, top and bottom.
    With many panels the constrained layout takes longer than the drawing."""
    width, height = figure.get_size_inches()
    left, right, top, bottom = margins
    wide = (width - left - right - gaps[0] * (columns - 1)) / columns
    high = (height - top - bottom - gaps[1] * (rows - 1)) / rows
    figure.set_layout_engine("none")
    for i, ax in enumerate(figure.axes):
        x, y = left + i % columns * (wide + gaps[0]), height - top - high - i // columns * (high + gaps[1])
        ax.set_position((x / width, y / height, wide / width, high / height))


def percent_axis(ax: Axes, text: str) -> None:
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlim(-3, 103)
    ax.set_xlabel(text)


def whole_numbers(ax: Axes, text: str) -> None:
    """An x axis of blocks or tokens."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(text)


def legend(figure: Figure, columns: int = 3, ax: Axes | None = None) -> Figure:
    """One panel's legend (the first's) below the picture, where it can cover nothing."""
    handles, names = (ax or figure.axes[0]).get_legend_handles_labels()
    longest = max(map(len, names), default=0)
    fit = max(1, int(figure.get_figwidth() / (0.7 + 0.075 * longest)))  # inches a small character and a handle take
    figure.legend(handles, names, loc="outside lower center", ncols=min(columns, fit))
    return figure


def reach(rate: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rates in percent, and how far the interval reaches to either side: `[2, ...]`, never below 0."""
    share, low, high = (100 * np.atleast_1d(rate[v].values) for v in ("rate", "low", "high"))
    return share, np.maximum([share - low, high - share], 0)


def which(harmful: bool | None) -> str:
    return {True: "harmful", False: "harmless", None: "all"}[harmful]


def wrapped(name: str, width: int) -> str:
    """A name over as many lines as it needs, cut only where it has to be."""
    return "\n".join(textwrap.wrap(name, width)) or name


def left_out(total: int, most: int, what: str = "conditions") -> str:
    """What a caption says where only the first `most` are drawn; nothing where all are."""
    return f" The first {most} of {total} {what} are drawn; the store and the tables hold all." if total > most else ""


def window(blocks: Sequence[int]) -> str:
    """Decoder blocks for an axis: three neighbours or more as a range, `19-22`; others in full, `22+24`."""
    whole = len(blocks) > 2 and list(blocks) == list(range(blocks[0], blocks[-1] + 1))
    return f"{blocks[0]}-{blocks[-1]}" if whole else "+".join(map(str, blocks))
