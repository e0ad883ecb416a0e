"""The pictures of a run: those of the registry that its data allow and its experiment is for, each with a text
alternative and a caption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from gating.errors import GatingError, choices
from gating.figures import (
    categories,
    differences,
    dose,
    geometry,
    kl,
    maps,
    mediation,
    nulls,
    prompts,
    rates,
    samples,
    strength,
    traces,
    variants,
)
from gating.figures.base import TOPICS, Picture

REGISTRY = (
    *rates.FIGURES, *kl.FIGURES, *categories.FIGURES, *samples.FIGURES, *prompts.FIGURES, *dose.FIGURES,
    *maps.FIGURES, *differences.FIGURES, *nulls.FIGURES, *mediation.FIGURES, *traces.FIGURES, *strength.FIGURES,
    *geometry.FIGURES, *variants.FIGURES,
)  # fmt: skip
FOR = {  # what an experiment is for, first; a run of no experiment named here has all topics
    "dose": ("dose", "outcomes", "controls"), "layers": ("dose", "controls", "outcomes"),
    "knockout": ("dose", "controls", "outcomes"), "reintroduce": ("dose", "outcomes", "inside"),
    "geometry": ("directions", "inside"), "directions": ("directions", "outcomes", "controls"),
    "selection": ("dose", "outcomes"), "nulls": ("controls", "outcomes"),
    "mediation": ("inside", "outcomes", "controls"), "references": ("outcomes", "controls", "inside"),
    "paper": ("outcomes", "controls", "inside"), "paper-exact": ("outcomes", "controls", "inside"),
}  # fmt: skip
ALL = "all"


class DrawnPicture(NamedTuple):
    figure: Figure
    alt_text: str
    caption: str


def experiment(run: xr.DataTree) -> str:
    """The experiment that the run is of; empty where it is of none."""
    return str(json.loads(run.attrs.get("choices", "{}")).get("experiment") or "")


def drawable(run: xr.DataTree) -> dict[str, Picture]:
    """Every picture that the run's data allow, by name."""
    return {picture.name: picture for picture in REGISTRY if picture.drawable(run)}


def chosen(run: xr.DataTree, asked: Sequence[str] = ()) -> dict[str, Picture]:
    """The pictures to draw, by name: those that are asked for, `all` of them, or by default those of the topics that
    the run's experiment is for, in that order. Raises GatingError for one that this run does not have."""
    held = drawable(run)
    if unknown := [name for name in asked if name not in held and name != ALL]:
        raise GatingError(f"pictures={unknown[0]!r} is not one of this run: use {choices([*held, ALL], unknown[0])}.")
    topics = tuple(TOPICS) if ALL in asked else FOR.get(experiment(run), tuple(TOPICS))
    if asked and ALL not in asked:
        return {name: held[name] for name in asked}
    return {name: picture for topic in topics for name, picture in held.items() if picture.topic == topic}


def pictures(run: xr.DataTree, harmful: bool | None, asked: Sequence[str] = ()) -> dict[str, DrawnPicture]:
    """The chosen pictures by name. harmful: whose answers are drawn (see `Picture`)."""
    return {
        name: DrawnPicture(picture.draw(run, harmful), picture.alt_text(run, harmful), picture.caption(run))
        for name, picture in chosen(run, asked).items()
    }
