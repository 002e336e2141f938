"""The command `skyclass cutouts`: native cutouts of a table of positions, in its order, as one .npz file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, TileFault
from ..files import replacing
from ..sky.healpix import parse_angle
from ..sky.tile_wcs import tile_pixels
from ..sources.assign import with_tiles
from ..sources.opening import open_sources
from ..sources.source_table import read_all
from ..text import counted
from ..types import FAULT_FLAGS, PIXEL_SCALE_ARCSEC, UNCOVERED_FLAGS, CutoutBatch, Flag, Float64
from .archive import AtlasArchive, open_archive
from .cutouts import cut
from .usable import (
    require_position_on_tile,
    require_usable_tile,
    warn_of_misnamed_tiles,
    warn_of_refused_files,
)

MAX_PIXELS = 1024
MAX_BYTES = 8_000_000_000
"""Largest size of all cutouts, which are held in memory until they are written."""


@dataclass(frozen=True)
class CutoutReport:
    """A line that describes the file, and the tiles without cutouts with reason and remedy."""

    summary: str
    quarantined: dict[str, str]


def write_cutouts(
    catalog: str, images: str, output: str, size: str, bands: tuple[str, ...], allow_truncated: bool = False
) -> CutoutReport:
    """Write cutouts (N, bands, S, S) float32 DN with their flags, and return a report.

    The cutouts of sources on an unusable tile are NaN and flagged as in a class catalogue; the report has the reason.
    Raises `ArchiveError`, and writes nothing, if no tile is usable.
    """
    path = Path(output)
    if path.suffix != ".npz":
        raise ConfigError(f"{output}: cutouts are written as .npz: give a name with this suffix")
    size_px = parse_size(size)
    archive = open_archive(images, bands)
    warn_of_refused_files(archive, images)
    table = positions(catalog, archive, allow_truncated)
    nbytes = 4 * len(table) * len(bands) * size_px**2
    if nbytes > MAX_BYTES:
        raise ConfigError(
            f"{len(table):,} cutouts would take {nbytes / 1e9:.0f} GB of memory: split the table, or "
            "choose smaller cutouts"
        )
    counts = pc.value_counts(table["coadd_id"].drop_null()).to_pylist()
    names = [entry["values"] for entry in sorted(counts, key=lambda entry: -entry["counts"])]
    require_position_on_tile(archive, images, names, lambda: table)
    require_usable_tile(archive, images, names, bands, lambda: table)
    warn_of_misnamed_tiles(archive, images, names, table)
    batch, faults = cut_table(archive, table, size_px, bands)
    with replacing(path) as temp:
        np.savez(
            temp,
            cutouts=batch.pixels,
            source_id=table["source_id"].to_numpy(zero_copy_only=False).astype(str),
            coadd_id=np.array([c or "" for c in table["coadd_id"].to_pylist()]),
            x=batch.x,
            y=batch.y,
            flags=batch.flags,
            valid_frac=batch.valid_frac,
        )
    missing = int(((batch.flags & int(Flag.NO_IMAGE)) != 0).sum())
    summary = f"{counted(len(table), 'cutout')} of {size_px} x {size_px} pixels in {', '.join(bands)} written to {path}"
    return CutoutReport(summary + (f"; without an image in some band: {missing:,}" if missing else ""), faults)


def parse_size(size: str) -> int:
    """Return the side in pixels of a size such as "37px"; for "50arcsec" the nearest odd number of Atlas pixels."""
    pixels = re.fullmatch(r"\s*([+-]?\d{1,9})\s*(px|pix|pixels)\s*", size)
    try:
        side = int(pixels[1]) if pixels else _odd_pixels(parse_angle(size))
    except ConfigError as error:
        raise ConfigError(f"--size {size}: {error.message}; pixels are written as 37px") from error
    if not 1 <= side <= MAX_PIXELS:
        raise ConfigError(f"--size {size}: {side} pixels; choose 1 to {MAX_PIXELS}{_missing_unit(size)}")
    return side


def _missing_unit(size: str) -> str:
    """Return the part of a message about a size without a unit, "" for one with a unit."""
    number = size.strip()
    if number[-1:].isalpha():
        return ""
    side = _odd_pixels(parse_angle(f"{number}arcsec"))
    sizes = f"{number}arcsec or {side}px" if 1 <= side <= MAX_PIXELS else "50arcsec or 37px, for example"
    return f"; {number} without a unit is degrees: write {sizes}"


def _odd_pixels(angle_deg: float) -> int:
    """Return the odd number of Atlas pixels that is nearest to an angle."""
    return _odd(min(angle_deg, 360.0) * 3600 / PIXEL_SCALE_ARCSEC)


def _odd(pixels: float) -> int:
    """Return the nearest odd number of pixels: a cutout has a central pixel."""
    return 2 * round((max(pixels, -1e9) - 1) / 2) + 1


def positions(catalog: str, archive: AtlasArchive, allow_truncated: bool = False) -> pa.Table:
    """Return the sources of a table or catalogue, each with the name of its tile."""
    return with_tiles(read_all(open_sources(catalog, allow_truncated=allow_truncated)), archive)


def cut_table(
    archive: AtlasArchive, table: pa.Table, size_px: int, bands: tuple[str, ...]
) -> tuple[CutoutBatch, dict[str, str]]:
    """Return the cutouts of a table in its order, and the faults by name of the tile.

    The cutout of a source without a tile, or on a tile with a fault, is NaN in all pixels, and flagged.
    """
    n = len(table)
    faults: dict[str, str] = {}
    pixels = np.full((n, len(bands), size_px, size_px), np.nan, dtype=np.float32)
    x, y = np.full(n, np.nan), np.full(n, np.nan)
    flags = np.full(n, int(UNCOVERED_FLAGS), dtype=np.int32)
    valid_frac = np.zeros(n, dtype=np.float32)
    coadd_id = np.array([c or "" for c in table["coadd_id"].to_pylist()])
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    for name in sorted(set(coadd_id) - {""}):
        rows = np.flatnonzero(coadd_id == name)
        try:
            batch = cut_tile(archive, name, bands, ra[rows], dec[rows], size_px)
        except TileFault as fault:
            flags[rows] = int(FAULT_FLAGS[fault.kind])
            faults[name] = str(fault)
            continue
        x[rows], y[rows] = batch.x, batch.y
        pixels[rows], flags[rows], valid_frac[rows] = batch.pixels, batch.flags, batch.valid_frac
    return CutoutBatch(pixels, x, y, flags, valid_frac, ()), faults


def cut_tile(
    archive: AtlasArchive,
    coadd_id: str,
    bands: tuple[str, ...],
    ra: Float64,
    dec: Float64,
    size_px: int,
    attempts: int = 2,
) -> CutoutBatch:
    """Return the cutouts of positions on one tile; if its files change meanwhile, the tile is cut again."""
    tile = archive.tile(coadd_id, bands, verify=True)
    try:
        return cut(archive, tile, *tile_pixels(tile, ra, dec), size_px)
    except TileFault as fault:
        if fault.kind != "changed" or attempts == 1:
            raise
    return cut_tile(archive, coadd_id, bands, ra, dec, size_px, attempts - 1)
