"""Whether a source of images is of use for some sources of a catalogue; if not, the error says what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ArchiveError, TileFault
from ..sky.tile_wcs import tile_wcs
from ..sources.assign import assign_tiles
from ..sources.columns import with_column
from ..sources.names import needs_tile_by_position
from ..text import counted, one_or_many
from ..types import BANDS, Float64, Tile
from .archive import AtlasArchive
from .local import LocalSource
from .tiles import first_reason

log = logging.getLogger(__name__)

LAYOUT_HINT = (
    "give the location that holds the folders 00 to 35; the public ones are "
    "s3://nasa-irsa-wise/wise/allwise/images/p3am_cdd and https://irsa.ipac.caltech.edu/ibe/data/wise/allwise/p3am_cdd"
)
PREFLIGHT_TILES = 200
"""Tiles that are opened in search of a usable one before a run begins."""
HOURS = 24
"""Right ascensions below this are perhaps in hours."""


def require_usable_tile(
    archive: AtlasArchive,
    location: str,
    coadd_ids: Sequence[str],
    bands: tuple[str, ...],
    sources: Callable[[], pa.Table] | None = None,
) -> None:
    """Raise `ArchiveError` if none of the first tiles is usable; the message has the first reasons.

    `sources` returns the sources of a user's table. With them, the message tells a `coadd_id` that does not fit its
    position.
    """
    faults: list[TileFault] = []
    for coadd_id in coadd_ids[:PREFLIGHT_TILES]:
        try:
            archive.tile(coadd_id, bands)
        except TileFault as fault:
            faults.append(fault)
        else:
            return
    reasons = "; ".join(map(str, faults[:5]))
    is_remote = "://" in location and not location.startswith("file://")
    missing = [fault.coadd_id for fault in faults if fault.kind == "missing_tile"]
    hint = f"; {LAYOUT_HINT}" if is_remote and len(missing) == len(faults) else ""
    if sources and missing and (misnamed := _misnamed(archive, sources(), missing)):
        hint = f"; {misnamed}"
    raise ArchiveError(f"{location}: of {counted(len(faults), 'tile')} looked at, none is usable: {reasons}{hint}")


def require_position_on_tile(
    archive: AtlasArchive, location: str, coadd_ids: Sequence[str], sources: Callable[[], pa.Table]
) -> None:
    """Raise `ArchiveError` if no source has a tile: `coadd_ids` is empty. `sources` returns some of the sources."""
    if not coadd_ids:
        raise ArchiveError(f"{location}: {_off_tiles(sources(), None if archive.source.is_remote else archive)}")


def warn_of_misnamed_tiles(archive: AtlasArchive, location: str, coadd_ids: Sequence[str], table: pa.Table) -> None:
    """Warn of sources of a table whose `coadd_id` is no tile of a folder, while their position lies on one.

    The first `PREFLIGHT_TILES` names are looked at.
    """
    names = archive.source.names
    missing = [name for name in coadd_ids[:PREFLIGHT_TILES] if not any(names(name, band) for band in BANDS)]
    if missing and (misnamed := _misnamed(archive, table, missing)):
        log.warning("%s: no image of %s; %s", location, counted(len(missing), "tile"), misnamed)


def warn_of_refused_files(archive: AtlasArchive, location: str) -> None:
    """Warn of the files of a folder that are no usable images; those of a folder in the layout are not known."""
    files = archive.source.rejected if isinstance(archive.source, LocalSource) else ()
    if not files:
        return
    are_no = one_or_many(len(files), "is no usable Atlas image", "are no usable Atlas images")
    log.warning(
        "%s of %s %s, such as %s (%s); replace or remove %s",
        counted(len(files), "file"), location, are_no, files[0].path.removeprefix(f"{archive.root}/"),
        first_reason(files[0].reason), one_or_many(len(files), "it", "them"),
    )  # fmt: skip


def _misnamed(archive: AtlasArchive, table: pa.Table, missing: Sequence[str]) -> str:
    """Return which source of the missing tiles lies on a tile of the folder, and the remedy; "" if none does.

    It is "" for a remote archive, too: the tiles near these sources are not looked for.
    """
    rows = table.filter(pc.is_in(table["coadd_id"], pa.array(missing, pa.string())))
    if archive.source.is_remote or not len(rows):
        return ""
    unnamed = with_column(rows, "coadd_id", pa.chunked_array([pa.nulls(len(rows), pa.string())]))
    tiles = assign_tiles(unnamed, archive.list_tiles((rows["ra"].to_numpy(), rows["dec"].to_numpy())))["coadd_id"]
    row = pc.index(tiles.is_valid(), True).as_py()
    if row < 0:
        return ""
    source = f"source {rows['source_id'][row]}"
    return (
        f"the coadd_id {rows['coadd_id'][row]} of {source} comes from the table, but its position lies on tile "
        f"{tiles[row]} of this folder; without the column coadd_id, tiles are found by position"
    )


def _off_tiles(table: pa.Table, archive: AtlasArchive | None) -> str:
    """Return why no source lies on a tile of an archive; None is a remote archive, whose tiles are not listed."""
    table = table.filter(needs_tile_by_position(table))
    if not len(table):
        return "no source has a tile, because every coadd_id is a name that no tile can have: leave the column out"
    tiles = archive.list_tiles() if archive else None
    if tiles == []:
        return "none of the tiles of this folder has an image that can be read: fetch the images again"
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    where = "" if tiles is None else f"; {_content(tiles)}"
    return (
        f"none of the positions lies on a tile of this folder: source {table['source_id'][0]} is at ra {ra[0]:.4f}, "
        f"dec {dec[0]:.4f}{where}; {remedy_of_hours(ra) or 'correct the positions'}, or give the images of this part "
        "of the sky"
    )


def remedy_of_hours(ra: Float64) -> str:
    """Return the remedy for right ascensions in hours if all are below 24, else ""."""
    return "if ra is in hours, multiply it by 15" if ra.max() < HOURS else ""


def _content(tiles: Sequence[Tile]) -> str:
    """Return text with the number of tiles of a folder, and name and centre of the first one."""
    first, n_tiles = tiles[0], len({tile.coadd_id for tile in tiles})
    rows, columns = first.shape
    ra, dec = (float(value) for value in tile_wcs(first).wcs_pix2world((columns + 1) / 2, (rows + 1) / 2, 1))
    which = first.coadd_id if n_tiles == 1 else f"such as {first.coadd_id}"
    return f"the folder has {counted(n_tiles, 'tile')}, {which} with its centre at ra {ra:.4f}, dec {dec:.4f}"
