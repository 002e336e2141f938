"""Tile pixels and source positions -> cutouts. The rows of a band are read once; sources are cut in blocks.

A cutout is centred like `astropy.nddata.Cutout2D(mode="partial", fill_value=nan)`: the source is in the middle also at
the edge of a tile, and pixels outside the tile are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..sky.tile_wcs import edge_distance_px
from ..types import Archive, Bool, CutoutBatch, Flag, Float32, Float64, Int32, Int64, RowRange, Tile

FAR_PX = 1e6
"""No cutout that begins farther from a tile than this touches it."""


def cut(archive: Archive, tile: Tile, x: Float64, y: Float64, size_px: int) -> CutoutBatch:
    """Return the cutouts of sources on a tile.

    Of each band only the rows that the cutouts touch are read, once.

    Parameters
    ----------
    archive : Archive
        Archive of the tile.
    tile : Tile
        Tile with B bands.
    x, y : (N,) float64
        1-based FITS pixels of the sources in `tile`.
    size_px : int
        Side of the cutouts in native pixels.

    Returns
    -------
    CutoutBatch
        Cutouts (N, B, size_px, size_px) in DN. `x` and `y` of a source that is cut from another image set of the tile
        are pixels of that set.

    Raises
    ------
    TileFault
        If a file of the tile is missing, damaged, or was changed after the tile was opened.
    """
    groups = group_by_image_set(tile, x, y, size_px)
    batches = [cut_image_set(archive, group, size_px) for group in groups]
    if len(batches) == 1:
        return batches[0]
    arrays = [(b.pixels, b.x, b.y, b.flags, b.valid_frac) for b in batches]
    pixels, x, y, flags, valid_frac = in_order(groups, arrays)
    return CutoutBatch(pixels, x, y, flags, valid_frac, tile.zero_point_mag)


@dataclass(frozen=True)
class SourcesOfSet:
    """The sources that are cut from one image set: their `index` among all sources, and their pixels in the set."""

    image_set: Tile
    index: Int64
    x: Float64
    y: Float64


def cut_image_set(archive: Archive, group: SourcesOfSet, size_px: int) -> CutoutBatch:
    """Return the cutouts of the sources of one image set. Raises `TileFault`."""
    image_set, x, y = group.image_set, group.x, group.y
    cutter = Cutter(read_bands(archive, image_set, y, size_px), image_set, x, y, size_px)
    pixels = np.empty((len(x), len(image_set.bands), size_px, size_px), dtype=np.float32)
    cutter.cut(slice(None), pixels)
    return CutoutBatch(pixels, x, y, *cutter.flags_and_valid_frac(), image_set.zero_point_mag)


def in_order(groups: Sequence[SourcesOfSet], arrays: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return arrays over the sources of each group, concatenated in the order of all sources."""
    order = np.argsort(np.concatenate([group.index for group in groups]))
    return tuple(np.concatenate(of_groups)[order] for of_groups in zip(*arrays, strict=True))


def group_by_image_set(tile: Tile, x: Float64, y: Float64, size_px: int) -> list[SourcesOfSet]:
    """Return the sources at 1-based FITS pixels `x`, `y` of `tile`, grouped by the image set that covers them best.

    The best image set has the most pixels of the cutout. Among equal sets it is the one whose edge is farthest from the
    source, then the first by name. Sources keep their order within a group.
    """
    if not tile.other_image_sets:
        return [SourcesOfSet(tile, np.arange(len(x)), x, y)]
    best = np.zeros(len(x), np.int64)
    best_px, best_margin = np.full(len(x), -1), np.full(len(x), -np.inf)
    for number, image_set in enumerate(tile.image_sets):
        x_in_set, y_in_set = in_set(tile, image_set, x, y)
        n_px = n_inside(first_pixel(y_in_set, size_px), image_set.shape[0], size_px)
        n_px *= n_inside(first_pixel(x_in_set, size_px), image_set.shape[1], size_px)
        margin = edge_distance_px(image_set, x_in_set, y_in_set)
        wins = (n_px > best_px) | ((n_px == best_px) & (margin > best_margin))
        best[wins], best_px[wins], best_margin[wins] = number, n_px[wins], margin[wins]
    numbers = [int(number) for number in np.unique(best)]
    index = {number: np.flatnonzero(best == number) for number in numbers}
    sets = tile.image_sets
    return [SourcesOfSet(sets[n], index[n], *in_set(tile, sets[n], x[index[n]], y[index[n]])) for n in numbers]


def in_set(tile: Tile, image_set: Tile, x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Return pixels of `tile` as pixels of one of its image sets. The two grids differ by whole pixels."""
    offset = np.subtract(image_set.crpix, tile.crpix).round()
    return x + offset[0], y + offset[1]


def read_bands(archive: Archive, tile: Tile, y: Float64, size_px: int) -> tuple[RowRange, ...]:
    """Return the rows of each band of `tile` that cutouts at `y` touch, read once. Raises `TileFault`."""
    start, stop = row_span(tile, y, size_px)
    if start == stop:  # no cutout touches the tile
        return (RowRange(start, np.empty((0, tile.shape[1]), np.float32), True),) * len(tile.bands)
    bands = (archive.read_rows(tile, band, start, stop) for band in tile.bands)
    return tuple(RowRange(start, pixels, bool(np.isfinite(pixels).all())) for pixels in bands)


class Cutter:
    """Cuts N sources out of rows in memory, a block of sources at a time.

    The positions in the rows are computed once, for all sources. Cutting is fastest for about a hundred neighbours at a
    time, whose pixels stay in the cache of the processor.
    """

    def __init__(self, rows: Sequence[RowRange], tile: Tile, x: Float64, y: Float64, size_px: int) -> None:
        self.rows, self.size_px = rows, size_px
        n_rows, n_columns = tile.shape
        row, column = first_pixel(y, size_px), first_pixel(x, size_px)
        self.first_row, self.first_column = row - rows[0].start, column
        fits = [(first >= 0) & (first <= n - size_px) for first, n in ((row, n_rows), (column, n_columns))]
        self.is_whole: Bool = fits[0] & fits[1]
        self.inside = n_inside(row, n_rows, size_px) * n_inside(column, n_columns, size_px)
        centre_row, centre_column = row + size_px // 2, column + size_px // 2
        has_centre = (centre_row >= 0) & (centre_row < n_rows) & (centre_column >= 0) & (centre_column < n_columns)
        self.n_finite = np.repeat(self.inside[:, None], len(rows), axis=1)
        self.has_centre = np.repeat(has_centre[:, None], len(rows), axis=1)
        self.windows = [sliding_window_view(b.pixels, (size_px, size_px)) for b in rows] if self.is_whole.any() else []
        if self.windows:
            last_row, last_column = np.subtract(self.windows[0].shape[:2], 1)
            self.window_index = self.first_row.clip(0, last_row), self.first_column.clip(0, last_column)
            """First pixel of each cutout that is whole; the nearest valid window for the others."""

    def cut(self, block: slice, out: Float32) -> None:
        """Fill `out` (n, B, S, S) with the cutouts of the sources in `block`; pixels outside the tile are NaN."""
        for b, windows in enumerate(self.windows):
            out[:, b] = windows[self.window_index[0][block], self.window_index[1][block]]
        row, column = self.first_row[block], self.first_column[block]
        for n in np.flatnonzero(~self.is_whole[block]):
            for b, band in enumerate(self.rows):
                cut_edge(band.pixels, int(row[n]), int(column[n]), out[n, b])
        if not all(band.is_finite for band in self.rows):
            self.count_finite(block, out)

    def count_finite(self, block: slice, cutouts: Float32) -> None:
        """Record the number of finite pixels of cutouts (n, B, S, S), and whether the central pixel is finite.

        Infinite pixels become NaN.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            total = cutouts.reshape(*cutouts.shape[:2], -1).sum(axis=2)  # a sum is faster than a count of all cutouts
        for n in np.flatnonzero(~np.isfinite(total).all(axis=1)):
            finite = np.isfinite(cutouts[n])
            self.n_finite[block][n] = finite.sum(axis=(1, 2))
            self.has_centre[block][n] = finite[:, self.size_px // 2, self.size_px // 2]
            cutouts[n][~finite] = np.nan

    def flags_and_valid_frac(self) -> tuple[Int32, Float32]:
        """Return the flags (N,) and the fraction of finite pixels (N,) in all bands, once all blocks are cut."""
        whole = self.size_px**2
        flags = (
            flag_where(self.inside < whole, Flag.EDGE)
            | flag_where(np.any(self.n_finite < self.inside[:, None], axis=1), Flag.NAN_PIXELS)
            | flag_where(~np.all(self.has_centre, axis=1), Flag.CENTRE_MISSING)
            | flag_where(self.inside == 0, Flag.OFF_TILE)
            | flag_where(np.any(self.n_finite == 0, axis=1), Flag.NO_IMAGE)
        )
        return flags, (self.n_finite.sum(axis=1) / (whole * len(self.rows))).astype(np.float32)


def cut_edge(pixels: Float32, first_row: int, first_column: int, out: Float32) -> None:
    """Fill `out` (S, S) with a cutout that lies partly or wholly outside `pixels`; pixels outside are NaN."""
    out[:] = np.nan
    in_pixels, in_cutout = zip(
        *(overlap(first, n, out.shape[0]) for first, n in zip((first_row, first_column), pixels.shape, strict=True)),
        strict=True,
    )
    out[in_cutout] = pixels[in_pixels]


def overlap(first: int, length: int, size_px: int) -> tuple[slice, slice]:
    """Return the overlap of a cutout with an axis of `length` pixels, as a slice of the axis and one of the cutout."""
    start, stop = max(first, 0), max(min(first + size_px, length), max(first, 0))
    return slice(start, stop), slice(start - first, stop - first)


def row_span(tile: Tile, y: Float64, size_px: int) -> tuple[int, int]:
    """Return the range of 0-based rows, `start` to `stop`, of `tile` that cutouts at `y` touch; it may be empty."""
    first = first_pixel(y, size_px)
    if not len(first):
        return 0, 0
    start = int(np.clip(first.min(), 0, tile.shape[0]))
    stop = int(np.clip(first.max() + size_px, start, tile.shape[0]))
    return start, stop


def first_pixel(position: Float64, size_px: int) -> Int64:
    """Return the 0-based first pixel of cutouts centred at 1-based `position` along one axis.

    The rule is that of `astropy.nddata.utils.overlap_slices`: ceil(p - size / 2). A position that is not finite gives a
    pixel far outside every tile.
    """
    first = np.ceil(position - 1 - size_px / 2)
    return np.where(np.isfinite(first), np.clip(first, -FAR_PX, FAR_PX), -FAR_PX).astype(np.int64)


def n_inside(first: Int64, length: int, size_px: int) -> Int64:
    """Return the number (N,) of pixels, of `size_px` pixels from `first` on, that lie on an axis of `length` pixels."""
    inside: Int64 = np.clip(first + size_px, 0, length) - np.clip(first, 0, length)
    return inside


def flag_where(where: Bool, flag: Flag) -> Int32:
    """Return `flag` where true, 0 elsewhere."""
    return np.where(where, int(flag), 0).astype(np.int32)
