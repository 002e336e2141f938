"""Signals that stop a command: Ctrl-C, SIGTERM of a batch system, SIGHUP of a closed terminal.

The first signal raises KeyboardInterrupt, so that leases are released and clusters are closed. The process ends at the
latest `GRACE_S` later, and at once on a second Ctrl-C. It also ends at once when the signal arrives during an import:
nothing is half done then, and libraries turn exceptions that are raised there into other ones.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Event
from types import FrameType
from typing import NoReturn

from .errors import Interrupted

GRACE_S = 30
"""Shorter than the time that batch systems leave between SIGTERM and SIGKILL."""

NOT_BEGUN = "stopped before any work began"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_stopped = Event()


def stop_on_signals() -> None:
    """Let the stop signals end this process in order; one that it was started to ignore (nohup) stays ignored."""
    for number in STOP_SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def was_stopped() -> bool:
    """Return whether a stop signal has arrived."""
    return _stopped.is_set()


def leave(message: str, exit_code: int = Interrupted.exit_code) -> NoReturn:
    """End the process now, with one message. Native threads of Arrow and torch would abort an orderly exit."""
    with suppress(OSError, ValueError):  # the terminal may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    with suppress(OSError):
        os.write(2, f"skyclass: {message}\n".encode())
    os._exit(exit_code)


def _stop(number: int, frame: FrameType | None) -> None:
    if is_importing(frame):
        leave(NOT_BEGUN)
    if _stopped.is_set():
        if number == signal.SIGINT:
            leave("stopped at once; committed work is kept: the same command resumes")
        return
    _stopped.set()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(GRACE_S)
    raise KeyboardInterrupt


def _give_up(number: int, frame: FrameType | None) -> None:
    leave(f"stopped; it did not end in order within {GRACE_S} s; committed work is kept: the same command resumes")


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
