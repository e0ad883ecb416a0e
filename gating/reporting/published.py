"""The pages that show results to readers of the repository, made again from stores: docs/results.md, docs/results.json
and the marked part of README.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from gating import foreign, swap
from gating.errors import GatingError
from gating.reporting import facts
from gating.reporting.document import document
from gating.reporting.facts import Fact

BEGIN, END = "<!-- from docs/templates/readme.md, by python -m gating.results -->", "<!-- end of that -->"


def write(root: Path, runs: Mapping[str, xr.DataTree]) -> None:
    """Make the pages below `root` again. Nothing is written where a text names a figure that no run has.

    Raises GatingError for that, and for a page or a text that is not there.
    """
    known = facts.facts(runs)
    texts = templates(root)
    note, part = (facts.rendered(texts[name], known, f"docs/templates/{name}") for name in ("results.md", "readme.md"))
    readme = with_part(_read(root / "README.md"), part)
    page = document(list(runs.values()), note.strip()).rstrip() + "\n"
    swap.write(root / "docs/results.json", facts.to_json(known, list(texts.values())))
    swap.write(root / "docs/results.md", page)
    swap.write(root / "README.md", readme)


def templates(root: Path) -> dict[str, str]:
    """The hand-written texts, by their file's name."""
    return {name: _read(root / "docs/templates" / name) for name in ("results.md", "readme.md")}


def with_part(readme: str, part: str) -> str:
    """README with its marked part replaced. Raises GatingError where it has no such part."""
    before, begun, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise GatingError(f"README.md: the lines {BEGIN} and {END} are not there; put them around the figures.")
    return f"{before}{BEGIN}\n{part.strip()}\n{END}{after}"


def expected(known: Mapping[str, Fact], root: Path) -> tuple[str, str]:
    """What the kept figures make of the two texts: the note of docs/results.md, and README's part."""
    texts = templates(root)
    note, part = (facts.rendered(texts[name], known, f"docs/templates/{name}") for name in ("results.md", "readme.md"))
    return note.strip(), part.strip()


def _read(path: Path) -> str:
    return foreign.read_text(path, "results", 10 * foreign.MEGABYTE)
