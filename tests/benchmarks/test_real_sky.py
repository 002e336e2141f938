"""The comparison of real and simulated sources finds what differs, and nothing where nothing does."""

import numpy as np
import pytest

pytest.importorskip("photutils")
from benchmarks import real_sky
from skyclass.mock.psf import atlas_psf
from skyclass.mock.render import light_image


def _images(seed: int, noise_dn: float = 0.05, n: int = 40) -> np.ndarray:
    """Return three bands (3, 300, 300) of n stars on gaussian noise."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, 280, (2, n))
    flux = 10 ** rng.uniform(1.5, 3.5, n)
    stars = light_image(atlas_psf("w1", 1.0), (x, y, flux), (300, 300))
    return np.array([4.0 + stars + rng.normal(0, noise_dn, (300, 300)) for _ in range(3)])


@pytest.fixture(scope="module")
def detections():
    return [real_sky.detect(_images(seed)) for seed in range(4)]


def test_stars_are_detected_with_their_flux():
    point = (np.array([150.0]), np.array([120.0]), np.array([500.0]))
    image = 4.0 + light_image(atlas_psf("w1", 1.0), point, (300, 300))
    image = image + np.random.default_rng(0).normal(0, 0.02, image.shape)
    found = real_sky.detect(np.array([image] * 3))
    assert found.cutouts.shape == (1, 3, 37, 37)
    assert 0.5 * 500 < found.flux[0] < 500
    assert found.cutouts[0, 0].argmax() == 18 * 37 + 18


def test_matches_have_the_flux_of_the_real_source(detections):
    real, others = detections[0], detections[1:]
    pool = real_sky.Detections(np.concatenate([d.cutouts for d in others]), np.concatenate([d.flux for d in others]))
    chosen = pool.take(real_sky.matched_rows(real.flux, pool.flux, 1))
    assert len(chosen.flux) == len(real.flux) and len(np.unique(chosen.flux)) == len(chosen.flux)
    order = np.sort(real.flux)[::-1]
    assert np.median(np.abs(np.log(chosen.flux / order))) < 0.3


def test_statistics_are_42_numbers_with_the_noise_where_it_belongs(detections):
    quiet = real_sky.pixel_statistics(detections[0].cutouts)
    loud = real_sky.pixel_statistics(real_sky.detect(_images(0, noise_dn=0.2)).cutouts)
    assert quiet.shape[1] == 3 * len(real_sky.STATISTICS) == 42 and np.isfinite(quiet).all()
    noise = real_sky.STATISTICS.index("noise")
    assert np.median(loud[:, noise]) > 2 * np.median(quiet[:, noise])


def test_the_auc_is_a_half_for_equal_skies_and_one_for_another_noise(detections, monkeypatch):
    monkeypatch.setattr(real_sky, "N_BOOTSTRAP", 50)
    features = [real_sky.pixel_statistics(d.cutouts) for d in detections]
    auc, low, high = real_sky.auc_across([(features[0], features[1]), (features[2], features[3])])
    assert low < 0.5 < high and low <= auc <= high
    loud = [real_sky.pixel_statistics(real_sky.detect(_images(seed, noise_dn=0.1)).cutouts) for seed in (5, 6)]
    auc, low, _ = real_sky.auc_across([(loud[0], features[1]), (loud[1], features[3])])
    assert auc > 0.95 and low > 0.9


def test_star_shapes_are_those_of_the_psf():
    shapes = np.array(real_sky.star_shapes(_images(1, noise_dn=0.01, n=15)[0]))
    fwhm, ratio, angle = np.median(shapes, axis=0)
    assert fwhm == pytest.approx(8.9, abs=0.3) and ratio == pytest.approx(0.906, abs=0.02)
    assert angle == pytest.approx(np.degrees(1.0) - 31, abs=4)


def test_boxes_do_not_overlap_and_lie_near_the_corner():
    rows, columns = np.mgrid[:2000, :2000]
    tile = np.array([rows, columns, rows * 2000 + columns])
    parts = real_sky.boxes(tile, (144, 261), (0, 900))
    assert len(parts) == 4 * 4 and all(part.shape == (3, 144, 261) for part in parts)
    pixels = np.concatenate([part[2].ravel() for part in parts])
    assert len(np.unique(pixels)) == len(pixels)
    assert max(part[0].min() for part in parts) <= 500 and min(part[1].min() for part in parts) == 400
    assert max(part[1].max() for part in parts[:8]) < min(part[1].min() for part in parts[8:])


def test_a_box_is_compared_with_the_sources_of_the_other_boxes():
    pool = real_sky.Pool(np.arange(60.0)[:, None], np.tile(10.0 ** np.arange(2, 12), 6), np.repeat(np.arange(6), 10))
    features, others = pool.pair(np.arange(10, 20))
    assert features.ravel().tolist() == list(range(10, 20))
    assert sorted(others.ravel().tolist()) == [*range(10), *range(20, 60)]


def test_aucs_of_equal_boxes_scatter_around_a_half():
    rng = np.random.default_rng(1)
    pools = [
        real_sky.Pool(rng.normal(size=(240, 3)), rng.uniform(1, 2, 240), np.repeat(np.arange(8), 30)) for _ in "ab"
    ]
    aucs = real_sky.null_aucs(pools)
    assert len(aucs) == 8 and min(aucs) < 0.5 < max(aucs) and abs(np.mean(aucs) - 0.5) < 0.1
