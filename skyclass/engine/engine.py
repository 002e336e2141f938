"""The straight line on Dask: a bounded window of futures. The only file that builds Dask work.

Dask has no back-pressure between pools of workers (distributed#9164), so the driver itself keeps only a few
strips in flight and refills as they finish: memory and scheduler state are O(in flight), never O(sky).
Where workers are labelled `GPU`, CUT runs beside them and INFER on them; elsewhere, and where GPU workers have
threads to cut with, both are one task.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from distributed import Client, Future
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError
from distributed.worker import Worker

from ..errors import ClusterLost, SkyclassError, TileFault
from ..run.config import RunConfig
from ..run.context import RunContext, strips_of
from ..run.lease import hold_lease
from ..run.pipeline import pending, publish_and_report
from ..run.prepare import choose_compilation, load_committed, open_run, plan_run
from ..run.progress import StartProgress, rich_progress
from ..run.report import RunReport, RunState
from ..run.stages import (
    COUNT_SCHEMA,
    TILE_ATTEMPTS,
    classify_strip,
    classify_whole,
    commit_fault,
    commit_strips,
    count_partition,
    cut_strip,
    infer_strip,
    kept_changing,
    next_attempt,
)
from ..types import Strip, TilePlan
from .cluster import connect
from .workers import (
    RESUMES,
    STRIPS_PER_SLOT,
    Placement,
    WarmUpPlugin,
    WorkerSetup,
    await_workers,
    check_worker_versions,
    placement_of,
    register,
    warm_up_workers,
)

log = logging.getLogger(__name__)

ATTEMPTS = TILE_ATTEMPTS
"""Times that a tile is begun before it is quarantined because its workers died: the last time alone, since Dask
blames whatever a dying worker held, innocent neighbours too (distributed#5234)."""

LINGER_S = 0.02
"""What is done so soon after another is settled with it, and the window filled once for both: fewer messages."""

SMALLEST_STRIP = 1_024
"""A small run is cut finer, so that each worker has a few strips; never finer than this."""

STALL_S = 300.0
STALL_STRIPS = 10
"""Nothing finished for so long a strip, or for so many times the median wait: the workers at work are restarted."""

STALLS = 3
"""Restarts in a row after which a run that still stands gives up, to be resumed."""
FETCH_TIMEOUT_S = 30
"""A commit that takes longer to fetch was lost, and is being done again: it is waited for like any other work."""

RESTART_TIMEOUT_S = 10
"""Of this a nanny waits four fifths for what hangs to end by itself, and then kills it."""


@dataclass
class Chain:
    """A tile on its way: its strips' results and, when the last is submitted, its commit, as futures."""

    tile: TilePlan
    attempt: int = 1
    results: list[Future[Any]] = field(default_factory=list)
    futures: list[Future[Any]] = field(default_factory=list)
    """What is held of its tasks, `results` among it: composites are not, or they would stay until the commit."""
    keys: list[str] = field(default_factory=list)
    """The names of all its tasks."""
    fault: str = ""
    """Why it was given up; what its tasks still say counts no more."""


@dataclass(frozen=True)
class Wait:
    """What the driver waits for: a strip of a tile or, where there is none, the tile's commit or all of the tile."""

    chain: Chain
    strip: Strip | None = None
    begun: float = field(default_factory=time.monotonic)


def classify(run: RunConfig, client: Client | None = None, watch: StartProgress = rich_progress) -> RunReport:
    """Return the report of a run on a cluster, its catalogue published under `run.out`/catalog.

    Without a client, the cluster that `run` names is made or joined. Running the same configuration again
    resumes: committed tiles are not touched. Raises `ConfigError` before any work for input that cannot be used.
    """
    with nullcontext(client) if client else cluster_of(run) as client, dask_faults():
        await_workers(client, needs_gpu=run.device.startswith("cuda"))
        check_worker_versions(client)
        register(client, WorkerSetup())
        context, plan, table = plan_run(run, partial(count_on, client))
        placement = placement_of(client)
        context = choose_compilation(run, context, plan, partial(warm_up_workers, client, placement))
        register(client, WarmUpPlugin(context, placement))
        with hold_lease(context.folder) as lease:
            context = open_run(run, context, plan, table)
            state = RunState(context, plan, lease)
            with watch(state.resume(load_committed(run, context))) as state.reporter:
                drive(client, state, pending(plan, state), run.strip_sources, placement)
            return publish_and_report(context, state, partial(spread, client))


def cluster_of(run: RunConfig) -> AbstractContextManager[Client]:
    """Give a client of the cluster that a run names."""
    return connect(run.cluster, run.workers, run.memory_limit, 0 if run.device == "cpu" else None)


@contextmanager
def dask_faults() -> Iterator[None]:
    """Turn what Dask raises when workers or the scheduler die into one message of ours."""
    try:
        yield
    except KilledWorker as error:  # not of a tile, but in counting or publishing: it would be so again
        raise SkyclassError(
            f"workers died again and again, perhaps for want of memory (--memory-limit): {error}"
        ) from error
    except NoValidWorkerError as error:
        raise ClusterLost(f"no worker is left that could do the work: {error}; {RESUMES}") from error
    except TimeoutError as error:
        if error.errno is not None:  # of a file system
            raise
        raise ClusterLost(f"the cluster does not answer ({error!r}); {RESUMES}") from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterLost(f"the scheduler is gone ({type(error).__name__}: {error}); {RESUMES}") from error


def count_on(client: Client, context: RunContext, partitions: Iterable[int]) -> pa.Table:
    """Return the counts of `count_partition` for partitions: one dataframe job on the workers."""
    meta = COUNT_SCHEMA.empty_table().to_pandas()
    counts = dd.from_map(_count_frame, list(partitions), args=[context], meta=meta, enforce_metadata=False)
    return pa.Table.from_pandas(awaited(client, client.compute(counts)), preserve_index=False)


def awaited(client: Client, future: Future[Any]) -> Any:
    """Return the result of a job of many tasks; `ClusterLost` when its workers are at the same ones for too long."""
    before = None
    while True:
        try:
            return future.result(timeout=STALL_S)
        except TimeoutError:
            if future.status == "error":  # its own, of a file system
                raise
            if future.status == "finished":  # and on its way here
                continue
            now = {address: sorted(map(str, keys)) for address, keys in client.processing().items() if keys}
            if now == before:
                where = ", ".join(now) or "no worker"
                raise ClusterLost(
                    f"counting stands still: nothing finished for {STALL_S:.0f} s or more; at work: {where}; nothing "
                    "was begun: look at the catalogue's disk there, and run it again"
                ) from None
            before = now


def _count_frame(partition: int, context: RunContext) -> pd.DataFrame:
    frame: pd.DataFrame = count_partition(context, partition).to_pandas()
    return frame


def spread(client: Client, work: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Give work(*item) of every item, done by the workers, as they finish; `STRIPS_PER_SLOT` in flight a thread.

    The work must bear being done twice: an item whose worker died or hung is given out again, as the blame may lie
    elsewhere; after `ATTEMPTS` that is an error.
    """
    source, done = iter(items), SimpleQueue[Future[Any]]()
    in_flight: dict[str, tuple[Future[Any], tuple[Any, ...], int]] = {}

    def open_run(item: tuple[Any, ...], attempt: int = 1) -> None:
        future: Future[Any] = client.submit(work, *item, pure=False)
        in_flight[str(future.key)] = future, item, attempt
        future.add_done_callback(done.put)

    def again(key: str, error: Exception) -> None:
        _, item, attempt = in_flight.pop(key)
        if attempt == ATTEMPTS:
            raise error
        open_run(item, attempt + 1)

    for item in islice(source, STRIPS_PER_SLOT * max(1, sum(client.nthreads().values()))):
        open_run(item)
    while in_flight:
        try:
            future = done.get(timeout=STALL_S)
        except Empty:
            hung = at_work(client, in_flight)
            keys = [key for found in hung.values() for key in found]
            if not hung:
                raise ClusterLost(
                    f"no worker is at {work}, and nothing finished for {STALL_S:.0f} s; {RESUMES}"
                ) from None
            client.cancel([in_flight[key][0] for key in keys], force=True, reason="hung")
            restart(client, hung)
            for key in keys:
                again(key, ClusterLost(f"{work} hangs: nothing finished for {STALL_S:.0f} s; {RESUMES}"))
            continue
        if (key := str(future.key)) not in in_flight:  # of an attempt that was given up
            continue
        try:
            result = future.result()
        except KilledWorker as error:
            again(key, error)
            continue
        del in_flight[key], future
        for more in islice(source, 1):
            open_run(more)
        yield result


def finished(future: Future[Any]) -> None:
    """Raise what a future that is done has raised; its result stays where it is."""
    if future.status in ("error", "cancelled"):
        future.result()


def at_work(client: Client, keys: Container[str]) -> dict[str, list[str]]:
    """Return which workers are at which of these tasks."""
    found = {a: [k for k in map(str, there) if k in keys] for a, there in client.processing().items()}
    return {address: there for address, there in found.items() if there}


def restart(client: Client, workers: Collection[str]) -> None:
    """Restart workers that hang; their tasks must have been cancelled in the same breath."""
    log.warning("restarting %s", ", ".join(workers) or "no worker, for none is at work")
    if workers:
        client.restart_workers(list(workers), timeout=RESTART_TIMEOUT_S, raise_for_error=False)


def n_executing(dask_worker: Worker) -> int:
    """Return how many tasks a worker is at, those among them that the scheduler has forgotten."""
    return len(dask_worker.state.all_running_tasks)


def drive(client: Client, state: RunState, tiles: list[TilePlan], strip_sources: int, placement: Placement) -> None:
    """Take tiles down the line, longest first, with a bounded number of strips in flight."""
    state.pools = placement.pools
    fair = -(-sum(tile.n_sources for tile in tiles) // (2 * placement.window))
    window = Window(client, state.context, placement, min(strip_sources, max(fair, SMALLEST_STRIP)), tiles)
    window.fill()
    stalls = 0
    while window.is_busy:
        try:
            done = window.next_done()
        except Empty:
            stalls += 1
            if stalls > STALLS:
                raise ClusterLost(
                    f"the run stands still: nothing finished although its workers were restarted {STALLS} times; "
                    + RESUMES
                ) from None
            window.restart_hung(state)
        else:
            stalls = 0
            window.settle(done, state)
            del done  # while they are held, Dask would do their work again when a worker dies
        window.fill()


class Window:
    """The strips and whole tiles in flight, never more than `who.window`. A tile's commit goes with its last strip.

    Dask has no time limit for a task, and a cancelled one keeps its thread while the scheduler believes the thread
    free (distributed#3681): work that hangs is dropped, and in the same breath its workers are restarted.
    """

    def __init__(
        self, client: Client, context: RunContext, placement: Placement, strip_sources: int, tiles: list[TilePlan]
    ) -> None:
        self.client, self.context, self.placement, self.strip_sources = client, context, placement, strip_sources
        self.chains = deque(Chain(tile) for tile in tiles)
        self.suspects: deque[Chain] = deque()
        self.strips: Iterator[tuple[Chain, Strip, bool]] = iter(())
        self.done: SimpleQueue[Future[Any]] = SimpleQueue()
        self.in_flight: dict[str, Wait] = {}
        self.committing: dict[str, Wait] = {}
        self.tasks: dict[str, Chain] = {}
        self.seconds: deque[float] = deque(maxlen=200)
        """Of what was done last, from when it was submitted."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is in flight or left to do."""
        return bool(self.in_flight or self.committing or self.chains or self.suspects)

    @property
    def patience_s(self) -> float:
        """How long nothing may finish."""
        usual = median(self.seconds) if self.seconds else 0.0
        longest = max((w.chain.tile.n_sources for w in self.in_flight.values() if not w.strip), default=1)
        return max(STALL_S * -(-longest // self.strip_sources), STALL_STRIPS * usual)

    def fill(self) -> None:
        """Submit strips until the window is full or none is left, and the commits of tiles whose last they are.

        All in a few messages: a scheduler of hundreds of workers is busy with these more than with anything else.
        """
        items: list[tuple[Chain, Strip, bool]] = []
        whole: list[Chain] = []
        while len(self.in_flight) + len(items) + len(whole) < self.placement.window:
            if self.placement.by_tile and len(self.chains) > self.placement.window:
                whole.append(self.chains.popleft())
            elif item := self.next_strip(not items):
                items.append(item)
            else:
                break
        self.begin_tiles(whole)
        self.begin_strips(items)

    def begin_tiles(self, whole: list[Chain]) -> None:
        """Submit tiles, each as one task that ends with its commit."""
        parts = [chain.tile for chain in whole], [self.strip_sources] * len(whole)
        for chain, commit in zip(
            whole, self.submit(whole, classify_whole, *parts, placement=self.placement.infer), strict=True
        ):
            self.watch(self.in_flight, commit, Wait(chain))

    def begin_strips(self, items: list[tuple[Chain, Strip, bool]]) -> None:
        """Submit strips, and the commit of a tile whose last they are."""
        chains, strips = [chain for chain, _, _ in items], [strip for _, strip, _ in items]
        for chain, strip, result in zip(chains, strips, self.submit_strips(chains, strips), strict=True):
            chain.results.append(result)
            self.watch(self.in_flight, result, Wait(chain, strip))
        done = [chain for chain, _, is_last in items if is_last]
        parts = [chain.tile for chain in done], [chain.results for chain in done]
        for chain, commit in zip(
            done, self.submit(done, commit_strips, *parts, placement=self.placement.cut), strict=True
        ):
            self.watch(self.committing, commit, Wait(chain))

    def next_strip(self, is_first: bool = True) -> tuple[Chain, Strip, bool] | None:
        """Return the next strip of the tile at hand, or the first of the next tile; suspects last, one by one.

        None when there is none, or when a suspect must wait until nothing else is in flight or `is_first` of a fill.
        """
        while (item := next(self.strips, None)) is None or item[0].fault:  # of a tile given up in between: none
            if not self.chains and (not self.suspects or self.in_flight or self.committing or not is_first):
                return None
            if not self.chains:
                self.await_idle()
            chain = (self.chains or self.suspects).popleft()
            strips = strips_of(chain.tile, self.strip_size(chain))
            self.strips = ((chain, strip, strip is strips[-1]) for strip in strips)
        return item

    def await_idle(self) -> None:
        """Return when no worker is at work: a strip of a tile given up may be, and would kill whoever is beside it."""
        until = time.monotonic() + self.patience_s
        while any(self.client.processing().values()) or any(self.client.run(n_executing, on_error="ignore").values()):
            if time.monotonic() > until:
                log.warning("work that was given up does not end")
                return
            time.sleep(0.1)

    def strip_size(self, chain: Chain) -> int:
        """Return the most sources in a strip of a tile: half as many when it is begun again, to need less memory."""
        if chain.attempt == 1:
            return self.strip_sources
        return max(1, min(self.strip_sources, chain.tile.n_sources) // 2)

    def watch(self, kind: dict[str, Wait], future: Future[Any], wait: Wait) -> None:
        """Hear of a future when it is done."""
        kind[str(future.key)] = wait
        future.add_done_callback(self.done.put)

    def submit_strips(self, chains: Sequence[Chain], strips: Sequence[Strip]) -> list[Future[Any]]:
        """Submit CUT and INFER of strips, each as one task or as two."""
        if not self.placement.split:
            return self.submit(chains, classify_strip, strips, placement=self.placement.infer)
        composites = self.submit(chains, cut_strip, strips, placement=self.placement.cut, hold=False)
        return self.submit(chains, infer_strip, composites, placement=self.placement.infer)

    def submit(
        self,
        chains: Sequence[Chain],
        work: Callable[..., Any],
        *parts: Sequence[Any],
        placement: dict[str, float] | None = None,
        hold: bool = True,
    ) -> list[Future[Any]]:
        """Submit work(line, *parts) for each of some tiles; equal work of another attempt is other work."""
        lines = [self.context] * len(chains)
        futures: list[Future[Any]] = (
            self.client.map(work, lines, *parts, pure=False, resources=placement) if chains else []
        )
        for chain, future in zip(chains, futures, strict=True):
            self.tasks[str(future.key)] = chain
            chain.keys.append(str(future.key))
            if hold:
                chain.futures.append(future)
        return futures

    def next_done(self) -> list[Future[Any]]:
        """Return what is done, once something is; `Empty` when nothing is for too long."""
        done = [self.done.get(timeout=self.patience_s)]
        time.sleep(LINGER_S)
        while not self.done.empty():
            done.append(self.done.get())
        return done

    def settle(self, done: list[Future[Any]], state: RunState) -> None:
        """Count finished strips and commits; begin a tile again whose worker died. Any other error ends the run."""
        waits = {str(f.key): self.in_flight.get(str(f.key)) or self.committing.get(str(f.key)) for f in done}
        is_commit = {key: wait is not None and not wait.strip for key, wait in waits.items()}
        commits = self.fetch({str(f.key): f for f in done if is_commit[str(f.key)] and f.status == "finished"})
        for future in done:
            key, wait = str(future.key), waits[str(future.key)]
            if wait is None or wait.chain.fault:  # of an attempt that was given up
                continue
            if is_commit[key] and key not in commits and future.status not in ("error", "cancelled"):
                future.add_done_callback(self.done.put)  # lost since: it is done again, and heard of again
                continue
            if (self.in_flight.pop(key, None) or self.committing.pop(key, None)) is None:  # its tile is done meanwhile
                continue
            try:
                finished(future)
                if wait.strip:
                    state.strip(wait.strip)
                else:
                    state.commit(*commits[key])
                    self.forget(wait.chain)
                self.seconds.append(time.monotonic() - wait.begun)
            except KilledWorker as error:
                if not wait.strip:  # its strips fail with it, and only this is counted
                    self.give_up(wait.chain)
                    self.again(wait.chain, f"workers died of it: {error}", state)
            except TileFault as fault:
                self.give_up(wait.chain)
                self.renew(wait.chain, fault, state)

    def fetch(self, futures: dict[str, Future[Any]]) -> dict[str, Any]:
        """Return the results of finished futures, all in one message; none if one of them was lost since."""
        gather = partial(self.client.gather, futures, asynchronous=True)
        try:
            results: dict[str, Any] = self.client.sync(gather, callback_timeout=FETCH_TIMEOUT_S) if futures else {}
        except (TimeoutError, KilledWorker, CancelledError):
            return {}
        return results

    def again(self, chain: Chain, reason: str, state: RunState) -> None:
        """Begin a tile again whose worker died or hung; after `ATTEMPTS`, commit its rows without a class.

        The driver does that itself: strips of the tile may still be killing workers.
        """
        chain.fault = reason
        state.again(chain.tile.coadd_id)
        if chain.attempt < ATTEMPTS:
            self.suspects.append(Chain(chain.tile, chain.attempt + 1))
            return
        words = f"{reason} (in {ATTEMPTS} attempts, the last with nothing beside it and half the sources at a time)"
        words += ": give workers more memory, or look at this tile"
        state.commit(*commit_fault(self.context, chain.tile, words))

    def renew(self, chain: Chain, fault: TileFault, state: RunState) -> None:
        """Begin a tile again whose files changed meanwhile, after the others; or commit its rows without a class."""
        chain.fault = str(fault)
        state.again(chain.tile.coadd_id)
        if chain.tile.attempt < TILE_ATTEMPTS:
            self.chains.append(Chain(next_attempt(chain.tile), chain.attempt))
        else:
            state.commit(*commit_fault(self.context, chain.tile, kept_changing(fault)))

    def give_up(self, chain: Chain) -> None:
        """Take back the tasks of a tile that are not at work yet, and forget them all."""
        self.client.cancel(chain.futures, force=True, reason="given up")
        self.forget(chain)

    def forget(self, chain: Chain) -> None:
        """Drop the tasks of a tile that is done or given up."""
        for key in chain.keys:
            for table in (self.tasks, self.in_flight, self.committing):
                table.pop(key, None)
        chain.results.clear()
        chain.futures.clear()
        chain.keys.clear()

    def restart_hung(self, state: RunState) -> None:
        """Drop the tiles whose tasks are at work, restart the workers that are at it, and begin the tiles again."""
        hung = at_work(self.client, self.tasks)
        chains = {id(chain): chain for keys in hung.values() for chain in map(self.tasks.__getitem__, keys)}.values()
        words = f"nothing finished for {self.patience_s:.0f} s"
        log.warning(words)
        for chain in chains:
            chain.fault = words
            self.give_up(chain)
        restart(self.client, hung)
        for chain in chains:
            self.again(chain, words, state)
