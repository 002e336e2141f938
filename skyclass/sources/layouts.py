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
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..locations import refuse_logins, without_secrets
from ..schema import CATALOG_COLUMNS, SOURCE_SCHEMA
from ..sky import Region

Kind = Literal["hive", "hats", "table", "prepared"]
HIVE_PREFIXES = (
    "", "wise-allwise.parquet", "healpix_k5/wise-allwise.parquet",
    "wise/allwise/catalogs/p3as_psd/healpix_k5/wise-allwise.parquet",
)  # fmt: skip
HATS_PROPERTIES = ("hats.properties", "properties")
MAX_COVER_ORDER = 8
"""Deepest order at which a region is compared with partitions: finer would list millions of pixels."""

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


def open_catalog(location: str) -> Catalog:
    """Return the catalogue at a local path, its partitions listed and the first one's columns checked.

    Raises `CatalogError` where there is nothing, or nothing that is a catalogue.
    """
    path = local_path(str(location))
    if path.is_file():
        return Catalog("table", str(path), (Partition(str(path), ANYWHERE, 0),))
    for find in (_open_hats, _open_hive, _open_prepared):
        catalog = find(path)
        if catalog and catalog.partitions:
            source_columns(catalog, catalog.partitions[0].path)
            return catalog
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise CatalogError(
        f"catalogue {location}: neither healpix_k0=*/healpix_k5=* (IRSA) nor Norder=*/Dir=*/Npix=* (HATS) is "
        f"in this folder, which holds {found}; give the catalogue's own folder, or one table file"
    )


def local_path(location: str) -> Path:
    refuse_logins({"catalog": location})
    if "://" in location and not location.startswith("file://"):
        raise CatalogError(
            f"catalogue {without_secrets(location)}: this version reads local files only; copy the partitions you need "
            "first, for example with `aws s3 sync --no-sign-request`"
        )
    path = Path(location.removeprefix("file://")).expanduser().absolute()
    if not path.exists():
        raise CatalogError(f"catalogue {location}: there is no such file or folder")
    return path


def _open_prepared(root: Path) -> Catalog | None:
    """Return a folder of Parquet files that have exactly `SOURCE_SCHEMA`, or None."""
    paths = [str(path) for path in _parquet_files(root)]
    if not paths or not all(parquet_schema(path).equals(SOURCE_SCHEMA) for path in paths):
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


def parquet_dataset(path: str) -> ds.Dataset:
    """Return the Parquet file or folder as a dataset, without columns invented from its path."""
    try:
        return ds.dataset(path, format="parquet", partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read as Parquet ({error}); fetch it again") from error


def parquet_schema(path: str) -> pa.Schema:
    return parquet_dataset(path).schema


def source_columns(catalog: Catalog, path: str) -> dict[str, str]:
    """Return our name -> the file's name for the columns it has; `CatalogError` without a required one."""
    renamed, present = dict(catalog.renamed), set(parquet_schema(path).names)
    names = {name: renamed.get(name, name) for name in SOURCE_SCHEMA.names}
    missing = [names[name] for name in CATALOG_COLUMNS if names[name] not in present]
    if missing:
        raise CatalogError(
            f"{path}: no column {', '.join(missing)}; a catalogue needs {', '.join(CATALOG_COLUMNS)}. "
            "A plain list of positions can be given as one table file with ra and dec"
        )
    return {ours: theirs for ours, theirs in names.items() if theirs in present}
