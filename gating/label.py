"""`python -m gating.label RUN`: read a blinded sample of a run's answers, label them, and correct its rates by it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from gating import analysis, cli, store, words
from gating.errors import GatingError
from gating.labelling import exchange, terminal
from gating.labelling.page import Page
from gating.labelling.session import BY, Asked, Session, names
from gating.reporting import person

WORDS = ("n", "seed", "by", "conditions", "port", "judge")
MOST = 10**6


def main(argv: Sequence[str] | None = None) -> None:
    """Label a run's answers: python -m gating.label RUN [n=100] [seed=0] [by=NAME] [conditions=A,B]"""
    parser = argparse.ArgumentParser(prog="python -m gating.label", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | key=value", help=f"a run, and {', '.join(f'{w}=...' for w in WORDS)}"
    )
    parser.add_argument("--page", action="store_true", help="on a page of this machine's, in your browser")
    parser.add_argument("--agreement", action="store_true", help="print how the judge errs, and rates corrected by it")
    parser.add_argument("--import", dest="file", metavar="FILE", help="take labels from a file of JSON lines")
    parser.add_argument(
        "--drawn-at-random", action="store_true", help="the file is a fair sample within each condition"
    )
    parser.add_argument("--export", dest="to", metavar="FILE", help="write the labels to a new file")
    parser.add_argument("--force", action="store_true", help="begin anew, without the labels that BY has given")
    args = parser.parse_intermixed_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        runs, values = words.parsed(args.words, WORDS)
        if len(runs) > 1:
            raise GatingError(f"{len(runs)} runs given: one is labelled at a time.")
        _do(runs[0], values, args, console)
        print(f"store: {store.locate(runs[0])}", flush=True)


def _do(run: str, values: dict[str, str], args: argparse.Namespace, console: Console) -> None:
    by = values.get("by", BY)
    if args.file is not None:
        with store.writer(store.locate(run).parent):
            count = exchange.load(run, by, args.file, args.drawn_at_random, args.force)
        console.print(f"labels/{by}: {count} imported", markup=False, highlight=False)
    elif not (args.agreement or args.to):
        _read(run, by, values, args, console)
    if args.to is not None:
        tree = store.open_run(run)
        count = exchange.save(tree, analysis.reader_of(tree, by), args.to)
        console.print(f"{args.to}: {count} labels of {by}", markup=False, highlight=False, soft_wrap=True)
    if args.agreement:
        tree = store.open_run(run)
        for table in person.tables(analysis.with_judge(tree, values.get("judge")), values.get("by")):
            console.print(table)


def _read(run: str, by: str, values: dict[str, str], args: argparse.Namespace, console: Console) -> None:
    """Have the sample read, in the terminal or on a page."""
    if "judge" in values:
        raise GatingError("judge=... goes with --agreement: what is to be labelled is the same whatever a judge said.")
    if "port" in values and not args.page:
        raise GatingError("port=... goes with --page.")
    port = words.number(values, "port", 1, 65535) or 0
    asked = Asked(
        words.number(values, "n", 1, MOST), words.number(values, "seed", 0, MOST), names(values.get("conditions"))
    )
    with store.writer(store.locate(run).parent):
        session = Session(run, by, asked, args.force)
        if session.next() is not None and args.page:
            page = Page(session, port)
            print(f"page: {page.url} (Ctrl-C ends it; what is labelled is kept)", flush=True)
            page.serve()
        elif session.next() is not None:
            terminal.run(session, terminal.pressed(), console)
        left = session.total - session.read
        rest = f"{left} left: the same command goes on" if left else "all of the sample; a larger n draws more"
        console.print(f"labels/{by}: {session.read} read, {rest}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
