"""The manifest: totals over files, what it looks like on disk, and what damage to it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyclass.catalog.manifest import (
    PIXEL_SHIFT,
    Manifest,
    PixelRecord,
    label_of,
    manifest_of,
    pixel_path,
    read_manifest,
    write_manifest,
)
from skyclass.errors import NotPublished, StoreError
from tests.support.class_rows import MODEL

RECORDS = (
    PixelRecord(7, "a.parquet", 3, "aa", 1000, {"star": 1, "galaxy": 2}, 1, 10, 20),
    PixelRecord(9, "b.parquet", 5, "bb", 2000, {"star": 4, "unclassified": 1}, 2, 30, 40),
)
PROVENANCE: dict[str, Any] = {"run_id": 12, "info": {"model": MODEL | {"training": {"label": "SDSS"}}}}


@pytest.fixture
def manifest() -> Manifest:
    return manifest_of(RECORDS, 8, PROVENANCE, {"README.txt": "cc"}, "tiles1")


def test_totals_are_sums_over_the_files(manifest: Manifest) -> None:
    assert (manifest.rows, manifest.rows_expected, manifest.n_flagged) == (8, 8, 3)
    assert manifest.classes == {"galaxy": 2, "quasar": 0, "star": 5, "unclassified": 1}
    assert list(manifest.classes) == ["galaxy", "quasar", "star", "unclassified"]
    assert (manifest.run_id, manifest.label, manifest.tiles) == ("12", "SDSS", "tiles1")
    assert manifest.files == RECORDS and manifest.sidecars == {"README.txt": "cc"}
    nothing = manifest_of([], 0, PROVENANCE, {}, "")
    no_rows = {"galaxy": 0, "quasar": 0, "star": 0, "unclassified": 0}
    assert (nothing.rows, nothing.classes, nothing.n_flagged, nothing.files) == (0, no_rows, 0, ())


def test_a_manifest_reads_back_and_names_its_format_first(manifest: Manifest, tmp_path: Path) -> None:
    path = write_manifest(tmp_path, manifest)
    assert path == tmp_path / "manifest.json" and read_manifest(tmp_path) == manifest
    values = json.loads(path.read_text())
    assert next(iter(values)) == "format" and values["format"] == "skyclass class catalogue 3"
    assert values["files"][1] == {
        "pixel": 9,
        "path": "b.parquet",
        "rows": 5,
        "sha256": "bb",
        "nbytes": 2000,
        "classes": {"star": 4, "unclassified": 1},
        "n_flagged": 2,
        "healpix_min": 30,
        "healpix_max": 40,
    }
    assert read_manifest(tmp_path) != replace(manifest, tiles="tiles2")


def test_a_manifest_that_is_none_is_told(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="manifest.json does not exist"):
        read_manifest(tmp_path)
    path = write_manifest(tmp_path, manifest)
    good = json.loads(path.read_text())
    other = f"{tmp_path} is no class catalogue: its manifest.json is not 'skyclass class catalogue 3'"
    without_files = {name: value for name, value in good.items() if name != "files"}
    cases = [
        ({}, other),
        (good | {"format": "skyclass class catalogue 1"}, other),
        (without_files, f"{path} is damaged: 'files'"),
        (good | {"files": [{"pixel": 1}]}, f"{path} is damaged: PixelRecord.__init__() missing"),
        (good | {"colour": 1}, f"{path} is damaged: Manifest.__init__() got an unexpected"),
        (good | {"files": 3}, f"{path} is damaged: 'int' object is not iterable"),
    ]
    for values, message in cases:
        path.write_text(json.dumps(values))
        with pytest.raises(StoreError) as caught:
            read_manifest(tmp_path)
        assert str(caught.value).startswith(message)


def test_a_pixel_of_order_5_has_a_run_of_two_to_the_48_indices() -> None:
    indices = [0, 2**48 - 1, 2**48, 7 * 2**48, 8 * 2**48 - 1, 12288 * 2**48 - 1]
    assert [index >> PIXEL_SHIFT for index in indices] == [0, 0, 1, 7, 7, 12287]


def test_folders_hold_ten_thousand_pixels_each() -> None:
    assert pixel_path(0) == "dataset/Norder=5/Dir=0/Npix=0.parquet"
    assert pixel_path(9_999) == "dataset/Norder=5/Dir=0/Npix=9999.parquet"
    assert pixel_path(10_000) == "dataset/Norder=5/Dir=10000/Npix=10000.parquet"
    assert pixel_path(25_000, 6) == "dataset/Norder=6/Dir=20000/Npix=25000.parquet"


@pytest.mark.parametrize(
    ("provenance", "label"),
    [
        ({}, "training of the model not recorded"),
        ({"info": {"model": {"training": {"simulated": True, "label": "SDSS"}}}}, "trained on simulated data: SDSS"),
        ({"info": {"model": {"training": {"simulated": True, "label": "a SIMULATED sky"}}}}, "a SIMULATED sky"),
        ({"info": {"model": {"training": {"label": " SDSS \n DR17 "}}}}, "SDSS DR17"),
    ],
)
def test_the_label_is_one_line_and_says_simulated_once(provenance: dict[str, Any], label: str) -> None:
    assert label_of(provenance) == label
