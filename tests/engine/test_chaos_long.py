"""The long part of the chaos suite: `make chaos`. Whole clusters of real processes, killed, frozen and cut off."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

from skyclass.catalog.manifest import read_manifest
from skyclass.engine import cluster, engine
from skyclass.engine.cluster import connect, worker_pool
from skyclass.errors import ClusterLost, Interrupted
from skyclass.mock import write_mock
from skyclass.run import pipeline
from skyclass.run.config import RunConfig
from skyclass.run.context import strips_of
from skyclass.run.folder import RunFolder
from skyclass.run.plan_report import strip_bytes
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.progress import no_progress
from tests.support import traps
from tests.support.faults import Chaos
from tests.support.pools import SECURITY, Pool, await_true, drive, kill, n_committed, running
from tests.support.runs import rows_of, run_on
from tests.support.traps import Trap

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
cloudpickle.register_pickle_by_value(traps)

STRIPS_PER_TILE = 4


@pytest.fixture(scope="module")
def sky64(tmp_path_factory):
    """Sixty-four small tiles."""
    return write_mock(str(tmp_path_factory.mktemp("sky64")), n_tiles=64, seed=3, sources_per_tile=60, size_px=256)


@pytest.fixture(scope="module")
def undisturbed(sky64, bundle, tmp_path_factory) -> pa.Table:
    """The rows of the plain pipeline."""
    run = run_on(sky64, bundle, tmp_path_factory.mktemp("undisturbed") / "classes", 16_384)
    pipeline.classify(run)
    return rows_of(run)


@pytest.fixture
def run(sky64, bundle, tmp_path) -> RunConfig:
    return run_on(sky64, bundle, tmp_path / "classes", 16)


# --- the soak --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Kill:
    """Who was killed when."""

    time: float
    who: str


@pytest.mark.timeout(6000)
@pytest.mark.fault(1, 8, 9)
def test_two_hundred_kills_at_random_moments(sky64, bundle, undisturbed, chaos: Chaos, tmp_path):
    """Workers, drivers and schedulers are killed while 64 tiles are classified, over and over, until 200 are dead."""
    wanted, dice = int(os.environ.get("CHAOS_KILLS", "200")), random.Random(1)
    kills, redone, rounds, strips = Counter(), [], 0, 0
    pool = Pool(tmp_path / "pool", linger_s=0.2)
    pool.start()
    try:
        while sum(kills.values()) < wanted:
            run = run_on(sky64, bundle, tmp_path / f"round-{rounds}", 16)
            pool.trace.unlink(missing_ok=True)
            done = one_round(run, pool, dice, wanted - sum(kills.values()), tmp_path)
            rounds += 1
            kills.update(k.who for k in done)
            strips += len({(tile, start) for _, tile, start in pool.begun()})
            redone += [(who, n / STRIPS_PER_TILE) for who, n in redone_after(done, pool.begun())]
            chaos.same_rows(rows_of(run), undisturbed)
            shutil.rmtree(run.out)
    finally:
        pool.stop()
    chaos.injected(sum(kills.values()))
    told = ", ".join(f"{n} of a {who}" for who, n in kills.items())
    chaos.note(f"soak: {sum(kills.values())} kills ({told}) in {rounds} rounds over 64 tiles ({strips} strips)")
    for who in kills:
        tiles = [n for victim, n in redone if victim == who]
        chaos.note(
            f"work done again after the kill of a {who}, in tiles: mean {np.mean(tiles):.2f}, most {max(tiles):.2f}"
        )
    assert np.mean([n for _, n in redone]) <= 1


def one_round(run: RunConfig, pool: Pool, dice: random.Random, most: int, cwd: Path) -> list[Kill]:
    """Take one run to its end with kills all the way; return them."""
    kills: list[Kill] = []
    driver = drive(run, pool.address, cwd)
    until, n_begun = time.monotonic() + 5400, 0
    while True:
        assert time.monotonic() < until, "the round does not end"
        if driver.poll() is not None:
            _, said = driver.communicate()
            if driver.returncode == 0:
                return kills
            came_too_late = "no Dask scheduler answers" in said
            assert came_too_late or driver.returncode in (-signal.SIGKILL, Interrupted.exit_code), said
            driver = drive(run, pool.address, cwd)
        time.sleep(0.1)
        if len(kills) == most or driver.poll() is not None or len(pool.begun()) == n_begun:
            continue  # who is killed faster than workers come back gets nowhere (distributed's nannies take seconds)
        time.sleep(dice.uniform(0, 3))
        n_begun = len(pool.begun())
        who = dice.choices(("worker", "driver", "scheduler"), (65, 31, 4))[0]
        if who == "scheduler":
            pool.stop()
            driver.wait(60)
            pool.start()
        elif not kill(driver.pid if who == "driver" else dice.choice(pool.workers() or [driver.pid])):
            continue
        elif who == "driver":
            driver.wait(10)
        kills.append(Kill(time.time(), who))


def redone_after(kills: list[Kill], begun: list[tuple[float, str, int]]) -> list[tuple[str, int]]:
    """Return who was killed and how many strips were begun a second time until the next kill."""
    seen: set[tuple[str, int]] = set()
    counts = [0] * len(kills)
    for moment, tile, start in begun:
        if (tile, start) in seen:
            before = [i for i, k in enumerate(kills) if k.time - 0.5 <= moment]
            counts[before[-1] if before else 0] += 1
        seen.add((tile, start))
    return [(k.who, n) for k, n in zip(kills, counts, strict=True)]


# --- one fault at a time ---------------------------------------------------------------------------


@pytest.mark.fault(3)
def test_a_worker_that_needs_too_much_memory(sky64, bundle, tmp_path, undisturbed, chaos: Chaos, monkeypatch):
    """One tile fits when its strips are halved, another never does."""
    monkeypatch.setitem(cluster.DASK_SETTINGS, "distributed.scheduler.allowed-failures", 0)
    run = run_on(sky64, bundle, tmp_path / "classes", 64)
    large, hopeless = sky64.coadd_ids[:2]
    with connect("local", workers=1, memory_limit="1.2GB") as client:
        client.register_plugin(Trap(large, traps.Hungry(40)))
        client.register_plugin(Trap(hopeless, traps.Hungry(0)))
        report = engine.classify(run, client, no_progress)
    assert list(report.quarantined) == [hopeless] and "more memory" in report.quarantined[hopeless]
    chaos.injected(3)
    rows = rows_of(run)
    assert len(rows) == sky64.n_sources
    chaos.same_rows(*[t.filter(pc.not_equal(t["coadd_id"], hopeless)) for t in (rows, undisturbed)])


@pytest.mark.fault(6)
def test_a_frozen_worker_is_passed_over(run, undisturbed, chaos: Chaos, tmp_path):
    ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "8s"}
    with running(Pool(tmp_path / "pool", linger_s=0.2, settings=ttl)) as pool:
        driver = drive(run, pool.address, tmp_path)
        await_true(lambda: n_committed(run) >= 5 or driver.poll() is not None, "five tiles are committed")
        os.kill(pool.workers()[0], signal.SIGSTOP)
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.fixture
def island() -> Iterator[str]:
    """A network of its own on this machine, 10.83.7.2, reached from 10.83.7.1; gives the name of the near end."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2 for a network namespace")
    near, far, space = "skyclass0", "skyclass1", "skyclass-island"

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=not check)

    ip("netns", "del", space, check=False)
    ip("link", "del", near, check=False)
    ip("netns", "add", space)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far)
        ip("link", "set", far, "netns", space)
        ip("addr", "add", "10.83.7.1/24", "dev", near)
        ip("link", "set", near, "up")
        for words in (
            ("addr", "add", "10.83.7.2/24", "dev", far),
            ("link", "set", far, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("netns", "exec", space, "ip", *words)
        yield near
    finally:
        ip("netns", "del", space, check=False)
        ip("link", "del", near, check=False)


@pytest.mark.fault(7)
def test_the_network_to_a_worker_is_cut_and_heals(run, undisturbed, island: str, chaos: Chaos, tmp_path):
    """The worker that is cut off goes on writing to the shared disk; who is second to claim a tile agrees or yields."""
    patience = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
    pool = Pool(tmp_path / "pool", n_workers=1, linger_s=0.3, settings=patience, host="10.83.7.1")
    inside = ("ip", "netns", "exec", "skyclass-island")
    with running(pool), Client(pool.address, security=SECURITY) as client:
        pool.add_worker(prefix=inside, host="10.83.7.2")
        client.wait_for_workers(2, timeout=60)
        driver = drive(run, pool.address, tmp_path)
        await_true(lambda: n_committed(run) >= 5 or driver.poll() is not None, "five tiles are committed")
        subprocess.run(["ip", "link", "set", island, "down"], check=True)
        cut_off = n_committed(run)
        await_true(lambda: len(client.scheduler_info()["workers"]) == 1, "the worker is given up", 60)
        subprocess.run(["ip", "link", "set", island, "up"], check=True)
        pool.add_worker(prefix=inside, host="10.83.7.2")  # Dask's own never comes back (distributed#6387)
        client.wait_for_workers(2, timeout=60)
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
    chaos.note(f"network: cut after {cut_off} of 64 tiles; a worker started when it was back joined the same run")
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.fault(20)
def test_one_tile_has_forty_times_as_many_sources(sky64, bundle, chaos: Chaos, tmp_path):
    """Peak memory of the workers is that of a run without such a tile, within a few pixels' rows."""
    known = pq.read_table(sky64.catalog).select(["ra", "dec", "source_id", "coadd_id"]).to_pandas()
    tiles = known.groupby("coadd_id").head(25)[lambda t: t["coadd_id"].isin(sky64.coadd_ids[:24])]
    crowd = known[known["coadd_id"] == sky64.coadd_ids[0]].sample(25 * 40, replace=True, random_state=0)
    crowd = crowd.assign(source_id=[f"crowd-{i}" for i in range(len(crowd))])
    peaks = {}
    for name, table in {"even": tiles, "skewed": pd.concat([tiles, crowd])}.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
        run = dataclasses.replace(run_on(sky64, bundle, tmp_path / name, 25), catalog=str(tmp_path / f"{name}.parquet"))
        with running(Pool(tmp_path / f"pool-{name}")) as pool:
            driver = drive(run, pool.address, tmp_path)
            _, said = driver.communicate(timeout=300)
            assert driver.returncode == 0, said
            peaks[name] = max(peak_mb(pid) for pid in pool.workers())
            ends = [moment for moment, _, _ in pool.begun()]
        assert len(rows_of(run)) == len(table)
    tail = (ends[-1] - ends[-2]) / (ends[-1] - ends[0])
    words = f"skew: peak of a worker {peaks['skewed']:.0f} MB against {peaks['even']:.0f} MB without the crowded tile"
    chaos.note(f"{words}; the last strip was begun {tail:.1%} of the run after the one before it")
    assert peaks["skewed"] < 1.1 * peaks["even"]


def peak_mb(pid: int) -> float:
    """Return the most memory that a process ever had."""
    facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(facts["VmHWM"].split()[0]) / 1e3


@contextmanager
def split_cluster(n_gpus: int = 1) -> Iterator[tuple[LocalCluster, Client]]:
    """A worker that stands in for a GPU and one that cuts."""
    gpu = {"threads_per_worker": 1, "resources": {"GPU": 1}, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=n_gpus, **gpu) as pool, Client(pool) as client:
        with worker_pool(pool.scheduler_address, 1, "CPU=1", "2GB"):
            client.wait_for_workers(n_gpus + 1)
            yield pool, client


@pytest.mark.fault(21)
@pytest.mark.parametrize("slow", ["cut_strip", "infer_strip"])
def test_one_pool_is_much_slower_than_the_other(run, undisturbed, chaos: Chaos, slow: str):
    """Strips do not pile up in front of the slow pool: what is held never exceeds the window."""
    with split_cluster() as (_, client):
        client.register_plugin(Trap("any", traps.Linger(0.25), slow))
        window, held, over = engine.placement_of(client).window, [], threading.Event()

        def sample() -> None:
            while not over.wait(0.1):
                held.append(client.run_on_scheduler(strips_held))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            engine.classify(run, client, no_progress)
        finally:
            over.set()
            thread.join()
    most, n_bytes = max(n for n, _ in held), max(n_bytes for _, n_bytes in held)
    chaos.note(f"slow {slow}: at most {most} strips ({n_bytes / 1e6:.1f} MB) wait in memory, window {window}")
    assert most <= window
    chaos.same_rows(rows_of(run), undisturbed)


def strips_held(dask_scheduler) -> tuple[int, int]:
    """Return how many composites wait in memory, and their bytes."""
    held = [t for t in dask_scheduler.tasks.values() if t.state == "memory" and str(t.key).startswith("cut_strip")]
    return len(held), sum(t.nbytes for t in held)


@pytest.mark.fault(22)
def test_all_gpu_workers_leave(run, undisturbed, chaos: Chaos):
    with dask.config.set({"distributed.scheduler.no-workers-timeout": "5s"}), split_cluster() as (pool, client):
        client.register_plugin(Trap("any", traps.Linger(0.2), "infer_strip"))

        class Leave:
            def advance(self, n_sources: int) -> None:
                if n_committed(run) >= 3 and pool.workers:
                    pool.scale(0)

        with pytest.raises(ClusterLost, match="same command resumes"):
            engine.classify(run, client, lambda total: nullcontext(Leave()))
    assert 3 <= n_committed(run) < 64
    pipeline.classify(run)
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.fault(30)
def test_a_suspended_driver_wakes_when_another_has_taken_over(run, undisturbed, chaos: Chaos, tmp_path):
    first = drive(run, "none", tmp_path)
    await_true(lambda: n_committed(run) >= 5 or first.poll() is not None, "five tiles are committed")
    first.send_signal(signal.SIGSTOP)
    second = drive(run, "none", tmp_path)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    published = read_manifest(RunFolder(run.out).catalog)
    first.send_signal(signal.SIGCONT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1 and "another driver has taken over" in said, said
    assert read_manifest(RunFolder(run.out).catalog) == published
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.fault(17)
def test_a_small_disk_is_full(run, undisturbed, chaos: Chaos, tmp_path):
    """A file system of 400 kB: the run stops, nothing half-written is visible, and goes on when there is room."""
    if os.geteuid():
        pytest.skip("needs root to mount a file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], check=True)
    try:
        run = dataclasses.replace(run, out=str(small / "classes"))
        driver = drive(run, "local", tmp_path, "--workers", "1")
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 1 and "No space left" in said and "Traceback" not in said, said
        folder, kept = RunFolder(run.out), n_committed(run)
        assert 0 < kept < 64 and not list(folder.tmp.iterdir()) and not folder.catalog.exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        assert pipeline.classify(run).tiles_resumed == kept
        chaos.same_rows(rows_of(run), undisturbed)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- what it costs ---------------------------------------------------------------------------------


@pytest.mark.fault(9)
def test_resuming_at_95_percent_does_what_is_left(run, undisturbed, chaos: Chaos, tmp_path):
    with running(Pool(tmp_path / "pool", linger_s=0.1)) as pool:
        driver = drive(run, pool.address, tmp_path)
        await_true(lambda: n_committed(run) >= 61 or driver.poll() is not None, "95 % are committed", 300)
        driver.kill()
        driver.communicate()
        time.sleep(3)  # what is in flight ends
        left = 64 - n_committed(run)
        pool.trace.unlink()
        driver = drive(run, pool.address, tmp_path)
        _, said = driver.communicate(timeout=120)
        assert driver.returncode == 0, said
        again = pool.begun()
    chaos.note(f"resumed with {left} of 64 tiles left: {len(again)} of {64 * STRIPS_PER_TILE} strips begun")
    assert 0 < left <= 3 and {tile for _, tile, _ in again} and len(again) <= left * (STRIPS_PER_TILE + 1)
    assert rows_of(run).drop("run_id").equals(undisturbed.drop("run_id"))


@pytest.mark.fault(20)
def test_memory_of_driver_and_scheduler_is_flat_over_two_thousand_strips(sky64, bundle, chaos: Chaos, tmp_path):
    """Null pixels and a null network: strips of one or two sources each, as fast as they go."""
    run = run_on(sky64, bundle, tmp_path / "classes", 1)
    with running(Pool(tmp_path / "pool", settings={"NULL_STAGES": "1"})) as pool:
        driver = drive(run, pool.address, tmp_path)
        watched = {"driver": psutil.Process(driver.pid), "scheduler": psutil.Process(pool.scheduler.pid)}
        samples: list[tuple[int, float, float]] = []
        while driver.poll() is None:
            n = len(pool.begun())
            if n:
                try:
                    samples.append((n, *(p.memory_info().rss / 1e6 for p in watched.values())))
                except psutil.NoSuchProcess:
                    break
            time.sleep(0.5)
        _, said = driver.communicate()
        assert driver.returncode == 0, said
    table = np.array([s for s in samples if 500 < s[0] < samples[-1][0]])  # before: imports; at the end: publishing
    assert table[-1, 0] - table[0, 0] > 2000
    for column, who in enumerate(watched, start=1):
        slope = np.polyfit(table[:, 0] / 1000, table[:, column], 1)[0]
        rise = table[-1, column] - table[0, column]
        words = f"memory of the {who} over {int(table[-1, 0]):,} strips"
        chaos.note(f"{words}: {slope:+.2f} MB per 1,000 strips, {rise:+.1f} MB in all")
        assert rise < 25, table


@pytest.mark.fault(3)
def test_a_worker_stays_within_the_stated_memory(bundle, chaos: Chaos, tmp_path):
    """The formula of `skyclass plan` against what a process really had, on a whole Atlas tile."""
    sky = write_mock(str(tmp_path / "sky"), n_tiles=1, seed=4, sources_per_tile=12_000, size_px=4095)
    run = run_on(sky, bundle, tmp_path / "classes", 16_384)
    context, plan, _ = plan_run(run, count_here)
    for n_sources in (1_000, 12_000):
        command = [sys.executable, "-c", PEAK, str(sky.catalog), str(sky.images), str(bundle), str(n_sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        largest = max(s.stop - s.start for s in strips_of(plan.tiles[0], n_sources))
        stated = strip_bytes(context, largest) / 1e6
        chaos.note(f"strip of {largest:,} sources: {float(done.stdout):.0f} MB at most, stated {stated:.0f} MB")
        assert float(done.stdout) < stated


PEAK = """
import sys
import distributed
from skyclass.run.config import RunConfig
from skyclass.model.devices import set_threads
from skyclass.run.context import strips_of
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.stages import cut_strip, infer_strip
from skyclass.run.strips import SourceValues
import numpy as np
from dataclasses import replace
set_threads(1)
catalog, images, model, n = sys.argv[1:]
run = RunConfig(catalog, images, "unused", model, None, "fp32", "cpu", strip_sources=int(n))
context, plan, _ = plan_run(run, count_here)
cut = cut_strip(context, strips_of(plan.tiles[0], int(n))[0])
few = slice(0, 512)  # of the network's memory a batch is as good as all
values = SourceValues(*(column[few] for column in cut.values))
infer_strip(context, replace(cut, images=cut.images[few], values=values))
print(next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
