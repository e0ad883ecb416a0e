"""A run's answers shown to another judge, and its labels kept beside the run's own.

Labels go to the store's group /judgements/NAME, one batch of prompts after the other, `done` last; /outcomes is only
read. A judgement that failed (a deadline, an answer that cannot be read, a judge that declines) is missing, with its
reason, and never a default label; the paper's code made it a score in the middle, which then passed for a judgement
(arXiv 2606.26161).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xarray as xr
import yaml

from gating import progress, store
from gating.errors import GatingError
from gating.judging import Item, Judge, Judgement
from gating.judging.degenerate import Limits
from gating.judging.labels import DEGENERATE, MISSING
from gating.judging.pooled import over_cores
from gating.judging.spec import JudgeSpec
from gating.store import TEXT

Cell = tuple[int, int]  # condition and prompt, as positions
KEPT = Judgement(DEGENERATE, reason="kept: degenerate by the run's own limits, not shown to this judge")
AGAIN = "judging_again"  # the group of judgements that are made again, until they are whole
OTHERS = {"digest": ("a judge of digest", "this one's is"), "fingerprint": ("model weights", "these weights are")}
BATCH = 16  # prompts judged and written together where the run does not say


def rejudge(run: str | Path, spec: JudgeSpec, force: bool = False, retry: bool = False, cores: int = 1) -> str:
    """Judge every answer of a run, finished or not, that this judge has not judged; returns in a few words how it went.

    force: do it all again; what is there stays until the new judgements are whole, and the same command goes on with
    them. retry: ask once more for judgements that failed. cores: processes for a judge of text with many answers
    (gating.judging.pooled). Raises GatingError for a run that is being written, judgements of the same name by another
    judge, or a judge that cannot be had.
    """
    path = store.locate(run)
    with store.writer(path.parent):
        tree, own = store.open_run(path), f"judgements/{spec.name}"
        if tree["/outcomes"].sizes["token"] == 1:
            raise GatingError(
                f"max_new_tokens=1 in {path.parent}: one token is no answer and has no label; run it again with more."
            )
        again = force and store.has_group(path, own)
        group = f"{AGAIN}/{spec.name}" if again else own
        begun = store.read_group(path, group) if store.has_group(path, group) else None
        begun = _own(begun, "digest", spec.digest, spec, again)
        judgements = empty(tree, spec.of_harm) if begun is None else begun
        if not to_judge(tree, judgements, spec, retry).any() and (begun is None or not again):
            if begun is not None and begun.attrs.get("status") != "complete":  # killed after its last answer
                store.finish(path, {}, own)
            return f"opened: nothing to judge ({summary(judgements)})"
        limits = _limits(tree.attrs)
        judge = spec.build(limits)
        begun = _own(begun, "fingerprint", judge.fingerprint, spec, again)
        judgements = empty(tree, spec.of_harm) if begun is None else begun
        batch = int(tree.attrs.get("prompt_batch", BATCH))
        if begun is None:
            laid_out = judgements.assign_attrs(_attributes(spec, judge))
            store.create_group(path, group, laid_out, "prompt", batch)
        resumed = bool(judgements["done"].any())
        pending = to_judge(tree, judgements, spec, retry)
        with over_cores(judge, spec, limits, int(pending.sum()), cores) as judge:
            _judge_batches(path, group, tree, judgements, pending, judge, spec, batch)
        if not judgements["done"].any():
            raise GatingError(
                f"judge {spec.name}: not one answer was judged ({summary(judgements)}); mend the judge's address, "
                "model or template, then ask again with --retry."
            )
        store.finish(path, {}, group, instead_of=own if again else None)
    return f"{'resumed' if resumed else 'new'}: {summary(judgements)}"


def _own(begun: xr.Dataset | None, attribute: str, ours: str, spec: JudgeSpec, again: bool) -> xr.Dataset | None:
    """What this very judge has begun. What another one has is left alone, or, where all is done again, made anew.

    Raises GatingError for another judge's.
    """
    if begun is None or begun.attrs.get(attribute) == ours:
        return begun
    if again:
        return None
    theirs, this = OTHERS[attribute]
    raise _another_judge(spec, f"{theirs} {begun.attrs.get(attribute)}", f"{this} {ours}")


def empty(tree: xr.DataTree, of_harm: bool = False) -> xr.Dataset:
    """A group of judgements with every value missing, [condition, prompt] as /outcomes. A judge of harm gives `harm` in
    place of a `score`, and its labels stay missing."""
    outcomes = tree["/outcomes"].to_dataset()
    shape, dims = (outcomes.sizes["condition"], outcomes.sizes["prompt"]), ("condition", "prompt")
    measure, says = ("harm", "how harmful it is") if of_harm else ("score", "how far it complies")
    return xr.Dataset(
        {
            "label": (dims, np.full(shape, MISSING, dtype="int8"), store.LABEL_ATTRS),
            measure: (dims, np.full(shape, np.nan, dtype="float32"), {"long_name": says, "units": "1"}),
            "reason": (dims, np.full(shape, "", dtype=TEXT), {"long_name": "why a judgement is missing, or was kept"}),
            "done": (dims, np.zeros(shape, dtype=bool), {"long_name": "a judgement is there"}),
        },
        coords={c: np.array(outcomes[c].values.tolist(), dtype=TEXT) for c in dims},
    )


def to_judge(tree: xr.DataTree, judgements: xr.Dataset, spec: JudgeSpec, retry: bool = False) -> np.ndarray:
    """Which answers are there, are this judge's to judge and are not judged, boolean [condition, prompt]. One whose
    judgement failed before counts only with `retry`."""
    outcomes = tree["/outcomes"].to_dataset()
    wanted = outcomes["done"].transpose("condition", "prompt").values.copy()
    if spec.prompts != "all":
        harmful = tree["/prompts"].to_dataset()["harmful"].sel(prompt=outcomes["prompt"].values).values
        wanted &= harmful == (spec.prompts == "harmful")
    failed = _texts(judgements["reason"]) != ""
    return wanted & ~judgements["done"].values & (retry | ~failed)


def summary(judgements: xr.Dataset) -> str:
    """How many judgements there are, and the most frequent reasons why others are missing."""
    reasons = np.where(judgements["done"].values, "", _texts(judgements["reason"]))
    names, counts = np.unique(reasons[reasons != ""], return_counts=True)
    frequent = sorted(zip(counts.tolist(), names.tolist(), strict=True), reverse=True)[:3]
    missing = f"{counts.sum()} missing" if frequent else "none missing"
    return f"{int(judgements['done'].sum())} judged, " + "; ".join([missing, *(f"{n} x {why}" for n, why in frequent)])


def _texts(column: xr.DataArray) -> np.ndarray:
    """A text variable as fixed-width strings."""
    return np.array(column.values.tolist(), dtype=str)


def _judge_batches(
    path: Path,
    group: str,
    tree: xr.DataTree,
    judgements: xr.Dataset,
    pending: np.ndarray,
    judge: Judge,
    spec: JudgeSpec,
    batch: int,
) -> None:
    """Judge one batch of prompts after the other, in place in `judgements`, and write each when all of it is judged."""
    outcomes = tree["/outcomes"].to_dataset().transpose("condition", "prompt", ...)
    prompts = tree["/prompts"].to_dataset().sel(prompt=outcomes["prompt"].values)
    with progress.bar(f"judged by {spec.name}", int(pending.sum())) as advance:
        for start in range(0, outcomes.sizes["prompt"], batch):
            rows = slice(start, start + batch)
            cells: list[Cell] = [(int(c), int(p)) for c, p in np.argwhere(pending[:, rows])]
            if not cells:
                continue
            asked, answers = prompts.isel(prompt=rows).load(), outcomes.isel(prompt=rows).load()
            degenerate = spec.keep_degenerate & (answers["label"].values == DEGENERATE)
            shown = [cell for cell in cells if not degenerate[cell]]
            kept = [cell for cell in cells if degenerate[cell]]
            given = judge.judge(_items(asked, answers, shown), advance)
            advance(len(kept))
            if not judgements["done"].any():
                _check_reached(spec, given)
            filled = judgements.isel(prompt=rows)  # a view: what is set here is set in `judgements`
            for cell, judgement in [*zip(shown, given, strict=True), *((cell, KEPT) for cell in kept)]:
                _set(filled, cell, judgement)
            store.write_rows(path, group, "prompt", start, filled)


def _items(prompts: xr.Dataset, outcomes: xr.Dataset, cells: Sequence[Cell]) -> list[Item]:
    """The answers in these cells. outcomes: dimensions condition and prompt first."""
    text, harmful = prompts["text"].values, prompts["harmful"].values
    completion, nll, ids = (outcomes[v].values for v in ("completion", "nll", "token_ids"))
    return [
        Item(str(text[p]), str(completion[c, p]), bool(harmful[p]), tuple(i[i >= 0].tolist()), float(nll[c, p]))
        for c, p in cells
        for i in (ids[c, p],)
    ]


def _set(judgements: xr.Dataset, cell: Cell, judgement: Judgement) -> None:
    judgements["label"].values[cell] = judgement.label
    for measure in {"score", "harm"} & set(judgements.data_vars):
        judgements[measure].values[cell] = getattr(judgement, str(measure))
    judgements["reason"].values[cell] = judgement.reason
    judgements["done"].values[cell] = judgement.given


def _check_reached(spec: JudgeSpec, first: Sequence[Judgement]) -> None:
    """Raises GatingError where not one of a judge's first calls came through: the others would not either."""
    if first and not any(j.reached for j in first):
        raise GatingError(
            f"judge {spec.name}: none of the first {len(first)} calls came through ({first[0].reason}); mend "
            "the address or the server, then give the same command again."
        )


def _limits(attrs: Mapping[Hashable, object]) -> Limits:
    """The run's own limits of what is degenerate."""
    config = yaml.safe_load(str(attrs.get("config", ""))) or {}
    return Limits(**(config.get("label_rule") or {}))


def _attributes(spec: JudgeSpec, judge: Judge) -> dict[str, str | bool]:
    """The group's attributes. Neither a key nor the name of its variable is among them."""
    content = {k: v for k, v in asdict(spec).items() if k not in ("key_variable", "template_file")}
    return {
        **spec.attributes(),
        "fingerprint": judge.fingerprint,
        "spec": yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
        "status": "running",
        "created_at": store.now(),
    }


def _another_judge(spec: JudgeSpec, theirs: str, ours: str) -> GatingError:
    return GatingError(
        f"judgements/{spec.name} was made with {theirs} ({ours}); keep both by giving this one a name=... of its own, "
        "or say --force to judge again."
    )
