"""Progress of labels, datasets and trainings: the events that these functions report, and what a terminal shows.

Long functions call their `progress` argument with one dict for each event. Their docstrings name the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from ..run.progress import JsonLines
from ..text import printable

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


@contextmanager
def training_progress() -> Iterator[Progress]:
    """Give a reporter for `train.train`: a line for each epoch, and on a terminal a bar over steps.

    Without an event in the block, the training was complete before: one line says that.
    """
    console = Console(stderr=True)
    epoch = TextColumn("epoch {task.fields[epoch]} of {task.fields[epochs]}")
    speed = TextColumn("{task.fields[images_per_s]:,.0f} images/s")
    columns = (epoch, BarColumn(), speed, TimeRemainingColumn())
    with ProgressBar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False, epoch=0, epochs=0, images_per_s=0.0)
        n_events = 0

        def show_training(event: Mapping[str, Any]) -> None:
            """Show a step (`epoch`, `epochs`, `step`, `steps`, `images_per_s`), or the record of a finished epoch."""
            nonlocal n_events
            n_events += 1
            if "step" in event:
                done = (event["epoch"] - 1) * event["steps"] + event["step"]
                fields = {name: event[name] for name in ("epoch", "epochs", "images_per_s")}
                bar.update(task, visible=True, completed=done, total=event["epochs"] * event["steps"], **fields)
            else:
                _print(bar.console, epoch_text(event))

        yield show_training
        if not n_events:
            _print(console, "already trained: an earlier run has finished this training, and nothing is left to do")


def epoch_text(record: Mapping[str, Any]) -> str:
    """Return one line for a finished epoch."""
    return (
        f"epoch {record['epoch']}: loss {record['loss']:.4f}, validation loss {record['val_loss']:.4f}, "
        f"balanced accuracy {record['val_balanced_accuracy']:.4f}, ECE {record['val_ece']:.4f}, "
        f"{record['images_per_s']:,.0f} images/s{' (best so far)' if record['best'] else ''}"
    )


def _print(console: Console, text: str) -> None:
    """Print text without markup and on one line: messages of services and names of tiles contain brackets."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
