"""What is read while a batch is decoded: what may be asked for, and what comes back as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Readouts:
    """What to read beside the tokens. probes: unit vectors [block, probe, hidden], None for no readouts at all;
    score_ids: first tokens of a refusal; reference: for each row the row of the same batch that its first-token KL is
    taken from; lens: the refusal score at every block; every_step: projections at every generated token too."""

    probes: np.ndarray | None = None
    score_ids: Sequence[int] = ()
    reference: Sequence[int] | None = None
    lens: bool = False
    every_step: bool = False


@dataclass(frozen=True)
class Generation:
    """What one batch of rows gave. `tokens` end before the end-of-sequence token; arrays are float32, NaN where not asked.

    score: first-token refusal log-odds [row]; kl: first-token KL(reference || row) [row], nats; lens: [row, block].
    projection: [row, step, block, probe] after the block's edits, step 0 at the last prompt token and step t at the t-th
    generated token, NaN after the row's end; residual_norm, change: [row, block] at the last prompt token, change being
    |what the edits added| / |residual before them|.
    """

    tokens: list[list[int]]
    score: np.ndarray
    kl: np.ndarray
    lens: np.ndarray
    projection: np.ndarray
    residual_norm: np.ndarray
    change: np.ndarray


def collect(tokens: list[list[int]], read: dict, n_layers: int, n_probes: int, n_steps: int) -> Generation:
    """What gating.steering.ops.pack gave, as arrays. A readout that comes again for a block is the next step's."""
    rows = len(tokens)
    projection = np.full((rows, n_steps, n_layers, n_probes), np.nan, dtype="float32")
    by_layer = {k: np.full((rows, n_layers), np.nan, dtype="float32") for k in ("norm", "change", "lens")}
    by_row = {k: np.full(rows, np.nan, dtype="float32") for k in ("score", "kl")}
    if n_probes:
        by_layer["change"][:] = 0
    step = dict.fromkeys(range(n_layers), 0)
    for what, entries in read.items():
        for block, value in zip(entries["block"].tolist(), entries["value"].numpy(), strict=True):
            if what == "readout":
                projection[:, step[block], block] = value[:, :-1]
                if step[block] == 0:
                    by_layer["norm"][:, block] = value[:, -1]
                step[block] += 1
            elif what in by_layer:
                by_layer[what][:, block] = value
            else:
                by_row[what][:] = value
    after_end = np.arange(n_steps)[None, :] > np.array([len(t) for t in tokens])[:, None]
    projection[after_end] = np.nan  # step t reads the t-th token in: a row of t tokens has steps 0 to t
    return Generation(
        tokens, by_row["score"], by_row["kl"], by_layer["lens"], projection, by_layer["norm"], by_layer["change"]
    )
