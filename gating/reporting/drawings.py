"""A run's pictures as files beside its page: NAME.png, NAME.svg, and what is drawn as NAME.csv."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import xarray as xr
from matplotlib.figure import Figure

from gating import swap
from gating.figures import drawn, gallery
from gating.figures.base import TOPICS, styled
from gating.reporting.rows import headline_set


class Drawing(TypedDict):
    """A picture as the page shows it."""

    name: str
    topic: str  # a heading
    title: str  # of the list of contents
    method: str  # a page of docs/, with a heading
    alt_text: str
    caption: str
    png: str  # base64
    csv: str  # base64


def draw(run: xr.DataTree, folder: Path, asked: Sequence[str] = ()) -> list[Drawing]:
    """Draw the run's pictures into `folder`: those of `gallery.chosen`."""
    held = gallery.drawable(run)
    out: list[Drawing] = []
    for name, picture in gallery.pictures(run, headline_set(run), asked).items():
        png, svg, csv = _files(picture.figure)
        for ending, content in (("png", png), ("svg", svg), ("csv", csv)):
            swap.write(folder / f"{name}.{ending}", content)
        out.append({
            "name": name,
            "topic": TOPICS[held[name].topic],
            "title": re.split(r"[.:,](?:\s|$)", picture.caption)[0],
            "method": f"docs/{held[name].method}",
            "alt_text": picture.alt_text,
            "caption": picture.caption,
            "png": base64.b64encode(png).decode(),
            "csv": base64.b64encode(csv).decode(),
        })  # fmt: skip
    return out


@styled
def _files(figure: Figure) -> tuple[bytes, bytes, bytes]:
    """A figure as PNG, SVG and CSV."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png")
    figure.set_layout_engine("none")  # all stands where it stands
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue(), drawn.table(figure).encode()
