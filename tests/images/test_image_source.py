"""Image sources: the one in memory, and one that an installed package adds."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest

from docs.extensions.zip_source import open_zip
from skyclass.engine.cluster import connect
from skyclass.engine.engine import classify as classify_on_dask
from skyclass.errors import ArchiveError, TileFault
from skyclass.images.archive import AtlasArchive, open_archive
from skyclass.images.layout import layout_path
from skyclass.images.source import MemorySource
from skyclass.run import pipeline
from skyclass.run.progress import no_progress
from tests.support.runs import rows_of

BANDS = ("w1", "w2", "w3")


def image_files(sky) -> dict[str, bytes]:
    root = Path(sky.images)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.fits"))}


def test_a_source_in_memory_has_the_tiles_and_pixels_of_the_folder(sky):
    files, local = image_files(sky), open_archive(str(sky.images), BANDS)
    memory = AtlasArchive(MemorySource(files), BANDS)
    near = ([sky.center[0]], [sky.center[1]])
    assert repr(memory.list_tiles()) == repr(local.list_tiles()) != "[]"
    assert repr(memory.list_tiles(near)) == repr(local.list_tiles(near))
    for coadd_id in sky.coadd_ids:
        tile, on_disk = (archive.tile(coadd_id, BANDS, verify=True) for archive in (memory, local))
        assert repr(tile) == repr(on_disk) and memory.bands_of(coadd_id) == BANDS
        np.testing.assert_array_equal(memory.read_rows(tile, "w2", 3, 700), local.read_rows(on_disk, "w2", 3, 700))
        assert memory.pixel_sha256(tile) == local.pixel_sha256(on_disk)


def test_faults_of_a_source_in_memory_are_those_of_any_source(sky):
    files, coadd_id = image_files(sky), sky.coadd_ids[0]
    name = layout_path(coadd_id, "w2")
    archive = AtlasArchive(MemorySource(files), BANDS)
    tile, content = archive.tile(coadd_id, BANDS), files[name]
    files[f"{name}.md5"] = b"0" * 32
    with pytest.raises(TileFault, match=f"{name}.md5 says 0000"):
        archive.tile(coadd_id, BANDS, verify=True)
    files[name] = content[:-4000]
    with pytest.raises(TileFault, match="w2: memory:/.* changed during the run .size"):
        archive.read_rows(tile, "w2", 0, 9)
    with pytest.raises(TileFault, match="truncated"):
        archive.tile(coadd_id, BANDS)
    del files[name]
    with pytest.raises(TileFault, match="changed during the run .it was removed"):
        archive.read_rows(tile, "w2", 0, 9)
    with pytest.raises(TileFault, match="which has w1, w3 of this tile"):
        archive.tile(coadd_id, BANDS)


def installed(site: Path, value: str) -> None:
    """Make a folder that looks to Python as if a package with an entry point for zip:// were installed there."""
    metadata = site / "zip_images-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zip-images\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[skyclass.image_sources]\nzip = {value}\n")


@pytest.mark.integration
def test_an_installed_package_adds_a_kind_of_source(run, sky, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name, content in image_files(sky).items():
            file.writestr(name, content)
    location = f"zip://{tmp_path / 'images.zip'}"
    with pytest.raises(ArchiveError, match="give a folder, s3://"):
        open_archive(location, BANDS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    installed(tmp_path / "site", "docs.extensions.zip_source:open_nothing")
    with pytest.raises(ArchiveError, match="open_nothing', which cannot be imported"):
        open_archive(location, BANDS)
    installed(tmp_path / "site", "docs.extensions.zip_source:open_zip")
    for missing, reason in (("images.zip", "write the whole path"), ("/nowhere.zip", "is no ZIP file")):
        with pytest.raises(ArchiveError, match=reason):
            open_archive(f"zip://{missing}", BANDS)
    pipeline.classify(run)
    zipped = dataclasses.replace(run, images=location, out=str(tmp_path / "zipped"))
    assert not pipeline.classify(zipped).quarantined
    on_workers = dataclasses.replace(zipped, out=str(tmp_path / "on-workers"))
    with connect("local", workers=1) as client:
        assert not classify_on_dask(on_workers, client, no_progress).quarantined
    expected = rows_of(run).drop_columns(["run_id"])
    for other in (zipped, on_workers):
        assert rows_of(other).drop_columns(["run_id"]).equals(expected) and len(expected) == sky.n_sources


def test_a_damaged_entry_of_a_zip_file_is_a_fault_of_its_tile(sky, tmp_path):
    files, coadd_id = image_files(sky), sky.coadd_ids[0]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path, content in ({"README.fits": b"", "notes/other.fits": b""} | files).items():
            file.writestr(path, content)
        offset = file.getinfo(layout_path(coadd_id, "w2")).header_offset
    content = bytearray((tmp_path / "images.zip").read_bytes())
    content[offset] ^= 255
    (tmp_path / "images.zip").write_bytes(content)
    archive = AtlasArchive(open_zip(f"zip://{tmp_path / 'images.zip'}", BANDS), BANDS)
    assert len(archive.list_tiles(([sky.center[0]], [sky.center[1]]))) == len(sky.coadd_ids)
    with pytest.raises(TileFault, match="the entry is damaged: Bad magic number"):
        archive.tile(coadd_id, BANDS)


def test_a_checksum_file_in_a_zip_file_is_read(sky, tmp_path):
    files, coadd_id = image_files(sky), sky.coadd_ids[0]
    name = layout_path(coadd_id, "w2")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path, content in (files | {f"{name}.md5": b"0" * 32}).items():
            file.writestr(path, content)
    archive = AtlasArchive(open_zip(f"zip://{tmp_path / 'images.zip'}", BANDS), BANDS)
    assert len(archive.list_tiles()) == len(sky.coadd_ids)
    with pytest.raises(TileFault, match=f"{name}.md5 says 0000"):
        archive.tile(coadd_id, BANDS, verify=True)
