"""The straight line on Dask: a bounded window of futures. The only file that builds Dask work.

Dask has no back-pressure between pools of workers (distributed#9164), so the driver itself keeps only a few
strips in flight and refills as they finish: memory and scheduler state are O(in flight), never O(sky).
Where workers are labelled `GPU`, CUT runs beside them and INFER on them; elsewhere both are one task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from distributed import Client, Future, as_completed
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from .cluster import WorkerSetup, connect, refuse_skew
from .config import RunConfig
from .errors import SkyclassError
from .lease import hold_lease
from .pipeline import finish, pending
from .plan import Line, begin, count_partition, earlier, strips_of, survey
from .progress import RunReport, Tally, Watch, show, strip_facts
from .stages import classify_strip, commit_fault, commit_strips, cut_strip, infer_strip
from .types import Strip, TilePlan

STRIPS_PER_SLOT = 2
"""In flight for each thread that infers: one at work, one whose pixels are being made or moved."""

ATTEMPTS = 2
"""Times that a tile is begun before it is quarantined because its workers died: the last time alone, since Dask
blames whatever a dying worker held, innocent neighbours too (distributed#5234)."""

SMALLEST_STRIP = 1_024
"""A small run is cut finer, so that each worker has a few strips; never finer than this."""

WORKERS_TIMEOUT_S = 600


@dataclass(frozen=True)
class Roles:
    """Where work goes, as Dask resources, and how many strips may be in flight (`window`)."""

    split: bool
    window: int
    cut: dict[str, float] | None = None
    infer: dict[str, float] | None = None


@dataclass
class Chain:
    """A tile on its way: its strips' results and, when the last is submitted, its commit, as futures."""

    tile: TilePlan
    attempt: int = 1
    results: list[Future[Any]] = field(default_factory=list)


def classify(run: RunConfig, client: Client | None = None, watch: Watch = show) -> RunReport:
    """Return the report of a run on a cluster, its catalogue published under `run.out`/catalog.

    Without a client, the cluster that `run` names is made or joined. Running the same configuration again
    resumes: committed tiles are not touched. Raises `ConfigError` before any work for input that cannot be used.
    """
    with nullcontext(client) if client else cluster_of(run) as client, dask_faults():
        await_workers(client)
        refuse_skew(client)
        client.register_plugin(WorkerSetup())
        line, plan, table = survey(run, partial(count_on, client))
        with hold_lease(line.folder) as lease:
            line = begin(run, line, plan, table)
            tally = Tally(line, plan, lease)
            with watch(tally.resume(earlier(run, line))) as tally.watcher:
                drive(client, tally, pending(plan, tally), run.strip_sources)
            return finish(line, tally, partial(spread, client))


def cluster_of(run: RunConfig) -> AbstractContextManager[Client]:
    """Give a client of the cluster that a run names."""
    return connect(run.cluster, run.workers, run.memory_limit, 0 if run.device == "cpu" else None)


def await_workers(client: Client) -> None:
    """Wait for the first worker; `SkyclassError` when none comes."""
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
    except TimeoutError as error:
        raise SkyclassError(f"no worker joined {client} in {WORKERS_TIMEOUT_S} s") from error


@contextmanager
def dask_faults() -> Iterator[None]:
    """Turn what Dask raises when workers or the scheduler die into one message of ours."""
    try:
        yield
    except (KilledWorker, CancelledError, CommClosedError) as error:
        raise SkyclassError(
            f"{type(error).__name__}: {error}; what is committed is kept, and the same command resumes"
        ) from error


def count_on(client: Client, line: Line, partitions: Iterable[int]) -> pa.Table:
    """Return (coadd_id, partition, n) of partitions: one dataframe job on the workers."""
    meta = pd.DataFrame({"coadd_id": pd.Series(dtype="str"), "partition": 0, "n": 0}, index=[]).astype(
        {"partition": "int64", "n": "int64"}
    )
    counts = dd.from_map(_count_frame, list(partitions), args=[line], meta=meta, enforce_metadata=False)
    return pa.Table.from_pandas(client.compute(counts).result(), preserve_index=False)


def _count_frame(partition: int, line: Line) -> pd.DataFrame:
    frame: pd.DataFrame = count_partition(line, partition).to_pandas()
    return frame


def spread(client: Client, work: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Give work(*item) of every item, done by the workers, as they finish; `STRIPS_PER_SLOT` in flight a thread.

    The work must bear being done twice: an item whose worker died is given out again, as the blame may lie elsewhere.
    """
    source, done = iter(items), as_completed(loop=client.loop)
    in_flight: dict[Any, tuple[tuple[Any, ...], int]] = {}

    def begin(item: tuple[Any, ...], attempt: int) -> None:
        future = client.submit(work, *item, pure=False)
        in_flight[future.key] = item, attempt
        done.add(future)

    for item in islice(source, STRIPS_PER_SLOT * max(1, sum(client.nthreads().values()))):
        begin(item, 1)
    for future in done:
        item, attempt = in_flight.pop(future.key)
        try:
            result = future.result()
        except KilledWorker:
            if attempt == ATTEMPTS:
                raise
            begin(item, attempt + 1)
            continue
        for more in islice(source, 1):
            begin(more, 1)
        yield result


def roles(client: Client) -> Roles:
    """Return who does what: split where workers are labelled `GPU`, fused where none is.

    The window is two strips for each thread that infers and, when split, one for each that cuts.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    gpu_slots = sum(int(w["resources"].get("GPU", 0)) for w in workers)
    if not gpu_slots:
        return Roles(False, STRIPS_PER_SLOT * max(1, sum(w["nthreads"] for w in workers)))
    cpu_slots = sum(int(w["resources"].get("CPU", 0)) for w in workers)
    return Roles(True, STRIPS_PER_SLOT * gpu_slots + cpu_slots, {"CPU": 1} if cpu_slots else None, {"GPU": 1})


def drive(client: Client, tally: Tally, tiles: list[TilePlan], strip_sources: int) -> None:
    """Take tiles down the line, longest first, with a bounded number of strips in flight."""
    who = roles(client)
    fair = -(-sum(tile.n_sources for tile in tiles) // (2 * who.window))
    window = Window(client, tally.line, who, min(strip_sources, max(fair, SMALLEST_STRIP)), tiles)
    window.fill()
    for future in window.done:
        window.settle(future, tally)
        window.fill()


class Window:
    """The strips in flight, never more than `who.window`. A tile is committed when its last strip is submitted."""

    def __init__(self, client: Client, line: Line, who: Roles, strip_sources: int, tiles: list[TilePlan]) -> None:
        self.client, self.line, self.who, self.strip_sources = client, line, who, strip_sources
        self.chains = deque(Chain(tile) for tile in tiles)
        self.suspects: deque[Chain] = deque()
        self.strips: Iterator[tuple[Chain, Strip, bool]] = iter(())
        self.done: Any = as_completed(loop=client.loop)
        self.in_flight: dict[str, Chain] = {}
        self.committing: dict[str, Chain] = {}

    def fill(self) -> None:
        """Submit strips until the window is full or none is left."""
        while len(self.in_flight) < self.who.window and (item := self.next_strip()):
            chain, strip, is_last = item
            result = self.submit_strip(strip)
            chain.results.append(result)
            self.watch(self.in_flight, self.submit(strip_facts, result, resources=self.who.cut), chain)
            if is_last:
                commit = self.submit(commit_strips, self.line, chain.tile, chain.results, resources=self.who.cut)
                self.watch(self.committing, commit, chain)

    def next_strip(self) -> tuple[Chain, Strip, bool] | None:
        """Return the next strip of the tile at hand, or the first of the next tile; suspects last, one by one."""
        while (item := next(self.strips, None)) is None:
            if not self.chains and (not self.suspects or self.in_flight or self.committing):
                return None
            chain = (self.chains or self.suspects).popleft()
            strips = strips_of(chain.tile, self.strip_sources)
            self.strips = ((chain, strip, strip is strips[-1]) for strip in strips)
        return item

    def watch(self, kind: dict[str, Chain], future: Future[Any], chain: Chain) -> None:
        """Hear of a future when it is done."""
        kind[str(future.key)] = chain
        self.done.add(future)

    def submit_strip(self, strip: Strip) -> Future[Any]:
        """Submit CUT and INFER of a strip, as one task or as two."""
        if not self.who.split:
            return self.submit(classify_strip, self.line, strip)
        composites = self.submit(cut_strip, self.line, strip, resources=self.who.cut)
        return self.submit(infer_strip, self.line, composites, resources=self.who.infer)

    def submit(self, work: Callable[..., Any], *parts: Any, resources: dict[str, float] | None = None) -> Future[Any]:
        """Submit one task; equal work of another attempt is other work."""
        future: Future[Any] = self.client.submit(work, *parts, pure=False, resources=resources)
        return future

    def settle(self, future: Future[Any], tally: Tally) -> None:
        """Count a finished strip or commit; begin a tile again whose worker died. Any other error ends the run."""
        key = str(future.key)
        strip_of, commit_of = self.in_flight.pop(key, None), self.committing.pop(key, None)
        try:
            result = future.result()
        except KilledWorker as error:
            if commit_of:  # its strips fail with it, and only this is counted
                self.again(commit_of, str(error), tally)
            return
        if strip_of:
            tally.strip(result)
        elif commit_of:
            tally.commit(*result)

    def again(self, chain: Chain, reason: str, tally: Tally) -> None:
        """Begin a tile again whose worker died; after `ATTEMPTS`, commit its rows without a class.

        The driver does that itself: strips of the tile may still be killing workers.
        """
        if chain.attempt < ATTEMPTS:
            self.suspects.append(Chain(chain.tile, chain.attempt + 1))
            return
        words = f"workers died of it in {ATTEMPTS} attempts, once with nothing beside it ({reason})"
        tally.commit(*commit_fault(self.line, chain.tile, words))
