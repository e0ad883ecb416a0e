"""One progress bar for everything that can take over five seconds: done of total, rate, time left; on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)
Advance = Callable[[int], None]
LOG_EVERY = 60.0  # seconds between the lines of a log


class RateColumn(ProgressColumn):
    """Items a second, over all of this process."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "-/s")


@contextmanager
def bar(what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Advance]:
    """Show `what` while the body runs; the body calls what it is given with the number of items just done. `done` items
    of an earlier run count as progress and not in the rate.

    Where stderr is not a terminal (a batch job's log), the same line is written once a minute, and at the end.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), RateColumn(),
        TextColumn("time left"), TimeRemainingColumn(),
    )  # fmt: skip
    # rich forgets what is older than its window, and a job that advances once a minute would never have a rate
    with Progress(*columns, console=console, speed_estimate_period=math.inf) as progress:
        task = progress.add_task(what, total=total, completed=done)
        progress.advance(task, 0)  # the clock of the rate starts here
        last_line = time.monotonic()

        def advance(n: int) -> None:
            nonlocal last_line
            progress.advance(task, n)
            if not console.is_terminal and time.monotonic() - last_line >= LOG_EVERY:
                last_line = time.monotonic()
                console.print(progress.get_renderable())

        yield advance
