"""What a tile is: its images, its pixels and its name, whether the bytes came from a disk or an archive far away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NoReturn, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TileFault
from ..sky.healpix import healpix, pixel_centres, pixel_radius_deg, unit_vectors
from ..types import BANDS, Archive, Float32, Float64, Tile
from .header import TILE_NAME, AtlasImage, Refusal

T = TypeVar("T")

MIN_FINITE_FRACTION = 0.02
"""Share of finite pixels in the rows of a strip below which they are refused: the emptiest real cutout known, on M42,
has 60 %, and a whole strip is wider than any nebula."""
MAX_ZERO_FRACTION = 0.05
"""Share of exactly 0.0 pixels in one row above which it is refused, whatever rows are read with it. A partly
fetched file holds zeroed blocks; a real Atlas image marks missing pixels as NaN and its sky is never exactly 0 in
float32 (no exact zero in the nine real cutouts these rules were checked on)."""

TILE_HALF_DIAGONAL_DEG = 1.11
"""Half of the 1.5644 degree side of an Atlas tile, times the square root of 2."""
NAME_ROUNDING_DEG = 0.15
"""A tile's name truncates RA and Dec of its centre to 0.1 degree each."""


class AtlasArchive(Archive, Protocol):
    """An archive that can also say what it holds."""

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return the bands, of all four, of which it has a file; () if it has no such tile."""
        ...

    def list_tiles(self, near: tuple[ArrayLike, ArrayLike] | None = None) -> list[Tile]:
        """Return the footprints of the tiles, sorted by name; those near positions (ra, dec in degrees) if given."""
        ...

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return the SHA-256 of the pixels of rows `start:stop`, by the names of the tile's files.

        Raises `TileFault` like `read_rows`, but for no value of a pixel. The pixels are the bytes of the file,
        big-endian float32: equal digests mean equal rows, whichever copy was read.
        """
        ...


# --- a tile ----------------------------------------------------------------------------------------


def own_image(image: AtlasImage | Refusal, coadd_id: str, band: str) -> AtlasImage:
    """Return the image if it is good and the one that was asked for, or raise the `TileFault` that says why not."""
    if isinstance(image, Refusal):
        raise TileFault(coadd_id, f"{image.path} is refused: {image.reason}", band)
    if (image.coadd_id, image.band) != (coadd_id, band):
        claim = f"{image.coadd_id} {image.band}"
        reason = f"{image.path} says in its header that it is {claim}: fetch it again"
        raise TileFault(coadd_id, reason, band)
    return image


def each_band(bands: Sequence[str], image_of: Callable[[str], T]) -> list[T]:
    """Return the image of each band; raise one `TileFault` that names every band without a good one."""
    images, faults = [], []
    for band in bands:
        try:
            images.append(image_of(band))
        except TileFault as fault:
            faults.append(fault)
    if len(faults) > 1 and faults[0].kind != "missing_tile":
        others = "; ".join(f"{fault.band}: {fault.reason}" for fault in faults[1:])
        raise TileFault(faults[0].coadd_id, f"{faults[0].reason}; {others}", faults[0].band, faults[0].kind)
    if faults:
        raise faults[0]
    return images


def raise_missing(root: str, coadd_id: str, band: str, present: Sequence[str]) -> NoReturn:
    """Raise the `TileFault` of a band that is not there, given those that are."""
    if present:
        reason = f"missing band under {root}, which has {', '.join(present)} of this tile: fetch it"
        raise TileFault(coadd_id, reason, band, "missing_band")
    raise TileFault(coadd_id, f"missing tile: no image of it under {root}, fetch it", None, "missing_tile")


def tile_of(images: Sequence[AtlasImage], root: str) -> Tile:
    """Return the tile of its bands' images below `root`, in their order; `TileFault` unless they share one geometry."""
    first = images[0]
    for image in images[1:]:
        if image.geometry != first.geometry:
            reason = f"its WCS or shape differs from {first.band}: take all bands from one source"
            raise TileFault(image.coadd_id, reason, image.band)
    return Tile(
        coadd_id=first.coadd_id, bands=tuple(image.band for image in images), shape=first.shape,
        crval_deg=first.crval_deg, crpix=first.crpix, cdelt_deg=first.cdelt_deg,
        zero_point_mag=tuple(image.zero_point_mag for image in images),
        files=tuple(replace(image.file, name=image.path.removeprefix(f"{root}/")) for image in images),
    )  # fmt: skip


def check_rows(tile: Tile, start: int, stop: int) -> None:
    """Raise `ValueError` if rows `start:stop` are not on the tile."""
    if not 0 <= start < stop <= tile.shape[0]:
        raise ValueError(f"rows {start}:{stop} are not in the {tile.shape[0]} rows of {tile.coadd_id}")


def row_range(tile: Tile, start: int, stop: int | None) -> tuple[int, int]:
    """Return rows as `start, stop`, where None means to the end; `ValueError` if they are not on the tile."""
    stop = tile.shape[0] if stop is None else stop
    check_rows(tile, start, stop)
    return start, stop


def check_pixels(tile: Tile, band: str, start: int, pixels: Float32) -> None:
    """Raise `TileFault` if rows from `start` on hold too many exact zeros or too few finite pixels."""
    if np.count_nonzero(pixels == 0) > MAX_ZERO_FRACTION * pixels.shape[1]:  # fewer are no row with too many
        zero_fraction = np.mean(pixels == 0, axis=1)
        worst = int(zero_fraction.argmax())
        if zero_fraction[worst] > MAX_ZERO_FRACTION:
            share = f"{zero_fraction[worst]:.0%} of row {start + worst}"
            raise TileFault(tile.coadd_id, f"zeroed pixels: {share} are exactly 0, fetch it again", band)
    finite = np.count_nonzero(np.isfinite(pixels)) / pixels.size
    if finite < MIN_FINITE_FRACTION:
        reason = f"{finite:.1%} of rows {start} to {start + len(pixels)} are finite pixels, fetch it again"
        raise TileFault(tile.coadd_id, reason, band)


# --- names -----------------------------------------------------------------------------------------


def layout_path(coadd_id: str, band: str) -> str:
    """Return the path of a band below the root of the archive layout, or "" for what cannot be a tile's name."""
    if not TILE_NAME.fullmatch(coadd_id) or band not in BANDS:
        return ""
    return f"{coadd_id[:2]}/{coadd_id[:4]}/{coadd_id}/{coadd_id}-{band}-int-3.fits"


def names_near(names: Iterable[str], ra: ArrayLike, dec: ArrayLike) -> list[str]:
    """Return the tile names whose centre, as the name tells it, lies near any position."""
    wanted = list(names)
    places = _places(ra, dec)
    if not wanted or not len(places[0]):
        return []
    sources = unit_vectors(*places)
    matches = [cast(re.Match[str], TILE_NAME.fullmatch(name)) for name in wanted]
    centre_ra = np.array([int(m[1]) / 10 + 0.05 for m in matches])
    centre_dec = np.array([int(m[3]) / 10 * (1 if m[2] == "p" else -1) for m in matches])
    centres = unit_vectors(centre_ra, centre_dec)
    near = [bool((sources @ centre).max() >= np.cos(np.radians(_reach_deg()))) for centre in centres]
    return [name for name, keep in zip(wanted, near, strict=True) if keep]


def ra_names_near(ra: ArrayLike, dec: ArrayLike) -> set[str]:
    """Return the first four digits, RA in 0.1 degree, of all names that `names_near` could keep."""
    digits = np.arange(3600)
    near = np.zeros(3600, bool)
    for place_ra, place_dec in zip(*_places(ra, dec), strict=True):
        spread = np.sin(np.radians(_reach_deg())) / np.cos(np.radians(place_dec))
        half_width_deg = np.degrees(np.arcsin(spread)) if spread < 1 else 180.0
        near |= np.abs((digits / 10 + 0.05 - place_ra + 180) % 360 - 180) <= half_width_deg
    return {f"{number:04d}" for number in digits[near]}


def _places(ra: ArrayLike, dec: ArrayLike) -> tuple[Float64, Float64]:
    """Return RA and Dec (degrees) of the HEALPix pixels of order 6 that hold any position."""
    return pixel_centres(6, np.unique(healpix(6, ra, dec)))


def _reach_deg() -> float:
    """Return how far from such a pixel's centre the centre that a tile's name tells may lie."""
    return TILE_HALF_DIAGONAL_DEG + NAME_ROUNDING_DEG + pixel_radius_deg(6)
