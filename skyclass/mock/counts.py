"""Published counts of stars, galaxies and quasars on the sky, by W1 and direction.

All magnitudes are Vega magnitudes. Sources:

- Stars: the Besancon model of the Galaxy (Robin et al. 2003, A&A 409, 523), cumulative K counts of its public grid.
- Galaxies: K counts of Kim et al. 2011 (MNRAS 410, 241), and fainter than K = 19.5 those of COSMOS2020 (Weaver et al.
  2022, ApJS 258, 11, table 2). The shift to W1 reproduces the 319 WISE All-Sky sources within 5 arcmin of Arp 220.
- Quasars: 61.9 per square degree with W2 < 15.05 (Stern et al. 2012, ApJ 753, 30). 130 by the cut "R90" of Assef et al.
  2013 (ApJ 772, 26), W2 < 17.11 and W1 - W2 > 0.662 exp(0.232 (W2 - 13.97)^2), taken as those with W2 < 15.73
  (assumed): for fainter ones the limit is redder than 1.36, which few quasars are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from scipy.interpolate import PchipInterpolator

from skyclass.model.priors import PriorTable
from skyclass.types import DEFAULT_CLASSES, Float64

EDGES_W1 = np.round(np.arange(3.0, 20.01, 0.1), 1)
"""Edges of the W1 bins of all counts."""

STAR_K_MAG = np.arange(8, 21)
STAR_COUNTS: dict[tuple[int, int], tuple[int, ...]] = {
    (5, 30): (210, 504, 1153, 2448, 4899, 9612, 19049, 40538, 92955, 226170, 512906, 1009512, 1735319),
    (5, 90): (78, 171, 382, 816, 1700, 3462, 7162, 15275, 32950, 67834, 128470, 222438, 352764),
    (5, 180): (42, 93, 195, 387, 769, 1634, 3426, 7178, 14410, 26882, 46240, 73354, 108574),
    (10, 30): (78, 176, 380, 766, 1516, 3152, 6742, 14948, 33949, 77577, 163171, 302099, 490932),
    (10, 90): (37, 86, 174, 360, 732, 1517, 3310, 7133, 14659, 27802, 48721, 78992, 116900),
    (10, 180): (28, 64, 114, 253, 506, 1094, 2262, 4619, 8920, 16198, 26844, 41314, 59014),
    (15, 30): (36, 84, 188, 379, 776, 1645, 3574, 7814, 17057, 36309, 71270, 124603, 193255),
    (15, 90): (26, 54, 113, 214, 426, 935, 2029, 4295, 8384, 15087, 25083, 38494, 53521),
    (15, 180): (19, 42, 83, 156, 318, 673, 1462, 2990, 5642, 9833, 15749, 23376, 32053),
    (20, 30): (30, 58, 111, 230, 482, 1025, 2236, 4809, 10080, 20232, 37589, 62622, 93748),
    (20, 90): (18, 36, 72, 148, 304, 688, 1458, 2954, 5522, 9600, 15510, 22817, 30481),
    (20, 180): (18, 34, 64, 128, 264, 539, 1098, 2137, 3852, 6468, 10038, 14296, 18752),
    (30, 30): (13, 28, 55, 121, 256, 553, 1185, 2362, 4641, 8548, 14572, 22551, 32103),
    (30, 90): (10, 22, 44, 94, 202, 435, 851, 1634, 2938, 4921, 7552, 10556, 13497),
    (30, 180): (8, 13, 34, 70, 172, 346, 678, 1243, 2108, 3394, 4990, 6695, 8335),
    (40, 30): (7, 17, 36, 81, 168, 362, 732, 1450, 2708, 4668, 7416, 10916, 14990),
    (40, 90): (6, 13, 30, 68, 144, 302, 601, 1105, 1924, 3110, 4559, 6178, 7762),
    (40, 180): (6, 14, 24, 56, 124, 256, 475, 860, 1468, 2216, 3158, 4108, 4970),
    (50, 30): (7, 15, 26, 56, 117, 249, 499, 965, 1789, 2944, 4439, 6337, 8469),
    (50, 90): (7, 13, 24, 51, 110, 235, 452, 822, 1388, 2180, 3150, 4190, 5217),
    (50, 180): (6, 10, 24, 48, 106, 208, 398, 696, 1148, 1731, 2397, 3057, 3658),
    (60, 30): (5, 10, 21, 44, 101, 209, 414, 772, 1323, 2120, 3114, 4282, 5587),
    (60, 90): (1, 6, 18, 38, 87, 192, 366, 663, 1106, 1705, 2410, 3172, 3959),
    (60, 180): (2, 6, 16, 40, 90, 172, 323, 580, 942, 1406, 1926, 2462, 2987),
    (80, 30): (5, 8, 18, 39, 83, 164, 310, 556, 916, 1384, 1954, 2610, 3303),
    (80, 90): (3, 7, 14, 32, 70, 151, 299, 523, 866, 1323, 1824, 2362, 2959),
    (80, 180): (2, 6, 12, 28, 74, 146, 273, 496, 800, 1224, 1672, 2146, 2628),
}
"""Stars per square degree brighter than K = 8, 9, ... 20, for (|b|, l) in degrees. Means of both signs of b and l."""
STAR_LATITUDES, STAR_LONGITUDES = (np.unique([key[i] for key in STAR_COUNTS]) for i in (0, 1))
STAR_K_W1 = 0.05
"""K - W1 of stars. Most are F to K dwarfs, 0.0 to 0.1 mag."""
STAR_BRIGHT_SLOPE = 0.36
"""dlog10(N)/dmag of the cumulative star counts brighter than K = 8."""

GALAXY_K_MAG = np.array([15, 15.5, 16, 16.5, 17, 17.5, 18, 18.5, 19, 19.5, 19.9, 20.4, 20.9])
GALAXY_LOG_COUNTS = np.array([2.47, 2.77, 3.04, 3.27, 3.48, 3.69, 3.87, 4.06, 4.20, 4.32, 4.42, 4.56, 4.68])
"""log10 of the galaxies per square degree and magnitude at these K magnitudes."""
GALAXY_K_W1 = 0.6
"""K - W1 of galaxies near the limit of the catalogue."""
GALAXY_BRIGHT_SLOPE = 0.6
"""dlog10(N)/dmag of galaxies brighter than the table: that of a Euclidean universe."""

QUASAR_W1 = 16.15
"""W2 = 15.05 and the mean W1-W2 of quasars, 1.1."""
QUASAR_CUMULATIVE = 61.9
"""Quasars per square degree brighter than `QUASAR_W1`."""
QUASAR_SLOPES = (0.47, 0.30)
"""dlog10(N)/dmag brighter and fainter than `QUASAR_BREAK_W1`. The second one is assumed."""
QUASAR_BREAK_W1 = 16.85

BALANCED_SLOPE = 0.28
"""dlog10(N)/dmag of a training sky: flatter than the sky, so that it has enough bright sources."""


@dataclass(frozen=True)
class Counts:
    """Differential counts: `per_deg2` (3, bins) galaxies, quasars, stars per square degree in the bins of `EDGES_W1`.

    Examples
    --------
    >>> counts = natural_counts(90.0, 50.0)
    >>> 9_000 < counts.between(8.0, 17.7) < 16_000
    True
    >>> [round(float(share), 1) for share in counts.fractions([10.0])[0]]
    [0.0, 0.0, 1.0]
    """

    per_deg2: Float64

    def _cumulative(self) -> Float64:
        """Return the sources per square degree brighter than each edge."""
        return np.concatenate([[0.0], np.cumsum(self.per_deg2.sum(0))])

    def between(self, bright: float, faint: float) -> float:
        """Return the sources per square degree between two W1 magnitudes."""
        low, high = np.interp([bright, faint], EDGES_W1, self._cumulative())
        return float(high - low)

    def magnitudes(self, rng: np.random.Generator, n: int, bright: float, faint: float) -> Float64:
        """Return n random W1 magnitudes between two limits."""
        cumulative = self._cumulative()
        low, high = np.interp([bright, faint], EDGES_W1, cumulative)
        return np.interp(low + rng.random(n) * (high - low), cumulative, EDGES_W1)

    def fractions(self, w1_mag: Float64 | list[float]) -> Float64:
        """Return (N, 3) shares of galaxies, quasars and stars at W1 magnitudes."""
        bins = np.searchsorted(EDGES_W1, w1_mag, side="right").clip(1, self.per_deg2.shape[1]) - 1
        at = self.per_deg2[:, bins].T
        return cast(Float64, at / at.sum(1, keepdims=True))

    def faintest(self, per_deg2: float) -> float:
        """Return the W1 magnitude above which there are `per_deg2` sources, or that of the last edge."""
        return float(np.interp(per_deg2, self._cumulative(), EDGES_W1))


def _star_counts(l_deg: float, b_deg: float) -> Float64:
    """Return log10 of the stars per square degree brighter than `STAR_K_MAG`, interpolated in |b| and l."""
    b = np.clip(abs(b_deg), STAR_LATITUDES[0], STAR_LATITUDES[-1])
    folded = abs((l_deg + 180.0) % 360.0 - 180.0)
    longitude = np.clip(folded, STAR_LONGITUDES[0], STAR_LONGITUDES[-1])
    grid = np.log10([[STAR_COUNTS[int(lat), int(lon)] for lon in STAR_LONGITUDES] for lat in STAR_LATITUDES])
    i, j = (
        int(np.clip(np.searchsorted(nodes, value) - 1, 0, len(nodes) - 2))
        for nodes, value in ((STAR_LATITUDES, b), (STAR_LONGITUDES, longitude))
    )
    u = (b - STAR_LATITUDES[i]) / (STAR_LATITUDES[i + 1] - STAR_LATITUDES[i])
    v = (longitude - STAR_LONGITUDES[j]) / (STAR_LONGITUDES[j + 1] - STAR_LONGITUDES[j])
    near, far = (grid[k, j] * (1 - v) + grid[k, j + 1] * v for k in (i, i + 1))
    return cast(Float64, near * (1 - u) + far * u)


def _stars(l_deg: float, b_deg: float) -> Float64:
    """Return the stars per square degree in each bin."""
    log_counts = _star_counts(l_deg, b_deg)
    k = EDGES_W1 + STAR_K_W1
    bright = log_counts[0] + STAR_BRIGHT_SLOPE * (k - STAR_K_MAG[0])
    last = STAR_K_MAG[-1]
    end_slope = log_counts[-1] - log_counts[-2]
    inside = PchipInterpolator(STAR_K_MAG, log_counts)(k.clip(STAR_K_MAG[0], last)) + end_slope * (k - last).clip(0)
    return np.diff(10 ** np.where(k < STAR_K_MAG[0], bright, inside))


def _galaxies() -> Float64:
    """Return the galaxies per square degree in each bin."""
    middle = 0.5 * (EDGES_W1[1:] + EDGES_W1[:-1]) + GALAXY_K_W1
    inside = np.interp(middle, GALAXY_K_MAG, GALAXY_LOG_COUNTS)
    beyond = GALAXY_BRIGHT_SLOPE * (middle - GALAXY_K_MAG[0]).clip(max=0)
    return cast(Float64, 10 ** (inside + beyond) * np.diff(EDGES_W1))


def _quasars() -> Float64:
    """Return the quasars per square degree in each bin."""
    bright_slope, faint_slope = QUASAR_SLOPES
    at_break = QUASAR_CUMULATIVE * 10 ** (bright_slope * (QUASAR_BREAK_W1 - QUASAR_W1))
    rate = at_break * bright_slope * np.log(10)
    middle = 0.5 * (EDGES_W1[1:] + EDGES_W1[:-1]) - QUASAR_BREAK_W1
    slope = np.where(middle < 0, bright_slope, faint_slope)
    return cast(Float64, rate * 10 ** (slope * middle) * np.diff(EDGES_W1))


@lru_cache(4096)
def natural_counts(l_deg: float, b_deg: float) -> Counts:
    """Return the published counts in a galactic direction (degrees). Within 5 degrees of the plane, those at 5."""
    return Counts(np.stack([_galaxies(), _quasars(), _stars(l_deg, b_deg)]))


@lru_cache(1)
def balanced_counts() -> Counts:
    """Return equal counts of the classes with one W1 distribution: 1,000 per square degree and magnitude at W1 = 15."""
    middle = 0.5 * (EDGES_W1[1:] + EDGES_W1[:-1])
    per_bin = 1000 * 10 ** (BALANCED_SLOPE * (middle - 15.0)) * np.diff(EDGES_W1) / len(DEFAULT_CLASSES)
    return Counts(np.tile(per_bin, (len(DEFAULT_CLASSES), 1)))


def with_quasars(counts: Counts, fraction: float, bright: float, faint: float) -> Counts:
    """Return counts of the same total whose share of quasars between two magnitudes is `fraction`."""
    middle = 0.5 * (EDGES_W1[1:] + EDGES_W1[:-1])
    rows = (middle > bright) & (middle < faint)
    galaxies_stars = np.array([1.0, 0.0, 1.0])[:, None]
    total, quasars = counts.per_deg2[:, rows].sum(), counts.per_deg2[1, rows].sum()
    scale = galaxies_stars * ((1 - fraction) * total / (total - quasars))
    scale = scale + (1 - galaxies_stars) * (fraction * total / quasars)
    return Counts(counts.per_deg2 * scale)


PRIOR_W1_EDGES = (8.0, 10.0, 12.0, 13.0, 14.0, 14.5, 15.0, 15.5, 16.0, 16.5, 17.0, 17.5, 18.0)
PRIOR_ABS_B_EDGES = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0)
PRIOR_LONGITUDES = np.arange(15.0, 360.0, 30.0)


def counts_prior() -> PriorTable:
    """Return the class shares of the published counts in bins of W1 and |b|, means over all galactic longitudes.

    `python -m docs.make_tables` writes it to `skyclass/catalog/priors/counts.json`, the prior "counts".
    """
    return PriorTable(
        DEFAULT_CLASSES,
        PRIOR_W1_EDGES,
        PRIOR_ABS_B_EDGES,
        tuple(
            tuple(_shares_of_bin(low, high, b) for b in _middle_latitudes())
            for low, high in zip(PRIOR_W1_EDGES, PRIOR_W1_EDGES[1:], strict=False)
        ),
        "published counts of stars, galaxies and quasars, of all sources on the sky, see skyclass/mock/counts.py",
    )


def _middle_latitudes() -> list[float]:
    """Return the |b| that halves the area of each bin."""
    sine = np.sin(np.radians(PRIOR_ABS_B_EDGES))
    return [float(b) for b in np.degrees(np.arcsin((sine[1:] + sine[:-1]) / 2))]


def _shares_of_bin(bright: float, faint: float, b_deg: float) -> tuple[float, ...]:
    """Return the shares of the classes among the sources of all longitudes at a latitude, between two W1 magnitudes."""
    rows = (EDGES_W1[:-1] >= bright - 0.01) & (EDGES_W1[1:] <= faint + 0.01)
    counts = sum(natural_counts(l_deg, b_deg).per_deg2[:, rows].sum(1) for l_deg in PRIOR_LONGITUDES.tolist())
    return tuple(np.round(counts / counts.sum(), 6).tolist())
