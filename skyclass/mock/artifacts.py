"""Artifacts of bright stars: diffraction spikes, halos, optical ghosts and latents, as light and as `cc_flags`.

The kinds and the letters are those of the All-Sky Explanatory Supplement, section IV.4.g. The sizes and the shares of
light are assumed. They give a spike of 0.2 DN at some arcminutes from a star of W1 = 5, as in the real field 2010H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.spatial import cKDTree

from skyclass.types import Bool, Float64

from .grid import ZERO_POINT_MAG
from .psf import Psf, atlas_psf

PARENT_MAG = {"w1": 9.5, "w2": 8.5, "w3": 4.5, "w4": 1.0}
"""Stars brighter than this have spikes and halos, those brighter by `GHOST_EXCESS_MAG` ghosts and latents."""
GHOST_EXCESS_MAG = 3.0
SPIKE_ANGLES_RAD = np.radians([45.0, 135.0, 225.0, 315.0])
"""Directions of the spikes from that of the scan: the struts of the secondary mirror."""
SPIKE_START_PX, SPIKE_LENGTH_PX, SPIKE_SLOPE, SPIKE_LONGEST_PX = 6.0, 30.0, 0.22, 500.0
SPIKE_HALF_WIDTH_PX = 5.0
SPIKE_LIGHT = 0.03
"""Share of the flux of a star in its four spikes."""
HALO_RADIUS_PX, HALO_SLOPE, HALO_LARGEST_PX = 15.0, 0.17, 200.0
HALO_LIGHT, HALO_START_PX, HALO_EXTENT, HALO_POINTS = 0.02, 15.0, 3.0, 600
"""Share of the flux of a star in its halo beyond the wings of the PSF, from a first radius to `HALO_EXTENT` times the
radius within which it is flagged. Its surface brightness falls with the square of the radius."""
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
GHOST_OFFSET_PX, GHOST_RADIUS_PX, GHOST_LIGHT = 150.0, 14.0, 2e-4
LATENT_OFFSET_PX, LATENT_RADIUS_PX, LATENT_LIGHT = 640.0, 4.0, 1e-4
FILTER_AREA_PX2 = 85.0
"""Pixels over which the matched filter of a point source averages."""
LETTERS = ("D", "P", "H", "O")
"""Diffraction spike, persistence (latent), halo, optical ghost, in order of precedence."""

Points = tuple[Float64, Float64, Float64]


@dataclass(frozen=True)
class Parents:
    """N stars with artifacts in a band: 0-based pixels `x`, `y`, flux in DN, magnitudes brighter than `PARENT_MAG`."""

    band: str
    scan_rad: float
    x: Float64
    y: Float64
    flux: Float64
    excess_mag: Float64

    def spike_length_px(self) -> Float64:
        """Return the length of the spikes."""
        return np.minimum(SPIKE_LENGTH_PX * 10 ** (SPIKE_SLOPE * self.excess_mag), SPIKE_LONGEST_PX)

    def halo_radius_px(self) -> Float64:
        """Return the radius within which a halo contaminates sources."""
        return np.minimum(HALO_RADIUS_PX * 10 ** (HALO_SLOPE * self.excess_mag), HALO_LARGEST_PX)

    def has_ghost(self) -> Bool:
        """Return which stars are bright enough for ghosts and latents."""
        return self.excess_mag > GHOST_EXCESS_MAG


def parents(band: str, scan_rad: float, x: Float64, y: Float64, mag: Float64) -> Parents:
    """Return the sources of a band that have artifacts, from 0-based pixels and magnitudes."""
    rows = np.flatnonzero(mag < PARENT_MAG[band])
    flux = 10 ** (0.4 * (ZERO_POINT_MAG[band] - mag[rows]))
    return Parents(band, scan_rad, x[rows], y[rows], flux, PARENT_MAG[band] - mag[rows])


def artifact_points(stars: Parents) -> Points:
    """Return the light of spikes, halos, ghosts and latents as points: 0-based pixels x, y and flux in DN."""
    parts: list[Points] = []
    for x, y, flux, length in zip(stars.x, stars.y, stars.flux, stars.spike_length_px(), strict=True):
        radius = np.arange(SPIKE_START_PX, SPIKE_START_PX + length)
        # Surface brightness along a spike falls with the square of the distance.
        along = flux * radius**-2.0 / np.sum(radius**-2.0) * SPIKE_LIGHT / len(SPIKE_ANGLES_RAD)
        for angle in SPIKE_ANGLES_RAD + stars.scan_rad:
            parts.append((x + radius * np.cos(angle), y + radius * np.sin(angle), along))
    k = np.arange(HALO_POINTS)
    for x, y, flux, extent in zip(stars.x, stars.y, stars.flux, HALO_EXTENT * stars.halo_radius_px(), strict=True):
        # Equal flux in equal steps of the logarithm of the radius is a surface brightness of 1 / radius squared.
        radius = HALO_START_PX * (extent / HALO_START_PX) ** ((k + 0.5) / HALO_POINTS)
        light = np.full(HALO_POINTS, flux * HALO_LIGHT / HALO_POINTS)
        parts.append((x + radius * np.cos(GOLDEN_ANGLE * k), y + radius * np.sin(GOLDEN_ANGLE * k), light))
    along_x, along_y = np.cos(stars.scan_rad), np.sin(stars.scan_rad)
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    for i in np.flatnonzero(stars.has_ghost()):
        for offset, size, share in (
            (GHOST_OFFSET_PX, GHOST_RADIUS_PX, GHOST_LIGHT),
            (LATENT_OFFSET_PX, LATENT_RADIUS_PX, LATENT_LIGHT),
        ):
            ring_x = stars.x[i] + offset * along_x + size * np.cos(turn)
            ring_y = stars.y[i] + offset * along_y + size * np.sin(turn)
            parts.append((ring_x, ring_y, np.full(len(turn), stars.flux[i] * share / len(turn))))
    if not parts:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return cast(Points, tuple(np.concatenate(column) for column in zip(*parts, strict=True)))


def contamination(stars: Parents, x: Float64, y: Float64, flux: Float64) -> np.ndarray:
    """Return one letter of `cc_flags` for each source of a band, "0" without artifact.

    A letter is a capital where the light of the artifact in the matched filter exceeds the flux of the source (DN), so
    that the detection may be the artifact. Stars do not contaminate themselves.
    """
    letters = np.full(len(x), "0")
    artifact_flux = np.zeros(len(x))
    if not len(x) or not len(stars.x):
        return letters
    tree = cKDTree(np.column_stack([x, y]))
    psf = atlas_psf(stars.band, stars.scan_rad)
    for kind in reversed(LETTERS):
        for i, reach_x, reach_y, reach in _regions(stars, kind):
            rows = np.array(tree.query_ball_point([reach_x, reach_y], reach), np.int64)
            if not len(rows):
                continue
            dx, dy = x[rows] - stars.x[i], y[rows] - stars.y[i]
            inside, light = _light(stars, kind, i, dx, dy, psf)
            rows, light = rows[inside], light[inside]
            letters[rows], artifact_flux[rows] = kind, np.maximum(artifact_flux[rows], light)
    real = artifact_flux < np.nan_to_num(flux)
    return np.where(real, np.char.lower(letters), letters)


def _regions(stars: Parents, kind: str) -> list[tuple[int, float, float, float]]:
    """Return (star, x, y, radius) of circles that hold all sources which artifacts of a kind may touch."""
    everyone, bright = range(len(stars.x)), np.flatnonzero(stars.has_ghost())
    if kind == "D":
        reach = SPIKE_START_PX + stars.spike_length_px() + SPIKE_HALF_WIDTH_PX
        return [(i, stars.x[i], stars.y[i], reach[i]) for i in everyone]
    if kind == "H":
        return [(i, stars.x[i], stars.y[i], stars.halo_radius_px()[i]) for i in everyone]
    offset, size = (GHOST_OFFSET_PX, GHOST_RADIUS_PX) if kind == "O" else (LATENT_OFFSET_PX, LATENT_RADIUS_PX)
    along_x, along_y = offset * np.cos(stars.scan_rad), offset * np.sin(stars.scan_rad)
    return [(int(i), stars.x[i] + along_x, stars.y[i] + along_y, size + SPIKE_HALF_WIDTH_PX) for i in bright]


def _light(stars: Parents, kind: str, i: int, dx: Float64, dy: Float64, psf: Psf) -> tuple[Bool, Float64]:
    """Return which sources at offsets from star `i` an artifact touches, and its light (DN) in their matched filter."""
    distance = np.hypot(dx, dy)
    apart = distance > 2.0
    if kind == "D":
        angle = stars.scan_rad + SPIKE_ANGLES_RAD[:2]
        across = np.abs(np.cos(angle)[:, None] * dy - np.sin(angle)[:, None] * dx).min(0)
        length = stars.spike_length_px()[i]
        norm = np.sum(np.arange(SPIKE_START_PX, SPIKE_START_PX + length) ** -2.0)
        per_px = stars.flux[i] * SPIKE_LIGHT / 4 / norm * np.maximum(distance, SPIKE_START_PX) ** -2.0
        touched = apart & (across < SPIKE_HALF_WIDTH_PX) & (distance > SPIKE_START_PX)
        return touched, per_px * np.sqrt(FILTER_AREA_PX2)
    if kind == "H":
        x, y = psf.round(dx, dy)
        return apart, stars.flux[i] * psf.surface_brightness(x**2 + y**2) * FILTER_AREA_PX2
    light = GHOST_LIGHT if kind == "O" else LATENT_LIGHT
    return np.ones(len(dx), np.bool_), np.full(len(dx), stars.flux[i] * light)
