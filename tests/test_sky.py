"""Geometry against brute force: covers, polygons, HEALPix, and the archive's own pixel positions."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.errors import ConfigError
from skyclass.sky.healpix import healpix, healpix29, parse_angle, pixel_centres, pixel_radius_deg, separation_deg
from skyclass.sky.regions import Box, Cone, Pixels, Polygon, Region, region_from_dict
from skyclass.sky.tile_wcs import edge_distance_px, tile_pixels
from skyclass.types import Tile

SHARED = Path(__file__).parents[2] / "shared"
CDELT_DEG = 0.0003819444391411

REGIONS = [
    Cone(150.1, 2.2, "2deg"),
    Cone(0.01, -0.3, "30arcmin"),
    Cone(12.0, 89.9, 1.5),
    Cone(200.0, -90.0, 170.0),
    Box(350, 10, -5, 5),
    Box(-10, 10, 88, 90),
    Box(0, 360, -61, -60.5),
    Box(10, 350, 20, 70),
    Box(123.4, 123.5, -90, 90),
    Polygon(((359, -1), (1, -1), (1, 1), (359, 1))),
    Polygon(((0, 85), (90, 85), (180, 85), (270, 85))),
    Polygon(((10, 0), (20, 0), (20, 10), (15, 2), (10, 10))),
    Pixels(3, (5, 700, 767)),
]


def random_sky(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Uniform positions, plus the poles and the meridian where wrapping goes wrong."""
    rng = np.random.default_rng(seed)
    ra = np.r_[rng.uniform(0, 360, n), np.zeros(200), np.full(200, 360.0), rng.uniform(0, 360, 200)]
    dec = np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    dec = np.r_[dec, np.linspace(-90, 90, 400), np.repeat([-90, 90], 100)]
    return ra, dec


def points_inside(region: Region, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Positions inside a region, drawn densely around it from its own cover."""
    rng = np.random.default_rng(7)
    pixels = region.cover(4)
    ra, dec = pixel_centres(10, rng.choice(pixels, n) * 4**6 + rng.integers(0, 4**6, n))
    sky_ra, sky_dec = random_sky(200_000)
    ra, dec = np.r_[ra, sky_ra], np.r_[dec, sky_dec]
    inside = region.contains(ra, dec)
    return ra[inside], dec[inside]


@pytest.mark.parametrize("region", REGIONS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("order", [0, 2, 5, 7])
def test_cover_holds_every_point_of_the_region(region: Region, order: int) -> None:
    ra, dec = points_inside(region)
    assert len(ra) > 20
    cover = region.cover(order)
    assert np.array_equal(cover, np.unique(cover))
    assert np.isin(healpix(order, ra, dec), cover).all()


def test_cover_is_tight_enough_to_save_reading() -> None:
    assert len(Cone(150.1, 2.2, "30arcmin").cover(5)) <= 6
    assert len(Box(0, 360, -61, -60.5).cover(5)) < 600
    assert len(Box(100, 101, -90, 90).cover(5)) < 700
    assert len(Polygon(((0, 0), (40, 0.2), (40, 0.4))).cover(5)) < 150


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 360), dec=st.floats(-90, 90), radius=st.floats(0.001, 180),
    angle=st.floats(0, 2 * math.pi), share=st.floats(0, 0.999999),
)  # fmt: skip
def test_a_point_at_any_distance_within_the_radius_is_covered(
    ra: float, dec: float, radius: float, angle: float, share: float
) -> None:
    cone = Cone(ra, dec, radius)
    lat, lon, d = math.radians(dec), math.radians(ra), math.radians(radius * share)
    z = math.sin(lat) * math.cos(d) + math.cos(lat) * math.sin(d) * math.cos(angle)
    lat2 = math.asin(max(-1, min(1, z)))
    lon2 = lon + math.atan2(math.sin(angle) * math.sin(d) * math.cos(lat), math.cos(d) - math.sin(lat) * math.sin(lat2))
    point = math.degrees(lon2), math.degrees(lat2)
    if cone.contains(*point):
        assert healpix(6, *point) in cone.cover(6)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_no_point_is_further_from_its_pixel_centre_than_the_pixel_radius(order: int) -> None:
    ra, dec = random_sky(300_000, seed=order)
    distance = separation_deg(ra, dec, *pixel_centres(order, healpix(order, ra, dec)))
    assert distance.max() <= pixel_radius_deg(order)
    assert distance.max() > 0.9 * pixel_radius_deg(order)


def test_healpix29_is_the_index_of_hats() -> None:
    pytest.importorskip("hats")
    from hats.pixel_math.spatial_index import compute_spatial_index

    ra, dec = (a[:20_000] for a in random_sky(20_000))  # none exactly on a pixel border
    np.testing.assert_array_equal(healpix29(ra, dec), compute_spatial_index(ra, dec))
    np.testing.assert_array_equal(healpix(5, ra, dec), healpix29(ra, dec) >> 48)


def test_ra_is_periodic() -> None:
    dec = np.linspace(-90, 90, 181)
    for ra in (0.0, 1e-12, 359.999, 123.4):
        west, east = healpix29(np.full(181, ra - 360), dec), healpix29(np.full(181, ra), dec)
        np.testing.assert_array_equal(west >> 20, east >> 20)
    assert healpix29([-1e-18], [0.0]) == healpix29([0.0], [0.0])


def winding(polygon: Polygon, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Truth by turning once around each point and adding up the bearings to the vertices."""
    lat, bearings = np.radians(dec), []
    for vertex_ra, vertex_dec in polygon.vertices:
        dlon, lat2 = np.radians(vertex_ra - ra), math.radians(vertex_dec)
        bearings.append(
            np.arctan2(
                np.sin(dlon) * np.cos(lat2),
                np.cos(lat) * np.sin(lat2) - np.sin(lat) * np.cos(lat2) * np.cos(dlon),
            )
        )
    turns = np.diff(np.array([*bearings, bearings[0]]), axis=0)
    return np.abs(((turns + np.pi) % (2 * np.pi) - np.pi).sum(axis=0)) > np.pi


@pytest.mark.parametrize("polygon", [r for r in REGIONS if isinstance(r, Polygon)])
def test_polygon_contains_agrees_with_winding_numbers(polygon: Polygon) -> None:
    rng = np.random.default_rng(3)
    ra, dec = pixel_centres(9, rng.choice(polygon.cover(3), 20_000) * 4**6 + rng.integers(0, 4**6, 20_000))
    ra, dec = ra + 1e-6, dec - 1e-6  # off the borders, where either answer is right
    truth = winding(polygon, ra, dec)
    assert truth.any()
    np.testing.assert_array_equal(polygon.contains(ra, dec), truth)
    assert not polygon.contains(ra + 180, -dec)[truth].any()


def test_borders_belong_to_cone_and_box_and_the_wrap_is_seamless() -> None:
    box = Box(350, 10, -5, 5)
    ra = np.array([349.99, 350, 359.999, 0, 360, 10, 10.01, -10, -10.01])
    assert box.contains(ra, np.zeros(9)).tolist() == [False, True, True, True, True, True, False, True, False]
    assert Box(0, 360, -90, 90).contains([0, 360, 123], [90, -90, 0]).all()
    assert Box(0.1, 0.3, 0, 1).contains([0.1, 0.3], [0, 1]).all()
    assert Cone(10, 0, 1).contains(10, 1) and not Cone(10, 0, 1).contains(10, 1.000001)


@pytest.mark.parametrize("region", REGIONS, ids=lambda r: type(r).__name__)
def test_a_region_survives_its_dict(region: Region) -> None:
    assert region_from_dict(region.to_dict()) == region
    assert isinstance(region, Region)


@pytest.mark.parametrize(
    ("text", "degrees"),
    [("30arcmin", 0.5), ("2deg", 2), ("50arcsec", 50 / 3600), (0.5, 0.5), ("0.5", 0.5), (" 1e-1 deg ", 0.1)],
)
def test_angles(text: str | float, degrees: float) -> None:
    assert parse_angle(text) == pytest.approx(degrees, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cone(10, 91, 1), "cone dec is 91"),
        (lambda: Cone(float("nan"), 0, 1), "cone ra is nan"),
        (lambda: Cone(10, 0, 0), "radius is 0"),
        (lambda: Cone(10, 0, "-1deg"), "radius is '-1deg'"),
        (lambda: Cone(10, 0, "3 parsec"), "'3 parsec' is not understood"),
        (lambda: Cone(10, 0, "nan"), "not understood"),
        (lambda: parse_angle("1.2.3deg"), "not understood"),
        (lambda: Box(0, 10, 5, -5), "dec_min must be smaller"),
        (lambda: Box(3, 3, 0, 1), "empty"),
        (lambda: Polygon(((0, 0), (1, 1))), "2 distinct vertices"),
        (lambda: Polygon(((0, 0), (1, 0), (2, 0))), "no area"),
        (lambda: Polygon(((0, 0), (120, 0), (240, 0))), "89 degrees"),
        (lambda: Pixels(0, (12,)), "0 to 11"),
        (lambda: Pixels(0, ()), "got none"),
        (lambda: region_from_dict({"kind": "circle"}), "'circle'"),
        (lambda: region_from_dict({"kind": "cone", "ra": 1}), "cone takes ra, dec, radius"),
    ],
)
def test_bad_input_names_the_value(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        make()


def atlas_tile(ra: float, dec: float, side: int = 4095) -> Tile:
    centre = (side + 1) / 2
    cdelt = (-CDELT_DEG, CDELT_DEG)
    return Tile("0000p000_ac51", ("w1",), (side, side), (ra, dec), (centre, centre), cdelt, (20.5,))


def test_tile_pixels_are_the_archives_wx_wy() -> None:
    table, tiles = SHARED / "data/archive/ngc3532_allwise_wx_wy.csv", SHARED / "data/archive/wise-tiles.fits"
    if not table.exists() or not tiles.exists():
        pytest.skip("the shared archive tables are not here")
    with open(table, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["ID_allwise"]]
    ra, dec, wx, wy = (
        np.array([float(row[name]) for row in rows])
        for name in ("RAJ2000_allwise", "DEJ2000_allwise", "wx_allwise", "wy_allwise")
    )
    grid = fits.getdata(tiles, 1)
    worst, found = 0.0, np.zeros(len(ra), bool)
    for row in grid[separation_deg(grid["ra"], grid["dec"], ra.mean(), dec.mean()) < 3]:
        x, y = tile_pixels(atlas_tile(row["ra"], row["dec"]), ra, dec)
        mine = np.hypot(x - wx, y - wy) < 1
        found |= mine
        worst = max(worst, np.hypot(x - wx, y - wy)[mine].max(initial=0))
    assert found.all() and len(ra) > 200
    assert worst < 0.01


def test_tile_pixels_far_side_and_edges() -> None:
    tile = atlas_tile(10.0, 80.0)
    x, y = tile_pixels(tile, [10, 190, 10, np.nan], [80, -80, -20, 0])
    assert (x[0], y[0]) == pytest.approx((2048, 2048))
    assert np.isnan(x[1:]).all() and np.isnan(y[1:]).all()
    np.testing.assert_allclose(
        edge_distance_px(tile, [2048, 0.5, 1, 4096, np.nan], [2048, 9, 9, 9, 9]),
        [2047.5, 0, 0.5, -0.5, -np.inf],
    )
