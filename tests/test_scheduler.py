"""Several pieces of work under way at once: one computes while the others wait, and nothing finished is lost."""

import threading
import time

import pytest

from gating.steering.scheduler import Stopped, Turn, each


def test_only_one_computes_at_a_time_and_others_do_while_it_waits():
    turn, computing, waiting, most = Turn(), [], [], [0]

    def work(item):
        computing.append(item)
        assert len(computing) == 1
        computing.remove(item)
        with turn.away():
            waiting.append(item)
            most[0] = max(most[0], len(waiting))
            time.sleep(0.05)
            waiting.remove(item)
        computing.append(item)
        assert len(computing) == 1
        computing.remove(item)
        return item * 2

    assert dict(each(work, range(6), 3, turn)) == {i: 2 * i for i in range(6)}
    assert most[0] == 3


def test_work_within_work_does_not_wait_for_itself():
    turn = Turn()

    def inner(x):
        with turn.away():
            time.sleep(0.01)
        return x

    def outer(x):
        return sum(v for _, v in each(inner, [x, x], 2, turn))

    assert dict(each(outer, [1, 2, 3], 2, turn)) == {1: 2, 2: 4, 3: 6}


def test_what_is_under_way_when_another_piece_fails_is_still_given():
    turn, given = Turn(), []

    def work(item):
        if item == 0:
            raise ValueError("zero")
        with turn.away():
            time.sleep(0.1)
        return item

    with pytest.raises(ValueError, match="zero"):
        for item, _ in each(work, [1, 0, 2, 3, 4, 5], 3, turn):
            given.append(item)
    assert 1 in given and 5 not in given


def test_an_interrupt_ends_all_waiting():
    turn, began = Turn(), time.monotonic()

    def work(item):
        with turn.away():
            turn.sleep(0.01 if item == 0 else 30)

    with pytest.raises(KeyboardInterrupt):
        for _ in each(work, [0, 1], 2, turn):
            raise KeyboardInterrupt
    assert turn.stop.is_set()
    for thread in threading.enumerate():
        if thread.name.startswith("gating"):
            thread.join(5)
    assert time.monotonic() - began < 5
    with pytest.raises(Stopped):
        turn.sleep(30)
