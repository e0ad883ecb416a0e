"""`python -m gating.runs [DIR] [key=value ...]`: every run of a folder in a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from gating import cli
from gating.errors import GatingError
from gating.foreign import shown
from gating.reporting import listing
from gating.words import is_setting

SORTS = ("created", "model", "about", "status", "rate", "n", "run")


def main(argv: Sequence[str] | None = None) -> None:
    """Every run of a folder: model, what is steered, n, status, headline with its interval, verdicts, age."""
    parser = argparse.ArgumentParser(prog="python -m gating.runs", description=main.__doc__)
    parser.add_argument(
        "words", nargs="*", metavar="DIR | key=value", help="a folder of runs (runs); model=qwen, data.n=100"
    )
    parser.add_argument("--sort", choices=SORTS, default="created", help="the last of it first for created (default)")
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    args = parser.parse_intermixed_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        wanted = _wanted(list(filter(is_setting, args.words)))
        folders = [w for w in args.words if not is_setting(w)] or ["runs"]
        lines = [line for folder in folders for line in listing.listing(folder)]
        lines = listing.matching(lines, wanted)
        lines.sort(key=lambda each: _order(each, args.sort), reverse=args.sort == "created")
        if args.json:
            print(json.dumps(lines, indent=1, ensure_ascii=False))
        else:
            console.print(table(lines))


def _wanted(words: Sequence[str]) -> dict[str, str]:
    """The value asked of each column or setting. Raises GatingError for one that is named twice."""
    keys = [word.partition("=")[0] for word in words]
    if again := next((key for key in keys if keys.count(key) > 1), None):
        raise GatingError(f"{again} has two values: write {again}=VALUE once; VALUE* is all that begin so.")
    return dict(word.split("=", 1) for word in words)


def _order(line: listing.Line, key: str) -> tuple[bool, str | float]:
    value = line.get(key)
    return value is None, value if isinstance(value, int | float) else str(value or "")


def table(lines: Sequence[listing.Line]) -> Table:
    out = Table(title=f"{len(lines)} runs")
    for heading in ("run", "model", "steered", "n", "status", "refusal of harmful prompts", "verdicts", "age"):
        out.add_column(heading, overflow="fold" if heading == "run" else "ellipsis", no_wrap=heading != "run")
    for line in lines:
        n = f"{line['n']}+{line['n_harmless']}" if "n" in line else ""
        out.add_row(
            shown(line["run"], 60), shown(line.get("model", ""), 24), shown(line.get("about", ""), 24), n,
            _status(line), shown(line.get("headline", ""), 60), _verdicts(line), _age(str(line.get("created", ""))),
        )  # fmt: skip
    return out


def _status(line: listing.Line) -> str:
    if line["status"] == "complete":
        return "complete"
    return f"{line['done']} of {line['rows']}" if "rows" in line else shown(line["status"], 60)


def _verdicts(line: listing.Line) -> str:
    return ", ".join(f"{n} {word}" for word, n in line.get("verdicts", {}).items())


def _age(created: str) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return "now"


if __name__ == "__main__":
    main()
