"""The time limit of a call of the study: trainings stop at a checkpoint in time, and the same call resumes them."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from skyclass.errors import Interrupted
from skyclass.training.progress import Progress

REPORT_SHARE = 1 / 6
"""Part of the limit that is kept for the tables and figures."""
GRACE_SHARE = 1 / 18
"""Part of the limit after the end of the work in which trainings write their checkpoints."""
LAST_SHARE = 1 / 27
"""Part of the limit in which no figure is drawn any more."""
LONG_SHARE = 1 / 3
"""Part of the limit that must be left to start work without checkpoints."""
SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class TimeLimit:
    """The time that a call may take; `started` is in seconds of Unix time, so that all processes agree on it."""

    seconds: float = math.inf
    started: float = field(default_factory=time.time)

    @property
    def end(self) -> float:
        """Unix time at which trainings stop and nothing new starts."""
        return self.started + self.seconds * (1 - REPORT_SHARE)

    @property
    def is_over(self) -> bool:
        """True when no time is left for another figure."""
        return time.time() >= self.started + self.seconds * (1 - LAST_SHARE)

    def allows(self, has_checkpoints: bool) -> bool:
        """Return whether there is time to start an experiment, with checkpoints or without."""
        needed = 0.0 if has_checkpoints or math.isinf(self.seconds) else self.seconds * LONG_SHARE
        return self.end - time.time() > needed


class Duration(click.ParamType):  # type: ignore[type-arg]
    """An option such as 9min, 90s or 2h, as a number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", str(value))
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a duration: write a number with s, min or h, such as 9min", param, ctx)
        return float(found[1]) * SECONDS[found[2]]


def stop_training(limit: TimeLimit) -> Progress:
    """Return the progress function of a training that requests its stop, once, when the limit has ended.

    It raises the signal that also stops a training from outside, and only where a training handles it: in a step.
    """
    requested = False

    def progress(event: dict[str, Any]) -> None:
        nonlocal requested
        if not requested and "step" in event and time.time() >= limit.end:
            requested = True
            signal.raise_signal(signal.SIGTERM)

    return progress


@contextmanager
def interrupted_at_end(limit: TimeLimit) -> Iterator[None]:
    """Raise `Interrupted` in the block some seconds after the end of the limit: for work without checkpoints.

    Only the main thread of a process can do that.
    """
    if math.isinf(limit.seconds):
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted("stopped at the time limit, between two checkpoints")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, limit.end + limit.seconds * GRACE_SHARE - time.time()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
