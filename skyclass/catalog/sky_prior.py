"""The class shares of a sky, estimated from the probabilities of its sources without labels. Pure.

    sources of a part -> sky_counts -> merged_counts -> estimated_prior -> PriorTable and one BinEstimate for each bin
    in a bin: Cells -> estimated_shares -> share_intervals, fit_of

The sources of a bin in W1 and |b| are counted in cells of nearly equal probabilities. The counts of parts of a
catalogue add up, so that each part is read once, and the estimate takes no second pass. The estimate is the maximum of
the likelihood, found with the expectation-maximisation of Saerens, Latinne & Decaestecker 2002 (Neural Computation 14,
21). It assumes that each class looks the same on the sky and in the calibration, which `fit_of` tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..model.priors import (
    ABS_B_EDGES,
    LEAST_P,
    NO_BIN,
    BinnedCalibration,
    PriorTable,
    bin_of,
    calibrated_in_bins,
    confidence_counts,
)
from ..text import counted
from ..types import Float64, Int64

STEP, LIMIT = 0.25, 8.0
"""Width of a cell and largest value, in the logarithm of the ratio of two probabilities."""
TOLERANCE = 1e-7
MAX_STEPS = 5_000
LEVEL = 0.95
SCATTER_DRAWS, SCATTER_STEPS = 60, 300
PRIOR_COUNT = 0.1
"""Rows that are added to each cell of the calibration, so that an empty cell has some density."""
LEAST_TILE_ROWS = 30
"""Rows of each class on a tile of the calibration for its part in the differences between tiles."""
LEAST_SOURCES = 500
"""A bin with fewer sources is not estimated."""
LEAST_P_VALUE, LARGEST_DISTANCE = 1e-3, 0.05
"""A fit is refused where its p-value is smaller and its distance is larger. With many sources, any small difference has
a small p-value; with few sources, chance makes any distance."""
LARGEST_HALF_WIDTH = 0.1
"""Shares are refused where a 95 % interval is wider on either side, as a mean of both sides."""


@dataclass(frozen=True)
class Cells:
    """Sources counted in M cells: `code` (M, K-1), their number `n` (M,), and the sum of their probabilities (M, K)."""

    code: NDArray[np.int16]
    n: Int64
    total: Float64

    @property
    def mean(self) -> Float64:
        """Mean probabilities (M, K) of the sources of each cell."""
        return self.total / self.n[:, None]


def cells(probabilities: ArrayLike) -> Cells:
    """Return sources with probabilities (N, K), counted in cells.

    >>> counted = cells([[0.5, 0.5], [0.51, 0.49], [0.9, 0.1]])
    >>> counted.n.tolist(), counted.mean.round(3).tolist()
    ([2, 1], [[0.505, 0.495], [0.9, 0.1]])
    """
    p = np.maximum(np.asarray(probabilities, np.float64), LEAST_P)
    ratio = np.clip(np.log(p[:, :-1]) - np.log(p[:, -1:]), -LIMIT, LIMIT)
    return _grouped(np.rint(ratio / STEP).astype(np.int16), np.ones(len(p), np.int64), p)


def merged(parts: Iterable[Cells]) -> Cells:
    """Return the cells of several parts of a sky as those of the whole."""
    some = list(parts)
    return _grouped(
        np.concatenate([part.code for part in some]),
        np.concatenate([part.n for part in some]),
        np.concatenate([part.total for part in some]),
    )


def _grouped(code: NDArray[np.int16], n: Int64, total: Float64) -> Cells:
    unique, cell = np.unique(code, axis=0, return_inverse=True)
    cell = cell.ravel()
    sums = [np.bincount(cell, weights=column, minlength=len(unique)) for column in total.T]
    return Cells(unique, np.bincount(cell, weights=n, minlength=len(unique)).astype(np.int64), np.stack(sums, axis=1))


def estimated_shares(sources: Cells, old_shares: ArrayLike) -> Float64:
    """Return the class shares (K,) of sources whose probabilities refer to the class shares `old_shares` (K,)."""
    old = np.asarray(old_shares, np.float64)
    return _maximised(sources.mean / old, sources.n, old)


def _maximised(density: Float64, n: Int64, start: Float64, fixed: int | None = None, value: float = 0.0) -> Float64:
    """Return the shares (K,) of largest likelihood for densities (M, K) of cells with n (M,) sources.

    With `fixed`, the share of that class is `value`.
    """
    shares = np.maximum(start, 1e-9)
    others = np.ones(len(shares), np.bool_)
    if fixed is not None:
        others[fixed] = False
        shares[fixed] = value
        shares[others] *= (1 - value) / shares[others].sum()
    weight = n / n.sum()
    for _ in range(MAX_STEPS):
        mixed = density @ shares
        update = shares * (weight @ (density / mixed[:, None]))
        if fixed is not None:
            update[fixed] = value
            update[others] *= (1 - value) / max(update[others].sum(), 1e-300)
        change = np.abs(update - shares).max()
        shares = update
        if change < TOLERANCE:
            break
    return np.asarray(shares / shares.sum())


def log_likelihood(density: Float64, n: Int64, shares: Float64) -> float:
    """Return the logarithm of the likelihood of shares (K,) for densities (M, K) of cells with n (M,) sources."""
    return float(n @ np.log(np.maximum(density @ shares, 1e-300)))


def share_intervals(sources: Cells, old_shares: ArrayLike, shares: Float64) -> Float64:
    """Return the 95 % intervals (K, 2) of estimated shares by the profile of the likelihood (Wilks 1938).

    They have the scatter of the sources of the sky alone, not that of the calibration.
    """
    old = np.asarray(old_shares, np.float64)
    density, n = sources.mean / old, sources.n
    least = log_likelihood(density, n, shares) - stats.chi2.ppf(LEVEL, 1) / 2
    return np.array([[_end(density, n, shares, k, least, end) for end in (0.0, 1.0)] for k in range(len(shares))])


def _end(density: Float64, n: Int64, shares: Float64, k: int, least: float, outer: float) -> float:
    """Return the share of class k, from its estimate to `outer`, at which the profile of the likelihood is `least`."""

    def profile(value: float) -> float:
        return log_likelihood(density, n, _maximised(density, n, shares.copy(), k, value))

    inner, outer = float(shares[k]), min(max(outer, 1e-9), 1 - 1e-9)
    if profile(outer) >= least:
        return round(outer, 6)
    for _ in range(40):
        middle = (inner + outer) / 2
        if profile(middle) >= least:
            inner = middle
        else:
            outer = middle
        if abs(inner - outer) < 1e-6 + 1e-3 * inner:
            break
    return inner


def calibration_scatter(reference: ArrayLike, shares: ArrayLike) -> Float64:
    """Return the standard deviations (K,) of estimated shares that follow from the calibration.

    It has two parts: the finite number of its rows, and the differences between its tiles, because a sky differs from
    the mean of the tiles as each of them does.

    Parameters
    ----------
    reference : (T, K, G) array
        `confidence_counts` of the calibration's rows of each class on T tiles.
    shares : (K,) array
        Estimated class shares of the sky.
    """
    r, s = np.asarray(reference, np.float64), np.asarray(shares, np.float64)
    pooled, rng = r.sum(0), np.random.default_rng(0)
    observed = s @ _density(pooled)
    of_rows = _shares_of(observed, _dirichlet(pooled, rng), s).var(axis=0)
    full = r[(r.sum(2) >= LEAST_TILE_ROWS).all(axis=1)]
    if len(full) < 2:
        return np.asarray(np.sqrt(of_rows))
    density = _density(pooled)
    skies = np.stack([s @ _density(tile) for tile in full])
    noise = np.mean([_shares_of(s @ _dirichlet(tile, rng), density, s).var(axis=0) for tile in full], axis=0)
    of_tiles = np.maximum(_shares_of(skies, density, s).var(axis=0, ddof=1) - noise, 0)
    return np.asarray(np.sqrt(of_rows + of_tiles * (1 + 1 / len(full))))


def _density(counts: Float64) -> Float64:
    """Return the densities (K, G) of the classes over cells, from counts of rows."""
    smooth = counts + PRIOR_COUNT
    return np.asarray(smooth / smooth.sum(-1, keepdims=True))


def _dirichlet(counts: Float64, rng: np.random.Generator) -> Float64:
    """Return random densities (draws, K, G) that counts (K, G) allow."""
    return np.stack([rng.dirichlet(row + PRIOR_COUNT, SCATTER_DRAWS) for row in counts], axis=1)


def _shares_of(observed: Float64, density: Float64, start: Float64) -> Float64:
    """Return shares (D, K) of largest likelihood for distributions over cells (D, G) or (G,), and densities of classes.

    The densities are (D, K, G) or (K, G).
    """
    shares = np.tile(np.maximum(start, 1e-9), (np.broadcast_shapes(observed.shape[:-1], density.shape[:-2])[0], 1))
    for _ in range(SCATTER_STEPS):
        mixed = np.maximum(np.einsum("...kg,...k->...g", density, shares), 1e-300)
        shares = shares * np.einsum("...kg,...g->...k", density, observed / mixed)
    return shares


def widened(ends: Float64, shares: Float64, scatter: Float64) -> Float64:
    """Return intervals (K, 2) of shares with a further scatter (K,) added in quadrature."""
    more = stats.norm.ppf((1 + LEVEL) / 2) * scatter
    half = np.sqrt((ends - shares[:, None]) ** 2 + more[:, None] ** 2)
    return np.asarray(np.clip(shares[:, None] + half * [-1, 1], 0, 1))


class Fit(NamedTuple):
    """How well a sky fits the calibration: p-value of the chi-square test, and total variation distance."""

    p_value: float
    distance: float

    @property
    def is_good(self) -> bool:
        """Whether the shares of the sky may be estimated."""
        return self.p_value >= LEAST_P_VALUE or self.distance <= LARGEST_DISTANCE


def fit_of(observed: ArrayLike, reference: ArrayLike, shares: ArrayLike) -> Fit:
    """Return how well the counts of a sky fit those of the calibration at the estimated shares.

    Parameters
    ----------
    observed : (G,) array
        `skyclass.model.priors.confidence_counts` of the sources of the sky.
    reference : (K, G) array
        `confidence_counts` of the calibration's rows of each class.
    shares : (K,) array
        Estimated class shares of the sky.

    Returns
    -------
    Fit
        Chi-square test with the scatter of both samples, and half of the sum of absolute differences of the shares of
        cells.
    """
    o, r, s = (np.asarray(values, np.float64) for values in (observed, reference, shares))
    n, n_class = o.sum(), np.maximum(r.sum(1, keepdims=True), 1)
    density = r / n_class
    expected = n * (s @ density)
    scatter = expected + n**2 * (s**2 @ (density * (1 - density) / n_class))
    used = expected >= 1
    chi2 = float((((o - expected) ** 2) / np.maximum(scatter, 1e-300))[used].sum())
    degrees = max(int(used.sum()) - len(s), 1)
    return Fit(float(stats.chi2.sf(chi2, degrees)), float(np.abs(o - expected).sum() / (2 * max(n, 1))))


# --- all bins of a sky ------------------------------------------------------------------------------


class BinCounts(NamedTuple):
    """The sources of a bin: `cells`, and their `confidence_counts` (G,)."""

    cells: Cells
    confidence: Int64


SkyCounts = dict[tuple[int, int], BinCounts]
"""(bin of W1, bin of |b|) -> the sources there. Bins without sources are left out."""


@dataclass(frozen=True)
class BinEstimate:
    """The estimate for a bin in W1 and |b|.

    Attributes
    ----------
    w1, abs_b_deg : tuple of float
        Lower and upper edge.
    n_sources : int
        Sources with probabilities.
    shares, intervals : tuple or None
        Class shares (K,) and their 95 % intervals (K, 2), with the scatter of the sources and that of the rows of the
        calibration; None where nothing was estimated.
    fit : Fit or None
        How well the sources fit the calibration.
    refusal : str
        Why the bin has no shares in the prior table; empty if it has.
    """

    w1: tuple[float, float]
    abs_b_deg: tuple[float, float]
    n_sources: int
    shares: tuple[float, ...] | None = None
    intervals: tuple[tuple[float, float], ...] | None = None
    fit: Fit | None = None
    refusal: str = ""


def sky_counts(
    probabilities: ArrayLike,
    w1: ArrayLike,
    abs_b_deg: ArrayLike,
    calibration: BinnedCalibration,
) -> SkyCounts:
    """Return the counts of sources with probabilities (N, K) of a model, by bins of W1 (Vega mag) and |b| (deg).

    Each bin of |b| lies in one bin of the calibration, or outside. Sources without probabilities or W1, and those
    outside the bins of the calibration, do not count.
    """
    p, _ = calibrated_in_bins(probabilities, w1, abs_b_deg, calibration)
    i = bin_of(w1, calibration.w1_edges)
    j = bin_of(abs_b_deg, ABS_B_EDGES)
    used = np.flatnonzero((i != NO_BIN) & (j != NO_BIN) & np.isfinite(p).all(axis=1))
    n_b = len(ABS_B_EDGES) - 1
    flat = i[used] * n_b + j[used]
    return {
        divmod(key, n_b): BinCounts(cells(some), confidence_counts(some))
        for key, some in ((key, p[used[flat == key]]) for key in np.unique(flat).tolist())
    }


def merged_counts(parts: Iterable[SkyCounts]) -> SkyCounts:
    """Return the counts of several parts of a sky as those of the whole."""
    by_bin: dict[tuple[int, int], list[BinCounts]] = {}
    for part in parts:
        for key, value in part.items():
            by_bin.setdefault(key, []).append(value)
    return {
        key: BinCounts(merged(one.cells for one in some), np.sum([one.confidence for one in some], axis=0))
        for key, some in sorted(by_bin.items())
    }


def estimated_prior(
    counts: SkyCounts,
    calibration: BinnedCalibration,
    least_sources: int = LEAST_SOURCES,
) -> tuple[PriorTable, list[BinEstimate]]:
    """Return the class shares of a sky in bins of W1 and |b|, and the estimate of each bin.

    The table has no shares for bins with fewer than `least_sources` sources, and for those whose sources do not fit the
    calibration.
    """
    n_w1, n_b = len(calibration.w1_edges) - 1, len(ABS_B_EDGES) - 1
    bins = [
        _bin_estimate(
            counts.get((i, j)),
            (calibration.w1_edges[i], calibration.w1_edges[i + 1]),
            (ABS_B_EDGES[j], ABS_B_EDGES[j + 1]),
            calibration,
            least_sources,
        )
        for i in range(n_w1)
        for j in range(n_b)
    ]
    shares = [None if one.refusal else one.shares for one in bins]
    rows = tuple(tuple(shares[i * n_b : (i + 1) * n_b]) for i in range(n_w1))
    label = "estimated from the probabilities of the sources of this catalogue (Saerens et al. 2002)"
    return PriorTable(calibration.classes, calibration.w1_edges, ABS_B_EDGES, rows, label), bins


def _bin_estimate(
    sources: BinCounts | None,
    w1: tuple[float, float],
    abs_b_deg: tuple[float, float],
    calibration: BinnedCalibration,
    least: int,
) -> BinEstimate:
    n = int(sources.cells.n.sum()) if sources else 0
    if sources is None or n < least:
        return BinEstimate(w1, abs_b_deg, n, refusal=f"{counted(n, 'source')}, fewer than {least:,}")
    c = int(calibration.bin_of([sum(w1) / 2], [sum(abs_b_deg) / 2])[0])
    old, reference = np.asarray(calibration.shares[c]), np.asarray(calibration.reference[c])
    shares = estimated_shares(sources.cells, old)
    fit = fit_of(sources.confidence, reference.sum(0), shares)
    ends = widened(share_intervals(sources.cells, old, shares), shares, calibration_scatter(reference, shares))
    refusal = _refusal(fit, ends, calibration.classes)
    return BinEstimate(
        w1, abs_b_deg, n, tuple(np.round(shares / shares.sum(), 8).tolist()),
        tuple((float(low), float(high)) for low, high in np.round(ends, 8)), fit, refusal,
    )  # fmt: skip


def _refusal(fit: Fit, ends: Float64, classes: Sequence[str]) -> str:
    """Return why estimated shares with intervals (K, 2) cannot be used; empty if they can."""
    if not fit.is_good:
        return f"the sources do not fit the calibration (distance {fit.distance:.2f}, p-value {fit.p_value:.0e})"
    half = (ends[:, 1] - ends[:, 0]) / 2
    if half.max() > LARGEST_HALF_WIDTH:
        return f"the share of {classes[int(half.argmax())]} is uncertain by {half.max():.2f}"
    return ""
