"""Several pieces of work under way at once, of which one computes while the others wait for a server.

Threads that take turns: nothing here or in what they call needs to be thread-safe, because only the thread whose turn
it is runs, and it gives its turn away exactly while it waits (`Turn.away`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """The run was interrupted while this piece of work waited."""


class Turn:
    """Whose turn it is to compute, and whether everyone is to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self.stop = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Wait for something elsewhere: others compute meanwhile. Of no effect for a thread that has no turn."""
        if self._holder != threading.get_ident():
            yield
            return
        self._holder = None
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._holder = threading.get_ident()

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the run is interrupted. Raises Stopped then."""
        if self.stop.wait(seconds):
            raise Stopped


def each(do: Callable[[Item], Result], items: Sequence[Item], width: int, turn: Turn) -> Iterator[tuple[Item, Result]]:
    """(item, do(item)) as they come, up to `width` of them under way at once; in order where width is 1.

    After a failure nothing new begins, what is under way is waited for and given, and then the first failure is raised,
    so that finished work is never lost to it. An interrupt ends the waiting at once.
    """
    if width == 1:
        for item in items:
            yield item, do(item)
        return

    def in_turn(item: Item) -> Result:
        with turn.held():
            return do(item)

    rest, failure = iter(items), None
    pool = ThreadPoolExecutor(width, thread_name_prefix="gating")
    under_way: dict[Future[Result], Item] = {}
    try:
        while True:
            while failure is None and len(under_way) < width and (item := next(rest, _END)) is not _END:
                under_way[pool.submit(in_turn, item)] = item
            if not under_way:
                break
            with turn.away():
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                item = under_way.pop(future)
                if (error := future.exception()) is None:
                    yield item, future.result()
                else:
                    failure = failure or error
        if failure is not None:
            raise failure
    except BaseException:
        if under_way:
            turn.stop.set()
        raise
    finally:
        pool.shutdown(wait=not under_way, cancel_futures=True)


_END: Any = object()
