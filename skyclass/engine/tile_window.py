"""The tiles of a run on a cluster: their strips in a bounded window, their commits, and further attempts at a tile.

Where workers have the resource `GPU`, CUT runs beside them and INFER on them. Elsewhere, and where GPU workers have
threads to cut with, both are one task.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker
from distributed.worker import Worker

from ..errors import ClusterLost, TileFault
from ..run.commits import Commit
from ..run.context import RunContext, strips_of
from ..run.stages import (
    TILE_ATTEMPTS,
    classify_strip,
    classify_whole,
    commit_fault,
    commit_strips,
    cut_strip,
    infer_strip,
    kept_changing,
    next_attempt,
)
from ..run.state import RunState
from ..run.strips import Timing
from ..types import Strip, TilePlan
from .window import ATTEMPTS, STALL_S, BoundedWindow, has_failed, raise_failure
from .workers import RESUMES, Placement

log = logging.getLogger(__name__)

SMALLEST_STRIP = 1_024
"""A small run has smaller strips, so that each worker gets several of them; none is smaller than this."""

STALL_STRIPS = 10
"""The run also waits for this many times the median time of a task before it restarts workers."""

STALLS = 3
"""Restarts in a row without a finished task, after which the run ends, to be resumed."""


@dataclass
class TileAttempt:
    """One attempt at a tile: the futures of its strips and, once its last strip is submitted, of its commit.

    The futures of composites are not kept: Dask would keep the composites until the commit.
    """

    tile: TilePlan
    n_worker_losses: int = 0
    """Earlier attempts at the tile that ended because a worker died or hung."""
    results: list[Future[Any]] = field(default_factory=list)
    commit: Future[Any] | None = None
    keys: list[str] = field(default_factory=list)
    """The keys of all its tasks."""
    fault: str = ""
    """Why the attempt was given up."""


@dataclass(frozen=True)
class PendingTask:
    """A task of an attempt: CUT or INFER of a strip or, where `strip` is None, the commit or all of the tile."""

    attempt: TileAttempt
    strip: Strip | None = None
    submitted_at: float = field(default_factory=time.monotonic)


def run_tiles(client: Client, state: RunState, tiles: list[TilePlan], strip_sources: int, placement: Placement) -> None:
    """Classify and commit tiles, in their order, with a bounded number of strips in flight."""
    state.pools = placement.pools
    fair_share = -(-sum(tile.n_sources for tile in tiles) // (2 * placement.window))
    strip_sources = min(strip_sources, max(fair_share, SMALLEST_STRIP))
    window = TileWindow(client, state.context, placement, strip_sources, tiles)
    window.fill()
    stalls = 0
    while window.is_busy:
        finished = window.next_finished()
        if finished is None:
            stalls += 1
            if stalls > STALLS:
                raise ClusterLost(
                    f"the run has stalled: nothing finished although its workers were restarted {STALLS} times; "
                    + RESUMES
                )
            window.restart_hung(state)
        else:
            stalls = 0
            window.handle_completed(finished, state)
        del finished  # Dask computes the results of futures that exist again when their worker dies
        window.fill()


class TileWindow:
    """The strips and whole tiles in flight. The commit of a tile is submitted with its last strip."""

    def __init__(
        self, client: Client, context: RunContext, placement: Placement, strip_sources: int, tiles: list[TilePlan]
    ) -> None:
        self.client, self.context, self.placement, self.strip_sources = client, context, placement, strip_sources
        self.window = BoundedWindow[PendingTask](client, placement.window)
        self.attempts = deque(TileAttempt(tile) for tile in tiles)
        self.suspects: deque[TileAttempt] = deque()
        """Further attempts at tiles whose workers died or hung. Each runs alone: its tile may kill more workers."""
        self.strips: Iterator[tuple[TileAttempt, Strip, bool]] = iter(())
        """The strips of the current attempt that are left, each with whether it is the last."""
        self.seconds: deque[float] = deque(maxlen=200)
        """Seconds from submission to completion of the latest tasks."""

    @property
    def is_busy(self) -> bool:
        """Whether a task is in flight or a tile is left."""
        return bool(self.window.pending or self.attempts or self.suspects)

    @property
    def patience_s(self) -> float:
        """Seconds without a finished task after which the run has stalled."""
        usual = median(self.seconds) if self.seconds else 0.0
        in_flight = [self.window.tasks[key] for key, counts in self.window.pending.items() if counts]
        longest = max((task.attempt.tile.n_sources for task in in_flight if not task.strip), default=1)
        return max(STALL_S * -(-longest // self.strip_sources), STALL_STRIPS * usual)

    def next_finished(self) -> dict[str, Future[Any]] | None:
        """Wait for a task to finish, and return all that have, by key; None when the run has stalled."""
        return self.window.next_finished(self.patience_s)

    def fill(self) -> None:
        """Submit strips until the window is full or none is left, and the commits of tiles after their last strip.

        A few messages carry all of them, because messages are most of the work of a scheduler of hundreds of workers.
        """
        strips: list[tuple[TileAttempt, Strip, bool]] = []
        whole: list[TileAttempt] = []
        for _ in range(self.window.n_free):
            if self.placement.by_tile and len(self.attempts) > self.placement.window:
                whole.append(self.attempts.popleft())
            elif strip := self.next_strip(not strips):
                strips.append(strip)
            else:
                break
        self.submit_whole(whole)
        self.submit_strips(strips)

    def next_strip(self, is_first: bool) -> tuple[TileAttempt, Strip, bool] | None:
        """Return the next strip of the current attempt, or the first strip of the next attempt; suspects come last.

        None when no strip is left, or when a suspect must wait: for all other tasks, and for a `fill` of its own.
        """
        while (strip := next(self.strips, None)) is None or strip[0].fault:
            if not self.attempts and (not self.suspects or self.window.pending or not is_first):
                return None
            if not self.attempts:
                self.await_idle_workers()
            attempt = (self.attempts or self.suspects).popleft()
            strips = strips_of(attempt.tile, self.strip_size(attempt))
            self.strips = ((attempt, strip, strip is strips[-1]) for strip in strips)
        return strip

    def await_idle_workers(self) -> None:
        """Wait until no worker runs a task: one of a tile that was given up could kill the worker of a suspect."""
        deadline = time.monotonic() + self.patience_s
        while any(self.client.processing().values()) or any(self.client.run(n_executing, on_error="ignore").values()):
            if time.monotonic() > deadline:
                log.warning("tasks that were given up do not end")
                return
            time.sleep(0.1)

    def strip_size(self, attempt: TileAttempt) -> int:
        """Return the most sources in a strip of a tile: half as many once a worker was lost, to need less memory."""
        if not attempt.n_worker_losses:
            return self.strip_sources
        return max(1, min(self.strip_sources, attempt.tile.n_sources) // 2)

    def submit_whole(self, attempts: list[TileAttempt]) -> None:
        """Submit tiles, each as one task that ends with its commit."""
        tiles, sizes = [attempt.tile for attempt in attempts], [self.strip_sources] * len(attempts)
        commits = self.submit(
            classify_whole, [PendingTask(attempt) for attempt in attempts], tiles, sizes, resources=self.placement.infer
        )
        self.watch_commits(attempts, commits)

    def submit_strips(self, items: list[tuple[TileAttempt, Strip, bool]]) -> None:
        """Submit strips, and the commits of the tiles whose last strips they are."""
        tasks = [PendingTask(attempt, strip) for attempt, strip, _ in items]
        for task, result in zip(tasks, self.submit_stages(tasks, [strip for _, strip, _ in items]), strict=True):
            task.attempt.results.append(result)
            self.window.watch(result)
        complete = [attempt for attempt, _, is_last in items if is_last]
        tiles, results = [attempt.tile for attempt in complete], [attempt.results for attempt in complete]
        commits = self.submit(
            commit_strips, [PendingTask(attempt) for attempt in complete], tiles, results, resources=self.placement.cut
        )
        self.watch_commits(complete, commits, counts=False)

    def submit_stages(self, tasks: list[PendingTask], strips: list[Strip]) -> list[Future[Any]]:
        """Return the futures of strips, submitted to CUT and INFER as one task or as two."""
        if not self.placement.split:
            return self.submit(classify_strip, tasks, strips, resources=self.placement.infer)
        composites = self.submit(cut_strip, tasks, strips, resources=self.placement.cut)
        return self.submit(infer_strip, tasks, composites, resources=self.placement.infer)

    def submit(
        self,
        work: Callable[..., Any],
        tasks: Sequence[PendingTask],
        *arguments: Sequence[Any],
        resources: dict[str, float] | None,
    ) -> list[Future[Any]]:
        """Return the futures of work(context, *arguments), one for each task."""
        futures = self.window.submit(work, tasks, [self.context] * len(tasks), *arguments, resources=resources)
        for task, future in zip(tasks, futures, strict=True):
            task.attempt.keys.append(str(future.key))
        return futures

    def watch_commits(self, attempts: list[TileAttempt], commits: list[Future[Any]], counts: bool = True) -> None:
        """Watch the commits of attempts; without `counts` they may exceed the window."""
        for attempt, commit in zip(attempts, commits, strict=True):
            attempt.commit = commit
            self.window.watch(commit, counts)

    def handle_completed(self, finished: Mapping[str, Future[Any]], state: RunState) -> None:
        """Count finished strips and commits; retry tiles whose workers died or whose files changed.

        Any other error ends the run.
        """
        tasks = self.window.tasks
        commits = self.window.fetch({key: future for key, future in finished.items() if not tasks[key].strip})
        for key, future in finished.items():
            task = tasks.get(key)  # None once its attempt was given up, or its tile committed
            if task and (task.strip or key in commits or has_failed(future)):
                self.window.pending.pop(key, None)
                self.handle_task(task, future, commits.get(key), state)

    def handle_task(
        self,
        task: PendingTask,
        future: Future[Any],
        commit: tuple[Commit, tuple[Timing, ...]] | None,
        state: RunState,
    ) -> None:
        """Count one finished strip or commit, or retry its tile."""
        try:
            raise_failure(future)
        except KilledWorker as error:
            if not task.strip:  # the commit fails with the strips; the failure counts once
                self.give_up(task.attempt)
                self.retry_tile(task.attempt, f"workers died of it: {error}", state)
            return
        except TileFault as fault:
            self.give_up(task.attempt)
            self.retry_changed(task.attempt, fault, state)
            return
        if task.strip:
            state.count_strip(task.strip)
        elif commit:
            state.record_commit(*commit)
            self.release(task.attempt)
        self.seconds.append(time.monotonic() - task.submitted_at)

    def retry_tile(self, attempt: TileAttempt, reason: str, state: RunState) -> None:
        """Plan another attempt at a tile whose worker died or hung; after `ATTEMPTS`, commit its rows without a class.

        The driver commits these rows itself, because strips of the tile may still kill workers.
        """
        attempt.fault = reason
        state.uncount_tile(attempt.tile.coadd_id)
        if attempt.n_worker_losses + 1 < ATTEMPTS:
            self.suspects.append(TileAttempt(attempt.tile, attempt.n_worker_losses + 1))
            return
        reason += f" (in {ATTEMPTS} attempts, the last with no other task beside it and half the sources in a strip)"
        reason += ": give workers more memory, or inspect this tile"
        state.record_commit(*commit_fault(self.context, attempt.tile, reason))

    def retry_changed(self, attempt: TileAttempt, fault: TileFault, state: RunState) -> None:
        """Plan another attempt, after all other tiles, at a tile whose files changed.

        After `TILE_ATTEMPTS`, commit its rows without a class.
        """
        attempt.fault = str(fault)
        state.uncount_tile(attempt.tile.coadd_id)
        if attempt.tile.n_file_changes + 1 < TILE_ATTEMPTS:
            self.attempts.append(TileAttempt(next_attempt(attempt.tile), attempt.n_worker_losses))
        else:
            state.record_commit(*commit_fault(self.context, attempt.tile, kept_changing(fault)))

    def give_up(self, attempt: TileAttempt) -> None:
        """Cancel the tasks of an attempt, and release them."""
        futures = [*attempt.results, attempt.commit] if attempt.commit else attempt.results
        self.window.give_up(futures, attempt.keys)
        self.release(attempt)

    def release(self, attempt: TileAttempt) -> None:
        """Drop the tasks and futures of an attempt whose tile is committed or given up."""
        self.window.release(attempt.keys)
        attempt.results.clear()
        attempt.commit = None
        attempt.keys.clear()

    def restart_hung(self, state: RunState) -> None:
        """Give up the tiles whose tasks have not finished, restart the workers that have these, and retry the tiles."""
        reason = f"nothing finished for {self.patience_s:.0f} s"
        log.warning(reason)
        unfinished = self.window.unfinished()
        tasks = [self.window.tasks[key] for keys in unfinished.values() for key in keys]
        attempts = {id(task.attempt): task.attempt for task in tasks}.values()
        for attempt in attempts:
            attempt.fault = reason
            self.give_up(attempt)
        self.window.restart(unfinished)
        for attempt in attempts:
            self.retry_tile(attempt, reason, state)


def n_executing(dask_worker: Worker) -> int:
    """Return how many tasks a worker runs, with those that the scheduler has forgotten."""
    return len(dask_worker.state.all_running_tasks)
