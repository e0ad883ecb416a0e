"""The pictures of a run: those of the registry that its data allow, each with a text alternative and a caption."""

from __future__ import annotations

from typing import NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from gating.figures import dose, geometry, maps, mediation, nulls, prompts, rates, samples, traces, variants

REGISTRY = (
    *rates.FIGURES, *dose.FIGURES, *maps.FIGURES, *mediation.FIGURES, *nulls.FIGURES, *geometry.FIGURES,
    *variants.FIGURES, *samples.FIGURES, *prompts.FIGURES, *traces.FIGURES,
)  # fmt: skip


class DrawnPicture(NamedTuple):
    figure: Figure
    alt_text: str
    caption: str


def pictures(run: xr.DataTree, harmful: bool | None) -> dict[str, DrawnPicture]:
    """Every picture that the run's data allow, by file name. harmful: whose answers are drawn (see `Picture`)."""
    return {
        picture.name: DrawnPicture(picture.draw(run, harmful), picture.alt_text(run, harmful), picture.caption(run))
        for picture in REGISTRY
        if picture.drawable(run)
    }
