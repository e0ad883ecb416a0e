"""Conditions from what a user wrote: one intervention checked, a grid (a list is an axis), named conditions,
controls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gating import settings
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.steering import controls
from gating.steering.edits import OPERATIONS
from gating.steering.interventions import (
    AXES,
    EACH,
    NORMS,
    RANDOM,
    READS,
    SCOPES,
    Condition,
    Intervention,
    parse_layers,
)

Spec = Mapping[str, object]  # an intervention as a user wrote it: fields of FIELDS, a list where it is an axis

NOT_AXES = ("draw",)  # a list of these is no axis
FIELDS = (*AXES, "norm_read", "gate", "threshold", "random", *NOT_AXES)
SINGLE = tuple(f for f in FIELDS if f not in NOT_AXES)
DEFAULTS: Spec = {"op": "add", "norm": "natural", "scope": "all", "read": "same", "norm_read": "same", "threshold": 0.5,
                  "reference": "zero"}  # fmt: skip
REFERENCES = ("zero", "mean", "own")  # or the name of another condition
MOST_POINTS = 10_000  # of a grid


@dataclass(frozen=True)
class NamedSpec:
    """A named condition as a user wrote it: interventions in order, a system message, the paper's own label."""

    interventions: Sequence[Spec]
    system: str | None = None
    paper: str = ""


def check_spec(spec: Spec, directions: Sequence[str], n_layers: int, key: str) -> Intervention:
    """One intervention from one point of a spec (every value scalar). Raises GatingError naming `key` and the field."""
    given = {**DEFAULTS, **{k: v for k, v in spec.items() if v is not None}}
    for field in DEFAULTS:
        if field in spec and spec[field] is None:
            raise _bad(spec, key, field, f"a value, or leave it out for {DEFAULTS[field]!r}")
    op, direction, norm, scope = (str(given.get(field)) for field in ("op", "direction", "norm", "scope"))
    for needed in ("direction", "layers"):
        if needed not in given:
            raise _bad(spec, key, needed, "a value; null is none")
    if op not in OPERATIONS:
        raise _bad(spec, key, "op", choices(OPERATIONS, op))
    if given["scope"] not in SCOPES:
        raise _bad(spec, key, "scope", choices(SCOPES, scope))
    if given["norm"] not in (*NORMS, *directions):
        raise _bad(spec, key, "norm", f"{choices((*NORMS, *directions), norm)} (a direction's name means its norm)")
    layers = parse_layers(given["layers"], n_layers, f"{key}.layers")
    read, norm_read = (_site(given, field, n_layers, key) for field in ("read", "norm_read"))
    coef = settings.check_number(given.get("coef", OPERATIONS[op]["coef"]), f"{key}.coef")
    if "previous" in (read, norm_read) and layers[0] == 0:
        raise _bad(spec, key, "layers", "block 1 or later with read=previous: there is no block before block 0")
    _check_direction(spec, key, direction, op, norm, directions)
    gate = str(given.get("gate", ""))
    if gate and gate not in directions:
        raise _bad(spec, key, "gate", choices(directions, gate))
    threshold = settings.check_number(given["threshold"], f"{key}.threshold")
    seed, reference = 0 if direction == RANDOM else None, str(given["reference"])
    allowed = OPERATIONS[op]["references"]
    if reference not in allowed and "own" not in allowed:  # another is a condition, which `check_references` looks up
        raise _bad(spec, key, "reference", f"{choices(allowed, reference)} with op={op}")
    return Intervention(op, direction, layers, coef, norm, scope, read, seed, norm_read, gate, threshold, reference)


def check_references(conditions: Sequence[Condition]) -> None:
    """Refuse a reference to a condition that is not there, or that cannot be compared token by token."""
    by_name = {c.name: c for c in conditions}
    for c in conditions:
        for iv in c.interventions:
            if iv.reference in REFERENCES[1:] and iv.reference in by_name:
                raise GatingError(
                    f"conditions.{iv.reference}: `reference: {iv.reference}` of {c.name} means something else; choose "
                    "another name for the condition."
                )
            other = by_name.get(iv.reference)
            if iv.reference in REFERENCES or (other and other.system == c.system and other is not c):
                continue
            raise GatingError(
                f"conditions.{c.name}: reference={shown(iv.reference)!r} is no other condition with this one's system "
                f"message: use {choices([*REFERENCES, *by_name], iv.reference)}."
            )


def _bad(spec: Spec, key: str, field: str, allowed: str) -> GatingError:
    return GatingError(f"{key}.{field}={shown(repr(spec.get(field)))} is not allowed: use {allowed}.")


def _check_direction(spec: Spec, key: str, direction: str, op: str, norm: str, directions: Sequence[str]) -> None:
    row = OPERATIONS[op]
    for name in direction.split("+"):
        if name not in (*directions, RANDOM):
            raise _bad(spec, key, "direction", choices((*directions, RANDOM), name))
    if "+" in direction and not row["subspace"]:
        raise _bad(spec, key, "direction", f"one direction with op={op}; a set, a+b, is a subspace to ablate")
    if direction == RANDOM and row["writes"] == "vector" and norm == "natural":
        allowed = choices(("unit", "residual", *directions))
        raise _bad(spec, key, "norm", f"{allowed} with direction=random, which has no norm of its own")
    if direction == RANDOM and row["target"]:
        allowed = f"an extracted direction with op={op}: a random one has no sides to lead to"
        raise _bad(spec, key, "direction", allowed)


def _site(spec: Spec, field: str, n_layers: int, key: str) -> str:
    """The site that `read` or `norm_read` names: `same`, `previous` or one block, as text."""
    value = str(spec[field])
    if value in READS:
        return value
    try:
        (block,) = parse_layers(value, n_layers)
    except (GatingError, ValueError):
        allowed = f"{choices(READS, value)} or one block, 0 to {n_layers - 1}"
        raise GatingError(f"{key}.{field}={spec.get(field)!r} is not allowed: use {allowed}.") from None
    return str(block)


def check_axes(spec: Spec, names: Sequence[str], key: str, n_layers: int) -> dict[str, list[object]]:
    """The fields of a spec that are axes: lists, and `each`, which is every block. Raises GatingError for an empty one
    or one that names a value twice."""
    axes: dict[str, list[object]] = {}
    for name in names:
        value = spec.get(name)
        if isinstance(value, list | tuple):
            axes[name] = list(value)
    axes |= {name: list(range(n_layers)) for name in ("layers", "read") if spec.get(name) == EACH}
    if math.prod(map(len, axes.values())) > MOST_POINTS:
        raise GatingError(f"{key}: its axes have over {MOST_POINTS:,} points together; make them shorter.")
    for name, values in axes.items():
        if not values:
            raise GatingError(f"{key}.{name}=[] is an empty axis; give it at least one value.")
        if None in values:
            raise GatingError(f"{key}.{name}={values} has null in it; give each point of an axis a value.")
        if len({str(v) for v in values}) < len(values):
            raise GatingError(f"{key}.{name}={values} names a value twice; give each value of an axis once.")
    return axes


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid(
    spec: Spec,
    directions: Sequence[str],
    n_layers: int,
    random: int,
    reverse: bool,
    draws: Sequence[str] = ("isotropic",),
    key: str = "steer",
) -> list[Condition]:
    """The conditions of a steering spec: the baseline, then for each grid point the steered condition and its controls.

    A field whose value is a list is an axis; the grid is their product, in the order of AXES. Each point has controls
    of its own: the same coefficient reversed (`reverse`, for operations with a sign), and `random` seeds of a random
    direction of the same norm at the same blocks, of each kind in `draws`. Raises GatingError for a bad field or a
    point that stands twice.
    """
    conditions = [Condition("baseline")]
    if spec["direction"] == "none":
        return conditions
    axes = check_axes(spec, AXES, key, n_layers)
    for number, values in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        iv = check_spec({**spec, **chosen}, directions, n_layers, key)
        point = ",".join(f"{n}={_shown(v)}" for n, v in chosen.items() if n != "direction")
        suffix, family = controls.bracketed(point), iv.direction
        name = f"{family}{suffix}"
        steered = Condition(
            name, "steered", (iv,), number, str({**spec, **chosen}["layers"]), family=family, point=point
        )
        conditions.append(steered)
        if reverse and OPERATIONS[iv.op]["signed"] and iv.coef:
            opposite = (replace(iv, coef=-iv.coef),)
            reversed_name = f"{family}-reversed{suffix}"
            conditions.append(
                replace(steered, name=reversed_name, kind="reversed", interventions=opposite, controls=name)
            )
        start = 1 if iv.seed is not None else 0  # steering along a random direction: its controls are other seeds
        for draw, k in itertools.product(draws, range(start, start + random)):
            conditions.append(controls.control(steered, (controls.drawn(iv, k, draw, "controls"),), draw, k))
    return conditions


def named(specs: Mapping[str, NamedSpec], directions: Sequence[str], n_layers: int, first: int = 0) -> list[Condition]:
    """Further conditions written out in full, by name.

    A list as a field's value is an axis here too: it is called `field`, or `i.field` where there are several
    interventions. `random: K` adds K controls, in which what that intervention writes is random; for direction=random
    there are only these. `first`: the grid number of the first point.
    """
    conditions: list[Condition] = []
    number = first
    for name, spec in specs.items():
        key = f"conditions.{name}"
        for point, items in _points(spec.interventions, key, n_layers):
            conditions += _named_point(name, spec, point, items, number, directions, n_layers)
            number += 1
    return conditions


def _points(items: Sequence[Spec], key: str, n_layers: int) -> list[tuple[str, list[Spec]]]:
    """The points of a named condition's axes: as text, and the interventions there."""
    for i, item in enumerate(items):
        check_fields(item, f"{key}[{i}]")
    axes = {
        (i, field): values
        for i, item in enumerate(items)
        for field, values in check_axes(item, SINGLE, f"{key}[{i}]", n_layers).items()
    }
    points = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        shown = [f"{f if len(items) == 1 else f'{i}.{f}'}={_shown(v)}" for (i, f), v in chosen.items()]
        there: list[Spec] = [
            {**item, **{f: v for (j, f), v in chosen.items() if j == i}} for i, item in enumerate(items)
        ]
        points.append((",".join(shown), there))
    return points


def _named_point(
    name: str, spec: NamedSpec, point: str, items: Sequence[Spec], number: int, directions: Sequence[str], n_layers: int
) -> list[Condition]:
    """A named condition at one point of its axes, with its random controls."""
    key, suffix = f"conditions.{name}", controls.bracketed(point)
    ivs = tuple(check_spec(item, directions, n_layers, f"{key}[{i}]") for i, item in enumerate(items))
    _check_removals(ivs, key)
    draws = [controls.count(item, f"{key}[{i}]") for i, item in enumerate(items)]
    own = Condition(
        f"{name}{suffix}", "named", ivs, number, " ".join(str(item["layers"]) for item in items), system=spec.system,
        family=name, point=point, paper=spec.paper,
    )  # fmt: skip
    all_random = any(iv.direction == RANDOM and n for iv, n in zip(ivs, draws, strict=True))
    conditions = [] if all_random else [own]
    for draw, k in itertools.product(controls.kinds(items, draws, key), range(max(draws, default=0))):
        drawn = tuple(
            controls.drawn(iv, k, draw, f"{key}[{i}]") if n else iv
            for i, (iv, n) in enumerate(zip(ivs, draws, strict=True))
        )
        conditions.append(replace(controls.control(own, drawn, draw, k), controls="" if all_random else own.name))
    return conditions


def check_fields(item: Spec, key: str, whole: bool = True) -> None:
    """Raises GatingError for a field that no intervention has and, where the item is `whole`, for one that it lacks."""
    unknown = sorted(str(field) for field in item if field not in FIELDS)
    if unknown:
        raise GatingError(f"{key}: unknown field {unknown[0]!r}; use {choices(FIELDS, unknown[0])}.")
    nested = next((field for field, value in item.items() if isinstance(value, Mapping)), None)
    if nested:
        raise _bad(item, key, nested, "a text or number, or a list of them for an axis")
    for needed in ("direction", "layers") if whole else ():
        if item.get(needed) is None:
            raise GatingError(f"{key}: {needed} is missing; give {needed}, and op and coef where not add and 1.")


def _check_removals(ivs: Sequence[Intervention], key: str) -> None:
    for i, iv in enumerate(ivs):
        if iv.op == "remove" and not any(e.op == "add" and e.direction == iv.direction for e in ivs[:i]):
            raise GatingError(
                f"{key}[{i}].op=remove: no earlier add along {iv.direction!r} in this condition to take out; write the "
                "add before it, or use ablate."
            )
