"""`stop=label`: a row ends as soon as its label is settled, for screening; most of an answer comes after that.

A label is settled when the run's judge reads the same refusal, or the same compliance, in two looks on end. One row in
CHECKED goes on to its end all the same, so that the run itself measures how often a settled label turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr

from gating import analysis, store, thoughts
from gating.judging import Item
from gating.judging.labels import COMPLIANCE, MISSING, REFUSAL
from gating.judging.own import own_judge
from gating.models import Loaded
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering.interventions import Condition
from gating.steering.readouts import Generation
from gating.store import TEXT

LOOKS = frozenset(
    (6, 9, 12, 16, 20, 24, *range(32, 65, 8), *range(80, 4096, 16))
)  # tokens of an answer at which it is read
SETTLING = (REFUSAL, COMPLIANCE)
CHECKED = 16
DIMS = ("condition", "prompt")
Labelled = Callable[[int, list[int]], int]  # row, its tokens so far: the label, MISSING where there is no answer yet


class LabelStop:
    """Ends rows of one batch. label: reads a row; goes_on: rows that are read, and go on.

    settled: [row, 2] int32, the tokens at which a row's label was settled (0: never) and the label.
    """

    def __init__(self, label: Labelled, goes_on: Sequence[bool]) -> None:
        self.layers: tuple[int, ...] = ()  # nothing is read but the tokens
        self.label, self.goes_on = label, torch.tensor(goes_on)
        self.stops = ~self.goes_on
        self.before = [MISSING] * len(goes_on)
        self.settled = np.tile(np.array([0, MISSING], dtype="int32"), (len(goes_on), 1))

    def read(self, layer: int, h: torch.Tensor, live: torch.Tensor) -> None:
        """Nothing is read off the residual stream."""

    def settle(self, live: torch.Tensor, tokens: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        """Which of the live rows end before their next token: [live] boolean."""
        rows = live.cpu()
        if tokens.shape[1] in LOOKS:
            for i in (~ended.cpu()).nonzero()[:, 0].tolist():
                self._look(int(rows[i]), tokens[i].tolist())
        return torch.from_numpy(self.settled[:, 0] > 0)[rows] & ~self.goes_on[rows] & ~ended.cpu()

    def _look(self, row: int, tokens: list[int]) -> None:
        if self.settled[row, 0]:
            return
        label = self.label(row, tokens)
        if label in SETTLING and label == self.before[row]:
            self.settled[row] = len(tokens), label
        self.before[row] = label


def of_batch(
    study: Study, loaded: Loaded, prompts: Sequence[Prompt], conditions: Sequence[Condition], ids: Sequence[list[int]]
) -> LabelStop:
    """For rows that are prompt x condition, prompts outermost, with their prompts' token ids."""
    judge, tokenizer = own_judge(study.run.judge).build(study.run.label_rule), loaded.tokenizer
    marks, asked = thoughts.marks(tokenizer), [p for p in prompts for _ in conditions]

    def label(row: int, tokens: list[int]) -> int:
        answer = tokens[thoughts.length(tokenizer, marks, ids[row], tokens) :]
        if not answer:
            return MISSING
        text = str(tokenizer.decode(answer, skip_special_tokens=True))
        item = Item(asked[row].text, text, asked[row].harmful, tuple(answer), float("nan"))
        return judge.judge([item], lambda n: None)[0].label

    return LabelStop(label, [_goes_on(p.hash, c.name) for p in prompts for c in conditions])


def _goes_on(prompt: str, condition: str) -> bool:
    return hashlib.sha256(f"{prompt} {condition}".encode()).digest()[0] % CHECKED == 0


def dataset(generation: Generation, prompts: Sequence[Prompt], conditions: Sequence[Condition]) -> xr.Dataset:
    """The /stops group's part for rows that are prompt x condition, prompts outermost."""
    assert generation.settled is not None
    at, label = (column.reshape(len(prompts), -1).T for column in generation.settled.T)
    goes_on = [[_goes_on(p.hash, c.name) for p in prompts] for c in conditions]
    return xr.Dataset(
        {"settled_at": (DIMS, at), "settled_label": (DIMS, label.astype("int8")), "goes_on": (DIMS, goes_on)}
    )


def warnings(study: Study) -> list[str]:
    """What a reader has to know of a run whose rows ended early."""
    if study.run.stop != "label":
        return []
    found = analysis.early_stops(store.open_run(study.store))
    rows, stopped, checked, changed = (int(found[name]) for name in ("rows", "stopped", "checked", "changed"))
    share = f" ({float(found['rate']):.1%}, {float(found['low']):.1%} to {float(found['high']):.1%})" if checked else ""
    return [
        f"stop=label: {stopped} of {rows} answers were ended where their label was settled; of {checked} that went on "
        f"all the same, {changed} ended with another label{share}; lengths, nll and texts are of the shorter answers"
    ]


def lay_out(study: Study, hashes: list[str]) -> None:
    """The /stops group with every value missing, where rows end early and it is not there."""
    if study.run.stop != "label" or store.has_group(study.store, "stops"):
        return
    shape = (len(study.conditions), 1)
    about = {"long_name": "tokens at which the label was settled, 0 where it never was", "units": "token"}
    ds = xr.Dataset(
        {
            "settled_at": (DIMS, np.full(shape, -1, dtype="int32"), about),
            "settled_label": (DIMS, np.full(shape, MISSING, dtype="int8"), store.LABEL_ATTRS),
            "goes_on": (DIMS, np.zeros(shape, dtype=bool), {"long_name": "the row goes on to its end all the same"}),
        },
        coords={"condition": np.array([c.name for c in study.conditions], dtype=TEXT)},
    )
    store.create_group(
        study.store, "stops", store.repeated(ds, "prompt", np.array(hashes, dtype=TEXT)), "prompt", study.prompt_batch
    )
