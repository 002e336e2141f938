"""Training, validation and test sets that share no sky: whole HEALPix pixels, stratified by class. Pure.

A random split of sources leaks: neighbours share pixels of their cutouts, the background of the field and its
calibration. Here a whole HEALPix pixel belongs to one split. A validation or test source whose cutout may share image
pixels with a source of another split, across a border, is set aside as "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...sky.healpix import healpix, unit_vectors
from ...types import PIXEL_SCALE_ARCSEC, Bool, Float64, Int64
from .classes import label_counts

SPLITS = ("train", "val", "test")
NO_SPLIT = "none"
ORDERS = (5, 11)
"""Coarsest and finest HEALPix order of a split: 1.8 degrees and 1.7 arcmin."""

ENOUGH_PIXELS = 50
"""Occupied pixels that allow 8:1:1 in each class within about a pixel's share."""

MIN_PIXEL_REACHES = 4
"""Least width of a pixel in units of the reach: in smaller pixels almost every source is near a border."""

ROUNDS = 4


@dataclass(frozen=True)
class Split:
    """The split of each row: `names` (N,) of "train", "val", "test", "none".

    `order` is the HEALPix order of the pixels, `n_pixels` the number of occupied ones, and `n_none` the number of rows
    set aside because they lie within `reach_arcsec` of another split. In a split by row `order` is None, and neighbours
    on the sky may be in different splits.
    """

    names: NDArray[np.str_]
    order: int | None
    n_pixels: int
    n_none: int
    reach_arcsec: float


def split_sky(ra: Float64, dec: Float64, labels: Int64, fractions: tuple[float, ...], seed: int, size_px: int) -> Split:
    """Return the split of sources at `ra`, `dec` (degrees) with cutouts of `size_px` native pixels on a side.

    `fractions` are the shares of train, val and test in any scale (8, 1, 1). The result depends on the set of
    positions and labels and on `seed`, not on the order of the rows.
    """
    reach_arcsec = cutout_reach_arcsec(size_px)
    order = split_order(ra, dec, reach_arcsec)
    pixels, pixel_of_row = np.unique(healpix(order, ra, dec), return_inverse=True)
    counts = np.zeros((len(pixels), labels.max(initial=0) + 1))
    np.add.at(counts, (pixel_of_row, labels), 1)
    pixel_splits = assign_splits(counts, fractions, np.argsort(uniform_hash(pixels, seed), kind="stable"))
    row_splits = pixel_splits[pixel_of_row]
    leaks = near_other_split(ra, dec, row_splits, reach_arcsec)
    names = np.where(leaks, NO_SPLIT, np.array(SPLITS)[row_splits])
    return Split(names, order, len(pixels), int(leaks.sum()), reach_arcsec)


def split_rows(labels: Int64, fractions: tuple[float, ...], seed: int) -> Split:
    """Return a split at random by row, each class divided by `fractions`: for sources without positions."""
    rank = uniform_hash(np.arange(len(labels)), seed)
    edges = np.cumsum(fractions)[:-1] / np.sum(fractions)
    row_splits = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        share = (np.argsort(np.argsort(rank[rows], kind="stable")) + 0.5) / len(rows)
        row_splits[rows] = np.searchsorted(edges, share, side="right")
    return Split(np.array(SPLITS)[row_splits], None, 0, 0, 0.0)


def cutout_reach_arcsec(size_px: int) -> float:
    """Return the separation from which two cutouts share no pixel: their diagonal, and a pixel for rounding."""
    return float(np.sqrt(2) * (size_px + 1) * PIXEL_SCALE_ARCSEC)


def split_order(ra: Float64, dec: Float64, reach_arcsec: float) -> int:
    """Return the coarsest order with `ENOUGH_PIXELS` occupied pixels, or the finest with wide enough pixels."""
    first, last = ORDERS
    least_side = MIN_PIXEL_REACHES * reach_arcsec
    finest = max((order for order in range(first, last + 1) if pixel_side_arcsec(order) >= least_side), default=first)
    occupied = np.unique(healpix(finest, ra, dec))
    for order in range(first, finest):
        if len(np.unique(occupied >> 2 * (finest - order))) >= ENOUGH_PIXELS:
            return order
    return finest


def pixel_side_arcsec(order: int) -> float:
    """Return the square root of the area of a HEALPix pixel."""
    return float(np.degrees(np.sqrt(np.pi / 3)) * 3600 / 2**order)


def assign_splits(counts: Float64, fractions: tuple[float, ...], order: Int64) -> Int64:
    """Return the split (P,) of pixels with `counts` (P, classes), so that each class is divided by `fractions`.

    Pixels are assigned in `order`, each to the split where the shares of all classes then miss their targets least;
    later rounds reassign each pixel once. Every class has the same weight, however rare it is.
    """
    target = np.asarray(fractions, float) / np.sum(fractions)
    share = counts / np.maximum(counts.sum(axis=0), 1)
    weight = 1 / np.where(target > 0, target, np.nan)
    load = np.zeros((len(target), counts.shape[1]))
    split = np.full(len(counts), -1)
    for _ in range(ROUNDS):
        for pixel in order:
            if split[pixel] >= 0:
                load[split[pixel]] -= share[pixel]
            miss = load - target[:, None]
            cost = ((2 * miss + share[pixel]) * share[pixel]).sum(axis=1) * weight
            split[pixel] = np.nanargmin(cost)
            load[split[pixel]] += share[pixel]
    return split.astype(np.int64)


def near_other_split(ra: Float64, dec: Float64, splits: Int64, reach_arcsec: float) -> Bool:
    """Return which validation and test rows lie within `reach_arcsec` of a row of another split."""
    vectors = unit_vectors(ra, dec)
    near = np.zeros(len(splits), bool)
    for split in range(1, len(SPLITS)):
        inside = splits == split
        if inside.any() and not inside.all():
            others, reach = cKDTree(vectors[~inside]), chord_length(reach_arcsec)
            distance, _ = others.query(vectors[inside], distance_upper_bound=reach)
            near[inside] = np.isfinite(distance)
    return near


def chord_length(angle_arcsec: float) -> float:
    """Return the straight distance between unit vectors that are an angle apart."""
    return float(2 * np.sin(np.radians(angle_arcsec / 3600) / 2))


def uniform_hash(numbers: Int64, seed: int) -> Float64:
    """Return a uniform number in [0, 1) for each integer (the finaliser of splitmix64, Steele et al. 2014)."""
    return _mix(numbers.astype(np.uint64) ^ _mix(np.array([seed % 2**63], np.uint64))) / 2.0**64


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_sources(numbers: Int64, labels: Int64, counts: dict[int, int], seed: int) -> Bool:
    """Return which rows are drawn: the given number of each label in `counts`, all rows of the other labels.

    The draw depends on the seed and on the number of each row, such as the pixel of its position.
    """
    rank = uniform_hash(numbers, seed)
    drawn = np.ones(len(labels), bool)
    for label, n in counts.items():
        rows = np.flatnonzero(labels == label)
        drawn[rows[np.argsort(rank[rows], kind="stable")[n:]]] = False
    return drawn


def split_table(labels: Int64, names: Any, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return {split: {class: rows}} for labels and split names."""
    names = np.asarray(names)
    return {split: label_counts(labels[names == split], classes) for split in (*SPLITS, NO_SPLIT)}
