"""The layout of the archive: paths, names, and which tiles are near a position, worked out by hand."""

from __future__ import annotations

import pytest

from skyclass.images.layout import layout_coadd_ids, layout_footprints, layout_path, names_near, ra_folders_near
from skyclass.images.local import open_local

NEAR = ([0.2], [0.3])
"""A position in the HEALPix pixel of order 6 whose centre is at RA 0 and Dec 0.597."""


def test_a_path_has_the_two_folders_of_the_right_ascension():
    assert layout_path("1497p015_ac51", "w4") == "14/1497/1497p015_ac51/1497p015_ac51-w4-int-3.fits"
    assert layout_path("0000m893_ab41", "w1").startswith("00/0000/0000m893_ab41/")
    for coadd_id, band in (("1497p015_ac51", "w5"), ("1497p015_ac51", ""), ("../x", "w1"), ("x1497p015_ac51", "w1")):
        assert layout_path(coadd_id, band) == ""


def test_tiles_are_read_from_the_names_of_images():
    names = ["b/1497p015_ac51/x.fits", "a/b/0000m893_ab41/y.fits", "1497p015_ac51/z.fits", "1111p000_ac51.fits"]
    others = ["1112p000_ac51/x.fits.md5", "1113p000_ac51/deeper/x.fits", "notes/x.fits", "1114p000_ac51"]
    assert layout_coadd_ids(names + others) == ["0000m893_ab41", "1497p015_ac51"]
    assert layout_coadd_ids([]) == []


def test_the_images_of_a_tile_begin_with_the_bands_of_interest():
    first, second = layout_footprints(["1497p015_ac51", "0000m893_ab41"], ("w3", "w1"))
    assert [name[-13:-11] for name in first] == ["w3", "w1", "w2", "w4"]
    assert all(name.startswith("00/0000/0000m893_ab41/") for name in second) and len(second) == 4


@pytest.mark.parametrize(
    "prefix", ["p3am_cdd", "images/p3am_cdd", "allwise/images/p3am_cdd", "wise/allwise/images/p3am_cdd"]
)
def test_each_folder_above_the_layout_may_be_given(tmp_path, prefix):
    (tmp_path / prefix / "14/1497/1497p015_ac51").mkdir(parents=True)
    source = open_local(str(tmp_path), ("w1",))
    assert (source.location, source.index) == (str(tmp_path / prefix), None)


def test_a_tile_is_near_within_its_reach():
    """A reach of 2.214 degrees: 1.11 of the tile, 0.15 of its name and 0.954 of the pixel of the position."""
    cases = [
        ("0000p005_ac51", True),
        ("0021p006_ac51", True),  # centre at RA 2.15
        ("0022p006_ac51", False),  # RA 2.25
        ("3578p006_ac51", True),  # RA -2.15
        ("3577p006_ac51", False),
        ("0000p028_ac51", True),  # Dec 2.8, 2.203 from the centre of the pixel
        ("0000p029_ac51", False),
        ("0000m016_ac51", True),  # Dec -1.6, 2.197 from the centre of the pixel
        ("0000m017_ac51", False),
        ("1800p006_ac51", False),
    ]
    for name, is_near in cases:
        assert names_near([name], NEAR) == [name] * is_near
        assert names_near([name], ([180.0, 0.2], [-80.0, 0.3])) == [name] * is_near, "near any of the positions"


def test_folders_of_right_ascension_are_those_within_the_reach():
    """At Dec 0.597 the reach is 2.214 degrees of RA, at Dec 60.434 it is 4.490 degrees, from RA 149.625."""
    around_zero = [*range(22), *range(3578, 3600)]
    assert sorted(ra_folders_near(NEAR)) == [f"{n:04d}" for n in around_zero]
    assert sorted(ra_folders_near(([150.0], [60.1]))) == [f"{n:04d}" for n in range(1451, 1541)]
    both = ra_folders_near(([0.2, 150.0], [0.3, 60.1]))
    assert len(both) == 44 + 90 and both > ra_folders_near(NEAR)
    assert len(ra_folders_near(([10.0], [88.0]))) == 3600, "the pole is within reach"
    assert len(ra_folders_near(([10.0], [-88.0]))) == 3600
