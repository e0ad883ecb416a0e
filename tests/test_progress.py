"""Progress: a batch job's log says how far it is, not only that it ended."""

import io
import re

import pytest
from rich.console import Console

from gating import progress


def lines(monkeypatch, every):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, width=100))
    monkeypatch.setattr(progress, "LOG_EVERY", every)
    with progress.bar("outcomes", 12, done=4) as advance:
        advance(3)
        advance(3)
        running = out.getvalue()
    return running.splitlines(), out.getvalue().splitlines()[-1]


def test_a_log_is_told_of_the_rate_and_the_time_left_while_the_work_goes_on(monkeypatch):
    running, last = lines(monkeypatch, every=0.0)
    assert [line.split("rows")[0].split()[-1] for line in running] == ["7/12", "10/12"]
    assert all("/s" in line and "time left" in line for line in running)
    assert "10/12 rows" in last


def test_a_log_is_not_flooded(monkeypatch):
    running, last = lines(monkeypatch, every=60.0)
    assert running == [] and "10/12 rows" in last


@pytest.mark.parametrize("seconds", [2.0, 90.0])
def test_a_log_tells_the_total_rate_however_far_its_advances_lie_apart(monkeypatch, seconds):
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "console", Console(file=out, width=100, get_time=lambda: now[0]))
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with progress.bar("outcomes", 1000, done=400) as advance:
        for _ in range(5):
            now[0] += seconds
            advance(90)
    rates = [float(r) for r in re.findall(r"(\S+)/s", out.getvalue())]
    assert len(rates) == 6 and set(rates) == {90 / seconds}, "an earlier run's 400 rows are not in the rate"
    left = re.findall(r"time left (\S+)", out.getvalue())
    assert left[0] == ("0:00:12" if seconds == 2 else "0:08:30")
