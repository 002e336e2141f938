"""Image sources: the one in memory, and a new kind of source, from one class and one entry in `SOURCES`."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from docs.extensions.zip_source import open_zip
from skyclass.errors import ArchiveError, TileFault
from skyclass.images.archive import SOURCES, AtlasArchive, open_archive
from skyclass.images.layout import layout_path
from skyclass.images.source import MemorySource
from skyclass.run import pipeline
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


@pytest.mark.integration
def test_a_new_kind_of_source_needs_a_class_and_one_entry(run, sky, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name, content in image_files(sky).items():
            file.writestr(name, content)
    location = f"zip://{tmp_path / 'images.zip'}"
    with pytest.raises(ArchiveError, match="give a folder, s3://"):
        open_archive(location, BANDS)
    monkeypatch.setitem(SOURCES, "zip", open_zip)
    archive = open_archive(location, BANDS)
    assert pickle.loads(pickle.dumps(archive)) == archive
    pipeline.classify(run)
    zipped = dataclasses.replace(run, images=location, out=str(tmp_path / "zipped"))
    assert not pipeline.classify(zipped).quarantined
    rows, expected = (rows_of(which).drop_columns(["run_id"]) for which in (zipped, run))
    assert len(rows) == sky.n_sources and rows.equals(expected)
