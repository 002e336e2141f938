"""What a person sees of a training: a bar with rate and ETA, and one line an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ...text import printable


@contextmanager
def show_training() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a watcher for `train.train`: steps move a bar on standard error, epochs leave a line.

    A block that ends well without a step or an epoch had nothing to do, and that is said.
    """
    console = Console(stderr=True)
    columns = (TextColumn("epoch {task.fields[epoch]} of {task.fields[epochs]}"), BarColumn())
    rate = TextColumn("{task.fields[images_per_s]:,.0f} images/s")
    with Progress(*columns, rate, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=None, visible=False, epoch=0, epochs=0, images_per_s=0.0)
        said: set[str] = set()

        def watch(record: dict[str, Any]) -> None:
            said.add("something")
            if "step" in record:
                done = (record["epoch"] - 1) * record["steps"] + record["step"]
                facts = {name: record[name] for name in ("epoch", "epochs", "images_per_s")}
                bar.update(task, visible=True, completed=done, total=record["epochs"] * record["steps"], **facts)
            else:
                _say(bar.console, line_of(record))

        yield watch
        if not said:
            _say(console, "already trained: this run was finished before, nothing is done again")


def line_of(record: dict[str, Any]) -> str:
    """Return one line for a finished epoch."""
    return (
        f"epoch {record['epoch']}: loss {record['loss']:.4f}, validation loss {record['val_loss']:.4f}, "
        f"balanced accuracy {record['val_balanced_accuracy']:.4f}, ECE {record['val_ece']:.4f}, "
        f"{record['images_per_s']:,.0f} images/s{' (best so far)' if record['best'] else ''}"
    )


@contextmanager
def show_cutting() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a watcher for `dataset.build_dataset`: a bar over sources on standard error, a line for each bad tile."""
    columns = (TextColumn("cutting"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} sources"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=0)

        def watch(record: dict[str, Any]) -> None:
            bar.update(task, completed=record["done"], total=record["total"])
            for fault in record["faults"]:
                _say(bar.console, f"left out: {fault}")

        yield watch


def say_steps(record: dict[str, Any]) -> None:
    """Say how far `labels.fetch_labels` has come: one line a page."""
    _say(Console(stderr=True), f"{record['step']}: {facts_of(record)}")


def facts_of(record: dict[str, Any]) -> str:
    """Return the facts of a step in words; of counts, those that are not zero."""
    counts = record.get("counts")
    if isinstance(counts, dict):
        return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    return ", ".join(f"{name} {value}" for name, value in record.items() if name != "step")


def _say(console: Console, words: str) -> None:
    """Print words as they are: services and tiles put brackets in theirs, and a log has lines of any length."""
    console.print(printable(words), highlight=False, markup=False, soft_wrap=True)
