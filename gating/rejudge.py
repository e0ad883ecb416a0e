"""`python -m gating.rejudge RUN judge=NAME`: show a run's answers to another judge and keep its labels beside them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from gating import cli, store
from gating.errors import GatingError
from gating.judging import kinds
from gating.judging.spec import JudgeSpec
from gating.pipeline.judgements import rejudge
from gating.words import is_setting

__all__ = ["main", "rejudge"]


def main(argv: Sequence[str] | None = None) -> None:
    """Judge runs' answers with another judge: python -m gating.rejudge RUN... judge=NAME|FILE [key=value ...]"""
    parser = argparse.ArgumentParser(prog="python -m gating.rejudge", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | judge=NAME,... | key=value", help="runs, judges, judge's keys"
    )
    parser.add_argument("--force", action="store_true", help="judge again what was judged")
    parser.add_argument("--retry", action="store_true", help="ask once more for judgements that failed")
    parser.add_argument("--agreement", action="store_true", help="print how far each judge agrees with the run's own")
    args = parser.parse_intermixed_args(argv)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        runs, specs = _parsed(args.words, needs_judge=not args.agreement)
        for run in runs:
            _judge(run, specs, args.force, args.retry, console)
            if args.agreement:
                from gating.analysis import agreement  # half a second

                console.print(agreement.table(store.open_run(run), [s.name for s in specs] or None))
            print(f"store: {store.locate(run)}", flush=True)


def _parsed(words: Sequence[str], needs_judge: bool) -> tuple[list[str], list[JudgeSpec]]:
    """The runs and the judges that the command line names. Raises GatingError where either is left out."""
    settings = list(filter(is_setting, words))
    runs = [w for w in words if not is_setting(w)]
    names = [n for s in settings if s.startswith("judge=") for n in s.removeprefix("judge=").split(",")]
    overrides = [s for s in settings if not s.startswith("judge=")]
    if not runs:
        raise GatingError("no run given: name a run's folder, then judge=NAME.")
    if not names and (overrides or needs_judge):
        raise GatingError(f"judge has no value: say judge=NAME ({', '.join(kinds.available())}) or judge=FILE.yaml.")
    return runs, [kinds.load(name, overrides) for name in names]


def _judge(run: str, specs: Sequence[JudgeSpec], force: bool, retry: bool, console: Console) -> None:
    for spec in specs:
        if warning := spec.warning():
            console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        result = rejudge(run, spec, force, retry, cores=os.cpu_count() or 1)
        console.print(f"{spec.name}: {result}", markup=False, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
