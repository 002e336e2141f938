"""A simulated cluster for `benchmarks.scale`: many Dask workers in one process, and stages that sleep.

The workers are workers of Dask, which connect, send heartbeats, fetch and report. Their tasks take the time of the real
stages and have no pixels.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass

import click
import dask
import numpy as np
import pyarrow as pa
from distributed import Worker, get_worker

from skyclass.run.commits import Commit
from skyclass.run.context import RunContext, strips_of
from skyclass.run.strips import CutStrip, SourceValues, StripResult, Timing
from skyclass.types import DEFAULT_CLASSES, Strip, TilePlan

QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "1h",
}
"""Without these settings hundreds of workers would all profile the same process."""

IDS = pa.array(["J000000.00+000000.0"])


@dataclass(frozen=True)
class SleepContext(RunContext):
    """A run context whose stages sleep: rates in sources/s of a core that cuts, a GPU and a core that commits."""

    cut_rate: float = 0.0
    infer_rate: float = 0.0
    commit_rate: float = 0.0


def _sleep(stage: str, seconds: float) -> Timing:
    began = time.perf_counter()
    time.sleep(seconds)
    return Timing(stage, time.perf_counter() - began)


def cut_strip(context: SleepContext, strip: Strip) -> CutStrip:
    """Return a strip without pixels, after the time of cutting it."""
    timing = _sleep("cut", (strip.stop - strip.start) / context.cut_rate)
    values = SourceValues(np.zeros(1, np.int32), np.ones(1, np.float32), *np.full((2, 1), np.nan, np.float32))
    return CutStrip(strip, IDS, None, None, values, None, None, (timing,))


def infer_strip(context: SleepContext, composites: CutStrip) -> StripResult:
    """Return a strip without probabilities, after the time of its inference."""
    strip = composites.strip
    timing = _sleep("infer", (strip.stop - strip.start) / context.infer_rate)
    known = np.zeros((1, len(DEFAULT_CLASSES)), np.float32)
    timings = (*composites.timings, timing)
    return StripResult(strip, IDS, known, composites.values, None, None, timings)


def classify_strip(context: SleepContext, strip: Strip) -> StripResult:
    """Cut and infer a strip on a worker whose threads share one GPU."""
    composites = cut_strip(context, strip)
    with get_worker().gpu:
        return infer_strip(context, composites)


def commit_strips(
    context: SleepContext, tile: TilePlan, results: list[StripResult]
) -> tuple[Commit, tuple[Timing, ...]]:
    """Return a commit without a file that has the rows of the strips, after the time of the commit."""
    timing = _sleep("commit", tile.n_sources / context.commit_rate)
    rows = sum(r.strip.stop - r.strip.start for r in results)
    timings = [t for result in results for t in result.timings]
    commit = Commit(
        tile.coadd_id, f"tiles/{tile.coadd_id}.parquet", "0" * 64, 0, rows, 0, {DEFAULT_CLASSES[0]: rows}, {}
    )
    return commit, (*timings, timing)


def classify_whole(context: SleepContext, tile: TilePlan, strip_sources: int) -> tuple[Commit, tuple[Timing, ...]]:
    """Return the commit of a tile whose strips run one after the other."""
    return commit_strips(context, tile, [classify_strip(context, strip) for strip in strips_of(tile, strip_sources)])


class GpuWorker(Worker):
    """A worker whose threads share one simulated GPU."""

    def __init__(self, address: str, nthreads: int) -> None:
        super().__init__(address, nthreads=nthreads, resources={"GPU": 1}, memory_limit=0)
        self.gpu = threading.Lock()


async def run_workers(address: str, gpus: int, threads: int, cpu_workers: int, cores: int) -> None:
    """Run `gpus` workers with one GPU each and `cpu_workers` with `cores` cores each, until the scheduler ends."""
    with dask.config.set(QUIET):
        gpu = [GpuWorker(address, threads) for _ in range(gpus)]
        cpu = [Worker(address, nthreads=cores, resources={"CPU": cores}, memory_limit=0) for _ in range(cpu_workers)]
        workers = await asyncio.gather(*gpu, *cpu)
        await asyncio.gather(*(worker.finished() for worker in workers))


@click.command()
@click.argument("address")
@click.option("--gpus", type=int, required=True)
@click.option("--threads", type=int, required=True, help="Threads of a GPU worker.")
@click.option("--cpu-workers", type=int, required=True)
@click.option("--cores", type=int, required=True, help="Cores of a CPU worker.")
def main(address: str, gpus: int, threads: int, cpu_workers: int, cores: int) -> None:
    """Connect simulated workers to a scheduler."""
    asyncio.run(run_workers(address, gpus, threads, cpu_workers, cores))


if __name__ == "__main__":
    sys.exit(main())
