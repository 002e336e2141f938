"""The conditions of a simulated tile: sky level, coverage, noise and scan direction, from its position and the seed.

The numbers are fitted to the headers of four real tiles (`MEDINT`, `MEDCOV`, `ROBSIG` / `PIXCHIS1`): 1210p015 (ecliptic
latitude -18.5 degrees), 1954p287 (32.3), 0098p408 (33.3) and, in W1, 2279p454 (59.4). Numbers without a source are
assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from scipy.ndimage import gaussian_filter1d

from skyclass.types import BANDS, Float32, FloatArray, Tile

from .grid import FULL_SIZE_PX

ECLIPTIC_SKY_DN = {"w1": 4.95, "w2": 12.7, "w3": 707.0, "w4": 194.0}
"""Sky level on the ecliptic: zodiacal light."""
POLAR_SHARE = {"w1": 0.30, "w2": 0.45, "w3": 0.45, "w4": 0.45}
ZODIACAL_SCALE_DEG = 30.0
"""The sky level falls from that on the ecliptic to `POLAR_SHARE` of it, by 1/e on this scale."""
SKY_SCATTER = 0.02
"""Assumed relative scatter between tiles of one latitude: the season of the scans."""

FRAMES_PER_PASS = 13.0
"""Exposures of one six-month pass on the ecliptic. Their number grows as 1 / cos(latitude) towards the poles."""
PASSES = {"w1": 2.0, "w2": 2.0, "w3": 1.12, "w4": 1.12}
"""W3 and W4 stopped after the first pass, when the coolant was used up."""
MAX_COVERAGE_FACTOR = 12.0
THIRD_PASS_SHARE = 0.25
"""Share of tiles with a third pass in W1 and W2."""
SIGMA_ONE_FRAME = {"w1": 0.230, "w2": 0.265, "w3": 0.0718, "w4": 0.0143}
"""Noise per pixel in DN at a coverage of 1. In W3 and W4 it is multiplied by the root of the sky level."""
STRIP_WIDTH_PX = 170.0
"""Orbits advance by about 4 arcmin on the ecliptic, so the coverage changes in strips of this width."""
STRIP_SCATTER = 0.05
SEAM_SHARE, SEAM_FACTOR = 0.15, 1.5
"""Share of tiles with a seam of the survey, and the factor of coverage on one side of it."""
MOON_SHARE, MOON_SCALE_PX = 0.06, 900.0
MOON_GLOW = {"w1": 0.02, "w2": 0.02, "w3": 0.03, "w4": 0.03}
"""Share of tiles with the edge of a Moon mask, its scale, and the largest glow relative to the sky."""
STRIPE_DN = {"w1": 0.004, "w2": 0.004, "w3": 0.06, "w4": 0.006}
STRIPE_WIDTH_PX = 5.0
"""Scatter and width of stripes along the scans, which the levels of single exposures leave."""

STATED_PER_PIXEL = {"w1": 55.0, "w2": 68.0, "w3": 103.0}
"""Stated flux error over noise per pixel: median of the 319 sources around Arp 220 (2.16, 3.01 and 35.7 DN)."""
CONFUSION_DN = {"w1": 6.0, "w2": 4.0, "w3": 18.0}
"""Flux error by unresolved sources (assumed). It is used only to plan a sky."""


@dataclass(frozen=True)
class BandSky:
    """One band of one tile: median sky, gradient and sigma per pixel in DN, coverage in frames.

    `gradient` is the tilt along x and y across a full tile, and the amplitude and phase of a slow wave. `scan_rad` is
    the direction of the scans from +x towards +y, `moon_dn` the glow at the edge of a Moon mask.
    """

    band: str
    sky: float
    gradient: tuple[float, float, float, float]
    coverage: float
    sigma: float
    scan_rad: float
    moon_dn: float
    seed: tuple[int, ...]


@dataclass(frozen=True)
class ScanProfile:
    """What changes across the scans of a band: relative `coverage` and `light_dn`, from `first_px` in steps of 1 px."""

    first_px: float
    coverage: Float32
    light_dn: Float32

    def at(self, cross_scan_px: FloatArray) -> tuple[Float32, Float32]:
        """Return relative coverage and additional light in DN at cross-scan positions."""
        index = (cross_scan_px - self.first_px).astype(np.int32).clip(0, len(self.coverage) - 1)
        return self.coverage[index], self.light_dn[index]


def _tile_number(tile: Tile) -> int:
    return int(tile.coadd_id[:4]) * 10_000 + int(tile.coadd_id[5:8]) * 10 + (tile.coadd_id[4] == "p")


@lru_cache(1024)
def ecliptic_frame(ra: float, dec: float) -> tuple[float, float]:
    """Return the ecliptic latitude (degrees) of a position and the direction of its scans from +x towards +y (radians).

    WISE scans along circles of ecliptic longitude. In an image with north up and east left, a position angle `pa` is
    the direction 90 degrees + pa from +x.
    """
    position = SkyCoord(ra, dec, unit="deg")
    ecliptic = position.barycentricmeanecliptic
    north = SkyCoord(ecliptic.lon, ecliptic.lat + 0.01 * u.deg, frame="barycentricmeanecliptic").icrs
    angle = np.pi / 2 + position.position_angle(north).rad
    return float(ecliptic.lat.deg), float(angle % (2 * np.pi))


def zodiacal_sky_dn(band: str, latitude_deg: float) -> float:
    """Return the mean sky level in DN at an ecliptic latitude.

    Examples
    --------
    >>> round(zodiacal_sky_dn("w3", -18.5))  # MEDINT of tile 1210p015_ac51 is 526.5
    528
    """
    polar = POLAR_SHARE[band]
    return ECLIPTIC_SKY_DN[band] * (polar + (1 - polar) * float(np.exp(-abs(latitude_deg) / ZODIACAL_SCALE_DEG)))


def expected_coverage(band: str, latitude_deg: float) -> float:
    """Return the mean number of exposures of a pixel at an ecliptic latitude.

    Examples
    --------
    >>> round(expected_coverage("w1", -18.5))  # MEDCOV of tile 1210p015_ac51 is 27.6
    27
    """
    factor = min(1 / max(np.cos(np.radians(latitude_deg)), 1e-6), MAX_COVERAGE_FACTOR)
    return float(FRAMES_PER_PASS * PASSES[band] * factor)


def band_sky(seed: int, tile: Tile, band: str) -> BandSky:
    """Return the conditions of a tile in a band. They depend only on the seed and on the position of the tile."""
    name = _tile_number(tile)
    key = (seed, 300, name, BANDS.index(band))
    # The season of the scans sets sky and coverage of all bands, so the bands are correlated.
    shared = np.random.default_rng([seed, 301, name])
    season, third_pass, moon, moon_depth = shared.standard_normal(), *shared.random(3)
    rng = np.random.default_rng(key)
    latitude_deg, scan_rad = ecliptic_frame(*tile.crval_deg)
    sky = zodiacal_sky_dn(band, latitude_deg) * float(1 + SKY_SCATTER * np.clip(season + 0.3 * rng.normal(), -2, 2))
    coverage = expected_coverage(band, latitude_deg) * float(1 + 0.05 * rng.uniform(-1, 1))
    if band in ("w1", "w2") and third_pass < THIRD_PASS_SHARE:
        coverage *= 1.5
    sigma = SIGMA_ONE_FRAME[band] / np.sqrt(coverage)
    if band in ("w3", "w4"):
        sigma *= np.sqrt(sky)
    moon_dn = MOON_GLOW[band] * sky * float(moon_depth) if moon < MOON_SHARE else 0.0
    tilt = 0.03 if band in ("w1", "w2") else 0.008
    gradient = tuple(float(g) for g in tilt * sky * rng.uniform(-1, 1, 3)) + (float(rng.uniform(0, 6.28)),)
    return BandSky(
        band, sky, cast(tuple[float, float, float, float], gradient), coverage, float(sigma), scan_rad, moon_dn, key
    )


def cross_scan_px(sky: BandSky, shape: tuple[int, int], y: FloatArray, x: FloatArray) -> FloatArray:
    """Return the distance in pixels, across the scans, of 0-based pixels from the centre of an image."""
    cos, sin = np.cos(sky.scan_rad), np.sin(sky.scan_rad)
    return cast(FloatArray, cos * (y - shape[0] / 2) - sin * (x - shape[1] / 2))


def scan_profile(sky: BandSky) -> ScanProfile:
    """Return what changes across the scans of a tile: strips of coverage, seams, stripes, and glow of the Moon."""
    n = int(1.5 * FULL_SIZE_PX)
    across = np.arange(n) - n / 2
    # W1 and W2 are exposed together, and so are W3 and W4: each pair has the same strips.
    pair = np.random.default_rng([*sky.seed[:3], BANDS.index(sky.band) // 2, 1])
    width_px = STRIP_WIDTH_PX * pair.uniform(0.8, 1.2)
    levels = 1 + STRIP_SCATTER * pair.standard_normal(int(n / width_px) + 2).clip(-2.5, 2.5)
    coverage = levels[(np.arange(n) / width_px).astype(np.int64)]
    seam_px, has_seam = pair.uniform(-0.3, 0.3) * FULL_SIZE_PX, pair.random() < SEAM_SHARE
    if has_seam:
        coverage = coverage * np.where(across > seam_px, SEAM_FACTOR, 1.0)
    rng = np.random.default_rng([*sky.seed, 1])
    stripes = gaussian_filter1d(rng.standard_normal(n), STRIPE_WIDTH_PX)
    light = STRIPE_DN[sky.band] * stripes / stripes.std()
    light += sky.moon_dn * np.exp(-(across + FULL_SIZE_PX / 2).clip(0) / MOON_SCALE_PX)
    coverage /= np.median(coverage)
    return ScanProfile(-n / 2, coverage.astype(np.float32), light.astype(np.float32))


def stated_flux_sigma(sky: BandSky) -> float:
    """Return the flux error in DN that the catalogue states for a faint source. As in AllWISE, it has no confusion."""
    return STATED_PER_PIXEL[sky.band] * sky.sigma


def expected_flux_sigma(seed: int, tile: Tile, band: str) -> tuple[float, float]:
    """Return estimates of the flux errors (DN) of a faint source, stated and with confusion, without rendering."""
    stated = stated_flux_sigma(band_sky(seed, tile, band))
    return stated, float(np.hypot(stated, CONFUSION_DN[band]))
