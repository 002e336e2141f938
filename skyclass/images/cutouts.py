"""Tile pixels + source positions -> `CutoutBatch`, one band at a time, all sources of a strip at once.

A cutout is centred like `astropy.nddata.Cutout2D(mode="partial", fill_value=nan)`: the source stays in the middle
whatever the tile's edge does, and pixels that do not exist are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..sky.tile_wcs import edge_distance_px
from ..types import Archive, Bool, CutoutBatch, Flag, Float32, Float64, Int32, Int64, RowRange, Tile


def cut(archive: Archive, tile: Tile, x: Float64, y: Float64, size_px: int) -> CutoutBatch:
    """Return cutouts (N, B, size_px, size_px) of the sources at 1-based FITS pixels `x`, `y` of `tile`.

    Reads from each band of `tile` only the rows that the cutouts touch, once. Raises `TileFault`. Positions of sources
    that are cut from another image set of `tile` are returned as pixels of that set.
    """
    parts = parts_of(tile, x, y, size_px)
    batches = [cut_part(archive, part, size_px) for part in parts]
    if len(batches) == 1:
        return batches[0]
    arrays = [(b.pixels, b.x, b.y, b.flags, b.valid_frac) for b in batches]
    pixels, x, y, flags, valid_frac = in_order(parts, arrays)
    return CutoutBatch(pixels, x, y, flags, valid_frac, tile.zero_point_mag)


@dataclass(frozen=True)
class Part:
    """The sources that are cut from one image set: their `index` among all, and their pixels `x`, `y` in the set."""

    tile: Tile
    index: Int64
    x: Float64
    y: Float64


def cut_part(archive: Archive, part: Part, size_px: int) -> CutoutBatch:
    """Return cutouts of sources of one image set. Raises `TileFault`."""
    cutter = Cutter(read_bands(archive, part.tile, part.y, size_px), part.tile, part.x, part.y, size_px)
    pixels = np.empty((len(part.x), len(part.tile.bands), size_px, size_px), dtype=np.float32)
    cutter.cut(slice(None), pixels)
    return CutoutBatch(pixels, part.x, part.y, *cutter.describe(), part.tile.zero_point_mag)


def in_order(parts: Sequence[Part], arrays: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return arrays over the sources of each part as arrays over all sources, in their order."""
    order = np.argsort(np.concatenate([part.index for part in parts]))
    return tuple(np.concatenate(of_parts)[order] for of_parts in zip(*arrays, strict=True))


def parts_of(tile: Tile, x: Float64, y: Float64, size_px: int) -> list[Part]:
    """Return the sources at 1-based FITS pixels `x`, `y` of `tile`, by the image set that covers their cutouts best.

    That is the set with the most pixels of a cutout; among equals the one whose edge is farthest from the source, and
    then the first by name. The order of the sources is kept.
    """
    if not tile.others:
        return [Part(tile, np.arange(len(x)), x, y)]
    best = np.zeros(len(x), np.int64)
    best_px, best_margin = np.full(len(x), -1), np.full(len(x), -np.inf)
    for number, part in enumerate(tile.image_sets):
        part_x, part_y = in_set(tile, part, x, y)
        n_px = within(corner(part_y, size_px), part.shape[0], size_px)
        n_px *= within(corner(part_x, size_px), part.shape[1], size_px)
        margin = edge_distance_px(part, part_x, part_y)
        wins = (n_px > best_px) | ((n_px == best_px) & (margin > best_margin))
        best[wins], best_px[wins], best_margin[wins] = number, n_px[wins], margin[wins]
    numbers = [int(number) for number in np.unique(best)]
    index = {number: np.flatnonzero(best == number) for number in numbers}
    sets = tile.image_sets
    return [Part(sets[n], index[n], *in_set(tile, sets[n], x[index[n]], y[index[n]])) for n in numbers]


def in_set(tile: Tile, image_set: Tile, x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Return pixels of `tile` as pixels of one of its image sets, whole pixels away."""
    offset = np.subtract(image_set.crpix, tile.crpix).round()
    return x + offset[0], y + offset[1]


def read_bands(archive: Archive, tile: Tile, y: Float64, size_px: int) -> tuple[RowRange, ...]:
    """Return the rows of each band of `tile` that cutouts at `y` touch, read once. Raises `TileFault`."""
    start, stop = row_span(tile, y, size_px)
    if start == stop:  # nothing of any cutout is on the tile
        return (RowRange(start, np.empty((0, tile.shape[1]), np.float32), True),) * len(tile.bands)
    bands = (archive.read_rows(tile, band, start, stop) for band in tile.bands)
    return tuple(RowRange(start, pixels, bool(np.isfinite(pixels).all())) for pixels in bands)


class Cutter:
    """Cuts N sources out of rows in memory, some at a time; where each lies is worked out once.

    Fastest for a hundred neighbours at a time: their pixels then stay in the processor's cache.
    """

    def __init__(self, rows: Sequence[RowRange], tile: Tile, x: Float64, y: Float64, size_px: int) -> None:
        self.rows, self.size_px = rows, size_px
        n_rows, n_columns = tile.shape
        row, column = corner(y, size_px), corner(x, size_px)
        self.first_row, self.first_column = row - rows[0].start, column
        fits = [(first >= 0) & (first <= n - size_px) for first, n in ((row, n_rows), (column, n_columns))]
        self.is_whole: Bool = fits[0] & fits[1]
        self.inside = within(row, n_rows, size_px) * within(column, n_columns, size_px)
        centre_row, centre_column = row + size_px // 2, column + size_px // 2
        has_centre = (centre_row >= 0) & (centre_row < n_rows) & (centre_column >= 0) & (centre_column < n_columns)
        self.n_finite = np.repeat(self.inside[:, None], len(rows), axis=1)
        self.has_centre = np.repeat(has_centre[:, None], len(rows), axis=1)
        self.windows = [sliding_window_view(b.pixels, (size_px, size_px)) for b in rows] if self.is_whole.any() else []
        if self.windows:
            last_row, last_column = np.subtract(self.windows[0].shape[:2], 1)
            self.near = self.first_row.clip(0, last_row), self.first_column.clip(0, last_column)
            """Of cutouts that are whole, their own first pixel; of others a near one that would be whole."""

    def cut(self, block: slice, out: Float32) -> None:
        """Fill `out` (n, B, S, S) with the cutouts of the sources `block`; NaN beyond the tile."""
        for b, windows in enumerate(self.windows):
            out[:, b] = windows[self.near[0][block], self.near[1][block]]
        row, column = self.first_row[block], self.first_column[block]
        for n in np.flatnonzero(~self.is_whole[block]):
            for b, band in enumerate(self.rows):
                cut_edge(band.pixels, int(row[n]), int(column[n]), out[n, b])
        if not all(band.is_finite for band in self.rows):
            self.count_finite(block, out)

    def count_finite(self, block: slice, cut: Float32) -> None:
        """Note of cutouts (n, B, S, S) that are not finite how many pixels are, and whether the central one is.

        Infinite pixels become NaN.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            total = cut.reshape(*cut.shape[:2], -1).sum(axis=2)  # not finite for those few: faster than to count
        for n in np.flatnonzero(~np.isfinite(total).all(axis=1)):
            finite = np.isfinite(cut[n])
            self.n_finite[block][n] = finite.sum(axis=(1, 2))
            self.has_centre[block][n] = finite[:, self.size_px // 2, self.size_px // 2]
            cut[n][~finite] = np.nan  # infinity is no pixel either

    def describe(self) -> tuple[Int32, Float32]:
        """Return flags (N,) and the fraction (N,) of pixels, all bands together, that are numbers, once all are cut."""
        whole = self.size_px**2
        flags = (
            mark(self.inside < whole, Flag.EDGE)
            | mark(np.any(self.n_finite < self.inside[:, None], axis=1), Flag.NAN_PIXELS)
            | mark(~np.all(self.has_centre, axis=1), Flag.CENTRE_MISSING)
            | mark(self.inside == 0, Flag.OFF_TILE)
            | mark(np.any(self.n_finite == 0, axis=1), Flag.NO_IMAGE)
        )
        return flags, (self.n_finite.sum(axis=1) / (whole * len(self.rows))).astype(np.float32)


def cut_edge(pixels: Float32, first_row: int, first_column: int, out: Float32) -> None:
    """Fill `out` (S, S) with a cutout that is not all on `pixels`; NaN beyond them."""
    out[:] = np.nan
    here, there = zip(
        *(overlap(first, n, out.shape[0]) for first, n in zip((first_row, first_column), pixels.shape, strict=True)),
        strict=True,
    )
    out[there] = pixels[here]


def overlap(first: int, length: int, size_px: int) -> tuple[slice, slice]:
    """Return what `size_px` pixels from `first` on share with `length` pixels: where there, and where in the cutout."""
    start, stop = max(first, 0), max(min(first + size_px, length), max(first, 0))
    return slice(start, stop), slice(start - first, stop - first)


def row_span(tile: Tile, y: Float64, size_px: int) -> tuple[int, int]:
    """Return the 0-based rows `start, stop` of `tile` that cutouts at `y` touch; empty when none does."""
    first = corner(y, size_px)
    if not len(first):
        return 0, 0
    start = int(np.clip(first.min(), 0, tile.shape[0]))
    stop = int(np.clip(first.max() + size_px, start, tile.shape[0]))
    return start, stop


def corner(position: Float64, size_px: int) -> Int64:
    """Return the 0-based first pixel of cutouts centred at 1-based `position` along one axis.

    The rule of `astropy.nddata.utils.overlap_slices`: ceil(p - size / 2). A position that is not finite lands
    far outside every tile.
    """
    first = np.ceil(position - 1 - size_px / 2)
    far = -4.0 * size_px - 2**20
    return np.where(np.isfinite(first), np.clip(first, far, -far), far).astype(np.int64)


def within(first: Int64, length: int, size_px: int) -> Int64:
    """Return how many (N,) of `size_px` pixels from `first` on lie within `length`."""
    inside: Int64 = np.clip(first + size_px, 0, length) - np.clip(first, 0, length)
    return inside


def mark(where: Bool, flag: Flag) -> Int32:
    """Return `flag` where true, 0 elsewhere."""
    return np.where(where, int(flag), 0).astype(np.int32)
