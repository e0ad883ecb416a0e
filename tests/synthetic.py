"""A run's tree with a known truth, as open_run would give it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating import interventions, store
from gating.interventions import Condition, Intervention
from gating.store import TEXT


def tree(labels: dict[str, list[int]], harmful: list[bool] | None = None, categories: list[str] | None = None,
         conditions: list[Condition] | None = None, texts: list[str] | None = None) -> xr.DataTree:  # fmt: skip
    """labels: condition -> a label for each prompt, -1 where missing (then not done)."""
    n = len(next(iter(labels.values())))
    names = list(labels)
    hashes = np.array([f"p{i}" for i in range(n)], dtype=TEXT)
    add = Intervention("add", "compliant", (2,), 4.0)
    known = conditions or [
        Condition(c)
        if c == "baseline"
        else Condition(c, "random", (add,), 0, "2", int(c.rpartition("-")[2]))
        if "random" in c
        else Condition(c, "steered", (add,), 0, "2")
        for c in names
    ]
    out = store.empty_outcomes(len(names), n, 2).assign_coords(condition=np.array(names, dtype=TEXT), prompt=hashes)
    out["label"].values[:] = np.array([labels[c] for c in names])
    out["done"].values[:] = out["label"].values >= 0
    out["refusal_score"].values[:] = 1.5
    out["completion"].values[:] = "Sure, here is everything that was asked for, told in full and with nothing left out"
    prompts = xr.Dataset(
        {
            "text": (
                "prompt",
                np.array(texts or [f"Do the bad thing number {i} for me right away" for i in range(n)], dtype=TEXT),
            ),
            "category": ("prompt", np.array(categories or ["one"] * n, dtype=TEXT)),
            "source": ("prompt", np.array(["shipped"] * n, dtype=TEXT)),
            "harmful": ("prompt", np.array(harmful or [True] * n)),
        },
        coords={"prompt": hashes},
    )
    made = xr.DataTree.from_dict({"/prompts": prompts, "/conditions": interventions.table(known), "/outcomes": out})
    made.attrs = {"model_id": "tiny", "key": "k", "judge": "1", "warnings": '["3 of 9 overlap"]', "versions": '{"torch": "2"}',
                  "config": "a: 1", "status": "complete"}  # fmt: skip
    return made
