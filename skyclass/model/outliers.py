"""Outliers: how far the embedding of an image lies from the classes at the same W1. Pure.

    embeddings, labels, W1 of reference sources -> training/evaluation/outlier_fit.py -> OutlierStatistics
    embeddings, W1 -> OutlierStatistics.scores

The embedding of a network is the input of its last layer. Its distance is that of Mahalanobis (Lee et al. 2018,
arXiv:1807.03888), from the nearest mean of a class in the same bin of W1. Faint and bright sources have other
embeddings: without bins the score would only find rare magnitudes. The classes have other embeddings, too: with one
mean of all classes, the sources of a rare class, such as quasars, would be outliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from ..row_products import row_products
from ..types import Float32, Float64, Int64
from .priors import Table, edge_problems

EXCEEDED_BY = 0.02
"""Share of the reference sources of a class with a score above 1."""


@dataclass(frozen=True)
class OutlierStatistics:
    """The embeddings of reference sources of K classes in B bins of W1, W numbers each.

    The score of a source with embedding e in bin b is the smallest |(e - means[b][k]) whitening| / limits[b][k] of the
    classes k.

    Attributes
    ----------
    w1_edges : tuple of float
        B + 1 edges of the bins (Vega mag). A source outside belongs to the nearest bin.
    means : (B, K, W) tuples of float
        Mean of the embeddings of a class in a bin.
    whitening : tuple of tuples of float
        Rows of a lower triangle (W, W), the Cholesky factor of the inverse covariance about the means.
    limits : (B, K) tuples of float
        Distance from the mean of their class that `EXCEEDED_BY` of the held-out sources of the class exceed.
    counts : (B, K) tuples of int
        Sources of each class in each bin.

    Raises
    ------
    ConfigError
        For numbers that do not fit together; the message has all problems.
    """

    w1_edges: tuple[float, ...]
    means: tuple[Table, ...]
    whitening: Table
    limits: Table
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        problems = edge_problems("w1_edges", self.w1_edges)
        n_bins, width = len(self.w1_edges) - 1, len(self.whitening)
        if [len(row) for row in self.whitening] != list(range(1, width + 1)):
            problems.append("whitening: give a triangle, rows of 1, 2, 3 ... numbers")
        n_classes = len(self.limits[0]) if self.limits else 0
        if [[len(row) for row in of_bin] for of_bin in self.means] != [[width] * n_classes] * n_bins:
            problems.append(f"means: give {width} numbers for each of {n_bins} bins and {n_classes} classes")
        for name, values in (("limits", self.limits), ("counts", self.counts)):
            if [len(row) for row in values] != [n_classes] * n_bins or not n_classes:
                problems.append(f"{name}: give {n_classes or 'some'} numbers for each of {n_bins} bins")
        if any(not 0 < limit < np.inf for row in self.limits for limit in row):
            problems.append("limits: a number is not positive")
        if not all(np.isfinite(row).all() for row in (*(row for rows in self.means for row in rows), *self.whitening)):
            problems.append("a number is not finite")
        if problems:
            raise ConfigError("outlier statistics: " + "; ".join(problems))

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return len(self.whitening)

    @cached_property
    def _arrays(self) -> tuple[Float32, Float32, Float32]:
        """Whitened means (B, K, W), whitening (W, W) and limits (B, K)."""
        whitening = np.zeros((self.width, self.width))
        whitening[np.tril_indices(self.width)] = np.concatenate(self.whitening)
        means = (np.array(self.means) @ whitening).astype(np.float32)
        return means, whitening.astype(np.float32), np.array(self.limits, np.float32)

    def scores(self, embeddings: Float32, w1: ArrayLike) -> Float32:
        """Return the score (N,) of sources by their embeddings (N, W) and W1 (N,) in Vega mag.

        NaN where W1 is NaN, and for embeddings (N, 0) without numbers.

        >>> means, counts = (((0.0,), (9.0,)), ((5.0,), (7.0,))), ((9, 9), (9, 9))
        >>> statistics = OutlierStatistics((10.0, 15.0, 17.0), means, ((1.0,),), ((2.0, 1.0), (4.0, 4.0)), counts)
        >>> statistics.scores(np.array([[2.0], [9.5], [9.0]], np.float32), [12.0, 12.0, 19.0]).tolist()
        [1.0, 0.5, 0.5]
        """
        magnitude = np.asarray(w1, np.float64)
        if not embeddings.shape[1]:
            return np.full(len(embeddings), np.nan, np.float32)
        means, whitening, limits = self._arrays
        index = nearest_bin(magnitude, self.w1_edges)
        whitened, score = row_products(embeddings, whitening), np.full(len(embeddings), np.inf, np.float32)
        for k in range(limits.shape[1]):
            distance = np.sqrt(((whitened - means[index, k]) ** 2).sum(axis=1)) / limits[index, k]
            np.minimum(score, distance, out=score)
        score[np.isnan(magnitude)] = np.nan
        return score

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> OutlierStatistics:
        """Return the statistics that `to_dict` wrote; raise `ConfigError` for unknown or missing keys."""
        names = OutlierStatistics.__dataclass_fields__
        if set(data) != set(names):
            raise ConfigError(f"outlier statistics: its keys are {', '.join(names)}, not {', '.join(sorted(data))}")
        whitening, limits, counts = (tuple(map(tuple, data[name])) for name in ("whitening", "limits", "counts"))
        means = tuple(tuple(map(tuple, rows)) for rows in data["means"])
        return OutlierStatistics(tuple(data["w1_edges"]), means, whitening, limits, counts)


def nearest_bin(w1: Float64, edges: tuple[float, ...]) -> Int64:
    """Return the bin (N,) of W1, the first or the last one outside of the edges, and the last one for NaN.

    >>> nearest_bin(np.array([3.0, 10.0, 15.0, 99.0]), (8.0, 12.0, 17.0)).tolist()
    [0, 0, 1, 1]
    """
    index = np.searchsorted(np.asarray(edges, np.float64), w1, side="right") - 1
    return np.clip(index, 0, len(edges) - 2).astype(np.int64)
