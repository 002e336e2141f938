"""The command `skyclass cutouts`: sizes, limits, and what is in the file."""

from __future__ import annotations

import numpy as np
import pytest

from skyclass.errors import ArchiveError, CatalogError, ConfigError
from skyclass.images import export
from skyclass.images.archive import open_archive
from skyclass.images.export import cut_table, positions, size_of_option, write_cutouts
from skyclass.images.size import parse_size
from skyclass.types import Flag
from tests.support.atlas_files import COADD_ID, pixels_of, write_layout

RA, DEC = 9.890156, 40.89
"""Position of pixel (20, 18), of 37 columns and 40 rows."""
ABSENT = "0111m015_ac51"
OVERFLOW = (
    '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE type="results"><TABLE>'
    '<FIELD name="ra" datatype="double" unit="deg"/><FIELD name="dec" datatype="double" unit="deg"/>'
    f"<DATA><TABLEDATA><TR><TD>{RA}</TD><TD>{DEC}</TD></TR></TABLEDATA></DATA></TABLE>"
    '<INFO name="QUERY_STATUS" value="OVERFLOW"/></RESOURCE></VOTABLE>'
)


def test_a_size_is_pixels_or_the_nearest_odd_number_for_an_angle():
    cases = [
        ("37px", 37), ("36 px", 36), (" 1pix ", 1), ("1024 pixels", 1024), ("+9px", 9),
        ("50arcsec", 37),  # 36.4 pixels
        ("48.2arcsec", 35),  # 35.05 pixels
        ("49.4arcsec", 35),  # 35.93 pixels
        ("49.6arcsec", 37),  # 36.07 pixels
        ("1.375arcsec", 1), ("0.1arcsec", 1), ("4.125arcsec", 3), ("0.39deg", 1021),
    ]  # fmt: skip
    for size, side in cases:
        assert parse_size(size) == side


def test_a_size_out_of_range_is_told_with_its_pixels():
    no_unit = "; {} without a unit is degrees: write {}"
    cases = [
        ("0px", 0, ""), ("-3px", -3, ""), ("1025px", 1025, ""), ("1e9deg", 942545, ""), ("-1e300deg", -999999999, ""),
        ("50", 130909, no_unit.format(50, "50arcsec or 37px")),
        (" 36.5 ", 95563, no_unit.format(36.5, "36.5arcsec or 27px")),
        ("-3", -7855, no_unit.format(-3, "50arcsec or 37px, for example")),
        ("5000", 942545, no_unit.format(5000, "50arcsec or 37px, for example")),
    ]  # fmt: skip
    for size, side, missing_unit in cases:
        with pytest.raises(ConfigError) as caught:
            size_of_option(size)
        assert str(caught.value) == f"--size {size}: {side} pixels; choose 1 to 1024{missing_unit}"


def test_a_size_that_is_no_angle_is_told_with_the_option():
    with pytest.raises(
        ConfigError, match="^--size 37 parsec: angle '37 parsec' is not understood: .*; pixels are writ"
    ):
        size_of_option("37 parsec")


@pytest.fixture
def images(tmp_path):
    write_layout(tmp_path / "images")
    return tmp_path / "images"


def table_of(folder, *rows: str):
    (folder / "table.csv").write_text("\n".join(["source_id,ra,dec,coadd_id", *rows]) + "\n")
    return folder / "table.csv"


def write(folder, table, images, size="9px", bands=("w1", "w3"), name="a.npz", **options):
    return write_cutouts(str(table), str(images), str(folder / name), size, bands, **options)


def test_the_file_has_the_sources_in_the_order_of_the_table(tmp_path, images):
    """A source at the middle, one without a tile, one on an absent tile, and one 50 arcsec from the middle."""
    rows = (
        f"d,{RA},{DEC},{COADD_ID}",
        "c,200.0,-70.0,",
        f"b,{RA},{DEC},{ABSENT}",
        f"a,{RA},{DEC + 13.75 / 3600},{COADD_ID}",
    )
    report = write(tmp_path, table_of(tmp_path, *rows), images)
    assert report.summary == (
        f"4 cutouts of 9 x 9 pixels in w1, w3 written to {tmp_path / 'a.npz'}; without an image in some band: 2"
    )
    assert list(report.quarantined) == [ABSENT]
    assert report.quarantined[ABSENT].startswith(f"tile {ABSENT}: missing tile")
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    assert sorted(arrays) == ["coadd_id", "cutouts", "flags", "source_id", "valid_frac", "x", "y"]
    assert arrays["source_id"].tolist() == ["d", "c", "b", "a"]
    assert arrays["coadd_id"].tolist() == [COADD_ID, "", ABSENT, COADD_ID]
    assert arrays["cutouts"].dtype == np.float32 and arrays["flags"].dtype == np.int32
    gone = int(Flag.NO_IMAGE | Flag.TILE_MISSING)
    assert arrays["flags"].tolist() == [0, gone | int(Flag.OFF_TILE), gone, 0]
    assert arrays["valid_frac"].tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(arrays["x"], [20, np.nan, np.nan, 20], atol=0.01)
    np.testing.assert_allclose(arrays["y"], [18, np.nan, np.nan, 28], atol=0.01)
    assert np.isnan(arrays["cutouts"][1:3]).all()
    for b, band in enumerate((1, 3)):
        np.testing.assert_array_equal(arrays["cutouts"][0, b], pixels_of(band)[13:22, 15:24])
        np.testing.assert_array_equal(arrays["cutouts"][3, b], pixels_of(band)[23:32, 15:24])


def test_only_sources_with_a_tile_and_no_fault_have_positions_in_it(tmp_path, images):
    archive = open_archive(str(images), ("w1",))
    table = positions(str(table_of(tmp_path, f"a,{RA},{DEC},", f"b,{RA},{DEC},{ABSENT}")), archive)
    assert table["coadd_id"].to_pylist() == [COADD_ID, ABSENT]
    batch, faults = cut_table(archive, table, 3, ("w1",))
    assert batch.pixels.shape == (2, 1, 3, 3) and list(faults) == [ABSENT]


def test_nothing_is_written_without_a_usable_tile_and_the_largest_tile_is_named_first(tmp_path, images):
    rows = [f"{n},{RA},{DEC},{name}" for n, name in enumerate(("0001p000_ac51", ABSENT, ABSENT, "0002p000_ac51"))]
    with pytest.raises(ArchiveError, match=f"of 3 tiles looked at, none is usable: tile {ABSENT}: missing tile"):
        write(tmp_path, table_of(tmp_path, *rows), images)
    assert not (tmp_path / "a.npz").exists()


def test_cutouts_beyond_the_memory_are_refused_before_they_are_made(tmp_path, images, monkeypatch):
    many = table_of(tmp_path, *(f"{n},{RA},{DEC},{COADD_ID}" for n in range(1000)))
    words = "^1,000 cutouts would take 13 GB of memory: split the table, or choose smaller cutouts$"
    with pytest.raises(ConfigError, match=words):
        write(tmp_path, many, images, "1024px", ("w1", "w2", "w3"))
    monkeypatch.setattr(export, "MAX_BYTES", 4 * 2 * 2 * 81)
    two = table_of(tmp_path, f"a,{RA},{DEC},{COADD_ID}", f"b,{RA},{DEC},{COADD_ID}")
    assert write(tmp_path, two, images).summary.endswith(f"written to {tmp_path / 'a.npz'}")
    monkeypatch.setattr(export, "MAX_BYTES", 4 * 2 * 2 * 81 - 1)
    with pytest.raises(ConfigError, match="2 cutouts would take 0 GB"):
        write(tmp_path, two, images, name="b.npz")


def test_another_suffix_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="a.fits: cutouts are written as .npz"):
        write(tmp_path, "nowhere.csv", "nowhere", name="a.fits")


def test_a_truncated_table_is_used_only_where_it_is_allowed(tmp_path, images):
    (tmp_path / "table.xml").write_text(OVERFLOW)
    archive = open_archive(str(images), ("w1",))
    with pytest.raises(CatalogError, match="--allow-truncated"):
        write(tmp_path, tmp_path / "table.xml", images)
    with pytest.raises(CatalogError, match="--allow-truncated"):
        positions(str(tmp_path / "table.xml"), archive)
    assert write(tmp_path, tmp_path / "table.xml", images, allow_truncated=True).summary.startswith("1 cutout of")
