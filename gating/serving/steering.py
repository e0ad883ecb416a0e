"""What the requests of a server may be steered by: its conditions lowered once, of which every batch takes rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr

from gating.errors import GatingError, choices
from gating.steering import decode, lowering
from gating.steering.interventions import Condition
from gating.steering.lowering import Edits


@dataclass(frozen=True)
class Steering:
    """conditions: the first is the baseline; one: their edits, a row each; dose: of each edit, the rows whose strength
    a request's coefficient multiplies."""

    conditions: tuple[Condition, ...]
    one: Edits
    dose: dict[int, list[torch.Tensor]]

    def edits(self, chosen: Sequence[tuple[int, float]], device: torch.device) -> Edits:
        """The edits of rows that each take a condition, by its number, at a coefficient."""
        rows, factor = torch.tensor([c for c, _ in chosen]), torch.tensor([f for _, f in chosen])
        edits: Edits = {}
        for block, held in self.one.items():
            edits[block] = []
            for edit, dose in zip(held, self.dose[block], strict=True):
                own = decode.edit_of(edit, rows)
                own["strength"] = torch.where(dose[rows], own["strength"] * factor, own["strength"])
                edits[block].append(own)
        return decode.placed(edits, device)

    def dosed(self, number: int) -> bool:
        """Whether a condition has a strength that a coefficient multiplies."""
        return any(bool(rows[number]) for held in self.dose.values() for rows in held)

    def number(self, name: str) -> int | None:
        """The number of a condition, None for one that is not there."""
        return next((i for i, c in enumerate(self.conditions) if c.name == name), None)


def lower(conditions: Sequence[Condition], directions: xr.Dataset | None, seed: int) -> Steering:
    """Raises GatingError for a condition that depends on other rows of its batch."""
    for condition in conditions:
        for iv in condition.interventions:
            if iv.reference not in ("zero", "mean") or iv.draw == "matched":
                raise GatingError(
                    f"conditions.{condition.name}: what it does depends on other rows of its batch (reference="
                    f"{iv.reference}, draw={iv.draw}), and a request's row has none; use "
                    f"{choices(('reference=zero', 'reference=mean'))} and no matched control."
                )
    if directions is None:
        return Steering(tuple(conditions), {}, {})
    one = lowering.lower(conditions, directions, seed)
    twice = lowering.lower(conditions, directions, seed, {c.name: 2.0 for c in conditions})
    dose = {b: [x["strength"] != y["strength"] for x, y in zip(one[b], twice[b], strict=True)] for b in one}
    return Steering(tuple(conditions), one, dose)


def acting(edits: Edits) -> Edits:
    """The blocks at which an edit does something to a row."""
    return {b: held for b, held in edits.items() if any(bool(e["strength"].any()) for e in held)}
