"""What every picture shares: colours, markers, sizes, and how a rate is drawn. No pyplot state."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating.judges import LABELS

KIND_COLOURS = {
    "baseline": "#000000", "steered": "#D55E00", "reversed": "#0072B2", "random": "#8C8C8C", "named": "#009E73",
}  # fmt: skip
KIND_MARKERS = {"baseline": "D", "steered": "o", "reversed": "s", "random": ".", "named": "^"}
LABEL_COLOURS = dict(zip(LABELS, ("#0072B2", "#D55E00", "#F0E442", "#999999"), strict=True))
SHADES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":", "-.")


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
