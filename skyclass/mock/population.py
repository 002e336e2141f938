"""The population of the simulated sky: classes, magnitudes, colours and sizes of galaxies, quasars and stars.

All magnitudes are Vega magnitudes. Numbers marked with a table are fitted to it. The others are assumptions, and this
module has all of them. The tables are biased (galaxies detected in W3, quasars selected by colour, bright stars), so
the missing kinds are added: early-type galaxies, quasars diluted by their hosts, late and dusty stars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from skyclass.types import DEFAULT_CLASSES, Float64, Int64

from .counts import Counts

Mix = Literal["natural", "balanced"]
MIXES: tuple[Mix, ...] = ("natural", "balanced")
OUTLIERS = ("T dwarf", "young stellar object", "planetary nebula")
"""Kinds of sources that no shipped model knows. Each one is a class of the truth, for tests of outliers."""

# (weight, (mean W1-W2, mean W2-W3), (var W1-W2, covariance, var W2-W3)) of each gaussian.
Mixture2 = tuple[tuple[float, tuple[float, float], tuple[float, float, float]], ...]

COLOURS: dict[str, Mixture2] = {
    # Table sdss_galaxies, all 14,730 with sane colours (spectroscopic, z < 0.35, S/N > 5 in three bands).
    "late": (
        (0.510, (0.222, 3.556), (0.0110, 0.0130, 0.1415)),
        (0.327, (0.278, 2.814), (0.0304, 0.1060, 0.6082)),
        (0.163, (0.464, 3.699), (0.0719, -0.0100, 0.1672)),
    ),
    # Assumed: the table lacks galaxies without dust, which W3 does not detect.
    "early": ((1.0, (0.10, 1.0), (0.0144, 0.0, 0.36)),),
    # Table desi_quasars, the 2,978 with W2 < 14.5, where W3 is well measured (preselected W1-W2 >= 0.65).
    "quasar": (
        (0.643, (1.251, 2.919), (0.0308, 0.0288, 0.0820)),
        (0.357, (0.956, 2.958), (0.0281, 0.0181, 0.1699)),
    ),
    # Assumed: quasars reddened or diluted by their host, which the colour preselection excludes.
    "host-diluted quasar": ((1.0, (0.60, 2.8), (0.0484, 0.0, 0.2025)),),
    # Table exoplanet_host_stars, the 353 with 8 < W1, no limits, and W3 errors below 0.1 mag.
    "FGK": (
        (0.901, (-0.042, 0.054), (0.0004, -0.0004, 0.0044)),
        (0.099, (0.041, 0.314), (0.0078, -0.0141, 0.1780)),
    ),
    # Assumed: stars that a bright sample of planet hosts does not include.
    "late M": ((1.0, (0.18, 0.30), (0.0036, 0.0, 0.0225)),),
    "brown dwarf": ((1.0, (0.90, 1.2), (0.36, 0.0, 0.25)),),
    "dusty": ((1.0, (0.60, 1.8), (0.1225, 0.0, 0.49)),),
    # T4 and later in W1-W2 (Kirkpatrick et al. 2011, ApJS 197, 19, fig. 1): 1.2 to 3.5.
    "T dwarf": ((1.0, (2.1, 1.2), (0.36, 0.0, 0.16)),),
    # The region of classes I and II of Koenig & Leisawitz 2014 (ApJ 791, 131).
    "young stellar object": ((0.7, (0.7, 2.3), (0.09, 0.0, 0.36)), (0.3, (1.5, 2.8), (0.25, 0.0, 0.36))),
    # Assumed: emission lines and warm dust.
    "planetary nebula": ((1.0, (0.6, 4.0), (0.25, 0.0, 0.64)),),
}
SUBTYPES = tuple(COLOURS)
CLASS_NAMES = (*DEFAULT_CLASSES, *OUTLIERS)
CLASS_OF_SUBTYPE = np.array([0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 5])
W3_W4: dict[str, tuple[float, float]] = {
    "late": (2.2, 0.4), "early": (1.2, 0.5), "quasar": (2.4, 0.3), "host-diluted quasar": (2.4, 0.4),
    "FGK": (0.05, 0.1), "late M": (0.15, 0.15), "brown dwarf": (0.4, 0.3), "dusty": (1.2, 0.6),
    "T dwarf": (0.4, 0.3), "young stellar object": (2.3, 0.6), "planetary nebula": (3.0, 0.7),
}  # fmt: skip
"""Assumed mean and scatter of W3-W4; `quasar` agrees with table desi_quasars at W1 < 14 (2.37)."""

GALAXY_REDDENING_PER_MAG = 0.06
"""Assumed: W1-W2 of galaxies increases with distance. Table sdss_galaxies has 0.09, because of its W3 limit."""
EARLY_SHARE = 0.45
"""Share of early-type galaxies (assumed)."""
RADIUS_AT_14_ARCSEC, RADIUS_SLOPE, MAX_RADIUS_ARCSEC = 2.3, 0.19, 60.0
"""Median half-light radius of a galaxy at W1 = 14, its fall per magnitude in dex, and the largest radius. Equal surface
brightness at all distances would give 0.2 dex per magnitude."""
OUTLIER_W1 = {"T dwarf": (14.0, 17.5), "young stellar object": (9.0, 16.5), "planetary nebula": (9.0, 15.0)}
OUTLIER_SLOPE = 0.25


@dataclass(frozen=True)
class Draw:
    """N sources without positions: `mags` (N, 4) total W1..W4, `subtype` (N,) index into `SUBTYPES`.

    `radius_arcsec` (N,) half-light radius (0 for points), `axis_ratio`, `angle_rad` and `sersic_index` (N,).
    """

    mags: Float64
    subtype: Int64
    radius_arcsec: Float64
    axis_ratio: Float64
    angle_rad: Float64
    sersic_index: Float64


def _subtype_fractions(w1_mag: Float64) -> Float64:
    """Return (N, 8) shares of the subtypes within their own class (assumed)."""
    one = np.ones_like(w1_mag)
    cool = np.clip(0.05 + 0.04 * (w1_mag - 12.0), 0.03, 0.25)
    return np.stack(
        [
            (1 - EARLY_SHARE) * one,
            EARLY_SHARE * one,
            0.85 * one,
            0.15 * one,
            0.992 - cool,
            cool,
            0.003 * one,
            0.005 * one,
        ],
        axis=1,
    )


def _draw_columns(rng: np.random.Generator, shares: Float64) -> Int64:
    """Return a random column index for each row of `shares` (N, K), which sum to 1."""
    above = np.cumsum(shares, 1) < rng.random(len(shares))[:, None]
    return cast(Int64, above.sum(1).clip(max=shares.shape[1] - 1))


def _colours(rng: np.random.Generator, subtype: Int64) -> Float64:
    """Return (N, 2) W1-W2 and W2-W3, drawn from the mixture of the subtype of each source."""
    out = np.empty((len(subtype), 2))
    pick, normal = rng.random(len(subtype)), rng.standard_normal((len(subtype), 2))
    for s, name in enumerate(SUBTYPES):
        rows = np.flatnonzero(subtype == s)
        edges = np.cumsum([w for w, _, _ in COLOURS[name]])
        component = np.searchsorted(edges / edges[-1], pick[rows]).clip(max=len(edges) - 1)
        for k, (_, mean, (v1, cov, v2)) in enumerate(COLOURS[name]):
            here = rows[component == k]
            out[here] = mean + normal[here] @ np.linalg.cholesky([[v1, cov], [cov, v2]]).T
    return out


def _w3_w4(rng: np.random.Generator, subtype: Int64) -> Float64:
    """Return (N,) W3-W4."""
    mean, scatter = np.array([W3_W4[name] for name in SUBTYPES]).T
    return cast(Float64, mean[subtype] + scatter[subtype] * rng.standard_normal(len(subtype)))


def _half_light_radius(rng: np.random.Generator, w1_mag: Float64, subtype: Int64) -> Float64:
    """Return half-light radii in arcsec of galaxies, 0 for points; every planetary nebula is resolved (assumed)."""
    log_radius = np.log10(RADIUS_AT_14_ARCSEC) - RADIUS_SLOPE * (w1_mag - 14.0) + 0.2 * rng.standard_normal(len(w1_mag))
    log_radius -= np.where(subtype == SUBTYPES.index("early"), 0.15, 0.0)
    resolved = (CLASS_OF_SUBTYPE[subtype] == 0) | (subtype == SUBTYPES.index("planetary nebula"))
    return np.where(resolved, np.minimum(10**log_radius, MAX_RADIUS_ARCSEC), 0.0)


def with_colours(rng: np.random.Generator, w1: Float64, subtype: Int64) -> Draw:
    """Return sources of the given W1 magnitudes and subtypes, with random colours and shapes."""
    n = len(w1)
    colours = _colours(rng, subtype)
    galaxy = CLASS_OF_SUBTYPE[subtype] == DEFAULT_CLASSES.index("galaxy")
    colours[:, 0] += np.where(galaxy, np.clip(GALAXY_REDDENING_PER_MAG * (w1 - 14.3), -0.18, 0.20), 0.0)
    w2 = w1 - colours[:, 0]
    w3 = w2 - colours[:, 1]
    mags = np.stack([w1, w2, w3, w3 - _w3_w4(rng, subtype)], axis=1)
    radius = _half_light_radius(rng, w1, subtype)
    return Draw(
        mags, subtype, radius, rng.uniform(0.3, 1.0, n), rng.uniform(0, np.pi, n),
        np.where(subtype == SUBTYPES.index("early"), 4.0, 1.0),
    )  # fmt: skip


def draw(rng: np.random.Generator, n: int, counts: Counts, bright: float, faint: float) -> Draw:
    """Return n sources between two W1 magnitudes, with the magnitudes and the classes of the counts."""
    w1 = counts.magnitudes(rng, n, bright, faint)
    classes = CLASS_OF_SUBTYPE[: len(SUBTYPES) - len(OUTLIERS)]
    subtype = _draw_columns(rng, counts.fractions(w1)[:, classes] * _subtype_fractions(w1))
    return with_colours(rng, w1, subtype)


def draw_outliers(rng: np.random.Generator, n: int) -> Draw:
    """Return n T dwarfs, young stellar objects and planetary nebulae, a third of each."""
    kind = rng.integers(0, len(OUTLIERS), n)
    bright, faint = np.array([OUTLIER_W1[name] for name in OUTLIERS])[kind].T
    low, high = 10 ** (OUTLIER_SLOPE * bright), 10 ** (OUTLIER_SLOPE * faint)
    w1 = np.log10(low + rng.random(n) * (high - low)) / OUTLIER_SLOPE
    return with_colours(rng, w1, kind + len(SUBTYPES) - len(OUTLIERS))
