"""Labelled sources of a table file, without duplicates. No pixel is read here.

One message reports every error in a label table before any cutting starts. Sources that cannot be used, such as faint
ones, are dropped and counted by reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...errors import CatalogError, ConfigError
from ...locations import user_path
from ...sky.healpix import unit_vectors
from ...sources.columns import TEXT, Wanted
from ...sources.tables import read_table, standardise
from ...text import counted, one_or_many
from ...types import Bool, Int64
from .classes import require_all_classes
from .splits import chord_length

SAME_SOURCE_ARCSEC = 1.0
"""Rows closer than this are one source: a sixth of the W1 beam."""

MAX_NAMED = 5
"""Sources that an error message names."""


@dataclass(frozen=True)
class Labels:
    """Labelled sources: `table` in `SOURCE_SCHEMA` with `label` (int64, index into `classes`).

    `has_source_id` is True where the file has a column `source_id`; `dropped` counts the dropped rows by reason;
    `simulated` is True where a file says that it is simulated, None where nothing is known.
    """

    table: pa.Table
    has_source_id: bool
    classes: tuple[str, ...]
    simulated: bool | None = None
    dropped: dict[str, int] = field(default_factory=dict)


def keep_rows(labels: Labels, selected: Bool, reason: str) -> Labels:
    """Return the selected rows; the others are counted under `reason`."""
    n_dropped = int(len(selected) - selected.sum())
    dropped = labels.dropped | ({reason: labels.dropped.get(reason, 0) + n_dropped} if n_dropped else {})
    return replace(labels, table=labels.table.filter(pa.array(selected)), dropped=dropped)


def min_snr(labels: Labels, column: str, threshold: float | None) -> Labels:
    """Return the rows whose S/N in `column` is above the threshold or unknown."""
    if threshold is None:
        return labels
    selected = pc.fill_null(pc.greater(labels.table[column], threshold), True)
    return keep_rows(labels, np.asarray(selected), f"low_{column}")


# --- the label table -------------------------------------------------------------------------------


def read_labels(
    location: str, classes: tuple[str, ...], allow_truncated: bool = False, further: tuple[str, ...] = ()
) -> Labels:
    """Return the labelled sources of a table file, in any format of `read_table`, which recognises it by content.

    The table needs `ra`, `dec` (decimal degrees, or with a unit) and `class`, and may have columns of `SOURCE_SCHEMA`
    and `further` numeric columns. Column and class names may be in any case, and `class_name` reads class names. Raises
    `CatalogError`: no such table, empty, a column missing, positions off the sky, unknown classes, a class without a
    row.
    """
    path = _table_path(location, "labels")
    raw = read_table(str(path), Wanted(("class",), further), allow_truncated)
    if "class" not in raw.column_names:
        found = [name for name in raw.column_names if name != "bad_values" and not name.endswith(TEXT)]
        raise CatalogError(
            f"labels {path}: no column class (found: {', '.join(found)}); a label table needs ra and dec "
            "in degrees and class"
        )
    table = standardise(raw, f"labels {path}", unique=False)
    label = _class_index(table["class"], classes, path)
    table = table.drop_columns("class").append_column("label", pa.array(label))
    return Labels(in_canonical_order(table), "source_id" in raw.column_names, classes, marked_simulated(path))


def read_tables(
    tables: Mapping[str, str], classes: tuple[str, ...], allow_truncated: bool = False, further: tuple[str, ...] = ()
) -> Labels:
    """Return the sources of a table for each class; `read_table` recognises the formats.

    A table may lack `ra` and `dec`: its positions are null. Rows without `source_id` are called galaxy-000001 and so
    on, after their class. Raises the errors of `read_labels`.
    """
    names = class_names(pa.chunked_array([list(tables)], pa.string())).to_pylist()
    if sorted(names) != sorted(classes):
        raise CatalogError(f"tables: they have the classes {', '.join(names)}, and classes is {', '.join(classes)}")
    parts, have_source_id, simulated = [], [], []
    for name, location in zip(names, tables.values(), strict=True):
        path = _table_path(location, f"table of class {name}")
        raw = read_table(str(path), Wanted(numbers=further, needs_positions=False), allow_truncated)
        have_source_id.append("source_id" in raw.column_names)
        if not have_source_id[-1]:
            ids = [f"{name}-{number:06d}" for number in range(1, len(raw) + 1)]
            raw = raw.append_column("source_id", pa.array(ids, pa.string()))
        table = standardise(raw, f"table {path}", unique=False)
        parts.append(table.append_column("label", pa.array(np.full(len(table), classes.index(name), np.int64))))
        simulated.append(marked_simulated(path))
    table = in_canonical_order(pa.concat_tables(parts))
    return Labels(table, all(have_source_id), classes, any(simulated) or None)


def _table_path(location: str, what: str) -> Path:
    path = user_path(location)
    if not path.is_file():
        raise CatalogError(f"{what} {location}: there is no such table file")
    return path


def class_names(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the names of classes in the form of columns: "QSO" is quasar, "T dwarf" is t_dwarf; null is ""."""
    names = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
    names = pc.replace_substring_regex(names, "[ -]+", "_")
    return pc.if_else(pc.equal(names, "qso"), "quasar", names)


def _class_index(column: pa.ChunkedArray, classes: tuple[str, ...], path: Path) -> Int64:
    """Return the class of each row as an index into `classes`."""
    index = pc.index_in(class_names(column), pa.array(classes))
    if index.null_count:
        unknown = pc.value_counts(column.cast(pa.string()).filter(pc.is_null(index))).to_pylist()
        counts = ", ".join(f"{entry['values']!r} ({counted(entry['counts'], 'row')})" for entry in unknown[:MAX_NAMED])
        raise CatalogError(
            f"labels {path}: class {counts} is unknown; use {', '.join(classes)}, remove these rows, or set `classes`"
        )
    labels: Int64 = index.to_numpy().astype(np.int64)
    require_all_classes(labels, classes, f"labels {path}")
    return labels


def in_canonical_order(table: pa.Table) -> pa.Table:
    """Return the table in an order that does not depend on the order of the file."""
    keys = ("dec", "ra", "source_id", "label")
    return table.sort_by([(key, "ascending") for key in keys]).combine_chunks()


# --- simulated or real -----------------------------------------------------------------------------


def marked_simulated(path: Path) -> bool | None:
    """Return True where a Parquet file or folder has the mark of simulated data; None: unknown."""
    try:
        schema = ds.dataset(str(path), format="parquet", partitioning=None).schema
    except (OSError, pa.ArrowException):  # tables of other formats have no mark
        return None
    return True if b"simulated" in (schema.metadata or {}) else None


def images_simulated(images: str) -> bool | None:
    """Return True where the folder of images lies in a simulated sky; None: unknown."""
    root = user_path(images)
    for record in (root / "mock.json", root.parent / "mock.json"):
        if record.is_file():
            try:
                document = json.loads(record.read_text())
            except ValueError:
                continue
            if isinstance(document, dict) and document.get("simulated"):
                return True
    return None


def resolve_simulated(configured: bool | None, marks: Sequence[bool | None]) -> bool:
    """Return whether a training set is simulated, by the marks of its files or by the configuration.

    Raises `ConfigError` when neither says so, and when the configuration contradicts a file: real and simulated
    training must never be confused.
    """
    marked = any(marks)
    if configured is None and not marked:
        raise ConfigError(
            "no input says whether these data are simulated: set simulated = false (--no-simulated) for real images "
            "and labels, true (--simulated) for a simulated sky"
        )
    if configured is False and marked:
        raise ConfigError("simulated = false, but the labels, catalogue or images say that they are simulated")
    return bool(configured or marked)


# --- duplicates ------------------------------------------------------------------------------------


def without_duplicates(labels: Labels) -> Labels:
    """Return each source once: rows with one `source_id`, or within 1 arcsec, are one source.

    Repetitions of one label are dropped and counted; different labels of a source raise `CatalogError` with examples.
    """
    table = labels.table
    source = _source_of_row(table, labels.has_source_id)
    first = np.unique(source, return_index=True)[1]
    label = table["label"].to_numpy()
    disputed = np.flatnonzero(label != label[first][source])
    if len(disputed):
        n = len(np.unique(source[disputed]))
        pairs = [(int(first[source[row]]), int(row)) for row in disputed[:MAX_NAMED]]
        raise CatalogError(
            f"labels: {counted(n, 'source')} {one_or_many(n, 'has', 'have')} more than one class: "
            f"{describe_pairs(labels, pairs)}; decide on one label for each, or remove them"
        )
    unique = table.take(np.sort(first))
    dropped = labels.dropped | {"duplicate": len(table) - len(unique)}
    return replace(labels, table=unique, dropped=dropped)


def _source_of_row(table: pa.Table, by_source_id: bool) -> Int64:
    """Return a number (N,) for each row, equal for rows of one source; rows without a position have their own."""
    located = np.flatnonzero(table["ra"].is_valid())
    positions = table.take(pa.array(located))
    vectors = unit_vectors(positions["ra"].to_numpy(), positions["dec"].to_numpy())
    points, point_of_row = np.unique(vectors, axis=0, return_inverse=True)  # N rows at one point would be N^2 pairs
    point_of_row = point_of_row.ravel()
    pairs = cKDTree(points).query_pairs(chord_length(SAME_SOURCE_ARCSEC), output_type="ndarray")
    first_row = np.unique(point_of_row, return_index=True)[1]
    edges = [np.column_stack([located, located[first_row[point_of_row]]]), located[first_row[pairs]]]
    if by_source_id:
        names = table["source_id"].to_numpy(zero_copy_only=False).astype(str)
        _, first_row, name_of_row = np.unique(names, return_index=True, return_inverse=True)
        edges.append(np.column_stack([np.arange(len(name_of_row)), first_row[name_of_row]]))
    ends = np.concatenate(edges)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(table),) * 2)
    component: Int64 = connected_components(graph, directed=False)[1].astype(np.int64)
    return component


def describe_row(labels: Labels, row: int) -> str:
    """Return name, position and class of a labelled source for a message."""
    name, ra, dec, label = (labels.table[column][row].as_py() for column in ("source_id", "ra", "dec", "label"))
    where = "" if ra is None else f"at {ra:.5f} {dec:+.5f} "
    return f"{name} {where}{labels.classes[label]}"


def describe_pairs(labels: Labels, pairs: Sequence[tuple[int, int]]) -> str:
    """Return the description of pairs of labelled sources for a message."""
    return "; ".join(" and ".join(describe_row(labels, row) for row in pair) for pair in pairs)
