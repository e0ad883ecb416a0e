"""What every picture shares: colours, markers, sizes, how a rate is drawn, what is said to be left out. No pyplot state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.judging.labels import LABELS

KIND_COLOURS = {
    "baseline": "#000000", "steered": "#D55E00", "reversed": "#0072B2", "random": "#8C8C8C", "named": "#009E73",
}  # fmt: skip
KIND_MARKERS = {"baseline": "D", "steered": "o", "reversed": "s", "random": ".", "named": "^"}
LABEL_COLOURS = dict(zip(LABELS, ("#0072B2", "#D55E00", "#F0E442", "#999999"), strict=True))
SHADES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "v", "P")


def series(i: int) -> dict[str, Any]:
    """How the i-th of several lines is drawn: colour, line style and marker, so that any two of the first twenty differ in
    style or marker as well as, within six, in colour. The three cycles have different lengths (6, 4, 5)."""
    return {"color": SHADES[i % len(SHADES)], "ls": STYLES[i % len(STYLES)], "marker": MARKS[i % len(MARKS)]}


def figure(rows: float, longest: int = 0, width: float = 7.5) -> tuple[Figure, Axes]:
    """rows: lines at 0.3 inches each; longest: characters of the longest name, which the width makes room for."""
    made = Figure(figsize=(max(width, 5 + 0.085 * longest), 1.3 + 0.3 * rows), layout="constrained", dpi=150)
    return made, made.add_subplot()


def percent_axis(ax: Axes, text: str) -> None:
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlim(-3, 103)
    ax.set_xlabel(text)
    ax.spines[["top", "right"]].set_visible(False)


def interval(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rates in percent, and how far the interval reaches to either side: `[2, ...]`, never below 0."""
    rate, low, high = (100 * np.atleast_1d(one[v].values) for v in ("rate", "low", "high"))
    return rate, np.maximum([rate - low, high - rate], 0)


def which(harmful: bool | None) -> str:
    return {True: "harmful", False: "harmless", None: "all"}[harmful]


def legend(made: Figure, columns: int = 3, ax: Axes | None = None) -> Figure:
    """One panel's legend (the first's) below the picture, where it can cover nothing."""
    handles, names = (ax or made.axes[0]).get_legend_handles_labels()
    longest = max(map(len, names), default=0)
    fit = max(1, int(made.get_figwidth() / (0.7 + 0.075 * longest)))  # inches a small character and a handle take
    made.legend(handles, names, loc="outside lower center", ncols=min(columns, fit), frameon=False, fontsize="small")
    return made


def wrapped(name: str, width: int) -> str:
    """A name over as many lines as it needs, cut only where it has to be."""
    return "\n".join(textwrap.wrap(name, width)) or name


def conditions(run: xr.DataTree, kinds: Sequence[str]) -> list[str]:
    """The conditions of these kinds, in order."""
    about = analysis.group(run, "conditions")
    return about["condition"].values[np.isin(about["kind"].values, kinds)].tolist()


def left_out(total: int, most: int, what: str = "conditions") -> str:
    """What a caption says where only the first `most` are drawn; nothing where all are."""
    return f" The first {most} of {total} {what} are drawn; the store and the tables hold all." if total > most else ""


def blocks(layers: str) -> tuple[int, ...]:
    """Blocks written as in /conditions iv_layers: `20`, or `22+24`; none for empty text."""
    return tuple(int(part) for part in str(layers).split("+") if part.strip().isdigit())


def window(layers: str) -> str:
    """Blocks for an axis: neighbours as a range, `19+20+21+22` as 19-22; others as they are."""
    found = blocks(layers)
    whole = len(found) > 2 and found == tuple(range(found[0], found[-1] + 1))
    return f"{found[0]}-{found[-1]}" if whole else str(layers)


def first_block(layers: str) -> tuple[float, str]:
    """Sorts windows as a user may write them (`20`, `17-25`, `0.5`, `22+24`, all) by their first block."""
    head = str(layers).replace("+", "-").split("-")[0]
    return (float(head) if head.replace(".", "", 1).isdigit() else np.inf, str(layers))
