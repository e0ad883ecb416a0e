"""What stands in a trace, as plain types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch

from gating.models.parts import Head
from gating.steering.lowering import Edits
from gating.steering.readouts import Readouts


class Call(NamedTuple):
    """One trace, for who runs it elsewhere: `kind` and `content` (plain values and tensors) determine its result;
    `about` says in words which rows it is."""

    kind: str
    content: tuple[object, ...]
    about: str


class Plan(TypedDict):
    """What one decoding does, as gating.steering.ops.visit takes it: edits, readouts and what they need, masks,
    seed."""

    edits: Edits
    readouts: tuple[str, ...]
    probes: dict[int, torch.Tensor]
    score_ids: torch.Tensor | None
    reference: torch.Tensor | None
    head: Head
    prompt_mask: torch.Tensor
    last_mask: torch.Tensor
    seed: int | None
    ids: torch.Tensor
    kept: dict[tuple[tuple[int, int], str], torch.Tensor]


class Reading(TypedDict):
    """What gating.steering.ops.read gives."""

    state: torch.Tensor
    norm: torch.Tensor
    dtype: str


Inputs = dict[str, torch.Tensor]  # input_ids and attention_mask, both [row, token]
Sampling = tuple[float, int]  # temperature and seed
Scored = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of its completion
Via = Callable[[Call], Any]  # the nnsight backend of a trace


def planned(
    ids: torch.Tensor, mask: torch.Tensor, edits: Edits, readouts: Readouts, head: Head, seed: int | None
) -> Plan:
    """The plan of rows whose prompts are ids under a mask, both [row, token]."""
    last = torch.zeros_like(mask)
    last[:, -1] = 1
    probes = {} if readouts.probes is None else dict(enumerate(torch.from_numpy(readouts.probes).float()))
    return {
        "edits": edits,
        "readouts": readouts.names,
        "probes": probes,
        "score_ids": torch.tensor(list(readouts.score_ids)) if readouts.score_ids else None,
        "reference": None if readouts.reference is None else torch.tensor(list(readouts.reference)),
        "head": head,
        "prompt_mask": mask,
        "last_mask": last,
        "seed": seed,
        "ids": ids,
        "kept": {},
    }
