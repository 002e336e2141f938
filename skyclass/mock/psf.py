"""The point spread functions of the simulated sky: sums of round gaussians, with realistic wings.

"Raw" PSFs are fitted to the radial profiles of the empirical single-exposure models `psf_model_w{1,2,3}.fits` of the
unwise_psf project. "Atlas" PSFs are fitted to the same models, smoothed until a gaussian fit to the core has the FWHM
measured on AllWISE Atlas images: 8.5, 9.4 and 11.0 arcsec. W4 is a sum of two gaussians with 12.0 and 15.5 arcsec.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from skyclass.types import PIXEL_SCALE_ARCSEC, Float32, Float64

Mixture = tuple[tuple[float, float], ...]
"""(weight, sigma in arcsec) of each gaussian. Weights are normalised on use."""

ATLAS: dict[str, Mixture] = {
    "w1": ((0.0224, 2.8), (0.6660, 3.5), (0.0997, 4.5), (0.0436, 6.0), (0.0819, 9.0), (0.0200, 14.0),
           (0.0403, 22.0), (0.0262, 40.0)),
    "w2": ((0.3713, 3.5), (0.4506, 4.5), (0.1172, 9.0), (0.0046, 14.0), (0.0301, 22.0), (0.0263, 40.0)),
    "w3": ((0.1922, 3.5), (0.4944, 6.0), (0.1227, 9.0), (0.0520, 14.0), (0.1376, 40.0)),
    "w4": ((0.85, 6.2), (0.15, 16.0)),
}  # fmt: skip
RAW: dict[str, Mixture] = {
    "w1": ((0.2631, 2.2), (0.5149, 2.8), (0.0674, 6.0), (0.0726, 9.0), (0.0820, 28.0)),
    "w2": ((0.0191, 1.7), (0.7034, 2.8), (0.0381, 3.5), (0.0783, 6.0), (0.1060, 9.0), (0.0550, 32.0)),
    "w3": ((0.2057, 2.2), (0.0548, 2.9), (0.5363, 6.0), (0.0661, 14.0), (0.1370, 40.0)),
    "w4": ((0.85, 5.1), (0.15, 14.0)),
}  # fmt: skip


def _arrays(mixture: Mixture) -> tuple[Float64, Float64]:
    """Return (weights summing to 1, sigmas in pixels)."""
    weight, sigma_arcsec = np.array(mixture, np.float64).T
    return weight / weight.sum(), sigma_arcsec / PIXEL_SCALE_ARCSEC


def transfer(mixture: Mixture, fx: Float32, fy: Float32) -> Float32:
    """Return the Fourier transform of the PSF at frequencies `fy` (rows) by `fx` (columns), in cycles per pixel."""
    out = np.zeros((len(fy), len(fx)), np.float32)
    for weight, sigma in zip(*_arrays(mixture), strict=True):
        rows, columns = (np.exp(-2 * (np.pi * sigma * f) ** 2).astype(np.float32) for f in (fy, fx))
        out += np.float32(weight) * rows[:, None] * columns[None, :]
    return out


def stamps(mixture: Mixture, dx: Float64, dy: Float64) -> Float32:
    """Return the PSF (N, S, S) at pixel offsets `dx`, `dy` (N, S) from each source. A complete PSF sums to 1."""
    out = np.zeros((*dy.shape, dx.shape[1]), np.float32)
    for weight, sigma in zip(*_arrays(mixture), strict=True):
        rows, columns = (np.exp(-0.5 * (d / sigma) ** 2).astype(np.float32) for d in (dy, dx))
        out += np.float32(weight / (2 * np.pi * sigma**2)) * rows[:, :, None] * columns[:, None, :]
    return cast(Float32, out)


def overlap(mixture: Mixture, distance_px: Float64) -> Float64:
    """Return the overlap of two PSFs at each distance in pixels: their correlation, 1 at distance 0."""
    weight, sigma = _arrays(mixture)
    variance = (sigma[:, None] ** 2 + sigma[None, :] ** 2).ravel()
    amplitude = np.outer(weight, weight).ravel() / variance
    shape = np.exp(-0.5 * np.asarray(distance_px)[..., None] ** 2 / variance) @ amplitude
    return cast(Float64, shape / amplitude.sum())
