"""Faults inside workers: each is a plugin that wraps a stage of the line."""

from __future__ import annotations

import os
import signal
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
        from skyclass import stages

        work = getattr(stages, self.stage)

        def trapped(line, strip):
            what = getattr(strip, "strip", strip)
            if self.coadd_id in ("any", what.tile.coadd_id):
                self.spring(what)
            return work(line, strip)

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
