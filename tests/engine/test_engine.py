"""The engine on Dask against the plain pipeline: identical rows, however the work is spread."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster, get_task_stream
from distributed.comm.core import CommClosedError

from skyclass.engine import engine, window
from skyclass.engine.cluster import connect, worker_pool
from skyclass.engine.tls import tls_environment
from skyclass.errors import ClusterLost, ConfigError, RowsLost, RunMismatch, TileFault
from skyclass.run import pipeline, stages
from skyclass.run.class_rows import class_rows
from skyclass.run.commits import committed
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext
from skyclass.run.folder import RunFolder
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.progress import no_progress
from skyclass.run.tile_sources import planned_sources
from skyclass.sky.regions import Cone
from skyclass.types import DEFAULT_CLASSES, Flag, Strip
from tests.support.engines import split_client
from tests.support.runs import rows_of, run_on

pytestmark = pytest.mark.integration


def into(run: RunConfig, folder) -> RunConfig:
    return dataclasses.replace(run, out=str(folder))


@pytest.fixture(scope="module")
def plain(sky, bundle, tmp_path_factory):
    """The rows of the plain pipeline."""
    out = tmp_path_factory.mktemp("plain") / "classes"
    run = run_on(sky, bundle, out, 128)
    return pipeline.classify(run), rows_of(run)


def test_the_pipeline_conserves_rows_and_reads_each_tile_once(plain, sky):
    report, rows = plain
    assert report.sources_in == sky.n_sources == len(rows) == report.classified + report.without_class
    assert len(set(rows["source_id"].to_pylist())) == sky.n_sources
    assert report.tile_bytes == 2 * 3 * 4 * 700 * 700
    assert report.tile_bytes_read < 1.3 * report.tile_bytes  # strips of a small tile overlap by 37 of 700 rows


@pytest.mark.parametrize("workers", [1, 2])
def test_fused_on_workers_gives_the_rows_of_the_pipeline(plain, run, workers):
    with connect("local", workers=workers) as client:
        assert not engine.placement_of(client).split
        report = engine.classify(run, client, no_progress)
    assert rows_of(run).equals(plain[1])
    assert report.sources_in == plain[0].sources_in and report.class_counts == plain[0].class_counts
    assert (
        report.tile_bytes_read == plain[0].tile_bytes_read
        and report.stage_seconds.keys() == plain[0].stage_seconds.keys()
    )
    assert report.bound_by == "infer" and set(report.pool_busy) == {"workers"} and 0 < report.pool_busy["workers"] <= 1


SKEWED = """
from skyclass import version
from skyclass.engine import workers
version.versions = lambda own=version.versions: own() | {"numpy": "1.0", "skyclass": "0.0.9+00000000"}
workers.versions = version.versions
"""


@pytest.mark.slow
@pytest.mark.fault(24)
def test_workers_with_other_code_are_refused_and_late_ones_sent_away(run, tmp_path):
    (tmp_path / "skewed.py").write_text(SKEWED)
    preload = {"preload": str(tmp_path / "skewed.py")}
    with (
        LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0", host="127.0.0.1", **preload) as pool,
        Client(pool) as client,
    ):
        with pytest.raises(ConfigError, match=r"1 of 1 worker differs .*: skyclass 0.0.9.* there, .*numpy 1.0 there"):
            engine.classify(run, client, no_progress)
    assert not RunFolder(run.out).path.exists()
    with connect("local", workers=1) as client:
        assert engine.classify(run, client, no_progress).classified
        (own,) = client.scheduler_info()["workers"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", client.scheduler.address, "--nthreads", "1"]
        late = subprocess.run(
            [*command, "--no-dashboard", "--host", "127.0.0.1", "--preload", preload["preload"]],
            capture_output=True, text=True, timeout=120, env=os.environ | tls_environment(client.security),
        )  # fmt: skip
        assert "this worker leaves the run: skyclass 0.0.9" in late.stderr, late.stderr
        assert list(client.scheduler_info()["workers"]) == [own]


RELEASE = threading.Event()
VISITS = []


def hang(context, partition):
    """Wait as a file system does that does not answer."""
    RELEASE.wait(60)


def hang_once(item):
    """Hang at the first visit; return twice the item at the next."""
    VISITS.append(item)
    if len(VISITS) == 1:
        RELEASE.wait(60)
    return 2 * item


def test_a_gpu_that_this_machine_lacks_is_refused_before_a_cluster_starts(run, monkeypatch):
    monkeypatch.setattr(engine, "connect", lambda *args: pytest.fail("a cluster was started"))
    with pytest.raises(ConfigError, match="device = 'cuda:9': torch sees . CUDA devices; choose cpu"):
        engine.classify(dataclasses.replace(run, device="cuda:9", cluster="local"), None, no_progress)
    assert not RunFolder(run.out).path.exists()


@pytest.fixture
def client_without_nanny():
    """A client of a worker with two threads and no nanny; tasks that hang end after the test."""
    RELEASE.clear()
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as pool, Client(pool) as client:
        try:
            yield client
        finally:
            RELEASE.set()


@pytest.mark.fault(5)
def test_counting_that_hangs_ends_the_run(run, monkeypatch, client_without_nanny):
    monkeypatch.setattr(window, "STALL_S", 1.0)
    monkeypatch.setattr(window.BoundedWindow, "restart", lambda self, workers: None)
    monkeypatch.setattr(engine, "count_partition", hang)
    with pytest.raises(ClusterLost, match="hang hangs: nothing finished for 1 s on inproc://.*; no tile was begun"):
        engine.classify(run, client_without_nanny, no_progress)
    assert not RunFolder(run.out).path.exists()


@pytest.mark.fault(5)
def test_workers_that_no_nanny_can_restart_are_named(run, monkeypatch, client_without_nanny):
    monkeypatch.setattr(window, "STALL_S", 1.0)
    monkeypatch.setattr(engine, "count_partition", hang)
    with pytest.raises(ClusterLost, match="inproc://.* cannot restart .*: start them with a nanny"):
        engine.classify(run, client_without_nanny, no_progress)


def test_an_item_that_hangs_once_is_computed_again(monkeypatch, client_without_nanny):
    VISITS.clear()
    monkeypatch.setattr(window, "STALL_S", 1.0)
    monkeypatch.setattr(window.BoundedWindow, "restart", lambda self, workers: RELEASE.set())
    assert sorted(window.map_unordered(client_without_nanny, hang_once, [(i,) for i in range(5)])) == [0, 2, 4, 6, 8]
    assert len(VISITS) > 5


def test_an_error_of_the_work_is_raised_and_not_repeated(client_without_nanny):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(window.map_unordered(client_without_nanny, os.listdir, [("/nowhere",)]))


def count_late(context, partition):
    """Count one source in a partition; partition 0 finishes last."""
    time.sleep(0.5 * (partition == 0))
    row = {"coadd_id": "a", "partition": partition, "n": 1, "nbytes": 10, "footer": ""}
    return pa.Table.from_pylist([row], stages.PARTITION_COUNTS)


def test_counts_are_in_the_order_of_the_partitions(monkeypatch, client_without_nanny):
    monkeypatch.setattr(engine, "count_partition", count_late)
    counts = engine.count_on(client_without_nanny, None, range(9))
    assert counts["partition"].to_pylist() == list(range(9)) and counts.schema == stages.PARTITION_COUNTS


def test_split_over_cpu_and_gpu_workers_gives_the_rows_of_the_pipeline(plain, run):
    """A worker with the resource GPU=1 stands in for a GPU; inference must run there and nowhere else."""
    with split_client() as client:
        placement = engine.placement_of(client)
        assert placement.split and placement.window == 3 and placement.cut == {"CPU": 1}
        with get_task_stream(client) as stream:
            report = engine.classify(run, client, no_progress)
        where = places(client, stream.data)
    assert report.bound_by == "infer" and set(report.pool_busy) == {"CPU workers", "GPU workers"}
    assert rows_of(run).equals(plain[1])
    assert where == {"infer_strip": {"GPU"}, "cut_strip": {"CPU"}, "commit_strips": {"CPU"}}


@pytest.mark.slow
def test_gpu_workers_that_have_threads_cut_for_themselves(plain, run, monkeypatch):
    gpu, own = {"threads_per_worker": 3, "resources": {"GPU": 1}}, engine.placement_of
    with (
        LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0", host="127.0.0.1", **gpu) as pool,
        Client(pool) as client,
    ):
        who = engine.placement_of(client)
        assert not who.split and who.window == 6 and who.infer == {"GPU": 0.25} and who.by_tile
        monkeypatch.setattr(engine, "placement_of", lambda client: dataclasses.replace(own(client), window=1))
        with get_task_stream(client) as stream:
            report = engine.classify(run, client, no_progress)
        done = Counter(str(task["key"]).rsplit("-", 1)[0].split("-")[0] for task in stream.data)
        assert done["classify_whole"] == 1 and done["classify_strip"] > 1  # two tiles: the last is cut, for the tail
        with worker_pool(pool.scheduler_address, 1, "CPU=1", "2GB"):
            client.wait_for_workers(2)
            assert own(client).split
    assert set(report.pool_busy) == {"GPU workers"} and rows_of(run).equals(plain[1])


def places(client: Client, stream: list[dict]) -> dict[str, set[str]]:
    """Which kind of worker ran each kind of task."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    kind = {address: next(iter(w["resources"]), "") for address, w in workers.items()}
    stages = ("cut_strip", "infer_strip", "commit_strips")
    return {s: {kind[t["worker"]] for t in stream if str(t["key"]).startswith(s)} for s in stages}


def test_an_interrupted_run_resumes_to_the_same_rows(plain, run):
    line_and_plan = []

    class Stop:
        def advance(self, n_sources: int) -> None:
            line_and_plan.append(n_sources)
            if len(committed(RunFolder(run.out))) == 1:
                raise KeyboardInterrupt

    from contextlib import nullcontext

    with pytest.raises(KeyboardInterrupt):
        pipeline.classify(run, lambda total: nullcontext(Stop()))
    assert len(committed(RunFolder(run.out))) == 1
    with connect("local", workers=1) as client:
        report = engine.classify(run, client, no_progress)
    assert report.tiles_resumed == 1 and report.tiles == 2
    assert rows_of(run).equals(plain[1])
    again = pipeline.classify(run)
    assert again.tiles_resumed == 2 and again.tile_bytes_read == 0 and rows_of(run).equals(plain[1])


def test_a_bad_tile_is_quarantined_and_its_rows_stay(run, sky, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(sky.images, images)
    broken = sky.coadd_ids[0]
    path = next(images.rglob(f"{broken}-w3-int-3.fits"))
    path.write_bytes(path.read_bytes()[:100_000])
    report = pipeline.classify(dataclasses.replace(run, images=str(images)))
    rows = rows_of(run).to_pandas()
    bad = rows["coadd_id"] == broken
    assert list(report.quarantined) == [broken] and "w3" in report.quarantined[broken]
    assert len(rows) == sky.n_sources and report.without_class == bad.sum() > 0
    assert rows.loc[bad, "class"].isna().all() and rows.loc[bad, "p_star"].isna().all()
    assert (rows.loc[bad, "flags"] == 32 + 128).all() and rows.loc[~bad, "class"].notna().all()


def test_the_report_is_written_and_says_simulated(plain, run):
    with connect("local", workers=1) as client:
        engine.classify(run, client, no_progress)
    report = json.loads(RunFolder(run.out).report_path.read_text())
    assert report["simulated_model"] is True and report["sources_in"] == plain[0].sources_in


class BrokenArchive:
    """An archive whose tile vanishes after it was cut."""

    def tile(self, coadd_id, bands, verify=False):
        raise TileFault(coadd_id, "gone", kind="missing_tile")


def test_rows_are_joined_by_name_whatever_order_the_strips_have(run):
    """The order of a strip's sources comes from the tile's header; a commit elsewhere may not be able to read it."""
    context, plan, table = plan_run(run, count_here)
    context.folder.make()
    tile = plan.tiles[0]
    result = stages.classify_strip(context, Strip(tile, 0, tile.n_sources))
    expected = class_rows(context, tile, [result])
    planned_sources.cache_clear()

    class Blind(RunContext):
        @property
        def archive(self):
            return BrokenArchive()

    rows = class_rows(Blind(**vars(context)), tile, [result])
    assert rows["source_id"].to_pylist() != result.source_id.to_pylist() and rows.equals(expected)
    by_name = dict(zip(result.source_id.to_pylist(), result.probabilities[:, 2].tolist(), strict=True))
    assert rows["p_star"].to_pylist() == [by_name[name] for name in rows["source_id"].to_pylist()]
    with pytest.raises(RowsLost, match="classified"):
        class_rows(context, tile, [result, result])


def test_another_region_or_catalogue_is_another_run(run, sky):
    pipeline.classify(run)
    with pytest.raises(RunMismatch, match="region"):
        pipeline.classify(dataclasses.replace(run, region=Cone(149.7, 2.2, "4deg")))


def test_a_second_run_in_one_process_sees_what_changed(run, sky, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(sky.images, images)
    lost = images / sky.coadd_ids[0][:2] / sky.coadd_ids[0][:4] / sky.coadd_ids[0]
    shutil.move(lost, tmp_path / "aside")
    first = dataclasses.replace(run, images=str(images))
    assert list(pipeline.classify(first).quarantined) == [sky.coadd_ids[0]]
    shutil.move(tmp_path / "aside", lost)
    assert not pipeline.classify(into(first, tmp_path / "second")).quarantined


@pytest.mark.fault(18)
def test_positions_beside_the_image_keep_their_rows(run, sky, tmp_path):
    rows = pq.read_table(sky.catalog).select(["ra", "dec", "source_id", "coadd_id"]).slice(0, 4).to_pandas()
    rows.loc[0, "coadd_id"] = sky.coadd_ids[0] if rows.loc[0, "coadd_id"] == sky.coadd_ids[1] else sky.coadd_ids[1]
    rows.loc[1, "coadd_id"] = None
    rows.to_csv(tmp_path / "own.csv", index=False)
    report = pipeline.classify(dataclasses.replace(run, catalog=str(tmp_path / "own.csv")))
    found = rows_of(run).to_pandas().set_index("source_id")
    assert report.sources_in == 4 and report.without_class == 1
    assert found.loc[rows.loc[0, "source_id"], "flags"] & Flag.OFF_TILE
    assert found.loc[rows.loc[1, "source_id"], "class"] in DEFAULT_CLASSES


def test_a_worker_that_dies_while_it_is_told_what_to_do_ends_nothing(plain, run, monkeypatch):
    told = []

    def dies_once(self, plugin, register=Client.register_plugin):
        told.append(type(plugin).__name__)
        if len(told) == 1:
            raise CommClosedError("in ConnectionPool.register_worker_plugin: Stream is closed")
        return register(self, plugin)

    with connect("local", workers=1) as client:
        monkeypatch.setattr(Client, "register_plugin", dies_once)
        engine.classify(run, client, no_progress)
    assert told == ["WorkerSetup", "WorkerSetup", "WarmUpPlugin"] and rows_of(run).equals(plain[1])
