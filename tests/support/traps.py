"""Faults inside workers: each is a plugin that wraps a stage of the pipeline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin


class Trap(WorkerPlugin):
    """Does something to a worker that begins a stage of one tile: ends its process, hangs, takes memory."""

    def __init__(self, coadd_id: str, spring: Callable[[Any], None], stage: str = "cut_strip") -> None:
        self.coadd_id, self.spring, self.stage = coadd_id, spring, stage
        self.name = f"trap-{coadd_id}-{stage}"

    def setup(self, worker: Any) -> None:
        from skyclass.run import stages

        work = getattr(stages, self.stage)

        def trapped(context, strip):
            what = getattr(strip, "strip", strip)
            if self.coadd_id in ("any", what.tile.coadd_id):
                self.spring(what)
            return work(context, strip)

        setattr(stages, self.stage, trapped)


def die(strip: Any) -> None:
    """End the process as a crash in C code does."""
    os._exit(1)


class DieOnce:
    """Kills the process the first time that anybody comes here; a file remembers."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __call__(self, strip: Any) -> None:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class Hungry:
    """Takes memory until the process is ended, for strips of more than so many sources."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, strip: Any) -> None:
        if strip.stop - strip.start <= self.most:
            return
        taken = []
        for _ in range(400):
            taken.append(b"x" * 20_000_000)
            time.sleep(0.1)


class Linger:
    """Makes each strip last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, strip: Any) -> None:
        time.sleep(self.seconds)


def doubled(i: int, mark: str) -> int:
    """Return 2 i; of 3 only where the mark of an earlier visit is."""
    if i == 3 and not Path(mark).exists():
        if Path(mark).parent.exists():
            Path(mark).touch()
        time.sleep(3600)
    return 2 * i
