"""Several images of one tile: an image set is one image in each band with one footprint.

A whole tile is one image set. A folder with one cutout for each source has as many sets of a tile as it has sources
there, cut from the same coadd: their pixel grids agree, and so do their pixels where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import TileFault
from ..types import Tile
from .header import AtlasImage

GRID_TOLERANCE_PX = 1e-3

ImageSet = dict[str, AtlasImage]
"""Band -> image, of one footprint."""


def image_sets(images: Iterable[AtlasImage], bands: Sequence[str]) -> list[list[AtlasImage]]:
    """Return the images of one tile as sets, each in the order of `bands`; raise `TileFault` for what fits no set.

    A set that lacks a band is left out if another set covers its footprint, and is a fault otherwise: its sources
    would lose a band. Two files with the same band and footprint are a fault, unless they are one file with two names.
    """
    sets: dict[tuple[object, ...], ImageSet] = {}
    for image in images:
        band_images = sets.setdefault(image.geometry, {})
        other = band_images.setdefault(image.band, image)
        if other is not image and not is_same_file(other, image):
            reason = f"more than one image with the same footprint, {other.path} and {image.path}: keep one of them"
            raise TileFault(image.coadd_id, reason, image.band)
    whole = [images_of for images_of in sets.values() if set(bands) <= set(images_of)]
    for images_of in sets.values():
        if not set(bands) <= set(images_of) and not any(_covers(other, images_of) for other in whole):
            _raise_incomplete(images_of, bands)
    return [[images_of[band] for band in bands] for images_of in whole]


def combine(tiles: Sequence[Tile]) -> Tile:
    """Return the first tile with the others as its further image sets; `TileFault` unless they share one pixel grid."""
    first = tiles[0]
    for tile in tiles[1:]:
        offset = np.subtract(tile.crpix, first.crpix)
        is_on_grid = np.abs(offset - offset.round()).max() < GRID_TOLERANCE_PX
        same = (tile.crval_deg, tile.cdelt_deg, tile.zero_point_mag) == (
            first.crval_deg, first.cdelt_deg, first.zero_point_mag,
        )  # fmt: skip
        if not (is_on_grid and same):
            names = f"{first.files[0].name} and {tile.files[0].name}"
            reason = f"{names} differ in pixel grid or zero point: take all images of a tile from one source"
            raise TileFault(first.coadd_id, reason, tile.bands[0])
    return replace(first, others=tuple(tiles[1:]))


def is_same_file(one: AtlasImage, other: AtlasImage) -> bool:
    """Return whether two names lead to one file, by a symbolic or hard link."""
    stamps = one.file.stamp, other.file.stamp
    return stamps[0] == stamps[1] and stamps[0].device == stamps[1].device


def _covers(outer: ImageSet, inner: ImageSet) -> bool:
    """Return whether the footprint of one set holds that of another."""
    a, b = next(iter(outer.values())), next(iter(inner.values()))
    if (a.crval_deg, a.cdelt_deg) != (b.crval_deg, b.cdelt_deg):
        return False
    first = np.subtract(a.crpix, b.crpix)  # (x, y) 0-based pixel of `outer` where `inner` begins
    last = first + np.array(b.shape[::-1])
    return bool((first > -GRID_TOLERANCE_PX).all() and (last < np.array(a.shape[::-1]) + GRID_TOLERANCE_PX).all())


def _raise_incomplete(images: ImageSet, bands: Sequence[str]) -> None:
    image = next(iter(images.values()))
    missing = [band for band in bands if band not in images]
    reason = f"{image.path} has no image of {', '.join(missing)} with the same footprint: fetch it, or remove this one"
    raise TileFault(image.coadd_id, reason, missing[0], "missing_band")
