"""What lies at the centre of a cutout: W1 aperture flux, a source or none, a blended neighbour, a halo. Pure.

    cutouts (N, B, S, S) in DN, less the median of their border
      central 19 x 19 pixels, one matrix product with fixed weights
      means of a disc, of an annulus, and of eight discs around; flux of an aperture
      CentreMeasures -> centre_flags

A network sees only whether an image resembles its classes. It calls empty sky a galaxy, because the faintest galaxies
look like empty sky. These measures ask instead whether the centre is brighter than its surroundings.
`benchmarks/outliers.py` compares them on a SIMULATED sky. The thresholds were chosen there.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ..row_products import row_products
from ..types import Flag, Float32, Int32
from .composite import ATLAS_NOISE_DN, ATLAS_ZERO_POINT_MAG
from .cutouts import flag_where

APERTURE_PX = 6.0
"""Radius of the standard aperture of AllWISE, 8.25 arcsec (Explanatory Supplement, section IV.4.c)."""
APERTURE_CORRECTION_MAG = 0.269
"""Aperture minus profile-fit magnitude of isolated stars with 8 < W1 < 14 on a SIMULATED sky."""
DISC_PX, ANNULUS_PX, NEIGHBOUR_PX = 2.0, (3.0, 6.0), 6.0
"""Radii of the central disc and of its surroundings, and the distance of the neighbours. The FWHM is 6.2 px in W1."""
N_NEIGHBOURS = 8
NEIGHBOUR_LEAK = 0.121
"""Mean of a disc of an isolated star at the distance of the neighbours, over that at its centre, in W1."""
NEIGHBOUR_SIGMA = 4.0
"""A fainter neighbour, in units of the scatter of the sky, does not count."""
BAND_WEIGHTS = {"w1": 1.0, "w2": 0.5, "w3": 0.15, "w4": 0.0}
"""Weights of the bands in `contrast`, from the separation of sources and empty sky on a SIMULATED sky."""
ANNULUS_WEIGHT = 0.5
WINDOW_PX = 19
"""Side of the central window. Smaller cutouts have no measures."""
LEAST_SCATTER_DN = 1e-3

BLANK_BELOW, HALO_ABOVE, BLENDED_ABOVE = 0.6, 6.0, 0.5
"""Thresholds of `contrast`, `halo` and `neighbour`. Of all ordinary sources of a SIMULATED sky, 5 % lie beyond the
first and 3 % beyond the second; of isolated point sources, less than 1 % beyond any of the three."""


class CentreMeasures(NamedTuple):
    """Measures of N centres, (N,) float32 each; NaN where the model has no W1 or a pixel near the centre is missing.

    `w1_aperture` is the W1 magnitude (Vega) in the aperture on the scale of profile-fit magnitudes, NaN without a
    positive flux. `contrast` compares the centre with its surroundings, both in units of the scatter of the sky: a
    difference where they are faint, a logarithm of their ratio where they are bright; the mean of the bands. `halo` is
    the scatter of the border in W1 over the height of the centre above its surroundings. `neighbour` is the W1 flux of
    the brightest neighbour over that of the centre.
    """

    w1_aperture: Float32
    contrast: Float32
    halo: Float32
    neighbour: Float32


def measure_centres(
    pixels: Float32, sky: Float32, scatter: Float32, bands: tuple[str, ...], zero_point_mag: tuple[float, ...]
) -> CentreMeasures:
    """Return the measures of the centres of cutouts.

    Parameters
    ----------
    pixels : (N, B, S, S) float32
        Cutouts in DN, NaN where a pixel is missing.
    sky, scatter : (N, B) float32
        Level and scatter of the sky in DN, as `composite.border_levels` returns them.
    bands : tuple of str
        Names of the bands.
    zero_point_mag : tuple of float
        Zero point of each band in Vega magnitudes.

    Returns
    -------
    CentreMeasures
        NaN where they are unknown.

    Examples
    --------
    >>> star = np.exp(-((np.indices((37, 37)) - 18) ** 2).sum(0) / 14).astype(np.float32)[None, None]
    >>> sky, scatter = np.zeros((1, 1), np.float32), np.full((1, 1), 0.01, np.float32)
    >>> measures = measure_centres(star, sky, scatter, ("w1",), (20.5,))
    >>> round(float(measures.w1_aperture[0]), 1), centre_flags(measures).tolist()
    (16.2, [0])
    """
    n, _, size_px, _ = pixels.shape
    if "w1" not in bands or size_px < WINDOW_PX:
        return CentreMeasures(*np.full((4, n), np.nan, np.float32))
    w1, sums = bands.index("w1"), _region_sums(pixels, sky)
    disc, annulus, flux, neighbours = sums[:, :, 0], sums[:, :, 1], sums[:, w1, 2], sums[:, w1, 3:]
    unit: Float32 = np.maximum(scatter, np.float32(LEAST_SCATTER_DN))
    magnitude = zero_point_mag[w1] - APERTURE_CORRECTION_MAG - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    noise_dn = ATLAS_NOISE_DN["w1"] * 10 ** (0.4 * (zero_point_mag[w1] - ATLAS_ZERO_POINT_MAG["w1"]))
    height = np.maximum(disc[:, w1] - annulus[:, w1], np.float32(noise_dn))
    return CentreMeasures(
        magnitude.astype(np.float32),
        _contrast(disc / unit, annulus / unit, bands),
        (scatter[:, w1] / height).astype(np.float32),
        _neighbour(disc[:, w1], neighbours.max(1), unit[:, w1]),
    )


def centre_flags(measures: CentreMeasures) -> Int32:
    """Return the flags (N,) that follow from the measures; 0 where they are unknown."""
    return (
        flag_where(measures.contrast < BLANK_BELOW, Flag.BLANK)
        | flag_where(measures.neighbour > BLENDED_ABOVE, Flag.BLENDED)
        | flag_where(measures.halo > HALO_ABOVE, Flag.HALO)
    )


def _region_sums(pixels: Float32, sky: Float32) -> Float32:
    """Return the weighted sums (N, B, 11) of the central windows of cutouts, less the sky."""
    n, n_bands, size_px, _ = pixels.shape
    first = (size_px - WINDOW_PX) // 2
    inside = slice(first, first + WINDOW_PX)
    windows = pixels[:, :, inside, inside] - sky[:, :, None, None]
    sums = row_products(windows.reshape(n * n_bands, WINDOW_PX**2), _weights((size_px - 1) / 2 - first))
    return sums.reshape(n, n_bands, sums.shape[1])


def _contrast(disc: Float32, annulus: Float32, bands: tuple[str, ...]) -> Float32:
    """Return the contrast (N,) of the centres from means in units of the scatter (N, B)."""
    weights = np.array([BAND_WEIGHTS[band] for band in bands], np.float32)
    contrast = np.arcsinh(disc) - np.float32(ANNULUS_WEIGHT) * np.arcsinh(annulus)
    mean: Float32 = (contrast * (weights / weights.sum())).sum(axis=1)  # a matrix product depends on the batch
    return mean


def _neighbour(centre: Float32, neighbour: Float32, scatter: Float32) -> Float32:
    """Return the flux of a neighbour over that of the centre, from a fit of two sources to the means of their discs."""
    leak = np.float32(NEIGHBOUR_LEAK)
    least = np.float32(NEIGHBOUR_SIGMA / BLENDED_ABOVE) * scatter
    ratio: Float32 = (neighbour - leak * centre) / np.maximum(centre - leak * neighbour, least)
    return ratio


@cache
def _weights(centre_px: float) -> Float32:
    """Return the weights (19 * 19, 11) of pixels: mean of disc and annulus, sum of the aperture, means of neighbours.

    `centre_px` is the position of the centre on the window, 9 or 9.5. The edges of the regions are smooth over a pixel.
    """
    angle = 2 * np.pi * np.arange(N_NEIGHBOURS) / N_NEIGHBOURS
    regions = [_disc(centre_px, DISC_PX), _disc(centre_px, ANNULUS_PX[1]) - _disc(centre_px, ANNULUS_PX[0])]
    regions += [
        _disc(centre_px, DISC_PX, *shift) for shift in NEIGHBOUR_PX * np.stack([np.cos(angle), np.sin(angle)], 1)
    ]
    means = [region / region.sum() for region in regions]
    weights: Float32 = np.stack([*means[:2], _disc(centre_px, APERTURE_PX), *means[2:]], axis=1).astype(np.float32)
    return weights


def _disc(centre_px: float, radius_px: float, dx: float = 0.0, dy: float = 0.0) -> Float32:
    """Return the share (19 * 19,) of each pixel of the window that lies in a disc."""
    y, x = np.indices((WINDOW_PX, WINDOW_PX)) - centre_px
    share: Float32 = np.clip(radius_px + 0.5 - np.hypot(x - dx, y - dy), 0, 1).ravel()
    return share
