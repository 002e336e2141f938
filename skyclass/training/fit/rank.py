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

from .node import BEAT_S, Report

STEP_S = 0.5
"""Least time between two reports of steps: a small network takes thousands of steps a second."""
PR_SET_PDEATHSIG = 1


def main(report_fd: int, train_toml: str) -> int:
    """Return the exit code of a rank that trains what a file describes, and report what happens."""
    report = reporter(report_fd)
    report_life(report)
    sys.excepthook = crash_reporter(report)
    from ...errors import PeerLost, SkyclassError
    from ...settings import read_toml  # here, not above: torch takes long to import, and the signs of life come first
    from .recipe import train_config
    from .train import train

    try:
        train(train_config(read_toml(train_toml)), watcher(report))
    except SkyclassError as error:
        report({"error": str(error), "lost_peer": isinstance(error, PeerLost)})
        return error.exit_code
    return 0


def reporter(fd: int) -> Callable[[Report], None]:
    """Return a function that writes a report to the node; threads may share it."""
    pipe, lock = os.fdopen(fd, "w"), threading.Lock()

    def report(record: Report) -> None:
        with lock:
            pipe.write(json.dumps(record) + "\n")
            pipe.flush()

    return report


def report_life(report: Callable[[Report], None]) -> None:
    """Report a sign of life every `BEAT_S`; kill this process when the process that reads it has ended."""
    if sys.platform == "linux":  # the kernel kills a rank that is stopped, or that never gives the thread a turn
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def beat() -> None:
        try:
            while True:
                report({})
                time.sleep(BEAT_S)
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=beat, daemon=True).start()


def crash_reporter(
    report: Callable[[Report], None],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return an exception hook that reports the error in one line, prints the traceback and ends the process."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report({"error": f"{kind.__name__}: {error}", "lost_peer": False})
        sys.__excepthook__(kind, error, trace)
        end(1)

    return hook


def watcher(report: Callable[[Report], None]) -> Callable[[Report], None]:
    """Return a watcher of `train` that reports every epoch, and steps at most once in `STEP_S`."""
    last = -math.inf

    def watch(record: Report) -> None:
        nonlocal last
        if "step" in record and time.monotonic() - last < STEP_S:
            return
        last = time.monotonic()
        report({"watch": record})

    return watch


def end(code: int) -> None:
    """End this process at once: native threads of torch may still run, and abort an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(int(sys.argv[1]), sys.argv[2]))
