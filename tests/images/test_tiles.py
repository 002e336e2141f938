"""Images of bands -> tiles and image sets: which images belong together, and which fault says that they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skyclass.errors import TileFault
from skyclass.images.atlas import AtlasImage, RejectedFile
from skyclass.images.tiles import (
    combine,
    each_band,
    footprints_of,
    image_sets,
    missing_fault,
    refused_text,
    require_image,
    tile_of,
)
from skyclass.types import FileStamp, ImageFile
from tests.support.atlas_files import fault_of

COADD_ID = "0000p000_ac51"


def image_of(band: str = "w1", shape=(9, 9), at=(0, 0), name: str = "", **changes) -> AtlasImage:
    """Return an image whose first pixel is `at` (x, y) of the tile."""
    name = name or f"{band} {shape} {at}"
    file = ImageFile(name, 2880, "0", FileStamp(5000, 1, len(name)))
    crpix = (5.0 - at[0], 5.0 - at[1])
    image = AtlasImage(f"/a/{name}", COADD_ID, band, shape, (0.0, 0.0), crpix, (-0.0004, 0.0004), 20.5, file)
    return replace(image, **changes)


def test_an_image_must_be_good_and_of_the_tile_and_band_asked_for():
    image = image_of()
    assert require_image(image, COADD_ID, "w1") is image
    rejected = RejectedFile("/a/x.fits", "empty file", COADD_ID, "w1")
    fault = fault_of(require_image, rejected, COADD_ID, "w2")
    assert (fault.reason, fault.band, fault.kind) == ("/a/x.fits is refused: empty file", "w2", "bad")
    for coadd_id, band in ((COADD_ID, "w2"), ("1111p000_ac51", "w1")):
        fault = fault_of(require_image, image, coadd_id, band)
        assert (fault.coadd_id, fault.band, fault.kind) == (coadd_id, band, "bad")
        assert f"says in its header that it is {COADD_ID} w1: fetch it again" in fault.reason


def test_a_missing_file_is_a_missing_band_where_the_tile_has_others():
    fault = missing_fault("/a", COADD_ID, "w2", ("w1", "w3"))
    assert (fault.kind, fault.band) == ("missing_band", "w2")
    assert fault.reason == "missing band under /a, which has w1, w3 of this tile: fetch it"
    reason = missing_fault("/a", COADD_ID, "w2", ("w1", "w3"), "; refused there: x.fits (empty file)").reason
    has = "no usable image under /a, which has w1, w3 of this tile: fetch it"
    assert reason == f"{has}; refused there: x.fits (empty file)"
    reason = missing_fault("/a", COADD_ID, "w2", (), "; refused there: x.fits (empty file)").reason
    assert reason == "missing tile: no usable image of it under /a, fetch it; refused there: x.fits (empty file)"
    fault = missing_fault("/a", COADD_ID, "w2", ())
    assert (fault.kind, fault.band) == ("missing_tile", None)
    assert fault.reason == "missing tile: no image of it under /a, fetch it"


def test_the_fault_of_a_missing_band_names_refused_files():
    reasons = {"w2.fits": "empty file: fetch it again", "x/y.fits": "gzip content: unpack it with gunzip"}
    files = [RejectedFile(f"/a/{name}", reason) for name, reason in reasons.items()]
    assert refused_text([], "/a") == ""
    text = refused_text(files, "/a")
    assert text == "; refused there: w2.fits (empty file), x/y.fits (gzip content: unpack it with gunzip)"
    assert missing_fault("/a", COADD_ID, "w2", ("w1",), text).reason.endswith(f"fetch it{text}")
    assert missing_fault("/a", COADD_ID, "w2", (), text).reason.endswith(f"fetch it{text}")
    seven = [RejectedFile(f"/a/{n}.fits", "truncated: 7 bytes, fetch it again") for n in range(7)]
    named = ", ".join(f"{n}.fits (truncated: 7 bytes)" for n in range(5))
    assert refused_text(seven[:5], "/a") == f"; refused there: {named}"
    assert refused_text(seven, "/a") == f"; refused there: {named}, and 2 more"


def test_all_bands_are_looked_at_and_one_fault_names_each():
    faults = {
        "w2": TileFault(COADD_ID, "second", "w2", "missing_band"),
        "w3": TileFault(COADD_ID, "third", "w3", "bad"),
    }
    missing = TileFault(COADD_ID, "missing tile", None, "missing_tile")

    def length_of(band: str) -> int:
        if band in faults:
            raise faults[band]
        return int(band[1])

    assert each_band(("w4", "w1"), length_of) == [4, 1]
    assert fault_of(each_band, ("w1", "w3"), length_of) is faults["w3"]
    both = fault_of(each_band, ("w1", "w2", "w3"), length_of)
    assert (both.coadd_id, both.band, both.kind) == (COADD_ID, "w2", "missing_band")
    assert both.reason == "second; w3: third"
    faults["w1"] = missing
    assert fault_of(each_band, ("w1", "w2", "w3"), length_of) is missing, "the tile as a whole"


def test_a_tile_has_the_bands_in_the_order_given_and_one_geometry():
    w1, w2 = image_of(shape=(7, 9)), image_of("w2", shape=(7, 9), zero_point_mag=19.5)
    tile = tile_of([w2, w1])
    assert (tile.bands, tile.zero_point_mag, tile.files) == (("w2", "w1"), (19.5, 20.5), (w2.file, w1.file))
    assert (tile.coadd_id, tile.shape, tile.crpix) == (COADD_ID, (7, 9), (5.0, 5.0))
    for other in (
        {"shape": (9, 7)},
        {"crpix": (5.0, 6.0)},
        {"crval_deg": (0.0, 1.0)},
        {"cdelt_deg": (-0.0004, 0.0005)},
    ):
        fault = fault_of(tile_of, [w1, replace(w2, **other)])
        reason = f"{w2.path} differs in WCS or shape from {w1.path}: take all bands from one source"
        assert (fault.band, fault.reason) == ("w2", reason)


def test_a_footprint_has_the_bands_that_have_an_image_of_it():
    first, second, small = image_of(), image_of("w2"), image_of("w2", shape=(3, 3))
    again, elsewhere = image_of(name="again"), image_of(coadd_id="1111p000_ac51")
    tiles = footprints_of([first, small, second, again, elsewhere])
    assert [(tile.coadd_id, tile.shape, tile.bands) for tile in tiles] == [
        (COADD_ID, (9, 9), ("w1", "w2")), (COADD_ID, (3, 3), ("w2",)), ("1111p000_ac51", (9, 9), ("w1",)),
    ]  # fmt: skip
    assert tiles[0].files[0] is first.file, "the first of two images"


def test_one_image_in_each_band_is_a_set_without_a_look_at_footprints():
    images = image_of(), image_of("w2", at=(50, 50))
    assert image_sets([[images[0]], [images[1]]]) == [list(images)]


def test_a_set_without_a_band_is_left_out_where_a_whole_set_covers_it():
    """The whole sets are 9 x 9 pixels, at the first pixel of the tile and far from it."""
    cases = [
        ((9, 9), (0, 0), True),
        ((3, 4), (0, 0), True),
        ((3, 4), (5, 6), True),  # its last column is 8, its last row is 8
        ((3, 4), (6, 6), False),
        ((3, 4), (5, 7), False),
        ((3, 4), (-1, 0), False),
        ((3, 4), (0, -1), False),
        ((3, 4), (0.0005, 6), True),  # within the tolerance of the grid
        ((3, 4), (5.0005, 6), True),
        ((3, 4), (-0.0005, 6), True),
        ((3, 4), (5, 6.002), False),
        ((3, 4), (-0.002, 6), False),
    ]
    for shape, at, is_covered in cases:
        w1, w2 = ([image_of(band), image_of(band, at=(90, 90))] for band in ("w1", "w2"))
        whole = [[w1[0], w2[0]], [w1[1], w2[1]]]
        lacking = image_of("w1", shape, at, name="lacking")
        if shape == (9, 9):
            lacking = replace(lacking, file=w1[0].file, path=w1[0].path)
        if is_covered:
            assert image_sets([[*w1, lacking], w2]) == whole
        else:
            fault = fault_of(image_sets, [[*w1, lacking], w2])
            assert (fault.band, fault.kind) == ("w2", "missing_band")
            assert fault.reason == (
                "/a/lacking has no image of w2 with the same footprint: fetch it, or remove this one"
            )


@pytest.mark.parametrize("other", [{"crval_deg": (0.0, 0.1)}, {"cdelt_deg": (-0.0004, 0.0005)}])
def test_an_image_on_another_projection_is_covered_by_none(other):
    w1, w2 = ([image_of(band), image_of(band, at=(90, 90))] for band in ("w1", "w2"))
    lacking = image_of("w1", (3, 3), name="lacking", **other)
    assert fault_of(image_sets, [[*w1, lacking], w2]).kind == "missing_band"


def test_the_bands_that_a_set_lacks_are_all_named():
    sets = [[image_of(band), image_of(band, at=(90, 90))] for band in ("w1", "w2", "w3")]
    sets[1].append(image_of("w2", at=(40, 40), name="lacking"))
    fault = fault_of(image_sets, sets)
    assert fault.band == "w1" and "/a/lacking has no image of w1, w3 with the same footprint" in fault.reason


def test_one_file_with_two_names_counts_once_and_two_files_are_a_fault():
    """A link has the stamp of its target, with the number of the device; another device may have an equal stamp."""
    here, same, there = (FileStamp(5000, 1, 7, device=device) for device in (3, 3, 4))
    files = [ImageFile(name, 2880, "0", stamp) for name, stamp in (("one", here), ("link", same), ("copy", there))]
    one, link, copy = (image_of(name=file.name, file=file) for file in files)
    assert image_sets([[one, link], [image_of("w2")]]) == [[one, image_of("w2")]]
    fault = fault_of(image_sets, [[one, copy], [image_of("w2")]])
    assert (fault.band, fault.kind) == ("w1", "bad")
    assert fault.reason == "more than one image with the same footprint, /a/one and /a/copy: keep one of them"
    other_time = image_of(file=replace(files[0], stamp=FileStamp(5000, 2, 7, device=3)), name="other")
    assert "keep one" in fault_of(image_sets, [[one, other_time], [image_of("w2")]]).reason


def test_image_sets_of_a_tile_share_one_pixel_grid_and_zero_point():
    cases = [
        ({}, True),
        ({"crpix": (-25.0, 105.0)}, True),
        ({"crpix": (5.0005, 4.9995)}, True),
        ({"crpix": (5.002, 5.0)}, False),
        ({"crpix": (5.0, 4.5)}, False),
        ({"crval_deg": (0.0, 0.1)}, False),
        ({"cdelt_deg": (-0.0004, 0.0005)}, False),
        ({"zero_point_mag": 20.25}, False),
    ]
    for changes, is_one_grid in cases:
        first, second = tile_of([image_of(name="one")]), tile_of([image_of(shape=(3, 3), name="two")])
        third = tile_of([image_of(shape=(5, 5), name="three", **changes)])
        assert combine([first]) == first
        if is_one_grid:
            assert combine([first, second, third]) == replace(first, other_image_sets=(second, third))
            continue
        fault = fault_of(combine, [first, second, third])
        assert (fault.coadd_id, fault.band, fault.kind) == (COADD_ID, "w1", "bad")
        assert fault.reason == (
            "one and three differ in pixel grid or zero point: take all images of a tile from one source"
        )
