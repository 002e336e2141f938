"""Who is in a training set: a label table, matched to a catalogue and free of duplicates. No pixel is read here.

Everything that can be wrong with labels is refused here, in one message, before any cutting starts; what is merely
unusable (not in the catalogue, faint) is left out and counted by its reason.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

# The readers of `catalog` know no column `class`, and want each source once: their parts serve a label table too.
from ..catalog import (
    SOURCE_SCHEMA,
    Catalog,
    _conform,
    _degrees,
    _format_of,
    _from_astropy,
    _gunzip,
    _head,
    _positions,
    open_catalog,
    read_partition,
    select,
)
from ..errors import CatalogError, ConfigError
from ..sky import Pixels, healpix, separation_deg, unit_vectors
from ..types import CLASSES, Bool, Float64, Int64
from .splits import chord

LABEL_COLUMNS = ("ra", "dec", "class")
SAME_ARCSEC = 1.0
"""Rows closer than this are one source: a sixth of the W1 beam."""

LOOK_ORDER = 8
LOOK_ARCSEC = 60.0
"""How far from a label's position its source may be listed, when both carry its `source_id`."""

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


def read_labels(location: str) -> Labels:
    """Return the labelled sources of a CSV, Parquet, FITS, VOTable, ECSV or IPAC table, told apart by content.

    Needs `ra`, `dec` (decimal degrees, or with a unit) and `class`; takes the columns of `SOURCE_SCHEMA` that it
    has. Column and class names may be in any case. Raises `CatalogError`: no such table, empty, a column missing,
    positions off the sky, unknown classes, a class without a row.
    """
    path = Path(location).expanduser()
    if not path.is_file():
        raise CatalogError(f"labels {location}: there is no such table file")
    columns = _columns(path)
    if missing := [name for name in LABEL_COLUMNS if name not in columns]:
        have = ", ".join(columns) or "none of those it can use"
        raise CatalogError(
            f"labels {path}: no column {', '.join(missing)} (found: {have}); a label table needs ra and dec in "
            "degrees and class"
        )
    if not len(columns["class"]):
        raise CatalogError(f"labels {path}: the table has no rows")
    label = _labels_of(columns.pop("class"), path)
    named = "source_id" in columns
    if not named:
        columns["source_id"] = pa.chunked_array([[f"row-{i:06d}" for i in range(1, len(label) + 1)]], pa.string())
    degrees = {name: _degrees(columns[name], name, path) for name in ("ra", "dec")}
    table = _conform(pa.table(columns | degrees), f"labels {path}").append_column("label", pa.array(label))
    _refuse_bad_rows(table, path)
    return Labels(_sorted(table), named, _says_simulated(path))


def _columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a table file that a label table may have, under our names."""
    kind = _format_of(_head(path))
    if kind == "parquet":
        table = _parquet(path)
        names = _wanted(table.column_names, path)
        return {ours: table[theirs] for ours, theirs in names.items()}
    content = path.read_bytes()
    if kind == "gzip":
        content = _gunzip(content, path)
        kind = _format_of(content[:4096])
    if not content.strip():
        raise CatalogError(f"labels {path}: the file is empty")
    if kind == "csv":
        return _csv_columns(content, path)
    if kind in ("fits", "ecsv", "ipac", "votable"):
        return _astropy_columns(kind, content, path)
    raise CatalogError(f"labels {path}: its content is none of CSV, IPAC, VOTable, FITS, ECSV or Parquet")


def _wanted(names: Sequence[str], path: Path) -> dict[str, str]:
    """Return our name -> the file's name of the columns of ours that it has, whatever the case."""
    wanted: dict[str, str] = {}
    for name in names:
        ours = name.strip().lower()
        if ours in wanted and ours in (*SOURCE_SCHEMA.names, "class"):
            raise CatalogError(f"labels {path}: columns {wanted[ours]} and {name} both mean {ours}; keep one")
        if ours in (*SOURCE_SCHEMA.names, "class"):
            wanted[ours] = name
    return wanted


def _parquet(path: Path) -> pa.Table:
    try:
        names = _wanted(pq.read_schema(path).names, path)
        return pq.read_table(path, columns=list(names.values()), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"labels {path}: cannot be read as Parquet ({error})") from error


def _csv_columns(content: bytes, path: Path) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a CSV: comma, semicolon or tab; leading # lines are comments."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").splitlines()
    n_comments = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    delimiter = max(",;\t", key=lines[n_comments].count)
    names = _wanted(next(csv.reader([lines[n_comments]], delimiter=delimiter)), path)
    text = {"class", *(f.name for f in SOURCE_SCHEMA if pa.types.is_string(f.type))}
    convert = pa_csv.ConvertOptions(
        include_columns=list(names.values()),
        column_types={theirs: pa.string() for ours, theirs in names.items() if ours in text},
        strings_can_be_null=True,
    )
    read, parse = pa_csv.ReadOptions(skip_rows=n_comments), pa_csv.ParseOptions(delimiter=delimiter)
    try:
        table = pa_csv.read_csv(io.BytesIO(content), read, parse, convert)
    except (pa.ArrowException, KeyError) as error:
        raise CatalogError(f"labels {path}: not a regular CSV ({error})") from error
    return {ours: table[theirs] for ours, theirs in names.items()}


def _astropy_columns(kind: str, content: bytes, path: Path) -> dict[str, pa.ChunkedArray]:
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # units and cards that the standards do not know
            reader = {"ecsv": "ascii.ecsv", "ipac": "ascii.ipac"}.get(kind, kind)
            table = Table.read(io.BytesIO(content), format=reader)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CatalogError(f"labels {path}: cannot be read as {kind} ({error})") from error
    names = _wanted(table.colnames, path)
    return {ours: pa.chunked_array([_from_astropy(table[n], ours, path)]) for ours, n in names.items()}


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


def _refuse_bad_rows(table: pa.Table, path: Path) -> None:
    ra, dec, bad = _positions(table)
    problems = []
    if bad.any():
        rows = ", ".join(f"{i + 1} (ra {ra[i]}, dec {dec[i]})" for i in np.flatnonzero(bad)[:EXAMPLES])
        problems.append(
            f"{bad.sum():,} of {len(table):,} rows have no position on the sky, such as row {rows}; "
            "ra must be 0..360 and dec -90..90 degrees"
        )
    if n_null := table["source_id"].null_count:
        problems.append(f"source_id is empty in {n_null:,} rows: fill it, or drop the column")
    if problems:
        raise CatalogError(f"labels {path}: " + "; ".join(problems))


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
            "no input says whether these data are simulated: set simulated = false for real images and labels, "
            "true for a simulated sky"
        )
    if given is False and said:
        raise ConfigError("simulated = false, but the labels, catalogue or images say that they are simulated")
    return bool(given or said)


def images_simulated(images: str) -> bool | None:
    """Return True where the folder of images lies in a simulated sky; None: not known."""
    root = Path(images).expanduser()
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


def match_catalog(labels: Labels, location: str, radius_arcsec: float) -> Labels:
    """Return the catalogue's rows of the labelled sources: by `source_id`, or without it by position.

    By position: nearest first within `radius_arcsec`, one to one. Only partitions near a label are opened. Raises
    `CatalogError` when nothing matches.
    """
    catalog = _near(open_catalog(location), labels.table)
    n, found, owner, distance = len(labels.table), [], [], []
    for rows in _partitions(catalog):
        who, row, apart = (
            _pairs_by_id(labels.table, rows) if labels.named else _pairs(labels.table, rows, radius_arcsec)
        )
        found.append(rows.take(row))
        owner.append(who)
        distance.append(apart)
    candidates = pa.concat_tables(found) if found else SOURCE_SCHEMA.empty_table()
    owners = np.concatenate([np.empty(0, np.int64), *owner])
    if not len(owners):
        how = "source_id" if labels.named else f"position within {radius_arcsec:g} arcsec"
        advice = "; drop that column to match by position" if labels.named else ""
        raise CatalogError(f"catalogue {location}: none of {n:,} labelled sources is in it by {how}{advice}")
    names = candidates["source_id"].to_numpy(zero_copy_only=False).astype(str)
    source = np.unique(names, return_inverse=True)[1]
    pick = one_to_one(owners, source, np.concatenate([np.empty(0), *distance]))
    table = candidates.take(pick).append_column("label", labels.table["label"].take(owners[pick]))
    known = len(np.unique(owners))
    dropped = {"not_in_catalog": n - known, "source_of_a_nearer_label": known - len(pick)}
    simulated = labels.simulated or _says_simulated(Path(catalog.partitions[0].path))
    return Labels(_sorted(table), True, simulated, labels.dropped | dropped)


def _near(catalog: Catalog, table: pa.Table) -> Catalog:
    """Return the catalogue with only the partitions near a label."""
    centre = unit_vectors(table["ra"].to_numpy(), table["dec"].to_numpy())
    east = np.stack([-centre[:, 1], centre[:, 0], np.zeros(len(centre))], axis=1) + 1e-12  # any direction at a pole
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north, step = np.cross(centre, east), np.radians(LOOK_ARCSEC / 3600)
    looks = [centre + step * (i * east + j * north) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = [
        healpix(
            LOOK_ORDER,
            np.degrees(np.arctan2(v[:, 1], v[:, 0])),
            np.degrees(np.arcsin(v[:, 2] / np.linalg.norm(v, axis=1))),
        )
        for v in looks
    ]
    return select(catalog, Pixels(LOOK_ORDER, tuple(np.unique(np.concatenate(around)).tolist())))


def _partitions(catalog: Catalog) -> Iterator[pa.Table]:
    for i in range(len(catalog.partitions)):
        yield read_partition(catalog, i)


def _pairs_by_id(labels: pa.Table, rows: pa.Table) -> tuple[Int64, Int64, Float64]:
    """Return (label, row, 0) for each row whose `source_id` is a label's."""
    place = pc.index_in(rows["source_id"], labels["source_id"].combine_chunks())
    row = np.flatnonzero(np.asarray(pc.is_valid(place)))
    who = np.asarray(pc.fill_null(place, -1)).astype(np.int64)[row]
    return who, row.astype(np.int64), np.zeros(len(row))


def _pairs(labels: pa.Table, rows: pa.Table, radius_arcsec: float) -> tuple[Int64, Int64, Float64]:
    """Return (label, row, separation in arcsec) for each pair within a radius."""
    ours, theirs = (unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (labels, rows))
    reach, tree = chord(radius_arcsec), cKDTree(ours)
    close = np.flatnonzero(np.isfinite(tree.query(theirs, distance_upper_bound=reach)[0]))
    lists = tree.query_ball_point(theirs[close], reach) if len(close) else []
    row = np.repeat(close, [len(found) for found in lists]).astype(np.int64)
    who = np.array([i for found in lists for i in found], np.int64)
    places = (t[c].to_numpy()[k] for t, k in ((labels, who), (rows, row)) for c in ("ra", "dec"))
    return who, row, separation_deg(*places) * 3600


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
