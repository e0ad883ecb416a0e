"""What a trace must bring back, known before it is sent: names, shapes, precisions, and where a number must be finite.

One function a kind of trace; the traces are those of gating/steering/backend.py, and what they save is made in
gating/steering/ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gating.remote.wire import Lost
from gating.steering.calls import Call
from gating.steering.ops import READOUTS

OTHER = 2**26  # bytes of the result of a trace that is not described here
LONGEST = 100  # characters of a text in a result


class NotFinite(Exception):
    """A number that must be finite is not. Sending the trace again would not mend it."""


class Sizes(NamedTuple):
    """Of a model: blocks, width, and rows of its output matrix."""

    layers: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Array:
    """A tensor. at_most: its dimensions, of which `free` ones may be shorter, though not empty; below: for token ids,
    what they are below; where: where a number must be finite (None: everywhere), broadcast against the tensor."""

    at_most: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    free: tuple[int, ...] = ()
    below: int | None = None
    where: torch.Tensor | None = None

    @property
    def size(self) -> int:
        return math.prod(self.at_most) * self.dtype.itemsize

    def check(self, value: object, name: str) -> None:
        """Raises Lost, or NotFinite."""
        if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
            raise Lost(f"the result's {name} is not a tensor")
        shape = tuple(value.shape)
        fits = len(shape) == len(self.at_most) and all(
            (0 < n <= most) if d in self.free else n == most
            for d, (n, most) in enumerate(zip(shape, self.at_most, strict=True))
        )
        if not fits or value.dtype != self.dtype:
            given, wanted = (f"{str(t).removeprefix('torch.')} {list(s)[:6]}" for t, s in (
                (value.dtype, shape), (self.dtype, self.at_most)))  # fmt: skip
            raise Lost(f"the result's {name} is {given}, and {wanted} was asked for")
        if self.below is not None and not bool(((value >= 0) & (value < self.below)).all()):
            raise Lost(f"the result's {name} holds numbers that are no token ids")
        finite = torch.isfinite(value) if self.where is None else torch.isfinite(value) | ~self.where
        if not bool(finite.all()):
            raise NotFinite(f"the result's {name} holds numbers that are not finite")


Wanted = dict[str, Any]  # of Array, str (a short text) and further such mappings


def size(call: Call, sizes: Sizes) -> int:
    """The bytes of a trace's tensors, at most."""

    def total(wanted: object) -> int:
        if isinstance(wanted, dict):
            return sum(total(each) for each in wanted.values())
        return wanted.size if isinstance(wanted, Array) else LONGEST

    return total(KINDS[call.kind](call.content, sizes)) if call.kind in KINDS else OTHER


def check(call: Call, sizes: Sizes, values: Mapping[str, object]) -> dict[str, Any]:
    """What the trace saves, out of a result; other names are left out, and never reach the caller. Raises Lost where it
    is not there or something else, NotFinite where it holds no numbers."""
    if call.kind not in KINDS:
        return dict(values)
    wanted = KINDS[call.kind](call.content, sizes)
    saved = {name: value for name, value in values.items() if name in wanted}
    _check(wanted, saved, "values")
    if call.kind == "generate":
        _check_blocks(call.content[1], saved)
    return saved


def _check(wanted: Wanted, given: object, name: str) -> None:
    if not isinstance(given, Mapping) or set(given) != set(wanted):
        raise Lost(f"the result's {name} are not the ones asked for ({', '.join(sorted(wanted))})")
    for key, value in wanted.items():
        if isinstance(value, dict):
            _check(value, given[key], key)
        elif isinstance(value, Array):
            value.check(given[key], key)
        elif not isinstance(given[key], str) or not str(given[key]).isprintable() or len(str(given[key])) > LONGEST:
            raise Lost(f"the result's {key} is not a short text")


def _read(content: tuple[Any, ...], sizes: Sizes) -> Wanted:
    inputs, weights, sides = content
    rows, positions, tokens = weights.shape
    missing = weights.isnan().any(-1)  # [row, position]: a row without a response has no state there
    if sides is None:
        state = Array((rows, positions, sizes.layers, sizes.hidden), where=~missing[:, :, None, None])
    else:
        lacking = ((sides != 0) & missing).flatten(1).any(1)
        state = Array((len(sides), sizes.layers, sizes.hidden), torch.float64, where=~lacking[:, None, None])
    norm = Array((sizes.layers, rows, tokens), where=inputs["attention_mask"].bool())
    return {"out": {"state": state, "norm": norm, "dtype": "torch.float32"}}


def _generate(content: tuple[Any, ...], sizes: Sizes) -> Wanted:
    inputs, plan, n = content[:3]
    rows = inputs["input_ids"].shape[0]
    read = {}
    for name, blocks in _blocks(plan).items():
        steps = n if READOUTS[name]["every_step"] else 1
        entries, free = steps * len(blocks), (0,) if steps > 1 else ()
        probes = next(iter(plan["probes"].values())).shape[0] if "direction" in READOUTS[name]["dims"] else None
        value = Array((entries, rows) if probes is None else (entries, rows, probes), free=free)
        read[name] = {"block": Array((entries,), torch.int64, free), "value": value}
    return {"out": Array((rows, n), torch.int32, free=(1,), below=sizes.vocabulary), "read": read}


def _score(content: tuple[Any, ...], sizes: Sizes) -> Wanted:
    scored = content[3]
    return {"out": Array((scored.shape[0],), where=scored.any(1))}


def _states(content: tuple[Any, ...], sizes: Sizes) -> Wanted:
    weights, before = content[1], content[3]
    return {"out": Array((*weights.shape[:2], len(before), sizes.hidden))}


KINDS: dict[str, Callable[[tuple[Any, ...], Sizes], Wanted]] = {
    "read": _read,
    "generate": _generate,
    "score": _score,
    "states": _states,
}


def _blocks(plan: Mapping[str, Any]) -> dict[str, list[int]]:
    """The blocks at which each readout of a plan is read, in order; -1 for what is read at the end."""
    at = {"probes": sorted(plan["probes"]), "edits": sorted(plan["edits"]), "logits": [-1]}
    read = {name: at[READOUTS[name]["at"]] for name in plan["readouts"]}
    return {name: blocks for name, blocks in read.items() if blocks}


def _check_blocks(plan: Any, values: Any) -> None:
    """Raises Lost where readings are of other blocks, or of another number of steps, than was decoded."""
    for name, blocks in _blocks(plan).items():
        steps = values["out"].shape[1] if READOUTS[name]["every_step"] else 1
        entries = values["read"][name]
        if entries["block"].tolist() != blocks * steps or len(entries["value"]) != len(blocks) * steps:
            raise Lost(f"the result's {name} is of other blocks or steps than were asked for")
