"""What an action does to the answers of a run that the guard flags: each is answered again with the guard acting.

Answers that are not flagged are the same with a guard, token by token, so that they are not made again. Three actions
are more than a watch can do; what was said is not shown. `reopen`: the prompt is read and answered anew with the
persona held at its mean in benign answers at every token; `cap`: held only where it is above their 75th percentile;
`header`: the model goes on behind what it said and the template's header of an answer, which opens a new one (Any-Depth
Alignment, arXiv 2510.18081).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gating import chat, models
from gating.analysis.reading import read_group
from gating.errors import GatingError
from gating.guarding import monitor
from gating.guarding.calibrate import none_of
from gating.guarding.evaluate import flagged_rows
from gating.guarding.file import Guard
from gating.judging.labels import LABELS
from gating.pipeline import answered, study
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering import lowering
from gating.steering.backend import Backend
from gating.steering.interventions import Condition
from gating.steering.readouts import Generation

HELD = {"reopen": "clamp", "cap": "cap"}  # actions that answer anew, and the operation that holds the persona
HEADER = "header"


class Again(NamedTuple):
    """One answer that is made again: its prompt and condition, whether it is of a harmful request, the label that it
    had and the tokens after which it was flagged."""

    prompt: Prompt
    condition: Condition
    label: int
    delay: int


def trial(guard: Guard, run: xr.DataTree, action: str, cascade: bool = False) -> list[dict[str, Any]]:
    """Labels before and after, by condition and kind of request, over the answers that are flagged.

    `counted` are flags that the second judge let count (cascade), `same_token` those that were raised at the token
    that the stored projections say. Raises GatingError for another model, and for a run whose conditions refer to
    other rows of their batch.
    """
    planned = _study(run)
    backend = Backend(models.load(planned.run.model), planned.batch_rows)
    monitor.check(guard, backend.loaded)
    rows = _flagged(guard, run, planned)
    directions = read_group(run, "directions") if "directions" in run.children else None
    labels: list[int] = []
    flagged: list[int] = []
    for start in range(0, len(rows), planned.batch_rows):
        part = rows[start : start + planned.batch_rows]
        given, at = _answers(guard, backend, planned, part, directions, action, cascade)
        labels += given
        flagged += at
    return _counted(rows, labels, flagged)


def _study(run: xr.DataTree) -> Study:
    planned = study.of_store(run)
    for condition in planned.conditions:
        for iv in condition.interventions:
            if iv.reference not in ("zero", "mean") or iv.draw == "matched" or planned.run.steer.iso_kl:
                raise GatingError(
                    f"condition {condition.name}: what it does depends on other rows of its batch, so that its answers "
                    "cannot be made again by themselves; try a guard on conditions without reference=own, matched "
                    "controls or steer.iso_kl."
                )
    return planned


def _flagged(guard: Guard, run: xr.DataTree, planned: Study) -> list[Again]:
    found, at = flagged_rows(guard, run)
    prompts = {p.hash: p for p in planned.test}
    conditions = {c.name: c for c in planned.conditions}
    columns = zip(found.prompt.tolist(), found.condition.tolist(), found.label.tolist(), at.tolist(), strict=True)
    return [Again(prompts[p], conditions[c], label, delay) for p, c, label, delay in columns]


def _answers(
    guard: Guard, backend: Backend, planned: Study, rows: Sequence[Again], directions: xr.Dataset | None, action: str,
    cascade: bool,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Labels of these rows answered under the guard, and the tokens after which each was flagged (0: it was not)."""
    system = planned.run.model.system
    ids = [planned.ids(r.prompt.text, r.condition.system or system) for r in rows]
    edits = {} if directions is None else lowering.lower([r.condition for r in rows], directions, planned.run.seed)
    confirm = monitor.second_judge(backend.loaded.tokenizer, [r.prompt.text for r in rows]) if cascade else None
    anew = action in (*HELD, HEADER)
    over = monitor.watch(guard, ["note" if anew else action] * len(rows), confirm)
    made = backend.generate(ids, edits, planned.max_new_tokens, watch=over)
    if anew and over.flagged.any():
        flags = over.flagged.tolist()
        if action in HELD:
            edits = monitor.held(guard, edits, over.flagged > 0, HELD[action])
        else:
            opened = chat.header(backend.loaded.tokenizer, planned.run.model.template)
            ids = [[*p, *t[:n], *opened] if n else p for p, t, n in zip(ids, made.tokens, flags, strict=True)]
        made = backend.generate(ids, edits, planned.max_new_tokens)
    return labelled(backend, planned, [r.prompt for r in rows], made), over.flagged.tolist()


def labelled(backend: Backend, planned: Study, prompts: Sequence[Prompt], made: Generation) -> list[int]:
    """Labels of answers to these prompts, by the run's own judge, as its own answers were labelled."""
    asked = [planned.ids(p.text, planned.run.model.system) for p in prompts]
    again = answered.score(backend, asked, made, "scores of answers made again")
    texts = answered.texts(backend, [answer for _, answer in again.said])
    return answered.labels(planned, prompts, again, texts)


def _counted(rows: Sequence[Again], labels: Sequence[int], flagged: Sequence[int]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.condition.name, "harmful" if row.prompt.harmful else "harmless"), []).append(i)
    out = []
    for (condition, kind), members in groups.items():
        before, after = (Counter(LABELS[of[i]] for i in members) for of in ([r.label for r in rows], labels))
        counted = [i for i in members if flagged[i]]
        out.append(
            {
                "condition": condition, "requests": kind, "flagged": len(members), "counted": len(counted),
                "same_token": sum(flagged[i] == rows[i].delay for i in members),
                "before": dict(before), "after": dict(after),
                "delay": none_of(float(np.median([flagged[i] for i in counted]))) if counted else None,
            }
        )  # fmt: skip
    return out
