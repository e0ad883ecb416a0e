"""The headline: refusal of harmful and of harmless prompts under every condition; and what became of the answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis.sites import GARBLED  # from here on a line is marked
from gating.analysis.wording import interval
from gating.figures.base import (
    KIND_COLOURS,
    KIND_MARKERS,
    LABEL_COLOURS,
    Picture,
    percent_axis,
    reach,
    styled,
    tall_figure,
    which,
)
from gating.judging.labels import LABELS

MOST = 24  # lines; more of them, and the conditions of a family share one
APART = 0.17  # of a line: harmful prompts above it, harmless ones below


@dataclass(frozen=True)
class Line:
    """A line of a picture at height `y`: a condition, or several together (the random controls of a grid point; all
    settings of a family)."""

    text: str
    kind: str
    names: tuple[str, ...]
    y: float


def lines(run: xr.DataTree) -> list[Line]:
    """The conditions in order, the random controls of a grid point on one line, a gap where a grid point with controls
    begins or ends; where that is too many, all settings of a family on one line."""
    apart = _apart(run)
    return apart if len(apart) <= MOST else _folded(run)


def _apart(run: xr.DataTree) -> list[Line]:
    conditions, shown = analysis.read_group(run, "conditions"), analysis.shown_names(run)
    fields = ("condition", "kind", "grid", "direction", "family", "point", "draw")
    columns = (conditions[c].values.tolist() for c in fields)
    out: list[Line] = []
    place: dict[tuple[int, str, str], int] = {}  # where the controls of a grid point stand
    alone = {g for g, count in Counter(conditions["grid"].values.tolist()).items() if count == 1}
    y, last = -1.0, None
    for name, kind, grid, direction, family, point, draw in zip(*columns, strict=True):
        if kind == "random" and (grid, direction, draw) in place:
            at = place[grid, direction, draw]
            names = (*out[at].names, name)
            label = shown[names[0]].removesuffix(names[0])  # the paper's
            word, at_point = "random" if draw == "isotropic" else draw, f"[{point}]" if point else ""
            text = f"{label}{family}-{word} ({len(names)} seeds){at_point}"
            out[at] = replace(out[at], text=text, names=names)
            continue
        if kind == "random":
            place[grid, direction, draw] = len(out)
        y += 1 if last in (None, grid) or {last, grid} <= alone else 1.6
        last = grid
        out.append(Line(shown[name], kind, (name,), y))
    return out


def _folded(run: xr.DataTree) -> list[Line]:
    conditions, shown = analysis.read_group(run, "conditions"), analysis.shown_names(run)
    columns = (conditions[c].values.tolist() for c in ("condition", "kind", "family", "draw"))
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, kind, family, draw in zip(*columns, strict=True):
        found.setdefault((kind, family, draw), []).append(name)
    out = []
    for y, ((kind, family, draw), names) in enumerate(found.items()):
        ending = {"random": f"-{'random' if draw == 'isotropic' else draw}", "reversed": "-reversed"}.get(kind, "")
        many = f"{family}{ending} ({len(names)} {'controls' if kind == 'random' else 'settings'})"
        out.append(Line(shown[names[0]] if len(names) == 1 else many, kind, tuple(names), float(y)))
    return out


def _lines(run: xr.DataTree, high: float = 1.0) -> tuple[list[Line], Figure, Axes]:
    shown = lines(run)
    figure, ax = tall_figure(high * (shown[-1].y + 1), max(len(line.text) for line in shown))
    ax.set_yticks([line.y for line in shown], [line.text for line in shown])
    ax.set_ylim(shown[-1].y + 0.7, -0.7)
    return shown, figure, ax


@styled
def rates(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal rate of every condition with its Wilson interval: of harmful prompts filled and, where they were asked,
    of harmless ones hollow below, joined; a cross is the share of degenerate answers. Conditions that share a line are
    a dot each."""
    both = analysis.asked_both(run)
    shown, figure, ax = _lines(run, 1.25 if both else 1.0)
    for flag in (True, False) if both else (harmful,):
        r = analysis.rates(run, harmful=flag)
        base = r.sel(condition="baseline", label="refusal")
        if flag is not False or not both:
            ax.axvspan(100 * float(base["low"]), 100 * float(base["high"]), color="#000000", alpha=0.08, lw=0)
        for line in shown:
            _dots(ax, line, r, APART * (-1 if flag else 1) if both else 0.0, hollow=both and not flag)
    if both:
        _joined(ax, run, shown)
    counted = ", ".join(_counted(run, flag, both) for flag in ((True, False) if both else (harmful,)))
    percent_axis(ax, f"refusal, %{'' if both else f' of {which(harmful)} prompts'}\n95% Wilson interval, n = {counted}")
    return _key(figure, ax, ("harmful", "harmless") if both else (which(harmful),))


def _counted(run: xr.DataTree, harmful: bool | None, named: bool) -> str:
    n = sorted({int(v) for v in analysis.refusal_rate(run, harmful=harmful)["n"].values})
    return " to ".join(map(str, n[:: max(1, len(n) - 1)])) + (f" {which(harmful)}" if named else "")


def _dots(ax: Axes, line: Line, r: xr.Dataset, above: float, hollow: bool) -> None:
    """A line's rates for one kind of prompts. r: along label and condition."""
    many = len(line.names) > 1
    of_line = r.sel(condition=list(line.names))
    rate, ends = reach(of_line.sel(label="refusal"))
    spread = 0.11 if above else 0.3
    y = line.y + above + (np.linspace(-spread, spread, len(rate)) if many else np.zeros(1))
    if np.isnan(rate).all():
        ax.text(0, line.y + above, "missing", va="center", color="#666666", fontsize="x-small")
    colour, words = KIND_COLOURS[line.kind], f"{line.text}, {'harmless' if hollow else 'harmful'}"
    look: dict[str, Any] = {
        "ms": (3 if above else 5) if many else 6,
        "lw": 0.5 if many else 1.3,
        "capsize": 0 if many else 2,
    }
    ax.errorbar(rate, y, xerr=None if len(rate) > 20 else ends, fmt=KIND_MARKERS[line.kind], color=colour,
                mfc="white" if hollow else colour, label=f"_{words}", **look)  # fmt: skip
    garbled = of_line["rate"].sel(label="degenerate").values
    if not many and garbled[0] >= GARBLED:
        ax.plot(100 * garbled, y, "x", color=LABEL_COLOURS["degenerate"], ms=6, mew=1.6, label=f"_{words}, degenerate")


def _joined(ax: Axes, run: xr.DataTree, shown: list[Line]) -> None:
    ends = [100 * analysis.refusal_rate(run, harmful=flag)["rate"] for flag in (True, False)]
    for line in shown:
        if len(line.names) == 1:
            x = [float(end.sel(condition=line.names[0])) for end in ends]
            ax.plot(x, [line.y - APART, line.y + APART], color="#BBBBBB", lw=0.8, zorder=0, label="_join")


def _key(figure: Figure, ax: Axes, sides: tuple[str, ...]) -> Figure:
    for side, face in zip(sides, ("#000000", "white"), strict=False):
        ax.plot([], [], "o", color="#000000", mfc=face, label=f"{side} prompts")
    ax.plot([], [], "x", color=LABEL_COLOURS["degenerate"], mew=1.6, label=f"degenerate, {100 * GARBLED:.0f}% or more")
    figure.legend(loc="outside upper right", ncols=3)
    return figure


def rates_in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """The refusal rate of each condition that is not a random control, with its interval; of harmless prompts after
    it."""
    shown = analysis.shown_names(run)
    r = analysis.refusal_rate(run, harmful=harmful)
    beside = analysis.refusal_rate(run, harmful=False) if analysis.asked_both(run) else None
    own = r["condition"].values[r["kind"].values != "random"].tolist()
    return "; ".join(
        f"{shown[name]} {interval(r.sel(condition=name), 1)}"
        + (f", harmless {interval(beside.sel(condition=name), 1)}" if beside is not None else "")
        for name in own
    )


@styled
def labels(run: xr.DataTree, harmful: bool | None) -> Figure:
    """What became of the answers: shares of the labels, one bar a line; the mean over the conditions that share it."""
    r = analysis.rates(run, harmful=harmful)["rate"]
    shown, figure, ax = _lines(run)
    y = [line.y for line in shown]
    left = np.zeros(len(shown))
    for name in LABELS:
        share = np.array([100 * float(r.sel(label=name, condition=list(line.names)).mean()) for line in shown])
        ax.barh(y, np.nan_to_num(share), left=left, color=LABEL_COLOURS[name], edgecolor="white", lw=0.8, label=name)
        left += np.nan_to_num(share)
    for line, end in zip(shown, left, strict=True):
        if end == 0:
            ax.text(1, line.y, "missing", va="center", color="#666666", fontsize="small")
    shared = "\nlines of several conditions: their mean" if any(len(line.names) > 1 for line in shown) else ""
    percent_axis(ax, f"answers to {which(harmful)} prompts, %{shared}")
    ax.set_xlim(0, 100)
    figure.legend(loc="outside upper right", ncols=len(LABELS))
    return figure


def _shared_lines(run: xr.DataTree) -> str:
    many = len(_apart(run)) > MOST
    return " The settings of a family share a line, a dot each: the maps tell them apart." if many else ""


FIGURES = (
    Picture(
        "outcomes",
        "statistics.md",
        "rates",
        lambda run: True,
        rates,
        lambda run, harmful: (
            f"Refusal rate of each condition with its interval: {rates_in_words(run, harmful)}. Random controls are "
            "in the table."
        ),
        lambda run: (
            "Refusal of harmful prompts (filled) and harmless ones (hollow). The grey band is the baseline's interval; "
            "grey dots are random directions of the same norm, one a seed." + _shared_lines(run)
        ),
    ),
    Picture(
        "outcomes",
        "method.md#judges-of-text",
        "labels",
        lambda run: True,
        labels,
        lambda run, harmful: (
            "Shares of refusal, compliance, evasive and degenerate answers per condition; the numbers are in the table."
        ),
        lambda run: "What became of the answers. A degenerate answer (empty, looping, gibberish) is no compliance.",
    ),
)
