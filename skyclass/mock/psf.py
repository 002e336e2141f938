"""The point spread functions of the simulated sky: sums of elliptical gaussians, with realistic wings.

"Raw" PSFs are fitted to the radial profiles of the empirical single-exposure models `psf_model_w{1,2,3}.fits` of the
unwise_psf project. "Atlas" PSFs are fitted to the same models, smoothed until a gaussian fit to the core has the FWHM
measured on AllWISE Atlas images: 8.5, 9.4 and 11.0 arcsec. W4 is a sum of two gaussians with 12.0 and 15.5 arcsec.

Stars of two real fields (`2010H` and `2010ai`, 20 in W1 and 14 in W2) have the axis ratios of `AXIS_RATIO` and the
angles of `ANGLE_FROM_SCAN_DEG`. The widths above are geometric means of both axes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from skyclass.types import PIXEL_SCALE_ARCSEC, Float32, Float64, FloatArray

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


AXIS_RATIO = {"w1": 0.906, "w2": 0.910, "w3": 0.95, "w4": 1.0}
"""Minor over major axis. W3 and W4 are assumed: the real fields have no star that is bright enough."""
ANGLE_FROM_SCAN_DEG = {"w1": -31.0, "w2": -21.0, "w3": -21.0, "w4": 0.0}
"""Angle from the scan direction to the major axis, from +x towards +y of the image."""
TABLE_STEP_PX2 = 0.25
TABLE_LENGTH = 4000
"""Tables of a radial profile: 4,000 steps of 0.25 square pixels reach 31 px."""


@dataclass(frozen=True)
class Psf:
    """A PSF: gaussians of equal axis ratio, whose major axis is at `angle_rad` from +x towards +y of the image.

    Examples
    --------
    >>> psf = Psf(ATLAS["w1"], axis_ratio=0.9, angle_rad=0.0)
    >>> x, y = psf.round(np.array([3.0, 0.0]), np.array([0.0, 3.0]))
    >>> bool(np.hypot(x, y)[0] < np.hypot(x, y)[1])
    True
    """

    mixture: Mixture
    axis_ratio: float = 1.0
    angle_rad: float = 0.0

    def scaled(self, factor: float) -> Psf:
        """Return the PSF with all widths multiplied by a factor."""
        return replace(self, mixture=tuple((weight, factor * sigma) for weight, sigma in self.mixture))

    def round(self, dx: Float64, dy: Float64) -> tuple[Float64, Float64]:
        """Return offsets in coordinates of equal area in which the PSF is round."""
        return self._stretched(dx, dy, float(np.sqrt(self.axis_ratio)))

    def _stretched(self, dx: Float64, dy: Float64, factor: float) -> tuple[Float64, Float64]:
        """Return offsets along the major axis times `factor` and along the minor axis divided by it."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return factor * (cos * dx + sin * dy), (cos * dy - sin * dx) / factor

    def transfer(self, fx: Float32, fy: Float32) -> Float32:
        """Return the Fourier transform of the PSF at frequencies `fy` (rows) by `fx` (columns), in cycles per pixel."""
        cos, sin, q = np.cos(self.angle_rad), np.sin(self.angle_rad), self.axis_ratio
        # The squared frequency in round coordinates is a quadratic form. Its two pure terms are separable.
        xx, yy, xy = cos**2 / q + sin**2 * q, sin**2 / q + cos**2 * q, 2 * cos * sin * (1 / q - q)
        cross = (xy * fy)[:, None] * fx[None, :]
        out = np.zeros((len(fy), len(fx)), np.float32)
        for weight, sigma in zip(*_arrays(self.mixture), strict=True):
            scale = -2 * (np.pi * sigma) ** 2
            rows, columns = (np.exp(scale * form * f**2).astype(np.float32) for form, f in ((yy, fy), (xx, fx)))
            part = rows[:, None] * columns[None, :]
            if xy:
                # Beyond this exponent the separable terms are 0, and the cross term must not overflow.
                part *= np.exp(np.clip(np.float32(scale) * cross, -80, 80))
            out += np.float32(weight) * part
        return out

    def stamps(self, dx: Float64, dy: Float64) -> Float32:
        """Return the PSF (N, S, S) at pixel offsets `dx`, `dy` (N, S) from each source. A complete PSF sums to 1."""
        x, y = self.round(dx[:, None, :], dy[:, :, None])
        steps = ((x * x + y * y) / TABLE_STEP_PX2).astype(np.float32)
        index = steps.astype(np.int32).clip(0, TABLE_LENGTH - 2)
        table = self.surface_brightness(TABLE_STEP_PX2 * np.arange(TABLE_LENGTH)).astype(np.float32)
        low = table[index]
        return cast(Float32, low + (steps - index) * (table[index + 1] - low))

    def surface_brightness(self, radius_px2: FloatArray) -> Float64:
        """Return the surface brightness of a unit source at squared radii in round coordinates."""
        weight, sigma = _arrays(self.mixture)
        gaussians = np.exp(-0.5 * radius_px2[..., None] / sigma**2)
        return cast(Float64, gaussians @ (weight / (2 * np.pi * sigma**2)))

    def overlap(self, distance_px: Float64) -> Float64:
        """Return the overlap of two PSFs at each distance in round coordinates: their correlation, 1 at distance 0."""
        weight, sigma = _arrays(self.mixture)
        variance = (sigma[:, None] ** 2 + sigma[None, :] ** 2).ravel()
        amplitude = np.outer(weight, weight).ravel() / variance
        shape = np.exp(-0.5 * np.asarray(distance_px)[..., None] ** 2 / variance) @ amplitude
        return cast(Float64, shape / amplitude.sum())


def _psf(mixtures: dict[str, Mixture], band: str, scan_rad: float) -> Psf:
    return Psf(mixtures[band], AXIS_RATIO[band], scan_rad + float(np.radians(ANGLE_FROM_SCAN_DEG[band])))


def atlas_psf(band: str, scan_rad: float) -> Psf:
    """Return the PSF of an Atlas image whose scans run at an angle `scan_rad` from +x towards +y."""
    return _psf(ATLAS, band, scan_rad)


def raw_psf(band: str, scan_rad: float) -> Psf:
    """Return the PSF of the single exposures of an Atlas image, with which its noise is correlated."""
    return _psf(RAW, band, scan_rad)


def _arrays(mixture: Mixture) -> tuple[Float64, Float64]:
    """Return (weights summing to 1, sigmas in pixels)."""
    weight, sigma_arcsec = np.array(mixture, np.float64).T
    return weight / weight.sum(), sigma_arcsec / PIXEL_SCALE_ARCSEC
