"""`python -m gating.selection RUN` after experiment=selection: which refusal direction to use, by Arditi's rule."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from gating import store
from gating.analysis.candidates import LATEST, MAX_KL, candidates
from gating.errors import GatingError
from gating.reporting.tables import candidates_table


def main() -> None:
    """Print the candidates of a selection run and write them to selection.csv in its folder."""
    parser = argparse.ArgumentParser(prog="python -m gating.selection", description=main.__doc__)
    parser.add_argument("run", help="a run's folder or its store.zarr")
    parser.add_argument("--max-kl", type=float, default=MAX_KL)
    parser.add_argument("--latest", type=float, default=LATEST, help="blocks from this relative depth on are rejected")
    args = parser.parse_args()
    try:
        ranked = candidates(store.open_run(args.run), args.max_kl, args.latest)
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)
    Console(width=None if sys.stdout.isatty() else 140).print(candidates_table(ranked))
    path = Path(store.locate(args.run)).parent / "selection.csv"
    ranked.to_dataframe().reset_index().to_csv(path, index=False)
    print(f"table: {path}")


if __name__ == "__main__":
    main()
