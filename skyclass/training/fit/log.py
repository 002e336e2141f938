"""The log of a training, and the signals that stop it."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..progress import Progress
from .job import Job, Position

log = logging.getLogger(__name__)


class TrainingLog:
    """The log of a training: OUT.jsonl, TensorBoard if it is installed, and `progress`. Only rank 0 writes."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.path = Path(f"{job.run.out}.jsonl")
        self.board = tensorboard(f"{job.run.out}.tensorboard") if job.group.is_first else None

    def start(self, position: Position) -> None:
        """Write the records of the finished epochs, and report the start. The log of an unfinished epoch is dropped."""
        if not self.job.group.is_first:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(record) + "\n" for record in position.history))
        run = self.job.run
        event = {name: getattr(run, name) for name in ("network", "start_from", "recipe", "epochs", "patience")}
        event |= {"inputs": list(run.inputs), "n_train": len(self.job.train_rows), "steps": self.job.steps}
        self.progress(event | {"finished_epochs": position.epoch - 1, "finished_steps": position.step})

    def step(self, position: Position, images_per_s: float) -> None:
        """Report the progress within an epoch."""
        if self.job.group.is_first:
            event = {"epoch": position.epoch, "step": position.step, "steps": self.job.steps}
            self.progress(event | {"epochs": self.job.run.epochs, "images_per_s": images_per_s})

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
        self.progress(record)


def tensorboard(folder: str) -> Any:
    """Return a TensorBoard writer, None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log: pip install 'skyclass[train]'")
        return None
    return SummaryWriter(folder)


@dataclass
class StopRequest:
    """The requests of signals: to stop after a checkpoint, or to write a checkpoint."""

    stop: bool = False
    checkpoint: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Let SIGINT and SIGTERM request a stop, and SIGUSR1 a checkpoint, during the block.

    A second SIGINT or SIGTERM ends the process at once. Outside the main thread no signal is handled.
    """
    request = StopRequest()

    def stop(number: int, frame: object) -> None:
        request.stop = True
        signal.signal(number, signal.default_int_handler)

    def checkpoint(number: int, frame: object) -> None:
        request.checkpoint = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: checkpoint}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
