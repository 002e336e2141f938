"""Sources: AllWISE partitions (IRSA hive layout, HATS) and users' tables of positions, in one schema.

    hive      {root}/healpix_k0=K0/healpix_k5=K5/*.parquet     one file for each NESTED order-5 pixel
    hats      {root}/[dataset/]Norder=K/Dir=D/Npix=N.parquet   or a folder Npix=N/
    table     one file: CSV, IPAC, VOTable, FITS, ECSV or Parquet with columns ra, dec; read whole
    prepared  a folder of Parquet of exactly `SOURCE_SCHEMA`: what a run writes once a table has its tiles

Partitions are read by their paths, one at a time, only the columns and rows that are needed; sidecars
such as `_metadata` (0.6 GB at IRSA) are never opened.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds

from .errors import CatalogError
from .sky import Region, edge_distance_px, separation_deg, tile_pixels, tile_wcs, unit_vectors
from .types import Bool, Float64, Tile

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

Kind = Literal["hive", "hats", "table", "prepared"]

SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()), ("designation", pa.string()), ("cntr", pa.int64()),
        ("ra", pa.float64()), ("dec", pa.float64()), ("coadd_id", pa.string()),
        ("w1mpro", pa.float32()), ("w2mpro", pa.float32()), ("w3mpro", pa.float32()),
        ("w1snr", pa.float32()), ("w2snr", pa.float32()), ("w3snr", pa.float32()),
        ("cc_flags", pa.string()), ("ext_flg", pa.int32()),
    ]
)  # fmt: skip
"""Columns of a source: positions in degrees (ICRS), magnitudes Vega; null where a table lacks a column."""

COUNT_SCHEMA = pa.schema([("coadd_id", pa.string()), ("partition", pa.int64()), ("n", pa.int64())])
CATALOG_COLUMNS = ("source_id", "ra", "dec", "coadd_id")
TABLE_COLUMNS = ("ra", "dec")
HIVE_PREFIXES = (
    "", "wise-allwise.parquet", "healpix_k5/wise-allwise.parquet",
    "wise/allwise/catalogs/p3as_psd/healpix_k5/wise-allwise.parquet",
)  # fmt: skip
HATS_PROPERTIES = ("hats.properties", "properties")
MAX_COVER_ORDER = 8
"""Deepest order at which a region is compared with partitions: finer would list millions of pixels."""
SEXAGESIMAL = r"^\s*[-+]?\d+(:|h|d|\s)\s*\d+"
ANYWHERE = -1


class Partition(NamedTuple):
    """A file (or HATS folder) and its NESTED pixel; order -1 where it may hold any part of the sky."""

    path: str
    order: int
    pixel: int


@dataclass(frozen=True)
class Catalog:
    """Where the sources are; nothing of them is in memory. `renamed` maps our names to the file's."""

    kind: Kind
    root: str
    partitions: tuple[Partition, ...]
    renamed: tuple[tuple[str, str], ...] = ()


# --- opening ---------------------------------------------------------------------------------------


def open_catalog(location: str) -> Catalog:
    """Return the catalogue at a local path, its partitions listed and the first one's columns checked.

    Raises `CatalogError` where there is nothing, or nothing that is a catalogue.
    """
    path = _local_path(str(location))
    if path.is_file():
        return Catalog("table", str(path), (Partition(str(path), ANYWHERE, 0),))
    for find in (_open_hats, _open_hive, _open_prepared):
        catalog = find(path)
        if catalog and catalog.partitions:
            _source_columns(catalog, catalog.partitions[0].path)
            return catalog
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise CatalogError(
        f"catalogue {location}: neither healpix_k0=*/healpix_k5=* (IRSA) nor Norder=*/Dir=*/Npix=* (HATS) is "
        f"in this folder, which holds {found}; give the catalogue's own folder, or one table file"
    )


def _local_path(location: str) -> Path:
    if "://" in location and not location.startswith("file://"):
        raise CatalogError(
            f"catalogue {location}: this version reads local files only; copy the partitions you need "
            "first, for example with `aws s3 sync --no-sign-request`"
        )
    path = Path(location.removeprefix("file://")).expanduser().absolute()
    if not path.exists():
        raise CatalogError(f"catalogue {location}: there is no such file or folder")
    return path


def _open_prepared(root: Path) -> Catalog | None:
    """Return a folder of Parquet files that have exactly `SOURCE_SCHEMA`, or None."""
    paths = [str(path) for path in _parquet_files(root)]
    if not paths or not all(_schema(path).equals(SOURCE_SCHEMA) for path in paths):
        return None
    return Catalog("prepared", str(root), tuple(Partition(path, ANYWHERE, 0) for path in paths))


def _open_hive(path: Path) -> Catalog | None:
    """Return the IRSA catalogue at or below a folder, or None. The pixel is that of the inner folder."""
    for prefix in HIVE_PREFIXES:
        outer = _numbered(path / prefix, r"healpix_k0=(\d+)")
        inner = [item for folder, _ in outer for item in _numbered(folder, r"healpix_k5=(\d+)")]
        files = [Partition(str(file), 5, pixel) for folder, pixel in inner for file in _parquet_files(folder)]
        if files:
            files.sort(key=lambda part: (part.pixel, part.path))
            return Catalog("hive", str(path / prefix), tuple(files))
    return None


def _open_hats(path: Path) -> Catalog | None:
    """Return the HATS catalogue in a folder, its `dataset/`, or its collection's primary table, or None."""
    collection = _properties(path, ("collection.properties",))
    primary = collection.get("hats_primary_table_url")
    if primary:
        return _open_hats(path / primary)
    properties = _properties(path, HATS_PROPERTIES)
    product = properties.get("dataproduct_type", "object")
    if product not in ("object", "source"):
        raise CatalogError(f"catalogue {path}: a HATS '{product}' lists no sources; give its main catalogue")
    roots = [root for root in (path / "dataset", path) if _numbered(root, r"Norder=(\d+)")]
    if not roots:
        return None
    infos = [folder / "partition_info.csv" for folder in (path, roots[0])]
    info = next((p for p in infos if p.exists()), None)
    listed = _hats_listed(roots[0], info) if info else _hats_found(roots[0])
    names = (("ra", properties.get("hats_col_ra")), ("dec", properties.get("hats_col_dec")))
    renamed = tuple((ours, theirs) for ours, theirs in names if theirs and theirs != ours)
    return Catalog("hats", str(path), tuple(sorted(listed, key=lambda p: (p.order, p.pixel))), renamed)


def _hats_listed(root: Path, info: Path) -> list[Partition]:
    """Return the partitions that `partition_info.csv` names; the list counts, not the folder."""
    with open(info, newline="") as stream:
        try:
            pixels = [(int(row["Norder"]), int(row["Npix"])) for row in csv.DictReader(stream)]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no numbers in columns Norder, Npix ({error}); fetch it again"
            raise CatalogError(f"{info}: {reason}") from error
    partitions = []
    for order, pixel in pixels:
        base = root / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}"
        path = next((p for p in (base / f"Npix={pixel}.parquet", base / f"Npix={pixel}") if p.exists()), None)
        if path is None:
            reason = f"Npix={pixel}.parquet is missing, though {info.name} names it; fetch it again"
            raise CatalogError(f"{base}: {reason}")
        partitions.append(Partition(str(path), order, pixel))
    return partitions


def _hats_found(root: Path) -> list[Partition]:
    return [
        Partition(str(path), order, pixel)
        for order_folder, order in _numbered(root, r"Norder=(\d+)")
        for folder, _ in _numbered(order_folder, r"Dir=(\d+)")
        for path, pixel in _numbered(folder, r"Npix=(\d+)(?:\.parquet)?")
    ]


def _numbered(root: Path, pattern: str) -> list[tuple[Path, int]]:
    """Return (entry, number) of the entries of a folder whose whole name matches, by number."""
    entries = root.iterdir() if root.is_dir() else ()
    matches = [(path, re.fullmatch(pattern, path.name)) for path in entries]
    return sorted(((path, int(m[1])) for path, m in matches if m), key=lambda item: (item[1], item[0].name))


def _parquet_files(root: Path) -> list[Path]:
    """Return the Parquet files of a folder, sidecars and hidden files left out."""
    return sorted(p for p in root.glob("*.parquet") if p.is_file() and p.name[0] not in "._")


def _properties(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the key = value lines of the first file that exists, {} if none does."""
    path = next((root / name for name in names if (root / name).is_file()), None)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}


def select(catalog: Catalog, region: Region) -> Catalog:
    """Return the catalogue with only the partitions that the region's cover touches; no file is read."""
    covers: dict[int, set[int]] = {}
    kept = []
    for part in catalog.partitions:
        order = min(part.order, MAX_COVER_ORDER)
        if order != ANYWHERE and order not in covers:
            covers[order] = set(region.cover(order).tolist())
        if order == ANYWHERE or part.pixel >> 2 * (part.order - order) in covers[order]:
            kept.append(part)
    return replace(catalog, partitions=tuple(kept))


def gaps(catalog: Catalog, region: Region) -> list[int]:
    """Return the pixels of an IRSA catalogue that a region touches and this copy of it lacks."""
    if catalog.kind != "hive":
        return []
    order = catalog.partitions[0].order
    held = {part.pixel for part in catalog.partitions}
    return [pixel for pixel in region.cover(order).tolist() if pixel not in held]


# --- reading partitions ----------------------------------------------------------------------------


def read_partition(catalog: Catalog, i: int, region: Region | None = None, coadd_id: str | None = None) -> pa.Table:
    """Return the sources of partition `i` in `SOURCE_SCHEMA`, only those in the region and of the tile.

    Raises `CatalogError`, naming the file, for a missing column, a value that does not fit its column,
    and a position that is not finite or not on the sky.
    """
    part = catalog.partitions[i]
    if catalog.kind == "table":
        table = standardise_table(part.path)
        table = table.filter(pc.field("coadd_id") == coadd_id) if coadd_id else table
    else:
        table = _conform(_read_columns(catalog, part.path, SOURCE_SCHEMA.names, coadd_id), part.path)
        _check_positions(table, part.path)
    return _inside(table, region)


def count_tiles(catalog: Catalog, i: int, region: Region | None = None) -> pa.Table:
    """Return (coadd_id, partition, n): the sources of partition `i` in the region, by tile, sorted.

    Reads positions and `coadd_id` only. Null positions are `CatalogError`, a null coadd_id is counted.
    """
    if catalog.kind == "table":
        table = read_partition(catalog, i, region)
    else:
        path = catalog.partitions[i].path
        table = _conform(_read_columns(catalog, path, CATALOG_COLUMNS, None), path)
        _check_positions(table, path)
        table = _inside(table, region)
    counts = table.group_by("coadd_id").aggregate([([], "count_all")]).sort_by("coadd_id")
    columns = {
        "coadd_id": counts["coadd_id"],
        "partition": pa.array(np.full(len(counts), i, np.int64)),
        "n": counts["count_all"],
    }
    return pa.table(columns, schema=COUNT_SCHEMA)


def to_dask(catalog: Catalog, region: Region | None = None) -> dd.DataFrame:
    """Return a Dask dataframe of the sources, one partition a file, pandas with pyarrow dtypes.

    The graph holds paths and the region, never rows.
    """
    import dask.dataframe as dd

    if not catalog.partitions:
        raise CatalogError(f"catalogue {catalog.root}: no partition touches the region")
    pieces = [replace(catalog, partitions=(part,)) for part in catalog.partitions]
    meta = _to_pandas(SOURCE_SCHEMA.empty_table())
    from_map: Callable[..., dd.DataFrame] = dd.from_map
    return from_map(partial(_read_frame, region=region), pieces, meta=meta, label="sources")


def _read_frame(piece: Catalog, region: Region | None) -> pd.DataFrame:
    return _to_pandas(read_partition(piece, 0, region))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd

    return cast("pd.DataFrame", table.to_pandas(types_mapper=pd.ArrowDtype))


def _inside(table: pa.Table, region: Region | None) -> pa.Table:
    if region is None:
        return table
    return table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))


def _dataset(path: str) -> ds.Dataset:
    """Return the Parquet file or folder as a dataset, without columns invented from its path."""
    try:
        return ds.dataset(path, format="parquet", partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read as Parquet ({error}); fetch it again") from error


def _schema(path: str) -> pa.Schema:
    return _dataset(path).schema


def _source_columns(catalog: Catalog, path: str) -> dict[str, str]:
    """Return our name -> the file's name for the columns it has; `CatalogError` without a required one."""
    renamed, present = dict(catalog.renamed), set(_schema(path).names)
    names = {name: renamed.get(name, name) for name in SOURCE_SCHEMA.names}
    missing = [names[name] for name in CATALOG_COLUMNS if names[name] not in present]
    if missing:
        raise CatalogError(
            f"{path}: no column {', '.join(missing)}; a catalogue needs {', '.join(CATALOG_COLUMNS)}. "
            "A plain list of positions can be given as one table file with ra and dec"
        )
    return {ours: theirs for ours, theirs in names.items() if theirs in present}


def _read_columns(catalog: Catalog, path: str, columns: Iterable[str], coadd_id: str | None) -> pa.Table:
    """Return those of the columns that a partition has, under our names, filtered while reading."""
    names = _source_columns(catalog, path)
    wanted = {ours: ds.field(names[ours]) for ours in columns if ours in names}
    keep = None if coadd_id is None else ds.field(names["coadd_id"]) == coadd_id
    try:
        return _dataset(path).to_table(columns=wanted, filter=keep)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}); fetch it again") from error


# --- one schema ------------------------------------------------------------------------------------


def _conform(table: pa.Table, source: str) -> pa.Table:
    """Return the table in `SOURCE_SCHEMA`; NaN photometry, empty text and absent columns are null."""
    columns = [
        _cast(table[field.name], field, source) if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in SOURCE_SCHEMA
    ]  # fmt: skip
    return pa.table(columns, schema=SOURCE_SCHEMA)


def _cast(column: pa.ChunkedArray, field: pa.Field, source: str) -> pa.ChunkedArray:
    """Return a column cast to its field's type; `CatalogError` names the column and the reason."""
    try:
        if pa.types.is_string(field.type):
            text = pc.utf8_trim_whitespace(_plain(column).cast(field.type))
            return pc.if_else(pc.equal(text, ""), None, text)
        column = _plain(column)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if pa.types.is_floating(column.type) and field.name not in TABLE_COLUMNS:
            column = pc.if_else(pc.is_finite(column), column, None)
        # float32 of a float64 magnitude rounds, on purpose; an integer must come through whole.
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowException as error:
        raise CatalogError(f"{source}: column {field.name} is not {field.type} ({error})") from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without its dictionary, if it has one."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _positions(table: pa.Table) -> tuple[Float64, Float64, Bool]:
    """Return ra, dec (NaN for null) and which rows are not a position on the sky."""
    ra, dec = (pc.fill_null(table[name], np.nan).to_numpy() for name in TABLE_COLUMNS)
    good = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
    return ra, dec, ~good


def _check_positions(table: pa.Table, source: str) -> None:
    ra, dec, bad = _positions(table)
    if bad.any():
        first = int(np.argmax(bad))
        raise CatalogError(
            f"{source}: {bad.sum()} of {len(table)} positions are missing or not on the sky, the first is "
            f"source_id {table['source_id'][first]} (ra {ra[first]}, dec {dec[first]}); fetch the file again"
        )


# --- a user's table --------------------------------------------------------------------------------


def standardise_table(location: str) -> pa.Table:
    """Return a table file in `SOURCE_SCHEMA`, in its order; `source_id` is row-000001... where it has none.

    Raises `CatalogError`, one message for all bad rows, as `read_table` and `standardise` do.
    """
    return standardise(read_table(location), f"table {_local_path(str(location))}")


def read_table(location: str, extra: Sequence[str] = ()) -> pa.Table:
    """Return the columns of `SOURCE_SCHEMA`, and of `extra` (text), that a table file has, under our names.

    CSV, IPAC, VOTable, FITS, ECSV and Parquet are told apart by content, plain or gzipped. Column names may be in
    any case; ra and dec are needed, in decimal degrees or with a unit, and come in degrees (float64, null where they
    are no number). Raises `CatalogError`: no table file, no rows, a column missing or named twice, sexagesimal.
    """
    path = _local_path(str(location))
    if path.is_dir():
        raise CatalogError(f"table {path}: this is a folder, give the table file")
    table = _read_table(path, extra)
    if not len(table):
        raise CatalogError(f"table {path}: it has no rows")
    for name in TABLE_COLUMNS:
        table = _with_column(table, name, _degrees(table[name], name, path))
    return table


def standardise(table: pa.Table, source: str, unique: bool = True) -> pa.Table:
    """Return a table of `read_table` in `SOURCE_SCHEMA`, its further columns after it as text; empty text is null.

    Rows without `source_id` are numbered: row-000001... Raises one `CatalogError`, which begins with `source`, for
    all positions off the sky (ra 0..360, dec -90..90 degrees), identifiers missing and, where each source must be
    there once (`unique`), given twice.
    """
    if "source_id" not in table.column_names:
        ids = [f"row-{number:06d}" for number in range(1, len(table) + 1)]
        table = table.append_column("source_id", pa.array(ids, pa.string()))
    further = [pa.field(name, pa.string()) for name in table.column_names if name not in SOURCE_SCHEMA.names]
    whole = _conform(table, source)
    for field in further:
        whole = whole.append_column(field, _cast(table[field.name], field, source))
    if problems := _row_problems(whole, unique):
        raise CatalogError(f"{source}: " + "; ".join(problems))
    return whole.combine_chunks()


def _row_problems(table: pa.Table, unique: bool) -> list[str]:
    """Return what is wrong with the rows: positions off the sky, identifiers missing or given twice."""
    problems = []
    ra, dec, bad = _positions(table)
    if bad.any():
        rows = ", ".join(f"{i + 1} (ra {ra[i]}, dec {dec[i]})" for i in np.flatnonzero(bad)[:5])
        problems.append(
            f"{bad.sum():,} of {len(table):,} rows have no position on the sky, such as row {rows}"
            f"{' and more' if bad.sum() > 5 else ''}; ra must be 0..360 and dec -90..90 degrees, "
            "mend or remove these rows"
        )
    counts = pc.value_counts(table["source_id"].drop_null())
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if n_null := table["source_id"].null_count:
        problems.append(f"source_id is empty in {n_null:,} rows; fill it or drop the column")
    if unique and len(many):
        repeated = ", ".join(str(value) for value in many.field("values")[:5])
        problems.append(
            f"source_id {repeated} stands in more than one row; "
            "remove the repeated rows, or rename the column to have rows numbered"
        )
    return problems


def _degrees(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Return a coordinate as float64 degrees; text that is no number becomes null, sexagesimal is refused."""
    column = _plain(column)
    if pa.types.is_temporal(column.type):  # the CSV reader takes 10:20:30 for a time of day
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        try:
            return column.cast(pa.float64(), safe=False)
        except pa.ArrowException as error:
            raise CatalogError(f"table {path}: column {name} is {column.type}, not degrees: {error}") from error
    sexagesimal = pc.match_substring_regex(column, SEXAGESIMAL)
    if pc.any(sexagesimal).as_py():
        example = column.filter(sexagesimal)[0]
        raise CatalogError(
            f"table {path}: column {name} looks sexagesimal ('{example}'); give decimal degrees, for example "
            "from astropy.coordinates.SkyCoord(ra, dec, unit=('hourangle', 'deg')).ra.deg"
        )
    number = pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
    if pc.any(number).as_py() is False:  # None when all are empty
        raise CatalogError(
            f"table {path}: column {name} holds text such as {column.drop_null()[:1].to_pylist()}, and no number; "
            "give decimal degrees"
        )
    return pc.utf8_trim_whitespace(pc.if_else(number, column, None)).cast(pa.float64())


def _with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _wanted(names: Sequence[str], path: Path, extra: Sequence[str]) -> dict[str, str]:
    """Return our name -> the table's name for each column of ours, or `extra`, it has, whatever the case."""
    found: dict[str, str] = {}
    for ours in (*SOURCE_SCHEMA.names, *extra):
        matches = [name for name in names if name.strip().lower() == ours]
        exact = [name for name in matches if name == ours]
        if len(matches) > 1 and len(exact) != 1:
            raise CatalogError(f"table {path}: columns {', '.join(matches)} all mean {ours}; keep one")
        if matches:
            found[ours] = (exact or matches)[0]
    missing = [name for name in TABLE_COLUMNS if name not in found]
    if missing:
        have = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise CatalogError(
            f"table {path}: no column {' and '.join(missing)}; its columns are {have or 'none'}. "
            "Rename the columns with right ascension and declination in degrees to ra and dec"
        )
    return found


# --- table formats ---------------------------------------------------------------------------------


def _head(path: Path, n_bytes: int = 4096) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(n_bytes)


def _format_of(head: bytes) -> str:
    """Return which format some first bytes are of: "parquet", "fits", ..., or "" if no table."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    starts: Mapping[bytes, str] = {
        b"PAR1": "parquet", b"SIMPLE  =": "fits", b"\x1f\x8b": "gzip",
        b"# %ECSV": "ecsv", b"\\": "ipac", b"|": "ipac",
    }  # fmt: skip
    for start, name in starts.items():
        if text.startswith(start):
            return name
    if text.startswith(b"<"):
        return "votable" if b"VOTABLE" in text[:4096] else ""
    return "" if b"\0" in text else "csv"


def _read_table(path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the columns of ours, and `extra`, that a table file has, under our names."""
    content_format = _format_of(_head(path))
    if content_format == "parquet":
        return _read_parquet(path, extra)
    content = path.read_bytes()
    if content_format == "gzip":
        content = _gunzip(content, path)
        content_format = _format_of(content[:4096])
    if not content.strip():
        raise CatalogError(f"table {path}: the file is empty")
    readers: Mapping[str, Callable[[bytes, Path, Sequence[str]], pa.Table]] = {
        "csv": _read_csv,
        **{name: partial(_read_astropy, name) for name in ("fits", "ecsv", "ipac", "votable")},
    }
    if content_format not in readers:
        raise CatalogError(f"table {path}: its content is none of CSV, IPAC, VOTable, FITS, ECSV or Parquet")
    return readers[content_format](content, path, extra)


def _gunzip(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise CatalogError(f"table {path}: damaged gzip ({error}); fetch it again") from error


def _read_parquet(path: Path, extra: Sequence[str]) -> pa.Table:
    names = _wanted(_schema(str(path)).names, path, extra)
    try:
        return _dataset(str(path)).to_table(columns={ours: ds.field(name) for ours, name in names.items()})
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"table {path}: cannot be read ({error})") from error


def _read_csv(content: bytes, path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the wanted columns of a CSV; comma, semicolon or tab; leading # lines are comments."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").splitlines()
    n_comments = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    delimiter = max(",;\t", key=lines[n_comments].count)
    header = next(csv.reader([lines[n_comments]], delimiter=delimiter))
    if len(header) == 1 and len(header[0].split()) > 1:
        raise CatalogError(
            f"table {path}: none of FITS, Parquet, VOTable, IPAC and ECSV, and no CSV: no comma, semicolon or tab "
            f"parts its first line, {header[0][:60]!r}"
        )
    names = _wanted(header, path, extra)
    # The text columns must not be guessed: cc_flags 0000 would become the number 0.
    text = (*(field.name for field in SOURCE_SCHEMA if pa.types.is_string(field.type)), *extra)
    types = {names[name]: pa.string() for name in text if name in names}
    try:
        table = pa_csv.read_csv(
            io.BytesIO(content),
            pa_csv.ReadOptions(skip_rows=n_comments),
            pa_csv.ParseOptions(delimiter=delimiter),
            pa_csv.ConvertOptions(
                include_columns=list(names.values()), column_types=types, strings_can_be_null=True
            ),
        )  # fmt: skip
    except (pa.ArrowException, KeyError) as error:
        raise CatalogError(f"table {path}: not a regular CSV ({error})") from error
    return table.rename_columns(list(names))


def _read_astropy(name: str, content: bytes, path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the wanted columns of a FITS, ECSV, IPAC or VOTable, coordinates in degrees by their units."""
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    known = {"ecsv": "ascii.ecsv", "ipac": "ascii.ipac"}
    try:
        with warnings.catch_warnings():
            # Archives write units and cards that the standards do not know: no concern of ours.
            warnings.simplefilter("ignore", AstropyWarning)
            table = Table.read(io.BytesIO(content), format=known.get(name, name))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CatalogError(f"table {path}: cannot be read as {name} ({error})") from error
    names = _wanted(table.colnames, path, extra)
    return pa.table({ours: _from_astropy(table[theirs], ours, path) for ours, theirs in names.items()})


def _from_astropy(column: Any, name: str, path: Path) -> pa.Array:
    """Return an astropy column as an Arrow array, masked values null."""
    from astropy import units as u

    values = np.ma.filled(column, None) if column.dtype.kind == "O" else np.ma.getdata(np.asarray(column))
    mask = np.broadcast_to(np.ma.getmaskarray(np.ma.asarray(column)), values.shape)
    if values.ndim != 1:
        raise CatalogError(f"table {path}: column {name} holds arrays; give one number a row")
    if values.dtype.kind in "SUO":
        text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()]
        text = [None if hidden or v is None else str(v) for v, hidden in zip(text, mask, strict=True)]
        return pa.array(text, pa.string())
    if name in TABLE_COLUMNS and column.unit is not None and column.unit != u.deg:
        try:
            values = column.unit.to(u.deg, values)
        except (u.UnitConversionError, TypeError, ValueError) as error:
            raise CatalogError(f"table {path}: column {name} is in {column.unit}; give degrees") from error
    return pa.array(values.astype(values.dtype.newbyteorder("=")), mask=np.ascontiguousarray(mask))


# --- tiles for positions ---------------------------------------------------------------------------


def assign_tiles(table: pa.Table, tiles: Sequence[Tile]) -> pa.Table:
    """Return the table with null `coadd_id` filled: the tile whose edge is farthest from the source.

    Null stays where no tile covers the position; a `coadd_id` that is given is kept. This is the archive's own rule
    of ownership (AllWISE Explanatory Supplement, V.4), applied to the images that are there.
    """
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    order = np.argsort(dec, kind="stable")
    vectors, sorted_dec = unit_vectors(ra[order], dec[order]), dec[order]
    best_px, owner = np.zeros(len(ra)), np.full(len(ra), -1)
    for number, tile in enumerate(tiles):
        centre_ra, centre_dec, radius_deg = _footprint(tile)
        low, high = np.searchsorted(sorted_dec, [centre_dec - radius_deg, centre_dec + radius_deg])
        near = vectors[low:high] @ unit_vectors(centre_ra, centre_dec) >= np.cos(np.radians(radius_deg))
        rows = order[low:high][near]
        inside_px = edge_distance_px(tile, *tile_pixels(tile, ra[rows], dec[rows]))
        wins = (inside_px > best_px[rows]) | ((inside_px == 0) & (owner[rows] < 0))
        best_px[rows[wins]], owner[rows[wins]] = inside_px[wins], number
    names = np.array([tile.coadd_id for tile in tiles] + [None], dtype=object)
    assigned = pa.chunked_array([pa.array(names[owner], pa.string())])
    return _with_column(table, "coadd_id", pc.coalesce(table["coadd_id"], assigned))


def _footprint(tile: Tile) -> tuple[float, float, float]:
    """Return (ra, dec, radius) in degrees of a circle around a tile's image."""
    rows, columns = tile.shape
    x = np.array([(columns + 1) / 2, 0.5, columns + 0.5, 0.5, columns + 0.5])
    y = np.array([(rows + 1) / 2, 0.5, 0.5, rows + 0.5, rows + 0.5])
    ra, dec = tile_wcs(tile).wcs_pix2world(x, y, 1)
    radius_deg = separation_deg(ra[0], dec[0], ra[1:], dec[1:]).max()
    return float(ra[0]), float(dec[0]), float(radius_deg) * 1.01
