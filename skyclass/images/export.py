"""The command `skyclass cutouts`: native cutouts of a table of positions, in its order, as one .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, TileFault
from ..files import replacing
from ..sky.tile_wcs import tile_pixels
from ..sources.assign import with_tiles
from ..sources.opening import open_sources
from ..sources.source_table import read_all
from ..text import counted
from ..types import FAULT_FLAGS, UNCOVERED_FLAGS, CutoutBatch, Flag, Float64
from .archive import AtlasArchive, open_archive
from .cutouts import cut
from .size import parse_size
from .usable import (
    require_position_on_tile,
    require_usable_tile,
    warn_of_misnamed_tiles,
    warn_of_refused_files,
)

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
    size_px = size_of_option(size)
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


def size_of_option(size: str) -> int:
    """Return the side in pixels of the option --size; the message of `ConfigError` begins with the option."""
    try:
        return parse_size(size)
    except ConfigError as error:
        raise ConfigError(f"--size {size}: {error.message}") from error


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
