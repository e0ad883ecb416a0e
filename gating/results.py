"""`python -m gating.results RUN...`: what runs show, as a document of tables; `--write .` makes docs/results.md,
docs/results.json and README's figures again."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from rich.console import Console

from gating import cli, store
from gating.errors import GatingError
from gating.reporting import facts, published
from gating.reporting.document import document


def main(argv: Sequence[str] | None = None) -> None:
    """Print a document of results from runs' stores, or write the repository's pages of results anew."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr; NAME=RUN names it for the texts")
    parser.add_argument("--note", default="", help="a paragraph above the tables, such as what has changed since")
    parser.add_argument("--write", type=Path, metavar="ROOT", help="write docs/results.* and README.md below ROOT")
    args = parser.parse_args(argv)
    with cli.spoken(Console(stderr=True)):
        runs = _opened(args.run)
        if args.write is None:
            print(document(list(runs.values()), args.note).rstrip())
        elif args.note:
            raise GatingError("--note with --write: the note is docs/templates/results.md; write it there.")
        else:
            published.write(args.write, runs)


def _opened(words: Sequence[str]) -> dict[str, xr.DataTree]:
    """The runs, each by its given name, else by model and experiment. Raises GatingError where two have one name."""
    out: dict[str, xr.DataTree] = {}
    for word in words:
        given = None if Path(word).exists() else re.fullmatch(r"([\w.-]+)=(.+)", word)
        run = store.open_run(given[2] if given else word)
        name = given[1] if given else facts.run_name(run)
        if name in out:
            raise GatingError(f"two runs are called {name}; give one of them another name, NAME={word}.")
        out[name] = run
    return out


if __name__ == "__main__":
    main()
