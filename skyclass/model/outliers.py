"""Outliers: how far the embedding of an image lies from those of training sources of the same W1. Pure.

    embeddings and W1 of training sources -> fitted (training/evaluation/outlier_fit.py) -> OutlierStatistics
    embeddings, W1 -> OutlierStatistics.scores

The embedding of a network is the input of its last layer. Its distance is that of Mahalanobis (Lee et al. 2018,
arXiv:1807.03888), from the mean of the training sources in the same bin of W1: faint and bright sources have other
embeddings, and without bins the score would only find rare magnitudes. Distances to the nearest training sources
separate the simulated outliers equally well and cost thirty times as much (`benchmarks/outliers.py`).
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
"""Share of the training sources with a score above 1."""


@dataclass(frozen=True)
class OutlierStatistics:
    """The embeddings of training sources in B bins of W1, W numbers each.

    The score of a source with embedding e in bin b is |(e - means[b]) whitening| / limits[b].

    Attributes
    ----------
    w1_edges : tuple of float
        B + 1 edges of the bins (Vega mag). A source outside belongs to the nearest bin.
    means : (B, W) tuples of float
        Mean of the embeddings of a bin.
    whitening : tuple of tuples of float
        Rows of a lower triangle (W, W), the Cholesky factor of the inverse covariance about the means of the bins.
    limits : tuple of float
        Distance in each bin that `EXCEEDED_BY` of the held-out sources exceed.
    counts : tuple of int
        Sources of each bin.

    Raises
    ------
    ConfigError
        For numbers that do not fit together; the message has all problems.
    """

    w1_edges: tuple[float, ...]
    means: Table
    whitening: Table
    limits: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        problems = edge_problems("w1_edges", self.w1_edges)
        n_bins, width = len(self.w1_edges) - 1, len(self.whitening)
        if [len(row) for row in self.whitening] != list(range(1, width + 1)):
            problems.append("whitening: give a triangle, rows of 1, 2, 3 ... numbers")
        if len(self.means) != n_bins or any(len(row) != width for row in self.means):
            problems.append(f"means: give {width} numbers for each of {n_bins} bins")
        if len(self.limits) != n_bins or not all(0 < limit < np.inf for limit in self.limits):
            problems.append(f"limits: give a positive number for each of {n_bins} bins")
        if len(self.counts) != n_bins or min(self.counts) < 0:
            problems.append(f"counts: give a number >= 0 for each of {n_bins} bins")
        if not all(np.isfinite(row).all() for row in (*self.means, *self.whitening)):
            problems.append("a number is not finite")
        if problems:
            raise ConfigError("outlier statistics: " + "; ".join(problems))

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return len(self.whitening)

    @cached_property
    def _arrays(self) -> tuple[Float32, Float32, Float32]:
        """Means (B, W), whitening (W, W) and limits (B,)."""
        whitening = np.zeros((self.width, self.width), np.float32)
        whitening[np.tril_indices(self.width)] = np.concatenate(self.whitening)
        return np.array(self.means, np.float32), whitening, np.array(self.limits, np.float32)

    def scores(self, embeddings: Float32, w1: ArrayLike) -> Float32:
        """Return the score (N,) of sources by their embeddings (N, W) and W1 (N,) in Vega mag.

        NaN where W1 is NaN, and for embeddings (N, 0) without numbers.

        >>> statistics = OutlierStatistics((10.0, 15.0, 17.0), ((0.0,), (5.0,)), ((1.0,),), (2.0, 4.0), (9, 9))
        >>> statistics.scores(np.array([[2.0], [9.0], [2.0]], np.float32), [12.0, 19.0, np.nan]).tolist()
        [1.0, 1.0, nan]
        """
        magnitude = np.asarray(w1, np.float64)
        if not embeddings.shape[1]:
            return np.full(len(embeddings), np.nan, np.float32)
        means, whitening, limits = self._arrays
        index = nearest_bin(magnitude, self.w1_edges)
        whitened = row_products(embeddings - means[index], whitening)
        score: Float32 = np.sqrt((whitened**2).sum(axis=1)) / limits[index]
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
        means, whitening = (tuple(map(tuple, data[name])) for name in ("means", "whitening"))
        return OutlierStatistics(
            tuple(data["w1_edges"]), means, whitening, tuple(data["limits"]), tuple(data["counts"])
        )


def nearest_bin(w1: Float64, edges: tuple[float, ...]) -> Int64:
    """Return the bin (N,) of W1, the first or the last one outside of the edges, and the last one for NaN.

    >>> nearest_bin(np.array([3.0, 10.0, 15.0, 99.0]), (8.0, 12.0, 17.0)).tolist()
    [0, 0, 1, 1]
    """
    index = np.searchsorted(np.asarray(edges, np.float64), w1, side="right") - 1
    return np.clip(index, 0, len(edges) - 2).astype(np.int64)
