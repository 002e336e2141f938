"""The straight line on Dask: a bounded window of futures. The only file that builds Dask work.

Dask has no back-pressure between pools of workers (distributed#9164), so the driver itself keeps only a few
strips in flight and refills as they finish: memory and scheduler state are O(in flight), never O(sky).
Where workers are labelled `GPU`, CUT runs beside them and INFER on them; elsewhere both are one task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from distributed import Client, Future, as_completed
from distributed.scheduler import KilledWorker

from .cluster import WorkerSetup, connect
from .config import RunConfig
from .errors import SkyclassError
from .pipeline import finish, pending
from .plan import Line, count_partition, prepare, strips_of
from .progress import RunReport, Tally, Watch, show, strip_facts
from .stages import classify_strip, commit_strips, cut_strip, infer_strip
from .store import committed, hold_lease, journal_commit
from .types import Strip, TilePlan

STRIPS_PER_SLOT = 2
"""In flight for each thread that infers: one at work, one whose pixels are being made or moved."""

ATTEMPTS = 3
"""Times that a tile is begun again after its worker died."""

SMALLEST_STRIP = 1_024
"""A small run is cut finer, so that each worker has a few strips; never finer than this."""


@dataclass(frozen=True)
class Roles:
    """Where work goes: `infer` and `cut` are Dask resources, `slots` the threads that infer."""

    split: bool
    slots: int
    cut: dict[str, float] | None = None
    infer: dict[str, float] | None = None


@dataclass
class Chain:
    """A tile on its way: its strips' small facts and its commit, as futures."""

    tile: TilePlan
    attempt: int = 1
    strips: list[Future[Any]] = field(default_factory=list)
    commit: Future[Any] | None = None


def classify(run: RunConfig, client: Client | None = None, watch: Watch = show) -> RunReport:
    """Return the report of a run on a cluster, its catalogue published under `run.out`/catalog.

    Without a client, the cluster that `run` names is made or joined. Running the same configuration again
    resumes: committed tiles are not touched. Raises `ConfigError` before any work for input that cannot be used.
    """
    with nullcontext(client) if client else connect(run.cluster, run.workers, run.memory_limit) as client:
        client.register_plugin(WorkerSetup())
        line, plan = prepare(run, partial(count_on, client))
        with hold_lease(line.folder), watch(plan.n_sources) as watcher:
            tally = Tally(line, plan, watcher)
            tally.resume(committed(line.folder))
            drive(client, tally, pending(plan, tally), run.strip_sources)
            return finish(line, tally, partial(spread, client))


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


def spread(client: Client, work: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Give work(*item) of every item, done by the workers, as they finish."""
    futures = [client.submit(work, *item, pure=False) for item in items]
    for _, result in as_completed(futures, with_results=True):
        yield result


def roles(client: Client) -> Roles:
    """Return who does what: split where workers are labelled `GPU`, fused where none is."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    gpu_slots = sum(int(w["resources"].get("GPU", 0)) for w in workers)
    if not gpu_slots:
        return Roles(split=False, slots=max(1, sum(w["nthreads"] for w in workers)))
    labelled = any("CPU" in w["resources"] for w in workers)
    return Roles(True, gpu_slots, {"CPU": 1} if labelled else None, {"GPU": 1})


def drive(client: Client, tally: Tally, tiles: list[TilePlan], strip_sources: int) -> None:
    """Take tiles down the line, longest first, with a bounded number of strips in flight."""
    who = roles(client)
    n_sources = sum(tile.n_sources for tile in tiles)
    fair = -(-n_sources // (2 * STRIPS_PER_SLOT * who.slots))
    strip_sources = min(strip_sources, max(fair, SMALLEST_STRIP))
    window = Window(client, tally.line, who, strip_sources, iter(tiles))
    window.fill()
    for future in window.done:
        window.settle(future, tally)
        window.fill()


class Window:
    """The strips in flight. Filled from `tiles`; a chain leaves when its tile is committed."""

    def __init__(self, client: Client, line: Line, who: Roles, strip_sources: int, tiles: Iterator[TilePlan]) -> None:
        self.client, self.line, self.who, self.tiles = client, line, who, tiles
        self.strip_sources = strip_sources
        self.size = who.slots * STRIPS_PER_SLOT + 1
        self.done: Any = as_completed(with_results=False)
        self.chains: dict[str, Chain] = {}

    def fill(self) -> None:
        """Begin tiles until the window is full or none is left."""
        while self.in_flight() < self.size and (tile := next(self.tiles, None)):
            self.begin(Chain(tile))

    def in_flight(self) -> int:
        """Return the number of strips that are not through the network yet."""
        return sum(not f.done() for chain in self.chains.values() for f in chain.strips)

    def begin(self, chain: Chain) -> None:
        """Submit the strips of a tile and its commit."""
        strips = strips_of(chain.tile, self.strip_sources)
        results = [self.submit_strip(strip) for strip in strips]
        chain.strips = [self.submit(strip_facts, result) for result in results]
        chain.commit = self.submit(commit_strips, self.line, chain.tile, results)
        self.chains[str(chain.commit.key)] = chain
        self.done.update([*chain.strips, chain.commit])

    def submit_strip(self, strip: Strip) -> Future[Any]:
        """Submit CUT and INFER of a strip, as one task or as two."""
        if not self.who.split:
            return self.submit(classify_strip, self.line, strip)
        composites = self.submit(cut_strip, self.line, strip, resources=self.who.cut)
        return self.submit(infer_strip, self.line, composites, resources=self.who.infer)

    def submit(self, work: Any, *parts: Any, **placing: Any) -> Future[Any]:
        """Submit one task; equal work of another attempt is other work."""
        future: Future[Any] = self.client.submit(work, *parts, pure=False, **placing)
        return future

    def settle(self, future: Future[Any], tally: Tally) -> None:
        """Count a finished strip or commit; begin a tile again whose worker died."""
        chain = self.chains.get(str(future.key))
        if future.status == "error":
            self.again(chain, future.exception())
        elif chain:
            commit, timing = future.result()
            journal_commit(tally.line.folder, commit)
            tally.commit(commit, timing)
            del self.chains[str(future.key)]
        else:
            tally.strip(*future.result())

    def again(self, chain: Chain | None, error: BaseException | None) -> None:
        """Begin a tile again if a dying worker took it along; any other error ends the run."""
        if not isinstance(error, KilledWorker) or (chain and chain.attempt >= ATTEMPTS):
            raise error if isinstance(error, SkyclassError | OSError) else _surprise(error)
        if chain and chain.commit:  # its strips end with the same error and are not counted
            del self.chains[str(chain.commit.key)]
            self.begin(Chain(chain.tile, chain.attempt + 1))


def _surprise(error: BaseException | None) -> SkyclassError:
    wrapped = SkyclassError(
        f"a worker failed with {type(error).__name__}: {error}; what is committed is kept, and the same command resumes"
    )
    wrapped.__cause__ = error
    return wrapped
