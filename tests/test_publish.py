"""The published catalogue: every row, once, sorted, documented, and checkable."""

from __future__ import annotations

import io
import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse
from class_rows import TILES, class_rows, make_run

from skyclass import publish as publishing
from skyclass import store
from skyclass.catalog.manifest import Manifest, pixel_path, read_manifest, write_manifest
from skyclass.errors import RowsLost, StoreError
from skyclass.files import parquet_bytes, sha256_of
from skyclass.publish import publish, verify
from skyclass.schema import CLASS_SCHEMA, COLUMNS, class_counts
from skyclass.sky import healpix
from skyclass.store import RunFolder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, pa.Table]:
    folder, rows = make_run(tmp_path_factory.mktemp("run"))
    publish(folder)
    return folder, rows


@pytest.fixture
def copied(published: tuple[RunFolder, pa.Table], tmp_path: Path) -> Path:
    shutil.copytree(published[0].path, tmp_path / "copy")
    return tmp_path / "copy" / "catalog"


def first_file(catalog: Path) -> Path:
    return catalog / max(read_manifest(catalog).files, key=lambda record: record.rows).path


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
    assert manifest.rows == len(rows) and manifest.classes == class_counts(rows)
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
        assert found == COLUMNS
        assert "simulated" in document.get_first_table().description
        assert json.loads(words[b"skyclass"])["fingerprint"] == store.read_run(folder)["fingerprint"]
    readme = (folder.catalog / "README.txt").read_text()
    assert "22 % pure" in readme and "simulated" in readme and "CENTRE_MISSING" in readme


def test_hats_accepts_the_catalogue(published: tuple[RunFolder, pa.Table], caplog: pytest.LogCaptureFixture) -> None:
    validation = pytest.importorskip("hats.io.validation")
    with caplog.at_level(logging.ERROR):
        assert validation.is_valid_catalog(published[0].catalog, strict=True)


def test_publishing_again_gives_the_same_bytes_and_replaces(copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    (copied / "stray").touch()
    done = []
    publish(copied.parent, progress=lambda *step: done.append(step))
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    n = len(read_manifest(copied).files)
    assert done == [(i + 1, n) for i in range(n)]
    assert not list((copied.parent / "tmp").iterdir()) and not RunFolder(copied.parent).building.exists()


def test_a_folder_that_is_no_catalogue_of_ours_is_never_replaced(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, TILES[3:])
    folder.catalog.mkdir()
    (folder.catalog / "precious.txt").write_text("data")
    with pytest.raises(StoreError, match="would replace it"):
        publish(folder)
    assert (folder.catalog / "precious.txt").read_text() == "data"


def test_a_missing_tile_is_never_published(copied: Path) -> None:
    manifest = (copied / "manifest.json").read_bytes()
    RunFolder(copied.parent).tile_path(TILES[0][0]).unlink()
    with pytest.raises(RowsLost, match="13,500 rows planned, 10,500 in the 3 committed tiles"):
        publish(copied.parent)
    assert (copied / "manifest.json").read_bytes() == manifest


def test_a_lost_file_is_never_published(copied: Path) -> None:
    folder = RunFolder(copied.parent)
    target, plan = publishing.begin_catalog(folder), publishing.publish_plan(folder)
    records = [publishing.publish_pixel(folder, target, pixel, files) for pixel, files in plan]
    with pytest.raises(RowsLost):
        publishing.finish_catalog(folder, records[1:], 13_500, publishing.provenance(folder))
    assert verify(copied).ok


@pytest.mark.parametrize("dec", [1.5, 40.0], ids=["same pixel", "far away"])
@pytest.mark.fault(18)
def test_repeated_source_ids_are_refused(tmp_path: Path, dec: float) -> None:
    folder, _ = make_run(tmp_path, TILES[:1])
    twin = class_rows(TILES[0][0], 5, 150.0, dec)
    store.commit_tile(folder, "1500p090_ac51", twin)
    with pytest.raises(StoreError, match=f"source_id is not unique: '{TILES[0][0]}-00000"):
        publish(folder, expected_rows=TILES[0][1] + 5)
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
    (copied / "manifest.json").write_text('{"format": "skyclass class catalogue 1", "files": []}')
    with pytest.raises(StoreError, match="damaged"):
        verify(copied)
    with pytest.raises(StoreError, match="no published class catalogue"):
        verify(copied.parent.parent)
