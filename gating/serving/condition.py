"""One condition of a finished run, ready to answer other prompts: the run's model, directions, doses and lowering."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from jinja2.exceptions import TemplateError

from gating import chat, models, store
from gating.analysis.reading import read_group
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.pipeline import answered, calibrate, conditions, matched, prompt_batches, study
from gating.steering import lowering
from gating.steering.backend import Backend

ONE = threading.Lock()  # a model in this process runs one trace at a time, whoever asks


class Said(NamedTuple):
    """prompt, tokens: ids, of all that was said; text: the answer without a thought; nll: nats a token of it under the
    unsteered model; ended: whether it came to its end."""

    prompt: list[int]
    tokens: list[int]
    answer: list[int]
    text: str
    nll: float
    ended: bool


class OfRun:
    """Raises GatingError for a run that is not finished or ran elsewhere, for a condition that it lacks, and for
    a model that is another than the run's by now."""

    def __init__(self, run: str | Path, condition: str) -> None:
        place = store.locate(run)
        tree = store.open_run(place)
        attrs = tree.attrs
        if attrs.get("status") != "complete" or "server" in attrs:
            raise GatingError(f"run={run}: it is not finished, or its model is a server's; give a finished local run.")
        self.study = replace(study.of_store(tree), folder=place.parent)
        names = {c.name: i for i, c in enumerate(self.study.conditions)}
        if condition not in names:
            raise GatingError(f"condition={shown(condition, 80)!r}: this run has {choices(names, condition)}.")
        self.backend = Backend(models.load(self.study.run.model), self.study.batch_rows)
        if (now := self.backend.loaded.fingerprint) != attrs["model_fingerprint"]:
            raise GatingError(
                f"run={run} was made with the weights {attrs['model_fingerprint']}, and {self.study.run.model.name} "
                f"has {now} now; give a run of this model."
            )
        _check_same(self.study, tree, self.backend.loaded.n_layers)
        leads = prompt_batches.leading(self.study.conditions)
        self.rows = [self.study.conditions[i] for i in dict.fromkeys([*leads, names[condition]])]
        self.at = [c.name for c in self.rows].index(condition)
        self.edits: lowering.Edits = {}
        if store.has_group(place, "directions"):
            made = store.read_group(place, "directions")
            scale = calibrate.scales(self.study, self.backend, made) if self.study.run.steer.iso_kl else {}
            drawn = matched.directions(self.study, self.backend, made)
            self.edits = lowering.lower(self.rows, made, self.study.run.seed, scale, drawn)

    def ids(self, turns: Sequence[dict[str, str]], system: str | None) -> list[int]:
        """A condition's own system message takes the place of the run's; that of the turns, of the run's."""
        own, given = system or self.study.run.model.system, list(turns)
        if given and given[0]["role"] == "system":
            if system is not None:
                raise GatingError(
                    "the condition has a system message of its own, and so has this eval; use another condition."
                )
        elif own is not None:
            given.insert(0, {"role": "system", "content": own})
        try:
            return chat.encode_turns(self.backend.loaded.tokenizer, given, self.study.run.model.template)
        except TemplateError as e:
            raise GatingError(f"the model's chat template refuses these messages ({shown(e, 120)}).") from None

    def answer(self, turns: Sequence[dict[str, str]], most: int, sampling: tuple[float, int] | None = None) -> Said:
        """The answer to a conversation, greedy unless a temperature and a seed are given. Beside it stand the rows that
        the condition is led to, as in the run."""
        asked = [self.ids(turns, row.system) for row in self.rows]
        with ONE:
            made = self.backend.generate(asked, self.edits, most, sampling=sampling, about="an eval's prompt")
            one = made._replace(tokens=[made.tokens[self.at]])
            scored = answered.score(self.backend, [asked[self.at]], one, "an eval's answer")
        tokens, answer = made.tokens[self.at], scored.said[0][1]
        text = answered.texts(self.backend, [answer])[0]
        return Said(asked[self.at], tokens, answer, text, float(scored.nll[0]), len(tokens) < most)


def _check_same(now: study.Study, run: xr.DataTree, n_layers: int) -> None:
    """Raises GatingError where a persona's file has changed since the run: a condition of it would be another one by
    now."""
    made, held = conditions.table(now.conditions, n_layers), read_group(run, "conditions")
    for name, values in made.items():
        a, b = values.values, held[name].values
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            raise GatingError(
                f"run={now.folder}: its conditions are not those that its settings give now ({name} differs: a persona "
                "was changed); make the run again."
            )
