"""`python -m gating.view [RUN | DIR]...`: a page in which people read answers side by side across conditions."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gating import cli, store, swap
from gating.errors import GatingError, naming
from gating.reporting import viewer

MOST = 200_000  # answers of a page: more would not open in a moment


def page(words: Sequence[str], out: str | None = None, full_text: bool = False) -> Path:
    """Write the page of runs, or of every run of folders; its path. Raises GatingError for too many answers, and for a
    file that is there and is no such page."""
    runs = [run for word in words for run in _runs(word)]
    trees = {run.parent.name: store.open_run(run) for run in runs}
    answers = sum(tree["outcomes"].sizes["condition"] * tree["outcomes"].sizes["prompt"] for tree in trees.values())
    if answers > MOST:
        raise GatingError(f"these {len(trees)} runs hold {answers:,} answers, and a page {MOST:,}: name fewer runs.")
    place = Path(out) if out else (runs[0].parent if len(runs) == 1 else Path(words[0])) / "view.html"
    if out and place.exists() and "<title>gating: answers</title>" not in place.read_text("utf-8", "replace")[:2000]:
        raise GatingError(f"--out={place} exists and is not such a page; give another place.")
    with naming(place):
        swap.write(place, viewer.rendered(trees, full_text))
    return place


def _runs(word: str) -> list[Path]:
    path = Path(word)
    return (
        [store.locate(word)]
        if "://" in word or path.name == store.STORE or (path / store.STORE).is_dir()
        else store.find_runs(path)
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write (and open) a page of answers: prompts, conditions side by side, labels of every judge, filter, search."""
    parser = argparse.ArgumentParser(prog="python -m gating.view", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="*", default=["runs"], metavar="RUN | DIR", help="runs, or folders of runs (runs)"
    )
    parser.add_argument("--out", help="the file to write; else view.html beside the runs")
    parser.add_argument("--full-text", action="store_true", help="whole prompts and answers")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    args = parser.parse_args(argv)
    with cli.spoken(Console()):
        place = page(args.runs, args.out, args.full_text)
        if args.open:
            webbrowser.open(place.resolve().as_uri())
        print(f"page: {place}", flush=True)


if __name__ == "__main__":
    main()
