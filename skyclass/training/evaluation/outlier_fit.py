"""Statistics of embeddings for the scores of outliers, from the sources of a training set. Pure.

    W1, labels -> edges of bins; embeddings of every other source -> means and covariance; the others -> limits

The covariance is that about the means of the classes, and the same in all bins: one for each separates no better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ConfigError
from ...model.outliers import EXCEEDED_BY, OutlierStatistics, nearest_bin
from ...model.priors import Table
from ...types import Float32, Float64, Int64
from .binned import w1_edges

LEAST_ROWS = 200
"""Sources of a class in a bin: half of them give its mean, and the others its limit."""
RIDGE = 1e-3
"""Part of the mean variance that is added to each variance, since some numbers of an embedding hardly vary."""
DIGITS = 5


def fit_outliers(embeddings: Float32, labels: Int64, w1: ArrayLike, n_classes: int) -> OutlierStatistics:
    """Return the statistics of embeddings (N, W) of sources with labels (N,) and W1 (N,) in Vega mag.

    Sources without W1 are left out. The first, third ... sources of a class give means and covariance, the others the
    limits: a distance to a mean of which the source itself is a part would be too small. Raises `ConfigError` where the
    sources do not fill one bin.
    """
    magnitude = np.asarray(w1, np.float64)
    known = np.isfinite(magnitude)
    x, y, magnitude = np.asarray(embeddings, np.float64)[known], labels[known], magnitude[known]
    if not x.shape[1]:
        raise ConfigError("the network of the model gives no embedding: scores of outliers need one")
    if not len(x):
        raise ConfigError("no row has W1: scores of outliers are in bins of W1")
    edges = w1_edges(magnitude, y, np.zeros(len(x), np.int64), n_classes, LEAST_ROWS)
    cell = nearest_bin(magnitude, edges) * n_classes + y
    n_cells = (len(edges) - 1) * n_classes
    order = np.argsort(cell, kind="stable")
    fitted = np.zeros(len(x), np.bool_)
    fitted[order[::2]] = True
    means = np.stack([x[fitted & (cell == c)].mean(0) for c in range(n_cells)])
    factor = whitening((x - means[cell])[fitted])
    distance = np.sqrt((((x - means[cell]) @ factor) ** 2).sum(1))
    limits = np.array([np.quantile(distance[~fitted & (cell == c)], 1 - EXCEEDED_BY) for c in range(n_cells)])
    shape = (len(edges) - 1, n_classes)
    return OutlierStatistics(
        edges,
        tuple(_rounded(of_bin) for of_bin in means.reshape(*shape, -1)),
        tuple(row[: i + 1] for i, row in enumerate(_rounded(factor))),
        _rounded(limits.reshape(shape)),
        tuple(map(tuple, np.bincount(cell, minlength=n_cells).reshape(shape).tolist())),
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
