"""Measures of the centres of cutouts, on stars, blends, halos and empty sky of the simulated sky's PSF."""

from __future__ import annotations

import numpy as np
import pytest

from skyclass.images.aperture import (
    APERTURE_CORRECTION_MAG,
    BLANK_BELOW,
    CentreMeasures,
    centre_flags,
    measure_centres,
)
from skyclass.images.composite import ATLAS_NOISE_DN, border_levels
from skyclass.mock.psf import atlas_psf
from skyclass.mock.render import light_image
from skyclass.types import Flag, Float32

BANDS = ("w1", "w2", "w3")
ZERO_POINTS = (20.5, 19.5, 18.0)
SIZE = 37


def cutout(*stars: tuple[float, float, float], seed: int = 1, size: int = SIZE) -> Float32:
    """Return a cutout (1, 3, size, size) of stars without colour, (dx, dy, mag) from the centre, on noise and a sky."""
    rng = np.random.default_rng(seed)
    x, y, mag = np.array(stars, float).reshape(-1, 3).T
    bands = []
    for band, zero_point in zip(BANDS, ZERO_POINTS, strict=True):
        flux = 10 ** (0.4 * (zero_point - mag))
        light = light_image(atlas_psf(band, 0.5), (x + (size - 1) / 2, y + (size - 1) / 2, flux), (size, size))
        bands.append(light + rng.normal(7.0, 0.7 * ATLAS_NOISE_DN[band], (size, size)))
    return np.array([bands], np.float32)


def measured(pixels: Float32, bands: tuple[str, ...] = BANDS, shift: float = 0.0) -> CentreMeasures:
    zero_points = tuple(dict(zip(BANDS, ZERO_POINTS, strict=True))[band] + shift for band in bands)
    return measure_centres(pixels, *border_levels(pixels, 3), bands, zero_points)


def flags_of(pixels: Float32) -> Flag:
    return Flag(int(centre_flags(measured(pixels))[0]))


@pytest.mark.parametrize(("mag", "error"), [(9.0, 0.02), (12.0, 0.02), (15.0, 0.04), (16.5, 0.15)])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.45, -0.45)])
def test_the_aperture_magnitude_of_a_star_is_its_own(mag, error, offset):
    pixels = np.concatenate([cutout((*offset, mag), seed=seed) for seed in range(8)])
    measures = measured(pixels)
    assert abs(np.median(measures.w1_aperture) - mag) < error
    assert centre_flags(measures).tolist() == [0] * 8, "an isolated star has no flag"


def test_the_aperture_is_a_sum_over_a_disc():
    pixels = np.full((1, 1, SIZE, SIZE), 2.0, np.float32)
    measures = measure_centres(pixels, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), ("w1",), (20.5,))
    flux = 10 ** (0.4 * (20.5 - APERTURE_CORRECTION_MAG - float(measures.w1_aperture[0])))
    assert flux == pytest.approx(np.pi * 6**2, rel=0.01)


def test_empty_sky_has_no_source():
    pixels = np.concatenate([cutout(seed=seed) for seed in range(50)])
    flags = centre_flags(measured(pixels))
    assert ((flags & int(Flag.BLANK)) > 0).mean() > 0.95
    negative = pixels.copy()
    negative[:, 0, 12:25, 12:25] -= 1
    assert np.isnan(measured(negative).w1_aperture).all(), "no positive flux, no magnitude"


def test_a_star_beside_the_centre_is_no_source_at_the_centre():
    assert Flag.BLANK in flags_of(cutout((10.0, 0.0, 14.0)))


@pytest.mark.parametrize("angle_deg", range(0, 360, 20))
def test_a_neighbour_of_equal_flux_blends(angle_deg):
    at = 6.5 * np.cos(np.radians(angle_deg)), 6.5 * np.sin(np.radians(angle_deg))
    assert flags_of(cutout((0, 0, 14.0), (*at, 14.0))) == Flag.BLENDED
    assert flags_of(cutout((0, 0, 14.0), (*at, 16.0))) == 0, "a neighbour of a sixth of the flux does not"


@pytest.mark.parametrize("distance_px", [15.0, 25.0])
def test_the_wings_of_a_bright_star_are_a_halo(distance_px):
    assert Flag.HALO in flags_of(cutout((distance_px, 0.0, 5.0)))
    assert Flag.HALO not in flags_of(cutout((0, 0, 11.0), (distance_px, 0.0, 14.0)))


def test_a_missing_pixel_near_the_centre_leaves_no_measures():
    pixels = np.repeat(cutout((0, 0, 13.0)), 3, axis=0)
    pixels[1, 0, 18, 12], pixels[2, 1, 0, :] = np.nan, np.nan
    measures = measured(pixels)
    assert np.isnan(np.stack(measures)).all(0).tolist() == [False, True, False]
    assert centre_flags(measures).tolist() == [0, 0, 0]
    assert measures.contrast[2] == pytest.approx(measures.contrast[0], rel=0.05), "far from the centre it hardly counts"


def test_measures_do_not_depend_on_the_zero_point_or_on_the_order_of_bands():
    stars = np.concatenate([cutout((0, 0, 15.0), (5, 3, 15.5), seed=seed) for seed in range(6)])
    shifted = measured(stars * np.float32(10**0.4), shift=1.0)
    turned = measured(stars[:, ::-1].copy(), BANDS[::-1])
    for other in (shifted, turned):
        np.testing.assert_allclose(np.stack(other), np.stack(measured(stars)), rtol=2e-4)


def test_measures_of_a_source_do_not_depend_on_the_others():
    """Bit for bit, so that rows do not depend on how a tile is divided into strips."""
    stars = np.concatenate([cutout((0, 0, 12 + 0.05 * k), (5, 3, 15.5), seed=k) for k in range(100)])
    whole = np.stack(measured(stars))
    for some in (np.arange(1), np.arange(30, 95), np.random.default_rng(1).permutation(100)):
        np.testing.assert_array_equal(np.stack(measured(stars[some])), whole[:, some])


@pytest.mark.parametrize(("bands", "size"), [(("w2", "w3"), SIZE), (("w1",), 18)])
def test_without_w1_or_on_a_tiny_cutout_nothing_is_known(bands, size):
    pixels = np.ones((2, len(bands), size, size), np.float32)
    measures = measured(pixels, bands)
    assert np.isnan(np.stack(measures)).all() and np.stack(measures).dtype == np.float32
    assert centre_flags(measures).tolist() == [0, 0]


@pytest.mark.parametrize("size", [19, 36, 61])
def test_cutouts_of_any_size_are_measured_at_their_middle(size):
    assert measured(cutout((0, 0, 12.0), size=size)).w1_aperture[0] == pytest.approx(12.0, abs=0.15)
    assert measured(cutout((0, 0, 12.0), size=size)).contrast[0] > 2 * BLANK_BELOW


def test_no_source_is_no_batch():
    assert [len(values) for values in measured(np.empty((0, 3, SIZE, SIZE), np.float32))] == [0, 0, 0, 0]
