"""Image files on a disk: which files a folder has, what of them is read, and what is said of the rest."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

import skyclass.images.local
from skyclass.errors import ArchiveError
from skyclass.images.layout import layout_path
from skyclass.images.local import LocalSource, layout_names, open_local
from skyclass.images.source import SourceChanged
from tests.support.atlas_files import COADD_ID, atlas_bytes, write_layout


def write(folder: Path, **contents: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def test_a_folder_is_indexed_by_the_headers_of_its_fits_files(tmp_path):
    write(tmp_path / "b", x__fits=atlas_bytes(2), y__FTS=atlas_bytes(1))
    write(tmp_path / "a", z__fit=atlas_bytes(1), notes__txt=atlas_bytes(3), unnamed__fits=b"no FITS")
    write(tmp_path, other__fits=atlas_bytes(1, COADDID="0111m015_ac51"))
    source = open_local(str(tmp_path), ("w1", "w2"))
    assert source.location == str(tmp_path)
    assert [file.path for file in source.rejected] == [str(tmp_path / "a" / "unnamed.fits")]
    assert source.index == (
        (COADD_ID, "w1", "a/z.fit"), (COADD_ID, "w1", "b/y.FTS"), (COADD_ID, "w2", "b/x.fits"),
        ("0111m015_ac51", "w1", "other.fits"),
    )  # fmt: skip
    assert source.names(COADD_ID, "w1") == ["a/z.fit", "b/y.FTS"] and source.names(COADD_ID, "w2") == ["b/x.fits"]
    assert source.names("0111m015_ac51", "w1") == ["other.fits"]
    assert source.names("0111m015_ac51", "w2") == source.names(COADD_ID, "w") == source.names("0", "w1") == []
    assert source.footprints(("w2", "w3"), None) == [["b/x.fits"]]
    assert [name for (name,) in source.footprints(("w1",), ([0.0], [0.0]))] == ["a/z.fit", "b/y.FTS", "other.fits"]


def test_a_damaged_file_that_names_its_tile_stays_unless_it_was_unpacked(tmp_path):
    """Of the four damaged files, two lie packed beside their good unpacked copies, and the others name their tile."""
    write(tmp_path, plain__fits=atlas_bytes(1), plain__fits__gz=b"\x1f\x8b")
    (tmp_path / f"{COADD_ID}-w1-int-3.fits").write_bytes(atlas_bytes(1))
    (tmp_path / f"{COADD_ID}-w1-int-3.fits.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / f"{COADD_ID}-w2-int-3.fits.bz2").write_bytes(b"BZh")
    (tmp_path / f"{COADD_ID}-w3-int-3.fits").write_bytes(b"")
    source = open_local(str(tmp_path), ("w1", "w2", "w3"))
    assert [(band, name[-8:]) for _, band, name in source.index or ()] == [
        ("w1", "t-3.fits"), ("w1", "ain.fits"), ("w2", "fits.bz2"), ("w3", "t-3.fits"),
    ]  # fmt: skip
    assert [file.path[-8:] for file in source.rejected] == ["fits.bz2", "t-3.fits"]
    assert list(source.refused(COADD_ID, ("w2", "w3"))) == [], "these are known images of the tile"


def test_files_that_name_another_band_or_tile_are_not_those_of_a_missing_band(tmp_path):
    """A band is a word of the path, as in "x-w2" and "W3/x", not a part of a word."""
    write(tmp_path, x__fits=atlas_bytes(1), new2__fits=b"", other_W3__fits=b"", w2_x__fits=b"<html>")
    write(tmp_path / "W3", y__fits=b"")
    write(tmp_path / "w2", **{f"{COADD_ID}__fits": b"", "0111m015_ac51__fits": b"", "z__fits": b"text"})
    source = open_local(str(tmp_path), ("w1",))
    assert len(source.rejected) == 7

    def refused(coadd_id: str, *bands: str) -> list[str]:
        return [Path(file.path).relative_to(tmp_path).as_posix() for file in source.refused(coadd_id, bands)]

    assert refused(COADD_ID, "w2") == [f"w2/{COADD_ID}.fits", "w2/z.fits", "w2_x.fits", "new2.fits"]
    assert refused("0111m015_ac51", "w3") == ["W3/y.fits", "other_W3.fits", "new2.fits"]
    assert refused(COADD_ID, "w3", "w4") == ["W3/y.fits", "other_W3.fits", "new2.fits"]


def refusal(folder: Path, *bands: str) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        open_local(str(folder), bands)
    return caught.value


def test_the_first_five_refused_files_are_listed_and_the_others_counted(tmp_path):
    for n in range(1, 8):
        (tmp_path / f"{n}.fits").write_bytes(b"")
        error = refusal(tmp_path, "w1")
        assert error.message == f"images at {tmp_path}: no usable Atlas image. Refused:"
        assert error.details[:5] == tuple(f"{i}.fits: empty file: fetch it again" for i in range(1, min(n, 5) + 1))
        assert error.details[5:] == ((f"and {n - 5} more",) if n > 5 else ())


def test_a_folder_without_one_of_the_bands_says_which_it_has(tmp_path):
    write(tmp_path, a__fits=atlas_bytes(2), b__fits=atlas_bytes(1))
    error = refusal(tmp_path, "w4", "w1", "w3")
    assert error.message == (
        f"images at {tmp_path}: no image of w3, w4 in the whole folder, only of w1, w2; add them or use a model of "
        "other bands."
    )
    assert error.details == ()
    write(tmp_path, c__fits=b"")
    error = refusal(tmp_path, "w3")
    assert error.message.endswith("other bands. Refused:") and error.details == ("c.fits: empty file: fetch it again",)


@pytest.mark.parametrize("suffix", [".gz", ".fz", ".bz2"])
def test_in_the_layout_a_packed_image_is_named_only_where_there_is_no_other(tmp_path, suffix):
    write_layout(tmp_path, bands=(1,))
    source, name = open_local(str(tmp_path), ("w1", "w2")), layout_path(COADD_ID, "w2")
    assert (source.location, source.index, source.rejected) == (str(tmp_path), None, ())
    assert source.names(COADD_ID, "w2") == []
    (tmp_path / f"{name}{suffix}").write_bytes(b"packed")
    assert source.names(COADD_ID, "w2") == [f"{name}{suffix}"]
    (tmp_path / name).write_bytes(b"unpacked")
    assert source.names(COADD_ID, "w2") == [name] and source.names(COADD_ID, "w5") == source.names("", "w1") == []


def test_the_layout_lists_folders_named_like_tiles_in_order(tmp_path):
    names = ["0098p408_ac51", "0098m408_ac51", "0111m015_ac51", "1497p015_ab41"]
    for path in ("00/0098/0099p408_ac51", "00/0198/0198p000_ac51", "0/0098/0098p408_ac51", "00/0098/0098p408_ac51-old"):
        (tmp_path / path).mkdir(parents=True)
    for name in names:
        (tmp_path / name[:2] / name[:4] / name).mkdir(parents=True)
    (tmp_path / "00/0098/0098p409_ac51").write_bytes(b"a file")
    assert list(layout_names(tmp_path)) == ["0098m408_ac51", "0098p408_ac51", "0111m015_ac51", "1497p015_ab41"]
    assert list(layout_names(tmp_path / "nowhere")) == []
    source = LocalSource(str(tmp_path))
    assert len(list(source.footprints(("w1",), None))) == 4
    (near,) = source.footprints(("w2",), ([9.85], [-40.8]))
    assert near[0] == layout_path("0098m408_ac51", "w2")


def test_pieces_have_the_stamp_of_the_open_file(tmp_path):
    (tmp_path / "a.fits").write_bytes(bytes(range(100)))
    status = (tmp_path / "a.fits").stat()
    ((data, stamp),) = LocalSource(str(tmp_path)).read("a.fits", 90, 200)
    assert bytes(data) == bytes(range(90, 100))
    assert (stamp.size_bytes, stamp.mtime_ns, stamp.inode) == (100, status.st_mtime_ns, status.st_ino)
    assert (stamp.device, stamp.tag) == (status.st_dev, "")
    with pytest.raises(FileNotFoundError):
        next(LocalSource(str(tmp_path)).read("b.fits", 0, 9))


def test_a_file_that_a_network_file_system_gives_in_parts_is_read_whole(tmp_path, monkeypatch):
    (tmp_path / "a.fits").write_bytes(bytes(range(100)))

    class Halting(io.FileIO):
        """Returns at most seven bytes."""

        def readinto(self, buffer) -> int:
            return super().readinto(buffer[:7])

    monkeypatch.setattr(skyclass.images.local, "open_regular", Halting)
    monkeypatch.setattr(skyclass.images.local, "PIECE_BYTES", 20)
    pieces = [bytes(data) for data, _ in LocalSource(str(tmp_path)).read("a.fits", 10, 130)]
    assert b"".join(pieces) == bytes(range(10, 100)) and [len(piece) for piece in pieces] == [20, 20, 20, 20, 10]


@pytest.mark.parametrize(("number", "is_replaced"), [(errno.ESTALE, True), (errno.EIO, False)])
def test_a_stale_file_of_a_network_file_system_was_replaced(tmp_path, monkeypatch, number, is_replaced):
    def fail(path):
        raise OSError(number, "cannot")

    monkeypatch.setattr(skyclass.images.local, "open_regular", fail)
    with pytest.raises(OSError) as caught:
        next(LocalSource(str(tmp_path)).read("a.fits", 0, 9))
    assert isinstance(caught.value, SourceChanged) == is_replaced
    assert is_replaced or caught.value.errno == errno.EIO


def test_a_hidden_link_that_leads_nowhere_is_ignored(tmp_path):
    write(tmp_path, a__fits=atlas_bytes(1))
    os.symlink("gone", tmp_path / ".nfs")
    os.symlink("a.fits", tmp_path / "notes")
    assert len(open_local(str(tmp_path), ("w1",)).index or ()) == 1
    os.symlink("gone", tmp_path / "b.dat")
    assert refusal(tmp_path, "w1").message == (
        f"images at {tmp_path}: the symbolic link {tmp_path / 'b.dat'} leads nowhere; repair or remove it"
    )


@pytest.mark.parametrize("function", ["walk", "iterdir"])
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch, function):
    def denied(path, **options):
        error = PermissionError(errno.EACCES, "Permission denied", str(path))
        if function == "iterdir":
            raise error
        options["onerror"](error)

    monkeypatch.setattr(os if function == "walk" else Path, function, denied)
    assert refusal(tmp_path, "w1").message == (
        f"images: {tmp_path} cannot be read (Permission denied); check its permissions, or remove it"
    )


def test_a_file_in_place_of_a_folder_and_no_folder_are_told_apart(tmp_path):
    (tmp_path / "x.fits").write_bytes(atlas_bytes())
    assert "x.fits: this is a file, give the folder that holds it" in refusal(tmp_path / "x.fits", "w1").message
    assert "nowhere: there is no such folder" in refusal(tmp_path / "nowhere", "w1").message
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty", "w1").message.endswith("no usable Atlas image. It holds no FITS file.")
