"""Positions off all tiles: the error names the first position, what the folder has, and the likely mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from skyclass.errors import ArchiveError
from skyclass.images.archive import AtlasArchive, open_archive
from skyclass.images.export import write_cutouts
from skyclass.images.source import MemorySource
from skyclass.images.usable import (
    require_position_on_tile,
    require_usable_tile,
    warn_of_misnamed_tiles,
    warn_of_refused_files,
)
from skyclass.run.prepare import count_here, plan_run
from skyclass.sources.tables import standardise_table
from tests.support.atlas_files import atlas_bytes, atlas_header, pixels_of, write_image, write_layout

BANDS = ("w1", "w2", "w3")
CENTRE = "with its centre at ra 9.8907, dec 40.8910"  # pixel (19, 20.5), where (20, 18) is ra 9.890156, dec 40.89
ELSEWHERE = ", or give the images of this part of the sky"


def refusal(archive: AtlasArchive, folder: Path, text: str) -> str:
    path = folder / "table.csv"
    path.write_text(text)
    with pytest.raises(ArchiveError) as caught:
        require_position_on_tile(archive, "/images", [], lambda: standardise_table(str(path)))
    return str(caught.value)


@pytest.fixture
def archive(tmp_path: Path) -> AtlasArchive:
    write_layout(tmp_path / "layout")
    return open_archive(str(tmp_path / "layout"), BANDS)


@pytest.mark.parametrize(
    ("positions", "first", "remedy"),
    [
        ("121.6004,1.0361\n8.1,1\n", "ra 121.6004, dec 1.0361", "correct the positions"),
        ("8.1067,-1.0361\n23.999,1\n", "ra 8.1067, dec -1.0361", "if ra is in hours, multiply it by 15"),
        ("8.1067,-1.0361\n24,1\n", "ra 8.1067, dec -1.0361", "correct the positions"),
    ],
)
def test_the_first_position_and_a_tile_of_the_folder_are_named(archive, tmp_path, positions, first, remedy):
    assert refusal(archive, tmp_path, f"source_id,ra,dec\na,{positions.replace(chr(10), chr(10) + 'b,', 1)}") == (
        f"/images: none of the positions lies on a tile of this folder: source a is at {first}; "
        f"the folder has 1 tile, 0098p408_ac51 {CENTRE}; {remedy}{ELSEWHERE}"
    )


def test_tiles_are_counted_once_whatever_their_images(tmp_path):
    for n, at in enumerate((20.0, 900.0)):
        for band in (1, 2, 3):
            header = atlas_header(band=band, CRPIX1=at)
            write_image(tmp_path / f"a{n}-w{band}.fits", header, pixels_of(band))
    archive = open_archive(str(tmp_path), BANDS)
    assert f"; the folder has 1 tile, 0098p408_ac51 {CENTRE}; " in refusal(archive, tmp_path, "ra,dec\n200,1\n")
    write_layout(tmp_path / "other", "1110m015_ac51")
    archive = open_archive(str(tmp_path), BANDS)
    assert f"; the folder has 2 tiles, such as 0098p408_ac51 {CENTRE}; " in refusal(archive, tmp_path, "ra,dec\n2,1\n")


def test_a_folder_without_a_tile_says_so(archive, tmp_path):
    for path in (tmp_path / "layout").rglob("*.fits"):
        path.write_bytes(b"")
    assert refusal(archive, tmp_path, "ra,dec\n8,1\n") == (
        "/images: none of the tiles of this folder has an image that can be read: fetch the images again"
    )


def test_the_tiles_of_a_remote_archive_are_not_listed(tmp_path):
    class Remote(MemorySource):
        is_remote = True

        def footprints(self, bands, near):
            raise AssertionError("this may take thousands of requests")

    archive = AtlasArchive(Remote({"a": atlas_bytes()}), BANDS)
    assert refusal(archive, tmp_path, "ra,dec\n8,1\n") == (
        "/images: none of the positions lies on a tile of this folder: source row-000001 is at ra 8.0000, dec 1.0000; "
        f"if ra is in hours, multiply it by 15{ELSEWHERE}"
    )


def test_impossible_names_of_tiles_are_told_from_positions(archive, tmp_path):
    bad = "no source has a tile, because every coadd_id is a name that no tile can have: leave the column out"
    assert refusal(archive, tmp_path, "ra,dec,coadd_id\n9.89,40.89,a/b\n8,1,c/d\n") == f"/images: {bad}"
    assert "source row-000002 is at ra 8.0000, dec 1.0000" in refusal(
        archive, tmp_path, "ra,dec,coadd_id\n9.89,40.89,a/b\n8,1,\n"
    )


def test_a_source_with_a_tile_is_enough(archive):
    require_position_on_tile(archive, "/images", ["0098p408_ac51"], lambda: pytest.fail("not read"))


# --- names of tiles that do not fit the positions --------------------------------------------------

MISNAMED = (
    "the coadd_id 1210p015_ac51 of source b comes from the table, but its position lies on tile 0098p408_ac51 of this "
    "folder; without the column coadd_id, tiles are found by position"
)
TABLE = "source_id,ra,dec,coadd_id\na,121.6,1.0,1210p015_ac51\nb,9.89,40.89,1210p015_ac51\nc,9.89,40.89,0098p408_ac51\n"


def test_a_name_that_does_not_fit_its_position_is_told(archive, tmp_path, caplog):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    table = standardise_table(str(path))
    with pytest.raises(ArchiveError) as caught:
        require_usable_tile(archive, "/images", ["1210p015_ac51"], BANDS, lambda: table)
    assert str(caught.value).endswith(f"fetch it; {MISNAMED}")
    with pytest.raises(ArchiveError, match="fetch it$"):
        require_usable_tile(archive, "/images", ["1210p015_ac51"], BANDS, lambda: table.slice(0, 1))
    require_usable_tile(archive, "/images", ["1210p015_ac51", "0098p408_ac51"], BANDS, lambda: pytest.fail("read"))
    warn_of_misnamed_tiles(archive, "/images", ["1210p015_ac51", "0098p408_ac51"], table)
    assert [record.message for record in caplog.records] == [f"/images: no image of 1 tile; {MISNAMED}"]
    warn_of_misnamed_tiles(archive, "/images", ["1210p015_ac51", "0098p408_ac51"], table.slice(0, 1))
    warn_of_misnamed_tiles(archive, "/images", ["0098p408_ac51"], table)
    assert len(caplog.records) == 1


def test_the_verbs_tell_names_that_do_not_fit(run, sky, tmp_path, caplog):
    rows = pq.read_table(sky.catalog).to_pandas()[["source_id", "ra", "dec", "coadd_id"]]
    one = rows[rows["coadd_id"] == sky.coadd_ids[0]].head(3)
    one.assign(coadd_id="1210p015_ac51").to_csv(tmp_path / "one.csv", index=False)
    words = f"the coadd_id 1210p015_ac51 of source {one['source_id'].min()} comes from the table"
    with pytest.raises(ArchiveError, match=words):
        plan_run(replace(run, catalog=str(tmp_path / "one.csv")), count_here)
    with pytest.raises(ArchiveError, match=words):
        write_cutouts(str(tmp_path / "one.csv"), str(sky.images), str(tmp_path / "a.npz"), "9px", BANDS)
    one.iloc[[0, 1, 2]].assign(coadd_id=["1210p015_ac51", None, None]).to_csv(tmp_path / "two.csv", index=False)
    plan_run(replace(run, catalog=str(tmp_path / "two.csv")), count_here)
    write_cutouts(str(tmp_path / "two.csv"), str(sky.images), str(tmp_path / "a.npz"), "9px", BANDS)
    warnings = [record.message for record in caplog.records if "comes from the table" in record.message]
    assert len(warnings) == 2 and all("no image of 1 tile; the coadd_id 1210p015_ac51 of" in text for text in warnings)


# --- files that are refused ------------------------------------------------------------------------


def test_refused_files_beside_a_usable_tile_are_counted_in_one_warning(tmp_path, caplog):
    for band in (1, 2, 3):
        (tmp_path / f"a-w{band}.fits").write_bytes(atlas_bytes(band))
    archive = open_archive(str(tmp_path), BANDS)
    warn_of_refused_files(archive, "mix")
    assert caplog.records == [], "nothing is refused"
    (tmp_path / "a-w1.fits.gz").write_bytes(b"\x1f\x8b")
    warn_of_refused_files(open_archive(str(tmp_path), BANDS), "mix")
    assert caplog.records == [], "an unpacked copy is there"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tan.fits").write_bytes(atlas_bytes(1, CTYPE1="RA---TAN", CTYPE2="DEC--TAN", BUNIT="Jy"))
    warn_of_refused_files(open_archive(str(tmp_path), BANDS), "mix")
    such = "such as sub/tan.fits (TAN projection, as in an unWISE coadd (other scale and zero point))"
    assert caplog.messages == [f"1 file of mix is no usable Atlas image, {such}; replace or remove it"]
    (tmp_path / "0111m015_ac51-w1-int-3.fits").write_bytes(b"")  # it names its tile, of which no source may be
    caplog.clear()
    warn_of_refused_files(open_archive(str(tmp_path), BANDS), "mix")
    such = "such as 0111m015_ac51-w1-int-3.fits (empty file)"
    assert caplog.messages == [f"2 files of mix are no usable Atlas images, {such}; replace or remove them"]


def test_in_the_layout_no_file_is_opened_to_warn_of_refused_files(archive, caplog):
    for path in Path(archive.root).rglob("*-w1-*.fits"):
        path.write_bytes(b"")
    warn_of_refused_files(archive, "/images")
    warn_of_refused_files(AtlasArchive(MemorySource({"a": b""}), BANDS), "memory:")
    assert caplog.records == []


def test_plan_and_cutouts_warn_once_of_refused_files(run, sky, tmp_path, caplog):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in Path(sky.images).rglob("*.fits"):
        (flat / path.name).symlink_to(path)
    (flat / "psf.fits").write_bytes(b"text")
    words = [f"1 file of {flat} is no usable Atlas image, such as psf.fits (not a FITS file); replace or remove it"]
    plan_run(replace(run, images=str(flat)), count_here)
    assert [text for text in caplog.messages if "usable Atlas" in text] == words
    caplog.clear()
    rows = pq.read_table(sky.catalog).to_pandas()[["source_id", "ra", "dec"]].head(3)
    rows.to_csv(tmp_path / "three.csv", index=False)
    write_cutouts(str(tmp_path / "three.csv"), str(flat), str(tmp_path / "a.npz"), "9px", BANDS)
    assert [text for text in caplog.messages if "usable Atlas" in text] == words
