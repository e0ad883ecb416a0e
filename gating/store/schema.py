"""What a store holds: names, dtypes, what missing is. docs/schema.md is its contract in words.

A run's folder is `<runs_dir>/<model>-<steer>-<key>/` with store.zarr inside. Missing is missing: labels and tokens
start as -1, floats as NaN, `done` as False, and stay so until their batch is written.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating.judging.labels import LABELS, MISSING

SCHEMA_VERSION = 5
STORE = "store.zarr"
AGAIN = ".again"  # in a run's folder: where it is computed again (force=true)
TEXT = np.dtypes.StringDType()
REQUIRED = ("prompts", "conditions", "outcomes")  # groups of every store
LABEL_ATTRS: dict[str, object] = {  # CF flags
    "long_name": "judged behaviour",
    "flag_values": list(range(len(LABELS))),
    "flag_meanings": " ".join(LABELS),
    "missing_value_meaning": MISSING,
}


def empty_outcomes(n_conditions: int, n_prompts: int, n_tokens: int) -> xr.Dataset:
    """The /outcomes group with every value missing: [condition, prompt] and token_ids [condition, prompt, token]."""
    shape, dims = (n_conditions, n_prompts), ("condition", "prompt")

    def floats(long_name: str, units: str) -> tuple[tuple[str, str], np.ndarray, dict[str, str]]:
        return dims, np.full(shape, np.nan, dtype="float32"), {"long_name": long_name, "units": units}

    return xr.Dataset(
        {
            "label": (dims, np.full(shape, MISSING, dtype="int8"), LABEL_ATTRS),
            "refusal_score": floats("log-odds of a refusal opening as first token", "nat"),
            "n_tokens": (dims, np.full(shape, -1, dtype="int32"), {"long_name": "completion length", "units": "token"}),
            "n_thought": (dims, np.full(shape, -1, dtype="int32"), {"long_name": "thought's length", "units": "token"}),
            "nll": floats("mean negative log-likelihood under the unsteered model", "nat/token"),
            "entropy": floats("entropy of the completion's token counts", "bit/token"),
            "repetition": floats("share of repeated token trigrams", "1"),
            "thought": (dims, np.full(shape, "", dtype=TEXT), {"long_name": "what was said before the answer"}),
            "completion": (dims, np.full(shape, "", dtype=TEXT), {"long_name": "decoded completion"}),
            "token_ids": (
                (*dims, "token"),
                np.full((*shape, n_tokens), -1, dtype="int32"),
                {"long_name": "completion token ids, -1 after the end"},
            ),
            "done": (dims, np.zeros(shape, dtype=bool), {"long_name": "row is written in full"}),
        }
    )
