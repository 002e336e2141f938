"""Geometry against brute force: covers, polygons, HEALPix, and the archive's own pixel positions."""

from __future__ import annotations

import csv
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.errors import ConfigError
from skyclass.sky.healpix import (
    angle_text,
    healpix,
    healpix29,
    parse_angle,
    pixel_centres,
    pixel_radius_deg,
    separation_deg,
)
from skyclass.sky.moc import Moc, read_moc
from skyclass.sky.regions import Box, Cone, Pixels, Polygon, Region, region_from_dict, region_identity, region_text
from skyclass.sky.tile_wcs import edge_distance_px, tile_pixels
from skyclass.types import Tile
from tests.support.paths import SHARED

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


def on_borders(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Positions on the borders of a region, where rounding and the borders of pixels matter."""
    if isinstance(region, Cone):
        angle = np.linspace(0, 2 * math.pi, 721)
        d, lat = math.radians(region.radius_deg), math.radians(region.dec)
        z = np.sin(lat) * np.cos(d) + np.cos(lat) * np.sin(d) * np.cos(angle)
        dec = np.degrees(np.arcsin(np.clip(z, -1, 1)))
        east = np.arctan2(np.sin(angle) * np.sin(d) * np.cos(lat), np.cos(d) - np.sin(lat) * z)
        return region.ra + np.degrees(east), dec
    if isinstance(region, Box):
        ra = region.ra_min + np.linspace(0, region.width_deg, 500)
        dec = np.linspace(region.dec_min, region.dec_max, 500)
        sides = np.repeat([region.ra_min, region.ra_max], 500), np.repeat([region.dec_min, region.dec_max], 500)
        return np.r_[sides[0], ra, ra], np.r_[dec, dec, sides[1]]
    if isinstance(region, Polygon):
        corners = region._corners()
        share = np.linspace(0, 1, 200)[:, None, None]
        ends = corners * (1 - share) + np.roll(corners, -1, axis=0) * share
        x, y, z = (ends / np.linalg.norm(ends, axis=-1, keepdims=True)).reshape(-1, 3).T
        return np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z))
    return np.zeros(0), np.zeros(0)


MERIDIANS = [
    Polygon(((315, -62.7), (0, -62.7), (0, -4.2), (315, -4.2))),
    Polygon(((270, 50), (0, 50), (0, 80), (270, 80))),
    Box(270, 360, 50, 80),
    Box(0, 360, -89.2, -50.1),
    Box(337.6, 67.6, 9.7, 69.3),
    Box(231.4, 321.4, 3.3, 61.4),
    Cone(0, 90, 48.18968510422141),
]
"""Regions whose borders coincide with borders of pixels, or whose cover other software gets wrong."""


@pytest.mark.integration
@pytest.mark.parametrize("region", [*REGIONS, *MERIDIANS], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("order", [0, 3, 6, 8])
def test_cover_holds_positions_on_the_border(region: Region, order: int) -> None:
    ra, dec = on_borders(region)
    exact = np.array([0.0, 90, 180, 270]).repeat(200), np.tile(np.linspace(-90, 90, 200), 4)
    ra, dec = np.r_[ra, exact[0]], np.r_[dec, exact[1]]
    inside = region.contains(ra, dec)
    assert np.isin(healpix(order, ra[inside], dec[inside]), region.cover(order)).all()


@pytest.mark.integration
@pytest.mark.parametrize("region", [*REGIONS, *MERIDIANS], ids=lambda r: type(r).__name__)
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


@pytest.mark.integration
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


@pytest.mark.integration
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
    ("written", "shortest"),
    [
        ("40arcmin", "40arcmin"),
        ("1arcmin", "1arcmin"),
        ("1arcsec", "1arcsec"),
        ("2.5arcsec", "2.5arcsec"),
        ("1mas", "0.001arcsec"),
        ("30arcmin", "0.5deg"),
        ("6arcmin", "0.1deg"),
        ("180", "180deg"),
        ("1.0deg", "1deg"),
        ("0.123456789", "0.123456789deg"),
        ("0.6666666666666667", "0.6666666666666667deg"),  # 40arcmin is 0.6666666666666666
        ("1e-9", "1e-09deg"),
        ("1rad", "57.29577951308232deg"),
    ],
)
def test_the_shortest_text_of_an_angle(written: str, shortest: str) -> None:
    assert angle_text(parse_angle(written)) == shortest


@given(st.floats(min_value=0, max_value=180, exclude_min=True) | st.integers(1, 10**6).map(lambda n: n / 3600))
def test_the_text_of_an_angle_gives_back_the_same_number(angle_deg: float) -> None:
    assert parse_angle(angle_text(angle_deg)) == angle_deg
    assert len(angle_text(angle_deg)) <= len(f"{angle_deg}deg")


def test_messages_show_the_radius_of_a_cone_in_its_shortest_text() -> None:
    for radius in ("40arcmin", "1arcsec", "0.5deg"):
        assert region_text(Cone(150, 2, radius)) == f"region {{kind = cone, ra = 150.0, dec = 2.0, radius = {radius}}}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cone(10, 91, 1), "cone dec is 91"),
        (lambda: Cone(float("nan"), 0, 1), "cone ra is nan"),
        (lambda: Cone("8:06:24", 0, 1), "cone ra looks sexagesimal .'8:06:24'.; give decimal degrees"),
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
        (lambda: Pixels(13.5, (1,)), "order 13.5: order and pixels must be whole numbers"),
        (lambda: Pixels(5, (1.5,)), "order and pixels must be whole numbers"),
        (lambda: Pixels(40, (1,)), "order is 40: it must be from 0 to 29"),
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


# --- MOC files -------------------------------------------------------------------------------------

MOC_TEXT = "3/1 5-6 767 5/4000-4010 12/200000000"


@pytest.fixture(scope="module")
def mocs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One MOC in the three formats."""
    from mocpy import MOC

    folder, moc = tmp_path_factory.mktemp("moc"), MOC.from_string(MOC_TEXT)
    paths = {form: folder / f"moc.{form}" for form in ("fits", "json", "ascii")}
    for form, path in paths.items():
        moc.save(path, format=form)
    return paths


def test_the_formats_of_a_moc_give_one_region(mocs: dict[str, Path]) -> None:
    regions = {form: read_moc(path) for form, path in mocs.items()}
    assert len(set(regions.values())) == 1 and len({hash(region) for region in regions.values()}) == 1
    region = regions["fits"]
    assert isinstance(region, Region) and region.order == 12
    assert region != read_other(mocs["ascii"].with_name("other"), "3/1 5-6 767")
    assert region_from_dict({"kind": "moc", "path": str(mocs["json"])}) == region
    assert region_from_dict(json.loads(json.dumps(region.to_dict()))) == region


def read_other(path: Path, text: str) -> Moc:
    path.write_text(text)
    return read_moc(path)


@pytest.mark.integration
def test_a_moc_contains_what_mocpy_says(mocs: dict[str, Path]) -> None:
    from astropy import units as u
    from mocpy import MOC

    region, moc = read_moc(mocs["fits"]), MOC.from_string(MOC_TEXT)
    ra, dec = random_sky(100_000)
    near = pixel_centres(14, np.repeat(region.cover(9), 50) * 4**5 + np.tile(np.arange(50) * 20, len(region.cover(9))))
    ra, dec = np.r_[ra, near[0]], np.r_[dec, near[1]]
    truth = moc.contains_lonlat(ra * u.deg, dec * u.deg)
    assert 0 < truth.sum() < len(ra)
    np.testing.assert_array_equal(region.contains(ra, dec), truth)
    assert region.contains(*pixel_centres(12, [200_000_000])).all()
    assert not region.contains(*pixel_centres(12, [200_000_001])).any()
    assert region.contains(1.0, 1.0).shape == ()


@pytest.mark.parametrize("order", [0, 2, 3, 5, 9])
def test_the_cover_of_a_moc_is_exact(mocs: dict[str, Path], order: int) -> None:
    from mocpy import MOC

    truth = MOC.from_string(MOC_TEXT).degrade_to_order(order).flatten()
    np.testing.assert_array_equal(read_moc(mocs["ascii"]).cover(order), np.unique(truth).astype(np.int64))


def test_the_cover_of_a_moc_holds_its_positions_below_its_order(tmp_path: Path) -> None:
    region = read_other(tmp_path / "moc", "0/4 2/0 3/767")
    np.testing.assert_array_equal(region.cover(4), np.r_[0:16, 4 * 256 : 5 * 256, 767 * 4 : 768 * 4])
    ra, dec = points_inside(region)
    assert np.isin(healpix(6, ra, dec), region.cover(6)).all()


def test_a_moc_travels_without_its_file_and_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = np.flatnonzero(rng.random(100_000) < 0.5)
    (tmp_path / "moc").write_text("8/" + " ".join(map(str, cells)))
    region = read_moc(tmp_path / "moc")
    (tmp_path / "moc").unlink()
    wire = pickle.dumps(region)
    assert len(wire) < 2 * len(cells)
    code = (
        "import pickle, sys, json; region = pickle.load(sys.stdin.buffer);"
        "print(json.dumps([region.cover(8).tolist(), hash(region) == hash(pickle.loads(pickle.dumps(region))),"
        " 'mocpy' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=wire, capture_output=True, check=True)
    assert json.loads(done.stdout) == [cells.tolist(), True, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no MOC"),
        (b"ra,dec\n1,2\n", "is no MOC"),
        (b"\xff\xfe\x00", "is no MOC"),
        (b"SIMPLE  =                    T" + b" " * 50, "is no MOC"),
        (b'{"5": [1, "x"]}', "order 5 holds other values"),
        (b'{"3": [768]}', "from 0 to 767"),
        (b'{"ra": [1]}', "'ra' is not an order"),
        (b"{", "is no MOC"),
        (b'{"5": []}', "has no cells"),
        (b"99/1", "'99' is not an order"),
        (b"3/768", "cells that order 3 does not have"),
        (b"3/1 1", "is no MOC"),
    ],
)
def test_files_that_are_no_moc_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_moc(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_a_table_larger_than_its_moc_file_is_refused(tmp_path: Path, mocs: dict[str, Path]) -> None:
    content = mocs["fits"].read_bytes()
    start = content.index(b"NAXIS2  =")
    rows = b"NAXIS2  = " + b"1000000000000000000".rjust(20)
    (tmp_path / "file").write_bytes(content[:start] + rows + content[start + len(rows) :])
    with pytest.raises(ConfigError, match="file is no MOC .its table has 1,000,000,000,000,000,000 rows, and the file"):
        read_moc(tmp_path / "file")


def test_a_failed_assertion_in_mocpy_is_an_error_of_the_file(
    mocs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mocpy

    panic = next(cls for cls in BaseException.__subclasses__() if cls.__name__ == "PanicException")

    def load(*_: object, **__: object) -> None:
        raise panic("index out of bounds")

    monkeypatch.setattr(mocpy.MOC, "load", load)
    with pytest.raises(ConfigError, match="moc.fits is no MOC .*index out of bounds.*give a spatial MOC"):
        read_moc(mocs["fits"])


def test_other_mocs_and_tables_are_refused(tmp_path: Path, mocs: dict[str, Path]) -> None:
    from astropy.table import Table
    from mocpy import TimeMOC

    TimeMOC.from_string("10/1-3").save(tmp_path / "time.fits", format="fits")
    Table({"ra": [1.0]}).write(tmp_path / "table.fits")
    for name in ("time.fits", "table.fits"):
        with pytest.raises(ConfigError, match=f"{name} is no MOC .*give a spatial MOC"):
            read_moc(tmp_path / name)
    with pytest.raises(ConfigError, match="absent cannot be read: No such file"):
        read_moc(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_moc(tmp_path)
    with pytest.raises(ConfigError, match="has changed: its digest is .*, and it was 0123"):
        region_from_dict({"kind": "moc", "path": str(mocs["fits"]), "digest": "0123"})
    with pytest.raises(ConfigError, match="moc takes path, digest"):
        region_from_dict({"kind": "moc", "file": "x"})
    with pytest.raises(ConfigError, match="moc path is 5"):
        region_from_dict({"kind": "moc", "path": 5})


def test_a_moc_is_identified_by_its_cells_and_not_by_its_path(mocs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(mocs["fits"].read_bytes())
    regions = read_moc(mocs["fits"]), read_moc(tmp_path / "copy"), read_other(tmp_path / "other", "3/1")
    one, copy, other = map(region_identity, regions)
    assert one == copy != other and regions[0].digest in one
    assert region_identity(Cone(1, 2, 3)) == json.dumps(Cone(1, 2, 3).to_dict()) and region_identity(None) == "all"


@pytest.mark.integration
def test_the_command_line_starts_without_astronomical_libraries() -> None:
    code = (
        "import sys; from skyclass.cli.main import cli; from skyclass.cli.parameters import parse_cone;"
        "parse_cone('1,2,3deg'); import skyclass.sky.regions;"
        "heavy = ('astropy', 'astropy_healpix', 'mocpy', 'scipy', 'matplotlib', 'jinja2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
