"""The record of the files of a tile, compared with the files that are there later."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from skyclass.errors import TileFault
from skyclass.images.archive import AtlasArchive, open_archive
from skyclass.images.layout import layout_path
from skyclass.images.records import compare_files, local_sets, record_files, replaced_fault
from skyclass.images.source import MemorySource
from skyclass.types import FileStamp, ImageFile, Tile
from tests.support.atlas_files import COADD_ID, atlas_bytes

W1 = layout_path(COADD_ID, "w1")


def tile_with(*stamps: FileStamp, header: str = "0") -> Tile:
    bands = ("w1", "w2")[: len(stamps)]
    files = tuple(ImageFile(f"{band}.fits", 2880, header, stamp) for band, stamp in zip(bands, stamps, strict=True))
    return Tile(COADD_ID, bands, (9, 9), (0.0, 0.0), (5.0, 5.0), (-0.0004, 0.0004), (20.5,) * len(bands), files)


def test_the_fault_between_two_strips_names_the_first_file_that_changed():
    old, new = FileStamp(5000, 1, 2), FileStamp(6000, 1, 2)
    fault = replaced_fault(tile_with(old, old), tile_with(old, new))
    assert (fault.coadd_id, fault.band, fault.kind) == (COADD_ID, "w2", "changed")
    assert "w2.fits changed during the run (size 5000 is now 6000)" in fault.reason
    fault = replaced_fault(tile_with(old, old), tile_with(old, old, header="1"))
    assert fault.band == "w1" and "(it has another header)" in fault.reason
    fault = replaced_fault(tile_with(old), tile_with(old, old))
    assert (fault.coadd_id, fault.band, fault.kind) == (COADD_ID, None, "changed")
    assert fault.reason == "it has other images than before"


def test_only_sets_of_files_without_a_tag_are_told_apart_by_pixels():
    local, tagged = FileStamp(5000, 1, 2), FileStamp(5000, tag="a")
    sets = tile_with(local, local), tile_with(local, tagged), tile_with(tagged, tagged), tile_with(), tile_with(local)
    whole = replace(sets[0], other_image_sets=sets[1:])
    assert list(local_sets(whole)) == [whole, sets[4]]


def in_memory(files: dict[str, bytes]) -> AtlasArchive:
    return AtlasArchive(MemorySource(files), ("w1",))


def test_tagged_files_are_compared_by_size_header_and_tag():
    content = atlas_bytes()
    other_pixels = content[:2880] + b"\x3f\x80\0\0" + content[2884:]
    archive = in_memory({W1: content})
    record = record_files(archive, archive.tile(COADD_ID, ("w1",)))
    assert list(record[W1]) == ["size_bytes", "mtime_ns", "inode", "tag", "data_offset", "header_sha256"]

    def compare(content: bytes):
        return compare_files(in_memory({W1: content}), ("w1",), COADD_ID, record)

    assert (compare(content).difference, compare(content).record) == ("", record)
    assert compare(content).coadd_id == COADD_ID
    changed = compare(other_pixels)
    assert changed.difference == f"{W1} (another ETag or place, and its pixels were not recorded) changed"
    assert changed.record[W1]["tag"] != record[W1]["tag"]
    for other in (content + bytes(2880), content.replace(b"20.5", b"21.5")):
        assert compare(other).difference == f"{W1} changed (another header or size)"
    absent = compare_files(in_memory({}), ("w1",), COADD_ID, record)
    assert "missing tile" in absent.difference and absent.record is record


def test_all_files_that_changed_are_named():
    contents = {band: atlas_bytes(band) for band in (1, 2, 3)}
    files = {layout_path(COADD_ID, f"w{band}"): content for band, content in contents.items()}
    archive = AtlasArchive(MemorySource(files), ("w1", "w2", "w3"))
    names, record = list(files), record_files(archive, archive.tile(COADD_ID, archive.bands))
    for name in names[1:]:
        files[name] = files[name][:2880] + b"\x3f\x80\0\0" + files[name][2884:]
    words = " (another ETag or place, and its pixels were not recorded)"
    difference = compare_files(archive, archive.bands, COADD_ID, record).difference
    assert difference == f"{names[1]}{words}, {names[2]}{words} changed"
    for name in names[1:]:
        files[name] += bytes(2880)
    difference = compare_files(archive, archive.bands, COADD_ID, record).difference
    assert difference == f"{names[1]}, {names[2]} changed (another header or size)"


@pytest.fixture
def local(tmp_path) -> AtlasArchive:
    (tmp_path / W1).parent.mkdir(parents=True)
    (tmp_path / W1).write_bytes(atlas_bytes())
    return open_archive(str(tmp_path), ("w1",))


def test_local_files_with_the_recorded_size_and_time_are_not_opened(local, tmp_path, monkeypatch):
    record = record_files(local, local.tile(COADD_ID, ("w1",)))
    monkeypatch.setattr(AtlasArchive, "tile", lambda *arguments: pytest.fail("a file is opened"))
    same = compare_files(local, ("w1",), COADD_ID, record)
    assert (same.coadd_id, same.difference) == (COADD_ID, "") and same.record is record


def set_later(path, seconds=1):
    """Give a file a time that differs from that of its last change, whatever the ticks of the clock."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + seconds * 10**9))


def test_a_local_file_with_another_time_is_compared_by_its_pixels(local, tmp_path, monkeypatch):
    record = record_files(local, local.tile(COADD_ID, ("w1",)))
    path = tmp_path / W1
    content = path.read_bytes()
    set_later(path)
    touched = compare_files(local, ("w1",), COADD_ID, record)
    assert touched.difference == "" and touched.record[W1]["mtime_ns"] == path.stat().st_mtime_ns
    assert touched.record[W1]["pixel_sha256"] == record[W1]["pixel_sha256"]
    path.write_bytes(content[:2880] + np.float32(1).astype(">f4").tobytes() + content[2884:])
    set_later(path, 2)
    assert compare_files(local, ("w1",), COADD_ID, record).difference == f"{W1} (other pixels) changed"
    path.write_bytes(content[:1000])
    damaged = compare_files(local, ("w1",), COADD_ID, record)
    assert "truncated" in damaged.difference and damaged.record is record


def test_a_fault_while_pixels_are_compared_is_the_difference(local, tmp_path, monkeypatch):
    record = record_files(local, local.tile(COADD_ID, ("w1",)))
    set_later(tmp_path / W1)

    def fault(*arguments):
        raise TileFault(COADD_ID, "cannot be read", "w1")

    monkeypatch.setattr(AtlasArchive, "pixel_sha256", fault)
    compared = compare_files(local, ("w1",), COADD_ID, record)
    assert compared.difference == f"tile {COADD_ID} w1: cannot be read" and compared.record is record
