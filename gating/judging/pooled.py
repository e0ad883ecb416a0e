"""A judge that reads text alone, in several processes: for so many answers that one core would take a minute."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from gating.errors import GatingError
from gating.judging import Item, Judge, Judgement
from gating.judging.degenerate import Limits
from gating.judging.spec import JudgeSpec

FROM = 5000  # answers; fewer are judged before other processes have begun
PIECE = 250  # answers that a process is given at a time


@contextmanager
def over_cores(judge: Judge, spec: JudgeSpec, limits: Limits, answers: int, cores: int) -> Iterator[Judge]:
    """`judge` itself, or, where it reads text alone and has many answers to read, one that shares them out over
    `cores` processes. Judgements and their order are the same."""
    if not spec.TEXT_ALONE or answers <= FROM or cores < 2:
        yield judge
        return
    # spawned: a fork would copy the locks of the threads that read and write stores
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, initializer=_begin, initargs=(spec, limits)) as pool:
        yield Pooled(judge.fingerprint, pool)


class Pooled:
    """A judge whose answers are judged by a pool of processes."""

    def __init__(self, fingerprint: str, pool: ProcessPoolExecutor) -> None:
        self.fingerprint, self.pool = fingerprint, pool

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        made: list[Judgement] = []
        try:
            for judged in self.pool.map(_judge, [items[i : i + PIECE] for i in range(0, len(items), PIECE)]):
                made += judged
                advance(len(judged))
        except BrokenProcessPool:
            raise GatingError(
                "a process that judges was killed, perhaps for want of memory; free some and give the same command "
                "again: what is finished is kept."
            ) from None
        return made


_own: list[Judge] = []  # in a process of the pool: its judge


def _begin(spec: JudgeSpec, limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says that it was interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own[:] = [spec.build(limits)]


def _end_with_parent() -> None:
    """Where the first process was killed, nobody tells the others to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _judge(items: Sequence[Item]) -> list[Judgement]:
    return _own[0].judge(items, lambda n: None)
