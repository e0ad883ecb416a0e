"""From the configuration to the run's conditions: parts by name, defaults, system messages, and which directions they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gating import personas
from gating.errors import GatingError, choices
from gating.pipeline.config import RunConfig, as_list
from gating.steering import directions, interventions
from gating.steering.interventions import DEFAULT_COEF, RANDOM, Condition

SHAPE = "{direction: compliant, op: ablate, layers: 17-25}"


def of(run: RunConfig, n_layers: int) -> list[Condition]:
    """The run's conditions in order: baseline, the steering grid with its controls, then the named ones."""
    names = [directions.label(n) for n in direction_names(run)]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise GatingError(f"steer.direction: two personas are called {twice!r}; rename one of the files.")
    names += run.directions.derived
    spec = _labelled({k: getattr(run.steer, k) for k in (*interventions.AXES, "gate", "threshold")})
    spec["coef"] = _coefficient(run, spec)
    out = interventions.grid(spec, names, n_layers, run.controls.random, run.controls.reverse)
    further = {name: _labelled_named(one) for name, one in named(run).items()}
    out += interventions.named(further, names, n_layers, 1 + max(c.grid for c in out))
    seen = [c.name for c in out]
    again = next((n for n in seen if seen.count(n) > 1), None)
    if again:
        raise GatingError(f"conditions.{again}: the run already has a condition of this name; choose another.")
    return out


def _coefficient(run: RunConfig, spec: Mapping[str, Any]) -> Any:
    """steer.coef, or where it is null the model's own for `add` and the operation's own for the others."""
    if spec["coef"] is not None:
        return spec["coef"]
    ops = [op for op in as_list(spec["op"]) if op in interventions.OPS]  # another is refused by its own name
    if ops == ["add"]:
        return run.model.steer.coef
    values = {DEFAULT_COEF.get(str(op)) for op in ops}
    if not ops:
        return 1.0
    if len(values) == 1 and "add" not in ops and None not in values:
        return values.pop()
    raise GatingError(f"steer.coef has no value that fits steer.op={spec['op']!r}; give steer.coef=NUMBER.")


def named(run: RunConfig) -> dict[str, dict[str, Any]]:
    """The named conditions with their parts written out: {name: {do: [intervention, ...], system: text or None}}."""
    out = {}
    for name, spec in run.conditions.items():
        key = f"conditions.{name}"
        whole = spec if isinstance(spec, Mapping) else {"do": spec}
        items = whole.get("do")
        if set(whole) - {"do", "system"} or not isinstance(items, list) or not (items or "system" in whole):
            raise GatingError(
                f"{key} must be a list of interventions, each a mapping such as {SHAPE} or the name of a part; or a "
                "mapping of `do`, that list, and `system`, a persona's name or a system message."
            )
        done = [_part(run, item, f"{key}[{i}]") for i, item in enumerate(items)]
        out[name] = {"do": done, "system": _system(whole.get("system"), key)}
    return out


def _part(run: RunConfig, item: Any, key: str) -> dict[str, Any]:
    """An intervention: written out, the name of a part, or `part: NAME` with changes."""
    item = {"part": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        raise GatingError(f"{key} is {item!r}: write a mapping such as {SHAPE}, or the name of a part.")
    part = item.get("part")
    if part is None:
        return dict(item)
    if part not in run.parts:
        raise GatingError(f"{key}: {part!r} is not one of `parts`: use {choices(run.parts, str(part))}.")
    return {**run.parts[part], **{k: v for k, v in item.items() if k != "part"}}


def _system(given: Any, key: str) -> str | None:
    """A system message: itself, or a persona's first positive instruction where it names one."""
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip():
        raise GatingError(f"{key}.system={given!r}: give a persona's name or a system message.")
    if given in personas.available() or given.lower().endswith(personas.ENDINGS):
        return personas.load(given).positive[0]
    return given


def direction_names(run: RunConfig) -> list[str]:
    """Every direction that the run extracts: what it writes along, what norms, gates and derived directions refer to,
    what it is told to, and refusal for the readouts."""
    specs: list[Mapping[str, Any]] = [{k: getattr(run.steer, k) for k in ("direction", "norm", "gate")}]
    specs += [item for one in named(run).values() for item in one["do"]]
    wanted = [d for s in specs for each in as_list(s.get("direction", RANDOM)) for d in str(each).split("+")]
    wanted += [str(n) for s in specs for n in as_list(s.get("norm", "natural")) if n not in interventions.NORMS]
    wanted += [str(g) for s in specs for g in as_list(s.get("gate", "")) if g]
    wanted += [str(d) for spec in run.directions.derived.values() for d in spec.values()]
    wanted = [d for d in [*wanted, *run.directions.extra] if d not in (RANDOM, "none", *run.directions.derived)]
    return list(dict.fromkeys([*wanted, directions.REFUSAL])) if wanted or run.readouts.last else []


def check_directions(run: RunConfig) -> None:
    """Every direction must exist: personas are loaded. Raises GatingError naming it."""
    for name in direction_names(run):
        base, _, _ = directions.split_name(name, run.directions.position)
        if base != directions.REFUSAL:
            _check_persona(base, as_list(run.steer.norm))


def _check_persona(name: str, norms: list[Any]) -> None:
    try:
        personas.load(name)
    except GatingError as e:
        if name in norms:
            raise GatingError(
                f"steer.norm={name!r}: use {choices(interventions.NORMS, name)}, or a direction. {e}"
            ) from None
        raise


def _labelled_named(one: dict[str, Any]) -> dict[str, Any]:
    return {"do": [_labelled(item) for item in one["do"]], "system": one["system"]}


def _labelled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with its directions called as in the results; a list stays a list, a set a+b a set."""

    def one(value: Any) -> str:
        return "+".join(directions.label(d) for d in str(value).split("+"))

    def relabel(value: Any) -> Any:
        return [one(v) for v in value] if isinstance(value, list | tuple) else one(value)

    return {k: relabel(v) if k in ("direction", "norm", "gate") else v for k, v in spec.items()}


def steer_label(run: RunConfig) -> str:
    """A short name of what is steered, for the run's folder."""
    parts = [Path(str(d)).stem for d in as_list(run.steer.direction)]
    return "+".join(parts)[:40].replace("@", "-at-").replace(":", "-")


def table(conditions: Sequence[Condition]) -> xr.Dataset:
    """The /conditions group: one row a condition, coordinates for every setting (`mixed` where interventions differ),
    and every intervention in full along the dimension `intervention` (iv_op is empty where there is none)."""

    def column(pick: Any, none: Any, mixed: Any) -> list[Any]:
        values = [{pick(iv) for iv in c.interventions} for c in conditions]
        return [none if not v else v.pop() if len(v) == 1 else mixed for v in values]

    text = np.dtypes.StringDType()
    data = {
        "kind": [c.kind for c in conditions],
        "direction": column(lambda iv: iv.direction, "none", "mixed"),
        "op": column(lambda iv: iv.op, "none", "mixed"),
        "layers": [c.layers for c in conditions],
        "norm": column(lambda iv: iv.norm, "none", "mixed"),
        "scope": column(lambda iv: iv.scope, "none", "mixed"),
        "read": column(lambda iv: iv.read, "none", "mixed"),
        "system": [c.system or "" for c in conditions],
    }
    ds = xr.Dataset({k: ("condition", np.array(v, dtype=text)) for k, v in data.items()})
    ds["coef"] = ("condition", np.array(column(lambda iv: iv.coef, np.nan, np.nan), dtype="float64"))
    ds["seed"] = ("condition", np.array([c.seed for c in conditions], dtype="int32"))
    ds["grid"] = ("condition", np.array([c.grid for c in conditions], dtype="int32"))
    return _in_full(ds, conditions).assign_coords(condition=np.array([c.name for c in conditions], dtype=text))


def _in_full(ds: xr.Dataset, conditions: Sequence[Condition]) -> xr.Dataset:
    width = max(1, *(len(c.interventions) for c in conditions))

    def cells(pick: Any, none: Any, dtype: Any) -> tuple:
        rows = [[pick(iv) for iv in c.interventions] + [none] * (width - len(c.interventions)) for c in conditions]
        return ("condition", "intervention"), np.array(rows, dtype=dtype)

    text = np.dtypes.StringDType()
    for field in ("op", "direction", "norm", "scope", "read"):
        ds[f"iv_{field}"] = cells(lambda iv, field=field: str(getattr(iv, field)), "", text)
    ds["iv_layers"] = cells(lambda iv: "+".join(map(str, iv.layers)), "", text)
    ds["iv_coef"] = cells(lambda iv: iv.coef, np.nan, "float64")
    ds["iv_seed"] = cells(lambda iv: -1 if iv.seed is None else iv.seed, -1, "int32")
    return ds
