"""What a training run tells while it runs, and what it is told by signals."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .job import Job, Position

log = logging.getLogger(__name__)

Watch = Callable[[dict[str, Any]], None]


class Journal:
    """The log of a run: OUT.jsonl, TensorBoard where it is installed, and whoever watches. Only rank 0 writes."""

    def __init__(self, job: Job, watch: Watch | None) -> None:
        self.job, self.watch = job, watch if job.group.is_first else None
        self.path = Path(f"{job.run.out}.jsonl")
        self.board = tensorboard(f"{job.run.out}.tensorboard") if job.group.is_first else None

    def restart(self, history: list[dict[str, Any]]) -> None:
        """Write the epochs that are done; what an interrupted epoch logged is gone."""
        if self.job.group.is_first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(record) + "\n" for record in history))

    def step(self, position: Position, images_per_s: float) -> None:
        """Tell who watches how far an epoch has come."""
        if self.watch:
            facts = {"epoch": position.epoch, "step": position.step, "steps": self.job.steps}
            self.watch(facts | {"epochs": self.job.run.epochs, "images_per_s": images_per_s})

    def epoch(self, record: dict[str, Any]) -> None:
        """Log a finished epoch."""
        if not self.job.group.is_first:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board:
            for name in record.keys() - {"epoch", "best"}:
                self.board.add_scalar(name, record[name], record["epoch"])
            self.board.flush()
        if self.watch:
            self.watch(record)


def tensorboard(folder: str) -> Any:
    """Return a TensorBoard writer, None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log: pip install 'skyclass[train]'")
        return None
    return SummaryWriter(folder)


@dataclass
class Asked:
    """What signals have asked for."""

    stop: bool = False
    checkpoint: bool = False


@contextmanager
def stop_signals() -> Iterator[Asked]:
    """Give what signals ask for: SIGINT and SIGTERM to stop after a checkpoint, SIGUSR1 for a checkpoint.

    A second SIGINT or SIGTERM ends the process at once. Outside the main thread signals are left alone.
    """
    asked = Asked()

    def stop(number: int, frame: object) -> None:
        asked.stop = True
        signal.signal(number, signal.default_int_handler)

    def checkpoint(number: int, frame: object) -> None:
        asked.checkpoint = True

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: checkpoint}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
