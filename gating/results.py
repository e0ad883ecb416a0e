"""`python -m gating.results RUN...`: what runs show, as a document of tables; `--write .` makes docs/results.md,
docs/results.json and README's figures again."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from rich.console import Console

from gating import analysis, cli, store
from gating.errors import GatingError
from gating.reporting import facts, published
from gating.reporting.document import document
from gating.words import is_setting


def main(argv: Sequence[str] | None = None) -> None:
    """Print a document of results from runs' stores, or write the repository's pages of results anew."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN | NAME=RUN | judge=NAME",
        help="runs, named for the texts; whose labels to count",
    )
    parser.add_argument("--note", default="", help="a paragraph above the tables, such as what has changed since")
    parser.add_argument("--write", type=Path, metavar="ROOT", help="write docs/results.* and README.md below ROOT")
    args = parser.parse_intermixed_args(argv)
    with cli.spoken(Console(stderr=True)):
        runs = _opened(args.words)
        if args.write is None:
            print(document(list(runs.values()), args.note).rstrip())
        elif args.note:
            raise GatingError("--note with --write: the note is docs/templates/results.md; write it there.")
        else:
            published.write(args.write, runs)


def _opened(words: Sequence[str]) -> dict[str, xr.DataTree]:
    """The runs, each by its given name, else by model and experiment; with the labels of the judge that is named.
    Raises GatingError where two have one name."""
    judges = [w.removeprefix("judge=") for w in words if w.startswith("judge=") and is_setting(w)]
    if len(judges) > 1:
        raise GatingError("judge has two values: write judge=NAME once.")
    named = [w for w in words if w != f"judge={judges[0]}"] if judges else words
    if not named:
        raise GatingError("no run given: name a run's folder.")
    out: dict[str, xr.DataTree] = {}
    for word in named:
        given = None if Path(word).exists() else re.fullmatch(r"([\w.-]+)=(.+)", word)
        run = analysis.with_judge(store.open_run(given[2] if given else word), judges[0] if judges else None)
        name = given[1] if given else facts.run_name(run)
        if name in out:
            raise GatingError(f"two runs are called {name}; give one of them another name, NAME={word}.")
        out[name] = run
    return out


if __name__ == "__main__":
    main()
