"""From the configuration to the run's conditions: parts by name, defaults, system messages, and the directions
needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import xarray as xr

from gating import personas
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.pipeline.config import RunConfig, as_list
from gating.steering import condition_grid, controls, direction_specs, interventions, variants
from gating.steering.condition_grid import NamedSpec, Spec
from gating.steering.edits import OPERATIONS
from gating.steering.interventions import RANDOM, Condition, Intervention
from gating.store import TEXT

Value = TypeVar("Value")

SHAPE = "{direction: compliant, op: ablate, layers: 17-25}"
MOST_NAME = 80  # characters of a condition's name
NAMED_KEYS = ("do", "system", "paper")
BASELINE_IN_PAPER = "C0"  # arXiv 2606.26161's name for no steering


@dataclass(frozen=True)
class Resolved:
    """A configuration whose names are looked up: the named conditions with their parts written out, and every direction
    that the run extracts."""

    run: RunConfig
    named: dict[str, NamedSpec]
    direction_names: list[str]

    def conditions(self, n_layers: int) -> list[Condition]:
        """The run's conditions in order: baseline, the steering grid with its controls, then the named ones."""
        run = self.run
        names = [direction_specs.label(n) for n in self.direction_names]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise GatingError(f"steer.direction: two personas are called {twice!r}; rename one of the files.")
        names += run.directions.derived
        steer = _steer_spec(run)
        spec = {**_labelled(steer), "coef": _coefficient(run, steer)}
        draws = controls.check_draws(run.controls.draw, "controls.draw")
        conditions = condition_grid.grid(spec, names, n_layers, run.controls.random, run.controls.reverse, draws)
        labelled = {
            name: replace(spec, interventions=[_labelled(iv) for iv in spec.interventions])
            for name, spec in self.named.items()
        }
        conditions += condition_grid.named(labelled, names, n_layers, 1 + max(c.grid for c in conditions))
        _check_names(conditions)
        _check_draws(run, conditions)
        condition_grid.check_references(conditions)
        if any(c.paper for c in conditions):
            conditions[0] = replace(conditions[0], paper=BASELINE_IN_PAPER)
        return conditions


def resolve(run: RunConfig) -> Resolved:
    """Look up parts, system messages and directions. Raises GatingError naming the key of what is not there."""
    for name, part in run.parts.items():
        if not isinstance(part, Mapping):
            raise GatingError(f"parts.{name} is {shown(repr(part), 80)}: write a mapping such as {SHAPE}.")
        condition_grid.check_fields(part, f"parts.{shown(name, 60)}", whole=False)
    named = {name: _named(run, name, spec) for name, spec in run.conditions.items()}
    names = _direction_names(run, named)
    for name in names:
        base, _, _ = direction_specs.split_name(name, run.directions.position)
        if base != direction_specs.REFUSAL:
            _check_persona(base, as_list(run.steer.norm))
    return Resolved(run, named, names)


def _steer_spec(run: RunConfig) -> Spec:
    return {k: getattr(run.steer, k) for k in (*interventions.AXES, "gate", "threshold")}


def _check_names(conditions: Sequence[Condition]) -> None:
    names = [c.name for c in conditions]
    again = next((n for n in names if names.count(n) > 1), None)
    if again:
        raise GatingError(f"conditions.{again}: the run already has a condition of this name; choose another.")


def _check_draws(run: RunConfig, conditions: Sequence[Condition]) -> None:
    """Refuse a control that could not be drawn. Raises GatingError naming the condition."""
    for c in conditions:
        for iv in c.interventions:
            if iv.draw == "permuted" and iv.direction in run.directions.derived:
                raise GatingError(
                    f"conditions.{c.name}: draw=permuted of {iv.direction!r}, which is derived from other directions "
                    "and has no labels of its own to permute: use isotropic or covariance."
                )
            if iv.draw == "matched" and run.steer.iso_kl is not None:
                raise GatingError(
                    f"conditions.{c.name}: draw=matched with steer.iso_kl={run.steer.iso_kl:g}: controls are matched "
                    "at the doses that are given; drop one of the two."
                )


def _coefficient(run: RunConfig, spec: Spec) -> object:
    """steer.coef, or where it is null the model's own for `add` and the operation's own for the others."""
    if spec["coef"] is not None:
        return spec["coef"]
    ops = [op for op in as_list(spec["op"]) if op in OPERATIONS]  # another is refused by its own name
    if ops == ["add"]:
        return run.model.steer.coef
    values = {OPERATIONS[op]["coef"] for op in ops}
    if not ops:
        return 1.0
    if len(values) == 1 and "add" not in ops and None not in values:
        return values.pop()
    raise GatingError(f"steer.coef has no value that fits steer.op={spec['op']!r}; give steer.coef=NUMBER.")


def _named(run: RunConfig, name: str, spec: object) -> NamedSpec:
    """A named condition with its parts written out."""
    key = f"conditions.{shown(name, 60)}"
    if not isinstance(name, str) or shown(name, MOST_NAME) != name or not name:
        raise GatingError(f"{key}: a condition's name is one line of at most {MOST_NAME} characters; choose another.")
    whole = spec if isinstance(spec, Mapping) else {"do": spec}
    items, paper = whole.get("do"), whole.get("paper")
    if (
        set(whole) - set(NAMED_KEYS)
        or not isinstance(items, list)
        or not (items or "system" in whole)
        or not isinstance(paper, str | None)
    ):
        raise GatingError(
            f"{key} must be a list of interventions, each a mapping such as {SHAPE} or the name of a part; or a "
            "mapping of `do`, that list, `system`, a persona's name or a system message, and `paper`, a paper's label."
        )
    written_out = [_part(run, item, f"{key}[{i}]") for i, item in enumerate(items)]
    for i, item in enumerate(written_out):
        condition_grid.check_fields(item, f"{key}[{i}]")
    return NamedSpec(written_out, _system(whole.get("system"), key), paper or "")


def _part(run: RunConfig, item: object, key: str) -> Spec:
    """An intervention: written out, the name of a part, or `part: NAME` with changes."""
    item = {"part": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        raise GatingError(f"{key} is {item!r}: write a mapping such as {SHAPE}, or the name of a part.")
    part = item.get("part")
    if part is None:
        return dict(item)
    if not isinstance(part, str) or part not in run.parts:
        raise GatingError(f"{key}: {shown(repr(part), 80)} is not one of `parts`: use {choices(run.parts, str(part))}.")
    return {**run.parts[part], **{k: v for k, v in item.items() if k != "part"}}


def _system(given: object, key: str) -> str | None:
    """A system message: itself, or a persona's first positive instruction where it names one."""
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip():
        raise GatingError(f"{key}.system={given!r}: give a persona's name or a system message.")
    if given in personas.available() or given.lower().endswith(personas.ENDINGS):
        return personas.load(given).positive[0]
    return given


def _direction_names(run: RunConfig, named: Mapping[str, NamedSpec]) -> list[str]:
    """Every direction that the run extracts: what it writes along, what norms, gates and derived directions refer to,
    what it is told to, and refusal for the readouts and for the norms and rows that random directions take."""
    specs = [_steer_spec(run), *(iv for spec in named.values() for iv in spec.interventions)]
    wanted = [d for s in specs for each in as_list(s.get("direction", RANDOM)) for d in str(each).split("+")]
    wanted += [str(n) for s in specs for n in as_list(s.get("norm", "natural")) if n not in interventions.NORMS]
    wanted += [str(g) for s in specs for g in as_list(s.get("gate", "")) if g]
    wanted += [str(d) for spec in run.directions.derived.values() for d in spec.values()]
    wanted += [*run.directions.extra, *variants.named(run.directions.variants)]
    needed = set(wanted) - {"none"} or run.readouts.last
    wanted = [d for d in wanted if d not in (RANDOM, "none", *run.directions.derived)]
    return list(dict.fromkeys([*wanted, direction_specs.REFUSAL])) if needed else []


def _check_persona(name: str, norms: Sequence[object]) -> None:
    try:
        personas.load(name)
    except GatingError as e:
        if name in norms:
            raise GatingError(
                f"steer.norm={name!r}: use {choices(interventions.NORMS, name)}, or a direction. {e}"
            ) from None
        raise


def _labelled(spec: Spec) -> Spec:
    """A spec with its directions called as in the results; a list stays a list, a set a+b a set."""

    def label(value: object) -> str:
        return "+".join(direction_specs.label(d) for d in str(value).split("+"))

    def relabel(value: object) -> object:
        return [label(v) for v in value] if isinstance(value, list | tuple) else label(value)

    return {k: relabel(v) if k in ("direction", "norm", "gate") else v for k, v in spec.items()}


def steer_label(run: RunConfig) -> str:
    """A short name of what is steered, for the run's folder."""
    parts = [Path(str(d)).stem for d in as_list(run.steer.direction)]
    return "+".join(parts)[:40].replace("@", "-at-").replace(":", "-").replace("#", "-")


TEXTS = (
    "kind",
    "layers",
    "family",
    "point",
    "controls",
    "paper",
)  # text fields of a condition, as /conditions has them
# text fields of its interventions; `mixed` where they differ
SHARED = ("direction", "op", "norm", "scope", "read", "reference")


def table(conditions: Sequence[Condition], n_layers: int) -> xr.Dataset:
    """The /conditions group: one row a condition, a variable for every setting (`mixed` where interventions differ) and
    for all that its name shows, and every intervention in full along the dimension `intervention` (iv_op is empty where
    there is none; iv_written says which decoder blocks it writes)."""

    def shared(pick: Callable[[Intervention], Value], none: Value, mixed: Value) -> list[Value]:
        values = [{pick(iv) for iv in c.interventions} for c in conditions]
        return [none if not v else v.pop() if len(v) == 1 else mixed for v in values]

    texts = {field: [getattr(c, field) for c in conditions] for field in TEXTS}
    texts["family"] = [c.family or c.name for c in conditions]
    texts |= {field: shared(lambda iv, field=field: getattr(iv, field), "none", "mixed") for field in SHARED}  # type: ignore[misc]
    drawn = [[iv.draw for iv in c.interventions if iv.seed is not None] or ["isotropic"] for c in conditions]
    texts["draw"] = [kinds[0] if c.kind == "random" else "" for c, kinds in zip(conditions, drawn, strict=True)]
    texts["system"] = [c.system or "" for c in conditions]
    ds = xr.Dataset({k: ("condition", np.array(v, dtype=TEXT)) for k, v in texts.items()})
    ds["coef"] = ("condition", np.array(shared(lambda iv: iv.coef, np.nan, np.nan), dtype="float64"))
    ds["seed"] = ("condition", np.array([c.seed for c in conditions], dtype="int32"))
    ds["grid"] = ("condition", np.array([c.grid for c in conditions], dtype="int32"))
    ds = ds.merge(_in_full(conditions, n_layers))
    return ds.assign_coords(condition=np.array([c.name for c in conditions], dtype=TEXT))


def _in_full(conditions: Sequence[Condition], n_layers: int) -> xr.Dataset:
    """Every intervention of every condition: [condition, intervention], iv_written [condition, intervention, layer]."""
    width = max(1, *(len(c.interventions) for c in conditions))
    written = np.zeros((len(conditions), width, n_layers), dtype=bool)
    for i, c in enumerate(conditions):
        for slot, iv in enumerate(c.interventions):
            written[i, slot, list(iv.layers)] = True

    def cells(
        pick: Callable[[Intervention], object], none: object, dtype: object
    ) -> tuple[tuple[str, str], np.ndarray]:
        rows = [[pick(iv) for iv in c.interventions] + [none] * (width - len(c.interventions)) for c in conditions]
        return ("condition", "intervention"), np.array(rows, dtype=cast(np.dtype, dtype))

    texts = {f"iv_{f}": cells(lambda iv, f=f: str(getattr(iv, f)), "", TEXT) for f in SHARED}  # type: ignore[misc]
    return xr.Dataset(
        {
            **texts,
            "iv_layers": cells(lambda iv: "+".join(map(str, iv.layers)), "", TEXT),
            "iv_coef": cells(lambda iv: iv.coef, np.nan, "float64"),
            "iv_draw": cells(lambda iv: "" if iv.seed is None else iv.draw, "", TEXT),
            "iv_seed": cells(lambda iv: -1 if iv.seed is None else iv.seed, -1, "int32"),
            "iv_written": (("condition", "intervention", "layer"), written),
        },
        coords={"layer": np.arange(n_layers, dtype="int32")},
    )
