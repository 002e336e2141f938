"""Tiles read over http and S3 from a server that fails in every way known: what recovers, what stops, and when."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import WorkerPlugin

from skyclass.catalog.query import open_catalog
from skyclass.cli.main import cli
from skyclass.engine import engine, tile_window
from skyclass.engine.cluster import connect
from skyclass.errors import ArchiveDown, ArchiveError, ConfigError, Interrupted, TileFault
from skyclass.images import remote
from skyclass.images.archive import open_archive
from skyclass.images.identity import file_record
from skyclass.images.layout import names_near, ra_folders_near
from skyclass.run import pipeline
from skyclass.run.commits import committed
from skyclass.run.config import RunConfig, run_config
from skyclass.run.folder import RunFolder
from skyclass.run.plan_report import plan_report
from skyclass.run.progress import no_progress
from skyclass.sources.opening import open_sources
from skyclass.types import Archive, Tile
from tests.support.archiveserver import (
    ArchiveServer,
    beyond_the_end,
    forbidden,
    hang_up,
    no_range,
    other_range,
    other_total,
    page,
    short_body,
    short_length,
    slow_down,
    stalled,
    torn,
    whole,
)

BANDS = ("w1", "w2", "w3")
QUICK = {"FIRST_WAIT_S": 0.001, "LONGEST_WAIT_S": 0.002, "READ_TIMEOUT_S": 0.3}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and an environment without AWS."""
    for name, value in QUICK.items():
        monkeypatch.setattr(remote, name, value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE", "REGION", "DEFAULT_REGION", "ENDPOINT_URL"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)


@pytest.fixture
def server(sky) -> Iterator[ArchiveServer]:
    """The small simulated sky over http."""
    with ArchiveServer(Path(sky.images)) as server:
        yield server


@pytest.fixture
def own(sky, tmp_path) -> Iterator[ArchiveServer]:
    """A copy of it, to be damaged."""
    shutil.copytree(sky.images, tmp_path / "images")
    with ArchiveServer(tmp_path / "images") as server:
        yield server


@pytest.fixture
def bucket(server, monkeypatch) -> ArchiveServer:
    """The same as a bucket s3://archive."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    return server


def path_of(server: ArchiveServer, coadd_id: str, band: str) -> Path:
    return server.root / coadd_id[:2] / coadd_id[:4] / coadd_id / f"{coadd_id}-{band}-int-3.fits"


def fault_of(archive: Archive, coadd_id: str) -> TileFault:
    with pytest.raises(TileFault) as caught:
        archive.read_rows(archive.tile(coadd_id, BANDS), "w2", 0, 9)
    return caught.value


def opened(server: ArchiveServer, coadd_id: str) -> tuple[Archive, Tile]:
    """An archive whose header of w1 is known; the requests for it are forgotten."""
    archive = open_archive(server.url, BANDS)
    tile = archive.tile(coadd_id, ("w1",))
    server.asked.clear()
    return archive, tile


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_rows_and_headers_are_those_of_the_folder(sky, bucket, scheme):
    archive = open_archive(bucket.url if scheme == "http" else "s3://archive/", BANDS)
    local = open_archive(str(sky.images), BANDS)
    assert bucket.asked == []
    tile = archive.tile(sky.coadd_ids[0], BANDS, verify=True)
    assert repr(tile) == repr(local.tile(sky.coadd_ids[0], BANDS)) and len(tile.files) == 3
    rows = archive.read_rows(tile, "w3", 100, 137)
    assert rows.dtype.isnative and rows.flags.writeable
    np.testing.assert_array_equal(rows, local.read_rows(local.tile(tile.coadd_id, BANDS), "w3", 100, 137))
    asked = [line.split("/")[-1].split("-", 1)[1] for line in bucket.asked]
    first = 5760 + 100 * 700 * 4
    headers = [f"{band}-int-3.fits bytes=0-{16 * 2880 - 1}" for band in BANDS]
    assert asked == [*headers, f"w3-int-3.fits bytes={first}-{first + 37 * 700 * 4 - 1}"]
    with pytest.raises(ValueError, match="rows"):
        archive.read_rows(tile, "w3", 0, 701)


def test_an_archive_pickles_small_and_forgets_what_an_earlier_opening_saw(sky, own):
    archive, tile = opened(own, sky.coadd_ids[0])
    assert len(pickle.dumps(archive)) < 300 and pickle.loads(pickle.dumps(archive)) == archive
    path_of(own, tile.coadd_id, "w1").unlink()
    assert archive.tile(tile.coadd_id, ("w1",)) == tile and own.asked == []
    assert fault_of(open_archive(own.url, BANDS), tile.coadd_id).kind == "missing_band"


RECOVERS = {
    "503 three times": ([slow_down] * 3, 4),
    "torn": ([torn], 2),
    "stalled": ([stalled], 2),
    "closed": ([hang_up], 2),
    "fewer bytes than the range says": ([short_body], 2),
    "another range": ([other_range], 2),
    "another total size": ([other_total], 2),
    "no range": ([no_range], 2),
    "too small a length": ([short_length], 2),
    "200 instead of 206": ([whole], 2),
    "a page": ([page], 2),
    "a page, twice": ([page, page], 3),
    "nothing at this range": ([beyond_the_end], 2),
    "of all kinds": ([slow_down, torn, stalled, hang_up, torn], 6),
}


@pytest.mark.integration
@pytest.mark.parametrize("etag", [True, False])
@pytest.mark.parametrize("kind", RECOVERS)
@pytest.mark.fault(16)
def test_faults_that_pass_are_recovered_from(sky, server, kind, etag):
    faults, requests = RECOVERS[kind]
    server.etag = etag
    archive, tile = opened(server, sky.coadd_ids[0])
    server.faults.extend(faults)
    rows, local = archive.read_rows(tile, "w1", 3, 50), open_archive(str(sky.images), BANDS)
    np.testing.assert_array_equal(rows, local.read_rows(local.tile(tile.coadd_id, BANDS), "w1", 3, 50))
    assert len(server.asked) == requests and not server.faults
    server.asked.clear()
    server.faults.extend(faults)
    header = open_archive(server.url, BANDS).tile(sky.coadd_ids[0], ("w1",))
    assert header == tile and len(server.asked) == requests and not server.faults


STOPS = {
    "503": (slow_down, 6, "503 Service Unavailable"),
    "torn": (torn, 6, "the answer broke off"),
    "stalled": (stalled, 6, "silent for 0.3 s"),
    "closed": (hang_up, 6, "closed without an answer"),
    "403": (forbidden, 1, "403 Forbidden"),
    "fewer bytes than the range says": (short_body, 6, "bytes came instead of"),
    "another range": (other_range, 6, "Requested 0..46080, got 0..46079"),
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.fault(16)
def test_faults_that_stay_stop_within_the_bound(sky, server, kind):
    server.always, requests, words = STOPS[kind]
    archive = open_archive(server.url, BANDS)
    with pytest.raises(ArchiveDown, match=words) as caught:
        archive.tile(sky.coadd_ids[0], BANDS)
    error = caught.value
    assert len(server.asked) == requests == error.attempts
    assert not isinstance(error, TileFault) and isinstance(error, Interrupted) and error.exit_code == 4
    assert f"{server.url}/" in str(error) and f"({requests} attempt" in str(error) and "same command" in str(error)
    assert "\n" not in str(error)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.trouble) == (str(error), error.trouble)


def test_no_attempt_begins_late(sky, server, monkeypatch):
    monkeypatch.setattr(remote, "LAST_ATTEMPT_S", 0.0)
    server.always = slow_down
    with pytest.raises(ArchiveDown, match=r"\(1 attempt\)"):
        open_archive(server.url, BANDS).tile(sky.coadd_ids[0], BANDS)


def test_an_outage_ends_before_the_watchdog_would_take_its_tiles_for_hung():
    assert remote.LAST_ATTEMPT_S + remote.ANSWER_TIMEOUT_S < tile_window.STALL_S


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:9/p3am_cdd", r"no connection \(.*refused\)"), ("http://nowhere.invalid/x", "no connection")],
)
def test_a_server_that_is_not_there(url, words):
    with pytest.raises(ArchiveDown, match=words) as caught:
        open_archive(url, BANDS).tile("1497p015_ac51", BANDS)
    assert caught.value.attempts == 6


def test_what_is_missing_is_a_fault_of_the_tile(sky, own):
    first, second = sky.coadd_ids
    path_of(own, first, "w2").unlink()
    shutil.rmtree(path_of(own, second, "w1").parent)
    archive = open_archive(own.url, BANDS)
    fault = fault_of(archive, first)
    assert (fault.kind, fault.band) == ("missing_band", "w2") and "which has w1, w3 of this tile" in fault.reason
    fault = fault_of(archive, second)
    assert (fault.kind, fault.band) == ("missing_tile", None) and own.url in fault.reason
    assert archive.bands_of(first) == ("w1", "w3") and archive.bands_of(second) == ()
    n_asked = len(own.asked)
    assert n_asked == 8, "each band of each tile once"
    assert fault_of(archive, "../../etc/passwd").kind == "missing_tile" and len(own.asked) == n_asked


DAMAGE = {
    "empty": (lambda b: b"", "empty file"),
    "html": (lambda b: b"<html>503</html>", "HTML"),
    "gzip": (gzip.compress, "gunzip"),
    "half": (lambda b: b[: len(b) // 2], "truncated"),
    "in header": (lambda b: b[:1000], "inside the FITS header"),
    "zeroed": (lambda b: b[:5760] + bytes(len(b) - 5760), "zeroed pixels"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_becomes_a_fault_with_its_reason(sky, own, kind):
    damage, words = DAMAGE[kind]
    path = path_of(own, sky.coadd_ids[0], "w2")
    path.write_bytes(damage(path.read_bytes()))
    fault = fault_of(open_archive(own.url, BANDS), sky.coadd_ids[0])
    assert (fault.kind, fault.band) == ("bad", "w2") and words in fault.reason
    assert len(own.asked) == 4, "three headers, and that of w2 again; or three headers, and rows of w2"


def test_a_page_instead_of_a_file_is_a_fault_of_the_tile(sky, server):
    archive = open_archive(server.url, BANDS)
    server.always = page
    fault = fault_of(archive, sky.coadd_ids[0])
    assert (fault.kind, fault.band) == ("bad", "w1") and "HTML" in fault.reason
    assert len(server.asked) == 24, "for each band three times by range and once without, all of it twice"


@pytest.mark.parametrize("etag", [True, False])
def test_a_file_that_changed_after_its_tile_was_opened_is_a_fault(sky, own, etag):
    own.etag = etag
    archive, tile = opened(own, sky.coadd_ids[0])
    path = path_of(own, tile.coadd_id, "w1")
    whole_file = path.read_bytes()
    other_pixels = whole_file[:5760] + b"\x3f\x80\0\0" + whole_file[5764:]
    for data in (b"", b"<html>", whole_file[: 5760 + 4 * 700 * 8], other_pixels):
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))
        assert "changed during the run" in fault_of_rows(archive, tile)
    assert archive.tile(tile.coadd_id, ("w1",)) == tile, "remembered"
    again = archive.tile(tile.coadd_id, ("w1",), verify=True)
    assert again != tile and archive.read_rows(again, "w1", 0, 9)[0, 0] == 1, "the tile can be opened again"
    path.unlink()
    assert "it was removed" in fault_of_rows(archive, tile)
    own.always = page
    assert "something else" in fault_of_rows(archive, tile)


def fault_of_rows(archive: Archive, tile: Tile) -> str:
    with pytest.raises(TileFault) as caught:
        archive.read_rows(tile, "w1", 0, 9)
    assert caught.value.kind == "changed" and caught.value.band == "w1"
    return caught.value.reason


def test_the_pixels_have_the_digest_of_those_of_the_folder(sky, server):
    archive, local = open_archive(server.url, BANDS), open_archive(str(sky.images), BANDS)
    tile, on_disk = (a.tile(sky.coadd_ids[0], BANDS) for a in (archive, local))
    assert archive.pixel_sha256(tile) == local.pixel_sha256(on_disk)
    assert archive.pixel_sha256(tile, 100, 137) == local.pixel_sha256(on_disk, 100, 137) != local.pixel_sha256(on_disk)
    assert list(file_record(tile)) == list(file_record(on_disk))
    data = path_of(server, tile.coadd_id, "w1").read_bytes()
    assert tile.files[0].stamp.tag == f'"{hashlib.md5(data).hexdigest()}"'


def test_a_server_without_ranges_is_refused(sky, server):
    server.always = whole
    with pytest.raises(ArchiveError, match="sends whole files; mirror the tiles"):
        open_archive(server.url, BANDS).tile(sky.coadd_ids[0], BANDS)
    assert len(server.asked) == 4, "three times by range, once without"


# --- S3 --------------------------------------------------------------------------------------------


def test_a_bucket_is_asked_unsigned_without_credentials_and_signed_with_them(sky, bucket, monkeypatch):
    open_archive("s3://archive", BANDS).tile(sky.coadd_ids[0], ("w1",))
    assert bucket.signed == [False]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    open_archive("s3://archive", BANDS).tile(sky.coadd_ids[0], ("w1",))
    assert bucket.signed == [False, True]


def test_a_refusal_without_credentials_names_them(sky, bucket, monkeypatch):
    bucket.always = forbidden
    with pytest.raises(ArchiveDown, match="403 Forbidden.*without credentials: set AWS_ACCESS_KEY_ID"):
        open_archive("s3://archive", BANDS).tile(sky.coadd_ids[0], ("w1",))
    assert len(bucket.asked) == 1
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(ArchiveDown) as caught:
        open_archive("s3://archive", BANDS).tile(sky.coadd_ids[0], ("w1",))
    assert "without credentials" not in str(caught.value)


def test_a_profile_needs_boto3(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with pytest.raises(ConfigError, match="pip install boto3"):
        open_archive("s3://archive", BANDS)


def test_a_bucket_lists_its_tiles_and_only_folders_near_the_positions(sky, own, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", own.endpoint)
    for name in ("14/1400/1400p015_ac51", "21/2100/2100p000_ac51", "readme/x"):
        (own.root / name).mkdir(parents=True)
    archive, local = open_archive("s3://archive", BANDS), open_archive(str(own.root), BANDS)
    near = (np.array([sky.center[0]]), np.array([sky.center[1]]))
    own.faults.extend([slow_down, hang_up])
    assert repr(archive.list_tiles(near)) == repr(local.list_tiles(near)) != "[]"
    folders = [line.split("prefix=")[-1] for line in own.asked[2:] if "prefix=" in line or "list-type" in line]
    assert "21%2F2100%2F" not in folders and "14%2F1400%2F" not in folders and "14%2F" in folders
    assert repr(archive.list_tiles()) == repr(local.list_tiles())


def test_the_folders_listed_hold_every_name_that_is_near():
    names = [f"{ra:04d}{dec}_ac51" for ra in range(0, 3600, 7) for dec in ("p000", "m605", "p832", "p893", "m893")]
    for ra, dec in ((0.1, 0.0), (359.95, -61.0), (150.0, 83.5), (10.0, 89.9), (200.0, -90.0)):
        near = names_near(names, ([ra], [dec]))
        folders = ra_folders_near(([ra], [dec]))
        assert near and {name[:4] for name in near} <= folders
        assert len(folders) < 45 or abs(dec) > 60
    assert ra_folders_near(([], [])) == set()


# --- what cannot be opened -------------------------------------------------------------------------


def test_locations_that_are_none():
    for url in ("s3://", "https:///p3am_cdd", "https://host/path?center=1,2"):
        with pytest.raises(ArchiveError, match="give s3://bucket/prefix or https://host/path"):
            open_archive(url, BANDS)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/p3am_cdd",
        "s3://AKIA:hunter2@bucket/prefix",
        "HTTPS://hunter2@host",
        "https://me:hun/ter2@host/p",
        "https:/me:hunter2@host/p",
        "gs://me:hunter2@bucket",
    ],
)
def test_a_login_in_a_location_is_refused_and_not_repeated(url, bucket, monkeypatch):
    def refused(call) -> str:
        with pytest.raises(
            ConfigError, match="must not contain a user name or password.*AWS_PROFILE.*folder"
        ) as caught:
            call()
        assert "ter2" not in str(caught.value) and "AKIA" not in str(caught.value)
        return str(caught.value)

    assert "images = " in refused(lambda: open_archive(url, BANDS))
    assert "images = " in refused(lambda: RunConfig("t.csv", url, "out"))
    assert "catalog = " in refused(lambda: RunConfig(url, "images", "out"))
    assert "images = " in refused(lambda: run_config({"catalog": "t.csv", "images": url, "out": "o", "typo": 1}))
    assert "catalog = " in refused(lambda: open_sources(url))
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert "AWS_ENDPOINT_URL = " in refused(lambda: open_archive("s3://archive", BANDS))


def test_an_at_sign_is_no_login_in_the_name_of_a_folder(sky, tmp_path):
    shutil.copytree(sky.images, tmp_path / "me@home")
    for location in (str(tmp_path / "me@home"), f"file://{tmp_path}/me@home"):
        assert open_archive(location, BANDS).tile(sky.coadd_ids[0], BANDS).bands == BANDS


def test_the_query_of_a_location_is_not_repeated():
    with pytest.raises(ArchiveError, match=r"https://host/p\?\*\*\*: give") as caught:
        open_archive("https://host/p?X-Amz-Signature=hunter2", BANDS)
    assert "hunter2" not in str(caught.value)


def test_without_the_library_one_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'skyclass\[cloud\]'"):
        open_archive("https://127.0.0.1:9/p3am_cdd", BANDS)


# --- a run -----------------------------------------------------------------------------------------


def far(run: RunConfig, server: ArchiveServer, folder: Path) -> RunConfig:
    return dataclasses.replace(run, images=server.url, out=str(folder))


@pytest.fixture(scope="module")
def near_rows(sky, bundle, tmp_path_factory):
    """The rows of a run on the local folder."""
    out = tmp_path_factory.mktemp("near") / "classes"
    run = RunConfig(str(sky.catalog), str(sky.images), str(out), str(bundle), None, "fp32", "cpu", strip_sources=128)
    pipeline.classify(run)
    return rows_of(run)


def rows_of(run: RunConfig):
    """The published rows, less the column that names the run: another location is another run."""
    return open_catalog(run.out).to_arrow().drop_columns(["run_id"])


@pytest.mark.integration
def test_a_run_over_http_gives_the_rows_of_the_folder(run, server, near_rows, tmp_path, monkeypatch):
    server.faults.extend([slow_down, torn, hang_up])
    options = ["--catalog", run.catalog, "--images", server.url, "--model", run.model, "--out", str(tmp_path / "far")]
    options += ["--cluster", "none", "--precision", "fp32", "--device", "cpu"]
    assert cli(["classify", *options], standalone_mode=False) == 0
    assert rows_of(far(run, server, tmp_path / "far")).equals(near_rows)
    monkeypatch.setattr("skyclass.run.plan_report.PROBE_IMAGES", 64)
    assert any("0.01 GB of tile pixels" in line for line in plan_report(far(run, server, tmp_path / "plan")).lines)


class Hasty(WorkerPlugin):
    """Short waits on a worker."""

    name = "hasty"

    def setup(self, worker) -> None:
        for name, value in QUICK.items():
            setattr(remote, name, value)


@pytest.mark.integration
@pytest.mark.fault(16)
def test_an_outage_stops_a_run_quarantines_nothing_and_the_same_command_resumes(run, sky, server, near_rows, tmp_path):
    far_run = far(run, server, tmp_path / "far")
    second = min(sky.coadd_ids, key=lambda name: near_rows["coadd_id"].to_pylist().count(name))

    def gone(handler) -> None:
        """The second tile of the run cannot be had."""
        (slow_down if second in handler.path else type(handler).serve)(handler)

    server.always = gone
    with pytest.raises(ArchiveDown, match=second):
        pipeline.classify(far_run)
    assert sum(second in line for line in server.asked) == 6
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connect("local", workers=1) as client:
        client.register_plugin(Hasty())
        with pytest.raises(ArchiveDown, match=second) as caught:
            engine.classify(dataclasses.replace(far_run, strip_sources=1000), client, no_progress)
        assert caught.value.attempts == 6
    assert set(committed(RunFolder(far_run.out))) == set(sky.coadd_ids) - {second}
    server.always = slow_down
    with pytest.raises(ArchiveDown, match="run the same command again"):
        pipeline.classify(far_run)
    server.always = None
    report = pipeline.classify(far_run)
    assert report.tiles_resumed == 1 and not report.quarantined and rows_of(far_run).equals(near_rows)


def test_an_archive_that_is_down_before_anything_was_begun_is_an_error_of_input(run, server, tmp_path):
    far_run = far(run, server, tmp_path / "far")
    server.always = slow_down
    with pytest.raises(ArchiveError, match=r"503 .*\(6 attempts\); nothing was begun") as caught:
        pipeline.classify(far_run)
    assert caught.value.exit_code == 2 and not RunFolder(far_run.out).path.exists() and len(server.asked) == 6


def test_a_location_above_the_layout_is_told(run, server, tmp_path):
    elsewhere = dataclasses.replace(run, images=f"{server.url}/p3am_cdd", out=str(tmp_path / "far"))
    with pytest.raises(ArchiveError, match="missing tile.*the folders 00 to 35; the public ones are s3://nasa-irsa"):
        pipeline.classify(elsewhere)


@pytest.mark.integration
def test_positions_without_a_tile_need_a_bucket(run, sky, bucket, tmp_path):
    rows = pq.read_table(sky.catalog).select(["ra", "dec", "source_id", "coadd_id"]).slice(0, 4).to_pandas()
    rows.drop(columns="coadd_id").to_csv(tmp_path / "own.csv", index=False)
    own = dataclasses.replace(run, catalog=str(tmp_path / "own.csv"), images=bucket.url)
    with pytest.raises(ConfigError, match="add a column coadd_id .* or give a folder or s3:// location"):
        pipeline.classify(own)
    report = pipeline.classify(dataclasses.replace(own, images="s3://archive"))
    assert report.classified == 4
    rows.to_csv(tmp_path / "own.csv", index=False)
    assert pipeline.classify(dataclasses.replace(own, out=str(tmp_path / "http"))).classified == 4
