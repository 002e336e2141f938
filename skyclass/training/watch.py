"""What a person sees of a training: a bar with rate and ETA, and one line an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def show_training() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a watcher for `train.train`: steps move a bar on standard error, epochs leave a line."""
    console = Console(stderr=True)
    columns = (TextColumn("epoch {task.fields[epoch]} of {task.fields[epochs]}"), BarColumn())
    rate = TextColumn("{task.fields[images_per_s]:,.0f} images/s")
    with Progress(*columns, rate, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=None, epoch=0, epochs=0, images_per_s=0.0)

        def watch(record: dict[str, Any]) -> None:
            if "step" in record:
                done = (record["epoch"] - 1) * record["steps"] + record["step"]
                facts = {name: record[name] for name in ("epoch", "epochs", "images_per_s")}
                bar.update(task, completed=done, total=record["epochs"] * record["steps"], **facts)
            else:
                bar.console.print(line_of(record), highlight=False)

        yield watch


def line_of(record: dict[str, Any]) -> str:
    """Return one line for a finished epoch."""
    return (
        f"epoch {record['epoch']}: loss {record['loss']:.4f}, validation loss {record['val_loss']:.4f}, "
        f"balanced accuracy {record['val_balanced_accuracy']:.4f}, ECE {record['val_ece']:.4f}, "
        f"{record['images_per_s']:,.0f} images/s{' (best so far)' if record['best'] else ''}"
    )


@contextmanager
def show_cutting() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a watcher for `dataset.build_dataset`: a bar over sources on standard error."""
    columns = (TextColumn("cutting"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} sources"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=0)
        yield lambda record: bar.update(task, completed=record["done"], total=record["total"])


def say_steps(record: dict[str, Any]) -> None:
    """Say how far `labels.fetch_labels` has come: one line a page."""
    facts = ", ".join(f"{name} {value}" for name, value in record.items() if name != "step")
    Console(stderr=True).print(f"{record['step']}: {facts}", highlight=False)
