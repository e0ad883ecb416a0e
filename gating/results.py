"""`python -m gating.results RUN... > docs/results.md`: what runs show, as a document of tables."""

from __future__ import annotations

import argparse

from rich.console import Console

from gating import cli, store
from gating.reporting.document import document


def main() -> None:
    """Print a document of results from runs' stores."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    parser.add_argument("--note", default="", help="a paragraph above the tables, such as what has changed since")
    args = parser.parse_args()
    with cli.spoken(Console(stderr=True)):
        print(document([store.open_run(path) for path in args.run], args.note).rstrip())


if __name__ == "__main__":
    main()
