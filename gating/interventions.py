"""Interventions are data: conditions, grids (a list is an axis), their controls, and lowering to a plan of tensors."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from gating.errors import GatingError, choices

OPS = ("add", "ablate")
SCOPES = ("all", "prompt", "generated", "last", "response")
NORMS = ("natural", "unit", "residual")  # or the name of a direction
READS = ("same", "previous")  # or a block
AXES = ("direction", "op", "layers", "coef", "norm", "scope", "read")
RANDOM = "random"


@dataclass(frozen=True)
class Intervention:
    """One operation on the residual stream: what is written, where, how strongly and on which tokens.

    `layers` are 0-based blocks b, written at resid_post[b]. `read` says which site the direction is taken from: `same`
    (block b), `previous` (block b-1, the paper's convention: read hidden_states[b], write block b) or a fixed block.
    `norm` scales the vector before `coef`: `natural` (as extracted), `unit`, `residual` (the median residual norm at
    the written block, so that coef is a fraction of it) or another direction's name (that direction's norm there).
    `seed` replaces the direction by a random one of exactly the same norm; `None` leaves it.
    """

    op: str
    direction: str
    layers: tuple[int, ...]
    coef: float
    norm: str = "natural"
    scope: str = "all"
    read: str = "same"
    seed: int | None = None


@dataclass(frozen=True)
class Condition:
    """A named, ordered list of interventions, with its place in the grid (`grid` -1 is the baseline)."""

    name: str
    kind: str = "baseline"  # baseline, steered, reversed, random, named
    interventions: tuple[Intervention, ...] = ()
    grid: int = -1
    layers: str = ""  # as the user wrote it, for labels
    seed: int = field(default=-1)


def parse_layers(value: Any, n_layers: int, key: str = "steer.layers") -> tuple[int, ...]:
    """Blocks named by a window: `20`, a relative depth `0.7` (block floor(0.7 n)), a range `22-26` or `0.6-0.8`, a set
    `22+24`, or `all`. Raises GatingError for anything else and for blocks the model does not have."""
    text = str(value).strip()
    if text == "all":
        return tuple(range(n_layers))
    blocks: list[int] = []
    for part in text.split("+"):
        ends = part.split("-")
        if not 1 <= len(ends) <= 2 or not all(re.fullmatch(r"\d+|0?\.\d+", e.strip()) for e in ends):
            raise GatingError(
                f"{key}={value!r} is not a layer window: use a block (16), a relative depth (0.55), a range (17-25), a "
                "set (22+24) or all; a list of windows, [14,16], is an axis."
            )
        numbers = [int(e) if e.strip().isdigit() else math.floor(float(e) * n_layers) for e in ends]
        if numbers[0] > numbers[-1]:
            raise GatingError(f"{key}={value!r}: the range {part} runs backwards; write the lower block first.")
        blocks += range(numbers[0], numbers[-1] + 1)
    if max(blocks) >= n_layers:
        raise GatingError(
            f"{key}={value!r}: the model has {n_layers} blocks, 0 to {n_layers - 1}; block {max(blocks)} does not exist. "
            "A relative depth such as 0.55 fits any model."
        )
    return tuple(sorted(set(blocks)))


def check_spec(spec: Mapping[str, Any], directions: Sequence[str], n_layers: int, key: str) -> Intervention:
    """One intervention from one point of a spec (every value scalar). Raises GatingError naming `key` and the field."""

    def bad(name: str, allowed: str) -> GatingError:
        return GatingError(f"{key}.{name}={spec.get(name)!r} is not allowed: use {allowed}.")

    if spec["op"] not in OPS:
        raise bad("op", choices(OPS, spec["op"]))
    if spec["scope"] not in SCOPES:
        raise bad("scope", choices(SCOPES, spec["scope"]))
    if spec["norm"] not in (*NORMS, *directions):
        raise bad("norm", f"{choices((*NORMS, *directions), spec['norm'])} (a direction's name means its norm)")
    read = str(spec["read"])
    if read not in READS and not (read.isdigit() and int(read) < n_layers):
        raise bad("read", f"{choices(READS, read)} or a block from 0 to {n_layers - 1}")
    coef = spec["coef"]
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not math.isfinite(coef):
        raise bad("coef", "a finite number, or a list of them for an axis")
    layers = parse_layers(spec["layers"], n_layers, f"{key}.layers")
    if read == "previous" and layers[0] == 0:
        raise bad("layers", "block 1 or later with read=previous: there is no block before block 0")
    direction = str(spec["direction"])
    if direction != RANDOM and direction not in directions:
        raise bad("direction", choices((*directions, RANDOM), direction))
    seed = 0 if direction == RANDOM else None
    if direction == RANDOM and spec["norm"] == "natural":
        raise bad(
            "norm", f"{choices(('unit', 'residual', *directions))} with direction=random, which has no norm of its own"
        )
    return Intervention(spec["op"], direction, layers, float(coef), spec["norm"], spec["scope"], read, seed)


def grid(
    spec: Mapping[str, Any], directions: Sequence[str], n_layers: int, random: int, reverse: bool, key: str = "steer"
) -> list[Condition]:
    """The conditions of a steering spec: the baseline, then for each grid point the steered condition and its controls.

    A field whose value is a list is an axis; the grid is their product, in the order of AXES. Each point has controls
    of its own: the same coefficient reversed (`reverse`, only for `add`), and `random` seeds of a random direction of
    the same norm at the same blocks. Raises GatingError for a bad field or a point that stands twice.
    """
    baseline = [Condition("baseline")]
    if spec["direction"] == "none":
        return baseline
    axes = {name: list(spec[name]) for name in AXES if isinstance(spec[name], list | tuple)}
    for name, values in axes.items():
        if not values:
            raise GatingError(f"{key}.{name}=[] is an empty axis; give it at least one value.")
        if len({str(v) for v in values}) < len(values):
            raise GatingError(f"{key}.{name}={values} names a value twice; give each value of an axis once.")
    out = baseline
    for i, point in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, point, strict=True))
        iv = check_spec({**spec, **chosen}, directions, n_layers, key)
        shown = [f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in chosen.items() if n != "direction"]
        suffix = f"[{','.join(shown)}]" if shown else ""
        layers = str({**spec, **chosen}["layers"])
        out.append(Condition(f"{iv.direction}{suffix}", "steered", (iv,), i, layers))
        if reverse and iv.op == "add" and iv.coef:
            other = replace(iv, coef=-iv.coef)
            out.append(Condition(f"{iv.direction}-reversed{suffix}", "reversed", (other,), i, layers))
        start = 1 if iv.seed is not None else 0  # steering along a random direction: its controls are other seeds
        for k in range(start, start + random):
            control = replace(iv, seed=k)
            out.append(Condition(f"{iv.direction}-random-{k}{suffix}", "random", (control,), i, layers, k))
    return out


def named(
    specs: Mapping[str, Sequence[Mapping[str, Any]]], directions: Sequence[str], n_layers: int
) -> list[Condition]:
    """Further conditions written out in full: a name and an ordered list of interventions each."""
    defaults = {"op": "add", "coef": 1.0, "norm": "natural", "scope": "all", "read": "same"}
    out = []
    for name, items in specs.items():
        parts = []
        for i, item in enumerate(items):
            key = f"conditions.{name}[{i}]"
            unknown = set(item) - set(AXES)
            if unknown:
                raise GatingError(
                    f"{key}: unknown field {sorted(unknown)[0]!r}; use {choices(AXES, sorted(unknown)[0])}."
                )
            for needed in ("direction", "layers"):
                if needed not in item:
                    raise GatingError(
                        f"{key}: {needed} is missing; give {needed}, and op and coef where not add and 1."
                    )
            parts.append(check_spec({**defaults, **item}, directions, n_layers, key))
        layers = " ".join(str(item["layers"]) for item in items)
        out.append(Condition(name, "named", tuple(parts), -1, layers))
    return out


def table(conditions: Sequence[Condition]) -> xr.Dataset:
    """The /conditions group: one row a condition, coordinates for every setting; `mixed` where interventions differ."""

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
    }
    ds = xr.Dataset({k: ("condition", np.array(v, dtype=text)) for k, v in data.items()})
    ds["coef"] = ("condition", np.array(column(lambda iv: iv.coef, np.nan, np.nan), dtype="float64"))
    ds["seed"] = ("condition", np.array([c.seed for c in conditions], dtype="int32"))
    ds["grid"] = ("condition", np.array([c.grid for c in conditions], dtype="int32"))
    return ds.assign_coords(condition=np.array([c.name for c in conditions], dtype=text))


def vector(iv: Intervention, block: int, directions: xr.Dataset, residual_norm: xr.DataArray, seed: int) -> np.ndarray:
    """What an intervention writes at `block` before its coefficient: [hidden] float64.

    For `add` the direction under its norm policy; for `ablate` the unit direction. A random control is drawn once per
    seed, the same direction at every block, and takes the exact norm of the vector it replaces.
    """
    site = {"same": block, "previous": block - 1}.get(iv.read, -1)
    site = site if site >= 0 else int(iv.read)
    hidden = directions.sizes["hidden"]
    if iv.direction == RANDOM:
        v = random_unit(hidden, seed, iv.seed or 0)
    else:
        v = directions["vector"].sel(direction=iv.direction, layer=site).values.astype("float64")
    natural = float(np.linalg.norm(v))
    if natural == 0:
        raise GatingError(
            f"steer.direction={iv.direction!r} is zero at block {site}: its two sides do not differ there; choose "
            "another block (steer.layers, steer.read) or position (directions.position)."
        )
    if iv.op == "ablate" or iv.norm == "unit":
        target = 1.0
    elif iv.norm == "natural":
        target = natural
    elif iv.norm == "residual":
        target = float(residual_norm.sel(layer=block))
    else:
        target = float(np.linalg.norm(directions["vector"].sel(direction=iv.norm, layer=site).values))
    unit = v / natural if iv.seed is None else random_unit(hidden, seed, iv.seed)
    return unit * target


def random_unit(hidden: int, seed: int, k: int) -> np.ndarray:
    """The k-th isotropic random unit vector of a run's seed: [hidden] float64."""
    v = np.random.default_rng([seed, k]).standard_normal(hidden)
    return v / np.linalg.norm(v)


Edits = dict[int, list[tuple[str, str, torch.Tensor, torch.Tensor]]]


def lower(rows: Sequence[Condition], directions: xr.Dataset, residual_norm: xr.DataArray, seed: int) -> Edits:
    """Lower one condition per row to plain tensors: {block: [(op, scope, vector [row, hidden], coef [row])]}.

    Rows of different conditions share a slot when op, scope and place in the order agree; a row outside a slot has
    coefficient 0 there. A row's own interventions keep their order.
    """
    hidden = directions.sizes["hidden"]
    slots: dict[tuple[int, int, str, str], tuple[torch.Tensor, torch.Tensor]] = {}
    cache: dict[tuple[Intervention, int], torch.Tensor] = {}
    for r, condition in enumerate(rows):
        for order, iv in enumerate(condition.interventions):
            for block in iv.layers:
                key = (block, order, iv.op, iv.scope)
                if key not in slots:
                    slots[key] = (torch.zeros(len(rows), hidden), torch.zeros(len(rows)))
                if (iv, block) not in cache:
                    cache[iv, block] = torch.from_numpy(vector(iv, block, directions, residual_norm, seed)).float()
                slots[key][0][r] = cache[iv, block]
                slots[key][1][r] = iv.coef
    edits: Edits = {}
    for (block, _, op, scope), (vectors, coefs) in sorted(slots.items(), key=lambda item: item[0]):
        edits.setdefault(block, []).append((op, scope, vectors, coefs))
    return edits
