"""A person's labels in a run's store, /labels/BY: the sample that is read, each label written as it is given.

What a reader is shown of an answer is the prompt and the answer, and neither its condition nor what a judge said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating import store
from gating.errors import GatingError, choices
from gating.judging.labels import COMPLIANCE, DEGENERATE, EVASIVE, MISSING, REFUSAL
from gating.labelling.sample import NOT_DRAWN, draw
from gating.store import TEXT

KEYS = {"r": REFUSAL, "c": COMPLIANCE, "e": EVASIVE, "d": DEGENERATE, "s": MISSING}  # s: read, and left without a label
N, SEED, BY = 100, 0, "reader"
BATCH = 16  # prompts in a chunk where the run does not say


class Shown(NamedTuple):
    """All that a reader sees of an answer."""

    place: int  # in the sample
    prompt: str
    answer: str


class Asked(NamedTuple):
    """Which sample a reader wants; None where the command says nothing of it."""

    n: int | None = None
    seed: int | None = None
    conditions: tuple[str, ...] | None = None


class Session:
    """One reader's labels of one run. Whoever holds it holds the run's writer.lock.

    Raises GatingError for a run that is unfinished or of one token, and for labels that were drawn otherwise.
    """

    def __init__(self, run: str | Path, by: str, asked: Asked, force: bool = False) -> None:
        self.path = store.locate(run)
        check_name(by)
        self.group, self.by = f"labels/{by}", by
        self._tree = labelled_run(self.path)
        there = store.read_group(self.path, self.group) if store.has_group(self.path, self.group) else None
        self.labels = _laid_out(self._tree, by, asked, None if force else there)
        if there is None or force or not self.labels.identical(there):
            write(self.path, self.group, self.labels)
        order = self.labels["order"].values
        self._cells = sorted(((int(c), int(p)) for c, p in np.argwhere(order != NOT_DRAWN)), key=lambda at: order[at])

    @property
    def total(self) -> int:
        return len(self._cells)

    @property
    def read(self) -> int:
        """How many answers have been read, those that were skipped too."""
        return int(self.labels["done"].sum())

    def next(self) -> Shown | None:
        """The first answer that is not read yet; None after the last."""
        done = self.labels["done"].values
        place = next((i for i, cell in enumerate(self._cells) if not done[cell]), None)
        return None if place is None else self._shown(place)

    def put(self, place: int, key: str, seconds: float) -> None:
        """Label the answer at a place of the sample, at once in the store. Raises GatingError for a key that is no
        label's, and for a place that is not the next."""
        waiting = self.next()
        if key not in KEYS or waiting is None or waiting.place != place:
            raise GatingError(f"key={key!r} at place {place}: give {choices(KEYS)}, for the answer that is shown.")
        self._set(place, KEYS[key], True, seconds, store.now())
        if self.read == self.total:
            store.finish(self.path, {}, self.group)

    def undo(self) -> None:
        """Take back the last label that was given; where there is none, nothing."""
        done = self.labels["done"].values
        read = [i for i, cell in enumerate(self._cells) if done[cell]]
        if read:
            self._set(read[-1], MISSING, False, np.nan, "")

    def _shown(self, place: int) -> Shown:
        condition, prompt = self._cells[place]
        answer = self._tree["/outcomes"]["completion"].isel(condition=condition, prompt=prompt)
        text = self._tree["/prompts"]["text"].sel(prompt=answer["prompt"])
        return Shown(place, str(text.item()), str(answer.item()))

    def _set(self, place: int, label: int, done: bool, seconds: float, time: str) -> None:
        values = {"label": label, "done": done, "seconds": seconds, "time": time}
        for name, value in values.items():
            self.labels[name].values[self._cells[place]] = value
        prompt = self._cells[place][1]
        column = self.labels[[*values]].isel(prompt=slice(prompt, prompt + 1))
        store.write_rows(self.path, self.group, "prompt", prompt, column)


def check_name(by: str) -> None:
    """Raises GatingError for what cannot name a group of a store."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", by):
        raise GatingError(f"by={by!r}: use at most 64 letters, digits, - and _.")


def labelled_run(path: Path) -> xr.DataTree:
    """The run, its prompts and answers loaded. Raises GatingError where its answers are not there to be labelled."""
    tree = store.open_run(path)
    if tree.attrs.get("status") != "complete":
        raise GatingError(f"{path.parent} is not finished: no fair sample can be drawn; give its command again.")
    if tree["/outcomes"].sizes["token"] == 1:
        raise GatingError(f"max_new_tokens=1 in {path.parent}: one token is no answer and has no label.")
    kept = {"/prompts": ["text", "harmful"], "/outcomes": ["completion"]}
    groups = {g: tree[g].to_dataset()[names].load() for g, names in kept.items()}
    groups["/outcomes"] = groups["/outcomes"].transpose("condition", "prompt")
    out = xr.DataTree.from_dict(groups)
    out.attrs = tree.attrs
    return out


def empty(tree: xr.DataTree, attrs: Mapping[str, object]) -> xr.Dataset:
    """A group of labels with every value missing, [condition, prompt] as /outcomes."""
    like, dims = tree["/outcomes"].to_dataset()["completion"], ("condition", "prompt")

    def missing(value: object, dtype: object, long_name: str, units: str = "") -> tuple:
        about = {"long_name": long_name, **({"units": units} if units else {})}
        return dims, np.full(like.shape, value, dtype=dtype), about

    return xr.Dataset(
        {
            "label": (dims, np.full(like.shape, MISSING, dtype="int8"), store.LABEL_ATTRS),
            "probability": missing(np.nan, "float64", "probability to be drawn", "1"),
            "order": missing(NOT_DRAWN, "int32", "place in the sample"),
            "seconds": missing(np.nan, "float32", "time that it was looked at", "s"),
            "time": missing("", TEXT, "when it was labelled"),
            "done": missing(False, bool, "it was read; without a label it was skipped"),
        },
        coords={c: np.array(like[c].values.tolist(), dtype=TEXT) for c in dims},
        attrs={**attrs, "status": "running", "created_at": store.now()},
    )


def write(path: Path, group: str, labels: xr.Dataset) -> None:
    """A whole group of labels, in chunks of the run's batches, instead of the one that is there."""
    batch = int(store.read_attrs(path).get("prompt_batch", BATCH))
    store.create_group(path, group, labels, "prompt", batch)


def _laid_out(tree: xr.DataTree, by: str, asked: Asked, there: xr.Dataset | None) -> xr.Dataset:
    """The group with the sample drawn: a new one, or the one that is there, with more drawn where n has grown."""
    answers = tree["/outcomes"].to_dataset()
    known = answers["condition"].values.tolist()
    wanted = _wanted(asked, there, by)
    if absent := [c for c in wanted.conditions or () if c not in known]:
        raise GatingError(f"conditions={absent[0]!r} is not a condition of this run: use {choices(known, absent[0])}.")
    if there is not None and there.attrs["n"] == wanted.n:
        return there
    harmful = tree["/prompts"].to_dataset()["harmful"].sel(prompt=answers["prompt"]).values
    drawable = np.isin(known, wanted.conditions or known)[:, None] & np.ones(harmful.size, dtype=bool)
    assert wanted.n is not None and wanted.seed is not None
    order, probability = draw(drawable, harmful, wanted.n, wanted.seed)
    about = {"n": wanted.n, "seed": wanted.seed, "conditions": ",".join(wanted.conditions or ())}
    out = empty(tree, {"by": by, "how": "blinded sample", **about}) if there is None else there.copy(deep=True)
    out.attrs |= {**about, "status": "running"}
    out["order"].values[:], out["probability"].values[:] = order, probability
    return out


def _wanted(asked: Asked, there: xr.Dataset | None, by: str) -> Asked:
    """The sample that is asked for, or that was begun. Raises GatingError where the one begun is another."""
    if there is None:
        return Asked(asked.n or N, SEED if asked.seed is None else asked.seed, asked.conditions)
    begun = Asked(
        int(there.attrs.get("n", 0)),
        int(there.attrs.get("seed", SEED)),
        tuple(filter(None, str(there.attrs.get("conditions", "")).split(","))) or None,
    )
    if there.attrs.get("how") == "imported":
        raise _kept(by, "were imported")
    if asked.seed not in (None, begun.seed):
        raise _kept(by, f"were drawn with seed={begun.seed}")
    if asked.conditions not in (None, begun.conditions):
        raise _kept(by, f"were drawn from {', '.join(begun.conditions or ['all conditions'])}")
    assert begun.n is not None
    if asked.n is not None and asked.n < begun.n:
        raise _kept(by, f"are of a sample of n={begun.n}, which is larger")
    return begun._replace(n=asked.n or begun.n)


def _kept(by: str, why: str) -> GatingError:
    return GatingError(f"labels/{by} {why}; keep them with by=NAME for these, or say --force to begin anew.")


def names(value: str | None) -> tuple[str, ...] | None:
    """`a,b` as names; a comma within brackets is part of a name."""
    if value is None:
        return None
    parts: Sequence[str] = re.split(r",(?![^\[]*\])", value)
    return tuple(p for p in parts if p)
