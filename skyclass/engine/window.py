"""A bounded window of Dask tasks: what has finished, what hangs, and the restart of workers that hang.

Dask has no back-pressure between pools of workers (distributed#9164). Therefore the driver keeps only a few tasks in
flight and submits more as they finish: memory and scheduler state grow with the window, not with the sky.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from dask.utils import funcname
from distributed import Client, Future
from distributed.scheduler import KilledWorker

from ..errors import ClusterLost
from ..run.stages import TILE_ATTEMPTS
from .workers import RESUMES, STRIPS_PER_SLOT

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = TILE_ATTEMPTS
"""Attempts at an item whose workers die or hang. One is not enough: Dask blames every task that a dying worker held,
those of other items too (distributed#5234)."""

STALL_S = 300.0
"""When nothing finishes for so long, the workers that have tasks are restarted."""

LINGER_S = 0.02
"""Tasks that finish within this time of each other are handled together, which saves messages to the scheduler."""

FETCH_TIMEOUT_S = 30
"""A result that takes longer to fetch was lost with its worker, and Dask computes it again."""

RESTART_TIMEOUT_S = 10
"""A nanny waits four fifths of this for a worker to end by itself, and then kills it."""


class BoundedWindow(Generic[T]):
    """At most `size` tasks in flight, and the item that each task belongs to.

    Dask has no time limit for a task, and a cancelled task keeps its thread while the scheduler counts that thread as
    free (distributed#3681). Tasks that hang are therefore given up, and their workers restarted right afterwards.
    """

    def __init__(self, client: Client, size: int) -> None:
        self.client, self.size = client, size
        self.tasks: dict[str, T] = {}
        """Key of each task -> its item, until the task is released."""
        self.pending: dict[str, bool] = {}
        """Key of each watched task that has not finished -> whether the task counts against `size`."""
        self._finished: SimpleQueue[Future[Any]] = SimpleQueue()

    @property
    def n_in_flight(self) -> int:
        """Tasks that count against `size`."""
        return sum(self.pending.values())

    @property
    def n_free(self) -> int:
        """Tasks that may be submitted now."""
        return self.size - self.n_in_flight

    def submit(
        self,
        work: Callable[..., Any],
        items: Sequence[T],
        *arguments: Sequence[Any],
        resources: dict[str, float] | None = None,
    ) -> list[Future[Any]]:
        """Return the futures of work(*arguments), one for each item, submitted in one message."""
        if not items:
            return []
        # Not pure: Dask must not take another attempt at an item for the same task.
        futures: list[Future[Any]] = self.client.map(work, *arguments, pure=False, resources=resources)
        self.tasks.update((str(future.key), item) for future, item in zip(futures, items, strict=True))
        return futures

    def watch(self, future: Future[Any], counts: bool = True) -> None:
        """Let `next_finished` report a task; it `counts` against `size` until it is handled."""
        self.pending[str(future.key)] = counts
        future.add_done_callback(self._finished.put)

    def next_finished(self, patience_s: float) -> dict[str, Future[Any]] | None:
        """Wait for a task to finish, and return all that have, by key; None when none finishes in `patience_s`.

        Tasks that were released meanwhile are left out.
        """
        try:
            finished = [self._finished.get(timeout=patience_s)]
        except Empty:
            return None
        time.sleep(LINGER_S)
        while not self._finished.empty():
            finished.append(self._finished.get())
        return {str(future.key): future for future in finished if str(future.key) in self.tasks}

    def fetch(self, finished: Mapping[str, Future[Any]]) -> dict[str, Any]:
        """Return the results of tasks that have finished, by key, fetched in one message.

        A result that was lost with its worker is missing: Dask computes it again, and `next_finished` reports its task
        again.
        """
        results = self._gather({key: future for key, future in finished.items() if future.status == "finished"})
        for key, future in finished.items():
            if key not in results and not has_failed(future):
                future.add_done_callback(self._finished.put)
        return results

    def _gather(self, futures: dict[str, Future[Any]]) -> dict[str, Any]:
        """Return the results of futures; none if one of them was lost."""
        gather = partial(self.client.gather, futures, asynchronous=True)
        try:
            results: dict[str, Any] = self.client.sync(gather, callback_timeout=FETCH_TIMEOUT_S) if futures else {}
        except (TimeoutError, KilledWorker, CancelledError):
            return {}
        return results

    def release(self, keys: Iterable[str]) -> None:
        """Forget tasks: `next_finished` no longer reports them."""
        for key in keys:
            self.tasks.pop(key, None)
            self.pending.pop(key, None)

    def give_up(self, futures: Sequence[Future[Any]], keys: Iterable[str]) -> None:
        """Cancel tasks and release them."""
        self.client.cancel(list(futures), force=True, reason="given up")
        self.release(keys)

    def unfinished(self) -> dict[str, list[str]]:
        """Return the keys of the tasks that each worker runs or has queued."""
        processing = self.client.processing().items()
        tasks = {address: [key for key in map(str, keys) if key in self.tasks] for address, keys in processing}
        return {address: keys for address, keys in tasks.items() if keys}

    def restart(self, workers: Collection[str]) -> None:
        """Restart workers that hang; their tasks must be given up before."""
        log.warning("restarting %s", ", ".join(workers) or "no worker, because none has a task")
        if not workers:
            return
        try:
            self.client.restart_workers(list(workers), timeout=RESTART_TIMEOUT_S, raise_for_error=False)
        except ValueError as error:  # a worker without a nanny
            raise ClusterLost(
                f"{', '.join(workers)} hang, and skyclass cannot restart them ({error}): start them with a nanny; "
                + RESUMES
            ) from error


def has_failed(future: Future[Any]) -> bool:
    """Return whether a task raised an error, was cancelled, or was lost with the scheduler."""
    return future.status in ("error", "cancelled")


def raise_failure(future: Future[Any]) -> None:
    """Raise the error of a task that failed; the result of any other task stays on its worker."""
    if has_failed(future):
        future.result()


def map_unordered(
    client: Client, work: Callable[..., Any], items: Iterable[tuple[Any, ...]], remedy: str = RESUMES
) -> Iterator[Any]:
    """Yield work(*item) of every item, computed on the workers, as the items finish.

    `STRIPS_PER_SLOT` items are in flight for each thread. An item is submitted again when its worker dies or hangs, so
    that `work` must be safe to repeat; after `ATTEMPTS` attempts the error is raised. `remedy` ends the message of
    `ClusterLost`.
    """
    source, tasks = iter(items), MapTasks(client, work, remedy)
    for arguments in islice(source, tasks.window.size):
        tasks.submit(MapItem(arguments))
    while tasks.window.pending:
        for result in tasks.next_results():
            for arguments in islice(source, 1):
                tasks.submit(MapItem(arguments))
            yield result


@dataclass(frozen=True)
class MapItem:
    """One call of the work of `map_unordered`."""

    arguments: tuple[Any, ...]
    n_worker_losses: int = 0
    """Earlier tasks of this call that ended because a worker died or hung."""


class MapTasks:
    """The tasks of one `map_unordered`."""

    def __init__(self, client: Client, work: Callable[..., Any], remedy: str) -> None:
        self.work, self.remedy = work, remedy
        n_threads = max(1, sum(client.nthreads().values()))
        self.window = BoundedWindow[MapItem](client, STRIPS_PER_SLOT * n_threads)
        self.futures: dict[str, Future[Any]] = {}

    def submit(self, item: MapItem) -> None:
        """Submit an item."""
        (future,) = self.window.submit(self.work, [item], *([argument] for argument in item.arguments))
        self.futures[str(future.key)] = future
        self.window.watch(future)

    def next_results(self) -> list[Any]:
        """Wait for items to finish and return their results; submit those again whose workers died or hang."""
        finished = self.window.next_finished(STALL_S)
        if finished is None:
            self.restart_hung()
            return []
        results = self.window.fetch(finished)
        for key, future in finished.items():
            if key in results:
                self.release(key)
            elif has_failed(future):
                self.retry_killed(key)
        return list(results.values())

    def release(self, key: str) -> MapItem:
        """Release the task of an item, and return the item."""
        item = self.window.tasks[key]
        del self.futures[key]
        self.window.release([key])
        return item

    def retry_killed(self, key: str) -> None:
        """Submit an item again whose worker died; raise any other error of its task."""
        try:
            raise_failure(self.futures[key])
        except KilledWorker as error:
            self.retry(self.release(key), error)

    def restart_hung(self) -> None:
        """Restart the workers that have tasks, and submit the items of these tasks again."""
        unfinished = self.window.unfinished()
        stalled = f"{funcname(self.work)} hangs: nothing finished for {STALL_S:.0f} s"
        if not unfinished:
            raise ClusterLost(f"{stalled}, and no worker has a task; {self.remedy}")
        keys = [key for worker_keys in unfinished.values() for key in worker_keys]
        items = [self.window.tasks[key] for key in keys]
        self.window.give_up([self.futures.pop(key) for key in keys], keys)
        self.window.restart(unfinished)
        for item in items:
            self.retry(item, ClusterLost(f"{stalled} on {', '.join(unfinished)}; {self.remedy}"))

    def retry(self, item: MapItem, error: Exception) -> None:
        """Submit an item again; raise `error` after `ATTEMPTS` attempts."""
        if item.n_worker_losses + 1 == ATTEMPTS:
            raise error
        self.submit(MapItem(item.arguments, item.n_worker_losses + 1))
