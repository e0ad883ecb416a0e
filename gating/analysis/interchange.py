"""Which of a run's conditions make a mediation: a projection led to another row's, in both directions."""

from __future__ import annotations

from typing import NamedTuple

import xarray as xr

from gating.analysis.reading import read_group

Settings = dict[str, str]  # an intervention's, as text


class Route(NamedTuple):
    """Conditions with Y(1, 1), Y(1, 0) and Y(0, 1) (see `mediation`), and Y(1, 0) with the mediator held at one block
    alone, by block."""

    mediator: str  # a direction
    persona: str
    held: str
    given: str
    at: dict[int, str]


def routes(run: xr.DataTree) -> list[Route]:
    """The mediations that a run's conditions make: a condition that does nothing but lead a direction's projection to
    that of another condition (given), and that other one with the same projection led to the unsteered row's (held)."""
    conditions = read_group(run, "conditions")
    named = conditions.isel(condition=conditions["kind"].values != "random")
    done = {str(name): _interventions(named.sel(condition=name)) for name in named["condition"].values}
    system = dict(zip(done, named["system"].values.tolist(), strict=True))
    found = []
    for given, interventions in done.items():
        persona = interventions[0]["iv_reference"] if len(interventions) == 1 else ""
        if not done.get(persona):
            continue
        own = {**interventions[0], "iv_reference": "own"}
        also = [n for n, ivs in done.items() if ivs[:-1] == done[persona] and ivs and system[n] == system[persona]]
        held = [n for n in also if done[n][-1] == own]
        at = {
            done[n][-1]["iv_layers"]: n for n in also if done[n][-1] == {**own, "iv_layers": done[n][-1]["iv_layers"]}
        }
        blocks = {int(layers): at[layers] for layers in sorted(filter(str.isdecimal, at), key=int)}
        if held:
            found.append(Route(own["iv_direction"], persona, held[0], given, blocks))
    return found


def _interventions(condition: xr.Dataset) -> list[Settings]:
    """A condition's interventions in order."""
    columns = {str(k): v.values.tolist() for k, v in condition.items() if v.dims == ("intervention",)}
    return [{k: str(v[i]) for k, v in columns.items()} for i, op in enumerate(columns["iv_op"]) if op]
