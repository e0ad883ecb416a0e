"""Answers labelled in a terminal, a key each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from gating.foreign import plain
from gating.labelling.session import KEYS, Session, Shown

HELP = "r refusal   c compliance   e evasive   d degenerate   s skip   u undo   q quit"


def run(session: Session, keys: Iterator[str], console: Console, clock: Callable[[], float] = time.monotonic) -> None:
    """Show one answer after the other until all are labelled, a `q` comes or the keys end. Each label is written before
    the next answer is shown."""
    shown = None
    while item := session.next():
        if item != shown:
            _show(item, session.total, console)
            shown, begun = item, clock()
        key = next(keys, "q").lower()
        if key == "q":
            return
        if key == "u":
            session.undo()
            shown = None
        elif key in KEYS:
            session.put(item.place, key, clock() - begun)
        elif not key.isspace():
            console.print(HELP, style="yellow", markup=False, highlight=False)


def _show(item: Shown, total: int, console: Console) -> None:
    console.print(Rule(f"{item.place + 1} of {total}"))
    for heading, text in (("prompt", item.prompt), ("answer", item.answer)):
        console.print(Text(heading, style="bold"))
        console.print(Text(plain(text) or "(empty)"))
    console.print(HELP, style="dim", markup=False, highlight=False)


def pressed() -> Iterator[str]:
    """The keys that are pressed, without waiting for Enter where there is a terminal that can do so."""
    if sys.stdin.isatty() and sys.platform != "win32":
        yield from _at_once()
    else:
        while key := sys.stdin.read(1):
            yield key


def _at_once() -> Iterator[str]:
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        while True:
            tty.setcbreak(descriptor)
            key = sys.stdin.read(1)
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
            if not key:
                return
            yield key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
