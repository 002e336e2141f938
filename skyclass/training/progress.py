"""Progress of labels, datasets and trainings: the events that these functions report, and what a terminal shows.

Long functions call their `progress` argument with one dict for each event. Their docstrings name the keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from ..run.progress import JsonLines
from ..text import counted, printable

Progress = Callable[[dict[str, Any]], None]


def no_progress(event: Mapping[str, Any]) -> None:
    """Ignore an event."""


def print_labels_progress(event: Mapping[str, Any]) -> None:
    """Print one line on standard error for each event of `labels.fetch_labels`."""
    _print(Console(stderr=True), f"{event['step']}: {event_text(event)}")


def event_text(event: Mapping[str, Any]) -> str:
    """Return an event as text. Of an event with `counts`, show the counts above zero."""
    counts = event.get("counts")
    if isinstance(counts, dict):
        return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    return ", ".join(f"{name} {value}" for name, value in event.items() if name != "step")


@contextmanager
def dataset_progress() -> Iterator[Progress]:
    """Give a reporter for `dataset.build_dataset`: its progress over sources, and a line for each bad tile.

    The progress is a bar on a terminal and JSON lines elsewhere, as that of `classify`.
    """
    console = Console(stderr=True)
    columns = (TextColumn("cutting"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} sources"))
    with ProgressBar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=0, visible=False)
        lines: JsonLines | None = None

        def show_cutting(event: Mapping[str, Any]) -> None:
            """Show an event with `done` and `total` (numbers of sources) and `faults` (texts)."""
            nonlocal lines
            bar.update(task, completed=event["done"], total=event["total"], visible=True)
            if not console.is_terminal:
                lines = lines or JsonLines(event["total"])
                lines.advance(event["done"] - lines.done)
            for fault in event["faults"]:
                _print(bar.console, f"left out: {fault}")

        yield show_cutting


class TrainingReporter:
    """A reporter for `train.train`: a line for the start and for each epoch, and on a terminal a bar over steps."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar, self.has_trained = bar, False
        self.start: TrainingStart | None = None
        self.task = bar.add_task("", total=None, visible=False, epoch=0, epochs=0, images_per_s=0.0)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show the start, a step or the record of a finished epoch; `train.train` names the keys of the events."""
        self.has_trained = True
        if "step" in event:
            done = (event["epoch"] - 1) * event["steps"] + event["step"]
            fields = {name: event[name] for name in ("epoch", "epochs", "images_per_s")}
            self.bar.update(self.task, visible=True, completed=done, total=event["epochs"] * event["steps"], **fields)
        elif "network" in event:
            self.start = TrainingStart(event, time.monotonic())
            _print(self.bar.console, start_text(event))
        else:
            _print(self.bar.console, epoch_text(event, self.start))


@contextmanager
def training_progress() -> Iterator[TrainingReporter]:
    """Give a reporter for `train.train`.

    Without an event in the block, the training was complete before: one line says that.
    """
    console = Console(stderr=True)
    epoch = TextColumn("epoch {task.fields[epoch]} of {task.fields[epochs]}")
    speed = TextColumn("{task.fields[images_per_s]:,.0f} images/s")
    columns = (epoch, BarColumn(), speed, TimeRemainingColumn())
    with ProgressBar(*columns, console=console, disable=not console.is_terminal) as bar:
        reporter = TrainingReporter(bar)
        yield reporter
        if not reporter.has_trained:
            _print(console, "already trained: an earlier run has finished this training, and nothing is left to do")


@dataclass(frozen=True)
class TrainingStart:
    """The first event of a training, and its time (s, monotonic)."""

    event: Mapping[str, Any]
    time_s: float

    def time_left_text(self, epoch: int) -> str:
        """Return the time that is left after an epoch, from the rate since the start; "" after the last epoch."""
        event = self.event
        n_trained = epoch - event["finished_epochs"] - event["finished_steps"] / event["steps"]
        n_left = event["epochs"] - epoch
        if n_left <= 0 or n_trained <= 0:
            return ""
        left_s = n_left * (time.monotonic() - self.time_s) / n_trained
        return f", {'at most ' if event['patience'] else ''}about {duration_text(left_s)} left"


def start_text(event: Mapping[str, Any]) -> str:
    """Return one line for the start of a training, or of its continuation."""
    noun = "image" if "images" in event["inputs"] else "source"
    if event["network"] == "forest":
        return f"fitting forest to {counted(event['n_train'], noun)}"
    text = (
        f"training {event['network']} from {event['start_from'] or 'random weights'}: "
        f"{counted(event['epochs'], 'epoch')}, {counted(event['n_train'], noun)}, recipe {event['recipe']}"
    )
    epoch, step = event["finished_epochs"], event["finished_steps"]
    if step:
        return f"{text}; going on in epoch {epoch + 1} after step {step} of {event['steps']}"
    return f"{text}; going on after epoch {epoch}" if epoch else text


def epoch_text(record: Mapping[str, Any], start: TrainingStart | None = None) -> str:
    """Return one line for a finished epoch, with the number of epochs and the time left if the start is known."""
    of_epochs = f" of {start.event['epochs']}" if start else ""
    return (
        f"epoch {record['epoch']}{of_epochs}: loss {record['loss']:.4f}, "
        f"validation loss {record['val_loss']:.4f}, "
        f"balanced accuracy {record['val_balanced_accuracy']:.4f}, ECE {record['val_ece']:.4f}, "
        f"{record['images_per_s']:,.0f} images/s{' (best so far)' if record['best'] else ''}"
        f"{start.time_left_text(record['epoch']) if start else ''}"
    )


def duration_text(seconds: float) -> str:
    """Return a duration for people.

    >>> duration_text(40), duration_text(3300), duration_text(9000)
    ('40 s', '55 min', '2.5 h')
    """
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _print(console: Console, text: str) -> None:
    """Print text without markup and on one line: messages of services and names of tiles contain brackets."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
