"""Ask a published class catalogue: cone, region, where, select, sql, export.

A `ClassCatalog` is lazy: each verb gives a narrower one and reads nothing. Files are chosen from the
manifest by the region's HEALPix cover before any is opened, row groups by their range of `_healpix_29`,
rows by exact distance: a cone of 1 arcmin reads under half a megabyte, however large the catalogue is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .catalog.manifest import CATALOG_ORDER, Manifest, PixelRecord, find_catalog, read_manifest
from .errors import ConfigError, StoreError
from .files import replacing
from .publish import file_metadata
from .schema import CLASS_SCHEMA, UNCLASSIFIED
from .sky import MAX_ORDER, Cone, Region
from .types import Bool, Int64, Json

_FINE_ORDERS = ((4, 11), (64, 8))
"""Regions of at most so many order-5 pixels choose row groups by a cover of this order (1.7, 14 arcmin).

A row group spans about half a degree; the fine cover of a larger region would cost more than it saves.
"""

_FILES_AT_ONCE = 32
"""Files read before rows are filtered: about two million rows, so memory follows the answer, not the sky."""


@dataclass(frozen=True)
class ClassCatalog:
    """A published class catalogue, or the part of it that the verbs so far have left.

    `regions` and `predicates` all hold for a row of the selection; `columns` None means all.
    """

    root: Path
    manifest: Manifest
    regions: tuple[Region, ...] = ()
    predicates: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None

    # --- verbs that narrow ---

    def cone(self, ra: float, dec: float, radius: str | float) -> ClassCatalog:
        """Return the sources within `radius` (degrees, or "30arcmin") of a position in degrees."""
        return self.region(Cone(ra, dec, radius))

    def region(self, region: Region) -> ClassCatalog:
        """Return the sources inside a `Cone`, `Box`, `Polygon` or `Pixels`; a second region intersects."""
        return replace(self, regions=(*self.regions, region))

    def where(self, expression: str) -> ClassCatalog:
        """Return the sources for which a SQL condition is true, such as "p_quasar > 0.9 AND flags = 0".

        Raises `ConfigError` where it is not a condition on the columns of the catalogue.
        """
        _check_condition(expression)
        return replace(self, predicates=(*self.predicates, expression))

    def select(self, columns: Sequence[str]) -> ClassCatalog:
        """Return the selection with these columns only, in this order; `ConfigError` on unknown ones."""
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        unknown = [name for name in names if name not in CLASS_SCHEMA.names]
        if unknown or not names or len(set(names)) < len(names):
            what = f"unknown columns {unknown}" if unknown else f"columns {list(names)} are none or repeated"
            raise ConfigError(f"{what}: choose from {_column_list()}")
        return replace(self, columns=names)

    # --- verbs that answer ---

    def to_arrow(self) -> pa.Table:
        """Return the selection as an Arrow table, sorted by (`_healpix_29`, `source_id`)."""
        return pa.concat_tables([self._schema.empty_table(), *self._pieces()])

    def to_pandas(self) -> pd.DataFrame:
        """Return the selection as a DataFrame with Arrow-backed columns: missing values stay missing."""
        return _pandas(self.to_arrow())

    def count(self) -> int:
        """Return the number of sources in the selection; from the manifest where nothing was narrowed."""
        if not self.regions and not self.predicates:
            return self.manifest.rows
        answer = self.select(["_healpix_29"]).sql_arrow("SELECT count(*) FROM classes")
        return int(answer.column(0)[0].as_py())

    def class_counts(self) -> dict[str, int]:
        """Return sources by class: galaxy, quasar, star, unclassified; from the manifest where possible."""
        if not self.regions and not self.predicates:
            return dict(self.manifest.classes)
        query = "SELECT class, count(*) FROM classes GROUP BY class"
        names, rows = self.select(["class"]).sql_arrow(query).columns
        found = dict(zip(names.fill_null(UNCLASSIFIED).to_pylist(), rows.to_pylist(), strict=True))
        return {name: found.get(name, 0) for name in self.manifest.classes}

    def sql(self, query: str) -> pd.DataFrame:
        """Return the answer to a SQL query on the view `classes`, which holds the selection (DuckDB's SQL).

        Raises `ConfigError` where the query cannot be answered; it lists the columns.
        """
        return _pandas(self.sql_arrow(query))

    def sql_arrow(self, query: str) -> pa.Table:
        """Return the answer of `sql` as an Arrow table."""
        with _answering(query), duckdb.connect() as connection:
            statements = duckdb.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigError(f"sql takes one SELECT, not {query!r}: catalogues are read, never changed")
            self._make_view(connection)
            return connection.sql(query).to_arrow_table()

    def export(self, path: str | Path) -> Path:
        """Write the selection and return the path; the ending says how: .parquet, .csv, .fits, .vot, .xml.

        Whole or not at all; an existing file is replaced. Parquet and CSV are streamed, FITS and VOTable
        are made in memory. Raises `ConfigError` on another ending, `StoreError` where writing fails.
        """
        target = Path(path)
        write = _writer(target)
        with replacing(target) as temp:
            write(temp, self._schema, self._pieces(), self.manifest.provenance)
        return target

    # --- how ---

    @property
    def _schema(self) -> pa.Schema:
        names = self.columns or CLASS_SCHEMA.names
        return pa.schema([CLASS_SCHEMA.field(name) for name in names])

    def _needed(self) -> list[str]:
        """Columns to read: those asked for, those the conditions name, and positions for regions."""
        words = {word.lower() for text in self.predicates for word in re.findall(r"\w+", text)}
        words |= {"ra", "dec"} if self.regions else set()
        words |= set(self._schema.names)
        return [name for name in CLASS_SCHEMA.names if name in words]

    def _plan(self) -> tuple[tuple[PixelRecord, ...], list[Int64]]:
        """Return the files that the regions touch and the spans for their row groups; opens nothing."""
        files, spans = self.manifest.files, []
        for region in self.regions:
            cover = region.cover(CATALOG_ORDER)
            order = next((order for most, order in _FINE_ORDERS if len(cover) <= most), CATALOG_ORDER)
            if order > CATALOG_ORDER:
                fine = region.cover(order)
                spans.append(_spans(fine, order))
                cover = fine >> 2 * (order - CATALOG_ORDER)  # a smaller superset than the coarse cover
            pixels = set(cover.tolist())
            files = tuple(file for file in files if file.pixel in pixels)
        return files, spans

    def _pieces(self) -> Iterator[pa.Table]:
        """Yield the selection piece by piece, in order."""
        files, spans = self._plan()
        schema, needed = self._schema, self._needed()
        for start in range(0, len(files), _FILES_AT_ONCE):
            some = files[start : start + _FILES_AT_ONCE]
            rows = pa.concat_tables([self._read(file, spans, needed) for file in some])
            answer = self._filtered(rows).select(schema.names).replace_schema_metadata()
            yield answer.cast(schema) if self.predicates else answer

    def _read(self, file: PixelRecord, spans: Sequence[Int64], columns: list[str]) -> pa.Table:
        """Return the rows of a file inside every region, no condition applied yet."""
        footer = _footer(str(self.root / file.path), file.sha256)
        with _open(self.root / file.path, footer.metadata) as parquet:
            table = parquet.read_row_groups(footer.touched(spans), columns=columns)
        for region in self.regions if len(table) else ():
            table = table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))
        return table

    def _filtered(self, rows: pa.Table) -> pa.Table:
        if not self.predicates or not len(rows):
            return rows
        with _answering(self._condition), _connect() as connection:
            connection.register("classes", rows)
            query = f"SELECT * FROM classes WHERE {self._condition}"
            return connection.sql(query).to_arrow_table()

    @property
    def _condition(self) -> str:
        return " AND ".join(f"({text}\n)" for text in self.predicates)  # a comment must not eat the bracket

    def _make_view(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Define `classes`: straight on the files where no region needs exact distances."""
        files = [str(self.root / file.path) for file in self.manifest.files]
        connection.execute("SET python_enable_replacements = false")
        if self.regions or not files:
            connection.register("classes", self.to_arrow())
            return
        names = ", ".join(f'"{name}"' for name in self._schema.names)
        condition = f" WHERE {self._condition}" if self.predicates else ""
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        source = f"read_parquet([{paths}], hive_partitioning = false)"
        connection.execute(f"CREATE TEMP VIEW classes AS SELECT {names} FROM {source}{condition}")
        connection.execute("SET allowed_directories = " + f"['{str(self.root).replace(chr(39), chr(39) * 2)}/']")
        connection.execute("SET enable_external_access = false")


def open_catalog(path: str | Path) -> ClassCatalog:
    """Return a published class catalogue, given its folder or its run folder; reads the manifest only.

    Raises `StoreError` where there is none.
    """
    root = find_catalog(path).resolve()
    return ClassCatalog(root, read_manifest(root))


# --- files and row groups --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Footer:
    """Footer of a file with the range of `_healpix_29` of each row group."""

    metadata: pq.FileMetaData
    low: Int64
    high: Int64

    def touched(self, spans: Sequence[Int64]) -> list[int]:
        """Return the row groups that overlap one interval, at least, of every region's spans (n, 2)."""
        hit: Bool = np.ones(len(self.low), bool)
        for span in spans:
            # the first interval that ends at or after a group's low must begin before the group's high
            first = np.searchsorted(span[:, 1], self.low)
            begins = np.append(span[:, 0], np.iinfo(np.int64).max)[first]
            hit &= begins <= self.high
        return np.flatnonzero(hit).tolist()


@lru_cache(maxsize=256)
def _footer(path: str, sha256: str) -> _Footer:
    """Return a file's footer, kept for the next question; the digest tells a catalogue published anew."""
    with _open(Path(path)) as file:
        metadata = file.metadata
        column = metadata.schema.to_arrow_schema().get_field_index("_healpix_29")
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    low, high = ([getattr(group, end) for group in groups] for end in ("min", "max"))
    return _Footer(metadata, np.asarray(low, np.int64), np.asarray(high, np.int64))


@contextmanager
def _open(path: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, metadata=metadata) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} cannot be read: {error}: run 'skyclass verify', then publish the run again"
        ) from error


def _spans(pixels: Int64, order: int) -> Int64:
    """Return sorted disjoint intervals (n, 2) of `_healpix_29`, ends included, for sorted NESTED pixels."""
    breaks = np.flatnonzero(np.diff(pixels) > 1) + 1
    runs = [run for run in np.split(pixels, breaks) if len(run)]
    shift = 2 * (MAX_ORDER - order)
    ends = [(int(run[0]) << shift, (int(run[-1]) + 1 << shift) - 1) for run in runs]
    return np.asarray(ends, np.int64).reshape(-1, 2)


# --- SQL -------------------------------------------------------------------------------------------


def _connect() -> duckdb.DuckDBPyConnection:
    """Return a connection that sees what is registered, and no file or variable besides."""
    connection = duckdb.connect()
    connection.execute("SET python_enable_replacements = false; SET enable_external_access = false")
    return connection


@contextmanager
def _answering(question: str) -> Iterator[None]:
    """Turn an error of DuckDB into a `ConfigError` that says which columns there are."""
    try:
        yield
    except duckdb.Error as error:
        reason = str(error).strip().split("\n")[0]
        if "No files found" in reason:
            raise StoreError("a file of the catalogue is gone: `skyclass verify` names it") from error
        raise ConfigError(f"cannot answer {question!r}: {reason}. Columns: {_column_list()}") from error


def _check_condition(expression: str) -> None:
    """Raise `ConfigError` unless `expression` is one true-or-false condition on the columns."""
    text = f"({expression}\n)"
    query = f"SELECT {text} AS condition FROM classes WHERE {text}"
    with _answering(expression), _connect() as connection:
        duckdb.extract_statements(f"SELECT 1 WHERE {expression}\n")  # by itself: no bracket may close ours
        if len(duckdb.extract_statements(query)) != 1:
            raise ConfigError(f"where takes one condition, not {expression!r}")
        connection.register("classes", CLASS_SCHEMA.empty_table())
        answer: pa.Table = connection.sql(query).to_arrow_table()
    kind = answer.schema.field(0).type
    if not pa.types.is_boolean(kind):
        raise ConfigError(f"where takes a condition, such as p_quasar > 0.9; {expression!r} gives {kind}")


def _column_list() -> str:
    return ", ".join(CLASS_SCHEMA.names)


def _pandas(table: pa.Table) -> pd.DataFrame:
    return cast(pd.DataFrame, table.to_pandas(types_mapper=pd.ArrowDtype))


# --- export ----------------------------------------------------------------------------------------

_Write = Callable[[Path, pa.Schema, Iterator[pa.Table], Json], None]


def export_table(table: pa.Table, path: str | Path) -> Path:
    """Write any table by the ending of `path` as `ClassCatalog.export` does, without provenance."""
    target = Path(path)
    write = _writer(target)
    with replacing(target) as temp:
        write(temp, table.schema, iter([table]), {})
    return target


def _writer(path: Path) -> _Write:
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        endings = ", ".join(_WRITERS)
        raise ConfigError(f"cannot tell the format of {path.name!r}: end it in one of {endings}") from None


def _write_parquet(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(piece)
        writer.add_key_value_metadata(file_metadata(schema, provenance))


def _write_csv(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    with pa.csv.CSVWriter(path, schema) as writer:
        for piece in pieces:
            writer.write_table(piece)


def _astropy_table(schema: pa.Schema, pieces: Iterator[pa.Table]) -> Any:
    """Return an astropy table with units and descriptions; what is missing is masked."""
    from astropy.table import MaskedColumn, Table

    rows = pa.concat_tables([schema.empty_table(), *pieces])
    made = Table()
    for field in schema:
        column, words = rows[field.name], field.metadata or {}
        if pa.types.is_decimal(field.type):  # sums of integers in SQL
            column = column.cast(pa.float64())
        empty = "" if pa.types.is_string(field.type) else pa.scalar(0).cast(column.type).as_py()
        values = column.fill_null(empty).to_numpy()
        values = values.astype(str) if pa.types.is_string(field.type) else values
        made[field.name] = MaskedColumn(
            values, mask=column.is_null().to_numpy(), unit=words.get(b"unit", b"").decode() or None,
            description=words.get(b"description", b"").decode() or None,
        )  # fmt: skip
    return made


def _write_fits(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    from astropy.io import fits

    hdu = fits.table_to_hdu(_astropy_table(schema, pieces))
    for i, field in enumerate(schema, start=1):
        for key, word in (("TUCD", b"ucd"), ("TCOMM", b"description")):  # as TOPCAT reads and writes them
            if (field.metadata or {}).get(word):
                hdu.header[f"{key}{i}"] = field.metadata[word].decode()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def _write_votable(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    from astropy.io.votable import from_table

    document = from_table(_astropy_table(schema, pieces))
    for field in document.get_first_table().fields:
        words = schema.field(field.name).metadata or {}
        field.ucd = words.get(b"ucd", b"").decode() or None
    document.to_xml(str(path), tabledata_format="binary2")


_WRITERS: dict[str, _Write] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".fits": _write_fits,
    ".vot": _write_votable,
    ".xml": _write_votable,
}
