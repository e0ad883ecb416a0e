"""`python -m gating.rejudge RUN judge=NAME`: show a run's answers to another judge and keep what it says beside them.

Labels go to the store's group /judgements/NAME, block by block, `done` last; /outcomes is only read. A judgement that
failed (a deadline, an answer that cannot be read, a judge that declines) is missing, with its reason, and never a
default label; the paper's code made it a score in the middle, which then passed for a judgement (arXiv 2606.26161).
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
from rich.console import Console

from gating import cli, progress, store
from gating.analysis import agreement
from gating.errors import GatingError
from gating.judging import Item, Judge, Judgement, labels
from gating.judging import spec as specs
from gating.judging.labels import DEGENERATE, MISSING
from gating.judging.spec import JudgeSpec
from gating.store import TEXT

KEPT = "kept: degenerate by the run's own rule, not shown to this judge"
BLOCK = 16  # prompts a block where the run does not say


def rejudge(run: str | Path, spec: JudgeSpec, force: bool = False, retry: bool = False) -> str:
    """Judge every answer of a finished or partial run that this judge has not judged, and say in a few words how it went.

    force: do it all again; retry: ask once more for judgements that failed. Raises GatingError for a run that is being
    written, judgements of the same name by another judge, or a judge that cannot be had.
    """
    path = store.locate(run)
    with store.writer(path.parent):
        tree = store.open_run(path)
        group, laid_out = f"judgements/{spec.name}", store.has_group(path, f"judgements/{spec.name}")
        judged = empty(tree) if force or not laid_out else store.read_group(path, group)
        if laid_out and not force:
            _check_same(spec, judged.attrs)
        pending = to_judge(tree, judged, spec, retry)
        if not pending.any():
            return f"opened: nothing to judge ({summary(judged)})"
        judge, fingerprint = build(spec, tree.attrs)
        block = int(tree.attrs.get("prompt_batch", BLOCK))
        if force or not laid_out:
            store.create_group(path, group, judged.assign_attrs(_described(spec, fingerprint)), {"prompt": block})
        elif judged.attrs.get("fingerprint") != fingerprint:
            raise _other(spec, f"model weights {judged.attrs.get('fingerprint')}", f"these weights are {fingerprint}")
        before = int(judged["done"].sum())
        _judge_blocks(path, group, tree, judged, pending, judge, spec, block)
        store.set_attrs(path / group, {"status": "complete", "finished_at": store.now()})
    return f"{'resumed' if before else 'new'}: {summary(judged)}"


def build(spec: JudgeSpec, attrs: Mapping[Any, Any]) -> tuple[Judge, str]:
    """The judge, ready, and a fingerprint of its weights (`none` where it has none that we can see)."""
    if spec.kind == "rule":
        from gating.judging.rule import RuleJudge

        config = yaml.safe_load(str(attrs.get("config", ""))) or {}
        return RuleJudge(spec, config.get("judge") or {}), "none"
    if spec.kind == "endpoint":
        from gating.judging.endpoint import EndpointJudge

        return EndpointJudge(spec), "none"
    from gating.judging.classifier import ClassifierJudge

    classifier = ClassifierJudge(spec)
    return classifier, classifier.loaded.fingerprint


def empty(tree: xr.DataTree) -> xr.Dataset:
    """A group of judgements with every value missing, [condition, prompt] as /outcomes."""
    outcomes = tree["/outcomes"].to_dataset()
    shape, dims = (outcomes.sizes["condition"], outcomes.sizes["prompt"]), ("condition", "prompt")
    return xr.Dataset(
        {
            "label": (dims, np.full(shape, MISSING, dtype="int8"), store.LABEL_ATTRS),
            "score": (
                dims,
                np.full(shape, np.nan, dtype="float32"),
                {"long_name": "how far it complies", "units": "1"},
            ),
            "reason": (dims, np.full(shape, "", dtype=TEXT), {"long_name": "why a judgement is missing, or was kept"}),
            "done": (dims, np.zeros(shape, dtype=bool), {"long_name": "a judgement is there"}),
        },
        coords={c: np.array(outcomes[c].values.tolist(), dtype=TEXT) for c in dims},
    )


def to_judge(tree: xr.DataTree, judged: xr.Dataset, spec: JudgeSpec, retry: bool = False) -> np.ndarray:
    """Which answers are there, are this judge's to judge and are not judged, boolean [condition, prompt]. One that failed
    before counts only with `retry`."""
    outcomes = tree["/outcomes"].to_dataset()
    asked = outcomes["done"].transpose("condition", "prompt").values.copy()
    if spec.prompts != "all":
        harmful = tree["/prompts"].to_dataset()["harmful"].sel(prompt=outcomes["prompt"].values).values
        asked &= harmful == (spec.prompts == "harmful")
    failed = _texts(judged["reason"]) != ""
    return asked & ~judged["done"].values & (retry | ~failed)


def summary(judged: xr.Dataset) -> str:
    """How many judgements there are, and why others are missing."""
    reasons = np.where(judged["done"].values, "", _texts(judged["reason"]))
    which, counts = np.unique(reasons[reasons != ""], return_counts=True)
    worst = sorted(zip(counts.tolist(), which.tolist(), strict=True), reverse=True)
    failed = (
        f"{counts.sum()} missing" + "".join(f"; {n} x {reason}" for n, reason in worst[:3]) if worst else "none missing"
    )
    return f"{int(judged['done'].sum())} judged, {failed}"


def _texts(column: xr.DataArray) -> np.ndarray:
    """A text variable as fixed-width strings."""
    return np.array(column.values.tolist(), dtype=str)


def _judge_blocks(
    path: Path, group: str, tree: xr.DataTree, judged: xr.Dataset, pending: np.ndarray, judge: Judge, spec: JudgeSpec,
    block: int,
) -> None:  # fmt: skip
    """Judge block after block of prompts, in place in `judged`, and write each when all of it is judged."""
    outcomes = tree["/outcomes"].to_dataset().transpose("condition", "prompt", ...)
    prompts = tree["/prompts"].to_dataset().sel(prompt=outcomes["prompt"].values)
    with progress.bar(f"judged by {spec.name}", int(pending.sum())) as advance:
        for start in range(0, outcomes.sizes["prompt"], block):
            part = slice(start, start + block)
            where = list(zip(*np.nonzero(pending[:, part]), strict=True))
            if not where:
                continue
            texts, some = prompts.isel(prompt=part).load(), outcomes.isel(prompt=part).load()
            degenerate = spec.keep_degenerate & (some["label"].values == DEGENERATE)
            ask = [at for at in where if not degenerate[at]]
            made = judge.judge([_item(texts, some, c, p) for c, p in ask], advance)
            kept = [at for at in where if degenerate[at]]
            advance(len(kept))
            if made and not judged["done"].values.any() and not any(j.reached for j in made):
                raise GatingError(
                    f"judge {spec.name}: none of the first {len(made)} calls came through ({made[0].reason}); mend "
                    "the address or the server, then give the same command again."
                )
            for (c, p), j in [*zip(ask, made, strict=True), *((at, Judgement(DEGENERATE, reason=KEPT)) for at in kept)]:
                row = {"label": j.label, "score": j.score, "reason": j.reason, "done": j.label != MISSING}
                for name, value in row.items():
                    judged[name].values[c, start + p] = value
            store.write_rows(path, group, "prompt", start, judged.isel(prompt=part))


def _item(prompts: xr.Dataset, outcomes: xr.Dataset, c: int, p: int) -> Item:
    one = outcomes.isel(condition=c, prompt=p)
    ids = one["token_ids"].values
    about = prompts.isel(prompt=p)
    return Item(
        str(about["text"].item()),
        str(one["completion"].item()),
        bool(about["harmful"]),
        tuple(ids[ids >= 0].tolist()),
        float(one["nll"]),
    )


def _described(spec: JudgeSpec, fingerprint: str) -> dict[str, Any]:
    """The group's attributes. Neither a key nor the name of its variable is among them."""
    content = {k: v for k, v in asdict(spec).items() if k not in ("key_variable", "template_file")}
    return {
        "judge": spec.name, "kind": spec.kind, "id": spec.id or f"rule {labels.RULE_VERSION}",
        "revision": spec.revision or "none", "prompt_hash": spec.prompt_hash, "digest": spec.digest,
        "fingerprint": fingerprint, "paraphrase": spec.paraphrase, "prompts": spec.prompts,
        "spec": yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "status": "running",
        "created_at": store.now(),
    }  # fmt: skip


def _check_same(spec: JudgeSpec, attrs: Mapping[Any, Any]) -> None:
    if attrs.get("digest") != spec.digest:
        raise _other(spec, f"a judge of digest {attrs.get('digest')}", f"this one's is {spec.digest}")


def _other(spec: JudgeSpec, theirs: str, ours: str) -> GatingError:
    return GatingError(
        f"judgements/{spec.name} was made with {theirs} ({ours}); keep both by giving this one a name=... of its own, or "
        "say --force to judge again."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Judge runs' answers with another judge: python -m gating.rejudge RUN... judge=NAME|FILE [key=value ...]"""
    parser = argparse.ArgumentParser(prog="python -m gating.rejudge", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | judge=NAME,... | key=value", help="runs, judges, judge's keys"
    )
    parser.add_argument("--force", action="store_true", help="judge again what was judged")
    parser.add_argument("--retry", action="store_true", help="ask once more for judgements that failed")
    parser.add_argument("--agreement", action="store_true", help="print how far each judge agrees with the run's rule")
    args = parser.parse_args(argv)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 140)
    settings = [w for w in args.words if re.match(r"[a-z_][a-z_.]*=", w) and not Path(w).exists()]
    runs = [w for w in args.words if w not in settings]
    names = [n for s in settings if s.startswith("judge=") for n in s.removeprefix("judge=").split(",")]
    overrides = [s for s in settings if not s.startswith("judge=")]
    try:
        if not runs:
            raise GatingError("no run given: name a run's folder, then judge=NAME.")
        if not names and (overrides or not args.agreement):
            raise GatingError(
                f"judge has no value: say judge=NAME ({', '.join(specs.available())}) or judge=FILE.yaml."
            )
        wanted = [specs.load(n, overrides) for n in names]
        for run in runs:
            for spec in wanted:
                if spec.paraphrase:
                    console.print(_paraphrased(spec), style="yellow", markup=False, soft_wrap=True)
                how = rejudge(run, spec, args.force, args.retry)
                console.print(f"{spec.name}: {how}", markup=False, soft_wrap=True, highlight=False)
            if args.agreement:
                console.print(agreement.table(store.open_run(run), [s.name for s in wanted] or None))
            print(f"store: {store.locate(run)}", flush=True)
    except (GatingError, ModuleNotFoundError, OSError, RuntimeError) as e:
        console.print(f"error: {cli.explain(e)}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted: finished blocks are kept; the same command goes on", markup=False, soft_wrap=True)
        sys.exit(130)


def _paraphrased(spec: JudgeSpec) -> str:
    return (
        f"warning: judge {spec.name}: the question is put in our words, not in those that {spec.id} was trained on, so its "
        "published accuracy does not carry over; for that say template_file=FILE with the published template in it."
    )


if __name__ == "__main__":
    main()
