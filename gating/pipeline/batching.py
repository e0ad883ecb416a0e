"""Which conditions of a prompt share a batch; needs no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gating.steering.interventions import Condition


def leading(conditions: Sequence[Condition]) -> list[int]:
    """The conditions that others are compared with or led to: every batch holds them all. The baseline is the first."""
    named = {iv.reference for c in conditions for iv in c.interventions}
    return [i for i, c in enumerate(conditions) if i == 0 or c.name in named]


def batches(conditions: int, rows: int, leads: Sequence[int] = (0,)) -> list[list[int]]:
    """Conditions of each batch of rows. Where one batch cannot hold a prompt's conditions, each begins with `leads`
    again, so that a comparison never leaves its batch."""
    if conditions <= rows:
        return [list(range(conditions))]
    others = [c for c in range(conditions) if c not in leads]
    n = math.ceil(len(others) / max(1, rows - len(leads)))
    step = math.ceil(len(others) / n)  # batches of one size, rather than a small last one
    return [[*leads, *others[i : i + step]] for i in range(0, len(others), step)]
