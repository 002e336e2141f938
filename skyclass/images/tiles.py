"""The images of one tile -> `Tile`, or the fault that says why the tile cannot be used.

An image set is one image in each band, all with one footprint. A complete tile is one image set. In a folder with one
cutout for each source, a tile has as many sets as it has sources: they are cut from the same coadd, so that their pixel
grids agree, and so do their pixels where they overlap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import numpy as np

from ..errors import TileFault
from ..types import Tile
from .atlas import AtlasImage, RejectedFile

T = TypeVar("T")

GRID_TOLERANCE_PX = 1e-3
MAX_REFUSED = 5
"""Refused files that the reason of a missing band names."""

ImageSet = dict[str, AtlasImage]
"""Band -> image, of one footprint."""


# --- one band --------------------------------------------------------------------------------------


def require_image(image: AtlasImage | RejectedFile, coadd_id: str, band: str) -> AtlasImage:
    """Return the image if it is good and of this tile and band; raise the `TileFault` that says why not."""
    if isinstance(image, RejectedFile):
        raise TileFault(coadd_id, f"{image.path} is refused: {image.reason}", band)
    if (image.coadd_id, image.band) != (coadd_id, band):
        claim = f"{image.coadd_id} {image.band}"
        raise TileFault(coadd_id, f"{image.path} says in its header that it is {claim}: fetch it again", band)
    return image


def missing_fault(location: str, coadd_id: str, band: str, present: Sequence[str], refused: str = "") -> TileFault:
    """Return the fault of a band without a file; `present` are the bands of the tile that have one.

    `refused` ends the reason: it names the files that may be of the band (`refused_text`).
    """
    if present:
        what = "no usable image" if refused else "missing band"
        reason = f"{what} under {location}, which has {', '.join(present)} of this tile: fetch it{refused}"
        return TileFault(coadd_id, reason, band, "missing_band")
    image = "usable image" if refused else "image"
    reason = f"missing tile: no {image} of it under {location}, fetch it{refused}"
    return TileFault(coadd_id, reason, None, "missing_tile")


def refused_text(files: Sequence[RejectedFile], location: str) -> str:
    """Return the end of a reason that names refused files, at most `MAX_REFUSED`; "" if there are none."""
    named = [f"{file.path.removeprefix(f'{location}/')} ({_without_remedy(file.reason)})" for file in files]
    more = [f"and {len(files) - MAX_REFUSED} more"] if len(files) > MAX_REFUSED else []
    return f"; refused there: {', '.join(named[:MAX_REFUSED] + more)}" if files else ""


def first_reason(reason: str) -> str:
    """Return the first of the problems that the reason of a refused file names, without a remedy.

    >>> first_reason("BAND is 5; BUNIT is missing instead of DN: use the Atlas files"), first_reason("empty file")
    ('BAND is 5', 'empty file')
    """
    return _without_remedy(reason).split("; ")[0]


def _without_remedy(reason: str) -> str:
    """Return a reason without its "fetch it again": the reason of the missing band says so."""
    return re.sub(r"[:,] fetch (it|the file) again$", "", reason)


def each_band(bands: Sequence[str], images_of: Callable[[str], T]) -> list[T]:
    """Return what `images_of` returns for each band.

    Raises one `TileFault` that names every band with a fault. A missing tile is one fault without a band.
    """
    results, faults = [], []
    for band in bands:
        try:
            results.append(images_of(band))
        except TileFault as fault:
            faults.append(fault)
    if len(faults) > 1 and faults[0].kind != "missing_tile":
        others = "; ".join(f"{fault.band}: {fault.reason}" for fault in faults[1:])
        raise TileFault(faults[0].coadd_id, f"{faults[0].reason}; {others}", faults[0].band, faults[0].kind)
    if faults:
        raise faults[0]
    return results


# --- all bands -------------------------------------------------------------------------------------


def tile_of(images: Sequence[AtlasImage]) -> Tile:
    """Return the tile that consists of these images, one for each band; `TileFault` if their geometries differ."""
    first = images[0]
    for image in images[1:]:
        if image.geometry != first.geometry:
            reason = f"{image.path} differs in WCS or shape from {first.path}: take all bands from one source"
            raise TileFault(image.coadd_id, reason, image.band)
    return Tile(
        coadd_id=first.coadd_id, bands=tuple(image.band for image in images), shape=first.shape,
        crval_deg=first.crval_deg, crpix=first.crpix, cdelt_deg=first.cdelt_deg,
        zero_point_mag=tuple(image.zero_point_mag for image in images),
        files=tuple(image.file for image in images),
    )  # fmt: skip


def footprints_of(images: Iterable[AtlasImage]) -> list[Tile]:
    """Return one tile for each distinct footprint, with the bands that have an image of it."""
    sets: dict[tuple[object, ...], ImageSet] = {}
    for image in images:
        sets.setdefault((image.coadd_id, *image.geometry), {}).setdefault(image.band, image)
    return [tile_of(list(images_of.values())) for images_of in sets.values()]


def no_refused(bands: Sequence[str]) -> str:
    """Return that no file is refused."""
    return ""


def image_sets(
    images_of_bands: Sequence[Sequence[AtlasImage]], refused: Callable[[Sequence[str]], str] = no_refused
) -> list[list[AtlasImage]]:
    """Return the images of one tile, given for each band, as image sets in the order of the bands.

    Raises `TileFault` for an image that fits no set. A set that lacks a band is left out if another set covers its
    footprint, and is a fault otherwise: its sources would lose a band. Two files with the same band and footprint are a
    fault, unless they are one file with two names. `refused` returns the end of the reason for bands that a set lacks.
    """
    if all(len(images) == 1 for images in images_of_bands):
        return [[images[0] for images in images_of_bands]]
    bands = [images[0].band for images in images_of_bands]
    sets = _sets(chain.from_iterable(images_of_bands))
    complete = [image_set for image_set in sets if set(bands) <= set(image_set)]
    for image_set in sets:
        if not set(bands) <= set(image_set) and not any(_set_covers(other, image_set) for other in complete):
            raise _incomplete_fault(image_set, bands, refused)
    return [[image_set[band] for band in bands] for image_set in complete]


def combine(tiles: Sequence[Tile]) -> Tile:
    """Return the first tile with the others as further image sets; `TileFault` unless they share one pixel grid."""
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
    return replace(first, other_image_sets=tuple(tiles[1:]))


def _sets(images: Iterable[AtlasImage]) -> list[ImageSet]:
    """Return the images by footprint; `TileFault` for two files with the same band and footprint."""
    sets: dict[tuple[object, ...], ImageSet] = {}
    for image in images:
        other = sets.setdefault(image.geometry, {}).setdefault(image.band, image)
        if other is not image and not _is_same_file(other, image):
            reason = f"more than one image with the same footprint, {other.path} and {image.path}: keep one of them"
            raise TileFault(image.coadd_id, reason, image.band)
    return list(sets.values())


def _is_same_file(one: AtlasImage, other: AtlasImage) -> bool:
    """Return whether two names lead to one file, by a symbolic or hard link."""
    stamps = one.file.stamp, other.file.stamp
    return stamps[0] == stamps[1] and stamps[0].device == stamps[1].device


def _set_covers(outer: ImageSet, inner: ImageSet) -> bool:
    """Return whether the footprint of one set contains that of another."""
    return covers(next(iter(outer.values())), next(iter(inner.values())))


def covers(a: AtlasImage, b: AtlasImage) -> bool:
    """Return whether the footprint of the first image contains that of the second."""
    if (a.crval_deg, a.cdelt_deg) != (b.crval_deg, b.cdelt_deg):
        return False
    first = np.subtract(a.crpix, b.crpix)  # (x, y), 0-based pixel of `a` at which `b` begins
    last = first + np.array(b.shape[::-1])
    return bool((first > -GRID_TOLERANCE_PX).all() and (last < np.array(a.shape[::-1]) + GRID_TOLERANCE_PX).all())


def _incomplete_fault(images: ImageSet, bands: Sequence[str], refused: Callable[[Sequence[str]], str]) -> TileFault:
    image = next(iter(images.values()))
    missing = [band for band in bands if band not in images]
    reason = f"{image.path} has no image of {', '.join(missing)} with the same footprint: fetch it, or remove this one"
    return TileFault(image.coadd_id, reason + refused(missing), missing[0], "missing_band")
