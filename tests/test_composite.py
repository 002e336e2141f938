"""Composites against numbers worked out by hand."""

import numpy as np
import pytest

from skyclass.composite import STRETCHES, CompositeSettings, atlas_settings, border_sky, composite
from skyclass.errors import ConfigError

BANDS = ("w1", "w2", "w3")
ZERO_POINTS = (20.5, 19.5, 18.0)


def cutouts(n: int = 5, size: int = 37) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.normal([[[[3.0]], [[7.0]], [[400.0]]]], 0.1, (n, 3, size, size)).astype(np.float32)
    pixels[:, :, size // 2, size // 2] += np.array([50.0, 20.0, 5.0], np.float32)
    return pixels


def test_asinh_is_arcsinh_of_sky_subtracted_flux_over_softening():
    pixels = cutouts()
    images = composite(pixels, ZERO_POINTS, atlas_settings(BANDS, softening_dn=(0.5, 0.25, 2.0)))
    sky = np.median(
        np.concatenate(
            [
                pixels[0, 1, :3].ravel(),
                pixels[0, 1, -3:].ravel(),
                pixels[0, 1, 3:-3, :3].ravel(),
                pixels[0, 1, 3:-3, -3:].ravel(),
            ]
        )
    )
    assert images.dtype == np.float16 and images.shape == pixels.shape
    np.testing.assert_allclose(images[0, 1], np.arcsinh((pixels[0, 1] - sky) / 0.25), rtol=2e-3, atol=2e-3)


def test_another_zero_point_gives_the_same_composite():
    """A magnitude of zero point is a factor 10^0.4 of DN; pixels are brought to the bundle's scale."""
    pixels = cutouts()
    factor = np.float32(10**0.4)
    same = composite(pixels * factor, tuple(z + 1 for z in ZERO_POINTS), atlas_settings(BANDS))
    np.testing.assert_allclose(same, composite(pixels, ZERO_POINTS, atlas_settings(BANDS)), rtol=4e-3, atol=4e-3)


def test_a_constant_sky_changes_nothing():
    pixels = cutouts()
    lifted = composite(pixels + np.float32(64), ZERO_POINTS, atlas_settings(BANDS))
    np.testing.assert_allclose(lifted, composite(pixels, ZERO_POINTS, atlas_settings(BANDS)), atol=2e-3)


def test_missing_pixels_stay_missing_and_do_not_touch_the_sky():
    pixels = cutouts()
    pixels[1, 0, :20] = np.nan
    pixels[2, 2] = np.nan
    images = composite(pixels, ZERO_POINTS, atlas_settings(BANDS))
    np.testing.assert_array_equal(np.isnan(images), np.isnan(pixels))
    sky = border_sky(pixels, 3)
    assert abs(sky[1, 0] - 3.0) < 0.05 and np.isnan(sky[2, 2]) and np.isfinite(sky[2, :2]).all()


@pytest.mark.parametrize("stretch", sorted(STRETCHES))
def test_every_stretch_is_finite_and_rises_with_flux(stretch):
    pixels = cutouts()
    pixels[0, :, 18, 18] *= 1e6
    images = composite(pixels, ZERO_POINTS, atlas_settings(BANDS, stretch=stretch))
    assert np.isfinite(images).all()
    assert (images[:, :, 18, 18] >= np.median(images, axis=(2, 3))).all()


def test_lupton_keeps_the_ratio_of_bands():
    pixels = np.zeros((1, 3, 37, 37), np.float32)
    pixels[0, :, 18, 18] = 40.0, 20.0, 10.0
    image = composite(pixels, ZERO_POINTS, atlas_settings(BANDS, stretch="lupton", softening_dn=(1.0, 1.0, 1.0)))
    np.testing.assert_allclose(image[0, :, 18, 18] / image[0, 2, 18, 18], (4.0, 2.0, 1.0), rtol=2e-3)


def test_settings_round_trip_and_refuse_nonsense():
    settings = atlas_settings(BANDS, stretch="percentile", percentiles=(1.0, 99.0))
    assert CompositeSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ConfigError, match="stretch = 'sinh'.*softening_dn"):
        CompositeSettings(softening_dn=(0.1, -1.0), zero_point_mag=(20.5, 19.5), stretch="sinh")
    with pytest.raises(ConfigError, match="unknown settings"):
        CompositeSettings.from_dict({"softening_dn": [1.0], "zero_point_mag": [20.5], "gamma": 2})
    with pytest.raises(ConfigError, match="3 bands cut, 2 in the settings"):
        composite(cutouts(), ZERO_POINTS, atlas_settings(("w1", "w2")))
