"""A page in which people read a run's answers: side by side across conditions, with every judge's label, filtered and
searched. One self-contained file; texts are openings unless they are asked for in full."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis.reading import read_group
from gating.judging.labels import MISSING, TABLE
from gating.reporting.page import HARMFUL_WORDS, HARMLESS_WORDS, PROMPT_WORDS, opening

LETTERS = "RCEDU"  # of the labels, in the order of their codes
FULL_CHARACTERS = 4000  # of an answer, where texts are shown in full
POINTS = 24  # of a line along an answer, at most


def rendered(runs: Mapping[str, xr.DataTree], full_text: bool = False) -> str:
    """The page of these runs, by their names."""
    return page_of([described(name, run, full_text) for name, run in runs.items()], full_text)


def page_of(described: list[dict[str, Any]], full_text: bool) -> str:
    """The page of runs as `described` gives them. Nothing in their texts can end the script that holds them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating.reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    labels = [{"letter": LETTERS[i], "name": x.name, "colour": x.colour} for i, x in enumerate(TABLE)]
    data = {"labels": labels, "full": full_text, "runs": described}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return environment.get_template("view.html.j2").render(data=text.replace("<", "\\u003c").replace(">", "\\u003e"))


def described(name: str, run: xr.DataTree, full_text: bool) -> dict[str, Any]:
    """What the page needs of a run: prompts, conditions, answers [condition][prompt], a letter a label of each judge,
    first-token scores, and the projection along each answer where the run kept it."""
    prompts, outcomes = read_group(run, "prompts"), read_group(run, "outcomes").transpose("condition", "prompt", ...)
    conditions, harmful = read_group(run, "conditions"), prompts["harmful"].values.tolist()
    names = analysis.shown_names(run)
    answers = [
        ["" if a is None else _answer(str(a), bool(h), full_text) for a, h in zip(row, harmful, strict=True)]
        for row in outcomes["completion"].values.tolist()
    ]
    scores = outcomes["refusal_score"].values.tolist()
    judges = {"own": outcomes["label"]}
    for group in sorted(g for g in run.groups if g.startswith(("/judgements/", "/labels/"))):
        held = run[group].to_dataset()
        if "label" in held:
            judges[group.removeprefix("/judgements/").removeprefix("/")] = held["label"].load()
    return {
        "name": name,
        "model": str(run.attrs["model_id"]),
        "judge": str(run.attrs.get("judge", "")),
        "conditions": [{"name": names[c], "kind": str(k)} for c, k in _pairs(conditions)],
        "prompts": [_prompt(prompts.isel(prompt=p), full_text) for p in range(prompts.sizes["prompt"])],
        "answers": answers,
        "labels": {judge: _letters(label) for judge, label in judges.items()},
        "scores": [[float(f"{v:.3g}") if np.isfinite(v) else None for v in row] for row in scores],
        "traces": _traces(run),
    }  # fmt: skip


def _prompt(prompt: xr.Dataset, full_text: bool) -> dict[str, Any]:
    text = opening(str(prompt["text"].item()), None if full_text else PROMPT_WORDS)
    named = {"hash": str(prompt["prompt"].item()), "category": str(prompt["category"].item())}
    return {"text": text, "harmful": bool(prompt["harmful"]), **named}


def _pairs(conditions: xr.Dataset) -> list[tuple[str, str]]:
    return list(zip(conditions["condition"].values.tolist(), conditions["kind"].values.tolist(), strict=True))


def _answer(text: str, harmful: bool, full_text: bool) -> str:
    if full_text:
        return text[:FULL_CHARACTERS]
    return opening(text, HARMFUL_WORDS if harmful else HARMLESS_WORDS)


def _letters(label: xr.DataArray) -> list[str]:
    """A text a condition, a letter a prompt; - is missing."""
    codes = label.transpose("condition", "prompt").values.tolist()
    return ["".join("-" if code == MISSING else LETTERS[int(code)] for code in row) for row in codes]


def _traces(run: xr.DataTree) -> dict[str, Any] | None:
    """The projection on the first direction along each answer, [condition][prompt][step]; None where it was not
    kept."""
    held = analysis.held_readouts(run)
    if "step_projection" not in held:
        return None
    kept = held["step_projection"]
    direction = str(kept["direction"].values[0])
    at = kept.sel(direction=direction).isel(layer=-1) if "layer" in kept.dims else kept.sel(direction=direction)
    step = next(str(d) for d in at.dims if d not in ("condition", "prompt"))
    values = at.transpose("condition", "prompt", step).isel({step: slice(0, POINTS)}).load().values
    rows = [[[float(f"{v:.3g}") for v in trace if np.isfinite(v)] for trace in row] for row in values]
    return {"direction": direction, "values": rows}
