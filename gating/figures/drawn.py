"""What a picture shows as a table: the places of its points, lines, bands and cells, read off the figure itself, so
that a table cannot differ from what was drawn."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, ScalarFormatter


class Point(NamedTuple):
    """A row of the table. low and high: of a point's interval or a band; width: of a bar, which begins at x."""

    panel: str
    series: str
    x: str | float
    y: str | float
    value: float | str = ""
    low: float | str = ""
    high: float | str = ""
    note: str = ""  # what is written in a cell


def table(figure: Figure) -> str:
    """The figure's numbers as CSV with a heading."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Point._fields)
    for ax in figure.axes:
        if ax.get_visible():
            panel = " ".join((ax.get_title(loc="left") or ax.get_xlabel()).split())
            writer.writerows(_plain(point) for point in _points(ax, panel))
    return out.getvalue()


def _plain(point: Point) -> list[str]:
    return [v if isinstance(v, str) else "" if np.isnan(v) else f"{v:.6g}" for v in point]


def _points(ax: Axes, panel: str) -> list[Point]:
    out: list[Point] = []
    taken: set[object] = set()
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, bars = container.lines
            taken.update([line, *bars])
            out += _errorbars(ax, panel, str(container.get_label()), line, bars[0] if bars else None)
        elif isinstance(container, BarContainer):
            out += [_bar(ax, panel, str(container.get_label()), bar) for bar in container.patches]
    out += [p for line in ax.lines if line not in taken for p in _line(ax, panel, line)]
    for collection in ax.collections:
        if isinstance(collection, QuadMesh):
            out += _cells(ax, panel, collection)
        elif isinstance(collection, PolyCollection) and collection.get_gid():
            out += _band(panel, collection)
    return out


def _line(ax: Axes, panel: str, line: Line2D) -> list[Point]:
    x, y = (np.asarray(v, dtype="float64") for v in line.get_data())
    name = str(line.get_label())
    constant = line.get_transform() != ax.transData  # axhline, axvline: a level
    if name == "_join" or (constant and name.startswith("_child")) or not x.size:
        return []
    if constant:
        level = (y[0], "") if y[0] == y[-1] else ("", x[0])
        return [Point(panel, _word(name), level[1], level[0])]
    return [Point(panel, _word(name), _named(ax.xaxis, a), _named(ax.yaxis, b)) for a, b in zip(x, y, strict=True)]


def _errorbars(ax: Axes, panel: str, name: str, line: Line2D, bars: LineCollection | None) -> list[Point]:
    segments = [np.asarray(s) for s in bars.get_segments()] if bars is not None else []
    out = []
    for i, (x, y) in enumerate(np.transpose(np.asarray(line.get_data(), dtype="float64")).tolist()):
        low = high = np.nan
        if i < len(segments) and len(segments[i]) == 2:
            along = int(segments[i][0][0] == segments[i][1][0])  # vertical where x stays
            low, high = sorted(segments[i][:, along].tolist())
        out.append(Point(panel, _word(name), _named(ax.xaxis, x), _named(ax.yaxis, y), "", float(low), float(high)))
    return out


def _bar(ax: Axes, panel: str, name: str, bar: Rectangle) -> Point:
    middle = bar.get_y() + bar.get_height() / 2
    return Point(panel, _word(name), float(bar.get_x()), _named(ax.yaxis, middle), float(bar.get_width()))


def _cells(ax: Axes, panel: str, mesh: QuadMesh) -> list[Point]:
    values: np.ndarray = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype="float64"), np.nan)
    values = np.atleast_2d(values)
    texts = {(t.get_position()[0], t.get_position()[1]): t.get_text() for t in ax.texts}
    return [
        Point(panel, "", _named(ax.xaxis, j + 0.5), _named(ax.yaxis, i + 0.5), float(v),
              note=" ".join(texts.get((j + 0.5, i + 0.5), "").split()))
        for (i, j), v in np.ndenumerate(values)
    ]  # fmt: skip


def _band(panel: str, shape: PolyCollection) -> list[Point]:
    corners = np.concatenate([np.zeros((0, 2)), *(path.vertices for path in shape.get_paths())])
    corners = corners[np.isfinite(corners).all(1)]
    out = []
    for x in dict.fromkeys(corners[:, 0].tolist()):
        at = corners[corners[:, 0] == x, 1]
        out.append(Point(panel, f"{shape.get_gid()}, band", float(x), "", "", float(at.min()), float(at.max())))
    return out


def _word(label: str) -> str:
    return "" if label.startswith(("_child", "container")) else label.removeprefix("_")


def _named(axis: Axis, place: float) -> str | float:
    """The words at the nearest tick of an axis whose ticks were given words, else the place itself."""
    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    if not isinstance(locator, FixedLocator) or isinstance(formatter, ScalarFormatter) or not np.isfinite(place):
        return place
    ticks = [float(tick) for tick in locator()]
    nearest = int(np.argmin(np.abs(np.array(ticks) - place)))
    return " ".join(formatter.format_ticks(ticks)[nearest].split()) or place
