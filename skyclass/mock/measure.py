"""Photometry measured on the pixels, like that of AllWISE, with blends, confusion and errors of the sky level.

It is a matched filter at the position of the catalogue on a local sky. Sources that the extractor separates are fitted
together. As in AllWISE, the stated error has the noise of the pixels but no confusion by unresolved sources. The noise
of the detection, measured at random positions of the tile, has both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from skyclass.types import Float32, Float64

from .conditions import BandSky, ScanProfile, cross_scan_px, scan_profile, stated_flux_sigma
from .grid import ZERO_POINT_MAG
from .psf import Psf, atlas_psf
from .render import SATURATION_MAG, light_image

HALF_PX = 8
CHUNK = 8192
NOISE_POINTS = 4000
SKY_RADII_PX = (28.0, 40.0)
SKY_ANGLES = 26
REACH_PX = 22.0
"""Sources more than 30 arcsec apart are fitted independently; the second round fits the residuals."""
MODEL_ERROR = 0.022
"""Relative flux error that does not decrease with the S/N (the smallest real `w1sigmpro` is 0.021)."""
UPPER_LIMIT_SNR = 2.0


@dataclass(frozen=True)
class Photometry:
    """One band of N sources: flux, its sigma and the local sky in DN, S/N, reduced chi-square, Vega mag.

    `saturated` is the share of saturated pixels. `mag` is a 95 % upper limit and `mag_error` NaN where the
    S/N is below 2; all are NaN where there is no pixel. `detection_snr` includes the confusion, `snr` does not.
    """

    flux: Float64
    sigma: Float64
    sky: Float64
    snr: Float64
    chi2: Float64
    mag: Float64
    mag_error: Float64
    saturated: Float64
    detection_snr: Float64


def _gather(image: Float32, ix: np.ndarray, iy: np.ndarray) -> Float32:
    """Return pixels at 0-based columns and rows, NaN outside the image."""
    rows, columns = image.shape
    inside = (ix >= 0) & (iy >= 0) & (ix < columns) & (iy < rows)
    pixels = image[iy.clip(0, rows - 1), ix.clip(0, columns - 1)]
    return np.where(inside, pixels, np.float32(np.nan))


def _local_sky(image: Float32, x: Float64, y: Float64) -> Float64:
    """Return the median of two rings at 38 and 55 arcsec, or that of the image where the rings are empty."""
    angle = 2 * np.pi * np.arange(SKY_ANGLES) / SKY_ANGLES
    dx = np.concatenate([r * np.cos(angle) for r in SKY_RADII_PX])
    dy = np.concatenate([r * np.sin(angle) for r in SKY_RADII_PX])
    ix, iy = (np.rint(p[:, None] + d).astype(np.int64) for p, d in ((x, dx), (y, dy)))
    ring = _gather(image, ix, iy)
    empty = np.isnan(ring).all(1)
    if empty.any():
        ring[empty] = np.nanmedian(image)
    return cast(Float64, np.nanmedian(ring, axis=1).astype(np.float64))


def _fit(image: Float32, psf: Psf, x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Return (flux, sky) in DN of a batch at 0-based pixels, each fitted alone. The flux is NaN without a pixel."""
    data, model = _stamps(image, psf, x, y)
    sky = _local_sky(image, x, y)
    usable = np.isfinite(data)
    excess = np.where(usable, data - sky[:, None, None].astype(np.float32), 0)
    weight = np.where(usable, model, 0)
    power = (weight.astype(np.float64) ** 2).sum((1, 2))
    flux = (weight * excess).sum((1, 2), dtype=np.float64) / np.maximum(power, 1e-30)
    return np.where(power > 1e-6, flux, np.nan), sky


def _stamps(image: Float32, psf: Psf, x: Float64, y: Float64) -> tuple[Float32, Float32]:
    """Return (N, 17, 17) pixels around each source, NaN where there are none, and the PSF at these pixels."""
    offset = np.arange(-HALF_PX, HALF_PX + 1)
    ix, iy = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    data = _gather(image, (ix[:, None] + offset)[:, None, :], (iy[:, None] + offset)[:, :, None])
    return data, psf.stamps(offset + (ix - x)[:, None], offset + (iy - y)[:, None])


def _chi2(residual: Float32, psf: Psf, sigma_px: float, x: Float64, y: Float64, flux: Float64, sky: Float64) -> Float64:
    """Return the reduced chi-square of the fit of each source, from the residuals within 6 pixels."""
    data, shape = _stamps(residual, psf, x, y)
    offset = np.arange(-HALF_PX, HALF_PX + 1)
    near = np.isfinite(data) & (np.hypot(offset[:, None], offset[None, :]) <= 6)
    model = np.nan_to_num(flux)[:, None, None].astype(np.float32) * shape
    terms = (data - sky[:, None, None].astype(np.float32)) ** 2 / (sigma_px**2 + (MODEL_ERROR * model) ** 2)
    return cast(Float64, np.where(near, terms, 0).sum((1, 2)) / np.maximum(near.sum((1, 2)), 1))


def _in_chunks(function: Callable[..., Any], *columns: Float64) -> Any:
    """Return the result of a function of columns for all rows, computed in chunks that bound the memory."""
    n = len(columns[0])
    chunks = [function(*(c[i : i + CHUNK] for c in columns)) for i in range(0, max(n, 1), CHUNK)]
    if isinstance(chunks[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return np.concatenate(chunks)


def lower_scatter(values: Float64 | Float32) -> float:
    """Return the median minus the 16th percentile, a sigma that bright sources do not increase."""
    low, middle = np.nanpercentile(values, [15.865, 50.0])
    return float(middle - low)


def image_scatter(image: Float32) -> float:
    """Return the robust spatial sigma of an image in DN, from a regular sample of its pixels."""
    step = max(1, int(np.sqrt(image.size / 250_000)))
    return lower_scatter(image[::step, ::step])


def _saturated_share(mag: Float64, band: str) -> Float64:
    """Return the share of saturated pixels of a source of this magnitude (assumed)."""
    return np.clip(0.05 * (SATURATION_MAG[band] + 0.1 - mag), 0, 0.3)


def _shares(psf: Psf, x: Float64, y: Float64) -> csr_array:
    """Return the sparse (N, N) share of the flux of other sources in the filter of a source, 0 for itself."""
    tree = cKDTree(np.column_stack(psf.round(x, y)))
    pairs = tree.sparse_distance_matrix(tree, REACH_PX, output_type="ndarray")
    # cKDTree returns no fixed order. Sort the pairs, so that sums always round in the same way.
    pairs = np.sort(pairs[pairs["v"] > 0], order=["i", "j"])
    return csr_array((psf.overlap(pairs["v"]), (pairs["i"], pairs["j"])), (len(x), len(x)))


def _fit_together(shares: csr_array, alone: Float64) -> Float64:
    """Return the fluxes of sources fitted together, from the fluxes of separate fits. NaN stays NaN."""
    usable = np.isfinite(alone)
    weight = usable.astype(np.float64)
    coupled = shares.multiply(weight[:, None]).multiply(weight[None, :]).tocsr()
    identity = csr_array((np.ones(len(alone)), (np.arange(len(alone)), np.arange(len(alone)))), shares.shape)
    solved, _ = cg(identity + coupled, np.where(usable, alone, 0.0), rtol=1e-5, maxiter=200)
    return np.where(usable, solved, np.nan)


def photometry(image: Float32, sky: BandSky, x: Float64, y: Float64) -> Photometry:
    """Return the measured photometry of all fitted sources at 0-based pixels of one band.

    The first round fits all sources. The second fits the residual image, with its sky level.
    """
    psf, shape = atlas_psf(sky.band, sky.scan_rad), cast(tuple[int, int], image.shape)
    shares = _shares(psf, x, y)
    flux = _fit_together(shares, _in_chunks(partial(_fit, image, psf), x, y)[0])
    residual = image - light_image(psf, (x, y, np.nan_to_num(flux)), shape)
    change, local_sky = _in_chunks(partial(_fit, residual, psf), x, y)
    flux = flux + _fit_together(shares, change)
    sigma_px = image_scatter(residual)
    chi2 = _in_chunks(partial(_chi2, residual, psf, sigma_px), x, y, flux, local_sky)
    relative = _relative_noise(sky, scan_profile(sky), shape, shares, x, y)
    stated, detection = (
        np.hypot(noise * relative, MODEL_ERROR * flux)
        for noise in (stated_flux_sigma(sky), _blank_scatter(residual, sky, psf))
    )
    return _magnitudes(sky.band, flux, stated, detection, local_sky, chi2)


def _relative_noise(
    sky: BandSky, profile: ScanProfile, shape: tuple[int, int], shares: csr_array, x: Float64, y: Float64
) -> Float64:
    """Return the noise of each source relative to an isolated source at the median coverage."""
    # The noise of overlapping sources is correlated: this is the variance of a fit of the closest pair.
    closest = np.zeros(len(x))
    np.maximum.at(closest, np.repeat(np.arange(len(x)), np.diff(shares.indptr)), shares.data)
    coverage = profile.at(cross_scan_px(sky, shape, y, x))[0]
    return 1 / np.sqrt(coverage * (1 - closest**2))


def _blank_scatter(residual: Float32, sky: BandSky, psf: Psf) -> float:
    """Return the scatter of the flux of the filter (DN) at random positions of the residual image."""
    rng = np.random.default_rng([*sky.seed, 4])
    # Keep away from the border, so that the edge of small tiles does not count.
    margin = min(50, min(residual.shape) // 4)
    x = rng.uniform(margin, residual.shape[1] - margin, NOISE_POINTS)
    y = rng.uniform(margin, residual.shape[0] - margin, NOISE_POINTS)
    return lower_scatter(_fit(residual, psf, x, y)[0])


def _magnitudes(
    band: str, flux: Float64, sigma: Float64, detection_sigma: Float64, local_sky: Float64, chi2: Float64
) -> Photometry:
    """Return photometry with magnitudes, or upper limits where the S/N is below 2."""
    snr = flux / sigma
    limit = ~(snr >= UPPER_LIMIT_SNR)
    # 95 % upper limit: the flux, if positive, plus two sigma (AllWISE Explanatory Supplement II.2).
    reported = np.where(limit, np.maximum(flux, 0) + 2 * sigma, flux)
    mag = ZERO_POINT_MAG[band] - 2.5 * np.log10(reported)
    error = np.where(limit, np.nan, 1.0857 / np.where(limit, 1.0, snr))
    saturated = _saturated_share(mag, band)
    return Photometry(flux, sigma, local_sky, snr, chi2, mag, error, saturated, flux / detection_sigma)
