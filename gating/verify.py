"""`python -m gating.verify RUN...`: read every file of runs' stores and say which are not as they were written."""

from __future__ import annotations

import argparse
import sys

from gating import store
from gating.errors import GatingError


def main() -> None:
    """Read every file of runs' stores; exit code 1 where one is missing or not as it was written, each on a line."""
    parser = argparse.ArgumentParser(prog="python -m gating.verify", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    wrong = 0
    for run in parser.parse_args().run:
        try:
            path = store.locate(run)
            found = store.problems(path)
        except GatingError as e:
            found = [str(e)]
        wrong += len(found)
        print("\n".join(f"error: {line}" for line in found) or f"ok: {path}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
