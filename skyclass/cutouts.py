"""Tile pixels + source positions -> `CutoutBatch`, one band at a time, all sources of a strip at once.

A cutout is centred like `astropy.nddata.Cutout2D(mode="partial", fill_value=nan)`: the source stays in the middle
whatever the tile's edge does, and pixels that do not exist are NaN.
"""

from __future__ import annotations

import numpy as np

from .types import Archive, Bool, CutoutBatch, Flag, Float32, Float64, Int32, Int64, RowRange, Tile


def cut(archive: Archive, tile: Tile, x: Float64, y: Float64, size_px: int) -> CutoutBatch:
    """Return cutouts (N, B, size_px, size_px) of the sources at 1-based FITS pixels `x`, `y` of `tile`.

    Reads from each band of `tile` only the rows that the cutouts touch, once. Raises `TileFault`.
    """
    pixels = np.empty((len(x), len(tile.bands), size_px, size_px), dtype=np.float32)
    start, stop = row_span(tile, y, size_px)
    if start == stop:  # nothing of any cutout is on the tile
        pixels.fill(np.nan)
        return describe(pixels, tile, x, y)
    for b, band in enumerate(tile.bands):
        rows = RowRange(start, archive.read_rows(tile, band, start, stop))
        pixels[:, b] = gather(rows, x, y, size_px)
    return describe(pixels, tile, x, y)


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


def gather(rows: RowRange, x: Float64, y: Float64, size_px: int) -> Float32:
    """Return cutouts (N, size_px, size_px) of one band from the rows read; NaN beyond them."""
    n_rows, n_columns = rows.pixels.shape
    padded = np.full((n_rows + 2 * size_px, n_columns + 2 * size_px), np.nan, dtype=np.float32)
    padded[size_px : size_px + n_rows, size_px : size_px + n_columns] = rows.pixels
    first_row = np.clip(corner(y, size_px) - rows.start, -size_px, n_rows) + size_px
    first_column = np.clip(corner(x, size_px), -size_px, n_columns) + size_px
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size_px, size_px))
    cutouts: Float32 = windows[first_row, first_column]
    return cutouts


def describe(pixels: Float32, tile: Tile, x: Float64, y: Float64) -> CutoutBatch:
    """Return the batch with its flags and valid fractions read off the pixels and positions."""
    size_px = pixels.shape[-1]
    finite = np.isfinite(pixels)
    inside = pixels_inside(tile, x, y, size_px)
    n_finite = finite.sum(axis=(2, 3))
    centre = finite[:, :, size_px // 2, size_px // 2]
    flags = (
        mark(inside < size_px * size_px, Flag.EDGE)
        | mark((n_finite < inside[:, None]).any(axis=1), Flag.NAN_PIXELS)
        | mark(centre.sum(axis=1) < len(tile.bands), Flag.CENTRE_MISSING)
        | mark(inside == 0, Flag.OFF_TILE)
        | mark((n_finite == 0).any(axis=1), Flag.NO_IMAGE)
    )
    valid_frac = finite.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    return CutoutBatch(pixels, x, y, flags, valid_frac, tile.zero_point_mag)


def pixels_inside(tile: Tile, x: Float64, y: Float64, size_px: int) -> Int64:
    """Return how many pixels (N,) of each cutout lie on the tile, a band counted once."""
    extent = []
    for position, length in ((y, tile.shape[0]), (x, tile.shape[1])):
        first = corner(position, size_px)
        extent.append(np.clip(first + size_px, 0, length) - np.clip(first, 0, length))
    inside: Int64 = extent[0] * extent[1]
    return inside


def mark(where: Bool, flag: Flag) -> Int32:
    """Return `flag` where true, 0 elsewhere."""
    return np.where(where, int(flag), 0).astype(np.int32)
