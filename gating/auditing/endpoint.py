"""A model behind an OpenAI-compatible API, asked by system message alone: into a store like any other.

Nothing but text comes back, so answers, their labels and the tokens that the server counts are all that the store
holds; whatever is read off a model's inside stays missing. A row without an answer is not `done`: the same command asks
it again, and until all rows are done the store stays unfinished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating import progress, store
from gating.auditing.asking import Cell, Plan, Said, read
from gating.completions import Completions, Reply
from gating.errors import GatingError, naming
from gating.judging import UNSEEN, Item, degenerate
from gating.judging.labels import MISSING
from gating.judging.own import own_judge
from gating.pipeline import conditions
from gating.pipeline.execute import described
from gating.pipeline.key import code
from gating.store import TEXT

GROUP = "endpoint"
MOST_REPORTED = 8  # models that a server says it is: more are not kept
LEFT_OPEN = (
    "Personas were in the system message alone: what steering, an adapter or the model's inside would show stays open.",
    "The server's weights, template and filters are not seen; what it serves under this name may change at any time.",
    "The judge saw text alone: no tokens and no likelihoods, so that gibberish and loops are found less surely.",
)


def ask(plan: Plan, again: bool, tell: Callable[[str], None]) -> tuple[Path, list[str]]:
    """Bring the plan's store as far as the server lets it; the run's folder, and warnings. What is there is kept,
    whatever ends this. again: ask everything anew; the store before stays until the new one is whole.

    Raises GatingError for bad input, a server that cannot be asked, and a budget that is or would be spent.
    """
    folder = plan.folder()
    again = again and (folder / store.STORE).is_dir()
    with naming(folder), store.writer(folder):
        store.again.settle(folder)
        place = store.again.place(folder) if again else folder
        sitting = Sitting(plan, place / store.STORE)
        sitting.ask(tell)
        if again and sitting.whole:
            store.again.take_place(folder)
        elif again:
            return place, sitting.warnings()
    return folder, sitting.warnings()


def look(plan: Plan) -> str:
    """What there is to ask and what it may cost, without asking. Raises GatingError where that is over the budget."""
    path = plan.folder() / store.STORE
    done = store.read_group(path, "outcomes", ["done"])["done"].values if path.is_dir() else None
    return plan.told([cell for cell in plan.cells if done is None or not done[cell]], 0.0)


def _lay_out(plan: Plan, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.is_dir():
        about = conditions.table(plan.conditions, 0)
        asked = described(plan.test, [-1] * len(plan.test))
        longest = int(plan.run.max_new_tokens or 0)
        store.create(path, asked, about, longest, plan.prompt_batch, _attributes(plan))
    if not store.has_group(path, GROUP):
        held = store.read_group(path, "outcomes", ["done"])
        store.create_group(path, GROUP, _empty(held), "prompt", plan.prompt_batch)


def _attributes(plan: Plan) -> dict[str, Any]:
    """The root's attributes: what a run's has, "none" for what an API does not tell. The key's variable is left out."""
    unseen = ("model_revision", "model_fingerprint", "template_hash", "dtype")
    choices = {"model": plan.run.model.name, "experiment": "audit"}
    return {
        "key": plan.key(),
        "config": yaml.safe_dump(asdict(plan.run), sort_keys=False, allow_unicode=True),
        "choices": json.dumps(choices),
        "overrides": json.dumps([]),
        "seed": plan.run.seed,
        "versions": json.dumps(store.versions()),
        "git_revision": store.git_revision(),
        "model_id": str(plan.how.model),
        **dict.fromkeys(unseen, UNSEEN),
        "device": GROUP,
        "server": json.dumps({"url": plan.how.url, "model": plan.how.model, "request": plan.how.request}),
        "prompt_batch": plan.prompt_batch,
        "max_new_tokens": plan.run.max_new_tokens,
        "judge": own_judge(plan.run.judge).attributes()["id"],
        "claims": json.dumps({}),
        "claims_digest": "",
        "code": code(),
        "warnings": json.dumps(plan.warnings),
    }


def _empty(held: xr.Dataset) -> xr.Dataset:
    """The /endpoint group with every value missing, over (condition, prompt)."""
    shape, dims = held["done"].shape, ("condition", "prompt")
    counts = {
        name: (
            dims,
            np.full(shape, -1, "int32"),
            {"long_name": f"{says} tokens, as the server counts", "units": "token"},
        )
        for name, says in (("tokens_in", "the request's"), ("tokens_out", "the answer's"))
    }
    reason = dims, np.full(shape, "", dtype=TEXT), {"long_name": "why there is no answer"}
    coords = {c: np.array(held[c].values.tolist(), dtype=TEXT) for c in dims}
    return xr.Dataset({"reason": reason, **counts}, coords)


class Sitting:
    """One go at a plan: what its store holds, in memory, and what it has cost."""

    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan, self.path = plan, path
        self.completions = Completions(plan.how.server)  # refuses a key that is not there before a store is
        self.judge = own_judge(plan.run.judge).build(plan.run.label_rule)
        fresh = not path.is_dir()
        if fresh:
            plan.told(plan.cells, 0.0)  # nor is a store begun that the budget does not allow
        _lay_out(plan, path)
        dims = ("condition", "prompt")
        self.outcomes = store.read_group(path, "outcomes").transpose(*dims, ...)
        self.asked = store.read_group(path, GROUP).transpose(*dims, ...)
        self.server = json.loads(str(store.read_attrs(path)["server"]))
        self.reported: list[str] = list(self.server.get("reported", []))
        self.spent = plan.usd(self._took(c) for c in plan.cells)

    @property
    def whole(self) -> bool:
        return bool(self.outcomes["done"].all())

    def ask(self, tell: Callable[[str], None]) -> None:
        """Ask what is not done, batch by batch."""
        done = self.outcomes["done"].values
        pending = [cell for cell in self.plan.cells if not done[cell]]
        tell(self.plan.told(pending, self.spent))
        try:
            with progress.bar("answers", done.size, done=int(done.sum())) as advance:
                for start in range(0, done.shape[1], self.plan.prompt_batch):
                    rows = range(start, min(start + self.plan.prompt_batch, done.shape[1]))
                    if cells := [(c, p) for c, p in pending if p in rows]:
                        self._batch(cells, rows, advance)
        finally:
            if pending:
                store.set_attrs(self.path, {"server": json.dumps(self.server | {"reported": self.reported})})
        if self.whole and store.read_attrs(self.path).get("status") != "complete":
            store.finish(self.path, {"warnings": json.dumps(self.plan.warnings)})

    def _batch(self, cells: Sequence[Cell], rows: range, advance: Callable[[int], None]) -> None:
        """Ask these cells, and write what came of it, also where an error or an interrupt ends it."""

        def take(i: int, reply: Reply) -> None:
            said = Said(reason=reply.reason) if reply.reason else read(reply.document)
            self._set(cells[i], said)
            advance(1)
            self._check_budget()

        try:
            self.completions.ask([self.plan.body(cell) for cell in cells], take)
        finally:
            part = {"prompt": slice(rows.start, rows.stop)}
            groups = {"outcomes": self.outcomes.isel(part), GROUP: self.asked.isel(part)}
            store.write_batch(self.path, rows.start, groups)
        if not self.outcomes["done"].any():
            reason = str(self.asked["reason"].values[cells[0]])
            raise GatingError(
                f"endpoint: none of the first {len(cells)} calls to {self.plan.how.url} brought an answer ({reason}); "
                "mend endpoint.url, endpoint.model or endpoint.request, then give the same command again."
            )

    def _set(self, cell: Cell, said: Said) -> None:
        for name, count in (("tokens_in", said.tokens_in), ("tokens_out", said.tokens_out)):
            before = int(self.asked[name].values[cell])  # of a call that brought no answer
            self.asked[name].values[cell] = count if before < 0 else before + max(count, 0)
        self.asked["reason"].values[cell] = said.reason
        if said.model and said.model not in self.reported and len(self.reported) < MOST_REPORTED:
            self.reported.append(said.model)
        if not said.reason:
            prompt = self.plan.test[cell[1]]
            (judged,) = self.judge.judge(
                [Item(prompt.text, said.text, prompt.harmful, words(said.text))], lambda n: None
            )
            values = {"completion": said.text, "label": judged.label, "n_tokens": said.tokens_out}
            for name, value in values.items():
                self.outcomes[name].values[cell] = value
            self.outcomes["done"].values[cell] = judged.label != MISSING
        self.spent += self.plan.usd([self._cost(said, cell)])

    def _cost(self, said: Said, cell: Cell) -> tuple[int, int]:
        """Tokens in and out of a call: as expected where it brought an answer and the server does not count."""
        expected = (0, 0) if said.reason else self.plan.expected(cell)
        return tuple(n if n >= 0 else e for n, e in zip((said.tokens_in, said.tokens_out), expected, strict=True))  # type: ignore[return-value]

    def _took(self, cell: Cell) -> tuple[int, int]:
        """Those of all calls for a cell, from its store."""
        tokens_in, tokens_out = (int(self.asked[name].values[cell]) for name in ("tokens_in", "tokens_out"))
        none = "" if self.outcomes["done"].values[cell] else "no answer"
        return self._cost(Said("", none, tokens_in, tokens_out), cell)

    def _check_budget(self) -> None:
        budget = self.plan.how.budget
        if budget is not None and self.spent >= budget:
            raise GatingError(
                f"endpoint.budget={budget:g}: ${self.spent:.4g} is spent; what came is kept, and the same command with "
                "a higher budget goes on."
            )

    def warnings(self) -> list[str]:
        """Answers that are missing, and why; a server that says that it is several models."""
        reasons = Counter(r for r in self.asked["reason"].values.ravel().tolist() if r)
        frequent = "; ".join(f"{n} x {why}" for why, n in reasons.most_common(3))
        out = list(self.plan.warnings)
        if reasons:
            out.append(
                f"endpoint: {reasons.total()} of {len(self.plan.cells)} answers are missing ({frequent}); they are no "
                "part of any rate, and the same command asks for them again"
            )
        if len(self.reported) > 1:
            out.append(f"endpoint: the server says that it was several models: {'; '.join(self.reported)}")
        return out


def words(text: str) -> tuple[int, ...]:
    """A text's words as numbers, alike ones by the same: what stands for tokens where a judge looks for loops."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(word, len(numbers)) for word in degenerate.words(text))
