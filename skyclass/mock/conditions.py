"""The conditions of a simulated tile: sky level, coverage and noise, drawn from the seed and the tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from skyclass.types import BANDS, Float64, Tile

from .grid import FULL_SIZE_PX

SKY_DN = {"w1": (2.0, 4.0), "w2": (5.0, 10.0), "w3": (370.0, 530.0), "w4": (115.0, 165.0)}
COVERAGE = {"w1": (26.0, 52.0), "w2": (26.0, 52.0), "w3": (14.0, 27.0), "w4": (13.0, 26.0)}
REFERENCE = {"w1": (0.0351, 50.3), "w2": (0.0399, 50.4), "w3": (0.2896, 25.9), "w4": (0.0311, 25.8)}
"""Sigma per pixel (DN) at a coverage: median uncertainty of tile 0098p408_ac51."""
REFERENCE_SKY_DN = {"w3": 406.27, "w4": 121.71}
FLUX_SIGMA = {"w1": (68.0, 4.0, 0.36), "w2": (78.0, 3.1, 0.32), "w3": (150.0, 18.0, 2.5)}
"""Flux error of the matched filter: noise in units of `sigma` per pixel, confusion by unresolved sources (DN), and
residuals of fitted sources (DN for a thousand per square degree). Measured on simulated tiles; used only to plan."""


@dataclass(frozen=True)
class BandSky:
    """One band of one tile: median sky, gradient and sigma per pixel in DN, coverage in frames.

    `gradient` is the tilt along x and y across a full tile, and the amplitude and phase of a slow wave.
    """

    band: str
    sky: float
    gradient: tuple[float, float, float, float]
    coverage: float
    sigma: float
    seed: tuple[int, ...]


def band_sky(seed: int, tile: Tile, band: str) -> BandSky:
    """Return the conditions of a tile in a band. They depend only on the seed and the name of the tile."""
    name = int(tile.coadd_id[:4]) * 10_000 + int(tile.coadd_id[5:8]) * 10 + (tile.coadd_id[4] == "p")
    key = (seed, 300, name, BANDS.index(band))
    shared = np.random.default_rng([seed, 301, name]).random(2)
    rng = np.random.default_rng(key)
    low, high = SKY_DN[band]
    # Zodiacal light sets the sky level of all bands, and the scan pattern their coverage, so both are correlated.
    sky = low + (high - low) * float(0.8 * shared[0] + 0.2 * rng.random())
    coverage = COVERAGE[band][0] + (COVERAGE[band][1] - COVERAGE[band][0]) * float(shared[1])
    sigma, at_coverage = REFERENCE[band]
    sigma *= np.sqrt(at_coverage / coverage * sky / REFERENCE_SKY_DN.get(band, sky))
    tilt = 0.03 if band in ("w1", "w2") else 0.008
    gradient = tuple(float(g) for g in tilt * sky * rng.uniform(-1, 1, 3)) + (float(rng.uniform(0, 6.28)),)
    return BandSky(band, sky, cast(tuple[float, float, float, float], gradient), coverage, float(sigma), key)


def coverage_axes(sky: BandSky, shape: tuple[int, int], y: Float64, x: Float64) -> tuple[Float64, Float64]:
    """Return (rows, columns): coverage at 0-based pixels is `sky.coverage * (1 + rows + columns)`, in frames.

    The variation is slow waves of twelve per cent on the scale of a full tile.
    """
    rng = np.random.default_rng([*sky.seed, 1])
    p = rng.uniform(0, 2 * np.pi, 4)
    y, x = (2 * np.pi * (a - n / 2) / FULL_SIZE_PX for a, n in zip((y, x), shape, strict=True))
    rows = 0.06 * np.cos(y + p[0]) + 0.03 * np.cos(5 * y + p[1])
    columns = 0.06 * np.cos(x + p[2]) + 0.05 * np.cos(7 * x + p[3])
    return rows, columns


def expected_flux_sigma(seed: int, tile: Tile, band: str, crowd_per_deg2: float) -> float:
    """Return an estimate of the flux error (DN) of a faint source, without rendering the tile."""
    pixels, confusion, crowding = FLUX_SIGMA[band]
    noise = pixels * band_sky(seed, tile, band).sigma
    return float(np.sqrt(noise**2 + confusion**2 + (crowding * crowd_per_deg2 / 1000) ** 2))
