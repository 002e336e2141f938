"""The catalogue's rows of labelled sources: matched one to one, by `source_id` or by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial import cKDTree

from ...errors import CatalogError
from ...schema import source_schema
from ...sky.healpix import healpix, separation_deg, unit_vectors
from ...sky.regions import Pixels
from ...sources.opening import open_sources
from ...sources.source_table import SourceTable
from ...text import counted, one_or_many
from ...types import Float64, Int64
from .config import MAX_MATCH_ARCSEC
from .examples import MAX_NAMED, Labels, describe_pairs, describe_row, in_canonical_order, marked_simulated
from .splits import chord_length

SEARCH_ORDER = 8
"""HEALPix order of the pixels near labels."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a label row and a catalogue source: `label_row`, `source` and separation `arcsec`, each (N,)."""

    label_row: Int64
    source: Int64
    arcsec: Float64

    def take(self, index: Int64) -> Pairs:
        """Return the pairs at `index`."""
        return Pairs(self.label_row[index], self.source[index], self.arcsec[index])


def match_catalog(
    labels: Labels,
    location: str,
    radius_arcsec: float,
    allow_truncated: bool = False,
    further: tuple[str, ...] = (),
) -> Labels:
    """Return the labels that match a source, with the catalogue's rows and its `further` columns.

    Labels match by `source_id`, or without it by position: one to one within `radius_arcsec`, the nearest pair first.
    If several labels of one class match a source, the nearest stays. `dropped` counts the others and the labels without
    a source. Only partitions near a label are opened. Raises `CatalogError` when nothing matches, when labels of
    different classes match one source, and when a source is farther than `radius_arcsec` from the label that has its
    `source_id`.
    """
    # A label may have the source_id of a source far from its position, so rows outside the region are read too.
    catalog = open_sources(location, _search_region(labels.table), allow_truncated, further).whole_partitions()
    candidates, pairs = _candidate_pairs(labels, catalog, radius_arcsec)
    if not len(pairs.label_row):
        how = "source_id" if labels.has_source_id else f"position within {radius_arcsec:g} arcsec"
        remedy = "; drop that column to match by position" if labels.has_source_id else ""
        n_labels = len(labels.table)
        raise CatalogError(f"catalogue {location}: none of {n_labels:,} labelled sources is in it by {how}{remedy}")
    matched = one_to_one(pairs.label_row, pairs.source, pairs.arcsec)
    _refuse_distant(labels, pairs.take(matched), radius_arcsec, location)
    _refuse_conflicts(labels, pairs, matched, location)
    label_rows = pairs.label_row[matched]
    table = candidates.take(matched).append_column("label", labels.table["label"].take(label_rows))
    n_known = len(np.unique(pairs.label_row))
    dropped = {"not_in_catalog": len(labels.table) - n_known, "source_of_a_nearer_label": n_known - len(matched)}
    simulated = labels.simulated or marked_simulated(Path(catalog.partitions[0].path))
    dropped = labels.dropped | dropped
    return Labels(in_canonical_order(table), True, labels.classes, simulated, dropped)


def _candidate_pairs(labels: Labels, catalog: SourceTable, radius_arcsec: float) -> tuple[pa.Table, Pairs]:
    """Return the candidate rows of a catalogue and their pairs: pair i belongs to row i; sources are numbered."""
    rows, label_rows, arcsec = [source_schema(catalog.further).empty_table()], [np.empty(0, np.int64)], [np.empty(0)]
    for partition in _partitions(catalog):
        if labels.has_source_id:
            pairs = _pairs_by_id(labels.table, partition)
        else:
            pairs = _pairs_by_position(labels.table, partition, radius_arcsec)
        rows.append(partition.take(pairs.source))
        label_rows.append(pairs.label_row)
        arcsec.append(pairs.arcsec)
    candidates = pa.concat_tables(rows)
    source_id = candidates["source_id"].to_numpy(zero_copy_only=False).astype(str)
    source = np.unique(source_id, return_inverse=True)[1]
    return candidates, Pairs(np.concatenate(label_rows), source, np.concatenate(arcsec))


def _refuse_distant(labels: Labels, matches: Pairs, radius_arcsec: float, location: str) -> None:
    """Raise `CatalogError` for labels with the `source_id` of a source at another position: one of the two is wrong."""
    distant = np.flatnonzero(matches.arcsec > radius_arcsec)
    if not len(distant):
        return
    worst = distant[np.argsort(-matches.arcsec[distant], kind="stable")][:MAX_NAMED]
    examples = "; ".join(
        f"{describe_row(labels, int(matches.label_row[i]))} is {matches.arcsec[i]:,.1f} arcsec from its source"
        for i in worst
    )
    lie = one_or_many(len(distant), "lies", "lie")
    raise CatalogError(
        f"catalogue {location}: {len(distant):,} of {counted(len(matches.arcsec), 'label')} {lie} farther than "
        f"{radius_arcsec:g} arcsec from the source that their source_id names: {examples}; correct the positions or "
        "the names, drop the column source_id to match by position, or set a larger match_radius_arcsec"
    )


def _refuse_conflicts(labels: Labels, pairs: Pairs, matched: Int64, location: str) -> None:
    """Raise `CatalogError` where labels of different classes claim one source, as nearest source or as match.

    A label with a nearer source of its own does not claim the source of its neighbour.
    """
    order = np.lexsort((pairs.source, pairs.arcsec, pairs.label_row))
    nearest = order[np.unique(pairs.label_row[order], return_index=True)[1]]
    claims = pairs.take(np.union1d(nearest, matched))
    claims = claims.take(np.lexsort((claims.label_row, claims.arcsec, claims.source)))
    label = labels.table["label"].to_numpy()[claims.label_row]
    sources, first, group = np.unique(claims.source, return_index=True, return_inverse=True)
    conflicts = np.flatnonzero(label != label[first][group])
    if not len(conflicts):
        return
    examples = [(int(claims.label_row[first[group[i]]]), int(claims.label_row[i])) for i in conflicts[:MAX_NAMED]]
    raise CatalogError(
        f"catalogue {location}: on {len(np.unique(group[conflicts])):,} of {counted(len(sources), 'source')} labels of "
        f"different classes meet: {describe_pairs(labels, examples)}; decide on one label for each, remove them, or "
        "set a smaller match_radius_arcsec"
    )


def _search_region(table: pa.Table) -> Pixels:
    """Return the HEALPix pixels within `MAX_MATCH_ARCSEC` of a label."""
    centre = unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
    east = np.stack([-centre[:, 1], centre[:, 0], np.zeros(len(centre))], axis=1) + 1e-12  # any direction at a pole
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north, step = np.cross(centre, east), np.radians(MAX_MATCH_ARCSEC / 3600)
    points = np.concatenate([centre + step * (i * east + j * north) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    lon = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    lat = np.degrees(np.arcsin(points[:, 2] / np.linalg.norm(points, axis=1)))
    return Pixels(SEARCH_ORDER, tuple(np.unique(healpix(SEARCH_ORDER, lon, lat)).tolist()))


def _partitions(catalog: SourceTable) -> Iterator[pa.Table]:
    for index in range(len(catalog.partitions)):
        yield catalog.read(index)


def _pairs_by_id(labels: pa.Table, sources: pa.Table) -> Pairs:
    """Return a pair for each source whose `source_id` is that of a label."""
    index = pc.index_in(sources["source_id"], labels["source_id"].combine_chunks())
    source = np.flatnonzero(np.asarray(pc.is_valid(index))).astype(np.int64)
    label_row = np.asarray(pc.fill_null(index, -1)).astype(np.int64)[source]
    return Pairs(label_row, source, _separation_arcsec(labels, label_row, sources, source))


def _pairs_by_position(labels: pa.Table, sources: pa.Table, radius_arcsec: float) -> Pairs:
    """Return all pairs of a label and a source within a radius."""
    label_vectors, source_vectors = (unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (labels, sources))
    reach, tree = chord_length(radius_arcsec), cKDTree(label_vectors)
    close = np.flatnonzero(np.isfinite(tree.query(source_vectors, distance_upper_bound=reach)[0]))
    neighbours = tree.query_ball_point(source_vectors[close], reach) if len(close) else []
    source = np.repeat(close, [len(rows) for rows in neighbours]).astype(np.int64)
    label_row = np.array([row for rows in neighbours for row in rows], np.int64)
    return Pairs(label_row, source, _separation_arcsec(labels, label_row, sources, source))


def _separation_arcsec(labels: pa.Table, label_row: Int64, sources: pa.Table, source: Int64) -> Float64:
    rows = ((labels, label_row), (sources, source))
    positions = (table[column].to_numpy()[index] for table, index in rows for column in ("ra", "dec"))
    return separation_deg(*positions) * 3600


def one_to_one(label_rows: Int64, sources: Int64, distance: Float64) -> Int64:
    """Return the pairs of a one-to-one match, in the order of distance: each label and each source occurs once."""
    used_labels: set[int] = set()
    used_sources: set[int] = set()
    matched = []
    for pair in np.lexsort((sources, label_rows, distance)).tolist():
        label_row, source = int(label_rows[pair]), int(sources[pair])
        if label_row not in used_labels and source not in used_sources:
            used_labels.add(label_row)
            used_sources.add(source)
            matched.append(pair)
    return np.array(matched, np.int64)
