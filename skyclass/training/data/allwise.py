"""The AllWISE source nearest to each spectrum: the rows that a service returns, or a local copy of the catalogue."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import CatalogError
from ...schema import SOURCE_SCHEMA
from ...sky.healpix import healpix, separation_deg, unit_vectors
from ...sources.source_table import SourceTable
from ...types import Bool, Float64, Int64
from ..progress import Progress, no_progress
from .service import ServiceError

PHOTOMETRY = tuple(f"w{band}{quantity}" for quantity in ("mpro", "snr") for band in (1, 2, 3))
ALLWISE_COLUMNS = ("source_id", "coadd_id", "ra", "dec", *PHOTOMETRY)
MATCH_SCHEMA = pa.schema(
    [
        ("label_row", pa.int64()),
        ("match_arcsec", pa.float64()),
        *(SOURCE_SCHEMA.field(name) for name in ALLWISE_COLUMNS),
    ]
)
"""An AllWISE source, and the row `label_row` of the cleaned spectra to which it is the nearest."""

TILE_OF_ALLWISE = r"^\d{4}[pm]\d{3}_ac\d+$"
N_CIRCLE_POINTS = 8


def nearest_sources(spectra: pa.Table, candidates: pa.Table, radius_arcsec: float) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the candidate nearest to each row of `spectra`, none beyond the radius.

    `candidates` has the columns `ALLWISE_COLUMNS` and `label_row`, the row of `spectra` that each belongs to.
    """
    rows = candidates["label_row"].to_numpy()
    if len(rows) and (candidates["label_row"].null_count or rows.min() < 0 or rows.max() >= len(spectra)):
        raise ServiceError(f"IRSA TAP returned a label_row that was not uploaded ({rows.min()}..{rows.max()})")
    positions = spectra.take(pa.array(rows))
    arcsec = 3600 * separation_deg(positions["ra"], positions["dec"], candidates["ra"], candidates["dec"])
    table = candidates.append_column("match_arcsec", pa.array(arcsec)).select(MATCH_SCHEMA.names)
    order = np.lexsort((arcsec, rows))
    order = order[arcsec[order] <= radius_arcsec]
    return table.take(order[np.r_[True, np.diff(rows[order]) > 0]] if len(order) else order).combine_chunks()


def match_offline(
    spectra: pa.Table, catalog: SourceTable, radius_arcsec: float, progress: Progress = no_progress
) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the nearest source of a local AllWISE catalogue for each row of `spectra`.

    Partitions without a spectrum within the radius are not read, and one partition is in memory at a time. `progress`
    gets {"step": "match", "done", "total"} after each. Raises `CatalogError` for another release than AllWISE.
    """
    ra, dec = spectra["ra"].to_numpy(), spectra["dec"].to_numpy()
    nearest_arcsec, matches = np.full(len(ra), np.inf), [MATCH_SCHEMA.empty_table()]
    rows_by_pixel = _rows_by_pixel(ra, dec, catalog, radius_arcsec)
    to_read = [
        index
        for index, partition in enumerate(catalog.partitions)
        if partition.order < 0 or partition.pixel in rows_by_pixel[partition.order]
    ]
    for n_read, index in enumerate(to_read, 1):
        partition = catalog.partitions[index]
        rows = np.arange(len(ra)) if partition.order < 0 else rows_by_pixel[partition.order][partition.pixel]
        match = _nearest_in_partition(spectra, rows, catalog.read(index), radius_arcsec)
        label_rows, arcsec = match["label_row"].to_numpy(), match["match_arcsec"].to_numpy()
        nearer = arcsec < nearest_arcsec[label_rows]
        nearest_arcsec[label_rows[nearer]] = arcsec[nearer]
        matches.append(match.filter(pa.array(nearer)))
        progress({"step": "match", "done": n_read, "total": len(to_read)})
    table = pa.concat_tables(matches).combine_chunks()
    # `matches` still holds the farther source of a row for which a later partition has a nearer one.
    is_nearest = table["match_arcsec"].to_numpy() == nearest_arcsec[table["label_row"].to_numpy()]
    return _require_allwise(table.filter(pa.array(is_nearest)).sort_by("label_row"), catalog.location)


def _rows_by_pixel(
    ra: Float64, dec: Float64, catalog: SourceTable, radius_arcsec: float
) -> dict[int, dict[int, Int64]]:
    """Return, by HEALPix order and pixel of the catalogue's partitions, the positions within reach of the pixel.

    A position reaches its own pixel and those of eight points around it, whose octagon encloses the radius.
    """
    centre, north = unit_vectors(ra, dec), unit_vectors(ra, dec + 90.0)
    east = unit_vectors(ra + 90.0, np.zeros_like(dec))
    angle = np.arange(N_CIRCLE_POINTS)[:, None, None] * 2 * np.pi / N_CIRCLE_POINTS
    reach = np.tan(np.radians(1.1 * radius_arcsec / 3600))
    x, y, z = np.moveaxis(centre + reach * (np.cos(angle) * east + np.sin(angle) * north), -1, 0)
    lon = np.vstack([ra, np.degrees(np.arctan2(y, x))])
    lat = np.vstack([dec, np.degrees(np.arctan2(z, np.hypot(x, y)))])
    orders = {partition.order for partition in catalog.partitions if partition.order >= 0}
    return {order: _columns_by_pixel(healpix(order, lon, lat)) for order in orders}


def _columns_by_pixel(pixels: Int64) -> dict[int, Int64]:
    """Return for each pixel in `pixels` (points, positions) the positions that have it."""
    columns = np.broadcast_to(np.arange(pixels.shape[1]), pixels.shape)
    pairs = np.unique(np.column_stack([pixels.ravel(), columns.ravel()]), axis=0)
    values, first = np.unique(pairs[:, 0], return_index=True)
    return dict(zip(values.tolist(), np.split(pairs[:, 1], first[1:]), strict=False))


def _nearest_in_partition(spectra: pa.Table, rows: Int64, sources: pa.Table, radius_arcsec: float) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the nearest of `sources` for each of the `rows` of spectra with one within the radius."""
    from scipy.spatial import cKDTree

    if not len(sources) or not len(rows):
        return MATCH_SCHEMA.empty_table()
    tree = cKDTree(unit_vectors(sources["ra"].to_numpy(), sources["dec"].to_numpy()))
    positions = spectra.take(pa.array(rows))
    chord = 2 * np.sin(np.radians(radius_arcsec / 3600) / 2) * (1 + 1e-9)
    _, index = tree.query(unit_vectors(positions["ra"], positions["dec"]), distance_upper_bound=chord)
    matched = index < len(sources)
    candidates = sources.take(pa.array(index[matched])).select(ALLWISE_COLUMNS)
    return nearest_sources(spectra, candidates.append_column("label_row", pa.array(rows[matched])), radius_arcsec)


def _require_allwise(matches: pa.Table, location: str) -> pa.Table:
    """Return the matches; raise `CatalogError` for tiles of another release, such as All-Sky (`_ab41`)."""
    tiles = matches["coadd_id"].drop_null()
    foreign: Bool = pc.invert(pc.match_substring_regex(tiles, TILE_OF_ALLWISE))
    if pc.any(foreign).as_py():
        raise CatalogError(
            f"{location}: coadd_id {tiles.filter(foreign)[0]} is no tile of AllWISE (such as 0098p408_ac51); labels "
            "need positions and tiles of AllWISE, not of the 2012 All-Sky release (_ab41)"
        )
    return matches
