"""Composites against numbers worked out by hand."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest

from skyclass.errors import ConfigError
from skyclass.images.aperture import centre_flags, measure_centres
from skyclass.images.composite import (
    STRETCHES,
    CompositeSettings,
    atlas_settings,
    border_levels,
    border_sky,
    composite,
    to_float16,
)
from skyclass.images.cutouts import Cutter
from skyclass.run.stages import cut_and_composite
from skyclass.types import RowRange, Tile

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


def one_cutout(*values: float) -> np.ndarray:
    """Return a cutout (1, 1, 2, 2) of a band with zero point 20.5."""
    return np.array(values, np.float32).reshape(1, 1, 2, 2)


def test_log_is_the_logarithm_of_one_plus_flux_over_softening():
    """Fluxes over a softening of 2 DN: -1, 0, e - 1 and e^3 - 1; negative flux counts as 0."""
    settings = CompositeSettings((2.0,), (20.5,), stretch="log", sky="none")
    pixels = one_cutout(-2.0, 0.0, 2 * (np.e - 1), 2 * (np.e**3 - 1))
    np.testing.assert_allclose(composite(pixels, (20.5,), settings).ravel(), [0, 0, 1, 3], rtol=1e-3)
    brighter = composite(pixels, (18.0,), settings)  # 2.5 mag less: DN count ten times as much
    expected = [0, 0, np.log1p(10 * (np.e - 1)), np.log1p(10 * (np.e**3 - 1))]
    np.testing.assert_allclose(brighter.ravel(), expected, rtol=1e-3)


def test_percentile_scales_each_band_of_each_cutout_between_its_own_percentiles():
    """The percentiles 25 and 75 of 0, 2, 4 and 12 are 1.5 and 6: (x - 1.5) / 4.5, clipped to 0..1."""
    settings = CompositeSettings((2.0,), (20.5,), stretch="percentile", sky="none", percentiles=(25.0, 75.0))
    image = composite(one_cutout(0.0, 2.0, 4.0, 12.0), (20.5,), settings)
    np.testing.assert_allclose(image.ravel(), [0, 1 / 9, 5 / 9, 1], rtol=1e-3)
    both = np.concatenate([one_cutout(0.0, 2.0, 4.0, 12.0), one_cutout(100.0, 100.2, 100.4, 101.2)])
    np.testing.assert_allclose(composite(both, (20.5,), settings)[1], image[0], rtol=2e-3)  # brighter, and as wide
    whole = CompositeSettings((2.0,), (20.5,), stretch="percentile", sky="none", percentiles=(0.0, 100.0))
    scaled = composite(one_cutout(np.nan, 10.0, 20.0, 50.0), (20.5,), whole).ravel()
    np.testing.assert_allclose(scaled, [np.nan, 0, 0.25, 1], rtol=1e-3)


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


@pytest.mark.parametrize("border_px", [3, 1])
@pytest.mark.parametrize("size", [37, 36])
def test_the_sky_is_the_median_of_the_frame(size, border_px):
    pixels = cutouts(4, size)
    pixels[1, 0, 0, :5] = np.nan
    pixels[2, 1] = np.nan
    frame = np.ones((size, size), dtype=bool)
    frame[border_px:-border_px, border_px:-border_px] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_array_equal(border_sky(pixels, border_px), np.nanmedian(pixels[:, :, frame], axis=-1))


def test_float16_is_that_of_numpy_bit_for_bit():
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(500, 4, 5, 5)) * 10.0 ** rng.integers(-9, 6, (500, 4, 5, 5))).astype(np.float32)
    values[0, 0, 0] = [np.nan, np.inf, -np.inf, 65504, -0.0]
    out = np.empty(values.shape, np.float16)
    to_float16(values, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.view(np.uint16), values.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("stretch", sorted(STRETCHES))
def test_cut_and_composited_in_blocks_as_all_at_once(stretch):
    """What a strip holds does not depend on how many sources were cut at a time."""
    rng = np.random.default_rng(5)
    bands = {band: rng.normal(9, 1, (200, 150)).astype(np.float32) for band in BANDS}
    bands["w2"][50:60, 70:80] = np.nan
    tile = Tile("t", BANDS, (200, 150), (1.0, 1.0), (1.0, 1.0), (-1e-4, 1e-4), ZERO_POINTS)
    rows = tuple(RowRange(0, pixels, bool(np.isfinite(pixels).all())) for pixels in bands.values())
    x, y = rng.uniform(-25, 175, 300), np.sort(rng.uniform(-25, 225, 300))
    settings = atlas_settings(BANDS, stretch=stretch)
    pixels = np.empty((300, 3, 37, 37), np.float32)
    cutter = Cutter(rows, tile, x, y, 37)
    cutter.cut(slice(None), pixels)
    whole = composite(pixels, ZERO_POINTS, settings)
    images, values = cut_and_composite(rows, tile, x, y, 37, settings)
    np.testing.assert_array_equal(images, whole)
    flags, valid_frac = cutter.flags_and_valid_frac()
    measures = measure_centres(pixels, *border_levels(pixels, settings.border_px), BANDS, ZERO_POINTS)
    np.testing.assert_array_equal(values.flags, flags | centre_flags(measures))
    np.testing.assert_array_equal(values.valid_frac, valid_frac)
    np.testing.assert_array_equal(values.w1_aperture, measures.w1_aperture)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sky": "mean"}, "sky = 'mean': choose border or none"),
        ({"softening_dn": (1.0,)}, "softening_dn and zero_point_mag need one number for each band"),
        ({"softening_dn": (1.0, np.inf)}, "softening_dn = (1.0, inf): must be positive and finite"),
        ({"softening_dn": (1.0, 0.0)}, "softening_dn = (1.0, 0.0): must be positive and finite"),
        ({"zero_point_mag": (20.5, 101.0)}, "zero_point_mag = (20.5, 101.0): must lie within"),
        ({"lupton_q": 0.0}, "lupton_q = 0.0: must be positive and finite"),
        ({"lupton_q": np.inf}, "lupton_q = inf: must be positive and finite"),
        ({"border_px": 0}, "border_px = 0: must be at least 1"),
        ({"percentiles": (1.0,)}, "percentiles = (1.0,): must rise within 0..100"),
        ({"percentiles": (5.0, 5.0)}, "percentiles = (5.0, 5.0): must rise within 0..100"),
        ({"percentiles": (-1.0, 5.0)}, "percentiles = (-1.0, 5.0): must rise within 0..100"),
        ({"percentiles": (1.0, 100.5)}, "percentiles = (1.0, 100.5): must rise within 0..100"),
    ],
)
def test_each_wrong_setting_is_named(changes, problem):
    fields = {"softening_dn": (1.0, 2.0), "zero_point_mag": (20.5, 19.5)}
    CompositeSettings(**fields, border_px=1, percentiles=(0.0, 100.0))
    with pytest.raises(ConfigError) as caught:
        CompositeSettings(**fields | changes)
    assert str(caught.value).startswith(f"composite: {problem}")


def test_percentile_and_lupton_of_faint_cutouts_are_not_cut_off():
    """A range of 1e-3 is stretched to the whole of 0..1, and a flat cutout stays finite."""
    ramp = np.linspace(0, 1e-3, 25, dtype=np.float32).reshape(1, 1, 5, 5)
    settings = CompositeSettings((1.0,), (20.5,), stretch="percentile", sky="none", percentiles=(0.0, 100.0))
    image = composite(ramp, (20.5,), settings)
    np.testing.assert_allclose(image.ravel(), np.linspace(0, 1, 25), atol=1e-3)
    assert composite(np.full_like(ramp, 3.0), (20.5,), settings).tolist() == np.zeros((1, 1, 5, 5)).tolist()
    lupton = CompositeSettings((1.0,), (20.5,), stretch="lupton", sky="none", lupton_q=8.0)
    faint = composite(np.full_like(ramp, 0.01), (20.5,), lupton)
    np.testing.assert_allclose(faint, 0.01 * np.arcsinh(0.08) / 0.08, rtol=1e-3)


def test_the_default_settings_are_those_of_the_atlas():
    """Zero points of the Explanatory Supplement, and a flux of one softening becomes arcsinh(1)."""
    noise = {"w1": 0.11, "w2": 0.06, "w3": 0.3, "w4": 0.03}
    settings = atlas_settings(("w4", "w1", "w2", "w3"))
    assert settings.zero_point_mag == (13.0, 20.5, 19.5, 18.0)
    pixels = np.zeros((1, 4, 9, 9), np.float32)
    pixels[0, :, 4, 4] = [noise[band] for band in ("w4", "w1", "w2", "w3")]
    image = composite(pixels, settings.zero_point_mag, settings)
    np.testing.assert_allclose(image[0, :, 4, 4], np.arcsinh(1), rtol=1e-3)
    pixels += np.random.default_rng(1).random((9, 9)).astype(np.float32)
    frame = np.ones((9, 9), bool)
    frame[3:6, 3:6] = False
    sky = np.median(pixels[0, :, frame], axis=0)
    expected = np.arcsinh((pixels[0, 1] - sky[1]) / 0.11)
    np.testing.assert_allclose(composite(pixels, settings.zero_point_mag, settings)[0, 1], expected, atol=2e-3)


def test_the_default_percentiles_and_q():
    """A ramp from 0 to 1 has the percentiles 0.005 and 0.995."""
    ramp = np.linspace(0, 1, 121, dtype=np.float32).reshape(1, 1, 11, 11)
    image = composite(ramp, (20.5,), CompositeSettings((1.0,), (20.5,), stretch="percentile", sky="none"))
    np.testing.assert_allclose(image.ravel(), np.clip((ramp.ravel() - 0.005) / 0.99, 0, 1), atol=1e-3)
    image = composite(ramp, (20.5,), CompositeSettings((1.0,), (20.5,), stretch="lupton", sky="none"))
    np.testing.assert_allclose(image.ravel()[1:], np.arcsinh(8 * ramp.ravel()[1:]) / 8, rtol=2e-3)


def test_lupton_takes_the_mean_of_the_bands_and_leaves_what_is_below_zero():
    settings = CompositeSettings((1.0, 1.0), (20.5, 20.5), stretch="lupton", sky="none", lupton_q=2.0)
    pixels = np.array([6.0, 2.0], np.float32).reshape(1, 2, 1, 1) * np.ones((1, 2, 3, 3), np.float32)
    scale = np.arcsinh(2 * 4) / (2 * 4)  # the mean is 4
    image = composite(pixels, (20.5, 20.5), settings)
    np.testing.assert_allclose(image[0, :, 1, 1], [6 * scale, 2 * scale], rtol=1e-3)
    np.testing.assert_allclose(composite(-pixels, (20.5, 20.5), settings)[0, :, 1, 1], [-6, -2], rtol=1e-3)
    opposite = pixels * np.array([1, -3.1], np.float32)[:, None, None]  # 6 and -6.2
    np.testing.assert_allclose(composite(opposite, (20.5, 20.5), settings)[0, :, 1, 1], [6, -6.2], rtol=1e-3)


@pytest.mark.parametrize("stretch", ["linear", "lupton"])
def test_what_float16_cannot_hold_becomes_its_largest_number(stretch):
    settings = CompositeSettings((1.0, 1.0), (20.5, 20.5), stretch=stretch, sky="none", lupton_q=1e-9)
    pixels = np.array([3e5, -3.1e5], np.float32).reshape(1, 2, 1, 1) * np.ones((1, 2, 3, 3), np.float32)
    assert composite(pixels, (20.5, 20.5), settings)[0, :, 1, 1].tolist() == [65504, -65504]
    linear = composite(pixels / 100, (20.5, 20.5), settings)[0, :, 1, 1]
    np.testing.assert_allclose(linear, [3000, -3100], rtol=1e-3)


def test_the_frame_may_be_the_whole_cutout_and_may_lack_one_pixel():
    """The middle of 9 pixels is 5, and without the largest 4.5. A frame of 2 leaves out one pixel of 25."""
    whole = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    assert border_sky(whole, 3).tolist() == border_sky(whole, 2).tolist() == [[5]]
    assert border_sky(whole, 1).tolist() == [[5]]
    whole[0, 0, 2, 2] = np.nan
    assert border_sky(whole, 3).tolist() == [[4.5]]
    whole[0, 0, 2, 1] = np.inf
    assert border_sky(whole, 3).tolist() == [[4]], "of the finite pixels"
    five = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    five[0, 0, 2, 2] = 1000
    five[0, 0, 4] = 50
    assert border_sky(five, 2).tolist() == [[(11 + 13) / 2]]


def test_composites_are_written_where_asked_and_do_not_change_the_cutouts():
    pixels = cutouts(3)
    before, out = pixels.copy(), np.full(pixels.shape, 7, np.float16)
    for stretch in STRETCHES:
        for sky in ("border", "none"):
            settings = atlas_settings(BANDS, stretch=stretch, sky=sky)
            assert composite(pixels, ZERO_POINTS, settings, out) is out
            np.testing.assert_array_equal(out, composite(pixels, ZERO_POINTS, settings))
            np.testing.assert_array_equal(pixels, before)


def test_a_band_without_pixels_stays_without_in_every_stretch():
    """Pixels of any value give no warning, which is an error here."""
    pixels = cutouts(2)
    pixels[0, 1] = np.nan
    pixels[1, 0, 18, 18] = 3e38
    for stretch in STRETCHES:
        images = composite(pixels, ZERO_POINTS, atlas_settings(BANDS, stretch=stretch))
        assert np.isnan(images[0, 1]).all()
        assert stretch == "lupton" or np.isfinite(images[0, ::2]).all()


@pytest.mark.parametrize(
    ("zero_point_mag", "is_accepted"), [(80.0, True), (-80.0, True), (80.5, False), (-80.5, False)]
)
def test_zero_points_lie_within_80_mag(zero_point_mag, is_accepted):
    with nullcontext() if is_accepted else pytest.raises(ConfigError, match="must lie within 80 mag of 0"):
        CompositeSettings((1.0,), (zero_point_mag,))


def test_all_wrong_settings_are_named_in_one_message():
    with pytest.raises(ConfigError) as caught:
        CompositeSettings((0.0,), (), "x", "y", 0, (1.0, 2.0, 3.0), -1.0)
    names = [problem.split(" ")[0] for problem in str(caught.value).removeprefix("composite: ").split("; ")]
    assert names == ["stretch", "sky", "softening_dn", "softening_dn", "lupton_q", "border_px", "percentiles"]
    with pytest.raises(ConfigError, match=r"unknown settings \['gamma', 'q'\]"):
        CompositeSettings.from_dict({"q": 1, "gamma": 2, "stretch": "asinh"})


def test_the_scatter_of_the_border_is_that_of_the_noise_without_its_neighbours():
    rng = np.random.default_rng(7)
    pixels = rng.normal(5, 0.3, (200, 1, 37, 37)).astype(np.float32)
    pixels[:, :, :5, :8] += 20  # a star on a tenth of the frame
    level, scatter = border_levels(pixels, 3)
    assert np.median(scatter) == pytest.approx(0.3, rel=0.1) and np.median(level) == pytest.approx(5, abs=0.08)
    pixels[0, 0, :3], pixels[1] = np.nan, np.nan
    level, scatter = border_levels(pixels, 3)
    assert scatter[0, 0] == pytest.approx(0.3, rel=0.2) and np.isnan([level[1, 0], scatter[1, 0]]).all()


def test_a_sky_that_is_known_is_not_measured_again():
    pixels, settings = cutouts(), atlas_settings(BANDS)
    sky = border_sky(pixels, 3)
    np.testing.assert_array_equal(
        composite(pixels, ZERO_POINTS, settings, sky=sky), composite(pixels, ZERO_POINTS, settings)
    )
    higher = composite(pixels, ZERO_POINTS, settings, sky=sky + 1)
    assert (higher < composite(pixels, ZERO_POINTS, settings)).all()
