"""Pixels of one simulated Atlas band: sources, sky, noise, holes.

Stars are points, and a galaxy is a spiral of points of equal flux. Points are deposited with cubic B-splines, and one
Fourier transform convolves them with the PSF, exactly at any subpixel position. The diffuse light of clusters, which is
smooth on the scale of the PSF, is computed for each pixel.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import gammaincinv

from skyclass.types import BANDS, PIXEL_SCALE_ARCSEC, Float32, Float64, Tile

from ..sky.tile_wcs import tile_pixels
from .artifacts import Points, artifact_points, parents
from .conditions import BandSky, ScanProfile, cross_scan_px, scan_profile
from .field import DIFFUSE, Sources
from .grid import FULL_SIZE_PX, ZERO_POINT_MAG
from .psf import Psf, atlas_psf, raw_psf

PAD_PX = 64
MOTTLE_DN = {"w1": (0.02, 0.04), "w2": (0.03, 0.05), "w3": (0.06, 0.12), "w4": (0.01, 0.02)}
MOTTLE_SIGMA_ARCSEC = (45.0, 180.0)
"""Structure of the sky on scales of one and three arcminutes, as in real cutouts of tile 1210p015_ac51."""
NOISE_SCALE = {"w1": 1.0, "w2": 1.07, "w3": 1.0, "w4": 1.0}
NOISE_WIDTH = {"w1": 1.0, "w2": 1.03, "w3": 0.91, "w4": 1.0}
"""Noise over that of the headers, and width of its correlation over that of the raw PSF, from the scatter and the
second differences of the pixels of two real fields."""
SATURATION_MAG = {"w1": 8.0, "w2": 7.0, "w3": 3.8, "w4": -0.4}
POINTS_OF_GALAXY = ((0.0, 1), (0.6, 7), (1.2, 24), (3.0, 150), (8.0, 1000), (80.0, 60_000))
"""(half-light radius in arcsec, number of points of a larger galaxy); the sigma of the PSF is 3.6 arcsec."""
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def _add_background(image: Float32, sky: BandSky, profile: ScanProfile) -> None:
    """Add the smooth sky in DN: a level, a tilt, one slow wave, stripes and the glow of the Moon."""
    y, x = ((np.arange(n) - n / 2) / FULL_SIZE_PX for n in image.shape)
    gx, gy, wave, phase = sky.gradient
    rows, columns = gy * y, gx * x
    image += (rows[:, None] + columns[None, :] + sky.sky).astype(np.float32)
    a, b = 9.0 * y + phase, 7.0 * x
    image += (0.5 * wave * (np.outer(np.cos(a), np.cos(b)) - np.outer(np.sin(a), np.sin(b)))).astype(np.float32)
    across = _cross_scan(sky, cast(tuple[int, int], image.shape), 0)
    image += profile.at(across)[1]


def _cross_scan(sky: BandSky, shape: tuple[int, int], margin_px: int) -> Float32:
    """Return the cross-scan position in pixels of each pixel of an image with a margin."""
    y, x = (np.arange(-margin_px, n + margin_px, dtype=np.float32) for n in shape)
    return cross_scan_px(sky, shape, y[:, None], x[None, :]).astype(np.float32)


def _profile_radii(sersic_index: float, n_points: int) -> Float64:
    """Return radii, in half-light radii, of n points of equal flux of a Sersic (1963) profile, truncated at 5."""
    b = gammaincinv(2 * sersic_index, 0.5)
    radius = (gammaincinv(2 * sersic_index, (np.arange(n_points) + 0.5) / n_points) / b) ** sersic_index
    return cast(Float64, np.minimum(radius, 5.0))


def _spiral(sources: Sources, x: Float64, y: Float64, flux: Float64, n_points: int, index: float) -> Points:
    """Return points (x, y, flux) of galaxies of one profile: a sunflower spiral, compressed and rotated."""
    k = np.arange(n_points)
    radius, angle = _profile_radii(index, n_points), GOLDEN_ANGLE * k
    radius = radius if n_points > 1 else np.zeros(1)
    size = (sources.radius_arcsec / PIXEL_SCALE_ARCSEC)[:, None]
    # Area-preserving: the half-light radius stays that of the circle of equal area.
    q = np.sqrt(sources.axis_ratio)[:, None]
    major, minor = size / q * radius * np.cos(angle), size * q * radius * np.sin(angle)
    cos, sin = np.cos(sources.angle_rad)[:, None], np.sin(sources.angle_rad)[:, None]
    px, py = x[:, None] + major * cos - minor * sin, y[:, None] + major * sin + minor * cos
    return px.ravel(), py.ravel(), np.repeat(flux / n_points, n_points)


def light_points(sources: Sources, tile: Tile, band: str, scan_rad: float) -> Points:
    """Return all light of a band, with the artifacts of stars, as points: 0-based pixels x, y and flux in DN."""
    x, y = (p - 1 for p in tile_pixels(tile, sources.ra, sources.dec))
    flux = 10 ** (0.4 * (ZERO_POINT_MAG[band] - sources.mags[:, BANDS.index(band)]))
    is_point = sources.radius_arcsec == 0
    parts = [(x[is_point], y[is_point], flux[is_point])]
    limits = [r for r, _ in POINTS_OF_GALAXY] + [np.inf]
    for (low, n), high in zip(POINTS_OF_GALAXY, limits[1:], strict=True):
        for index in (1.0, 4.0):
            r = sources.radius_arcsec
            rows = (r > low) & (r <= high) & (sources.sersic_index == index)
            parts.append(_spiral(sources.take(rows), x[rows], y[rows], flux[rows], n, index))
    stars = sources.take(is_point)
    parts.append(artifact_points(parents(band, scan_rad, x[is_point], y[is_point], stars.mags[:, BANDS.index(band)])))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def diffuse_light(sources: Sources, tile: Tile, band: str) -> Float32:
    """Return the image in DN of round sources with exponential profiles, which are much larger than the PSF.

    The surface brightness of a flux F and a half-light radius R is F (b / R)^2 / (2 pi) exp(-b r / R), where b solves
    gamma(2, b) = 1/2 (Graham & Driver 2005, PASA 22, 118).
    """
    image = np.zeros(tile.shape, np.float32)
    b = gammaincinv(2.0, 0.5)
    x, y = (p - 1 for p in tile_pixels(tile, sources.ra, sources.dec))
    flux = 10 ** (0.4 * (ZERO_POINT_MAG[band] - sources.mags[:, BANDS.index(band)]))
    rows, columns = (np.arange(n, dtype=np.float32) for n in tile.shape)
    for xi, yi, fi, radius_arcsec in zip(x, y, flux, sources.radius_arcsec, strict=True):
        scale_px = radius_arcsec / PIXEL_SCALE_ARCSEC / b
        distance = np.hypot((columns - xi)[None, :], (rows - yi)[:, None])
        image += (fi / (2 * np.pi * scale_px**2) * np.exp(-distance / scale_px)).astype(np.float32)
    return image


def _spline(t: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """Return the four weights of a cubic B-spline at fraction t of a pixel."""
    return (1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6


def _deposit(x: Float64, y: Float64, flux: Float64, side: int) -> Float32:
    """Return a (side, side) grid of points deposited with cubic B-splines. Points outside are dropped."""
    ix, iy = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    inside = (ix >= 1) & (iy >= 1) & (ix < side - 3) & (iy < side - 3)
    # Sort by pixel, so that memory is accessed in order.
    order = np.flatnonzero(inside)
    order = order[np.argsort(iy[order] * side + ix[order], kind="stable")]
    ix, iy, flux = ix[order], iy[order], flux[order]
    wx, wy = _spline(x[order] - ix), _spline(y[order] - iy)
    index = np.concatenate([(iy + j - 1) * side + ix + i - 1 for j in range(4) for i in range(4)])
    weights = np.concatenate([flux * wy[j] * wx[i] for j in range(4) for i in range(4)])
    return cast(Float32, np.bincount(index, weights, side * side).reshape(side, side).astype(np.float32))


def _noise_transfer(sky: BandSky, fx: Float32, fy: Float32) -> Float32:
    """Return the filter that correlates white noise: the raw PSF, and structure of arcminutes."""
    out = np.zeros((len(fy), len(fx)), np.float32)
    raw = raw_psf(sky.band, sky.scan_rad).scaled(NOISE_WIDTH[sky.band])
    mottle = zip((Psf(((1.0, sigma),)) for sigma in MOTTLE_SIGMA_ARCSEC), MOTTLE_DN[sky.band], strict=True)
    for psf, sigma in ((raw, NOISE_SCALE[sky.band] * sky.sigma), *mottle):
        part = psf.transfer(fx, fy)
        # In the transform of a real image all columns except the first and the last count twice.
        power = 2 * float((part.astype(np.float64) ** 2).sum() - 0.5 * (part[:, 0].astype(np.float64) ** 2).sum())
        out += np.float32(sigma / np.sqrt(power / len(fy) ** 2)) * part
    return out


def _frequencies(shape: tuple[int, int]) -> tuple[int, Float32, Float32]:
    """Return the side of the padded transform, and its column and row frequencies in cycles per pixel."""
    side = fft.next_fast_len(max(shape) + 2 * PAD_PX, real=True)
    return side, fft.rfftfreq(side).astype(np.float32), fft.fftfreq(side).astype(np.float32)


def _inverse(spectrum: NDArray[np.complex64], side: int, shape: tuple[int, int]) -> Float32:
    """Return the image of a spectrum, without its padding."""
    image = fft.irfft2(spectrum, (side, side))
    return np.ascontiguousarray(image[PAD_PX : PAD_PX + shape[0], PAD_PX : PAD_PX + shape[1]])


def _light_spectrum(psf: Psf, points: Points, shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Return the spectrum of points of light, convolved with a PSF."""
    side, fx, fy = _frequencies(shape)
    x, y, flux = points
    spectrum = fft.rfft2(_deposit(x + PAD_PX, y + PAD_PX, flux, side))
    spectrum *= psf.transfer(fx, fy)
    spectrum /= ((np.sinc(fy) ** 4)[:, None] * (np.sinc(fx) ** 4)[None, :]).astype(np.float32)
    return cast(NDArray[np.complex64], spectrum)


def _noise_spectrum(sky: BandSky, profile: ScanProfile, shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Return the spectrum of the noise, which is higher where the coverage is lower."""
    side, fx, fy = _frequencies(shape)
    white = np.random.default_rng([*sky.seed, 2]).standard_normal((side, side), np.float32)
    across = _cross_scan(sky, shape, PAD_PX)
    rows, columns = across.shape
    white[:rows, :columns] /= np.sqrt(profile.at(across)[0])
    spectrum = fft.rfft2(white)
    spectrum *= _noise_transfer(sky, fx, fy)
    return cast(NDArray[np.complex64], spectrum)


def light_image(psf: Psf, points: Points, shape: tuple[int, int]) -> Float32:
    """Return the image in DN of points of light (0-based x, y, flux), without sky and noise."""
    return _inverse(_light_spectrum(psf, points, shape), _frequencies(shape)[0], shape)


def _blank(image: Float32, x: float, y: float, radius: float) -> None:
    """Set a disc of pixels to NaN."""
    y0, x0 = max(0, int(y - radius)), max(0, int(x - radius))
    part = image[y0 : int(y + radius) + 2, x0 : int(x + radius) + 2]
    if part.size:
        yy, xx = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
        part[(xx - x) ** 2 + (yy - y) ** 2 <= radius**2] = np.nan


def _blank_saturated(image: Float32, sources: Sources, tile: Tile, band: str) -> None:
    """Set the cores of saturated stars to NaN. The cores of brighter stars are wider."""
    excess = SATURATION_MAG[band] - 1.0 - sources.mags[:, BANDS.index(band)]
    rows = np.flatnonzero(excess > 0)
    x, y = tile_pixels(tile, sources.ra[rows], sources.dec[rows])
    for xi, yi, e in zip(x - 1, y - 1, excess[rows], strict=True):
        _blank(image, xi, yi, min(1.5 + 1.3 * e, 9.0))


def _blank_holes(image: Float32, sky: BandSky) -> None:
    """Set a few small patches without coverage to NaN: about twelve on a full tile, at least one."""
    rng = np.random.default_rng([*sky.seed, 3])
    n = max(1, round(12 * image.size / FULL_SIZE_PX**2))
    rows, columns = image.shape
    discs = (rng.uniform(low, high, n) for low, high in ((0, columns), (0, rows), (1, 5)))
    for x, y, radius in zip(*discs, strict=True):
        _blank(image, x, y, radius)


def render(sky: BandSky, sources: Sources, tile: Tile) -> Float32:
    """Return one band of a simulated tile: (rows, columns) float32 DN, NaN in holes and saturated cores."""
    profile, is_diffuse = scan_profile(sky), sources.layer == DIFFUSE
    sources, diffuse = sources.take(~is_diffuse), sources.take(is_diffuse)
    points = light_points(sources, tile, sky.band, sky.scan_rad)
    spectrum = _light_spectrum(atlas_psf(sky.band, sky.scan_rad), points, tile.shape)
    spectrum += _noise_spectrum(sky, profile, tile.shape)
    image = _inverse(spectrum, _frequencies(tile.shape)[0], tile.shape)
    del spectrum
    _add_background(image, sky, profile)
    image += diffuse_light(diffuse, tile, sky.band)
    _blank_saturated(image, sources, tile, sky.band)
    _blank_holes(image, sky)
    return image
