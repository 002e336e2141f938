"""Counts, conditions, PSF, artifacts and clusters of the simulated sky against published and measured numbers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from skyclass.errors import ConfigError
from skyclass.mock import write_mock
from skyclass.mock.artifacts import PARENT_MAG, SPIKE_ANGLES_RAD, artifact_points, contamination, parents
from skyclass.mock.clusters import NEARBY_CLUSTERS, members
from skyclass.mock.conditions import (
    band_sky,
    cross_scan_px,
    ecliptic_frame,
    expected_coverage,
    scan_profile,
    stated_flux_sigma,
    zodiacal_sky_dn,
)
from skyclass.mock.counts import EDGES_W1, balanced_counts, natural_counts, with_quasars
from skyclass.mock.field import DIFFUSE, SkyModel, relative_density, sources_near
from skyclass.mock.grid import ZERO_POINT_MAG, nearest_tiles
from skyclass.mock.population import CLASS_OF_SUBTYPE, OUTLIERS, SUBTYPES
from skyclass.mock.psf import ATLAS, AXIS_RATIO, Psf, atlas_psf
from skyclass.mock.render import diffuse_light, light_image
from skyclass.types import DEFAULT_CLASSES, PIXEL_SCALE_ARCSEC
from tests.support.paths import SHARED

ARP_220 = SHARED / "data" / "archive" / "gator_arp220_allsky.tbl"
needs_arp_220 = pytest.mark.skipif(not ARP_220.exists(), reason="the folder of real data ../shared is absent")
BANDS = ("w1", "w2", "w3")


# --- counts ----------------------------------------------------------------------------------------


@needs_arp_220
def test_counts_are_those_around_arp_220():
    table = Table.read(ARP_220, format="ascii.ipac")
    counts = natural_counts(36.6, 53.0)
    area_deg2 = np.pi * (5 / 60) ** 2
    for bright, faint in ((13.0, 15.5), (15.5, 16.5), (16.5, 17.0)):
        n = int(np.sum((table["w1mpro"] >= bright) & (table["w1mpro"] < faint)))
        expected = counts.between(bright, faint) * area_deg2
        assert abs(n - expected) < 3 * np.sqrt(expected)


@pytest.mark.parametrize(("l_deg", "b_deg", "k_mag", "per_deg2"), [
    (90.0, 5.0, 15, 15_275), (270.0, -30.0, 14, 851), (180.0, 80.0, 17, 1_224), (330.0, 20.0, 12, 482),
])  # fmt: skip
def test_stars_are_those_of_the_besancon_model(l_deg, b_deg, k_mag, per_deg2):
    stars = natural_counts(l_deg, b_deg).per_deg2[DEFAULT_CLASSES.index("star")]
    assert stars[EDGES_W1[1:] <= k_mag - 0.05 + 1e-6].sum() == pytest.approx(per_deg2, rel=0.06)


def test_quasars_reach_the_published_densities():
    quasars = natural_counts(90.0, 60.0).per_deg2[DEFAULT_CLASSES.index("quasar")]
    assert quasars[EDGES_W1[1:] <= 16.15].sum() == pytest.approx(61.9, rel=0.1)  # W2 < 15.05, Stern et al. 2012
    assert quasars[EDGES_W1[1:] <= 16.85].sum() == pytest.approx(130, rel=0.1)  # W2 < 15.73, Assef et al. 2013


def test_counts_change_between_grid_points_without_steps():
    for direction, other in (
        ((359.0, 30.0), (1.0, 30.0)),
        ((90.0, 29.99), (90.0, 30.01)),
        ((89.9, 44.0), (90.1, 44.0)),
    ):
        here, there = (natural_counts(*position).between(8, 17) for position in (direction, other))
        assert here == pytest.approx(there, rel=0.002)


def test_a_quasar_fraction_keeps_the_total():
    counts = natural_counts(90.0, 60.0)
    changed = with_quasars(counts, 0.25, 8.0, 17.7)
    assert changed.between(8.0, 17.7) == pytest.approx(counts.between(8.0, 17.7))
    inside = (EDGES_W1[:-1] >= 8.0) & (EDGES_W1[1:] <= 17.7)
    assert changed.per_deg2[1, inside].sum() / changed.per_deg2[:, inside].sum() == pytest.approx(0.25, abs=0.002)


def test_drawn_magnitudes_follow_the_counts():
    counts = balanced_counts()
    w1 = counts.magnitudes(np.random.default_rng(1), 40_000, 12.0, 16.0)
    assert 12.0 <= w1.min() and w1.max() <= 16.0
    for faint in (13.0, 14.0, 15.0):
        assert (w1 < faint).mean() == pytest.approx(counts.between(12.0, faint) / counts.between(12.0, 16.0), abs=0.01)


# --- conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latitude_deg", "sky_dn"), [
    (-18.46, {"w1": 3.50, "w2": 9.49, "w3": 526.5}), (32.30, {"w1": 2.72, "w2": 8.08, "w3": 451.8}),
])  # fmt: skip
def test_sky_levels_are_those_of_real_headers(latitude_deg, sky_dn):
    for band, dn in sky_dn.items():
        assert zodiacal_sky_dn(band, latitude_deg) == pytest.approx(dn, rel=0.1)


@pytest.mark.parametrize(("latitude_deg", "frames"), [(-18.46, (27.6, 15.0)), (32.30, (30.4, 16.0))])
def test_coverage_is_that_of_real_headers(latitude_deg, frames):
    assert expected_coverage("w1", latitude_deg) == pytest.approx(frames[0], rel=0.1)
    assert expected_coverage("w3", latitude_deg) == pytest.approx(frames[1], rel=0.1)


def test_depth_grows_towards_the_ecliptic_poles():
    sigma = []
    for elat in (0.0, 30.0, 60.0, 85.0):
        tile = nearest_tiles(_at_ecliptic(elat), 1, 256, BANDS)[0]
        sigma.append([stated_flux_sigma(band_sky(1, tile, band)) for band in BANDS])
    assert (np.diff(sigma, axis=0) < 0).all()


def _at_ecliptic(latitude_deg: float) -> tuple[float, float]:
    from astropy.coordinates import SkyCoord

    position = SkyCoord(200.0, latitude_deg, unit="deg", frame="barycentricmeanecliptic").icrs
    return float(position.ra.deg), float(position.dec.deg)


@needs_arp_220
def test_stated_errors_are_those_around_arp_220():
    table = Table.read(ARP_220, format="ascii.ipac")
    tile = nearest_tiles((233.74, 23.50), 1, 256, BANDS)[0]
    for band in BANDS:
        snr = np.ma.filled(np.ma.asarray(table[f"{band}snr"], float), np.nan)
        flux = 10 ** (0.4 * (ZERO_POINT_MAG[band] - np.asarray(table[f"{band}mpro"])))
        faint = (snr > 2) & (snr < 20)
        ratio = stated_flux_sigma(band_sky(1, tile, band)) / np.median(flux[faint] / snr[faint])
        assert 0.7 < ratio < 1.4


def test_the_scans_follow_circles_of_ecliptic_longitude():
    latitude_deg, scan_rad = ecliptic_frame(121.6, 1.04)
    assert latitude_deg == pytest.approx(-18.8, abs=0.1)
    assert np.degrees(scan_rad) == pytest.approx(90 + 12.7, abs=0.1)
    tile = nearest_tiles((121.6, 1.04), 1, 400, BANDS)[0]
    sky = band_sky(1, tile, "w1")
    along = np.array([np.cos(sky.scan_rad), np.sin(sky.scan_rad)])
    at = cross_scan_px(sky, (400, 400), 200 + 50 * along[1], 200 + 50 * along[0])
    assert at == pytest.approx(0.0, abs=1e-9)


def test_bands_that_are_exposed_together_share_their_coverage_strips():
    tile = nearest_tiles((150.1, 2.2), 1, 400, BANDS)[0]
    w1, w2, w3 = (scan_profile(band_sky(1, tile, band)).coverage for band in BANDS)
    assert (w1 == w2).all() and not (w1 == w3).all()
    assert np.median(w1) == pytest.approx(1.0) and 0.02 < w1.std() < 0.5


def test_some_tiles_have_seams_and_some_the_glow_of_the_moon():
    tile = nearest_tiles((150.1, 2.2), 1, 400, BANDS)[0]
    skies = [band_sky(seed, tile, "w3") for seed in range(300)]
    moon = [sky for sky in skies if sky.moon_dn > 0]
    assert 5 <= len(moon) <= 40
    assert scan_profile(moon[0]).light_dn.max() > 0.8 * moon[0].moon_dn
    seams = [scan_profile(sky).coverage for sky in skies[:100]]
    assert 5 <= sum(profile[-500:].mean() / profile[:500].mean() > 1.3 for profile in seams) <= 30


# --- PSF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", BANDS)
def test_the_psf_is_an_ellipse_of_the_measured_axis_ratio_and_angle(band):
    psf = atlas_psf(band, scan_rad=np.radians(102.7))
    image = light_image(psf, (np.array([60.0]), np.array([60.0]), np.array([1.0])), (121, 121)).astype(float)
    y, x = np.mgrid[-60:61, -60:61]
    core = image**2  # so that the wings do not count
    xx, yy, xy = (np.sum(core * form) / core.sum() for form in (x * x, y * y, x * y))
    angle_deg = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)) % 180
    expected_deg = {"w1": 102.7 - 31, "w2": 102.7 - 21, "w3": 102.7 - 21}[band]
    assert angle_deg == pytest.approx(expected_deg, abs=3)
    full, half = (light_image(Psf(ATLAS[band], q), (np.array([60.0]), np.array([60.0]), np.array([1.0])), (121, 121))
                  for q in (AXIS_RATIO[band], 1.0))  # fmt: skip
    assert full.sum() == pytest.approx(half.sum(), rel=1e-4)


def test_stamps_agree_with_the_rendered_image():
    psf = atlas_psf("w1", 1.0)
    image = light_image(psf, (np.array([50.3]), np.array([49.8]), np.array([1.0])), (101, 101))
    offset = np.arange(-8, 9)
    (stamp,) = psf.stamps((50 + offset - 50.3)[None], (50 + offset - 49.8)[None])
    assert np.allclose(stamp, image[42:59, 42:59], atol=0.01 * stamp.max())


# --- artifacts -------------------------------------------------------------------------------------


def _star(mag: float, band: str = "w1"):
    return parents(band, 0.3, np.array([500.0]), np.array([500.0]), np.array([mag]))


def test_only_bright_stars_have_artifacts():
    assert not len(artifact_points(_star(PARENT_MAG["w1"] + 0.1))[0])
    x, y, flux = artifact_points(_star(6.0))
    total = 10 ** (0.4 * (ZERO_POINT_MAG["w1"] - 6.0))
    assert 0.03 < flux.sum() / total < 0.08


def test_each_artifact_gives_its_letter_and_capitals_stand_where_it_is_brighter():
    star = _star(4.0)
    spike = SPIKE_ANGLES_RAD[0] + 0.3
    places = {
        "D": (500 + 150 * np.cos(spike), 500 + 150 * np.sin(spike)),
        "H": (500 + 60 * np.cos(0.3), 500 + 60 * np.sin(0.3)),
        "O": (500 + 150 * np.cos(0.3), 500 + 150 * np.sin(0.3)),
        "P": (500 + 640 * np.cos(0.3), 500 + 640 * np.sin(0.3)),
        "0": (500 - 900.0, 500.0),
    }
    x, y = np.array(list(places.values())).T
    assert contamination(star, x, y, np.full(len(x), 1e-3)).tolist() == list(places)
    assert contamination(star, x, y, np.full(len(x), 1e9)).tolist() == [letter.lower() for letter in places]
    assert contamination(star, np.array([500.0]), np.array([500.0]), np.array([1.0])).tolist() == ["0"]


# --- clusters and outliers -------------------------------------------------------------------------


def test_coma_has_its_members_and_their_light():
    coma = next(cluster for cluster in NEARBY_CLUSTERS if cluster.name == "Coma")
    drawn = members(coma, np.random.default_rng(1))
    w1 = drawn.galaxies.mags[:-1, 0]
    assert (w1 < 14).sum() == pytest.approx(coma.n_bright, rel=0.2)
    assert drawn.galaxies.radius_arcsec[-1] == pytest.approx(360) and drawn.galaxies.mags[-1, 0] < 9
    radius_deg = np.hypot((drawn.ra - coma.ra) * np.cos(np.radians(coma.dec)), drawn.dec - coma.dec)
    assert radius_deg.max() < 1.05 and np.median(radius_deg) < 0.5
    tile = nearest_tiles((coma.ra, coma.dec), 1, 4095, BANDS)[0]
    natural, balanced = (
        len(sources_near(SkyModel(1, mix, density=0.0), tile, 0.0, (0,))) for mix in ("natural", "balanced")
    )
    assert natural > 200 and balanced == 0


def test_the_light_of_a_cluster_goes_on_beyond_the_tile_of_its_centre():
    virgo = next(cluster for cluster in NEARBY_CLUSTERS if cluster.name == "Virgo")
    peak_dn = []
    for tile in nearest_tiles((virgo.ra, virgo.dec), 5, 256, ("w1",)):
        sources = sources_near(SkyModel(5, "natural"), tile, 64)
        diffuse = sources.take(sources.layer == DIFFUSE)
        assert (diffuse.ra, diffuse.dec) == ([virgo.ra], [virgo.dec])
        peak_dn.append(diffuse_light(diffuse, tile, "w1").max())
    assert np.all(np.diff(peak_dn) < 0) and peak_dn[-1] > 0.02 * peak_dn[0]


def test_half_of_the_diffuse_light_lies_within_the_half_light_radius():
    tile = nearest_tiles((194.95, 27.98), 1, 1001, ("w1", "w2", "w3"))[0]
    sources = sources_near(SkyModel(5, "natural"), tile, 64)
    light = sources.take(sources.layer == DIFFUSE).take(np.array([0]))
    ra, dec = (np.array([value]) for value in tile.crval_deg)
    radius_px = 40.0
    centred = replace(light, ra=ra, dec=dec, radius_arcsec=np.array([radius_px * PIXEL_SCALE_ARCSEC]))
    image = diffuse_light(centred, tile, "w2").astype(float)
    y, x = np.indices(image.shape) - 500
    flux_dn = 10 ** (0.4 * (ZERO_POINT_MAG["w2"] - light.mags[0, 1]))
    assert image.sum() == pytest.approx(flux_dn, rel=0.001)
    assert image[np.hypot(x, y) < radius_px].sum() == pytest.approx(flux_dn / 2, rel=0.01)


@pytest.mark.parametrize("mix", ["natural", "balanced"])
@pytest.mark.parametrize("center", [(270.0, -28.0), (281.0, -3.0), (270.0, 66.56), (10.0, 89.0)])
def test_a_sky_can_be_drawn_in_the_galactic_plane_and_at_the_poles(mix, center):
    tile = nearest_tiles(center, 1, 256, BANDS)[0]
    sources = sources_near(SkyModel(1, mix, density=0.05), tile, 0.0)
    assert (sources.layer == 1).sum() < 150_000 * 0.02 and np.isfinite(sources.mags).all()
    assert all(band_sky(1, tile, band).sigma > 0 for band in BANDS)


@pytest.mark.integration
def test_outliers_are_classes_of_the_truth_and_quasars_have_their_share(tmp_path):
    sky = write_mock(
        tmp_path / "sky", n_tiles=1, seed=2, size_px=1200, centers=[(30.0, -30.0)], sources_per_tile=1500,
        quasar_fraction=0.3, outliers_per_deg2=500.0,
    )  # fmt: skip
    truth = pd.read_parquet(sky.truth)
    counts = truth["class"].value_counts()
    assert set(OUTLIERS) <= set(counts.index) and set(DEFAULT_CLASSES) <= set(sky.class_counts)
    assert sky.class_counts["T dwarf"] == counts["T dwarf"] > 5
    known = counts[list(DEFAULT_CLASSES)]
    assert 0.2 < known["quasar"] / known.sum() < 0.4
    assert (
        truth.loc[truth["class"].isin(OUTLIERS), "subtype"] == truth.loc[truth["class"].isin(OUTLIERS), "class"]
    ).all()
    assert len(SUBTYPES) == len(CLASS_OF_SUBTYPE)


@pytest.mark.integration
def test_several_positions_make_one_archive(tmp_path):
    sky = write_mock(
        tmp_path / "sky", n_tiles=1, seed=2, size_px=400, centers=[(150.1, 2.2), (240.0, 60.0)], sources_per_tile=60
    )
    truth = pd.read_parquet(sky.truth)
    assert truth["coadd_id"].nunique() == 2 and len(sky.coadd_ids) == 2
    assert truth.groupby("coadd_id").size().min() > 20


def test_bad_positions_and_fractions_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)center = 10,95: .*quasar fraction = 1.5.*outliers per deg2 = -1"):
        write_mock(tmp_path / "m", centers=[(10.0, 95.0)], quasar_fraction=1.5, outliers_per_deg2=-1.0)


def test_the_density_of_sources_varies_by_a_tenth():
    """As docs/simulated-sky.md says."""
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 4000), np.degrees(np.arcsin(rng.uniform(-1, 1, 4000)))
    density = relative_density(5, ra, dec)
    assert density.mean() == pytest.approx(1, abs=0.02) and density.std() == pytest.approx(0.10, abs=0.01)
