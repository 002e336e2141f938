"""The rich clusters of galaxies of the nearby Universe, whose light fills whole fields: Coma, Virgo and others.

The clusters are at their positions on the sky, and their members are random. Positions and distances are rounded.
Core radii and richness are assumed relative to Coma: 350 members with W1 < 14 within a degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from skyclass.types import Float64

from .population import SUBTYPES, Draw, with_colours

BRIGHTEST_W1, FAINTEST_W1 = 8.0, 17.7
KNEE_ABSOLUTE_W1 = -24.0
"""Knee of the luminosity function of galaxies in K (Kochanek et al. 2001, ApJ 560, 566), taken for W1."""
EXTENT_CORES = 6.0
EARLY_SHARE = 0.8
DIFFUSE_FAINTER_MAG, DIFFUSE_CORES = 2.0, 0.6
"""Light between the galaxies: magnitudes fainter than all members together, and its half-light radius in core radii."""


@dataclass(frozen=True)
class Cluster:
    """A cluster: centre in degrees, distance in Mpc, core radius in arcmin, number of members with W1 < 14."""

    name: str
    ra: float
    dec: float
    distance_mpc: float
    core_arcmin: float
    n_bright: int

    @property
    def radius_deg(self) -> float:
        """Radius of the region of the members."""
        return EXTENT_CORES * self.core_arcmin / 60


NEARBY_CLUSTERS = (
    Cluster("Virgo", 187.71, 12.39, 16.5, 60.0, 500),
    Cluster("Fornax", 54.62, -35.45, 20.0, 30.0, 150),
    Cluster("Abell 3526", 192.20, -41.31, 48.0, 15.0, 200),
    Cluster("Abell 1060", 159.18, -27.53, 54.0, 14.0, 150),
    Cluster("Abell 3627", 243.89, -60.91, 68.0, 14.0, 350),
    Cluster("Abell 426", 49.95, 41.51, 75.0, 13.0, 400),
    Cluster("Abell 1367", 176.15, 19.77, 92.0, 11.0, 150),
    Cluster("Coma", 194.95, 27.98, 100.0, 10.0, 350),
    Cluster("Abell 2199", 247.16, 39.55, 130.0, 7.5, 120),
    Cluster("Abell 2151", 241.31, 17.75, 155.0, 7.0, 80),
)


@dataclass(frozen=True)
class Members:
    """N galaxies of a cluster and, last, its diffuse light: photometry and positions in degrees."""

    galaxies: Draw
    ra: Float64
    dec: Float64


def members(cluster: Cluster, rng: np.random.Generator) -> Members:
    """Return random members of a cluster, with a King profile of surface density, and its diffuse light."""
    w1 = _member_magnitudes(cluster, rng)
    n = len(w1)
    early = rng.random(n) < EARLY_SHARE
    drawn = with_colours(rng, w1, np.where(early, SUBTYPES.index("early"), SUBTYPES.index("late")))
    # The surface density 1 / (1 + r^2) within x core radii holds ln(1 + x^2).
    cores = np.sqrt(np.expm1(rng.random(n) * np.log1p(EXTENT_CORES**2)))
    # The brightest galaxies lie near the centre.
    cores[np.argsort(w1, kind="stable")[:2]] *= 0.05
    angle = rng.uniform(0, 2 * np.pi, n)
    radius_deg = cores * cluster.core_arcmin / 60
    dec = cluster.dec + radius_deg * np.sin(angle)
    ra = (cluster.ra + radius_deg * np.cos(angle) / np.cos(np.radians(dec))) % 360
    diffuse_w1 = -2.5 * np.log10(np.sum(10 ** (-0.4 * w1))) + DIFFUSE_FAINTER_MAG
    light = _diffuse_light(rng, diffuse_w1, DIFFUSE_CORES * cluster.core_arcmin * 60)
    both = Draw(*(np.concatenate(pair) for pair in zip(vars(drawn).values(), vars(light).values(), strict=True)))
    return Members(both, np.append(ra, cluster.ra), np.append(dec, cluster.dec))


def _member_magnitudes(cluster: Cluster, rng: np.random.Generator) -> Float64:
    """Return W1 magnitudes of the members, from a luminosity function of slope -1 with an exponential end."""
    knee = KNEE_ABSOLUTE_W1 + 5 * np.log10(cluster.distance_mpc) + 25
    grid = np.arange(BRIGHTEST_W1, FAINTEST_W1, 0.02)
    cumulative = np.cumsum(np.exp(-(10 ** (-0.4 * (grid - knee)))))
    n = round(cluster.n_bright * cumulative[-1] / cumulative[np.searchsorted(grid, 14.0)])
    return cast(Float64, np.interp(rng.random(n) * cumulative[-1], cumulative, grid))


def _diffuse_light(rng: np.random.Generator, w1_mag: float, radius_arcsec: float) -> Draw:
    """Return the light between the galaxies as one large, round galaxy of an exponential profile."""
    light = with_colours(rng, np.array([w1_mag]), np.array([SUBTYPES.index("late")]))
    early = with_colours(rng, np.array([w1_mag]), np.array([SUBTYPES.index("early")]))
    return Draw(early.mags, light.subtype, np.array([radius_arcsec]), np.ones(1), np.zeros(1), np.ones(1))
