"""`python -m gating.results RUN... > docs/results.md`: what runs show, as a document of tables."""

from __future__ import annotations

import argparse

from rich.console import Console

from gating import analysis, cli, store, words
from gating.reporting.document import document


def main() -> None:
    """Print a document of results from runs' stores."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument("words", nargs="+", metavar="RUN | judge=NAME", help="runs, and whose labels to count")
    parser.add_argument("--note", default="", help="a paragraph above the tables, such as what has changed since")
    args = parser.parse_args()
    with cli.spoken(Console(stderr=True)):
        runs, values = words.parsed(args.words, ("judge",))
        trees = [analysis.with_judge(store.open_run(path), values.get("judge")) for path in runs]
        print(document(trees, args.note).rstrip())


if __name__ == "__main__":
    main()
