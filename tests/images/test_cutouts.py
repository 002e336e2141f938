"""Cutouts against their oracle: astropy's Cutout2D, bit for bit, one source at a time."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.nddata import Cutout2D
from astropy.nddata.utils import NoOverlapError
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.images.archive import open_archive
from skyclass.images.cutouts import (
    Cutter,
    cut,
    first_pixel,
    group_by_image_set,
    n_inside,
    overlap,
    read_bands,
    row_span,
)
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import Flag, RowRange, Tile
from tests.support.atlas_files import COADD_ID
from tests.support.paths import SHARED

ATLAS = SHARED / "data" / "atlas_cutouts"
needs_atlas = pytest.mark.skipif(not ATLAS.is_dir(), reason="the real Atlas cutouts of ../shared are not here")


class ArrayArchive:
    """An archive of one tile in memory that remembers which rows were read."""

    def __init__(self, images: dict[str, np.ndarray]) -> None:
        self.images = images
        self.reads: list[tuple[str, int, int]] = []

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        shape = self.images[bands[0]].shape
        return Tile(coadd_id, bands, shape, (10.0, 5.0), (1.0, 1.0), (-3.8e-4, 3.8e-4), (20.5,) * len(bands))

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= tile.shape[0]  # the contract of an archive
        self.reads.append((band, start, stop))
        return self.images[band][start:stop].astype(np.float32)


def oracle(image: np.ndarray, x: float, y: float, size: int) -> np.ndarray:
    """The cutout as astropy makes it: 0-based position, NaN outside."""
    try:
        return Cutout2D(image, (x - 1, y - 1), (size, size), mode="partial", fill_value=np.nan).data
    except NoOverlapError:
        return np.full((size, size), np.nan)


def memory_archive(shape: tuple[int, int] = (60, 80), bands: tuple[str, ...] = ("w1", "w2")) -> ArrayArchive:
    rng = np.random.default_rng(3)
    images = {band: rng.normal(size=shape).astype(np.float32) for band in bands}
    images["w1"][20:23, 30:33] = np.nan
    return ArrayArchive(images)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_pixel_is_a_missing_one(value):
    archive, missing = memory_archive(), memory_archive()
    archive.images["w2"][30, 40], missing.images["w2"][30, 40] = value, np.nan
    tile = archive.tile("0000p000_ac51", ("w1", "w2"))
    x, y = np.array([41.0, 44.0, 60.0]), np.array([31.0, 29.0, 50.0])
    given_, expected = (cut(a, tile, x, y, 16) for a in (archive, missing))
    np.testing.assert_array_equal(given_.pixels, expected.pixels)
    np.testing.assert_array_equal(given_.flags, expected.flags)
    assert np.isnan(given_.pixels[0, 1]).sum() == 1 and given_.flags[0] & Flag.CENTRE_MISSING and not given_.flags[2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-60, 140), st.floats(-60, 120)), min_size=1, max_size=20),
    st.sampled_from([1, 4, 5, 16, 37]),
)
@pytest.mark.fault(19)
def test_equal_to_astropy_wherever_the_source_is(positions, size):
    archive = memory_archive()
    tile = archive.tile("0000p000_ac51", ("w1", "w2"))
    x, y = np.array(positions).T
    batch = cut(archive, tile, x, y, size)
    for n in range(len(x)):
        for b, band in enumerate(tile.bands):
            expected = oracle(archive.images[band], x[n], y[n], size)
            np.testing.assert_array_equal(batch.pixels[n, b], expected)
    np.testing.assert_array_equal(batch.valid_frac, np.isfinite(batch.pixels).mean(axis=(1, 2, 3)).astype(np.float32))


def test_half_pixels_round_as_astropy_does():
    archive = memory_archive()
    tile = archive.tile("0000p000_ac51", ("w1",))
    x = np.arange(1, 60, 0.5)
    batch = cut(archive, tile, x, x, 37)
    for n, position in enumerate(x):
        np.testing.assert_array_equal(batch.pixels[n, 0], oracle(archive.images["w1"], position, position, 37))


@pytest.mark.fault(19)
def test_flags_say_what_is_missing():
    archive = memory_archive()
    tile = archive.tile("0000p000_ac51", ("w1", "w2"))
    x = np.array([40.0, 32.0, 2.0, 500.0, np.nan])
    y = np.array([40.0, 22.0, 30.0, 30.0, 10.0])
    batch = cut(archive, tile, x, y, 9)
    gone = Flag.EDGE | Flag.OFF_TILE | Flag.NO_IMAGE | Flag.CENTRE_MISSING
    assert [Flag(int(f)) for f in batch.flags] == [
        Flag(0),
        Flag.NAN_PIXELS | Flag.CENTRE_MISSING,
        Flag.EDGE,
        gone,
        gone,
    ]
    assert batch.valid_frac[0] == 1 and batch.valid_frac[2] == np.float32(6 / 9) and batch.valid_frac[3] == 0


def test_each_band_is_read_once_and_only_where_needed():
    archive = memory_archive()
    tile = archive.tile("0000p000_ac51", ("w1", "w2"))
    cut(archive, tile, np.array([10.0, 20.0]), np.array([30.0, 35.0]), 9)
    assert archive.reads == [("w1", 25, 39), ("w2", 25, 39)]
    assert row_span(tile, np.array([]), 9) == (0, 0)


def read_whole(tile: Tile, archive, band: str) -> np.ndarray:
    return archive.read_rows(tile, band, 0, tile.shape[0])


@pytest.mark.integration
def test_simulated_pixels_of_catalogue_sources_equal_astropy(sky):
    archive = open_archive(str(sky.images), ("w1", "w2", "w3"))
    rows = pq.read_table(sky.catalog).to_pandas()
    for coadd_id, sources in rows.groupby("coadd_id"):
        tile = archive.tile(coadd_id, ("w1", "w2", "w3"))
        x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
        np.testing.assert_allclose((x, y), (sources["wx"], sources["wy"]), atol=0.01)
        batch = cut(archive, tile, x, y, 37)
        for b, band in enumerate(tile.bands):
            image = read_whole(tile, archive, band)
            for n in range(len(x)):
                np.testing.assert_array_equal(batch.pixels[n, b], oracle(image, x[n], y[n], 37))


@needs_atlas
@pytest.mark.parametrize("coadd_id", ["1210p015_ac51", "1954p287_ac51"])
def test_real_pixels_equal_astropy_edges_included(coadd_id):
    archive = open_archive(str(ATLAS), ("w1", "w2", "w3"))
    tile = archive.tile(coadd_id, ("w1", "w2", "w3"))
    rng = np.random.default_rng(1)
    x = rng.uniform(-20, tile.shape[1] + 20, 200)
    y = rng.uniform(-20, tile.shape[0] + 20, 200)
    batch = cut(archive, tile, x, y, 37)
    for b, band in enumerate(tile.bands):
        image = read_whole(tile, archive, band)
        for n in range(len(x)):
            np.testing.assert_array_equal(batch.pixels[n, b], oracle(image, x[n], y[n], 37))


@needs_atlas
def test_the_target_of_2010ai_stays_centred_beyond_the_edge():
    archive = open_archive(str(ATLAS), ("w1", "w2", "w3"))
    tile = archive.tile("1954p287_ac51", ("w1", "w2", "w3"))
    batch = cut(archive, tile, np.array([131.0]), np.array([14.0]), 37)
    assert np.isnan(batch.pixels[0, :, :5]).all() and np.isfinite(batch.pixels[0, :, 5:]).all()
    assert int(batch.flags[0]) == Flag.EDGE and batch.valid_frac[0] == np.float32(32 / 37)
    image = read_whole(tile, archive, "w1")
    assert batch.pixels[0, 0, 18, 18] == image[13, 130]


@needs_atlas
def test_predicted_pixels_of_the_host_galaxy():
    archive = open_archive(str(ATLAS), ("w1", "w2", "w3"))
    tile = archive.tile("1210p015_ac51", ("w1", "w2", "w3"))
    x, y = tile_pixels(tile, np.array([121.6004]), np.array([1.0361]))
    image = read_whole(tile, archive, "w1")
    near = image[int(y[0]) - 4 : int(y[0]) + 3, int(x[0]) - 4 : int(x[0]) + 3]
    assert near[2:5, 2:5].max() == near.max() > np.median(image) + 50


def test_flags_and_valid_fractions_at_the_borders_by_hand():
    """3 x 3 pixels from a tile of 6 x 7: at each border, one pixel further, on the corner, and off the tile."""
    image = np.arange(42, dtype=np.float32).reshape(6, 7)
    tile = Tile("0000p000_ac51", ("w1",), (6, 7), (0.0, 0.0), (4.0, 4.0), (-0.0004, 0.0004), (20.5,))
    x = np.array([2.0, 1.0, 6.0, 7.0, 4.0, 4.0, 4.0, 1.0, -1.0, 9.0])
    y = np.array([3.0, 3.0, 3.0, 3.0, 2.0, 5.0, 6.0, 1.0, 3.0, 3.0])
    cutter = Cutter([RowRange(0, image, True)], tile, x, y, 3)
    pixels = np.empty((len(x), 1, 3, 3), np.float32)
    cutter.cut(slice(0, len(x)), pixels)

    flags, valid_frac = cutter.flags_and_valid_frac()
    expected = [Flag(0), Flag.EDGE, Flag(0), Flag.EDGE, Flag(0), Flag(0), Flag.EDGE, Flag.EDGE]
    assert [Flag(int(f)) for f in flags[:8]] == expected
    assert all(Flag(int(f)) & Flag.OFF_TILE and Flag(int(f)) & Flag.NO_IMAGE for f in flags[8:])
    assert valid_frac.tolist() == [float(np.float32(n / 9)) for n in (9, 6, 9, 6, 9, 9, 6, 4, 0, 0)]
    np.testing.assert_array_equal(pixels[0, 0], image[1:4, 0:3])
    np.testing.assert_array_equal(pixels[2, 0], image[1:4, 4:7])
    np.testing.assert_array_equal(pixels[7, 0, 1:, 1:], image[:2, :2])
    assert np.isnan(pixels[8:]).all() and np.isnan(pixels).sum() == 90 - 58


@pytest.mark.parametrize(
    ("x", "y", "has_centre"),
    [(1.0, 1.0, True), (0.0, 1.0, False), (1.0, 0.0, False), (7.0, 6.0, True), (8.0, 6.0, False), (7.0, 7.0, False)],
)
@pytest.mark.parametrize("size", [3, 5, 6])
def test_the_centre_is_missing_one_pixel_off_the_tile(x, y, has_centre, size):
    tile = Tile("0000p000_ac51", ("w1",), (6, 7), (0.0, 0.0), (4.0, 4.0), (-0.0004, 0.0004), (20.5,))
    cutter = Cutter([RowRange(0, np.ones((6, 7), np.float32), True)], tile, np.array([x]), np.array([y]), size)
    cutter.cut(slice(0, 1), np.empty((1, 1, size, size), np.float32))
    (flags,), _ = cutter.flags_and_valid_frac()
    assert bool(flags & Flag.CENTRE_MISSING) != has_centre


def tile_at(shape: tuple[int, int], at: tuple[float, float] = (0, 0), **changes) -> Tile:
    """Return an image set whose first pixel is `at` (x, y) of the tile."""
    crpix = (5.0 - at[0], 5.0 - at[1])
    return replace(Tile(COADD_ID, ("w1",), shape, (0.0, 0.0), crpix, (-0.0004, 0.0004), (20.5,)), **changes)


def test_a_source_goes_to_the_set_with_most_pixels_then_to_the_farthest_edge_then_to_the_first():
    """Two equal sets of 20 x 20 pixels, the second 8 pixels to the right, and a third of 5 x 40 far above."""
    sets = tile_at((20, 20)), tile_at((20, 20), (8, 0)), tile_at((5, 40), (0, 100.0004))
    whole = replace(sets[0], other_image_sets=sets[1:])
    x = np.array([3.0, 27.0, 16.0, 12.0, 14.5, 30.0, 18.5, 14.51])
    y = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 103.0, 300.0, 10.0])
    groups = group_by_image_set(whole, x, y, 5)
    assert [group.image_set for group in groups] == list(whole.image_sets)
    assert [group.index.tolist() for group in groups] == [[0, 3, 4], [1, 2, 7], [5, 6]]
    assert groups[1].x.tolist() == [19.0, 8.0, 14.51 - 8] and groups[1].y.tolist() == [10.0, 10.0, 10.0]
    assert groups[2].x.tolist() == [30.0, 18.5] and groups[2].y.tolist() == [3.0, 200.0], "grids differ by whole pixels"
    (alone,) = group_by_image_set(sets[0], x, y, 5)
    assert alone.image_set is sets[0] and alone.index.tolist() == list(range(8)) and alone.x is x


def test_a_set_with_more_pixels_of_the_cutout_wins_over_one_whose_edge_is_farther():
    """A cutout of 5 x 5 at (2, 10): the narrow set lacks 5 pixels of a wide one that lacks none."""
    high, wide = tile_at((40, 20)), tile_at((5, 30), (-10, 7))
    groups = group_by_image_set(replace(high, other_image_sets=(wide,)), np.array([2.0]), np.array([10.0]), 5)
    assert [(group.image_set, group.x.tolist(), group.y.tolist()) for group in groups] == [(wide, [12.0], [3.0])]


def test_cutouts_of_several_sets_come_in_the_order_of_the_sources():
    rng = np.random.default_rng(2)
    images = {"a": rng.normal(size=(20, 20)).astype(np.float32), "b": rng.normal(size=(20, 20)).astype(np.float32)}

    class Archive:
        def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> np.ndarray:
            return images["a" if tile.crpix == (5.0, 5.0) else "b"][start:stop]

    tile = replace(tile_at((20, 20)), other_image_sets=(tile_at((20, 20), (100, 0)),))
    x, y = np.array([110.0, 10.0, 112.0, 500.0, 8.0]), np.full(5, 10.0)
    batch = cut(Archive(), tile, x, y, 3)
    assert batch.x.tolist() == [10.0, 10.0, 12.0, 400.0, 8.0] and batch.zero_point_mag == (20.5,)
    for n, (name, column) in enumerate((("b", 9), ("a", 9), ("b", 11))):
        np.testing.assert_array_equal(batch.pixels[n, 0], images[name][8:11, column - 1 : column + 2])
    np.testing.assert_array_equal(batch.pixels[4, 0], images["a"][8:11, 6:9])
    assert (batch.flags != 0).tolist() == [False, False, False, True, False]
    assert batch.valid_frac.tolist() == [1, 1, 1, 0, 1]


def test_no_rows_are_read_where_no_cutout_touches_the_tile():
    class Untouched:
        def read_rows(self, *arguments):
            pytest.fail("rows are read")

    tile = tile_at((20, 30), bands=("w1", "w2"), zero_point_mag=(20.5, 19.5))
    for y in ([-1.0], [22.0], [], [np.nan], [-1000.0]):
        rows = read_bands(Untouched(), tile, np.array(y), 3)
        assert [(r.pixels.shape, r.is_finite) for r in rows] == [((0, 30), True)] * 2
    gone = Flag.EDGE | Flag.OFF_TILE | Flag.CENTRE_MISSING | Flag.NO_IMAGE
    batch = cut(Untouched(), tile, np.array([10.0]), np.array([22.0]), 3)
    assert batch.flags.tolist() == [int(gone)] and batch.valid_frac.tolist() == [0] and np.isnan(batch.pixels).all()


@pytest.mark.parametrize(
    ("y", "rows"),
    [
        ([0.0], (0, 1)),  # rows -2 to 0 of the tile
        ([1.0], (0, 2)),
        ([3.0], (1, 4)),
        ([20.0, 2.0], (0, 20)),
        ([21.0], (19, 20)),
        ([5.0, -100.0], (0, 6)),
        ([5.0, 100.0], (3, 20)),
        ([-100.0, 100.0], (0, 20)),
    ],
)
def test_the_rows_are_those_that_cutouts_of_three_pixels_touch(y, rows):
    assert row_span(tile_at((20, 30)), np.array(y), 3) == rows


def test_rows_are_finite_only_if_each_pixel_is():
    archive = memory_archive()
    tile = archive.tile(COADD_ID, ("w1", "w2"))
    rows = read_bands(archive, tile, np.array([22.0]), 3)
    assert [(r.start, r.pixels.shape, r.is_finite) for r in rows] == [(20, (3, 80), False), (20, (3, 80), True)]
    assert all(r.is_finite for r in read_bands(archive, tile, np.array([40.0]), 3))


def test_the_first_pixel_is_that_of_astropy_and_far_away_without_a_position():
    assert first_pixel(np.array([5.0, 5.4, 5.5, 5.6]), 3).tolist() == [3, 3, 3, 4]
    assert first_pixel(np.array([5.0, 5.4, 5.5, 5.6]), 4).tolist() == [2, 3, 3, 3]
    far = first_pixel(np.array([np.nan, np.inf, -np.inf, 1e30, -1e30]), 3)
    assert (np.abs(far) > 2**18).all() and far.dtype == np.int64 and far[3] > 0 > far[4]
    assert n_inside(np.array([-3, -2, 0, 7, 9, 10]), 10, 3).tolist() == [0, 1, 3, 3, 1, 0]
    assert n_inside(np.array([-2]), 4, 10).tolist() == [4]


def test_flags_of_missing_pixels_by_hand():
    """Cutouts of 4 x 4 pixels; the central pixel is the third. Missing: one pixel, or the whole of one band."""
    w1, w2 = np.ones((2, 10, 12), np.float32)
    w1[3, 4] = np.nan
    w2[:, 8:] = np.nan
    tile = tile_at((10, 12), bands=("w1", "w2"), zero_point_mag=(20.5, 19.5))
    x, y = np.array([5.0, 5.0, 4.0, 11.0, 9.0]), np.array([4.0, 5.0, 3.0, 8.0, 8.0])
    cutter = Cutter([RowRange(0, w1, False), RowRange(0, w2, False)], tile, x, y, 4)
    out = np.empty((3, 2, 4, 4), np.float32)
    cutter.cut(slice(0, 3), out)
    cutter.cut(slice(3, 5), out[:2])
    flags, valid_frac = cutter.flags_and_valid_frac()
    nan, centre = Flag.NAN_PIXELS, Flag.CENTRE_MISSING
    assert [Flag(int(f)) for f in flags] == [nan | centre, nan, nan, nan | centre | Flag.NO_IMAGE, nan | centre]
    assert valid_frac.tolist() == [31 / 32, 31 / 32, 31 / 32, 16 / 32, 24 / 32]


@pytest.mark.parametrize(
    ("first", "in_axis", "in_cutout"),
    [(-1, (0, 2), (1, 3)), (0, (0, 3), (0, 3)), (8, (8, 10), (0, 2)), (10, (10, 10), (0, 0)), (-3, (0, 0), (3, 3))],
)
def test_the_overlap_of_three_pixels_with_an_axis_of_ten(first, in_axis, in_cutout):
    assert overlap(first, 10, 3) == (slice(*in_axis), slice(*in_cutout))
