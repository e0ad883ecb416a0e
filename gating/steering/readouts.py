"""What is read while a batch is decoded: what may be asked for, what comes back as arrays, what the store calls it.

The table itself is ops.READOUTS, which travels with the trace; all that is known of a readout here is derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
import xarray as xr

from gating.errors import GatingError, choices
from gating.steering.ops import READOUTS

ROW_DIMS = ("condition", "prompt")


@dataclass(frozen=True)
class Readouts:
    """What to read beside the tokens. probes: unit vectors [block, probe, hidden], None for none; score_ids: first
    tokens of a refusal; reference: for each row the row of the same batch that its first-token KL is taken from;
    extra: names of READOUTS that are not read by default."""

    probes: np.ndarray | None = None
    score_ids: Sequence[int] = ()
    reference: Sequence[int] | None = None
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The readouts that these make: the default ones and those asked for whose needs are met."""
        there = {"probes": self.probes is not None, "score_ids": bool(self.score_ids)}
        there["reference"] = self.reference is not None
        return named(self.extra, {need for need, given in there.items() if given})


def named(extra: Sequence[str], there: AbstractSet[str]) -> tuple[str, ...]:
    """The default readouts and the `extra` ones whose needs are all `there`."""
    return tuple(
        name for name, row in READOUTS.items() if (row["default"] or name in extra) and set(row["needs"]) <= there
    )


def check_extra(names: Sequence[str]) -> None:
    """Raises GatingError for a name that is no readout."""
    for name in names:
        if name not in READOUTS:
            raise GatingError(f"readouts.extra={name!r} is not a readout: use {choices(READOUTS, name)}.")


class Entries(TypedDict):
    """What ops.pack gives of one readout: the block of each entry (-1: none) and its value [entry, row, ...]."""

    block: torch.Tensor
    value: torch.Tensor


class Generation(NamedTuple):
    """What one batch of rows gave. `tokens` end before the end-of-sequence token; `read` holds each readout's float32
    array [row, ...its dims], NaN where there is nothing to read. Step 0 is at the last prompt token and step t at the
    t-th generated token, NaN after the row's end."""

    tokens: list[list[int]]
    read: dict[str, np.ndarray]
    settled: np.ndarray | None = None  # [row, 2]: where each label was settled and the label, of rows that end early


def collect(
    tokens: list[list[int]], packed: Mapping[str, Entries], names: Sequence[str], sizes: Mapping[str, int]
) -> Generation:
    """What ops.pack gave, as arrays. A readout that comes again for a block is the next step's.

    names: the readouts that were asked for; sizes: of the dimensions step, layer and direction.
    """
    ended = np.arange(sizes["step"])[None, :] > np.array([len(t) for t in tokens])[:, None]
    read = {}
    for name in names:
        row = READOUTS[name]
        array = np.full((len(tokens), *(sizes[d] for d in row["dims"])), row["missing"], dtype="float32")
        steps = dict.fromkeys(range(-1, sizes["layer"]), 0)
        for block, value in _entries(packed.get(name)):
            if row["every_step"]:
                array[:, steps[block], block] = value
                steps[block] += 1
            elif block >= 0:
                array[:, block] = value
            else:
                array[:] = value
        if row["every_step"]:
            array[ended] = np.nan  # step t reads the t-th token in: a row of t tokens has steps 0 to t
        read[name] = array
    return Generation(tokens, read)


def _entries(entries: Entries | None) -> Iterator[tuple[int, np.ndarray]]:
    return zip(entries["block"].tolist(), entries["value"].numpy(), strict=True) if entries else iter(())


def stacked(parts: Sequence[Generation]) -> Generation:
    """The rows of several batches after each other."""
    read = {name: np.concatenate([part.read[name] for part in parts]) for name in parts[0].read}
    settled = [part.settled for part in parts if part.settled is not None]
    return Generation([t for part in parts for t in part.tokens], read, np.concatenate(settled) if settled else None)


def picked(generation: Generation, rows: Sequence[int]) -> Generation:
    """Some rows, in this order."""
    read = {k: v[list(rows)] for k, v in generation.read.items()}
    settled = None if generation.settled is None else generation.settled[list(rows)]
    return Generation([generation.tokens[r] for r in rows], read, settled)


# ------------------------------------------------------------------------------------------------------ in the store
def kept(names: Sequence[str], group: str) -> list[str]:
    """The readouts of a group of the store."""
    return [name for name in names if READOUTS[name]["group"] == group]


def empty(names: Sequence[str], sizes: Mapping[str, int], coords: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The /readouts group with every value missing, which takes no memory (none can be set). sizes: of every
    dimension."""
    data = {}
    for name in kept(names, "readouts"):
        dims = (*ROW_DIMS, *READOUTS[name]["dims"])
        attrs = {k: READOUTS[name][k] for k in ("long_name", "units")}
        data[name] = (dims, np.broadcast_to(np.float32(np.nan), [sizes[d] for d in dims]), attrs)
    return xr.Dataset(data, coords=coords)


def dataset(generation: Generation, conditions: int) -> xr.Dataset:
    """The /readouts group's part for rows that are prompt x condition, prompts outermost."""
    data = {}
    for name in kept(tuple(generation.read), "readouts"):
        array = generation.read[name]
        by_prompt = array.reshape(-1, conditions, *array.shape[1:])
        data[name] = ((*ROW_DIMS, *READOUTS[name]["dims"]), by_prompt.swapaxes(0, 1))
    return xr.Dataset(data)


def bytes_a_row(names: Sequence[str], sizes: Mapping[str, int]) -> int:
    """What the readouts of one row weigh on their way from a server, float32."""
    return sum(4 * math.prod(sizes[d] for d in READOUTS[name]["dims"]) for name in names)


def document() -> list[str]:
    """The readouts as rows of the table in docs/schema.md."""
    rows = []
    for name, row in READOUTS.items():
        dims = ", ".join((*ROW_DIMS, *row["dims"]))
        long_name = row["long_name"].replace("||", "\\|\\|")
        asked = "" if row["default"] else f" (`readouts.extra=[{name}]`)"
        rows.append(f"`{name}` | {dims} | {long_name}; unit: {row['units']}{asked} |")
    return rows
