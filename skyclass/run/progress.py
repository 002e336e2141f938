"""Progress of a run: sources done, rate and estimated time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class ProgressReporter(Protocol):
    """The progress of a run in sources; the one method is called for every finished strip and tile."""

    def advance(self, n_sources: int) -> None:
        """Count `n_sources` more sources as classified; the number is negative when a tile is repeated."""
        ...


StartProgress = Callable[[int], AbstractContextManager[ProgressReporter]]
"""Starts a reporter for a number of sources: `no_progress` or `rich_progress`."""


class NullReporter:
    """A reporter that prints nothing."""

    def advance(self, n_sources: int) -> None:
        """Print nothing."""


@dataclass
class JsonLines:
    """A reporter that prints one JSON line every `interval_s`: for logs and batch jobs."""

    total: int
    interval_s: float = 30.0
    done: int = 0
    began: float = field(default_factory=time.perf_counter)
    printed: float = 0.0

    def advance(self, n_sources: int) -> None:
        """Print a line if `interval_s` has passed, or all sources are done."""
        self.done += n_sources
        now = time.perf_counter()
        if now - self.printed < self.interval_s and self.done < self.total:
            return
        self.printed = now
        rate = self.done / max(now - self.began, 1e-9)
        eta_s = round((self.total - self.done) / rate) if rate else None
        line = {"sources": self.done, "of": self.total, "sources_per_s": round(rate, 1), "eta_s": eta_s}
        print(json.dumps(line), file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} sources/s" if task.speed else "-- sources/s")


@dataclass
class _Bar:
    progress: Progress
    task: Any

    def advance(self, n_sources: int) -> None:
        self.progress.advance(self.task, n_sources)


@contextmanager
def no_progress(total: int) -> Iterator[ProgressReporter]:
    """Give a reporter that prints nothing."""
    yield NullReporter()


@contextmanager
def rich_progress(total: int) -> Iterator[ProgressReporter]:
    """Give a progress bar on a terminal, JSON lines elsewhere; both go to standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield JsonLines(total)
        return
    text = TextColumn("classifying {task.completed:,.0f} of {task.total:,.0f}")
    with Progress(text, BarColumn(), _Rate(), TextColumn("ETA"), TimeRemainingColumn(), console=console) as p:
        yield _Bar(p, p.add_task("classify", total=total))
