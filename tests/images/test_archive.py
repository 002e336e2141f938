"""Atlas tiles: real cutouts, the archive layout, damage of every kind, and files that only look alike."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

import skyclass.images.local
from skyclass.errors import ArchiveError, ConfigError, TileFault
from skyclass.images.archive import AtlasArchive, open_archive
from skyclass.images.atlas import AtlasImage, RejectedFile
from skyclass.images.identity import FileRecord, stamp_change
from skyclass.images.layout import names_near, ra_folders_near
from skyclass.images.local import LocalSource
from skyclass.images.records import compare_files, is_untouched, record_files
from skyclass.images.source import MemorySource, Piece, describe
from skyclass.images.usable import require_usable_tile
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import Archive, FileStamp, Tile
from tests.support.atlas_files import (
    CDELT_DEG,
    COADD_ID,
    COLUMNS,
    ROWS,
    atlas_bytes,
    atlas_header,
    fault_of,
    pixels_of,
    write_image,
    write_layout,
)
from tests.support.paths import SHARED

DATA = SHARED / "data"


@pytest.mark.parametrize("prefix", ["", "p3am_cdd", "wise/allwise/images/p3am_cdd"])
def test_the_archive_layout_is_found_below_its_root(tmp_path: Path, prefix: str) -> None:
    write_layout(tmp_path / prefix)
    archive: Archive = open_archive(str(tmp_path), ["w1", "w2", "w3"])
    tile = archive.tile("0098p408_ac51", ("w1", "w3"))
    assert replace(tile, files=()) == Tile(
        "0098p408_ac51",
        ("w1", "w3"),
        (ROWS, COLUMNS),
        (9.890156, 40.89),
        (20.0, 18.0),
        (-CDELT_DEG, CDELT_DEG),
        (20.5, 18.0),
    )
    rows = archive.read_rows(tile, "w3", 5, 17)
    assert rows.dtype == np.dtype(np.float32) and rows.dtype.isnative and rows.flags.writeable
    np.testing.assert_array_equal(rows, pixels_of(3)[5:17])


def test_a_layout_archive_lists_nothing_and_pickles_small(tmp_path: Path) -> None:
    write_layout(tmp_path)
    archive = open_archive(str(tmp_path), ["w1"])
    assert archive.source == LocalSource(str(tmp_path)) and len(pickle.dumps(archive)) < 600
    write_layout(tmp_path, "0111m015_ac51")
    assert pickle.loads(pickle.dumps(archive)).tile("0111m015_ac51", ("w1",)).bands == ("w1",)


def test_a_tile_with_several_damaged_bands_names_each(tmp_path: Path) -> None:
    folder = write_layout(tmp_path, bands=(1, 2, 3))
    archive = open_archive(str(tmp_path), ["w1", "w2", "w3"])
    (folder / "0098p408_ac51-w2-int-3.fits").write_bytes(b"no FITS")
    (folder / "0098p408_ac51-w3-int-3.fits").unlink()
    fault = fault_of(lambda: archive.tile("0098p408_ac51", archive.bands))
    assert (fault.kind, fault.band) == ("bad", "w2")
    assert "w2-int-3.fits is refused" in fault.reason and "; w3: missing band" in fault.reason


def test_what_is_missing_says_so(tmp_path: Path) -> None:
    folder = write_layout(tmp_path, bands=(1, 2))
    archive = open_archive(str(tmp_path), ["w1", "w2", "w3"])
    fault = fault_of(lambda: archive.tile("0098p408_ac51", archive.bands))
    assert (fault.kind, fault.band) == ("missing_band", "w3") and "w1, w2" in fault.reason
    assert archive.bands_of("0098p408_ac51") == ("w1", "w2")
    for name in ("1503p590_ac51", "../../etc/passwd", "", "0098p408"):
        fault = fault_of(lambda name=name: archive.tile(name, ("w1",)))
        assert (fault.kind, fault.band) == ("missing_tile", None)
    copied = pickle.loads(pickle.dumps(fault))
    assert (copied.kind, copied.reason, str(copied)) == (fault.kind, fault.reason, str(fault))
    packed = folder / "0098p408_ac51-w3-int-3.fits.gz"
    packed.write_bytes(gzip.compress(b"SIMPLE"))
    assert "gunzip" in fault_of(lambda: archive.tile("0098p408_ac51", ("w3",))).reason
    packed.unlink()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels_of(3), atlas_header(band=3))]).writeto(
        packed.with_suffix(".fz")
    )
    assert "funpack" in fault_of(lambda: archive.tile("0098p408_ac51", ("w3",))).reason


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "empty file"),
    "html": (lambda b: b"\n<!DOCTYPE html><html>503</html>", "HTML"),
    "gzip": (gzip.compress, "gunzip"),
    "noise": (lambda b: b"x" * len(b), "not a FITS file"),
    "half": (lambda b: b[: len(b) // 2 // 4 * 4], "truncated"),
    "in header": (lambda b: b[:1000], "inside the FITS header"),
    "no end": (lambda b: b[:2880].replace(b"END", b"FIN") * 70, "inside the FITS header"),
    "bitpix": (lambda b: b.replace(b"                 -32 /", b"                 -64 /"), "BITPIX is -64"),
    "zeroed": (lambda b: b[:4000] + bytes(len(b) - 4000), "zeroed pixels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.fault(13, 14)
def test_damage_becomes_a_fault_with_its_reason(tmp_path: Path, kind: str, layout: bool) -> None:
    damage, words = DAMAGE[kind]
    folder = write_layout(tmp_path)
    path = folder / "0098p408_ac51-w2-int-3.fits"
    path.write_bytes(damage(path.read_bytes()))
    archive = open_archive(str(tmp_path if layout else folder), ["w1", "w2", "w3"])
    assert (archive.source.index is None) == layout

    def use() -> None:
        archive.read_rows(archive.tile("0098p408_ac51", archive.bands), "w2", 0, ROWS)

    fault = fault_of(use)
    assert (fault.kind, fault.band) == ("bad", "w2")
    assert words in fault.reason
    assert archive.tile("0098p408_ac51", ("w1", "w3")).bands == ("w1", "w3")
    assert [tile.coadd_id for tile in archive.list_tiles()] == ["0098p408_ac51"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}, "unWISE"),
        ({"CTYPE1": "RA---SIN-SIP", "CTYPE2": "DEC--SIN-SIP"}, "single exposure"),
        ({"CTYPE1": "DEC--SIN", "CTYPE2": "RA---SIN"}, "projection"),
        ({"FILETYPE": "1-sigma uncertainty image"}, "uncertainty"),
        ({"COADDID": None}, "COADDID is missing"),
        ({"BAND": 7}, "BAND is 7"),
        ({"BUNIT": "effective pixels"}, "BUNIT"),
        ({"MAGZP": None}, "MAGZP is missing"),
        ({"MAGZP": "twenty"}, "MAGZP is twenty, no finite number"),
        ({"MAGZP": "nan"}, "MAGZP is nan, no finite number"),
        ({"BAND": True}, "BAND is True"),
        ({"BAND": "W1"}, "BAND is W1"),
        ({"BAND": 1.5}, "BAND is 1.5"),
        ({"CD1_1": -CDELT_DEG, "CD2_2": 2 * CDELT_DEG}, "CD2_2 is 2.75 arcsec"),
        ({"CD1_1": -CDELT_DEG}, "CD2_2 is 0 arcsec"),
        ({"CD1_1": -CDELT_DEG, "CD1_2": 1e-9, "CD2_2": CDELT_DEG}, "rotated"),
        ({"CDELT1": None, "PC1_1": 1.0}, "CDELT1 is missing"),
        ({"PC2_1": "much"}, "rotated"),
        ({"PC001002": 0.1}, "rotated"),
        ({"CDELT1": -2.75 / 3600}, "CDELT1 is -2.75 arcsec"),
        ({"CDELT1": CDELT_DEG}, "CDELT1 is 1.375 arcsec"),
        ({"CDELT2": None}, "CDELT2 is missing"),
        ({"CROTA2": 30.0}, "rotated"),
        ({"PC1_2": 0.1}, "rotated"),
        ({"BSCALE": 2.0}, "BSCALE is 2.0"),
    ],
)
@pytest.mark.fault(15)
def test_other_products_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = tmp_path / "file.fits"
    header = fits.PrimaryHDU(pixels_of(1), atlas_header()).header
    header.update({k: v for k, v in changes.items() if v is not None})
    for name in [k for k, v in changes.items() if v is None]:
        del header[name]
    path.write_bytes(header.tostring().encode() + pixels_of(1).astype(">f4").tobytes() + bytes(2880))
    file = describe(LocalSource(str(tmp_path)), path.name)
    assert isinstance(file, RejectedFile) and words in file.reason
    with pytest.raises(ArchiveError, match="no usable Atlas image"):
        open_archive(str(tmp_path), ["w1"])


@pytest.mark.fault(15)
def test_a_file_of_another_tile_or_band_or_wcs_is_a_fault(tmp_path: Path) -> None:
    folder = write_layout(tmp_path)
    archive = open_archive(str(tmp_path), ["w1", "w2", "w3"])
    write_image(folder / "0098p408_ac51-w2-int-3.fits", atlas_header("0098p408_ac51", 3), pixels_of(3))
    assert "0098p408_ac51 w3" in fault_of(lambda: archive.tile("0098p408_ac51", ("w1", "w2"))).reason
    write_image(folder / "0098p408_ac51-w2-int-3.fits", atlas_header("0111p408_ac51", 2), pixels_of(3))
    assert "0111p408_ac51" in fault_of(lambda: archive.tile("0098p408_ac51", ("w1", "w2"))).reason
    write_image(folder / "0098p408_ac51-w2-int-3.fits", atlas_header(band=2, CRPIX1=21.0), pixels_of(3))
    reason = fault_of(lambda: archive.tile("0098p408_ac51", ("w1", "w2"))).reason
    w2, w1 = (str(folder / f"0098p408_ac51-{band}-int-3.fits") for band in ("w2", "w1"))
    assert reason == f"{w2} differs in WCS or shape from {w1}: take all bands from one source"


def replace_by(path: Path, data: bytes) -> None:
    """Rename a file with the same times over another one."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.with_suffix(".new").write_bytes(data)
    os.utime(path.with_suffix(".new"), ns=times)
    path.with_suffix(".new").rename(path)


def write_in_place(path: Path, data: bytes) -> None:
    """Overwrite a file, which keeps its inode, size and times."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with open(path, "r+b") as stream:
        stream.write(data)
    os.utime(path, ns=times)


def other_pixels(path: Path, data: bytes) -> None:
    path.write_bytes(data[:2880] + b"\x3f\x80\0\0" + data[2884:])


def link_elsewhere(path: Path, data: bytes) -> None:
    shutil.copy2(path, path.with_suffix(".moved"))
    path.unlink()
    path.symlink_to(path.with_suffix(".moved"))


REPLACEMENTS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "other pixels": (other_pixels, "time of change"),
    "another size": (lambda path, data: path.write_bytes(data + bytes(2880)), "size 11520 is now 14400"),
    "renamed over, with the same size and times": (replace_by, "inode"),
    "another zero point, with the same inode, size and times": (
        lambda path, data: write_in_place(path, data.replace(b"20.5", b"21.5")),
        "it has another header",
    ),
    "a link to a copy": (link_elsewhere, "inode"),
    "removed": (lambda path, data: path.unlink(), "it was removed"),
    "another image": (lambda path, data: write_image(path, atlas_header(), np.ones((8, 8), np.float32)), "size"),
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_file_that_changed_after_its_tile_was_opened_is_a_fault(tmp_path: Path, kind: str) -> None:
    change, words = REPLACEMENTS[kind]
    path = write_layout(tmp_path) / "0098p408_ac51-w1-int-3.fits"
    archive = open_archive(str(tmp_path), ["w1", "w2"])
    tile = archive.tile("0098p408_ac51", archive.bands)
    change(path, path.read_bytes())
    for use in (lambda: archive.read_rows(tile, "w1", 0, 9), lambda: archive.pixel_sha256(tile)):
        fault = fault_of(use)
        assert (fault.kind, fault.band) == ("changed", "w1")
        assert f"{path} changed during the run (" in fault.reason and words in fault.reason
    np.testing.assert_array_equal(archive.read_rows(tile, "w2", 0, 9), pixels_of(2)[:9])
    if kind == "removed":
        assert fault_of(lambda: archive.tile("0098p408_ac51", archive.bands)).kind == "missing_band"
    elif kind != "another image":
        again = archive.tile("0098p408_ac51", archive.bands)
        assert again != tile and len(archive.read_rows(again, "w1", 0, 9)) == 9, "the tile can be opened again"


def test_a_file_that_changes_while_it_is_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layout(tmp_path) / "0098p408_ac51-w1-int-3.fits"
    archive = open_archive(str(tmp_path), ["w1"])
    tile, fill = archive.tile("0098p408_ac51", ("w1",)), skyclass.images.local._fill

    def interrupted(stream: io.FileIO, buffer: memoryview) -> int:
        n_bytes = fill(stream, buffer)
        other_pixels(path, path.read_bytes())
        return n_bytes

    monkeypatch.setattr(skyclass.images.local, "_fill", interrupted)
    assert fault_of(lambda: archive.read_rows(tile, "w1", 0, 9)).kind == "changed"


def test_the_device_of_a_file_counts_in_one_process_only() -> None:
    here, there = FileStamp(1, 2, 3, device=4), FileStamp(1, 2, 3, device=5)
    assert stamp_change(here, there) == "device 4 is now 5"
    sent = pickle.loads(pickle.dumps(here))
    assert sent == here and stamp_change(sent, there) == ""


def test_a_record_tells_a_copied_file_from_a_changed_one(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "a")
    path = folder / "0098p408_ac51-w2-int-3.fits"
    write_layout(tmp_path / "a", "0111m015_ac51")

    def record_of(root: str) -> FileRecord:
        archive = open_archive(str(tmp_path / root), ["w1", "w2"])
        return json.loads(json.dumps(record_files(archive, archive.tile("0098p408_ac51", archive.bands))))

    def difference(root: str) -> str:
        archive = open_archive(str(tmp_path / root), ["w1", "w2"])
        return compare_files(archive, archive.bands, "0098p408_ac51", record).difference

    record = record_of("a")
    names = [f"00/0098/0098p408_ac51/0098p408_ac51-{band}-int-3.fits" for band in ("w1", "w2")]
    assert list(record) == names
    assert record[names[1]] == {
        "size_bytes": 11520, "mtime_ns": path.stat().st_mtime_ns, "inode": path.stat().st_ino, "tag": "",
        "data_offset": 2880, "header_sha256": hashlib.sha256(path.read_bytes()[:2880]).hexdigest(),
        "pixel_sha256": hashlib.sha256(pixels_of(2).astype(">f4").tobytes()).hexdigest(),
    }  # fmt: skip
    (tmp_path / "a").rename(tmp_path / "moved")
    assert record_of("moved") == record and difference("moved") == ""
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert record_of("copy") != record and difference("copy") == "", "another inode"
    copied = tmp_path / "copy" / names[1]
    other_pixels(copied, copied.read_bytes())
    assert difference("copy") == f"{names[1]} (other pixels) changed"
    write_image(copied, atlas_header(band=2, MAGZP=19.25), pixels_of(2))
    assert difference("copy") == f"{names[1]} changed (another header or size)"


def test_rows_that_are_not_on_the_tile_are_a_defect_of_the_caller(tmp_path: Path) -> None:
    write_layout(tmp_path)
    archive = open_archive(str(tmp_path), ["w1", "w2"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    for start, stop in ((-1, 3), (3, 3), (0, ROWS + 1)):
        with pytest.raises(ValueError, match="rows"):
            archive.read_rows(tile, "w1", start, stop)
    with pytest.raises(ValueError, match="has no file of w2, only of w1"):
        archive.read_rows(tile, "w2", 0, 3)


def test_nan_and_a_few_zeros_are_pixels_like_others(tmp_path: Path) -> None:
    pixels = pixels_of(1)
    pixels[3, 4:9], pixels[10, 5], pixels[11, 3] = np.nan, 0, -0.0
    write_image(tmp_path / "a" / "x.fits", atlas_header(), pixels)
    archive = open_archive(str(tmp_path), ["w1"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    np.testing.assert_array_equal(archive.read_rows(tile, "w1", 0, ROWS), pixels)


@pytest.mark.fault(14)
def test_a_file_is_held_against_the_checksum_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.fits"
    write_image(path, atlas_header(), pixels_of(1))
    archive, sidecar = open_archive(str(tmp_path), ["w1"]), path.with_name("x.fits.md5")

    def look() -> TileFault:
        return fault_of(lambda: archive.tile("0098p408_ac51", ("w1",), verify=True))

    assert archive.tile("0098p408_ac51", ("w1",), verify=True).bands == ("w1",), "without a checksum"
    right = hashlib.md5(path.read_bytes()).hexdigest()
    sidecar.write_text(f"{right}  x.fits\n")
    archive.tile("0098p408_ac51", ("w1",), verify=True)
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1  # one bit of one pixel
    path.write_bytes(data)
    assert archive.tile("0098p408_ac51", ("w1",)).bands == ("w1",), "headers alone show nothing"
    assert f"and {sidecar} says {right}: fetch it again" in look().reason and look().kind == "bad"
    sidecar.write_text("<html>")
    assert "holds no checksum" in look().reason


def reason_of_verification(archive: Archive) -> str:
    fault = fault_of(lambda: archive.tile("0098p408_ac51", ("w1",), verify=True))
    assert fault.kind == "bad"
    return fault.reason


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.fits", atlas_header(), pixels_of(1))
    os.mkfifo(tmp_path / "0098p408_ac51-w2-int-3.fits")
    archive, checksum = open_archive(str(tmp_path), ["w1", "w2"]), tmp_path / "x.fits.md5"
    fault = fault_of(lambda: archive.tile("0098p408_ac51", ("w2",)))
    assert (fault.kind, fault.band) == ("bad", "w2") and "a named pipe (FIFO), not a regular file" in fault.reason
    os.mkfifo(checksum)
    assert "x.fits.md5 cannot be read (it is a named pipe (FIFO)" in reason_of_verification(archive)
    for device, words in (("/dev/zero", "it is a device"), ("/proc/self/mem", "cannot be read")):
        checksum.unlink()
        checksum.symlink_to(device)
        assert words in reason_of_verification(archive)
    checksum.unlink()
    checksum.write_bytes(b"d41d8cd98f00b204e9800998ecf8427e" + b" " * 5000)
    assert "it has more than 4,096 bytes" in reason_of_verification(archive)
    checksum.unlink()
    tile = archive.tile("0098p408_ac51", ("w1",), verify=True)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in fault_of(lambda: archive.read_rows(tile, "w1", 0, 9)).reason


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "x.fits", atlas_header(), pixels_of(1))
    header = fits.PrimaryHDU(np.zeros((1, 1), np.float32), atlas_header(band=2)).header
    header["NAXIS1"] = header["NAXIS2"] = 30_000
    huge = tmp_path / "0098p408_ac51-w2-int-3.fits"
    huge.write_bytes(header.tostring().encode())
    os.truncate(huge, 3_700_000_000)
    archive = open_archive(str(tmp_path), ["w1", "w2"])
    assert "NAXIS1 is 30000; NAXIS2 is 30000" in fault_of(lambda: archive.tile("0098p408_ac51", ("w2",))).reason
    os.truncate(huge, 5_000_000_000)
    reason = fault_of(lambda: archive.tile("0098p408_ac51", ("w2",), verify=True)).reason
    assert "5,000,000,000 bytes, more than any Atlas image has" in reason


def test_rows_without_pixels_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.fits", atlas_header(), np.full_like(pixels_of(1), np.nan))
    archive = open_archive(str(tmp_path), ["w1"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    assert "0.0% of rows 0 to 4 are finite" in fault_of(lambda: archive.read_rows(tile, "w1", 0, 4)).reason


@pytest.mark.parametrize("rows", [(10, 11), (0, ROWS)])
@pytest.mark.fault(14)
def test_a_zeroed_row_is_refused_whatever_is_read_with_it(tmp_path: Path, rows: tuple[int, int]) -> None:
    pixels = pixels_of(1)
    pixels[10, :20] = 0
    write_image(tmp_path / "a" / "x.fits", atlas_header(), pixels)
    archive = open_archive(str(tmp_path), ["w1"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    fault = fault_of(lambda: archive.read_rows(tile, "w1", *rows))
    assert fault.reason.startswith("zeroed pixels: 54% of row 10")


@settings(max_examples=40, deadline=None)
@given(rows=st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROWS)).filter(lambda r: r[0] < r[1]))
def test_any_row_range_is_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[int, int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "row_ranges"
    if not folder.exists():
        write_image(folder / "t.fits", atlas_header(), pixels_of(1))
    archive = open_archive(str(folder), ["w1"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    np.testing.assert_array_equal(archive.read_rows(tile, "w1", *rows), pixels_of(1)[slice(*rows)])


@pytest.mark.integration
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 2879), junk=st.binary(min_size=1, max_size=90))
@pytest.mark.fault(15)
def test_a_header_with_any_bytes_changed_never_raises(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.fits"
    whole = atlas_bytes()
    path.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[: len(whole)])
    assert isinstance(describe(LocalSource(str(path.parent)), path.name), AtlasImage | RejectedFile)


def test_tiles_near_positions_are_listed_from_the_layout(tmp_path: Path) -> None:
    centres = {"0000p000_ac51": (0.001, 0.0), "3594p015_ac51": (359.45, 1.514), "1800p000_ac51": (180, 0.0),
               "0300m893_ac51": (30.0, -89.35), "2100m893_ac51": (210.0, -89.35)}  # fmt: skip
    for name, (ra, dec) in centres.items():
        folder = write_layout(tmp_path, name, bands=())
        header = atlas_header(name, 2, CRVAL1=ra, CRVAL2=dec)
        write_image(folder / f"{name}-w2-int-3.fits", header, pixels_of(2))
    archive = open_archive(str(tmp_path), ["w1", "w2"])
    assert [t.coadd_id for t in archive.list_tiles()] == sorted(centres)
    assert {t.bands for t in archive.list_tiles()} == {("w2",)}
    near = archive.list_tiles((np.array([359.9]), np.array([0.5])))
    assert [t.coadd_id for t in near] == ["0000p000_ac51", "3594p015_ac51"]
    pole = archive.list_tiles((np.array([0.0]), np.array([-90.0])))
    assert [t.coadd_id for t in pole] == ["0300m893_ac51", "2100m893_ac51"]
    assert archive.list_tiles((np.array([]), np.array([]))) == []


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_two_images_of_one_band_are_not_chosen_from_silently(tmp_path: Path, shift: float) -> None:
    for name, crpix in (("a", 20.0), ("b", 20.0 + shift)):
        write_image(tmp_path / f"{name}.fits", atlas_header(CRPIX1=crpix), pixels_of(1))
    archive = open_archive(str(tmp_path), ["w1"])
    reason = fault_of(lambda: archive.tile("0098p408_ac51", ("w1",))).reason
    assert "a.fits and " in reason and "b.fits" in reason and ("pixel grid" if shift else "same footprint") in reason
    assert len(archive.list_tiles()) == (2 if shift else 1)


SAME_IMAGE: dict[str, dict[str, object]] = {
    "identity PC": {"PC1_1": 1.0, "PC1_2": 0.0, "PC2_1": 0.0, "PC2_2": 1.0},
    "identity PC in the old notation": {"PC001001": 1.0, "PC002002": 1.0},
    "diagonal CD": {"CDELT1": None, "CDELT2": None, "CROTA2": None, "CD1_1": -CDELT_DEG, "CD2_2": CDELT_DEG},
    "CD beside CDELT": {"CDELT1": 1.0, "CDELT2": 1.0, "CD1_1": -CDELT_DEG, "CD1_2": 0.0, "CD2_2": CDELT_DEG},
    "PC with the scale": {"CDELT1": 1.0, "CDELT2": 1.0, "PC1_1": -CDELT_DEG, "PC2_2": CDELT_DEG},
    "BAND as a float": {"BAND": 1.0},
    "BAND as text": {"BAND": "1"},
    "MAGZP as text": {"MAGZP": "20.5"},
    "CRVAL as text": {"CRVAL1": " 9.890156 "},
}


@pytest.mark.parametrize("kind", SAME_IMAGE)
def test_other_spellings_of_the_same_header_give_the_same_tile(tmp_path: Path, kind: str) -> None:
    write_image(tmp_path / "served" / "x.fits", atlas_header(), pixels_of(1))
    write_image(tmp_path / "other" / "x.fits", atlas_header(**SAME_IMAGE[kind]), pixels_of(1))
    served, other = (open_archive(str(tmp_path / name), ["w1"]) for name in ("served", "other"))
    tile = other.tile("0098p408_ac51", ("w1",))
    assert repr(tile) == repr(served.tile("0098p408_ac51", ("w1",)))
    np.testing.assert_array_equal(other.read_rows(tile, "w1", 3, 9), pixels_of(1)[3:9])


@pytest.mark.parametrize("in_primary", [(), ("FILETYPE", "COADDID", "BAND", "MAGZP", "BUNIT")])
def test_an_image_in_the_first_extension_is_read(tmp_path: Path, in_primary: tuple[str, ...]) -> None:
    header = atlas_header()
    primary = fits.Header({name: header.pop(name) for name in in_primary})
    image = fits.ImageHDU(pixels_of(1), header, name="SCI")
    fits.HDUList([fits.PrimaryHDU(header=primary), image, fits.ImageHDU(np.zeros(9))]).writeto(tmp_path / "x.fits")
    archive = open_archive(str(tmp_path), ["w1"])
    tile = archive.tile("0098p408_ac51", ("w1",))
    assert tile.zero_point_mag == (20.5,) and tile.shape == (ROWS, COLUMNS) and tile.files[0].data_offset == 5760
    np.testing.assert_array_equal(archive.read_rows(tile, "w1", 0, ROWS), pixels_of(1))


def empty_primary(*extensions: object) -> fits.HDUList:
    return fits.HDUList([fits.PrimaryHDU(), *extensions])


UNREADABLE_EXTENSIONS: dict[str, tuple[Callable[[], fits.HDUList], str]] = {
    "rice": (
        lambda: empty_primary(fits.CompImageHDU(pixels_of(1), atlas_header(), compression_type="RICE_1")),
        "the image is in extension 1, compressed (RICE_1), which skyclass does not read: unpack it with funpack",
    ),
    "gzip tiles": (
        lambda: empty_primary(fits.CompImageHDU(pixels_of(1), atlas_header(), compression_type="GZIP_2")),
        "compressed (GZIP_2)",
    ),
    "second extension": (
        lambda: empty_primary(fits.ImageHDU(), fits.ImageHDU(pixels_of(1), atlas_header())),
        "the primary HDU has no pixels, and extension 1 is empty too: copy the image to the primary HDU",
    ),
    "table first": (
        lambda: empty_primary(fits.BinTableHDU.from_columns([fits.Column("a", "D", array=[1.0])])),
        "extension 1 is a BINTABLE: copy the image to the primary HDU",
    ),
    "no extension": (empty_primary, "the primary HDU has no pixels, and no extension follows"),
    "another image in the extension": (
        lambda: empty_primary(fits.ImageHDU(pixels_of(1), atlas_header(MAGZP=None))),
        "in extension 1, MAGZP is missing",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE_EXTENSIONS)
def test_an_extension_that_cannot_be_read_is_refused_with_the_remedy(tmp_path: Path, kind: str) -> None:
    make, words = UNREADABLE_EXTENSIONS[kind]
    make().writeto(tmp_path / "w1.fits.fz")
    with pytest.raises(ArchiveError) as caught:
        open_archive(str(tmp_path), ["w1"])
    assert f"w1.fits.fz: {words}" in str(caught.value) or words in str(caught.value)


def test_a_compressed_image_beside_good_ones_is_flagged_with_its_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "w1.fits", atlas_header(), pixels_of(1))
    packed = fits.CompImageHDU(pixels_of(2), atlas_header(band=2))
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "w2.fits.fz")
    fault = fault_of(lambda: open_archive(str(tmp_path), ["w1", "w2"]).tile("0098p408_ac51", ("w1", "w2")))
    assert (fault.kind, fault.band) == ("bad", "w2") and "unpack it with funpack" in fault.reason


PACKERS = {"gunzip": gzip.compress, "bunzip2": bz2.compress, "unxz": lzma.compress}


@pytest.mark.parametrize("program", PACKERS)
def test_a_packed_file_is_told_how_to_be_unpacked(tmp_path: Path, program: str) -> None:
    (tmp_path / "x.fits.packed.fit").write_bytes(PACKERS[program](atlas_bytes()))
    with pytest.raises(ArchiveError, match=f"unpack it with {program}"):
        open_archive(str(tmp_path), ["w1"])


def test_locations_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such folder"):
        open_archive(str(tmp_path / "nowhere"), ["w1"])
    with pytest.raises(ArchiveError, match="holds no FITS file"):
        open_archive(str(tmp_path), ["w1"])
    with pytest.raises(ArchiveError, match="tiles elsewhere must be copied first"):
        open_archive("gs://bucket/p3am_cdd", ["w1"])
    with pytest.raises(ConfigError, match="bands are"):
        open_archive(str(tmp_path), ["w5"])
    file = write_image(tmp_path / "one.fits", atlas_header(), pixels_of(1))
    with pytest.raises(ArchiveError, match="this is a file"):
        open_archive(str(file), ["w1"])
    with pytest.raises(ArchiveError, match="no image of w2, w3"):
        open_archive(str(tmp_path), ["w1", "w2", "w3"])


def test_real_cutouts() -> None:
    folder = DATA / "atlas_cutouts"
    if not folder.exists():
        pytest.skip("the shared Atlas cutouts are not here")
    archive = open_archive(str(folder), ["w1", "w2", "w3"])
    assert [(t.coadd_id, t.bands, t.shape) for t in archive.list_tiles()] == [
        ("1210p015_ac51", ("w1", "w2", "w3"), (261, 261)),
        ("1954p287_ac51", ("w1", "w2", "w3"), archive.tile("1954p287_ac51", ("w1",)).shape),
        ("2279p454_ac51", ("w1",), (350, 350)),
    ]
    assert fault_of(lambda: archive.tile("2279p454_ac51", archive.bands)).kind == "missing_band"
    tile = archive.tile("1210p015_ac51", archive.bands)
    assert tile.zero_point_mag == (20.5, 19.5, 18.0)
    x, y = tile_pixels(tile, 121.6004, 1.0361)
    for band in archive.bands:
        whole = fits.getdata(folder / f"2010H-{band}.fits").astype(np.float32)
        np.testing.assert_array_equal(archive.read_rows(tile, band, 100, 200), whole[100:200])
        host = whole[int(y[0]) - 4 : int(y[0]) + 4, int(x[0]) - 4 : int(x[0]) + 4]
        assert host.max() > np.median(whole) + 3 * whole.std() / 10


def test_real_lookalikes_are_refused_with_their_reasons(tmp_path: Path) -> None:
    folder = DATA / "lookalikes"
    if not folder.exists():
        pytest.skip("the shared look-alikes are not here")
    with pytest.raises(ArchiveError) as caught:
        open_archive(str(folder), ["w1"])
    message = str(caught.value)
    assert message.count("unWISE") == 3 and message.count("SIP distortion") == 1 and "<coadd_id>-w" in message
    shutil.copytree(folder, tmp_path / "mixed")
    write_layout(tmp_path / "mixed" / "x")
    archive = open_archive(str(tmp_path / "mixed"), ["w1"])
    assert len(archive.source.rejected) == 4


def test_all_bands_may_be_asked_for_and_each_once(sky):
    assert open_archive(str(sky.images), ("w1", "w2", "w3", "w4")).bands == ("w1", "w2", "w3", "w4")
    for bands in ((), ("w1", "w1"), ("w5",), ("w1", "x")):
        with pytest.raises(ConfigError, match="give one or more of w1, w2, w3, w4, each once"):
            open_archive(str(sky.images), bands)


def test_a_file_that_ends_one_byte_early_is_a_fault(sky):
    root = Path(sky.images)
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.fits"))}
    coadd_id = sky.coadd_ids[0]
    archive = AtlasArchive(MemorySource(files), ("w1",))
    tile = archive.tile(coadd_id, ("w1",))
    (file,) = tile.files

    class Short(MemorySource):
        """Gives one byte less than asked at the end of the pixels, under the stamp of the whole file."""

        def read(self, name: str, start: int, stop: int):
            for data, stamp in super().read(name, start, stop):
                yield Piece(data[:-1] if stop > file.data_offset else data, stamp)

    with pytest.raises(TileFault, match="the file ended early"):
        AtlasArchive(Short(files), ("w1",)).pixel_sha256(tile)


@pytest.mark.parametrize(
    ("location", "hint"),
    [("s3://bucket/prefix", True), ("https://host/path", True), ("file:///data", False), ("/data", False)],
)
def test_a_location_without_tiles_is_named_with_a_hint_where_it_is_remote(location, hint):
    class Nothing:
        def tile(self, coadd_id, bands):
            raise TileFault(coadd_id, "missing tile", None, "missing_tile")

    with pytest.raises(ArchiveError, match="of 2 tiles looked at, none is usable: .*missing tile") as caught:
        require_usable_tile(Nothing(), location, ["a", "b"], ("w1",))
    assert ("holds the folders 00 to 35" in str(caught.value)) == hint


def test_a_record_is_of_the_present_files_only_while_size_and_time_are_the_same(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"12345")
    status = (tmp_path / "a.fits").stat()
    record = {"a.fits": {"size_bytes": 5, "mtime_ns": status.st_mtime_ns}}
    assert is_untouched(str(tmp_path), record)
    assert not is_untouched(str(tmp_path), {"a.fits": {"size_bytes": 6, "mtime_ns": status.st_mtime_ns}})
    assert not is_untouched(str(tmp_path), {"a.fits": {"size_bytes": 5, "mtime_ns": status.st_mtime_ns + 1}})
    (tmp_path / "a.fits").unlink()
    assert not is_untouched(str(tmp_path), record)


def test_tiles_near_positions_are_judged_by_the_centre_in_their_name():
    """A tile reaches 1.11 degrees from its centre, its name is wrong by up to 0.15, a pixel of order 6 is 0.9 wide."""
    names = ["1500p015_ac51", "1523p015_ac51", "1500m015_ac51"]
    on_tile, between, far = (150.05 + 0.7, 1.55), (150.05 + 1.15, 1.5), (154.5, 1.5)
    assert names_near(names, ([on_tile[0]], [on_tile[1]])) == names[:2]
    assert set(names_near(names, ([between[0]], [between[1]]))) == set(names[:2])
    assert names_near(names, ([far[0]], [far[1]])) == [] == names_near(names, ([], []))
    assert names_near(names, ([150.05, 150.05], [1.5, -1.5])) == [names[0], names[2]]
    assert {"1500", "1523"} <= ra_folders_near(([between[0]], [between[1]]))
    assert "1600" not in ra_folders_near(([between[0]], [between[1]]))
    assert len(ra_folders_near(([10.0], [89.9]))) == 3600, "near a pole, every right ascension is near"


def test_a_tile_is_near_every_position_that_it_can_hold():
    rng = np.random.default_rng(5)
    for name, ra, dec in (("1500p015_ac51", 150.0, 1.5), ("0005m850_ac51", 0.5, -85.0), ("3595p000_ac51", 359.5, 0.0)):
        centre_ra, centre_dec = ra + rng.uniform(0, 0.1, 200), dec + np.sign(dec) * rng.uniform(0, 0.1, 200)
        tile = SkyCoord(centre_ra, centre_dec, unit="deg")
        there = tile.directional_offset_by(rng.uniform(0, 360, 200) * u.deg, 1.10 * u.deg)
        for position in there:
            near = ([position.ra.deg], [position.dec.deg])
            assert names_near([name], near) == [name] and name[:4] in ra_folders_near(near)


def test_a_range_is_read_in_pieces_without_loss(tmp_path, monkeypatch):
    content = np.random.default_rng(3).bytes(1000)
    (tmp_path / "a.fits").write_bytes(content)
    monkeypatch.setattr(skyclass.images.local, "PIECE_BYTES", 64)
    source = LocalSource(str(tmp_path))
    for start, stop in ((0, 64), (0, 128), (8, 900), (8, 1000), (0, 1000), (992, 1000), (960, 1200)):
        pieces = [(bytes(data), stamp.size_bytes) for data, stamp in source.read("a.fits", start, stop)]
        assert b"".join(data for data, _ in pieces) == content[start:stop]
        assert {size for _, size in pieces} == {1000} and all(len(data) <= 64 for data, _ in pieces)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (bytes(range(1, 256)) * 400, "not a FITS file"),
        (b"<html>404</html>", "an HTML or XML page, not FITS (an error page saved under this name?)"),
    ],
    ids=["empty", "bytes", "page"],
)
def test_an_unreadable_file_of_a_flat_folder_is_named_where_its_band_is_missing(tmp_path, content, reason):
    for band in (1, 3):
        (tmp_path / f"2010H-w{band}.fits").write_bytes(atlas_bytes(band))
        (tmp_path / f"other-w{band}.fits").write_bytes(atlas_bytes(band, COADDID="0111m015_ac51"))
    (tmp_path / "second-w2.fits").write_bytes(content)
    (tmp_path / "other-w2.fits").write_bytes(atlas_bytes(2, COADDID="0111m015_ac51"))
    archive = open_archive(str(tmp_path), ("w1", "w2", "w3"))
    refused = f"; refused there: second-w2.fits ({reason})"
    fault = fault_of(archive.tile, COADD_ID, ("w1", "w2", "w3"))
    assert fault.reason == f"no usable image under {tmp_path}, which has w1, w3 of this tile: fetch it{refused}"
    assert fault_of(archive.tile, "0202p015_ac51", ("w1", "w2")).reason.endswith(f"fetch it{refused}")
    for band in (1, 2):
        (tmp_path / f"far-w{band}.fits").write_bytes(atlas_bytes(band, CRPIX1=900.0))
    fault = fault_of(open_archive(str(tmp_path), ("w1", "w2")).tile, COADD_ID, ("w1", "w2"))
    lacks = f"{tmp_path}/2010H-w1.fits has no image of w2 with the same footprint: fetch it, or remove this one"
    assert fault.reason == lacks + refused


@pytest.mark.parametrize(
    ("good", "refused"),
    [
        ("2010H-w{}.fits", "2010H-w2.fits"),
        ("2010H-w{}.fits", "2010H-W2.fits.gz"),
        ("w{}/2010H.fits", "w2/2010H.fits"),
        ("2010H_w{}/w{}.fit", "2010H_w2/w2.fit"),
    ],
)
def test_a_refused_file_named_like_the_other_bands_is_the_damaged_image(tmp_path, good, refused):
    for band in (1, 3):
        write_file(tmp_path / good.format(band, band), atlas_bytes(band))
    write_file(tmp_path / refused, atlas_bytes(2).replace(b"BUNIT   = 'DN      '", b"BUNIT   = 'DN       "))
    archive = open_archive(str(tmp_path), ("w1", "w2", "w3"))
    fault = fault_of(archive.tile, COADD_ID, ("w1", "w2", "w3"))
    assert (fault.kind, fault.band) == ("bad", "w2")
    damage = "damaged FITS header (card BUNIT cannot be read): fetch the file again"
    assert fault.reason == f"{tmp_path}/{refused} is refused: {damage}"
    assert archive.tile(COADD_ID, ("w1", "w3")).bands == ("w1", "w3")


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("others", "refused"),
    [
        ({"a.fits": {}, "b.fits": {"band": 3}}, "w2.fits"),
        ({"a-w1.fits": {}, "a-w3.fits": {"band": 3}}, "b-w2.fits"),
        ({"a-w1.fits": {}, "a-w3.fits": {"band": 3}}, "a-w2-psf.fits"),
        ({"a-w1.fits": {}, "a-w3.fits": {"band": 3}}, "a-w2-w3.fits"),
        ({"a-w3.fits": {}, "a-w1.fits": {"band": 3}}, "a-w2.fits"),
        ({"a-w1.fits": {}, "a-w3.fits": {"band": 3, "COADDID": "0111m015_ac51"}}, "a-w2.fits"),
        ({"a-w1.fits": {}, "a-w3.fits": {"band": 3, "CRPIX1": 900.0}}, "a-w2.fits"),
    ],
    ids=["no bands", "other name", "not an image", "two bands", "bands exchanged", "two tiles", "two footprints"],
)
def test_a_refused_file_of_any_other_name_may_be_anything(tmp_path, others, refused):
    for name, changes in others.items():
        (tmp_path / name).write_bytes(atlas_bytes(**changes))
    (tmp_path / "other-w2.fits").write_bytes(atlas_bytes(2, COADDID="0222m015_ac51"))
    (tmp_path / refused).write_bytes(b"")
    fault = fault_of(open_archive(str(tmp_path), ("w1", "w2")).tile, COADD_ID, ("w1", "w2"))
    assert (fault.kind, fault.band) == ("missing_band", "w2") and f"{refused} (empty file)" in fault.reason


def test_a_damaged_image_is_not_needed_where_another_covers_it(tmp_path):
    bands = ("w1", "w2", "w3")
    for band in (1, 3):
        (tmp_path / f"a-w{band}.fits").write_bytes(atlas_bytes(band))
    (tmp_path / "a-w2.fits").write_bytes(b"")
    (tmp_path / "copy.fits").write_bytes(atlas_bytes(2))
    assert open_archive(str(tmp_path), bands).tile(COADD_ID, bands).files[1].name == "copy.fits"
    (tmp_path / "copy.fits").unlink()
    for band in (1, 2, 3):
        header = atlas_header(band=band, CRPIX1=120.0, CRPIX2=118.0)
        write_image(tmp_path / f"larger-{band}.fits", header, np.ones((400, 400), np.float32))
    assert open_archive(str(tmp_path), bands).tile(COADD_ID, bands).shape == (400, 400)
