"""Class priors: the class shares to which probabilities refer, and probabilities for other shares. Pure.

    p, W1, |b| -> calibrated_in_bins -> probabilities for the class shares of the calibration in the bin of W1 and |b|
    these -> adapted -> probabilities for other shares, such as those of a sky (`PriorTable`)

A probability of a class means little without the share of the class in the sample to which it refers: the same image
is a quasar more often among bright, red sources than among all. A `BinnedCalibration` therefore states the shares for
each of its bins, and a `PriorTable` states those of a sky.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from ..types import Bool, Float64, Int64, class_problems

LEAST_P = 1e-12
"""Smaller probabilities count as this one: a float32 of the catalogue cannot tell them apart from 0."""
NO_BIN = -1
ABS_B_EDGES = (0.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0)
"""Edges in |b| (deg) of the bins in which a prior is estimated. Those of a calibration are among them."""
CONFIDENCE_EDGES = (0.0, 0.5, 0.7, 0.9, 0.97, 1.0)
"""Bins of the highest probability in the test of the fit."""

Table = tuple[tuple[float, ...], ...]
"""Rows of numbers, such as one row for each bin and one number for each class."""


@dataclass(frozen=True)
class BinnedCalibration:
    """The calibration of a model in bins of W1 and |b|, and the class shares to which it refers.

    There are C = B x L bins, numbered by W1 first: bin `i * L + j` has bin i of W1 and bin j of |b|. The calibrated
    probabilities of a source in bin c are softmax(scale[c] * log(p) + bias[c]), where p are the probabilities of the
    model. They refer to the class shares `shares[c]`, those of the rows of the calibration.

    Attributes
    ----------
    classes : tuple of str
        K classes in the order of the probabilities.
    w1_edges, abs_b_edges : tuple of float
        B + 1 edges in W1 (Vega mag) and L + 1 edges in |b| (deg). A source outside has no calibrated probabilities.
    scale, bias : (C, K) tuples of float
        Vector scaling (Guo et al. 2017); equal scales of all classes are an inverse temperature.
    shares : (C, K) tuples of float
        Class shares, which sum to 1 in each bin.
    counts : (C, K) tuples of int
        Rows of the calibration.
    reference : (C, T, K, G) tuples of int
        `confidence_counts` of the rows of each class on each of T tiles; T may differ between bins. They tell how much
        the rows of a class differ from tile to tile, and whether the sources of a sky look like them.
    set_thresholds : (C, K) tuples of float
        Smallest probability of the model, before this calibration, with which a class is in the set of a source
        (`in_sets`).

    Raises
    ------
    ConfigError
        For numbers that do not fit together; the message has all problems.
    """

    classes: tuple[str, ...]
    w1_edges: tuple[float, ...]
    abs_b_edges: tuple[float, ...]
    scale: Table
    bias: Table
    shares: Table
    counts: tuple[tuple[int, ...], ...]
    reference: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    set_thresholds: Table

    def __post_init__(self) -> None:
        problems = class_problems(self.classes)
        problems += edge_problems("w1_edges", self.w1_edges) + edge_problems("abs_b_edges", self.abs_b_edges)
        shape = ((len(self.w1_edges) - 1) * (len(self.abs_b_edges) - 1), len(self.classes))
        for name in ("scale", "bias", "shares", "counts", "set_thresholds"):
            values = np.asarray(getattr(self, name), np.float64)
            if values.shape != shape or not np.isfinite(values).all():
                problems.append(f"{name}: give a finite number for each of {shape[0]} bins and {shape[1]} classes")
            elif name == "shares" and (values <= 0).any():
                problems.append("shares: a class has none, so that probabilities for other shares cannot be computed")
            elif name != "bias" and (values < 0).any():
                problems.append(f"{name}: a number is negative")
            elif name == "shares" and not np.allclose(values.sum(1), 1, atol=1e-4):
                problems.append("shares: those of a bin do not sum to 1")
        of_tile = (shape[1], shape[1] * (len(CONFIDENCE_EDGES) - 1))
        tiles = [np.shape(tile) for of_bin in self.reference for tile in of_bin]
        if len(self.reference) != shape[0] or not all(self.reference) or set(tiles) != {of_tile}:
            problems.append(f"reference: give one or more tiles of {of_tile[0]} x {of_tile[1]} numbers for each bin")
        elif min(n for of_bin in self.reference for tile in of_bin for row in tile for n in row) < 0:
            problems.append("reference: a number is negative")
        if problems:
            raise ConfigError("binned calibration: " + "; ".join(problems))

    def bin_of(self, w1: ArrayLike, abs_b_deg: ArrayLike) -> Int64:
        """Return the bin (N,) of sources at W1 and |b|; `NO_BIN` where W1 is unknown, and outside the bins."""
        i, j = bin_of(w1, self.w1_edges), bin_of(abs_b_deg, self.abs_b_edges)
        return np.where((i == NO_BIN) | (j == NO_BIN), NO_BIN, i * (len(self.abs_b_edges) - 1) + j)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _plain(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BinnedCalibration:
        """Return the calibration that `to_dict` wrote; raise `ConfigError` for unknown or missing keys."""
        return BinnedCalibration(**_fields(data, BinnedCalibration, "binned calibration"))


@dataclass(frozen=True)
class PriorTable:
    """The class shares of a sky in bins of W1 and |b|.

    Attributes
    ----------
    classes : tuple of str
        K classes in the order of the probabilities.
    w1_edges, abs_b_edges : tuple of float
        B + 1 edges in W1 (Vega mag) and L + 1 edges in |b| (deg).
    shares : (B, L, K) nested tuples of float or None
        Class shares of a bin; None where the table says nothing about it.
    label : str
        What the shares are, for readers.
    """

    classes: tuple[str, ...]
    w1_edges: tuple[float, ...]
    abs_b_edges: tuple[float, ...]
    shares: tuple[tuple[tuple[float, ...] | None, ...], ...]
    label: str

    def __post_init__(self) -> None:
        problems = class_problems(self.classes)
        problems += edge_problems("w1_edges", self.w1_edges) + edge_problems("abs_b_edges", self.abs_b_edges)
        n_w1, n_b = len(self.w1_edges) - 1, len(self.abs_b_edges) - 1
        if len(self.shares) != n_w1 or any(len(row) != n_b for row in self.shares):
            problems.append(f"shares: give a list of {n_b} bins of |b| for each of {n_w1} bins of W1")
        for cell in (cell for row in self.shares for cell in row if cell is not None):
            if len(cell) != len(self.classes) or min(cell) < 0 or abs(sum(cell) - 1) > 1e-4:
                problems.append(f"shares {list(cell)}: give {len(self.classes)} numbers >= 0 with the sum 1, or null")
        if problems:
            raise ConfigError("prior table: " + "; ".join(dict.fromkeys(problems)))

    @property
    def prior_id(self) -> str:
        """Name of the table: "prior-" and a digest of its numbers."""
        numbers = {k: v for k, v in self.to_dict().items() if k != "label"}
        return "prior-" + hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:12]

    def shares_of(self, w1: ArrayLike, abs_b_deg: ArrayLike) -> Float64:
        """Return the class shares (N, K) of sources at W1 and |b|; NaN where the table says nothing."""
        k = len(self.classes)
        cells = np.array([[cell or (np.nan,) * k for cell in row] for row in self.shares], np.float64)
        i, j = bin_of(w1, self.w1_edges), bin_of(abs_b_deg, self.abs_b_edges)
        shares = cells[i, j]
        shares[(i == NO_BIN) | (j == NO_BIN)] = np.nan
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return _plain(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PriorTable:
        """Return the table that `to_dict` wrote; raise `ConfigError` for unknown or missing keys."""
        return PriorTable(**_fields(data, PriorTable, "prior table"))


def edge_problems(name: str, edges: Sequence[float]) -> list[str]:
    """Return the problems of the edges of bins; an empty list for two or more rising numbers."""
    values = np.asarray(edges, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        return [f"{name} = {list(edges)}: give two or more rising numbers"]
    return []


def bin_of(values: ArrayLike, edges: Sequence[float]) -> Int64:
    """Return the bin (N,) of values, [low, high) each and the last one closed; `NO_BIN` outside and for NaN.

    >>> bin_of([8.0, 10.0, 12.0, float("nan"), 13.0], (8.0, 10.0, 12.0)).tolist()
    [0, 1, 1, -1, -1]
    """
    x = np.asarray(values, np.float64)
    index = np.searchsorted(np.asarray(edges, np.float64), x, side="right") - 1
    index[x == edges[-1]] = len(edges) - 2
    return np.where(np.isnan(x) | (index >= len(edges) - 1), NO_BIN, index).astype(np.int64)


def calibrated_in_bins(
    probabilities: ArrayLike, w1: ArrayLike, abs_b_deg: ArrayLike, calibration: BinnedCalibration
) -> tuple[Float64, Int64]:
    """Return calibrated probabilities (N, K), and the bin (N,) of each source.

    The probabilities are NaN, and the bin is `NO_BIN`, where W1 is unknown, and outside the bins.

    >>> one, none, half = ((1.0, 1.0),), ((0.0, 0.0),), ((0.5, 0.5),)
    >>> tiles = ((((0,) * 10,) * 2,),)
    >>> same = BinnedCalibration(("a", "b"), (8.0, 17.0), (0.0, 90.0), one, none, half, ((9, 9),), tiles, half)
    >>> p, bins = calibrated_in_bins([[0.25, 0.75], [0.5, 0.5]], [12.0, 18.0], [30.0, 30.0], same)
    >>> p.round(6).tolist(), bins.tolist()
    ([[0.25, 0.75], [nan, nan]], [0, -1])
    """
    index = calibration.bin_of(w1, abs_b_deg)
    scale, bias = (np.asarray(table, np.float64)[index] for table in (calibration.scale, calibration.bias))
    z = scale * np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST_P)) + bias
    odds = np.exp(z - z.max(axis=1, keepdims=True))
    p = odds / odds.sum(axis=1, keepdims=True)
    p[index == NO_BIN] = np.nan
    return p, index


def in_sets(
    probabilities: ArrayLike, w1: ArrayLike, abs_b_deg: ArrayLike, calibration: BinnedCalibration
) -> tuple[Bool, Bool]:
    """Return which classes (N, K) are in the set of a source, and which sources (N,) have a set.

    `probabilities` (N, K) are those of the model. A class is in the set where its probability is at least the threshold
    of its bin, which 90 % of the sources of the class reach: a label-conditional conformal set (Vovk, Gammerman &
    Shafer 2005, section 4.5). It does not depend on the shares of the classes. Sources without probabilities or W1, and
    those outside the bins, have no set.
    """
    p, index = np.asarray(probabilities, np.float64), calibration.bin_of(w1, abs_b_deg)
    has_set = (index != NO_BIN) & np.isfinite(p).all(axis=1)
    return (p >= np.asarray(calibration.set_thresholds)[index]) & has_set[:, None], has_set


def confidence_counts(probabilities: ArrayLike) -> Int64:
    """Return the number of sources by predicted class and highest probability (K x 5,), for the test of the fit."""
    p = np.asarray(probabilities, np.float64)
    n_bins = len(CONFIDENCE_EDGES) - 1
    level = np.clip(np.searchsorted(CONFIDENCE_EDGES, p.max(1), side="right") - 1, 0, n_bins - 1)
    return np.bincount(p.argmax(1) * n_bins + level, minlength=p.shape[1] * n_bins).astype(np.int64)


def adapted(probabilities: ArrayLike, old_shares: ArrayLike, new_shares: ArrayLike) -> Float64:
    """Return probabilities (N, K) for the class shares `new_shares`, from those for `old_shares`.

    Shares are (K,) for all sources or (N, K). Bayes' theorem with unchanged densities of the classes (Saerens, Latinne
    & Decaestecker 2002, Neural Computation 14, 21, equation 4). A source is NaN where a share or a probability is.

    >>> adapted([[0.8, 0.2]], (0.5, 0.5), (0.1, 0.9)).round(4).tolist()
    [[0.3077, 0.6923]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.asarray(probabilities, np.float64) * (np.asarray(new_shares, np.float64) / np.asarray(old_shares))
        result = weighted / weighted.sum(1, keepdims=True)
    return np.where(np.isfinite(result).all(1, keepdims=True), result, np.nan)


def sky_probabilities(
    probabilities: ArrayLike, w1: ArrayLike, abs_b_deg: ArrayLike, calibration: BinnedCalibration, prior: PriorTable
) -> Float64:
    """Return the probabilities (N, K) of sources for the class shares of a sky at their W1 and |b|.

    NaN where W1 is unknown, outside the bins of the calibration, and where the prior says nothing.
    """
    if prior.classes != calibration.classes:
        raise ConfigError(
            f"the prior has the classes {', '.join(prior.classes)}, the model {', '.join(calibration.classes)}: give a "
            "prior for the classes of the model, in their order"
        )
    p, index = calibrated_in_bins(probabilities, w1, abs_b_deg, calibration)
    old = np.asarray(calibration.shares, np.float64)[index]
    return adapted(p, old, prior.shares_of(w1, abs_b_deg))


def _plain(table: BinnedCalibration | PriorTable) -> dict[str, Any]:
    """Return the fields of a table as JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(table)))
    return plain


def _fields(data: Mapping[str, Any], kind: type[BinnedCalibration | PriorTable], name: str) -> dict[str, Any]:
    """Return the fields of a table from JSON; raise `ConfigError` for unknown or missing keys."""
    names = kind.__dataclass_fields__
    if set(data) != set(names):
        raise ConfigError(f"{name}: its keys are {', '.join(names)}, not {', '.join(sorted(data))}")
    return {key: _tuples(data[key]) for key in names}


def _tuples(value: Any) -> Any:
    """Return JSON with tuples in place of lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
