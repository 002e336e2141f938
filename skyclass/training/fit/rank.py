"""One rank of a launched training, a process of its own: `python -m skyclass.training.fit.rank REPORT_FD TRAIN.toml`.

It trains as `skyclass train` does, and reports to its node.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from .node import HEARTBEAT_S, Report

STEP_S = 0.5
"""Least time between two reports of steps: a small network takes thousands of steps a second."""
PR_SET_PDEATHSIG = 1


def main(report_fd: int, train_toml: str) -> int:
    """Train as a file describes, report to the node, and return the exit code of the rank."""
    report = reporter(report_fd)
    start_heartbeat(report)
    sys.excepthook = crash_hook(report)
    from ...errors import PeerLost, SkyclassError
    from ...settings import read_toml  # torch takes long to import, and the heartbeat comes first
    from .recipe import train_config
    from .train import train

    try:
        train(train_config(read_toml(train_toml)), progress_reporter(report))
    except SkyclassError as error:
        report({"error": str(error), "lost_peer": isinstance(error, PeerLost)})
        return error.exit_code
    return 0


def reporter(fd: int) -> Callable[[Report], None]:
    """Return a function that writes a report to the node. Threads may share it."""
    pipe, lock = os.fdopen(fd, "w"), threading.Lock()

    def report(record: Report) -> None:
        with lock:
            pipe.write(json.dumps(record) + "\n")
            pipe.flush()

    return report


def start_heartbeat(report: Callable[[Report], None]) -> None:
    """Report every `HEARTBEAT_S` from a thread. Kill this process once the process that reads the reports has ended."""
    if sys.platform == "linux":  # the kernel kills a rank that is stopped, or whose heartbeat thread never runs
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def beat() -> None:
        try:
            while True:
                report({})
                time.sleep(HEARTBEAT_S)
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=beat, daemon=True).start()


def crash_hook(
    report: Callable[[Report], None],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return an exception hook that reports the error in one line, prints the traceback and ends the process."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report({"error": f"{kind.__name__}: {error}", "lost_peer": False})
        sys.__excepthook__(kind, error, trace)
        exit_now(1)

    return hook


def progress_reporter(report: Callable[[Report], None]) -> Callable[[Report], None]:
    """Return the `progress` of a training that reports every epoch, and steps at most once in `STEP_S`."""
    last = -math.inf

    def progress(event: Report) -> None:
        nonlocal last
        if "step" in event and time.monotonic() - last < STEP_S:
            return
        last = time.monotonic()
        report({"progress": event})

    return progress


def exit_now(code: int) -> None:
    """End this process at once: native threads of torch may still run, and would abort an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_now(main(int(sys.argv[1]), sys.argv[2]))
