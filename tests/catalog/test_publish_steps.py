"""The steps of a publication, each on a few rows: division by pixel, files, totals, space, and the switch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from skyclass.catalog.hats import sidecar_files
from skyclass.catalog.manifest import read_manifest
from skyclass.catalog.publish import (
    CatalogRows,
    check_space,
    files_by_pixel,
    finish_publication,
    publish_catalog,
    require_row_total,
    write_pixel,
)
from skyclass.errors import LeaseLost, RowsLost, StoreError
from tests.support.small_catalog import PIXEL, PROVENANCE, catalog_rows_of, catalogue_table

"""Indices of order 29 in a pixel of order 5."""

TABLES = (
    catalogue_table(
        {"_healpix_29": 8 * PIXEL - 1, "source_id": "b", "class": "star"},
        {"_healpix_29": 8 * PIXEL, "source_id": "c", "class": "quasar"},
        {"_healpix_29": 7 * PIXEL, "source_id": "a", "class": "star", "flags": 1},
    ),
    catalogue_table(
        {"_healpix_29": 7 * PIXEL - 1, "source_id": "f"},
        {"_healpix_29": 8 * PIXEL - 1, "source_id": "aé", "flags": 128},
    ),
)
"""Five rows on the borders of the pixels 6, 7 and 8."""


def test_each_pixel_gets_the_files_that_have_rows_in_it(tmp_path: Path) -> None:
    first, second = map(str, (rows := catalog_rows_of(tmp_path, *TABLES)).files)
    assert files_by_pixel(rows.files) == [(6, (second,)), (7, (first, second)), (8, (first,))]
    assert files_by_pixel([]) == []


def test_a_pixel_holds_the_rows_from_its_first_index_to_its_last(tmp_path: Path) -> None:
    files = [str(path) for path in catalog_rows_of(tmp_path, *TABLES).files]
    record = write_pixel(PROVENANCE, None, tmp_path / "new", 7, files)
    path = tmp_path / "new/dataset/Norder=5/Dir=0/Npix=7.parquet"
    data, rows = path.read_bytes(), pq.ParquetFile(path).read()
    assert rows["source_id"].to_pylist() == ["a", "aé", "b"]
    assert (record.pixel, record.path) == (7, "dataset/Norder=5/Dir=0/Npix=7.parquet")
    assert (record.rows, record.n_flagged, record.nbytes) == (3, 2, len(data))
    assert record.sha256 == sha256(data).hexdigest()
    assert record.classes == {"galaxy": 0, "quasar": 0, "star": 2, "unclassified": 1}
    assert (record.healpix_min, record.healpix_max) == (7 * PIXEL, 8 * PIXEL - 1)
    footer = pq.read_metadata(path).metadata
    assert footer[b"table::len::source_id"] == b"3" and footer[b"table::len::class"] == b"4"
    assert b"ARROW:schema" not in footer
    assert write_pixel(PROVENANCE, None, tmp_path / "new", 7, files) == record and path.read_bytes() == data


def test_a_publication_is_checked_written_fenced_and_switched_in_this_order(tmp_path: Path) -> None:
    rows, seen = catalog_rows_of(tmp_path, *TABLES), []

    def progress(done: int, of: int) -> None:
        seen.append(f"{done}/{of}")

    def fence() -> None:
        (staging_folder,) = (tmp_path / "catalogs").iterdir()
        assert read_manifest(staging_folder).rows == 5 and not (tmp_path / "catalog").exists()
        seen.append("fence")

    def backwards(work: Callable[..., Any], items: Any) -> Iterator[Any]:
        return (work(*item) for item in reversed(items))

    assert publish_catalog(rows, progress, backwards, fence) == tmp_path / "catalog/manifest.json"
    assert seen == ["1/3", "2/3", "3/3", "fence"]
    assert os.readlink(tmp_path / "catalog") == "catalogs/000001"
    manifest = read_manifest(tmp_path / "catalog")
    assert [record.pixel for record in manifest.files] == [6, 7, 8]
    assert (manifest.rows, manifest.rows_expected, manifest.n_flagged) == (5, 5, 2)
    assert (manifest.run_id, manifest.tiles, manifest.provenance) == ("r1", "tiles1", PROVENANCE)
    expected = sidecar_files(manifest.files, PROVENANCE, "2026-01-02T03:04:05Z")
    assert manifest.sidecars == {name: sha256(data).hexdigest() for name, data in expected.items()}
    assert {name: (tmp_path / "catalog" / name).read_bytes() for name in expected} == expected

    def lost() -> None:
        raise LeaseLost("another driver has taken over")

    with pytest.raises(LeaseLost):
        publish_catalog(rows, fence=lost)
    assert os.readlink(tmp_path / "catalog") == "catalogs/000001"


def test_lost_rows_and_repeated_ids_leave_no_manifest(tmp_path: Path) -> None:
    rows = catalog_rows_of(tmp_path, *TABLES)
    records = [write_pixel(PROVENANCE, None, tmp_path / "new", *item) for item in files_by_pixel(rows.files)]
    with pytest.raises(RowsLost, match="5 rows planned, 4 in the 2 published files: nothing was published"):
        finish_publication(rows, tmp_path / "new", records[:0:-1], {})
    twin = catalog_rows_of(tmp_path / "twin", TABLES[0], TABLES[0].slice(1, 1))
    records = [write_pixel(PROVENANCE, None, tmp_path / "twin/new", *item) for item in files_by_pixel(twin.files)]
    with pytest.raises(StoreError, match="source_id is not unique: 'c' occur more than once"):
        finish_publication(twin, tmp_path / "twin/new", records, {})
    assert not (tmp_path / "new/manifest.json").exists() and not (tmp_path / "twin/new/manifest.json").exists()


def test_as_many_rows_as_planned_are_required() -> None:
    require_row_total(2000, 2000, "the plan")
    for n_rows in (1999, 2001):
        with pytest.raises(RowsLost, match=f"2,000 rows planned, {n_rows:,} in the plan: nothing"):
            require_row_total(n_rows, 2000, "the plan")


Free = Callable[..., list[Path]]


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Free:
    """Set the free bytes of the disk, and return the folders that are asked about them from then on."""
    disk = shutil.disk_usage(tmp_path)

    def change(n: int, total: int = 10**9) -> list[Path]:
        asked: list[Path] = []
        changed = disk._replace(free=n, total=total)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(path), changed)[1])
        return asked

    return change


NEEDS = "catalogs: the class catalogue needs 66,641 bytes and 66,640 are available: nothing was published. "


def test_a_publication_needs_a_tenth_more_than_its_rows_and_32_kib_a_file(tmp_path: Path, free: Free) -> None:
    """1,005 bytes of rows in two files: 1,105 and twice 32,768."""
    rows = CatalogRows(tmp_path, tmp_path, (), 1005, 5, "", PROVENANCE, "")
    asked = free(66_641)
    check_space(rows, 2)
    assert asked == [tmp_path]
    free(0, total=0)  # of a file system that does not say
    check_space(rows, 2)
    free(66_640)
    with pytest.raises(StoreError, match=f"^{tmp_path}/{NEEDS}free space, then"):
        check_space(rows, 2)


def test_a_full_disk_ends_a_publication_before_it_begins(tmp_path: Path, free: Free) -> None:
    rows = catalog_rows_of(tmp_path, *TABLES, nbytes=1005)
    free(66_640)
    with pytest.raises(StoreError, match="needs 99,409 bytes"):
        publish_catalog(rows)
    assert not (tmp_path / "catalogs").exists()
    asked = free(10**9)
    publish_catalog(rows)
    publish_catalog(rows)
    assert asked == [tmp_path, tmp_path / "catalogs"]  # which may be a link to another disk
    free(66_640)
    with pytest.raises(StoreError, match=f"{NEEDS}'skyclass gc' removes 1 earlier publication; free"):
        check_space(rows, 2)
