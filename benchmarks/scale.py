"""`python -m benchmarks.scale`: the full sky on a simulated cluster, with the engine's own driver.

Driver, window, journal, lease, scheduler and workers are the real ones. The stages sleep (`simulated_cluster.py`), so
the measurement shows the cost of the engine: CPU time of driver and scheduler for each strip, their memory, how busy
the GPUs are, and the tail. All workers share this machine with the driver and the scheduler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import psutil
from distributed import Client
from distributed.security import Security

from skyclass.engine import tile_window
from skyclass.engine.cluster import dask_environment
from skyclass.engine.tls import tls_environment
from skyclass.engine.workers import placement_of
from skyclass.mock.grid import grid, tile_name
from skyclass.model.bundle import load_bundle
from skyclass.run.lease import hold_lease
from skyclass.run.plan import Plan
from skyclass.run.state import RunState
from skyclass.types import TilePlan

from . import simulated_cluster
from .report import records_of
from .run import write_record
from .simulated_cluster import SleepContext
from .timing import commit, cores, cpu_model

SKY_SOURCES = 747_634_026
GPUS_A_PROCESS = 64
CORES_A_GPU = 4
GPUS_A_CPU_WORKER = 16
"""A CPU worker serves so many GPUs: thousands of workers that each cut with one core would not fit this machine."""
STRIP_SOURCES = 16_384
SETTLE_S, IDLE_S = 5, 10
STAGES = ("cut_strip", "infer_strip", "classify_strip", "classify_whole", "commit_strips")
FORMS = ("split", "fused")
"""split: CPU workers cut. fused: GPU workers have the threads that cut."""
TILE_PX, SIZE_PX, N_BANDS = 4_095, 37, 3
PIXEL_BYTES = 2 * N_BANDS * SIZE_PX**2
RATES = {"cut_rate": 40_000.0, "infer_rate": 100_000.0, "commit_rate": 400_000.0}
"""Simulated sources/s of the stages: of a core that cuts, a GPU, and a core that commits."""


@dataclass
class Record:
    """Observations during a run: (seconds, driver bytes, scheduler bytes), and (seconds, strips in flight)."""

    memory: list[tuple[float, int, int]] = field(default_factory=list)
    in_flight: list[tuple[float, int]] = field(default_factory=list)

    def slope(self, column: int, n_strips: int) -> float:
        """Return MB per 1,000 strips of the driver (1) or the scheduler (2), fitted after the first tenth."""
        rows = np.array(self.memory[len(self.memory) // 10 :], dtype=float)
        if len(rows) < 3:
            return 0.0
        per_s = np.polyfit(rows[:, 0], rows[:, column], 1)[0]
        return float(per_s * self.memory[-1][0] / n_strips * 1_000 / 1e6)


def sky_plan(n_tiles: int | None = None) -> Plan:
    """Return all 18,240 tiles with the number of sources of AllWISE, or every k-th tile.

    The counts are simulated: a disc along the Galactic plane and a uniform sky, with a scatter of a fifth.
    """
    from astropy.coordinates import SkyCoord

    ra, dec = grid()
    latitude = np.abs(SkyCoord(ra, dec, unit="deg").galactic.b.deg)
    rng = np.random.default_rng(1)
    weight = (1 + 3 * np.exp(-latitude / 12)) * rng.lognormal(0, 0.2, len(ra))
    counts = np.floor(SKY_SOURCES * weight / weight.sum()).astype(int)
    counts[: SKY_SOURCES - counts.sum()] += 1
    chosen = range(0, len(ra), max(1, len(ra) // n_tiles) if n_tiles else 1)
    tiles = [
        TilePlan(tile_name(float(ra[i]), float(dec[i])), int(counts[i]), tuple(range(i, i + 4)))
        for i in list(chosen)[:n_tiles]
    ]
    return Plan(tuple(sorted(tiles, key=lambda tile: (-tile.n_sources, tile.coadd_id))), "simulated")


def n_strips(plan: Plan) -> int:
    """Return the number of strips of a plan."""
    return sum(-(-tile.n_sources // STRIP_SOURCES) for tile in plan.tiles)


@contextmanager
def start_cluster(gpus: int, form: str, profile: Path | None = None) -> Iterator[tuple[Client, psutil.Process]]:
    """Give a client of a scheduler with `gpus` simulated GPU workers, and the process of the scheduler.

    In the form "split" there are CPU workers for them; in the form "fused" GPU workers have the threads that cut. The
    scheduler writes its profile to `profile` when it ends.
    """
    security = Security.temporary()
    environment = os.environ | dask_environment() | tls_environment(security) | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(os.chdir, os.getcwd())
        note = Path(folder) / "scheduler.json"
        command = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else [])]
        command += ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
        command += ["--no-dashboard", "--scheduler-file", str(note)]
        scheduler = _start(stack, command, environment, folder)
        while not note.exists():
            time.sleep(0.1)
        address = json.loads(note.read_text())["address"]
        n_workers = gpus
        for first in range(0, gpus, GPUS_A_PROCESS):
            n = min(GPUS_A_PROCESS, gpus - first)
            cpu_workers = 0 if form == "fused" else -(-n // GPUS_A_CPU_WORKER)
            n_workers += cpu_workers
            command = [sys.executable, "-m", "benchmarks.simulated_cluster", address, "--gpus", str(n)]
            command += ["--threads", str(CORES_A_GPU if form == "fused" else 1)]
            command += ["--cpu-workers", str(cpu_workers)]
            command += ["--cores", str(CORES_A_GPU * min(n, GPUS_A_CPU_WORKER))]
            _start(stack, command, environment, folder)
        client = stack.enter_context(Client(address, timeout="60s", security=security))
        client.wait_for_workers(n_workers, timeout=600)
        client.run_on_scheduler(import_stages)  # otherwise the first task would include the import of torch
        yield client, psutil.Process(scheduler.pid)


def import_stages() -> bool:
    """Import the stages, and return whether they are there."""
    from . import simulated_cluster

    return hasattr(simulated_cluster, "cut_strip")


def _start(
    stack: ExitStack, command: Sequence[str], environment: dict[str, str], folder: str
) -> subprocess.Popen[bytes]:
    checkout = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment | {"PYTHONPATH": checkout},
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


@contextmanager
def watched(record: Record, scheduler: psutil.Process) -> Iterator[None]:
    """Record memory and strips in flight during the block."""
    began, ended, here = time.monotonic(), threading.Event(), psutil.Process()
    fill = tile_window.TileWindow.fill

    def recorded(window: tile_window.TileWindow) -> None:
        fill(window)
        record.in_flight.append((time.monotonic() - began, window.window.n_in_flight))

    def sample() -> None:
        while True:
            row = time.monotonic() - began, here.memory_info().rss, scheduler.memory_info().rss
            record.memory.append(row)
            if ended.wait(0.5):
                return

    thread = threading.Thread(target=sample, daemon=True)
    with patch.object(tile_window.TileWindow, "fill", recorded):
        thread.start()
        yield
        ended.set()
        thread.join()


def idle_cost(here: psutil.Process, scheduler: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds of driver and scheduler in a second without work, mostly for heartbeats."""
    time.sleep(SETTLE_S)
    before = cpu_seconds(here), cpu_seconds(scheduler)
    time.sleep(IDLE_S)
    return (cpu_seconds(here) - before[0]) / IDLE_S, (cpu_seconds(scheduler) - before[1]) / IDLE_S


def simulate(
    gpus: int, plan: Plan, rates: dict[str, float], form: str = "split", profile: Path | None = None
) -> dict[str, Any]:
    """Return the record of a plan that the engine runs on simulated workers. Every row is accounted for."""
    out, bundle, record = tempfile.mkdtemp(prefix="skyclass-scale-"), load_bundle("iicnet-mock"), Record()
    context = SleepContext(
        "sky", None, "sky", "iicnet-mock", bundle.digest, "fp32", "cpu", out, "scale", "scale", **rates
    )
    context.folder.make()
    stages = {name: getattr(simulated_cluster, name) for name in STAGES}
    try:
        with start_cluster(gpus, form, profile) as (client, scheduler), hold_lease(context.folder) as lease:
            tally, here = RunState(context, plan, lease), psutil.Process()
            idle = idle_cost(here, scheduler)
            before = cpu_seconds(here), cpu_seconds(scheduler)
            began = time.monotonic()
            with patch.multiple(tile_window, **stages), watched(record, scheduler):
                tile_window.run_tiles(client, tally, list(plan.tiles), STRIP_SOURCES, placement_of(client))
            wall = time.monotonic() - began
            driver, schedule = cpu_seconds(here) - before[0], cpu_seconds(scheduler) - before[1]
            report = tally.report()  # raises RowsLost unless rows in = rows out
            journal = len(context.folder.journal_path.read_text().splitlines())
            peak = max(n for _, n in record.in_flight)
            return {
                "stage": "scale", "form": form, "gpus": gpus, "cutting_cores": CORES_A_GPU * gpus, **rates,
                "tiles": report.tiles, "strips": n_strips(plan), "rows_in": report.sources_in,
                "rows_out": report.classified, "journal_lines": journal,
                "wall_s": round(wall, 1),
                "driver_ms_a_strip": round(1e3 * driver / n_strips(plan), 3),
                "scheduler_ms_a_strip": round(1e3 * schedule / n_strips(plan), 3),
                "driver_idle_share": round(idle[0], 4), "scheduler_idle_share": round(idle[1], 4),
                "window": placement_of(client).window, "in_flight_peak": peak,
                "gpu_busy": round(report.stage_seconds["infer"] / wall / gpus, 3),
                "tail": round(tail(record, wall), 3),
                "driver_mb": [round(record.memory[0][1] / 1e6), round(max(m for _, m, _ in record.memory) / 1e6)],
                "scheduler_mb": [round(record.memory[0][2] / 1e6), round(max(m for _, _, m in record.memory) / 1e6)],
                "driver_mb_per_1000_strips": round(record.slope(1, n_strips(plan)), 2),
                "scheduler_mb_per_1000_strips": round(record.slope(2, n_strips(plan)), 2),
            }  # fmt: skip
    finally:
        shutil.rmtree(out, ignore_errors=True)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def tail(record: Record, wall: float) -> float:
    """Return the share of the time after the last moment with a full window."""
    full = max(n for _, n in record.in_flight)
    return 1 - max(t for t, n in record.in_flight if n == full) / wall


def cost_table(plan: Plan, measured: Iterable[dict[str, Any]]) -> str:
    """Return the cost of the whole sky and the source of each number, from result lines of `python -m benchmarks`."""
    rates = {r["stage"]: r for r in measured if "scenario" in r}
    n, tiles, strips = plan.n_sources, len(plan.tiles), n_strips(plan)
    rows_read = tiles * TILE_PX + (strips - tiles) * (SIZE_PX - 1)
    tile_bytes = rows_read * TILE_PX * 4 * N_BANDS
    machine = rates["read"]["hardware"]["cpu"]

    def core_hours(stage: str) -> float:
        per_source = rates[stage]["seconds"] * rates[stage]["threads"] / rates[stage]["n_sources"]
        return float(n * per_source / 3600)

    written = rates["commit"]["MB_per_s"] * rates["commit"]["seconds"] * 1e6 / rates["commit"]["n_sources"]
    cutting = core_hours("read") + core_hours("composites")
    on_gpu = n / RATES["infer_rate"] / 3600
    rows = [
        ("sources, tiles, strips", f"{n:,}, {tiles:,}, {strips:,}", "published; strips: of simulated counts"),
        ("tile bytes read", f"{tile_bytes / 1e12:.2f} TB", "arithmetic: 3 bands, each row once, 36 rows more a strip"),
        ("requests, if read from a bucket", f"{N_BANDS * (strips + tiles):,}", "arithmetic: rows and headers"),
        ("pixels sent from CPU to GPU workers", f"{n * PIXEL_BYTES / 1e12:.2f} TB", "arithmetic: float16, where split"),
        ("reading, cutting, compositing", f"{cutting:,.0f} core hours", f"measured on {machine}, one core"),
        ("network on CPUs", f"{core_hours('infer'):,.0f} core hours", f"measured on {machine}, not compiled"),
        ("network on one GPU", f"{on_gpu:.1f} GPU hours", "assumed: 100,000 images/s, none at hand"),
        ("committing and publishing", f"{core_hours('commit') + core_hours('publish'):,.0f} core hours", "measured"),
        ("results written", f"{n * written / 1e9:,.0f} GB, and as much published", "measured bytes a source"),
    ]  # fmt: skip
    head = "The whole sky, before anybody pays: prices are left to the reader."
    lines = ["| | amount | how known |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return head + "\n\n" + "\n".join(lines)


@click.command()
@click.option("--gpus", default="1,8,64,256", show_default=True, help="Numbers of simulated GPUs, comma-separated.")
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="[default: both]")
@click.option("--seconds", default=60.0, show_default=True, help="Least of simulated work: fewer GPUs, fewer tiles.")
@click.option("--full", is_flag=True, help="All 18,240 tiles for 64 GPUs and more.")
@click.option(
    "--cost", type=click.Path(exists=True), help="Print what the sky costs, by lines of `python -m benchmarks`."
)
@click.option("-o", "--output", help="Append the JSON lines to this file.")
def main(gpus: str, forms: tuple[str, ...], seconds: float, full: bool, cost: str | None, output: str | None) -> None:
    """Run a simulated sky on simulated GPUs, and measure the cost of the engine."""
    whole = sky_plan()
    if cost:
        click.echo(cost_table(whole, records_of(Path(cost))))
        return
    for n in map(int, gpus.split(",")):
        share = min(1.0, seconds * n * RATES["infer_rate"] / SKY_SOURCES)
        plan = whole if full and n >= 64 else sky_plan(max(1, round(share * len(whole.tiles))))
        around = {"simulated": True, "cpu": cpu_model(), "cores": cores(), "commit": commit()}
        for form in forms or FORMS:
            write_record(simulate(n, plan, RATES, form) | around, output, click.echo)


if __name__ == "__main__":
    main()
