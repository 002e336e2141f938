"""The class shares of a sky, estimated from the probabilities of its sources without labels. Pure.

    probabilities of a bin -> cells -> estimated_shares -> share_intervals, fit_of

The sources of a bin are counted in cells of nearly equal probabilities. The counts of parts of a catalogue add up, so
that each part is read once, and the estimate takes no second pass. The estimate is the maximum of the likelihood, found
with the expectation-maximisation of Saerens, Latinne & Decaestecker 2002 (Neural Computation 14, 21). It assumes that
each class looks the same on the sky and in the calibration, which `fit_of` tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..model.priors import LEAST_P
from ..types import Float64, Int64

STEP, LIMIT = 0.25, 8.0
"""Width of a cell and largest value, in the logarithm of the ratio of two probabilities."""
TOLERANCE = 1e-7
MAX_STEPS = 5_000
LEVEL = 0.95
LEAST_P_VALUE, LARGEST_DISTANCE = 1e-3, 0.05
"""A fit is refused where its p-value is smaller and its distance is larger. With many sources, any small difference has
a small p-value; with few sources, chance makes any distance."""


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
