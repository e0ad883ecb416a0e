"""`python -m gating.report RUN...`: write each run's page again, print its tables and its claims' verdicts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import xarray as xr
from rich.console import Console

from gating import analysis, cli, store, words
from gating.analysis import claims
from gating.analysis.claims import Family
from gating.reporting import page, person, tables
from gating.reporting.rows import own_claims, registered, verdict_rows


def _print_verdicts(
    console: Console, trees: Mapping[str, xr.DataTree], families: Mapping[str, Family | None], post_hoc: bool
) -> None:
    """The verdicts on each run's family, p adjusted over all of them. Keys of both: the runs' paths."""
    given = {path: family for path, family in families.items() if family}
    decided = claims.evaluate_many({path: trees[path] for path in given}, given)
    sections = [(path, verdict_rows(decided[path], family)) for path, family in given.items()]
    if sections:
        console.print(tables.verdict_table(sections, _title(list(given.values()), post_hoc), console.width))
        for words in dict.fromkeys(registered(each) for each in decided.values()):
            print(words)


def _title(families: Sequence[Family], post_hoc: bool) -> str:
    names = ", ".join(dict.fromkeys(family["family"] for family in families))
    many = f" (p adjusted over all {len(families)} runs)" if len(families) > 1 else ""
    return f"{names}{', post hoc: named after the run' if post_hoc else ''}{many}"


def main() -> None:
    """Write each run's page again, print its tables and its claims' verdicts."""
    parser = argparse.ArgumentParser(prog="python -m gating.report", description=main.__doc__)
    parser.add_argument("words", nargs="+", metavar="RUN | judge=NAME | pictures=NAME,...",
                        help="runs, whose labels to count, and which pictures to draw (all: every one)")  # fmt: skip
    parser.add_argument(
        "--claims", help="decide these too (a name in conf/claims or a file), marked as named after the run"
    )
    parser.add_argument("--full-text", action="store_true", help="show whole prompts and answers")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        post_hoc = claims.load(args.claims) if args.claims is not None else None
        runs, values = words.parsed(args.words, ("judge", "pictures"))
        judge = values.get("judge")
        trees = {path: analysis.with_judge(store.open_run(path), judge) for path in runs}
        for path, tree in trees.items():
            read = person.tables(tree) if person.held(tree) else []
            for table in (*read, tables.table(tree, console.width), *tables.mediation_tables(tree)):
                console.print(table)
            folder = store.locate(path).parent / (f"by-{judge.replace('/', '-')}" if judge else "")
            pictures = [name for name in values.get("pictures", "").split(",") if name]
            print(f"report: {page.write(tree, folder, args.full_text, post_hoc, pictures)}")
        _print_verdicts(console, trees, {path: own_claims(tree) for path, tree in trees.items()}, post_hoc=False)
        _print_verdicts(console, trees, dict.fromkeys(trees, post_hoc), post_hoc=True)


if __name__ == "__main__":
    main()
