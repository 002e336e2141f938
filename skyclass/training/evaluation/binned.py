"""Calibration in bins of W1 and |b|: by temperature and bias, or by vector scaling where that is better. Pure.

    labels, W1, |b| -> abs_b_edges, w1_edges
    probabilities, labels -> fitted_scaling (of each bin) -> fit_in_bins -> BinnedCalibration

Bins are joined until each class has enough rows in each. The kind of scaling is the same in all bins: that of less loss
on rows that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from ...errors import ConfigError
from ...model.priors import LEAST_P, NO_BIN, BinnedCalibration, bin_of, confidence_counts
from ...types import Float64, Int64

Kind = Literal["temperature", "vector"]
KINDS: tuple[Kind, ...] = ("temperature", "vector")

FINE_EDGES = tuple(np.arange(6.0, 20.01, 0.5).round(2).tolist())
"""Edges in W1 (Vega mag) from which bins are joined."""
COARSE_ABS_B_EDGES = (0.0, 10.0, 20.0, 30.0, 90.0)
"""Edges in |b| (deg): near the plane sources are crowded, and a class looks different."""
LEAST_ROWS = 100
"""Rows that each class needs in each bin."""
SCALE_LIMITS = (0.05, 20.0)
RIDGE = 1e-3
"""Weight of a penalty that pulls scales to 1 and biases to 0, so that they stay moderate in bins of few rows."""
FOLDS = 5
SET_SHARE = 0.9
"""Share of the sources of a class that have the class in their set."""
LEAST_SET_ROWS = 500
"""Rows of a class for the threshold of its sets; neighbouring bins are joined until they have as many."""


def abs_b_edges(abs_b_deg: ArrayLike, labels: Int64, n_classes: int, least: int = LEAST_ROWS) -> tuple[float, ...]:
    """Return edges in |b| between which each class has `least` rows or more, joined from `COARSE_ABS_B_EDGES`.

    Bins are joined from the poles on. What is left near the plane has too few rows and gets no bin. Raises
    `ConfigError` where the rows do not fill one bin.

    >>> abs_b_edges(np.repeat([5.0, 15.0, 25.0, 50.0], [10, 200, 200, 400]), np.tile([0, 1], 405), 2, least=150)
    (10.0, 30.0, 90.0)
    """
    b = np.asarray(abs_b_deg, np.float64)
    counts = np.stack([np.histogram(b[labels == k], COARSE_ABS_B_EDGES)[0] for k in range(n_classes)], axis=1)
    edges, total = [COARSE_ABS_B_EDGES[-1]], np.zeros(n_classes, np.int64)
    for i in reversed(range(len(counts))):
        total += counts[i]
        if (total >= least).all():
            edges.append(COARSE_ABS_B_EDGES[i])
            total[:] = 0
    if len(edges) < 2:
        raise ConfigError(f"too few rows for a bin of |b|: give {least} of each class or more")
    return tuple(reversed(edges))


def w1_edges(
    w1: ArrayLike, labels: Int64, columns: Int64, n_classes: int, least: int = LEAST_ROWS
) -> tuple[float, ...]:
    """Return edges in W1 between which each class has `least` rows or more in each bin of |b|.

    They are joined from `FINE_EDGES`, from the faint end on. `columns` (N,) is the bin of |b| of each row. The outer
    edges enclose the rows of every class, so that no bin reaches where a class has no rows. Raises `ConfigError` where
    the rows do not fill one bin.

    >>> w1 = np.tile([10.2, 12.2, 12.7, 15.2], 200)
    >>> w1_edges(w1, np.tile([0, 1], 400), np.zeros(800, int), 2, least=150)
    (10.0, 12.5, 15.5)
    """
    x = np.asarray(w1, np.float64)
    groups = [labels + n_classes * columns == g for g in range(n_classes * (columns.max() + 1))]
    counts = np.stack([np.histogram(x[group], FINE_EDGES)[0] for group in groups], axis=1)
    filled = np.flatnonzero(counts.sum(1))
    if not len(filled) or (counts.sum(0) < least).any():
        short = [f"{n:,} of class {g % n_classes}" for g, n in enumerate(counts.sum(0).tolist()) if n < least]
        raise ConfigError(f"too few rows with W1 for a bin ({', '.join(short) or 'none'}): give {least} of each class")
    edges, total = [FINE_EDGES[filled[-1] + 1]], np.zeros(len(groups), np.int64)
    for i in range(filled[-1], filled[0] - 1, -1):
        total += counts[i]
        if (total >= least).all():
            edges.append(FINE_EDGES[i])
            total[:] = 0
    edges[-1] = FINE_EDGES[filled[0]]  # the brightest rows, too few for a bin, join the one before
    return tuple(reversed(edges))


def fitted_scaling(log_p: Float64, labels: Int64, kind: Kind) -> tuple[Float64, Float64]:
    """Return the scales (K,) and zero-sum biases (K,) of least loss of softmax(scale * log_p + bias).

    With "temperature" all scales are equal: bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar 2020).
    With "vector" each class has its own (Guo et al. 2017, arXiv:1706.04599).
    """
    n, k = log_p.shape
    rows, one_hot = np.arange(n), np.eye(k)[labels]
    n_scales = k if kind == "vector" else 1

    def loss_and_gradient(point: Float64) -> tuple[float, Float64]:
        scale, bias = point[:n_scales], point[n_scales:]
        logs = special.log_softmax(scale * log_p + bias, axis=1)
        residual = (np.exp(logs) - one_hot) / n
        by_scale = (residual * log_p).sum(0)
        gradient = np.r_[by_scale if kind == "vector" else by_scale.sum(), residual.sum(0)]
        change = np.r_[scale - 1, bias]
        loss = -float(logs[rows, labels].mean()) + RIDGE * float(change @ change)
        return loss, gradient + 2 * RIDGE * change

    start = np.r_[np.ones(n_scales), np.zeros(k)]
    limits = [SCALE_LIMITS] * n_scales + [(None, None)] * k
    point = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=limits).x
    bias = point[n_scales:]
    return np.broadcast_to(point[:n_scales], (k,)).copy(), bias - bias.mean()


def fit_in_bins(
    probabilities: ArrayLike,
    labels: Int64,
    w1: ArrayLike,
    abs_b_deg: ArrayLike,
    tile: ArrayLike,
    classes: Sequence[str],
    least: int = LEAST_ROWS,
) -> tuple[BinnedCalibration, dict[Kind, float]]:
    """Return the calibration of a model in bins of W1 and |b|, and the loss of each kind of scaling on held-out rows.

    Parameters
    ----------
    probabilities : (N, K) array
        Probabilities of the model.
    labels : (N,) int64
        True classes, indices into `classes`.
    w1, abs_b_deg : (N,) array
        W1 in Vega mag and |b| in degrees; rows without are left out.
    tile : (N,) array
        A number for the tile of each row.
    classes : sequence of str
        K classes in the order of the probabilities.
    least : int
        Rows that each class needs in each bin.

    Returns
    -------
    BinnedCalibration
        Its class shares are those of the rows in each bin.
    dict
        Mean negative log-likelihood of "temperature" and of "vector" in cross-validation. The kind of less loss is
        fitted in all bins.

    Raises
    ------
    ConfigError
        If the rows do not fill one bin.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> w1, labels, b = rng.uniform(14, 16, 4000), rng.integers(0, 2, 4000), np.full(4000, 50.0)
    >>> p = special.softmax((np.eye(2)[labels] + rng.normal(size=(4000, 2))) * 0.5, axis=1)
    >>> calibration, losses = fit_in_bins(p, labels, w1, b, np.zeros(4000), ("galaxy", "star"))
    >>> calibration.w1_edges, calibration.abs_b_edges, calibration.scale[0][0] > 1
    ((14.0, 14.5, 15.0, 15.5, 16.0), (30.0, 90.0), True)
    """
    n_classes, b_edges = len(classes), abs_b_edges(abs_b_deg, labels, len(classes), least)
    column = bin_of(abs_b_deg, b_edges)
    inside = column != NO_BIN
    edges = w1_edges(np.asarray(w1)[inside], labels[inside], column[inside], n_classes, least)
    log_p = np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST_P))
    n_columns = len(b_edges) - 1
    row = bin_of(w1, edges)
    index = np.where(inside & (row != NO_BIN), row * n_columns + column, NO_BIN)
    rows = [np.flatnonzero(index == c) for c in range((len(edges) - 1) * n_columns)]
    losses: dict[Kind, float] = {kind: held_out_loss(log_p, labels, rows, kind) for kind in KINDS}
    kind = min(losses, key=lambda name: losses[name])
    fitted = [fitted_scaling(log_p[some], labels[some], kind) for some in rows]
    counts = [np.bincount(labels[some], minlength=n_classes) for some in rows]
    thresholds = np.empty((len(rows), n_classes))
    for c in range(n_columns):
        thresholds[c::n_columns] = set_thresholds(np.exp(log_p), labels, rows[c::n_columns])
    calibration = BinnedCalibration(
        tuple(classes),
        edges,
        b_edges,
        _table([scale for scale, _ in fitted]),
        _table([bias for _, bias in fitted]),
        _table([n / n.sum() for n in counts]),
        tuple(tuple(n.tolist()) for n in counts),
        tuple(
            _reference(special.softmax(scale * log_p[some] + bias, axis=1), labels[some], np.asarray(tile)[some])
            for some, (scale, bias) in zip(rows, fitted, strict=True)
        ),
        _table(thresholds),
    )
    return calibration, losses


def set_thresholds(p: Float64, labels: Int64, rows: Sequence[Int64], least: int = LEAST_SET_ROWS) -> Float64:
    """Return the smallest probability (B, K) with which a class is in the set of a source, for the rows of each bin.

    It is the k-th smallest probability of the true class, with k = floor((1 - SET_SHARE) (n + 1)) of n rows: a new
    source of the class has at least this probability in SET_SHARE of cases or more (Vovk, Gammerman & Shafer 2005).
    Bins with fewer than `least` rows of a class share the threshold of joined bins, from the faint end on.
    """
    thresholds = np.empty((len(rows), p.shape[1]))
    for k in range(p.shape[1]):
        of_class = [p[some[labels[some] == k], k] for some in rows]
        for joined in joined_bins([len(values) for values in of_class], least):
            values = np.sort(np.concatenate([of_class[b] for b in joined]))
            rank = int((1 - SET_SHARE) * (len(values) + 1) + 1e-9)  # 0.1 * 600 is 59.99...
            thresholds[list(joined), k] = values[rank - 1] if rank else 0.0
    return np.floor(thresholds * 1e6) / 1e6  # `_table` would round some of them up


def joined_bins(counts: Sequence[int], least: int) -> list[range]:
    """Return ranges of neighbouring bins that hold `least` rows or more each, joined from the last bin on.

    The first bins, too few for a range of their own, join the range after them.

    >>> joined_bins([100, 300, 600, 200, 450], 500)
    [range(0, 3), range(3, 5)]
    """
    ranges, stop, total = [], len(counts), 0
    for i in reversed(range(len(counts))):
        total += counts[i]
        if total >= least:
            ranges.append(range(i, stop))
            stop, total = i, 0
    if stop:
        last = ranges.pop() if ranges else range(stop, len(counts))
        ranges.append(range(last.stop))
    return ranges[::-1]


def _reference(p: Float64, labels: Int64, tile: NDArray[Any]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the `confidence_counts` of the rows of each class on each tile."""
    return tuple(
        tuple(tuple(confidence_counts(p[(tile == t) & (labels == k)]).tolist()) for k in range(p.shape[1]))
        for t in np.unique(tile)
    )


def held_out_loss(log_p: Float64, labels: Int64, rows: Sequence[Int64], kind: Kind) -> float:
    """Return the mean loss over the rows of all bins, each predicted by a fit to the other folds of its bin."""
    total = 0.0
    for some in rows:
        for fold in range(FOLDS):
            out = np.arange(len(some)) % FOLDS == fold
            scale, bias = fitted_scaling(log_p[some[~out]], labels[some[~out]], kind)
            logs = special.log_softmax(scale * log_p[some[out]] + bias, axis=1)
            total -= float(logs[np.arange(out.sum()), labels[some[out]]].sum())
    return total / max(1, sum(map(len, rows)))


def _table(rows: Iterable[Float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(np.round(row, 6).tolist()) for row in rows)
