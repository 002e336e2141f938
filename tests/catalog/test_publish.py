"""The published catalogue: every row, once, sorted, documented, and checkable."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse

from skyclass.catalog import versions
from skyclass.catalog.manifest import Manifest, pixel_path, read_manifest, write_manifest
from skyclass.catalog.publish import files_by_pixel, finish_publication, write_pixel
from skyclass.catalog.query import open_catalog
from skyclass.errors import LeaseLost, NotPublished, RowsLost, RunMismatch, StoreError
from skyclass.files import parquet_bytes, remove, sha256_of
from skyclass.run.commits import commit_tile, committed, journal_commit, uncommit
from skyclass.run.finish import catalog_rows, is_published, publish_run, verify
from skyclass.run.folder import RunFolder, leftover_files, read_run
from skyclass.schema import class_counts
from skyclass.sky.healpix import healpix
from skyclass.types import DEFAULT_CLASSES
from tests.support.class_rows import CLASS_COLUMNS, CLASS_SCHEMA, TILES, class_rows, make_run
from tests.support.paths import CHECKOUT


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, pa.Table]:
    folder, rows = make_run(tmp_path_factory.mktemp("run"))
    publish_run(folder)
    return folder, rows


@pytest.fixture
def copied(published: tuple[RunFolder, pa.Table], tmp_path: Path) -> Path:
    shutil.copytree(published[0].path, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "catalog"


def first_file(catalog: Path) -> Path:
    return catalog / max(read_manifest(catalog).files, key=lambda record: record.rows).path


@pytest.mark.integration
def test_every_row_is_published_once_in_its_pixel(published: tuple[RunFolder, pa.Table]) -> None:
    folder, rows = published
    manifest = read_manifest(folder.catalog)
    parts = [pq.ParquetFile(folder.catalog / record.path).read() for record in manifest.files]
    for record, part in zip(manifest.files, parts, strict=True):
        assert record.path == f"dataset/Norder=5/Dir=0/Npix={record.pixel}.parquet"
        assert set(healpix(5, part["ra"].to_numpy(), part["dec"].to_numpy())) == {record.pixel}
        assert (np.diff(part["_healpix_29"].to_numpy()) >= 0).all()
    key = [("source_id", "ascending")]
    assert pa.concat_tables(parts).sort_by(key).equals(rows.sort_by(key))
    assert manifest.rows == len(rows) and manifest.classes == class_counts(rows, DEFAULT_CLASSES)
    assert verify(folder.path).ok
    assert pixel_path(12287) == "dataset/Norder=5/Dir=10000/Npix=12287.parquet"


def test_files_carry_units_ucds_and_provenance(published: tuple[RunFolder, pa.Table]) -> None:
    folder, _ = published
    for path in (first_file(folder.catalog), folder.catalog / "dataset/_common_metadata"):
        words = pq.read_metadata(path).metadata
        assert words[b"IVOA.VOTable-Parquet.version"] == b"1.0"
        document = parse(io.BytesIO(words[b"IVOA.VOTable-Parquet.content"]), verify="exception")
        fields = document.get_first_table().fields
        found = {f.name: (str(f.unit or ""), f.ucd, " ".join(f.description.split())) for f in fields}
        assert found == CLASS_COLUMNS
        assert "simulated" in document.get_first_table().description
        assert json.loads(words[b"skyclass"])["fingerprint"] == read_run(folder)["fingerprint"]
    readme = (folder.catalog / "README.txt").read_text()
    assert "22 % pure" in readme and "simulated" in readme and "CENTRE_MISSING" in readme


@pytest.mark.integration
def test_hats_accepts_the_catalogue(published: tuple[RunFolder, pa.Table], caplog: pytest.LogCaptureFixture) -> None:
    validation = pytest.importorskip("hats.io.validation")
    with caplog.at_level(logging.ERROR):
        assert validation.is_valid_catalog(published[0].catalog, strict=True)
        assert validation.is_valid_catalog(published[0].catalog.resolve(), strict=True)


def content(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.integration
def test_publishing_again_gives_the_same_bytes_in_a_new_folder(copied: Path) -> None:
    first, before, done = copied.resolve(), content(copied), []
    (copied / "stray").touch()
    publish_run(copied.parent, progress=lambda *step: done.append(step))
    assert content(copied) == before and copied.resolve() != first
    assert copied.is_symlink() and os.readlink(copied) == "catalogs/000002"
    assert content(first) == before | {Path("stray"): b""}, "an earlier publication stays as it is"
    n = len(read_manifest(copied).files)
    assert done == [(i + 1, n) for i in range(n)]
    assert not list((copied.parent / "tmp").iterdir())
    assert [path.name for path in versions.publications(copied.parent)] == ["000001", "000002"]


def reclassified(folder: RunFolder, tile: tuple[str, int, float, float], seed: int) -> pa.Table:
    """Give a committed tile other rows, as a retry of quarantined tiles does, and return them."""
    name, n, ra, dec = tile
    uncommit(folder, committed(folder)[name], "for a test")
    rows = class_rows(name, n, ra, dec, seed=seed)
    journal_commit(folder, commit_tile(folder, name, rows))
    return rows


def by_id(table: pa.Table) -> pa.Table:
    return table.sort_by("source_id").combine_chunks()


@pytest.mark.integration
def test_an_open_reader_keeps_its_publication_until_gc(tmp_path: Path) -> None:
    folder, rows = make_run(tmp_path, TILES[3:])
    publish_run(folder)
    old = open_catalog(folder.path)
    assert by_id(old.to_arrow()).equals(rows_of := by_id(rows))
    for seed in range(10, 13):
        new_rows = by_id(reclassified(folder, TILES[3], seed))
        publish_run(folder)
        assert by_id(old.to_arrow()).equals(rows_of) and old.count() == len(rows)
        assert old.sql("SELECT sum(p_star) AS s FROM classes")["s"][0] == pytest.approx(pc.sum(rows["p_star"]).as_py())
        new = open_catalog(folder.catalog)
        assert by_id(new.to_arrow()).equals(new_rows) and not new_rows.equals(rows_of)
    for path in versions.superseded_publications(folder.path):
        remove(path)
    assert [path.name for path in versions.publications(folder.path)] == ["000004"]
    assert by_id(new.to_arrow()).equals(new_rows) and verify(folder.path).ok
    with pytest.raises(StoreError, match="000001 is gone: .*skyclass gc.*open the catalogue again"):
        old.to_arrow()
    with pytest.raises(StoreError, match="000001 is gone"):
        old.sql("SELECT count(*) FROM classes")


@pytest.mark.integration
def test_readers_beside_many_publications_see_one_state_each(tmp_path: Path) -> None:
    """Each catalogue that is opened while another thread publishes holds the rows of one state, whole."""
    folder, rows = make_run(tmp_path, TILES[3:])
    publish_run(folder)
    states, ended, mixed, n_read = [by_id(rows)], threading.Event(), [], 0

    def read() -> None:
        nonlocal n_read
        while not ended.is_set():
            classes = open_catalog(folder.path)
            time.sleep(0.01)
            table = by_id(classes.to_arrow())
            mixed.extend([] if any(table.equals(state) for state in states) else [classes.root])
            n_read += 1

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(20, 30):
        states.append(by_id(reclassified(folder, TILES[3], seed)))
        publish_run(folder)
    ended.set()
    reader.join()
    assert n_read >= 10 and not mixed


def test_a_catalogue_of_earlier_tiles_is_not_taken_for_published(tmp_path: Path) -> None:
    """A driver killed between the commits of a retry and its publication: same run, same number of rows."""
    folder, _ = make_run(tmp_path, TILES[3:])
    publish_run(folder)
    assert is_published(folder)
    rows = reclassified(folder, TILES[3], 99)
    assert not is_published(folder)
    publish_run(folder)
    assert is_published(folder) and by_id(open_catalog(folder.path).to_arrow()).equals(by_id(rows))
    manifest = folder.catalog / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    assert not is_published(folder)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["cp -r", "cp -rL", "mv", "rsync -r"])
def test_copied_and_moved_run_folders_work(tmp_path: Path, command: str) -> None:
    folder, rows = make_run(tmp_path / "run", TILES[3:])
    publish_run(folder)
    publish_run(folder)
    copy = RunFolder(tmp_path / "elsewhere" / "run")
    copy.path.parent.mkdir()
    words = "cp -r" if command == "rsync -r" else command
    subprocess.run([*words.split(), str(folder.path), str(copy.path)], check=True)
    if command == "rsync -r":  # it leaves links out
        copy.catalog.unlink()
    for path in (copy.path, copy.catalog):
        assert verify(path).ok and by_id(open_catalog(path).to_arrow()).equals(by_id(rows))
    assert copy.path in open_catalog(copy.path).root.parents
    publish_run(copy)
    assert is_published(copy) and copy.catalog.is_symlink() and verify(copy.catalog).ok
    for path in versions.superseded_publications(copy.path):
        remove(path)
    assert verify(copy.path).ok and len(versions.publications(copy.path)) == 1


@pytest.mark.integration
def test_a_file_system_without_symlinks_gets_a_text_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, rows = make_run(tmp_path, TILES[3:])

    def symlink(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", symlink)
    for number in (1, 2):
        publish_run(folder)
        assert folder.catalog.read_text() == f"catalogs/{number:06d}" and not folder.catalog.is_symlink()
        assert f"other tools open {tmp_path}/catalogs/{number:06d}" in caplog.text
    for path in (folder.path, folder.catalog, tmp_path / "catalogs/000002"):
        assert verify(path).ok and open_catalog(path).count() == len(rows)
    assert is_published(folder)
    monkeypatch.undo()
    publish_run(folder)
    assert os.readlink(folder.catalog) == "catalogs/000003" and verify(folder.path).ok


@pytest.mark.parametrize("made", ["folder", "file", "link", "catalogs"])
def test_what_is_no_catalogue_of_skyclass_is_never_replaced(tmp_path: Path, made: str) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("data")
    if made == "folder":
        shutil.copytree(precious, folder.catalog)
    elif made == "link":
        folder.catalog.symlink_to(precious)
    else:
        (folder.path / ("catalogs" if made == "catalogs" else "catalog")).write_text("data")
    before = content(tmp_path)
    with pytest.raises(RunMismatch, match="move it away"):
        publish_run(folder)
    assert content(tmp_path) == before and folder.catalog.is_symlink() == (made == "link")


@pytest.mark.integration
def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = make_run(tmp_path, TILES[3:])
    publish_run(folder)
    before = {path for path in tmp_path.rglob("*")}
    tile_bytes = sum(commit.nbytes for commit in committed(folder).values())
    n_files = len(read_manifest(folder.catalog).files)
    needed = tile_bytes * 11 // 10 + 32_768 * n_files
    published = sum(path.stat().st_size for path in (tmp_path / "catalogs").rglob("*") if path.is_file())
    assert published < needed < 3 * published + 32_768 * n_files
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=needed - 1))
    publish_again = f"needs {needed:,} bytes and {needed - 1:,} are available: nothing was published"
    with pytest.raises(StoreError, match=publish_again):
        publish_run(folder)
    assert {path for path in tmp_path.rglob("*")} == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=needed))
    publish_run(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=0))
    with pytest.raises(StoreError, match="'skyclass gc' removes 1 earlier publication;"):
        publish_run(folder)


@pytest.mark.integration
def test_a_driver_that_lost_its_lease_does_not_switch(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, TILES[3:])
    publish_run(folder)

    def fence() -> None:
        raise LeaseLost("another driver has taken over")

    with pytest.raises(LeaseLost):
        publish_run(folder, fence=fence)
    assert os.readlink(folder.catalog) == "catalogs/000001" and len(versions.publications(tmp_path)) == 1
    assert [path.suffix for path in leftover_files(folder)] == [".building"]
    publish_run(folder)
    assert not leftover_files(folder) and os.readlink(folder.catalog) == "catalogs/000002"


@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_kill_at_every_step_of_a_publication(tmp_path: Path) -> None:
    """Before and after each call that reaches the disk the run folder holds the old or the new rows, whole."""
    tile = ("0000m015_ac51", 20, 0.0, -1.5)
    folder, rows = make_run(tmp_path / "run", (tile,))
    publish_run(folder)
    new_rows = by_id(reclassified(folder, tile, 7))
    command = [sys.executable, "-m", "tests.support.publish_crashes", str(folder.path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    whole, *crashes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(crashes) > 15 and {"symlink", "rename", "replace"} <= set(whole["calls"])
    old, new = (pc.sum(table["p_star"]).as_py() for table in (rows, new_rows))
    for crash in crashes:
        assert crash["ended"] == signal.SIGKILL and crash["problems"] == [] and crash["resumed"] == 0, crash
        assert crash["p_star"] == pytest.approx(new if crash["current"] == "000002" else old), crash
        assert crash["then"] == pytest.approx(new) and crash["leftovers"] in ([], [".catalog"]), crash
    assert {crash["current"] for crash in crashes} == {"000001", "000002"}


def test_a_missing_tile_is_never_published(copied: Path) -> None:
    manifest = (copied / "manifest.json").read_bytes()
    RunFolder(copied.parent).tile_path(TILES[0][0]).unlink()
    with pytest.raises(NotPublished, match="10,500 of 13,500 sources are classified. To finish it"):
        publish_run(copied.parent)
    assert (copied / "manifest.json").read_bytes() == manifest


@pytest.mark.integration
def test_a_lost_file_is_never_published(copied: Path) -> None:
    folder = RunFolder(copied.parent)
    rows = catalog_rows(folder, committed(folder), 13_500)
    staging_folder = versions.begin_publication(folder.path)
    records = [write_pixel(rows.provenance, None, staging_folder, *item) for item in files_by_pixel(rows.files)]
    with pytest.raises(RowsLost):
        finish_publication(rows, staging_folder, records[1:], {})
    assert verify(copied).ok


@pytest.mark.parametrize("dec", [1.5, 40.0], ids=["same pixel", "far away"])
@pytest.mark.fault(18)
def test_repeated_source_ids_are_refused(tmp_path: Path, dec: float) -> None:
    folder, _ = make_run(tmp_path, TILES[:1])
    twin = class_rows(TILES[0][0], 5, 150.0, dec)
    commit_tile(folder, "1500p090_ac51", twin)
    with pytest.raises(StoreError, match=f"source_id is not unique: '{TILES[0][0]}-00000"):
        publish_run(folder, n_expected=TILES[0][1] + 5)
    assert not folder.catalog.exists()


def test_verify_finds_a_flipped_byte(copied: Path) -> None:
    path = first_file(copied)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    problems = verify(copied).problems
    assert any("sha256" in words and path.name in words for words in problems)


def test_verify_finds_missing_stray_and_changed_files(copied: Path) -> None:
    path = first_file(copied)
    path.unlink()
    path.with_name("Npix=1.parquet").touch()
    (copied / "README.txt").write_text("99 % pure")
    text = "\n".join(verify(copied.parent).problems)
    assert f"{path.name}: missing" in text
    assert "Npix=1.parquet: not in the manifest" in text
    assert "README.txt: sha256" in text


def forge(catalog: Path, rows: pa.Table, path: Path, words: dict[bytes, bytes]) -> None:
    """Write other rows into a published file and make the manifest agree with the new bytes."""
    path.write_bytes(parquet_bytes(rows, words))
    manifest = read_manifest(catalog)
    files = [
        replace(file, sha256=sha256_of(path), rows=len(rows)) if catalog / file.path == path else file
        for file in manifest.files
    ]
    total = sum(record.rows for record in files)
    write_manifest(catalog, replace(manifest, files=tuple(files), rows=total, rows_expected=total))


@pytest.mark.integration
def test_verify_finds_rows_dropped_swapped_or_repeated_behind_a_forged_manifest(copied: Path) -> None:
    path = first_file(copied)
    rows, words = pq.ParquetFile(path).read().cast(CLASS_SCHEMA), pq.read_metadata(path).metadata
    forge(copied, rows.slice(1), path, words)
    assert any("13,500 rows planned (run)" in text for text in verify(copied).problems)
    forge(copied, rows.take(pa.array(np.arange(len(rows))[::-1])), path, words)
    assert any("not sorted" in text for text in verify(copied).problems)
    ids = rows["source_id"].to_pylist()
    twin = rows.set_column(1, "source_id", pa.array([ids[1], *ids[1:]]))
    forge(copied, twin, path, words)
    assert any(f"not unique: '{ids[1]}'" in text for text in verify(copied).problems)
    forge(copied, rows.drop_columns("ra"), path, words)
    assert any("schema" in text for text in verify(copied).problems)


def test_manifest_reads_back_and_damage_is_told(copied: Path) -> None:
    manifest = read_manifest(copied)
    assert Manifest(**{**asdict(manifest), "files": manifest.files}) == manifest
    (copied / "manifest.json").write_text('{"format": "skyclass class catalogue 3", "files": []}')
    with pytest.raises(StoreError, match="damaged"):
        verify(copied)
    with pytest.raises(StoreError, match="no published class catalogue"):
        verify(copied.parent.parent)


def test_a_publication_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are synced from the deepest up, then the new name, then the link."""
    steps: list[str] = []
    sync, rename = versions.sync_folder, os.rename
    monkeypatch.setattr(versions, "sync_folder", lambda folder: (steps.append(f"sync {folder.name}"), sync(folder)))
    monkeypatch.setattr(os, "rename", lambda old, new: (steps.append(f"rename {Path(new).name}"), rename(old, new)))
    staging_folder = versions.begin_publication(tmp_path)
    assert staging_folder.is_dir() and not list(staging_folder.iterdir())
    (staging_folder / "dataset" / "Norder=5").mkdir(parents=True)
    (staging_folder / "manifest.json").write_text("{}")
    assert versions.make_current(tmp_path, staging_folder).name == "000001"
    deep = ["sync Norder=5", "sync dataset", f"sync {staging_folder.name}"]
    assert steps[:5] == [*deep, "rename 000001", "sync catalogs"]
    assert os.readlink(tmp_path / "catalog") == "catalogs/000001"
    second = versions.begin_publication(tmp_path)
    third = versions.begin_publication(tmp_path)
    assert not second.exists() and third.is_dir(), "what killed drivers left is removed"
