"""Statistics of embeddings for the scores of outliers, from the sources of a training set. Pure.

    W1 -> edges of bins; embeddings of every other source -> means and covariance; distances of the others -> limits

The covariance is that about the means of the bins, and the same in all bins: one for each bin separates no better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ConfigError
from ...model.outliers import EXCEEDED_BY, OutlierStatistics, nearest_bin
from ...model.priors import Table
from ...types import Float32, Float64
from .binned import w1_edges

LEAST_ROWS = 200
"""Sources of a bin: half of them give its mean, and the others its limit."""
RIDGE = 1e-3
"""Part of the mean variance that is added to each variance, since some numbers of an embedding hardly vary."""
DIGITS = 5


def fit_outliers(embeddings: Float32, w1: ArrayLike) -> OutlierStatistics:
    """Return the statistics of embeddings (N, W) of sources with W1 (N,) in Vega mag; sources without W1 are left out.

    The first, third ... sources give means and covariance, the others the limits: a distance to a mean of which the
    source itself is a part would be too small. Raises `ConfigError` where the sources do not fill one bin.
    """
    magnitude = np.asarray(w1, np.float64)
    known = np.isfinite(magnitude)
    x, magnitude = np.asarray(embeddings, np.float64)[known], magnitude[known]
    if not x.shape[1]:
        raise ConfigError("the network of the model gives no embedding: scores of outliers need one")
    if len(x) < LEAST_ROWS:
        raise ConfigError(f"too few rows with W1 for a bin ({len(x):,}): give {LEAST_ROWS} or more")
    zeros = np.zeros(len(x), np.int64)
    edges = w1_edges(magnitude, zeros, zeros, 1, LEAST_ROWS)
    index = nearest_bin(magnitude, edges)
    fitted = np.arange(len(x)) % 2 == 0
    bins = range(len(edges) - 1)
    means = np.stack([x[fitted & (index == b)].mean(0) for b in bins])
    factor = whitening((x - means[index])[fitted])
    distance = np.sqrt((((x - means[index]) @ factor) ** 2).sum(1))
    limits = [np.quantile(distance[~fitted & (index == b)], 1 - EXCEEDED_BY) for b in bins]
    return OutlierStatistics(
        edges,
        _rounded(means),
        tuple(row[: i + 1] for i, row in enumerate(_rounded(factor))),
        _rounded(np.array([limits]))[0],
        tuple(np.bincount(index, minlength=len(bins)).tolist()),
    )


def whitening(residuals: Float64) -> Float64:
    """Return the lower triangle (W, W) whose product with residuals (N, W) has the covariance 1."""
    covariance = residuals.T @ residuals / len(residuals)
    ridge = RIDGE * float(np.trace(covariance)) / len(covariance) + float(np.finfo(np.float32).tiny)
    factor: Float64 = np.linalg.cholesky(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))
    return factor


def _rounded(rows: Float64) -> Table:
    """Return rows with `DIGITS` significant digits."""
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in rows.tolist())
