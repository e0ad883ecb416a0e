"""A run's outcomes as a table with a row for each answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from gating import analysis
from gating.judging.labels import LABELS, MISSING

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("text", "completion", "thought")  # prompts and answers, only where they are asked for


def frame(run: xr.DataTree, full_text: bool = False) -> pd.DataFrame:
    """A row for each condition x prompt: hash, category, source, harmful; condition, kind, direction; label and each
    judge's, scores, lengths, done. full_text: the prompt and the answer too."""
    outcomes, prompts = analysis.read_group(run, "outcomes"), analysis.read_group(run, "prompts")
    keep = [k for k, v in outcomes.items() if set(v.dims) == {"condition", "prompt"} and (full_text or k not in TEXTS)]
    merged = outcomes[keep]
    for name in ("category", "source", "harmful", *(["text"] if full_text else [])):
        merged[name] = prompts[name].reindex(prompt=merged["prompt"])
    conditions = analysis.read_group(run, "conditions")
    for name in ("kind", "direction", "layers", "coef"):
        merged[name] = conditions[name].reindex(condition=merged["condition"])
    for judge in (g.rpartition("/")[2] for g in run.groups if g.startswith("/judgements/")):
        merged[f"label_{judge}"] = analysis.read_group(run, f"judgements/{judge}")["label"]
    table = merged.to_dataframe(dim_order=["condition", "prompt"]).reset_index()
    for column in (c for c in table.columns if str(c).startswith("label")):
        table[column] = [LABELS[int(v)] if v == v and v != MISSING else "" for v in table[column]]
    return table
