"""Who is in a training set: a label table, matched to a catalogue and free of duplicates. No pixel is read here.

Everything that can be wrong with labels is refused here, in one message, before any cutting starts; what is merely
unusable (not in the catalogue, faint) is left out and counted by its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...errors import CatalogError, ConfigError
from ...locations import user_path
from ...schema import SOURCE_SCHEMA
from ...sky.healpix import healpix, separation_deg, unit_vectors
from ...sky.regions import Pixels
from ...sources.layouts import Catalog, open_catalog
from ...sources.partitions import read_partition
from ...sources.tables import read_table, standardise
from ...types import CLASSES, Bool, Float64, Int64
from .config import MAX_MATCH_ARCSEC
from .splits import chord

SAME_ARCSEC = 1.0
"""Rows closer than this are one source: a sixth of the W1 beam."""

LOOK_ORDER = 8

EXAMPLES = 5
"""Sources that a refusal names."""


@dataclass(frozen=True)
class Labels:
    """Labelled sources: `table` in `SOURCE_SCHEMA` with `label` (int64, index into `CLASSES`).

    `named` says whether the file has a `source_id` of its own; `dropped` counts what was left out, by reason;
    `simulated` is True where a file says that it is simulated, None where nothing is known.
    """

    table: pa.Table
    named: bool
    simulated: bool | None = None
    dropped: dict[str, int] = field(default_factory=dict)


# --- the label table -------------------------------------------------------------------------------


def read_labels(location: str, allow_truncated: bool = False) -> Labels:
    """Return the labelled sources of a table file, in any format of `read_table`, told from its content.

    Needs `ra`, `dec` (decimal degrees, or with a unit) and `class`; takes the columns of `SOURCE_SCHEMA` that it
    has. Column and class names may be in any case. Raises `CatalogError`: no such table, empty, a column missing,
    positions off the sky, unknown classes, a class without a row.
    """
    path = user_path(location)
    if not path.is_file():
        raise CatalogError(f"labels {location}: there is no such table file")
    found = read_table(str(path), extra=("class",), allow_truncated=allow_truncated)
    if "class" not in found.column_names:
        raise CatalogError(
            f"labels {path}: no column class (found: {', '.join(found.column_names)}); a label table needs ra and dec "
            "in degrees and class"
        )
    table = standardise(found, f"labels {path}", unique=False)
    label = _labels_of(table["class"], path)
    table = table.drop_columns("class").append_column("label", pa.array(label))
    return Labels(_sorted(table), "source_id" in found.column_names, _says_simulated(path))


def _labels_of(column: pa.ChunkedArray, path: Path) -> Int64:
    """Return the class of each row as an index into `CLASSES`."""
    text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
    label = pc.index_in(text, pa.array(CLASSES))
    if label.null_count:
        strange = pc.value_counts(column.cast(pa.string()).filter(pc.is_null(label))).to_pylist()
        named = ", ".join(f"{s['values']!r} ({s['counts']:,} rows)" for s in strange[:EXAMPLES])
        raise CatalogError(f"labels {path}: class {named} is unknown; use {', '.join(CLASSES)}")
    values: Int64 = label.to_numpy().astype(np.int64)
    refuse_empty_classes(values, f"labels {path}")
    return values


def refuse_empty_classes(labels: Int64, where: str) -> None:
    """Raise `CatalogError` with the counts when a class has no row."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    if not counts.all():
        empty = ", ".join(name for name, n in zip(CLASSES, counts, strict=True) if not n)
        raise CatalogError(f"{where}: no {empty} ({count_words(labels)}); all of {', '.join(CLASSES)} are needed")


def class_counts(labels: Int64) -> dict[str, int]:
    """Return the number of rows of each class."""
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def count_words(labels: Int64) -> str:
    """Return the number of rows of each class in words, such as "10 galaxy, 0 quasar, 3 star"."""
    return ", ".join(f"{n:,} {name}" for name, n in class_counts(labels).items())


def _sorted(table: pa.Table) -> pa.Table:
    """Return the table in an order of its own, so that nothing depends on the order of the file."""
    keys = ("dec", "ra", "source_id", "label")
    return table.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def _says_simulated(path: Path) -> bool | None:
    """Return True where a Parquet file or folder, or the note beside images, says simulated; None: not known."""
    try:
        schema = ds.dataset(str(path), format="parquet", partitioning=None).schema
    except (OSError, pa.ArrowException):  # another kind of table: it cannot say
        return None
    return True if b"simulated" in (schema.metadata or {}) else None


def settle_simulated(given: bool | None, found: Sequence[bool | None]) -> bool:
    """Return whether a training set is simulated: what the files say, or what the configuration says.

    Raises `ConfigError` when nobody says it, and when the configuration denies what a file says: real and
    simulated training must never be mixed up.
    """
    said = any(found)
    if given is None and not said:
        raise ConfigError(
            "no input says whether these data are simulated: set simulated = false (--real) for real images and "
            "labels, true (--simulated) for a simulated sky"
        )
    if given is False and said:
        raise ConfigError("simulated = false, but the labels, catalogue or images say that they are simulated")
    return bool(given or said)


def images_simulated(images: str) -> bool | None:
    """Return True where the folder of images lies in a simulated sky; None: not known."""
    root = user_path(images)
    for note in (root / "mock.json", root.parent / "mock.json"):
        if note.is_file():
            try:
                document = json.loads(note.read_text())
            except ValueError:
                continue
            if isinstance(document, dict) and document.get("simulated"):
                return True
    return None


# --- duplicates ------------------------------------------------------------------------------------


def without_duplicates(labels: Labels) -> Labels:
    """Return each source once: rows with one `source_id`, or within 1 arcsec, are one source.

    Repeats of one label are dropped and counted; different labels raise `CatalogError` with examples.
    """
    table = labels.table
    group = _same_source(table, labels.named)
    first = np.unique(group, return_index=True)[1]
    label = table["label"].to_numpy()
    disputed = np.flatnonzero(label != label[first][group])
    if len(disputed):
        pairs = [(int(first[group[i]]), int(i)) for i in disputed[:EXAMPLES]]
        words = "; ".join(f"{_describe(table, a)} and {_describe(table, b)}" for a, b in pairs)
        raise CatalogError(
            f"labels: {len(np.unique(group[disputed])):,} sources have more than one class: {words}; "
            "decide on one label for each, or remove them"
        )
    kept = table.take(np.sort(first))
    return Labels(kept, labels.named, labels.simulated, labels.dropped | {"duplicate": len(table) - len(kept)})


def _same_source(table: pa.Table, named: bool) -> Int64:
    """Return a number (N,) for each row, equal for rows of one source."""
    vectors = unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
    distinct, spot = np.unique(vectors, axis=0, return_inverse=True)  # rows at one point would be N^2 pairs
    spot = spot.ravel()
    near = cKDTree(distinct).query_pairs(chord(SAME_ARCSEC), output_type="ndarray")
    representative = np.unique(spot, return_index=True)[1]
    edges = [np.column_stack([np.arange(len(spot)), representative[spot]]), representative[near]]
    if named:
        _, start, place = np.unique(
            table["source_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True
        )
        edges.append(np.column_stack([np.arange(len(place)), start[place]]))
    ends = np.concatenate(edges)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(table),) * 2)
    group: Int64 = connected_components(graph, directed=False)[1].astype(np.int64)
    return group


def _describe(table: pa.Table, row: int) -> str:
    name, ra, dec = (table[c][row].as_py() for c in ("source_id", "ra", "dec"))
    return f"{name} at {ra:.5f} {dec:+.5f} {CLASSES[table['label'][row].as_py()]}"


# --- the catalogue ---------------------------------------------------------------------------------


def match_catalog(labels: Labels, location: str, radius_arcsec: float, allow_truncated: bool = False) -> Labels:
    """Return the catalogue's rows of the labelled sources: by `source_id`, or without it by position.

    By position: nearest first within `radius_arcsec`, one to one; of equal labels on one source the nearer stays and
    the others are counted. Only partitions near a label are opened. Raises `CatalogError` when nothing matches,
    when labels of different classes meet on one source, and when a source lies farther than `radius_arcsec` from the
    label that names it.
    """
    catalog = open_catalog(location, _near(labels.table))
    catalog = replace(catalog, allow_truncated=allow_truncated)
    n, found, owner, distance = len(labels.table), [], [], []
    for rows in _partitions(catalog):
        who, row, apart = (
            _pairs_by_id(labels.table, rows) if labels.named else _pairs(labels.table, rows, radius_arcsec)
        )
        found.append(rows.take(row))
        owner.append(who)
        distance.append(apart)
    candidates = pa.concat_tables(found) if found else SOURCE_SCHEMA.empty_table()
    owners, arcsec = np.concatenate([np.empty(0, np.int64), *owner]), np.concatenate([np.empty(0), *distance])
    if not len(owners):
        how = "source_id" if labels.named else f"position within {radius_arcsec:g} arcsec"
        advice = "; drop that column to match by position" if labels.named else ""
        raise CatalogError(f"catalogue {location}: none of {n:,} labelled sources is in it by {how}{advice}")
    names = candidates["source_id"].to_numpy(zero_copy_only=False).astype(str)
    source = np.unique(names, return_inverse=True)[1]
    pick = one_to_one(owners, source, arcsec)
    _refuse_far(labels.table, owners[pick], arcsec[pick], radius_arcsec, location)
    _refuse_meetings(labels.table, owners, source, arcsec, pick, location)
    table = candidates.take(pick).append_column("label", labels.table["label"].take(owners[pick]))
    known = len(np.unique(owners))
    dropped = {"not_in_catalog": n - known, "source_of_a_nearer_label": known - len(pick)}
    simulated = labels.simulated or _says_simulated(Path(catalog.partitions[0].path))
    return Labels(_sorted(table), True, simulated, labels.dropped | dropped)


def _refuse_far(table: pa.Table, owners: Int64, arcsec: Float64, radius_arcsec: float, location: str) -> None:
    """Raise `CatalogError` for labels that name a source of another place: one of the two is wrong."""
    far = np.flatnonzero(arcsec > radius_arcsec)
    if not len(far):
        return
    worst = far[np.argsort(-arcsec[far], kind="stable")][:EXAMPLES]
    words = "; ".join(f"{_describe(table, int(owners[i]))} is {arcsec[i]:,.1f} arcsec from its source" for i in worst)
    raise CatalogError(
        f"catalogue {location}: {len(far):,} of {len(owners):,} labels lie farther than {radius_arcsec:g} arcsec from "
        f"the source that their source_id names: {words}; mend the positions or the names, drop the column source_id "
        "to match by position, or set a larger match_radius_arcsec"
    )


def _refuse_meetings(
    table: pa.Table, owners: Int64, source: Int64, arcsec: Float64, pick: Int64, location: str
) -> None:
    """Raise `CatalogError` where labels of different classes claim one source: as their nearest, or as the one given.

    A label that has a nearer source of its own does not claim its neighbour's.
    """
    order = np.lexsort((source, arcsec, owners))
    nearest = order[np.unique(owners[order], return_index=True)[1]]
    claims = np.union1d(nearest, pick)
    claims = claims[np.lexsort((owners[claims], arcsec[claims], source[claims]))]
    label = table["label"].to_numpy()[owners[claims]]
    place, first, group = np.unique(source[claims], return_index=True, return_inverse=True)
    against = np.flatnonzero(label != label[first][group])
    if not len(against):
        return
    pairs = [(int(owners[claims[first[group[i]]]]), int(owners[claims[i]])) for i in against[:EXAMPLES]]
    words = "; ".join(f"{_describe(table, a)} and {_describe(table, b)}" for a, b in pairs)
    raise CatalogError(
        f"catalogue {location}: on {len(np.unique(group[against])):,} of {len(place):,} sources labels of different "
        f"classes meet: {words}; decide on one label for each, remove them, or set a smaller match_radius_arcsec"
    )


def _near(table: pa.Table) -> Pixels:
    """Return the pixels of the sky near a label."""
    centre = unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
    east = np.stack([-centre[:, 1], centre[:, 0], np.zeros(len(centre))], axis=1) + 1e-12  # any direction at a pole
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north, step = np.cross(centre, east), np.radians(MAX_MATCH_ARCSEC / 3600)
    looks = [centre + step * (i * east + j * north) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = [
        healpix(
            LOOK_ORDER,
            np.degrees(np.arctan2(v[:, 1], v[:, 0])),
            np.degrees(np.arcsin(v[:, 2] / np.linalg.norm(v, axis=1))),
        )
        for v in looks
    ]
    return Pixels(LOOK_ORDER, tuple(np.unique(np.concatenate(around)).tolist()))


def _partitions(catalog: Catalog) -> Iterator[pa.Table]:
    for i in range(len(catalog.partitions)):
        yield read_partition(catalog, i)


def _pairs_by_id(labels: pa.Table, rows: pa.Table) -> tuple[Int64, Int64, Float64]:
    """Return (label, row, separation in arcsec) for each row whose `source_id` is a label's."""
    place = pc.index_in(rows["source_id"], labels["source_id"].combine_chunks())
    row = np.flatnonzero(np.asarray(pc.is_valid(place)))
    who = np.asarray(pc.fill_null(place, -1)).astype(np.int64)[row]
    return who, row.astype(np.int64), _separation_arcsec(labels, who, rows, row)


def _pairs(labels: pa.Table, rows: pa.Table, radius_arcsec: float) -> tuple[Int64, Int64, Float64]:
    """Return (label, row, separation in arcsec) for each pair within a radius."""
    ours, theirs = (unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (labels, rows))
    reach, tree = chord(radius_arcsec), cKDTree(ours)
    close = np.flatnonzero(np.isfinite(tree.query(theirs, distance_upper_bound=reach)[0]))
    lists = tree.query_ball_point(theirs[close], reach) if len(close) else []
    row = np.repeat(close, [len(found) for found in lists]).astype(np.int64)
    who = np.array([i for found in lists for i in found], np.int64)
    return who, row, _separation_arcsec(labels, who, rows, row)


def _separation_arcsec(labels: pa.Table, who: Int64, rows: pa.Table, row: Int64) -> Float64:
    places = (t[c].to_numpy()[k] for t, k in ((labels, who), (rows, row)) for c in ("ra", "dec"))
    return separation_deg(*places) * 3600


def one_to_one(owners: Int64, sources: Int64, distance: Float64) -> Int64:
    """Return the pairs that stay when the closest is taken first and nobody is taken twice."""
    used_owners: set[Any] = set()
    used_sources: set[Any] = set()
    kept = []
    for i in np.lexsort((sources, owners, distance)).tolist():
        owner, source = owners[i], sources[i]
        if owner not in used_owners and source not in used_sources:
            used_owners.add(owner)
            used_sources.add(source)
            kept.append(i)
    return np.array(kept, np.int64)


# --- choosing --------------------------------------------------------------------------------------


def keep(labels: Labels, good: Bool, reason: str) -> Labels:
    """Return the rows that are good; the others are counted under `reason`."""
    lost = int(len(good) - good.sum())
    dropped = labels.dropped | ({reason: labels.dropped.get(reason, 0) + lost} if lost else {})
    return Labels(labels.table.filter(pa.array(good)), labels.named, labels.simulated, dropped)


def brighter(labels: Labels, column: str, least: float | None) -> Labels:
    """Return the rows whose S/N in `column` is above `least`, or not known."""
    if least is None:
        return labels
    return keep(labels, np.asarray(pc.fill_null(pc.greater(labels.table[column], least), True)), f"low_{column}")
