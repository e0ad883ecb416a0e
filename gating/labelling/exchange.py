"""A person's labels as a file, one JSON object a line: into a run's store, and out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gating import foreign, store, swap
from gating.errors import GatingError, choices, naming
from gating.judging.labels import CODES, LABELS, MISSING, UNSURE
from gating.labelling.sample import shares
from gating.labelling.session import check_name, empty, labelled_run, write

GIVEN = tuple(name for name, code in CODES.items() if code != UNSURE)  # what a person may say
FIELDS = {"prompt", "condition", "label", "probability"}


class Line(NamedTuple):
    """A label of a file."""

    condition: str
    prompt: str
    label: int
    probability: float  # NaN where the file does not say


def load(run: str | Path, by: str, file: str | Path, drawn_at_random: bool = False, force: bool = False) -> int:
    """Write the labels of a file to /labels/BY; how many. Whoever calls it holds the run's writer.lock.

    A line is {"prompt": HASH, "condition": NAME, "label": LABEL} and, where it is known, the `probability` with which
    the answer was drawn to be read; without it a label measures the judge, and corrects no rate. drawn_at_random: the
    lines are a fair sample within each condition and kind of prompt: the probability is the share that is there.
    Raises GatingError, naming the line, for what the run does not have, and for labels of BY that are there.
    """
    path = store.locate(run)
    check_name(by)
    group = f"labels/{by}"
    if not force and store.has_group(path, group):
        raise GatingError(f"{group} is there already; keep both with by=NAME for these, or say --force to replace it.")
    tree = labelled_run(path)
    labels = empty(tree, {"by": by, "how": "imported"})
    places = {dim: {str(v): i for i, v in enumerate(labels[dim].values.tolist())} for dim in ("condition", "prompt")}
    lines = _lines(Path(file), places)
    for line in lines:
        cell = places["condition"][line.condition], places["prompt"][line.prompt]
        labels["label"].values[cell], labels["probability"].values[cell] = line.label, line.probability
        labels["done"].values[cell] = True
    if drawn_at_random:
        harmful = tree["/prompts"].to_dataset()["harmful"].sel(prompt=labels["prompt"].values.tolist()).values
        done = labels["done"].values
        labels["probability"].values[:] = np.where(done, shares(done, np.ones_like(done), harmful), np.nan)
    write(path, group, labels)
    store.finish(path, {}, group)
    return len(lines)


def _lines(path: Path, places: dict[str, dict[str, int]]) -> list[Line]:
    """Every label of a file. Raises GatingError for a line that is none, or is of the same answer as another."""
    text = foreign.read_text(path, "--import")
    out: dict[tuple[str, str], Line] = {}
    for number, written in enumerate(text.splitlines(), 1):
        if written.strip():
            where = f"--import: {foreign.shown(path)} line {number}"
            line = _line(foreign.parse_json(written, where), places, where)
            if (line.condition, line.prompt) in out:
                raise GatingError(f"{where}: this answer has a label already; keep one of its lines.")
            out[line.condition, line.prompt] = line
    if not out:
        raise GatingError(f"--import: {foreign.shown(path)} holds no label; give a line for each.")
    return list(out.values())


def _line(said: Any, places: dict[str, dict[str, int]], where: str) -> Line:
    if not isinstance(said, dict) or not {"prompt", "condition", "label"} <= set(said) <= FIELDS:
        raise GatingError(f'{where}: write {{"prompt": ..., "condition": ..., "label": ...}}, "probability" if known.')
    for key, known in (("condition", places["condition"]), ("prompt", places["prompt"]), ("label", GIVEN)):
        if not isinstance(said[key], str) or said[key] not in known:
            allowed = "the hash of a prompt of the run" if key == "prompt" else choices(known, said[key])
            raise GatingError(f"{where}: {key}={foreign.shown(said[key], 80)!r}: use {allowed}.")
    chance = said.get("probability")
    if chance is not None and (isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 < chance <= 1):
        raise GatingError(f"{where}: probability={foreign.shown(chance, 80)}: give a number above 0 and at most 1.")
    return Line(said["condition"], said["prompt"], CODES[said["label"]], np.nan if chance is None else float(chance))


def save(run: xr.DataTree, by: str, file: str | Path) -> int:
    """Write the labels of /labels/BY to a new file, as `load` reads it; how many. Raises GatingError where the file is
    there already."""
    path, ds = Path(file), run[f"/labels/{by}"].to_dataset().load()
    if path.exists():
        raise GatingError(f"--export: {foreign.shown(path)} is there already; name a new file.")
    lines = []
    for c, condition in enumerate(ds["condition"].values.tolist()):
        for p in np.flatnonzero(ds["label"].values[c] != MISSING):
            one = ds.isel(condition=c, prompt=p)
            chance = float(one["probability"])
            known = {} if np.isnan(chance) else {"probability": chance}
            said = {"prompt": str(one["prompt"].item()), "condition": str(condition)}
            lines.append(json.dumps({**said, "label": LABELS[int(one["label"])], **known}, ensure_ascii=False))
    with naming(path):
        swap.write(path, "".join(f"{line}\n" for line in lines))
    return len(lines)
