"""The time limit of the study: trainings stop at a checkpoint, other work ends, and the same call finishes both."""

from __future__ import annotations

import signal
import time

import click
import pytest

from benchmarks.paper.limit import Duration, TimeLimit, interrupted_at_end, stop_training
from skyclass.errors import Interrupted

PASSED = TimeLimit(60, time.time() - 3600)


@pytest.mark.parametrize(("text", "seconds"), [("9min", 540), ("90s", 90), ("1.5h", 5400)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["9", "min", "-1s", "0min", "9 min", "inf"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 9min"):
        Duration().convert(text, None, None)


def test_what_may_start() -> None:
    assert TimeLimit().allows(True) and TimeLimit().allows(False)
    assert not PASSED.allows(True) and PASSED.is_over and not TimeLimit().is_over
    most_is_over = TimeLimit(1000, time.time() - 600)
    assert most_is_over.allows(True) and not most_is_over.allows(False)


def test_a_training_is_asked_once_and_only_within_a_step() -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        late, early = stop_training(PASSED), stop_training(TimeLimit())
        late({"epoch": 1, "loss": 0.5})
        assert not signals
        for _ in range(3):
            late({"step": 1})
            early({"step": 1})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]


def test_other_work_is_interrupted_and_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted, match="time limit"), interrupted_at_end(PASSED):
        time.sleep(30)
    assert signal.getsignal(signal.SIGALRM) == before
    with interrupted_at_end(TimeLimit(3600)):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
