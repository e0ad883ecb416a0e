"""A run's mediation in words: what the persona's effect is made of, for each measure and set of prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis.wording import MISSING, plus_minus

# measure -> what it is called, a factor, digits
MEASURES = {"refusal_score": ("first-token score, nats", 1, 2), "refusal": ("refusal, points", 100, 0)}
ROWS = {
    "total": "total", "direct": "natural direct (held)", "indirect": "natural indirect (given)",
    "interaction": "interaction", "share_held": "share gone when held", "share_given": "share there when given",
}  # fmt: skip
UNDEFINED = (
    "A share is missing where the total's interval holds 0 or the total is negligible: nothing is mediated then."
)


class Mediation(NamedTuple):
    """A table: what each column is about, then rows of text with what they are called."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def mediations(run: xr.DataTree) -> list[Mediation]:
    """Every mediation that the run's conditions make; none for most runs."""
    out = []
    for route in analysis.routes(run):
        sets = [(harmful, name) for harmful, name in ((True, "harmful"), (False, "harmless")) if _asked(run, harmful)]
        about = [(measure, harmful) for harmful, _ in sets for measure in MEASURES]
        columns = [_column(run, route, *each) for each in about]
        rows = [
            (name, list(texts)) for name, texts in zip((*ROWS.values(), "n"), zip(*columns, strict=True), strict=True)
        ]
        headings = [f"{name}: {MEASURES[measure][0]}" for _, name in sets for measure in MEASURES]
        out.append(Mediation(f"{route.persona} through {route.mediator}", headings, rows))
    return out


def _asked(run: xr.DataTree, harmful: bool) -> bool:
    return bool(analysis.asked(run, harmful).any())


def _column(run: xr.DataTree, route: analysis.Route, measure: str, harmful: bool) -> list[str]:
    found = analysis.mediation(run, route.persona, route.held, route.given, measure, harmful)
    _, scale, digits = MEASURES[measure]
    texts = []
    for effect in ROWS:
        estimate, low, high = (float(found[k].sel(effect=effect)) for k in ("estimate", "low", "high"))
        if np.isnan(estimate):
            texts.append(MISSING)
        elif effect.startswith("share"):
            texts.append(f"{100 * estimate:.0f}% [{100 * low:.0f}, {100 * high:.0f}]")
        else:
            ends = [MISSING if np.isnan(v) else plus_minus(scale * v, digits) for v in (low, high)]
            texts.append(f"{plus_minus(scale * estimate, digits)} [{', '.join(ends)}]")
    return [*texts, str(int(found["n"]))]
