"""Catalogues and tables of sources, opened: their layout is recognised, and only partitions of the region are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import CatalogError
from ..sky.regions import Region
from ..text import one_or_many
from .hats_layout import list_hats
from .layouts import Listing, list_hive, list_prepared
from .listing import ANYWHERE, faults_text, folder_names, local_path
from .partitions import PartitionedSources, source_columns
from .source_table import SourceTable
from .tablefile import check_regular
from .tables import UserTable

MAX_COVER_ORDER = 8
"""Deepest order at which a region is compared with partitions: finer would list millions of pixels."""


def open_sources(
    catalog: str, region: Region | None = None, allow_truncated: bool = False, further: Sequence[str] = ()
) -> SourceTable:
    """Open a catalogue of sources, or a table of positions, without reading its rows.

    Parameters
    ----------
    catalog : str
        Local path of AllWISE partitions in IRSA's layout, of a HATS catalogue, or of one table with columns `ra` and
        `dec`: CSV, IPAC, VOTable, FITS, ECSV or Parquet.
    region : Cone, Box, Polygon, Pixels or Moc, optional
        Part of the sky. Partitions outside are not opened, and rows outside are not returned.
    allow_truncated : bool, default False
        Accept a VOTable that a service cut at its row limit.
    further : sequence of str, default ()
        Numeric columns to read besides those of a source, such as `j_m_2mass`; null if the catalogue lacks them.

    Returns
    -------
    SourceTable
        Its method `to_dask` gives the sources as a Dask DataFrame.

    Raises
    ------
    CatalogError
        There is no catalogue, its first partition lacks a column, or a partition of the region cannot be read, such
        as an unfinished download.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skyclass import Cone, open_sources
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "positions.csv")
    ...     _ = path.write_text("source_id,ra,dec\\na,150.1,2.2\\nb,10.0,-5.0\\n")
    ...     sources = open_sources(str(path), Cone(150, 2, "1deg")).to_dask(columns=["source_id", "ra"])
    ...     sources.compute(scheduler="sync")
      source_id     ra
    0         a  150.1
    """
    path = local_path(str(catalog))
    if not path.is_dir():
        check_regular(path)
        return UserTable(str(path), region, allow_truncated, tuple(further))
    names = folder_names(path)
    for find in (list_hats, list_hive, list_prepared):
        if listing := find(path):
            return _partitioned(listing, region, tuple(further))
    raise CatalogError(
        f"catalogue {catalog}: neither healpix_k0=*/healpix_k5=* (IRSA) nor Norder=*/Dir=*/Npix=* (HATS) is "
        f"in this folder, which holds {', '.join(sorted(names)[:8]) or 'nothing'}; give the catalogue's own folder, or "
        "one table file"
    )


def _partitioned(listing: Listing, region: Region | None, further: tuple[str, ...]) -> PartitionedSources:
    """Return the catalogue of a listing in a region; `CatalogError` for entries there that cannot be read."""
    partitions, faults = listing.partitions, listing.faults
    if region:
        touches = _touching(region)
        partitions = tuple(part for part in partitions if touches(part.order, part.pixel))
        faults = [fault for fault in faults if touches(fault.order, fault.pixel)]
    if faults:
        raise CatalogError(
            f"catalogue {listing.root}: {len(faults):,} {one_or_many(len(faults), 'entry', 'entries')} that should "
            f"hold rows cannot be read: {faults_text(faults)}"
        )
    sources = PartitionedSources(listing.layout, listing.root, partitions, region, listing.renamed, further)
    if partitions:
        source_columns(sources, partitions[0].path)
    return sources


def _touching(region: Region) -> Callable[[int, int], bool]:
    """Return the function that tells whether a pixel (order, number) touches a region's cover."""
    covers: dict[int, set[int]] = {}

    def touches(order: int, pixel: int) -> bool:
        cover_order = min(order, MAX_COVER_ORDER)
        if cover_order == ANYWHERE:
            return True
        if cover_order not in covers:
            covers[cover_order] = set(region.cover(cover_order).tolist())
        return pixel >> 2 * (order - cover_order) in covers[cover_order]

    return touches
