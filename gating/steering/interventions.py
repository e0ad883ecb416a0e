"""Interventions are data: what one is, the conditions and grids (a list is an axis) made of them, and their controls.

gating/steering/lowering.py lowers them to tensors; gating/steering/ops.py says what each operation does to activations.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gating.errors import GatingError, choices

OPS = ("add", "ablate", "clamp", "cap", "floor", "rotate", "remove")
SCOPES = ("all", "prompt", "generated", "last", "response")
NORMS = ("natural", "unit", "residual")  # or the name of a direction
READS = ("same", "previous")  # or a block
AXES = ("direction", "op", "layers", "coef", "norm", "scope", "read")
FIELDS = (*AXES, "norm_read", "gate", "threshold", "random")
RANDOM = "random"
EACH = "each"
DEFAULTS = {"op": "add", "norm": "natural", "scope": "all", "read": "same", "norm_read": "same", "threshold": 0.5}
DEFAULT_COEF = {"add": 1.0, "ablate": 1.0, "remove": 1.0, "clamp": 0.0, "cap": 0.0, "floor": 0.0}  # rotate has none


@dataclass(frozen=True)
class Intervention:
    """One operation on the residual stream: what is written, where, how strongly and on which tokens.

    `layers` are 0-based blocks b, written at resid_post[b]. `read` says which site the direction is taken from: `same`
    (block b), `previous` (block b-1, the paper's convention: read hidden_states[b], write block b) or a fixed block.
    `coef` counts, for `add`, lengths set by `norm`: `natural` (as extracted), `unit`, `residual` (the median residual
    norm at the written block, so that coef is a fraction of it) or another direction's name (that direction's norm, at
    the same site or at the block `norm_read`); for `ablate` and `remove` the share taken out (1 is all of it); for
    `clamp`, `cap` and `floor` the place between the direction's own sides' mean projections (0 is the negative side's,
    1 the positive side's); for `rotate` degrees. `remove` takes out again what earlier `add`s of the condition put in
    along the same direction. `direction` may be a set, a+b, for the ablation of the subspace that they span.

    `seed` replaces what is *written* by a random direction of exactly the same norm; what is measured stays, so that the
    control of an ablation removes exactly as much, elsewhere. A `direction` that is `random` is random in both.
    `gate` names a direction: the edit acts only on rows whose last prompt token's projection on it, at that block, lies
    above `threshold` (0 is its negative side's mean, 1 its positive side's).
    """

    op: str
    direction: str
    layers: tuple[int, ...]
    coef: float
    norm: str = "natural"
    scope: str = "all"
    read: str = "same"
    seed: int | None = None
    norm_read: str = "same"
    gate: str = ""
    threshold: float = 0.5

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.direction.split("+"))


@dataclass(frozen=True)
class Condition:
    """A named, ordered list of interventions, with its place in the grid (-1: the baseline): controls share the place of
    what they control. `system` replaces the run's system message."""

    name: str
    kind: str = "baseline"  # baseline, steered, reversed, random, named
    interventions: tuple[Intervention, ...] = ()
    grid: int = -1
    layers: str = ""  # as the user wrote it, for labels
    seed: int = -1
    system: str | None = None


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

    spec = {**DEFAULTS, **{k: v for k, v in spec.items() if v is not None}}
    op = spec["op"]
    if op not in OPS:
        raise bad("op", choices(OPS, op))
    if spec["scope"] not in SCOPES:
        raise bad("scope", choices(SCOPES, spec["scope"]))
    if spec["norm"] not in (*NORMS, *directions):
        raise bad("norm", f"{choices((*NORMS, *directions), spec['norm'])} (a direction's name means its norm)")
    layers = parse_layers(spec["layers"], n_layers, f"{key}.layers")
    reads = {}
    for field in ("read", "norm_read"):
        reads[field] = str(spec[field])
        if reads[field] not in READS:
            try:
                (block,) = parse_layers(reads[field], n_layers)
            except (GatingError, ValueError):
                raise bad(field, f"{choices(READS, reads[field])} or one block, 0 to {n_layers - 1}") from None
            reads[field] = str(block)
    coef = spec.get("coef", DEFAULT_COEF.get(str(op)))
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not math.isfinite(coef):
        raise bad("coef", "a finite number, or a list of them for an axis")
    if "previous" in reads.values() and layers[0] == 0:
        raise bad("layers", "block 1 or later with read=previous: there is no block before block 0")
    direction = str(spec["direction"])
    for one in direction.split("+"):
        if one not in (*directions, RANDOM):
            raise bad("direction", choices((*directions, RANDOM), one))
    if "+" in direction and op != "ablate":
        raise bad("direction", f"one direction with op={op}; a set, a+b, is a subspace to ablate")
    is_random = direction == RANDOM
    if is_random and op == "add" and spec["norm"] == "natural":
        raise bad(
            "norm", f"{choices(('unit', 'residual', *directions))} with direction=random, which has no norm of its own"
        )
    if is_random and op in ("clamp", "cap", "floor"):
        raise bad("direction", f"an extracted direction with op={op}: a random one has no sides to lead to")
    gate = str(spec.get("gate", ""))
    if gate and gate not in directions:
        raise bad("gate", choices(directions, gate))
    threshold = spec["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise bad("threshold", "a number: 0 is the gate's negative side, 1 its positive side")
    return Intervention(
        op, direction, layers, float(coef), spec["norm"], spec["scope"], reads["read"], 0 if is_random else None,
        reads["norm_read"], gate, float(threshold),
    )  # fmt: skip


def check_axes(spec: Mapping[str, Any], names: Sequence[str], key: str, n_layers: int) -> dict[str, list[Any]]:
    """The fields of a spec that are axes: lists, and `each`, which is every block. Raises GatingError for an empty one or
    one that names a value twice."""
    axes = {name: list(spec[name]) for name in names if isinstance(spec.get(name), list | tuple)}
    axes |= {name: list(range(n_layers)) for name in ("layers", "read") if spec.get(name) == EACH}
    for name, values in axes.items():
        if not values:
            raise GatingError(f"{key}.{name}=[] is an empty axis; give it at least one value.")
        if len({str(v) for v in values}) < len(values):
            raise GatingError(f"{key}.{name}={values} names a value twice; give each value of an axis once.")
    return axes


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    axes = check_axes(spec, AXES, key, n_layers)
    out = baseline
    for i, point in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, point, strict=True))
        iv = check_spec({**spec, **chosen}, directions, n_layers, key)
        shown = [f"{n}={_shown(v)}" for n, v in chosen.items() if n != "direction"]
        suffix = f"[{','.join(shown)}]" if shown else ""
        layers = str({**spec, **chosen}["layers"])
        out.append(Condition(f"{iv.direction}{suffix}", "steered", (iv,), i, layers))
        if reverse and iv.op in ("add", "rotate") and iv.coef:
            other = replace(iv, coef=-iv.coef)
            out.append(Condition(f"{iv.direction}-reversed{suffix}", "reversed", (other,), i, layers))
        start = 1 if iv.seed is not None else 0  # steering along a random direction: its controls are other seeds
        for k in range(start, start + random):
            control = replace(iv, seed=k)
            out.append(Condition(f"{iv.direction}-random-{k}{suffix}", "random", (control,), i, layers, k))
    return out


def named(specs: Mapping[str, Any], directions: Sequence[str], n_layers: int, first: int = 0) -> list[Condition]:
    """Further conditions written out in full: a name, and an ordered list of interventions (or a mapping with `do`, that
    list, and `system`, a system message).

    A list as a field's value is an axis here too: it is called `field`, or `i.field` where there are several
    interventions. `random: K` adds K controls, in which what that intervention writes is random; for direction=random
    there are only these. `first`: the grid number of the first point.
    """
    out: list[Condition] = []
    point_number = first
    for name, spec in specs.items():
        key = f"conditions.{name}"
        items, system = (spec["do"], spec.get("system")) if isinstance(spec, Mapping) else (spec, None)
        for i, item in enumerate(items):
            _check_fields(item, f"{key}[{i}]")
        axes: dict[tuple[int, str], list[Any]] = {
            (i, field): values
            for i, item in enumerate(items)
            for field, values in check_axes(item, FIELDS, f"{key}[{i}]", n_layers).items()
        }
        for point in itertools.product(*axes.values()):
            chosen = dict(zip(axes, point, strict=True))
            full = [{**item, **{f: v for (j, f), v in chosen.items() if j == i}} for i, item in enumerate(items)]
            ivs = tuple(check_spec(s, directions, n_layers, f"{key}[{i}]") for i, s in enumerate(full))
            _check_removals(ivs, key)
            shown = [f"{f if len(items) == 1 else f'{i}.{f}'}={_shown(v)}" for (i, f), v in chosen.items()]
            suffix = f"[{','.join(shown)}]" if shown else ""
            layers = " ".join(str(s["layers"]) for s in full)
            draws = [_draws(s, f"{key}[{i}]") for i, s in enumerate(full)]
            pure = any(iv.direction == RANDOM and n for iv, n in zip(ivs, draws, strict=True))
            if not pure:
                out.append(Condition(f"{name}{suffix}", "named", ivs, point_number, layers, system=system))
            for k in range(max(draws, default=0)):
                drawn = tuple(replace(iv, seed=k) if n else iv for iv, n in zip(ivs, draws, strict=True))
                out.append(Condition(f"{name}-random-{k}{suffix}", "random", drawn, point_number, layers, k, system))
            point_number += 1
    return out


def _draws(spec: Mapping[str, Any], key: str) -> int:
    n = spec.get("random") or 0
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= 999:
        raise GatingError(f"{key}.random={n!r}: give how many random controls to draw, 0 to 999.")
    return n


def _check_fields(item: Mapping[str, Any], key: str) -> None:
    unknown = sorted(set(item) - set(FIELDS))
    if unknown:
        raise GatingError(f"{key}: unknown field {unknown[0]!r}; use {choices(FIELDS, unknown[0])}.")
    for needed in ("direction", "layers"):
        if needed not in item:
            raise GatingError(f"{key}: {needed} is missing; give {needed}, and op and coef where not add and 1.")


def _check_removals(ivs: Sequence[Intervention], key: str) -> None:
    for i, iv in enumerate(ivs):
        if iv.op == "remove" and not any(e.op == "add" and e.direction == iv.direction for e in ivs[:i]):
            raise GatingError(
                f"{key}[{i}].op=remove: no earlier add along {iv.direction!r} in this condition to take out; write the "
                "add before it, or use ablate."
            )
