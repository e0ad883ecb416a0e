"""A run as a folder for others: its card, its rates, its directions; its answers only where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gating import analysis, extras
from gating.analysis.wording import interval
from gating.errors import GatingError
from gating.foreign import code, markdown
from gating.reporting.frame import frame

if TYPE_CHECKING:
    import pandas as pd

SETS = (("harmful", True), ("harmless", False))
MADE = ("method", "position", "site", "n_positive", "n_negative", "n_distinct_positive", "n_distinct_negative")
CARD = """---
tags: [gating, activation-steering, safety-research]
viewer: false
---
# Steering directions and refusal rates of {model}

From one run of `gating` (key `{key}`, code `{code}`, {created}).
It is defensive research: how far a persona direction moves what a model refuses.

* Model: {model}, revision {revision}, weights fingerprint {fingerprint}, {dtype}.
* Labels: judge {judge}; at most {tokens} new tokens an answer; seed {seed}.
{files}

## Directions

{directions}

## Refusal rates

Share of answers that refuse, with its Wilson 95% interval and n prompts. `rates.csv` has every label of every
condition, `contrasts.csv` the paired differences to the baseline with exact McNemar p.

{rates}

## Limits

The figures hold for this model, these prompts and this judge, whose errors are not in the intervals. A direction was
read from contrasting texts: that a condition works does not make its direction the model's own mechanism; compare it
with the random controls of its norm in `rates.csv`. Prompts are named by hashes.{warnings}

## Dual use

Directions that lower refusal can be misused. They are given so that models can be audited, watched and trained against
such changes; use them on models that you may test, and do not use them to take refusals from a model that serves
others.{answers}
"""
ANSWERS = """ `answers.csv` holds answers of a steered model to harmful requests: some may comply. Keep it
private."""


def write(run: xr.DataTree, folder: Path, answers: bool = False) -> list[str]:
    """Write README.md, rates.csv, contrasts.csv, directions.safetensors where the run kept them, and, with `answers`,
    answers.csv into an empty folder; the files' names. Raises GatingError for a run that is not complete."""
    if run.attrs.get("status") != "complete":
        status = run.attrs.get("status")
        raise GatingError(f"the run is {status}, and its rates are not its last ones; finish it first.")
    rates, contrasts = _tables(run)
    rates.to_csv(folder / "rates.csv", index=False)
    contrasts.to_csv(folder / "contrasts.csv", index=False)
    _write_directions(run, folder)
    if answers:
        frame(run, full_text=True).to_csv(folder / "answers.csv", index=False)
    names = sorted(p.name for p in folder.iterdir())
    (folder / "README.md").write_text(card(run, names), "utf-8")
    return ["README.md", *names]


def _tables(run: xr.DataTree) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rates (a row for each set of prompts, condition and label) and contrasts (set, condition)."""
    import pandas as pd

    rates: list[pd.DataFrame] = []
    contrasts: list[pd.DataFrame] = []
    for word, harmful in SETS:
        if analysis.asked(run, harmful).any():
            for out, data in ((rates, analysis.rates(run, harmful=harmful)), (contrasts, _contrast(run, harmful))):
                table = data.to_dataframe().reset_index()
                table.insert(0, "prompts", word)
                out.append(table)
    return pd.concat(rates), pd.concat(contrasts)


def _contrast(run: xr.DataTree, harmful: bool) -> xr.Dataset:
    return analysis.contrast(run, harmful=harmful, holm=True)


def _directions(run: xr.DataTree) -> xr.Dataset | None:
    """The run's own directions, without those made of other rows to see how they vary."""
    if "/directions" not in run.groups:
        return None
    directions = analysis.read_group(run, "directions")
    return directions.isel(direction=directions["variant"].values == "") if "variant" in directions else directions


def _write_directions(run: xr.DataTree, folder: Path) -> None:
    """directions.safetensors: float32 [layer, hidden] of each direction, natural norm, at resid_post of the layer."""
    directions = _directions(run)
    if directions is None:
        return
    extras.require("safetensors", "gating.push")
    from safetensors.numpy import save_file

    vectors = directions["vector"].transpose("direction", "layer", "hidden")
    tensors = {
        str(name): np.ascontiguousarray(vector, dtype=np.float32)
        for name, vector in zip(vectors["direction"].values, vectors.values, strict=True)
    }
    about = ("model_id", "model_revision", "model_fingerprint", "key")
    save_file(tensors, folder / "directions.safetensors", {k: str(run.attrs.get(k, "")) for k in about})


def card(run: xr.DataTree, files: Sequence[str]) -> str:
    """README.md of the folder with these files."""
    about = run.attrs
    warnings = [f"\n\n* {markdown(each)}" for each in json.loads(about.get("warnings") or "[]")]
    return CARD.format(
        model=markdown(about["model_id"]),
        key=about["key"],
        code=about.get("code", "unknown"),
        created=about.get("created_at", "no date"),
        revision=code(about.get("model_revision") or "none"),
        fingerprint=code(about.get("model_fingerprint") or "none"),
        dtype=about.get("dtype", ""),
        judge=code(about["judge"]),
        tokens=about.get("max_new_tokens"),
        seed=about.get("seed"),
        files="* Files: " + ", ".join(f"`{name}`" for name in files) + ".",
        directions=_direction_table(run),
        rates=_rate_table(run),
        warnings="".join(warnings),
        answers=ANSWERS if "answers.csv" in files else "",
    )


def _direction_table(run: xr.DataTree) -> str:
    directions = _directions(run)
    if directions is None:
        return "The run kept none."
    columns = [name for name in MADE if name in directions]
    names = directions["direction"].values.tolist()
    rows = [[code(name), *(markdown(directions[c].sel(direction=name).item()) for c in columns)] for name in names]
    n = directions.sizes["layer"]
    return f"Of blocks 0 to {n - 1}, read at resid_post; -1 rows for a derived direction.\n\n" + _table(
        ["direction", *columns], rows
    )


def _rate_table(run: xr.DataTree) -> str:
    """Every condition but the random controls."""
    sets = [(word, harmful) for word, harmful in SETS if analysis.asked(run, harmful).any()]
    rates = [analysis.refusal_rate(run, harmful=harmful) for _, harmful in sets]
    shown = rates[0]["condition"].values[rates[0]["kind"].values != "random"].tolist()
    conditions = analysis.read_group(run, "conditions")
    rows = []
    for name in shown:
        at = conditions.sel(condition=name)
        cells = [c for r in rates for c in (interval(r.sel(condition=name), 1), str(int(r.sel(condition=name)["n"])))]
        rows.append([code(name), *(markdown(at[k].item()) for k in ("direction", "layers", "coef")), *cells])
    return _table(["condition", "direction", "blocks", "strength", *(c for word, _ in sets for c in (word, "n"))], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), ["---"] * len(heads), *map(list, rows)])
