"""A run's tree with a known truth, as open_run would give it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gating import store
from gating.pipeline.conditions import table
from gating.steering import condition_grid
from gating.steering.condition_grid import NamedSpec
from gating.steering.interventions import Condition, Intervention
from gating.store import TEXT


def named_conditions(specs, directions, n_layers, first=0) -> list[Condition]:
    """Named conditions from lists of interventions, or from mappings of `do` and `system`."""
    full = {k: NamedSpec(v["do"], v.get("system")) if isinstance(v, dict) else NamedSpec(v) for k, v in specs.items()}
    return condition_grid.named(full, directions, n_layers, first)


def tree(labels: dict[str, list[int]], harmful: list[bool] | None = None, categories: list[str] | None = None,
         conditions: list[Condition] | None = None, texts: list[str] | None = None, directions: list[str] | None = None,
         layers: int = 6, steps: int = 4, permutations: int = 0) -> xr.DataTree:  # fmt: skip
    """labels: condition -> a label for each prompt, -1 where missing (then not done). directions: with every readout
    over `layers` blocks and `steps` tokens, and the directions themselves; permutations: with /geometry too."""
    n = len(next(iter(labels.values())))
    names = list(labels)
    hashes = np.array([f"p{i}" for i in range(n)], dtype=TEXT)
    add = Intervention("add", "compliant", (2,), 4.0)
    own = next((c for c in names if c != "baseline" and "random" not in c), "")
    known = conditions or [
        Condition(c, family=c)
        if c == "baseline"
        else Condition(c, "random", (add,), 0, "2", int(c.rpartition("-")[2]), family=own, controls=own)
        if "random" in c
        else Condition(c, "steered", (add,), 0, "2", family=c)
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
    groups = {
        "/prompts": prompts,
        "/conditions": table(
            known, max([layers, *(b + 1 for c in known for iv in c.interventions for b in iv.layers)])
        ),
        "/outcomes": out,
    }
    if directions:
        groups["/readouts"] = _readouts(out, directions, layers, steps)
        groups["/directions"], geometry = _directions(directions, layers, permutations)
        groups |= {"/geometry": geometry} if permutations else {}
    made = xr.DataTree.from_dict(groups)
    made.attrs = {"model_id": "tiny", "key": "k", "judge": "1", "warnings": '["3 of 9 overlap"]', "config": "a: 1",
                  "versions": '{"torch": "2"}', "status": "complete"}  # fmt: skip
    return made


def _readouts(out: xr.Dataset, directions: list[str], layers: int, steps: int) -> xr.Dataset:
    """Every readout: seeded noise around the place of the condition, plain text coordinates as open_run gives them."""
    rng = np.random.default_rng(0)
    c, p, d = out.sizes["condition"], out.sizes["prompt"], len(directions)
    shapes = {
        "projection": (c, p, layers, d), "residual_norm": (c, p, layers), "relative_change": (c, p, layers),
        "change_norm": (c, p, layers),
        "kl": (c, p),
        "lens_score": (c, p, layers), "step_projection": (c, p, steps, layers, d),
    }  # fmt: skip
    dims = {4: ("layer", "direction"), 5: ("step", "layer", "direction"), 3: ("layer",), 2: ()}
    return xr.Dataset(
        {
            k: (
                ("condition", "prompt", *dims[len(s)]),
                (rng.random(s) + np.arange(c).reshape(-1, *[1] * (len(s) - 1))).astype("float32"),
            )
            for k, s in shapes.items()
        },
        {
            "condition": np.array(out["condition"].values.tolist()),
            "prompt": np.array(out["prompt"].values.tolist()),
            "layer": np.arange(layers),
            "direction": np.array(directions),
        },
    )


def _directions(names: list[str], layers: int, permutations: int, hidden: int = 16) -> tuple[xr.Dataset, xr.Dataset]:
    rng = np.random.default_rng(1)
    v = rng.standard_normal((len(names), layers, hidden))
    unit = v / np.linalg.norm(v, axis=-1, keepdims=True)
    null = 0.2 * rng.standard_normal((len(names), len(names), permutations, layers)).clip(-2, 2)
    at = {"direction": np.array(names), "other": np.array(names), "layer": np.arange(layers)}
    made = xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), v.astype("float32")),
            "cosine": (("direction", "other", "layer"), np.einsum("dlh,olh->dol", unit, unit).astype("float32")),
            "role": ("direction", np.array(["refusal" if n == "refusal" else "model" for n in names])),
        },
        at,
    )
    return made, xr.Dataset({"permuted_cosine": (("direction", "other", "permutation", "layer"), null)}, at)
