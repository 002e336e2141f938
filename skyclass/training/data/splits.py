"""Training, validation and test sets that share no sky: whole HEALPix pixels, stratified by class. Pure.

A random split of sources leaks: neighbours share pixels of their cutouts, the field's background, its calibration.
Here a HEALPix pixel goes to one split as a whole, and a source of the validation or test set whose cutout could
still share image pixels with a source of another split, across a border, is set aside as "none".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...sky.healpix import healpix, healpix29, unit_vectors
from ...types import CLASSES, PIXEL_SCALE_ARCSEC, Bool, Float64, Int64

SPLITS = ("train", "val", "test")
NO_SPLIT = "none"
ORDERS = (5, 11)
"""Coarsest and finest HEALPix order of a split: 1.8 degrees and 1.7 arcmin."""

ENOUGH_PIXELS = 50
"""Occupied pixels that allow 8:1:1 in each class within about a pixel's share."""

PIXEL_IN_REACHES = 4
"""A pixel is at least so many reaches wide: in smaller ones hardly a source is far from every border."""

ROUNDS = 4


@dataclass(frozen=True)
class Split:
    """Which split each row is in: `names` (N,) of "train", "val", "test", "none"; and how that came about.

    `order` is the HEALPix order of the pixels, `n_pixels` how many are occupied, `n_none` how many rows were set
    aside because they lie within `reach_arcsec` of another split.
    """

    names: NDArray[np.str_]
    order: int
    n_pixels: int
    n_none: int
    reach_arcsec: float


def split_sky(ra: Float64, dec: Float64, labels: Int64, fractions: tuple[float, ...], seed: int, size_px: int) -> Split:
    """Return the split of sources at `ra`, `dec` (degrees) with cutouts of `size_px` native pixels on a side.

    `fractions` are the shares of train, val and test in any scale (8, 1, 1). The result depends on the set of
    positions and labels and on `seed`, never on the order of the rows.
    """
    reach_arcsec = shared_reach_arcsec(size_px)
    order = choose_order(ra, dec, reach_arcsec)
    pixels, place = np.unique(healpix(order, ra, dec), return_inverse=True)
    counts = np.zeros((len(pixels), len(CLASSES)))
    np.add.at(counts, (place, labels), 1)
    side = deal(counts, fractions, np.argsort(hash01(pixels, seed), kind="stable"))[place]
    leaks = leaking(ra, dec, side, reach_arcsec)
    names = np.where(leaks, NO_SPLIT, np.array(SPLITS)[side])
    return Split(names, order, len(pixels), int(leaks.sum()), reach_arcsec)


def shared_reach_arcsec(size_px: int) -> float:
    """Return the separation from which two cutouts share no pixel: their diagonal, and a pixel for rounding."""
    return float(np.sqrt(2) * (size_px + 1) * PIXEL_SCALE_ARCSEC)


def choose_order(ra: Float64, dec: Float64, reach_arcsec: float) -> int:
    """Return the coarsest order with `ENOUGH_PIXELS` occupied pixels, or the finest whose pixels are wide enough."""
    first, last = ORDERS
    wide = [order for order in range(first, last + 1) if pixel_side_arcsec(order) >= PIXEL_IN_REACHES * reach_arcsec]
    finest = max(wide, default=first)
    deep = np.unique(healpix(finest, ra, dec))
    for order in range(first, finest):
        if len(np.unique(deep >> 2 * (finest - order))) >= ENOUGH_PIXELS:
            return order
    return finest


def pixel_side_arcsec(order: int) -> float:
    """Return the square root of the area of a HEALPix pixel."""
    return float(np.degrees(np.sqrt(np.pi / 3)) * 3600 / 2**order)


def deal(counts: Float64, fractions: tuple[float, ...], order: Int64) -> Int64:
    """Return the split (P,) of pixels with `counts` (P, classes), so that each class is divided by `fractions`.

    Pixels are placed in `order`, each where the shares of all classes then miss their targets least; later rounds
    take each up once more. A class counts as a whole, however rare.
    """
    target = np.asarray(fractions, float) / np.sum(fractions)
    share = counts / np.maximum(counts.sum(axis=0), 1)
    weight = 1 / np.where(target > 0, target, np.nan)
    load = np.zeros((len(target), counts.shape[1]))
    where = np.full(len(counts), -1)
    for _ in range(ROUNDS):
        for pixel in order:
            if where[pixel] >= 0:
                load[where[pixel]] -= share[pixel]
            miss = load - target[:, None]
            cost = ((2 * miss + share[pixel]) * share[pixel]).sum(axis=1) * weight
            where[pixel] = np.nanargmin(cost)
            load[where[pixel]] += share[pixel]
    return where.astype(np.int64)


def leaking(ra: Float64, dec: Float64, side: Int64, reach_arcsec: float) -> Bool:
    """Return which validation and test rows lie within `reach_arcsec` of a row of another split."""
    vectors = unit_vectors(ra, dec)
    leaks = np.zeros(len(side), bool)
    for k in range(1, len(SPLITS)):
        mine = side == k
        if mine.any() and not mine.all():
            distance, _ = cKDTree(vectors[~mine]).query(vectors[mine], distance_upper_bound=chord(reach_arcsec))
            leaks[mine] = np.isfinite(distance)
    return leaks


def chord(angle_arcsec: float) -> float:
    """Return the straight distance between unit vectors that are an angle apart."""
    return float(2 * np.sin(np.radians(angle_arcsec / 3600) / 2))


def hash01(numbers: Int64, seed: int) -> Float64:
    """Return a uniform number in [0, 1) for each integer (the finaliser of splitmix64, Steele et al. 2014)."""
    return _mix(numbers.astype(np.uint64) ^ _mix(np.array([seed % 2**63], np.uint64))) / 2.0**64


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(ra: Float64, dec: Float64, labels: Int64, counts: dict[str, int], seed: int) -> Bool:
    """Return which rows are drawn: so many of each class that `counts` names, all of the others.

    The draw goes by position and seed: the order of the rows does not matter.
    """
    lot = hash01(healpix29(ra, dec), seed)
    chosen = np.ones(len(labels), bool)
    for name, n in counts.items():
        rows = np.flatnonzero(labels == CLASSES.index(name))
        chosen[rows[np.argsort(lot[rows], kind="stable")[n:]]] = False
    return chosen


def split_table(labels: Int64, names: Any) -> dict[str, dict[str, int]]:
    """Return {split: {class: rows}} for labels and split names."""
    names = np.asarray(names)
    return {
        split: dict(zip(CLASSES, np.bincount(labels[names == split], minlength=len(CLASSES)).tolist(), strict=True))
        for split in (*SPLITS, NO_SPLIT)
    }
