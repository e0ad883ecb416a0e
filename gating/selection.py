"""`python -m gating.selection RUN` after experiment=selection: which refusal direction to use, by Arditi's rule."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from gating import cli, settings, store
from gating.analysis.candidates import LATEST, MAX_KL, candidates
from gating.errors import naming
from gating.reporting.tables import candidates_table


def main() -> None:
    """Print the candidates of a selection run and write them to selection.csv in its folder."""
    parser = argparse.ArgumentParser(prog="python -m gating.selection", description=main.__doc__)
    parser.add_argument("run", help="a run's folder or its store.zarr")
    parser.add_argument("--max-kl", type=float, default=MAX_KL)
    parser.add_argument("--latest", type=float, default=LATEST, help="blocks from this relative depth on are rejected")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        settings.check_number(args.max_kl, "--max-kl", settings.Range(0, 1e6))
        settings.check_number(args.latest, "--latest", settings.Range(0, 1))
        ranked = candidates(store.open_run(args.run), args.max_kl, args.latest)
        console.print(candidates_table(ranked))
        path = Path(store.locate(args.run)).parent / "selection.csv"
        with naming(path):
            ranked.to_dataframe().reset_index().to_csv(path, index=False)
        print(f"table: {path}")


if __name__ == "__main__":
    main()
