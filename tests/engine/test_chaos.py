"""Kill anything, lose nothing: faults injected into whole runs, rows compared to the bit with an undisturbed one.

The quick part runs with every test; the long part (`slow`) with `make chaos`, which prints the table of failures.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
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
from astropy.io import fits
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyclass.engine import cluster, engine, tile_window, window, workers
from skyclass.engine.cluster import connect
from skyclass.errors import ClusterLost, CommitConflict, ConfigError, Interrupted, RunMismatch, StoreError
from skyclass.files import beside
from skyclass.mock import write_mock
from skyclass.model.bundle import load_bundle, load_weights, save_bundle
from skyclass.run import folder as run_folder
from skyclass.run import pipeline, stages
from skyclass.run.config import RunConfig
from skyclass.run.folder import RunFolder, fingerprint
from skyclass.run.prepare import count_here, open_run, plan_run
from skyclass.run.progress import no_progress
from skyclass.sky.regions import Cone
from skyclass.training.evaluation.calibration import fields_of
from skyclass.types import Flag, Strip
from tests.support import traps
from tests.support.faults import Chaos
from tests.support.paths import CHECKOUT
from tests.support.pools import Pool, await_true, drive, n_committed, running
from tests.support.runs import rows_of, run_on
from tests.support.traps import DieOnce, Trap

pytestmark = pytest.mark.integration

cloudpickle.register_pickle_by_value(traps)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twelve very small tiles."""
    return write_mock(str(tmp_path_factory.mktemp("many")), n_tiles=12, seed=3, sources_per_tile=60, size_px=256)


@pytest.fixture
def run(many, bundle, tmp_path) -> RunConfig:
    return run_on(many, bundle, tmp_path / "classes", 32)


@pytest.fixture(scope="module")
def undisturbed(many, bundle, tmp_path_factory) -> pa.Table:
    """The rows of the plain pipeline."""
    run = run_on(many, bundle, tmp_path_factory.mktemp("undisturbed") / "classes", 32)
    pipeline.classify(run)
    return rows_of(run)


# --- workers, scheduler, driver --------------------------------------------------------------------


@pytest.mark.fault(1)
def test_workers_killed_while_they_cut_and_infer(run, many, undisturbed, chaos: Chaos, tmp_path):
    moments = ("cut_strip", "infer_strip", "commit_strips")
    with connect("local", workers=2) as client:
        for tile, stage in zip(many.coadd_ids, moments[:2], strict=False):
            client.register_plugin(Trap(tile, DieOnce(tmp_path / stage), stage))
        report = engine.classify(run, client, no_progress)
    assert all((tmp_path / stage).exists() for stage in moments[:2]) and not report.quarantined
    chaos.injected(2)
    chaos.same_rows(rows_of(run), undisturbed)


@contextmanager
def gpu_worker_with_threads():
    """Give a client of a stand-in for a GPU worker that cuts for itself."""
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}}
    with dask.config.set(cluster.DASK_SETTINGS), LocalCluster(1, threads_per_worker=2, **options) as pool:
        with Client(pool) as client:
            yield client


def most_crowded(rows: pa.Table) -> str:
    """Return the tile that a run begins with."""
    counts = rows["coadd_id"].value_counts().to_pylist()
    return min(counts, key=lambda tile: (-tile["counts"], tile["values"]))["values"]


STRIPS = pytest.param(partial(connect, workers=2), id="strips")
WHOLE_TILES = pytest.param(gpu_worker_with_threads, id="whole tiles")
SLOWLY = pytest.param(gpu_worker_with_threads, id="whole tiles", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.fault(2)
@pytest.mark.parametrize("made", [STRIPS, WHOLE_TILES])
def test_a_tile_that_kills_workers_is_quarantined_and_its_neighbours_are_not(
    run, many, undisturbed, chaos: Chaos, monkeypatch, made
):
    monkeypatch.setitem(cluster.DASK_SETTINGS, "distributed.scheduler.allowed-failures", 0)  # each death takes seconds
    culprit = most_crowded(undisturbed)
    with made() as client:
        client.register_plugin(Trap(culprit, traps.die))
        report = engine.classify(run, client, no_progress)
    assert list(report.quarantined) == [culprit] and "died" in report.quarantined[culprit]
    chaos.injected(2)
    good = pc.not_equal(undisturbed["coadd_id"], culprit)
    rows = rows_of(run)
    assert len(rows) == many.n_sources and rows["class"].null_count == len(rows) - pc.sum(good).as_py()
    chaos.same_rows(rows.filter(pc.not_equal(rows["coadd_id"], culprit)), undisturbed.filter(good))
    again = pipeline.classify(run)
    assert again.quarantined == report.quarantined and again.tiles_resumed == 12
    healed = pipeline.classify(dataclasses.replace(run, retry_quarantined=True))
    assert not healed.quarantined and rows_of(run).equals(undisturbed)


@pytest.mark.slow
@pytest.mark.fault(5)
@pytest.mark.parametrize("made", [STRIPS, SLOWLY])
def test_a_tile_that_hangs_is_quarantined_and_its_neighbours_are_not(
    run, many, undisturbed, chaos: Chaos, monkeypatch, made
):
    monkeypatch.setattr(tile_window, "STALL_S", 15.0)
    monkeypatch.setattr(tile_window, "STALL_STRIPS", 0)
    culprit = most_crowded(undisturbed)
    with made() as client:
        client.register_plugin(Trap(culprit, partial(hang, 3600)))
        report = engine.classify(run, client, no_progress)
    assert list(report.quarantined) == [culprit]
    assert "nothing finished for 15 s (in 2 attempts" in report.quarantined[culprit]
    chaos.injected(2)
    rows, good = rows_of(run), pc.not_equal(undisturbed["coadd_id"], culprit)
    assert len(rows) == many.n_sources
    chaos.same_rows(rows.filter(pc.not_equal(rows["coadd_id"], culprit)), undisturbed.filter(good))


def hang(seconds: float, strip: Strip) -> None:
    time.sleep(seconds)


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_partition_that_hangs_is_given_out_again(chaos: Chaos, monkeypatch, tmp_path):
    """Counting and publishing have a watchdog too."""
    monkeypatch.setattr(window, "STALL_S", 8.0)
    with connect("local", workers=2) as client:
        items = [(i, str(tmp_path / "hung-once")) for i in range(6)]
        assert sorted(window.map_unordered(client, traps.doubled, items)) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(ClusterLost, match="hangs: nothing finished for 8 s on .*; .*same command resumes"):
            list(window.map_unordered(client, traps.doubled, [(3, str(tmp_path / "nowhere" / "hangs-always"))]))
    chaos.injected(3)


@pytest.mark.slow
@pytest.mark.fault(8)
def test_the_scheduler_is_killed_and_another_cluster_finishes(run, many, undisturbed, chaos: Chaos, tmp_path):
    """The run folder is all that the two clusters and the two drivers share."""
    with running(Pool(tmp_path / "first", linger_s=0.4)) as pool:
        driver = drive(run, pool.address, tmp_path)
        await_true(lambda: n_committed(run) >= 4 or driver.poll() is not None, "four tiles are committed")
        began = time.monotonic()
        pool.scheduler.kill()
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == Interrupted.exit_code and "same command resumes" in said, said
    assert "Traceback" not in said
    chaos.note(f"scheduler: the driver was gone {time.monotonic() - began:.0f} s after it, with exit code 4")
    left = 12 - n_committed(run)
    (tmp_path / "elsewhere").mkdir()
    with running(Pool(tmp_path / "second")) as other:
        driver = drive(run, other.address, tmp_path / "elsewhere")
        _, said = driver.communicate(timeout=120)
        assert driver.returncode == 0, said
        redone = {tile for _, tile, _ in other.begun()}
    assert 0 < len(redone) == left
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.fault(9)
@pytest.mark.timeout(1900)
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_the_driver_is_killed_before_any_call_that_reaches_the_disk(
    run, many, bundle, chaos: Chaos, tmp_path, stride: int
):
    rows = pq.read_table(many.catalog).select(["source_id", "coadd_id", "ra", "dec"])
    few = pc.is_in(rows["coadd_id"], pa.array(many.coadd_ids[:3]))
    pq.write_table(rows.filter(few), tmp_path / "table.parquet")
    facts = {"catalog": str(tmp_path / "table.parquet"), "images": run.images, "model": run.model, "out": run.out}
    facts |= {"precision": "fp32", "device": "cpu"}
    toml = tmp_path / "run.toml"
    toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items()))
    command = [sys.executable, "-m", "tests.support.crashes", str(toml), str(stride)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    whole, *crashes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(crashes) == -(-whole["calls"] // stride) > 3
    for crash in crashes:
        assert crash["ended"] == signal.SIGKILL and crash["resumed"] == 0, crash
        assert crash["manifest"] == whole["manifest"], crash
    chaos.injected(len(crashes))


@pytest.mark.fault(9)
def test_a_driver_is_killed_while_it_writes_the_prepared_table(run, many, tmp_path):
    rows = pq.read_table(many.catalog).select(["source_id", "coadd_id", "ra", "dec"]).slice(0, 20)
    pq.write_table(rows, tmp_path / "table.parquet")
    run = dataclasses.replace(run, catalog=str(tmp_path / "table.parquet"))
    sources = RunFolder(run.out).sources
    open_run(run, *plan_run(run, count_here))
    left = beside(sources / "part0.parquet")
    left.write_bytes((sources / "part0.parquet").read_bytes()[:100])
    (sources / "part0.parquet").unlink()
    assert pipeline.classify(run).sources_in == len(rows_of(run)) == 20
    assert not left.exists()


@pytest.mark.fault(9)
def test_a_driver_is_killed_before_the_link_to_its_publication(run):
    pipeline.classify(run)
    folder = RunFolder(run.out)
    folder.catalog.unlink()
    report = pipeline.classify(run)
    assert report.tiles_resumed == 12 and os.readlink(folder.catalog) == "catalogs/000001"
    assert len(list((folder.path / "catalogs").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "where"), [(signal.SIGTERM, "local"), (signal.SIGHUP, "local"), (signal.SIGINT, "none")]
)
def test_a_word_to_stop_ends_a_run_with_exit_code_4(run, undisturbed, tmp_path, word, where):
    driver = drive(dataclasses.replace(run, strip_sources=4), where, tmp_path)
    await_true(lambda: n_committed(run) >= 1 or driver.poll() is not None, "a tile is committed")
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(word)
    _, said = driver.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert driver.returncode == Interrupted.exit_code, said
    assert re.search(r"stopped; [\d,]+ of [\d,]+ sources are committed: the same command resumes the run", said)
    assert said.rstrip().splitlines()[-1].startswith(f"  skyclass classify --catalog {run.catalog} "), said
    assert 0 < n_committed(run) < 12
    pipeline.classify(run)
    assert rows_of(run).equals(undisturbed)


@pytest.mark.fault(22)
def test_no_gpu_worker_ever_joins(run, monkeypatch):
    monkeypatch.setattr(workers, "WORKERS_TIMEOUT_S", 3)
    options = {"n_workers": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(**options) as pool, Client(pool) as client:
        with pytest.raises(ClusterLost, match="no worker with a GPU joined .* in 3 s: .*same command resumes"):
            engine.classify(dataclasses.replace(run, device="cuda"), client, no_progress)
    assert not RunFolder(run.out).path.exists()


# --- what a run is ---------------------------------------------------------------------------------


@pytest.mark.fault(11)
@pytest.mark.parametrize("field", fingerprint("", None, "", "", ""))
def test_a_run_is_resumed_with_one_field_changed(run, many, bundle, tmp_path, monkeypatch, field: str):
    table = pq.read_table(many.catalog).select(["source_id", "coadd_id", "ra", "dec"]).slice(0, 30)
    own = tmp_path / "own.parquet"
    pq.write_table(table, own)
    run = dataclasses.replace(run, catalog=str(own))
    before = pipeline.classify(run)
    if field == "plan":
        pq.write_table(table.slice(1), own)
    elif field == "catalog":
        pq.write_table(table.set_column(0, "source_id", pa.array([f"other-{i}" for i in range(30)])), own)
    elif field == "code":
        monkeypatch.setattr(run_folder, "code_version", lambda: "0.0.9+00000000")
    else:
        run = dataclasses.replace(run, **CHANGED[field](run, tmp_path))
    with pytest.raises(RunMismatch, match=f"\n  {field}: .* there, .* now"):
        pipeline.classify(run)
    assert len(rows_of(run)) == before.sources_in == 30


def other_model(model: str, name: Path) -> str:
    bundle = load_bundle(model)
    return str(save_bundle(name, fields_of(bundle) | {"temperature": 2.0}, load_weights(bundle)).path)


CHANGED = {
    "region": lambda run, tmp: {"region": Cone(149.7, 2.2, "60deg")},
    "model": lambda run, tmp: {"model": other_model(run.model, tmp / "other-model")},
    "precision": lambda run, tmp: {"precision": "bf16"},
}


@pytest.mark.fault(29)
def test_attempts_that_differ_raise_an_alarm(run, monkeypatch):
    """A network with unseeded noise: the second attempt at a tile is no silent winner."""
    context, what, table = plan_run(run, count_here)
    context = open_run(run, context, what, table)
    tile, predict = what.tiles[0], type(context.classifier).predict_and_embed

    def noisy(self, images, photometry=None):
        p, embedding = predict(self, images, photometry)
        p = p + np.random.default_rng().random((len(images), 3), np.float32)
        return p / p.sum(axis=1, keepdims=True), embedding

    monkeypatch.setattr(type(context.classifier), "predict_and_embed", noisy)
    results = [stages.classify_strip(context, Strip(tile, 0, tile.n_sources)) for _ in range(2)]
    first, _ = stages.commit_strips(context, tile, results[:1])
    with pytest.raises(CommitConflict, match="not deterministic"):
        stages.commit_strips(context, tile, results[1:])
    assert stages.commit_fault(context, tile, "hung after its commit")[0] == first


# --- inputs ----------------------------------------------------------------------------------------


def header_changed(**changes: object):
    """Return a change of a file that sets cards of its header."""

    def change(path: Path) -> None:
        with fits.open(path, mode="update") as hdus:
            hdus[0].header.update(changes)

    return change


def bytes_changed(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def zeroed(data: bytes) -> bytes:
    """Return a file of which a middle part was never written."""
    middle = len(data) // 2
    return data[:middle] + bytes(100_000) + data[middle + 100_000 :]


def flipped(path: Path) -> None:
    """Turn one bit of a pixel, after the archive said what the file's checksum is."""
    data = bytearray(path.read_bytes())
    Path(f"{path}.md5").write_text(f"{hashlib.md5(data).hexdigest()}  {path.name}\n")
    data[-40_000] ^= 1
    path.write_bytes(data)


def shorter(data: bytes) -> bytes:
    """Return a file whose header has fewer rows than its pixels."""
    card = b"NAXIS2  =                  256"
    assert card in data
    return data.replace(card, b"NAXIS2  =                  200")


DAMAGE = {
    "truncated": (13, bytes_changed(lambda data: data[: len(data) // 2]), "truncated"),
    "empty": (13, bytes_changed(lambda data: b""), "empty file"),
    "HTML": (13, bytes_changed(lambda data: b"<html>503 Slow Down</html>"), "HTML"),
    "gzip": (13, bytes_changed(gzip.compress), "gunzip"),
    "noise": (13, bytes_changed(lambda data: np.random.default_rng(1).bytes(len(data))), "not a FITS file"),
    "zeroed": (14, bytes_changed(zeroed), "zeroed pixels"),
    "one bit": (14, flipped, "MD5"),
    "other band": (15, header_changed(BAND=3), "w3"),
    "other tile": (15, header_changed(COADDID="0098p408_ac51"), "0098p408_ac51"),
    "swapped WCS": (15, header_changed(CTYPE1="DEC--SIN", CTYPE2="RA---SIN"), "projection"),
    "other shape": (15, bytes_changed(shorter), "differs in WCS or shape"),
}


@pytest.mark.fault(12, 13, 14, 15)
def test_a_run_over_tiles_damaged_in_every_way(run, many, undisturbed, chaos: Chaos, tmp_path):
    """Eleven tiles have each another fault in one band, and the twelfth has none: each says what it has."""
    images = tmp_path / "images"
    subprocess.run(["cp", "-r", many.images, images], check=True)
    for tile, (_, damage, _) in zip(many.coadd_ids, DAMAGE.values(), strict=False):
        damage(next(images.rglob(f"{tile}-w2-int-3.fits")))
    report = pipeline.classify(dataclasses.replace(run, images=str(images)))
    expected = dict(zip(many.coadd_ids, DAMAGE.values(), strict=False))
    assert set(report.quarantined) == set(expected)
    for tile, (_, _, words) in expected.items():
        assert words in report.quarantined[tile] and "w2" in report.quarantined[tile], report.quarantined[tile]
    rows = rows_of(run)
    good = pc.equal(rows["coadd_id"], many.coadd_ids[-1])
    assert len(rows) == many.n_sources and rows.filter(pc.invert(good))["class"].null_count == report.without_class
    assert set(rows.filter(pc.invert(good))["flags"].to_pylist()) == {int(Flag.TILE_BAD | Flag.NO_IMAGE)}
    chaos.injected(len(DAMAGE))
    chaos.same_rows(rows.filter(good), undisturbed.filter(pc.equal(undisturbed["coadd_id"], many.coadd_ids[-1])))


@pytest.mark.fault(14)
@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_committed_tile_that_changes_on_disk_is_done_again(run, undisturbed, chaos: Chaos, place: float):
    """Pixels, keys or footer: whatever the flipped byte is part of, nothing of that tile is published."""
    pipeline.classify(run)
    folder = RunFolder(run.out)
    tile = sorted(folder.tiles.iterdir())[3]
    data = bytearray(tile.read_bytes())
    data[int(place * len(data))] ^= 255
    tile.write_bytes(data)
    (folder.catalog / "manifest.json").unlink()
    folder.catalog.unlink()
    with pytest.raises(StoreError, match=f"changed after their commit: 1 tile .{tile.stem}.; .*same command"):
        pipeline.classify(run)
    assert pipeline.classify(run).tiles_resumed == 11
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.fault(12)
def test_a_tile_and_a_band_that_are_not_there(run, many, undisturbed, chaos: Chaos, tmp_path):
    images = tmp_path / "images"
    subprocess.run(["cp", "-r", many.images, images], check=True)
    lost, lame = many.coadd_ids[:2]
    for path in [*images.rglob(f"{lost}-w?-int-3.fits"), *images.rglob(f"{lame}-w3-int-3.fits")]:
        path.unlink()
    driver = drive(dataclasses.replace(run, images=str(images)), "none", tmp_path)
    said, complaints = driver.communicate(timeout=120)
    assert driver.returncode == 3, complaints
    assert f"quarantined {lost}: " in said and f"quarantined {lame}: " in said and "--retry-quarantined" in said
    rows = rows_of(run)
    flags = {tile: set(rows.filter(pc.equal(rows["coadd_id"], tile))["flags"].to_pylist()) for tile in (lost, lame)}
    assert flags == {lost: {int(Flag.TILE_MISSING | Flag.NO_IMAGE)}, lame: {int(Flag.BAND_MISSING | Flag.NO_IMAGE)}}
    chaos.injected(2)
    keep = pc.invert(pc.is_in(rows["coadd_id"], pa.array([lost, lame])))
    chaos.same_rows(rows.filter(keep), undisturbed.filter(keep))


positions = st.lists(
    st.tuples(st.floats(140, 160), st.floats(-5, 8), st.sampled_from([None, 0, 3, 11])), min_size=0, max_size=30
)


@pytest.mark.fault(18)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strange=positions, first=st.integers(0, 600), twice=st.booleans())
def test_any_positions_keep_their_rows_and_a_source_twice_is_told(
    many, bundle, tmp_path_factory, strange, first, twice
):
    """Positions on tiles, between them, on a tile that they are far from: each keeps its row."""
    folder = tmp_path_factory.mktemp("any")
    known = pq.read_table(many.catalog).select(["ra", "dec", "source_id", "coadd_id"]).to_pandas()
    known = known.iloc[first % len(known) :][:10]
    names = [f"strange-{i}" for i in range(len(strange))]
    tiles = [None if at is None else many.coadd_ids[at] for _, _, at in strange]
    added = pd.DataFrame({"ra": [r for r, _, _ in strange], "dec": [d for _, d, _ in strange]})
    table = pd.concat([known, added.assign(source_id=names, coadd_id=tiles)], ignore_index=True)
    if twice:
        table.loc[len(table)] = table.iloc[0]
    table.to_parquet(folder / "own.parquet")
    run = dataclasses.replace(run_on(many, bundle, folder / "out", 32), catalog=str(folder / "own.parquet"))
    if twice:
        with pytest.raises(ConfigError, match="twice|more than once|unique|repeat"):
            pipeline.classify(run)
        return
    report = pipeline.classify(run)
    rows = rows_of(run).to_pandas().set_index("source_id").loc[table["source_id"]]
    assert report.sources_in == len(table) == len(rows)
    assert (rows["class"].isna() == ((rows["flags"] & int(Flag.NO_IMAGE)) > 0)).all()
    assert (rows["valid_frac"].between(0, 1)).all() and rows.iloc[: len(known)]["class"].notna().all()
