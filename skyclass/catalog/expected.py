"""What probabilities say of a sample without labels: expected counts, purity, completeness and F1. Pure.

Confidence-based performance estimation: where the probabilities are calibrated, a source with probability p of a class
counts as p sources of that class. The expected confusion matrix follows, and all rates follow from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..types import Float64, Int64


class ExpectedRates(NamedTuple):
    """Expected rates of K classes, each (K,); NaN where nothing is expected.

    `n_expected` sources of a class, of which the share `completeness` has the class as predicted; of the `n_predicted`
    sources with the class as predicted, the share `purity` is of the class. `f1` is the harmonic mean of both.
    """

    n_expected: Float64
    n_predicted: Float64
    purity: Float64
    completeness: Float64
    f1: Float64


def expected_confusion(probabilities: ArrayLike, predicted: Int64) -> Float64:
    """Return the expected counts (K, K): rows are true classes, columns are predicted ones.

    >>> expected_confusion([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.array([0, 1, 0])).round(3).tolist()
    [[1.5, 0.2], [0.5, 0.8]]
    """
    p = np.asarray(probabilities, np.float64)
    return np.stack([p[predicted == k].sum(axis=0) for k in range(p.shape[1])], axis=1)


def expected_rates(confusion: ArrayLike) -> ExpectedRates:
    """Return the rates of an expected confusion matrix (K, K).

    >>> expected_rates([[90.0, 10.0], [30.0, 20.0]]).purity.round(3).tolist()
    [0.75, 0.667]
    """
    table = np.asarray(confusion, np.float64)
    right, of_class, as_class = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ExpectedRates(of_class, as_class, right / as_class, right / of_class, 2 * right / (of_class + as_class))


class Cut(NamedTuple):
    """A sample `p >= limit` of a class: its sources, and their expected purity and completeness."""

    limit: float
    n: int
    purity: float
    completeness: float


def cut_for_purity(limits: ArrayLike, n: ArrayLike, p_sum: ArrayLike, purity: float) -> Cut | None:
    """Return the most complete sample of an expected purity, or None where there is none.

    Parameters
    ----------
    limits : (B,) array
        Lower ends of bins of the probability, rising.
    n, p_sum : (B,) array
        Sources of each bin, and the sum of their probabilities.
    purity : float
        Least expected purity.

    Examples
    --------
    >>> cut = cut_for_purity([0.0, 0.5, 0.9], [800, 20, 10], [40.0, 14.0, 9.6], 0.75)
    >>> cut.limit, cut.n, round(cut.purity, 2), round(cut.completeness, 2)
    (0.5, 30, 0.79, 0.37)
    """
    counts, sums = np.asarray(n, np.float64), np.asarray(p_sum, np.float64)
    above, expected = counts[::-1].cumsum()[::-1], sums[::-1].cumsum()[::-1]
    good = np.flatnonzero((above > 0) & (expected >= purity * above))
    if not len(good):
        return None
    i = int(good[0])
    return Cut(
        float(np.asarray(limits)[i]), int(above[i]), float(expected[i] / above[i]), float(expected[i] / sums.sum())
    )
