"""Photometry as the archive has it: measured on the pixels, so blends, confusion and sky errors are in it.

A matched filter at the catalogue's position, on a local sky; the noise of the filter is measured on the tile
itself, at random places, and so holds what the unresolved sources add to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from skyclass.types import Float32, Float64

from .grid import ZERO_POINT_MAG
from .psf import ATLAS, stamps
from .render import SATURATION_MAG, BandSky, coverage_axes

HALF_PX = 8
CHUNK = 8192
NOISE_POINTS = 4000
SKY_RADII_PX = (26.0, 34.0, 42.0)
SKY_ANGLES = 32
MODEL_ERROR = 0.022
"""Flux error that does not average out: no real source has a smaller relative error (`w1sigmpro` >= 0.021)."""
UPPER_LIMIT_SNR = 2.0


@dataclass(frozen=True)
class Photometry:
    """One band of N sources: flux, sigma and local sky (DN), S/N, reduced chi-square, mag and its error, saturated share.

    `mag` is a 95 % upper limit and `mag_error` NaN where the S/N is below 2; all NaN where there is no pixel.
    """

    flux: Float64
    sigma: Float64
    sky: Float64
    snr: Float64
    chi2: Float64
    mag: Float64
    mag_error: Float64
    saturated: Float64


def _gather(image: Float32, ix: np.ndarray, iy: np.ndarray) -> Float32:
    """Return pixels at 0-based columns and rows, NaN outside the image."""
    rows, columns = image.shape
    inside = (ix >= 0) & (iy >= 0) & (ix < columns) & (iy < rows)
    found = image[iy.clip(0, rows - 1), ix.clip(0, columns - 1)]
    return np.where(inside, found, np.float32(np.nan))


def _local_sky(image: Float32, x: Float64, y: Float64) -> Float64:
    """Return the median of three rings, 36 to 58 arcsec away; the image's median where those are empty."""
    angle = 2 * np.pi * np.arange(SKY_ANGLES) / SKY_ANGLES
    dx = np.concatenate([r * np.cos(angle) for r in SKY_RADII_PX])
    dy = np.concatenate([r * np.sin(angle) for r in SKY_RADII_PX])
    ring = _gather(image, np.rint(x[:, None] + dx).astype(np.int64), np.rint(y[:, None] + dy).astype(np.int64))
    ring[np.isnan(ring).all(1)] = np.nanmedian(image)
    return cast(Float64, np.nanmedian(ring, axis=1).astype(np.float64))


def _fit(image: Float32, band: str, x: Float64, y: Float64, sigma_px: float) -> tuple[Float64, Float64, Float64]:
    """Return (flux, sky, reduced chi-square) of a batch at 0-based pixels; flux NaN where no pixel is left."""
    offset = np.arange(-HALF_PX, HALF_PX + 1)
    ix, iy = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    data = _gather(image, (ix[:, None] + offset)[:, None, :], (iy[:, None] + offset)[:, :, None])
    sky = _local_sky(image, x, y)
    psf = stamps(ATLAS[band], offset + (ix - x)[:, None], offset + (iy - y)[:, None])
    usable = np.isfinite(data)
    excess = np.where(usable, data - sky[:, None, None].astype(np.float32), 0)
    weight = np.where(usable, psf, 0)
    power = (weight.astype(np.float64) ** 2).sum((1, 2))
    flux = np.where(power > 0, (weight * excess).sum((1, 2), dtype=np.float64) / np.maximum(power, 1e-30), np.nan)
    model = flux[:, None, None].astype(np.float32) * weight
    near = usable & (np.hypot(offset[:, None], offset[None, :]) <= 6)
    terms = (excess - model) ** 2 / (sigma_px**2 + (MODEL_ERROR * model) ** 2)
    chi2 = np.where(near, terms, 0).sum((1, 2)) / np.maximum(near.sum((1, 2)), 1)
    return flux, sky, chi2


def _fit_all(image: Float32, band: str, x: Float64, y: Float64, sigma_px: float) -> tuple[Float64, Float64, Float64]:
    """Return `_fit` of all sources, in chunks that bound the memory."""
    lots = [
        _fit(image, band, x[i : i + CHUNK], y[i : i + CHUNK], sigma_px) for i in range(0, max(len(x), 1), CHUNK)
    ]
    return tuple(np.concatenate(c) for c in zip(*lots, strict=True))  # type: ignore[return-value]


def lower_scatter(values: Float64 | Float32) -> float:
    """Return the median less the 16th percentile: a sigma that bright sources do not raise."""
    low, middle = np.nanpercentile(values, [15.865, 50.0])
    return float(middle - low)


def image_scatter(image: Float32) -> float:
    """Return the robust spatial sigma of an image in DN, from a regular sample of its pixels less their local trend."""
    step = max(1, int(np.sqrt(image.size / 250_000)))
    return lower_scatter(image[::step, ::step])


def _saturated_share(mag: Float64, band: str) -> Float64:
    """Return the share of saturated pixels of a source of this magnitude (assumed)."""
    return np.clip(0.05 * (SATURATION_MAG[band] + 0.1 - mag), 0, 0.3)


def photometry(image: Float32, sky: BandSky, x: Float64, y: Float64) -> Photometry:
    """Return the measured photometry of sources at 0-based pixels of one band."""
    rng = np.random.default_rng([*sky.seed, 4])
    # Away from the border, so that small tiles do not measure their own edge.
    margin = min(50, min(image.shape) // 4)
    blank_x = rng.uniform(margin, image.shape[1] - margin, NOISE_POINTS)
    blank_y = rng.uniform(margin, image.shape[0] - margin, NOISE_POINTS)
    sigma_px = image_scatter(image)
    noise = lower_scatter(_fit_all(image, sky.band, blank_x, blank_y, sigma_px)[0])
    flux, local_sky, chi2 = _fit_all(image, sky.band, x, y, sigma_px)
    rows, columns = coverage_axes(sky, image.shape, y, x)  # type: ignore[arg-type]
    sigma = np.hypot(noise / np.sqrt(1 + rows + columns), MODEL_ERROR * flux)
    snr = flux / sigma
    limit = ~(snr >= UPPER_LIMIT_SNR)
    # 95 % upper limit: the flux, if positive, plus two sigma (AllWISE Explanatory Supplement II.2).
    reported = np.where(limit, np.maximum(flux, 0) + 2 * sigma, flux)
    mag = ZERO_POINT_MAG[sky.band] - 2.5 * np.log10(reported)
    error = np.where(limit, np.nan, 1.0857 / np.where(limit, 1.0, snr))
    return Photometry(flux, sigma, local_sky, snr, chi2, mag, error, _saturated_share(mag, sky.band))
