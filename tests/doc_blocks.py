"""The code blocks of README.md, CONTRIBUTING.md and docs/, and the command lines in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Block:
    """why: the reason that stands above a block that is not run; empty for others."""

    page: str
    line: int
    kind: str
    text: str
    why: str

    @property
    def commands(self) -> list[str]:
        """The command lines, without comments."""
        lines = (COMMENT.sub("", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(path.name, text.count("\n", 0, m.start("text")), m["kind"], m["text"], m["why"] or "")
        for m in FENCE.finditer(text)
    ]


def indented(text: str) -> list[str]:
    """Lines of code that stand outside fences, four spaces in after an empty line: nothing would run them."""
    lines = FENCE.sub("", text).splitlines()
    pairs = zip(["", *lines], lines, strict=False)
    return [line for before, line in pairs if re.match(r" {4}\S", line) and not before.strip()]


ALL = [block for path in PAGES for block in blocks(path)]
COMMANDS = [(block, line) for block in ALL if block.kind == "bash" and not block.why for line in block.commands]
