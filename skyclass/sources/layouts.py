"""Layouts of catalogues: AllWISE partitions (IRSA hive layout, HATS), users' tables, and prepared tables.

    hive      {root}/healpix_k0=K0/healpix_k5=K5/*.parquet     the files of one NESTED order-5 pixel
    hats      {root}/[dataset/]Norder=K/Dir=D/Npix=N.parquet   or a folder Npix=N/, or another suffix
    table     one file: CSV, IPAC, VOTable, FITS, ECSV or Parquet with columns ra, dec; read whole
    prepared  a folder of Parquet of exactly `SOURCE_SCHEMA`: what a run writes once a table has its tiles

Partitions are read by their paths, one at a time, only the columns and rows that are needed; sidecars
such as `_metadata` (0.6 GB at IRSA) are never opened. What should hold rows and cannot be read is an error.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..locations import refuse_logins, user_path, without_secrets
from ..schema import CATALOG_COLUMNS, INPUT_COLUMNS, SOURCE_SCHEMA
from ..sky.regions import Region
from .listing import (
    ANYWHERE,
    PARQUET,
    Unreadable,
    entry_fault,
    faults_text,
    folder_entries,
    is_partition_like,
    listing_fault,
    numbered_folders,
    row_files,
)
from .tablefile import check_regular

Kind = Literal["hive", "hats", "table", "prepared"]
HIVE_PREFIXES = (
    "", "wise-allwise.parquet", "healpix_k5/wise-allwise.parquet",
    "wise/allwise/catalogs/p3as_psd/healpix_k5/wise-allwise.parquet",
)  # fmt: skip
HIVE_KEYS = ("healpix_k0=", "healpix_k5=")
HIVE_ORDER = 5
HATS_KEYS = ("Norder=", "Dir=", "Npix=")
HATS_PROPERTIES = ("hats.properties", "properties")
MAX_COVER_ORDER = 8
"""Deepest order at which a region is compared with partitions: finer would list millions of pixels."""


class Partition(NamedTuple):
    """A file and its NESTED pixel; order `ANYWHERE` where it may hold any part of the sky."""

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
    allow_truncated: bool = False
    """Read a table that a service cut at its row limit."""


class Listing(NamedTuple):
    """A catalogue as its folders are, and what there should hold rows and cannot be read."""

    catalog: Catalog
    faults: list[Unreadable]


def open_catalog(location: str, region: Region | None = None) -> Catalog:
    """Return the catalogue at a local path with the partitions that the region touches, all of them without a region.

    The columns of the first partition are checked. Raises `CatalogError` where there is no catalogue, and where an
    entry of its layout that should hold rows of the region cannot be read, such as an unfinished download.
    """
    path = local_path(str(location))
    if not path.is_dir():
        check_regular(path)
        return Catalog("table", str(path), (Partition(str(path), ANYWHERE, 0),))
    names = _names_in(path)
    for find in (_open_hats, _open_hive, _open_prepared):
        if listing := find(path):
            return _checked(listing, region)
    raise CatalogError(
        f"catalogue {location}: neither healpix_k0=*/healpix_k5=* (IRSA) nor Norder=*/Dir=*/Npix=* (HATS) is "
        f"in this folder, which holds {', '.join(sorted(names)[:8]) or 'nothing'}; give the catalogue's own folder, or "
        "one table file"
    )


def _checked(listing: Listing, region: Region | None) -> Catalog:
    """Return the catalogue of a listing in a region; `CatalogError` for what cannot be read there."""
    catalog, faults = listing
    if region:
        touches = _touching(region)
        catalog, faults = select(catalog, region), [f for f in faults if touches(f.order, f.pixel)]
    if faults:
        raise CatalogError(
            f"catalogue {catalog.root}: {len(faults):,} entries that should hold rows cannot be read: "
            f"{faults_text(faults)}"
        )
    if catalog.partitions:
        source_columns(catalog, catalog.partitions[0].path)
    return catalog


def local_path(location: str) -> Path:
    refuse_logins({"catalog": location})
    if "://" in location and not location.startswith("file://"):
        raise CatalogError(
            f"catalogue {without_secrets(location)}: this version reads local files only; copy the partitions you need "
            "first, for example with `aws s3 sync --no-sign-request`"
        )
    path = user_path(location).absolute()
    if not os.path.exists(path):
        raise CatalogError(f"catalogue {location}: there is no such file or folder")
    return path


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder; `CatalogError` where it cannot be listed or entered."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise CatalogError(f"catalogue {faults_text([listing_fault(folder, error)])}") from error
    if not os.access(folder, os.X_OK):
        raise CatalogError(f"catalogue {folder} cannot be entered; give yourself permission (chmod u+x)")
    return names


def _holds(folder: Path, key: str) -> bool:
    """Return whether a folder is there and holds an entry whose name begins with `key`."""
    return folder.is_dir() and any(name.startswith(key) for name in _names_in(folder))


def _open_prepared(root: Path) -> Listing | None:
    """Return a folder of Parquet files that have exactly `SOURCE_SCHEMA`, or None."""
    files, faults = row_files(root, (".parquet",))
    if not files or not all(parquet_schema(path).equals(SOURCE_SCHEMA) for path in files):
        return None
    return Listing(Catalog("prepared", str(root), tuple(Partition(path, ANYWHERE, 0) for path in files)), faults)


def _open_hive(path: Path) -> Listing | None:
    """Return the IRSA catalogue at or below a folder, or None. The pixel is that of the inner folder."""
    root = next((path / prefix for prefix in HIVE_PREFIXES if _holds(path / prefix, HIVE_KEYS[0])), None)
    if root is None:
        return None
    outer, faults = numbered_folders(root, HIVE_KEYS[0])
    partitions = []
    for folder, k0 in outer:
        inner, outer_faults = numbered_folders(folder, HIVE_KEYS[1], 0, k0)
        faults += outer_faults
        for leaf, pixel in inner:
            files, leaf_faults = row_files(leaf, (".parquet",), HIVE_ORDER, pixel)
            partitions += [Partition(file, HIVE_ORDER, pixel) for file in files]
            faults += leaf_faults
            if pixel >> 2 * HIVE_ORDER != k0:
                reason = f"belongs into {HIVE_KEYS[0]}{pixel >> 2 * HIVE_ORDER}; move it there, or remove a copy"
                faults.append(Unreadable(str(leaf), reason, HIVE_ORDER, pixel))
    partitions.sort(key=lambda part: (part.pixel, part.path))
    return Listing(Catalog("hive", str(root), tuple(partitions)), faults)


def _open_hats(path: Path) -> Listing | None:
    """Return the HATS catalogue in a folder, its `dataset/`, or its collection's primary table, or None."""
    primary = _properties(path, ("collection.properties",)).get("hats_primary_table_url")
    if primary:
        return _open_hats(path / primary)
    properties = _properties(path, HATS_PROPERTIES)
    product = properties.get("dataproduct_type", "object")
    if product not in ("object", "source"):
        raise CatalogError(f"catalogue {path}: a HATS '{product}' lists no sources; give its main catalogue")
    root = next((root for root in (path / "dataset", path) if _holds(root, HATS_KEYS[0])), None)
    if root is None:
        return None
    suffix = properties.get("hats_npix_suffix", ".parquet")
    partitions, faults = _hats_partitions(root, suffix)
    info = next((p for p in (path / "partition_info.csv", root / "partition_info.csv") if p.exists()), None)
    if info:
        faults += _list_faults(root, info, suffix, partitions, faults)
    faults += _pixel_faults(partitions)
    names = (("ra", properties.get("hats_col_ra")), ("dec", properties.get("hats_col_dec")))
    renamed = tuple((ours, theirs) for ours, theirs in names if theirs and theirs != ours)
    ordered = tuple(sorted(partitions, key=lambda part: (part.order, part.pixel, part.path)))
    return Listing(Catalog("hats", str(path), ordered, renamed), faults)


def _hats_partitions(root: Path, suffix: str) -> tuple[list[Partition], list[Unreadable]]:
    """Return the partitions that the folders of a HATS catalogue hold, and what there cannot be read."""
    orders, faults = numbered_folders(root, HATS_KEYS[0])
    partitions = []
    for order_folder, order in orders:
        folders, order_faults = numbered_folders(order_folder, HATS_KEYS[1])
        faults += order_faults
        for folder, _ in folders:
            files, folder_faults = _pixels(folder, order, suffix)
            partitions += files
            faults += folder_faults
    return partitions, faults


def _pixels(folder: Path, order: int, suffix: str) -> tuple[list[Partition], list[Unreadable]]:
    """Return the partitions in one `Dir=` folder, which are files `Npix=N{suffix}` or folders `Npix=N`."""
    try:
        entries = folder_entries(folder)
    except OSError as error:
        return [], [listing_fault(folder, error)]
    partitions: list[Partition] = []
    faults: list[Unreadable] = []
    for entry in entries:
        match = re.match(r"Npix=(\d+)", entry.name)
        at = (order, int(match[1])) if match else (ANYWHERE, 0)
        rest = entry.name[match.end() :] if match else entry.name
        if match and rest in ("", suffix) and entry.is_dir():
            files, leaf_faults = row_files(Path(entry.path), tuple({*PARQUET, suffix} - {"/"}), *at)
            partitions += [Partition(file, *at) for file in files]
            faults += leaf_faults
        elif match and rest == suffix and entry.is_file():
            partitions.append(Partition(entry.path, *at))
        elif is_partition_like(entry.name, HATS_KEYS[2]):
            faults.append(Unreadable(entry.path, _suffix_fault(rest, suffix) or entry_fault(entry), *at))
    if not partitions and not faults:
        faults.append(Unreadable(str(folder), f"holds no Npix=*{suffix}; fetch it again, or remove it"))
    return partitions, faults


def _suffix_fault(rest: str, suffix: str) -> str:
    """Return why a file whose name ends in a suffix of Parquet is no partition, or ""."""
    if rest == suffix or rest not in PARQUET:
        return ""
    return f"does not end in {suffix!r}, the hats_npix_suffix of this catalogue; correct hats.properties, or the name"


def _list_faults(
    root: Path, info: Path, suffix: str, partitions: Iterable[Partition], known: Iterable[Unreadable]
) -> list[Unreadable]:
    """Return where `partition_info.csv` and the folders of a HATS catalogue differ."""
    listed = _listed_pixels(info)
    paths = {(part.order, part.pixel): part.path for part in partitions}
    told = {(fault.order, fault.pixel) for fault in known}
    faults = []
    for order, pixel in sorted(at for at, n in Counter(listed).items() if n > 1):
        faults.append(Unreadable(str(info), f"names Norder={order}, Npix={pixel} twice; fetch it again", order, pixel))
    for order, pixel in sorted(set(listed) - paths.keys() - told):
        path = root / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}" / f"Npix={pixel}{suffix}"
        reason = f"is missing, though {info.name} names it; fetch it again"
        faults.append(Unreadable(str(path), reason, order, pixel))
    for order, pixel in sorted(paths.keys() - set(listed)):
        reason = f"is not named by {info}; fetch that list again, or move the file out of the catalogue"
        faults.append(Unreadable(paths[order, pixel], reason, order, pixel))
    return faults


def _listed_pixels(info: Path) -> list[tuple[int, int]]:
    try:
        with open(info, newline="", encoding="utf-8", errors="replace") as stream:
            pixels = [(int(row["Norder"]), int(row["Npix"])) for row in csv.DictReader(stream)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"no numbers in columns Norder, Npix ({error}); fetch it again"
        raise CatalogError(f"{info}: {reason}") from error
    except OSError as error:
        raise CatalogError(f"{info}: cannot be read ({error.strerror or error}); fetch it again") from error
    return pixels


def _pixel_faults(partitions: Iterable[Partition]) -> list[Unreadable]:
    """Return the partitions of a HATS catalogue whose sky another partition holds, too: its rows would come twice."""
    entries: dict[tuple[int, int], set[str]] = defaultdict(set)
    for part in partitions:
        parent = Path(part.path).parent
        entries[part.order, part.pixel].add(str(parent) if parent.name.startswith(HATS_KEYS[2]) else part.path)
    faults = []
    orders = {order for order, _ in entries}
    for (order, pixel), paths in sorted(entries.items()):
        first, *others = sorted(paths)
        faults += [Unreadable(path, f"holds the pixel of {first}; keep one of them", order, pixel) for path in others]
        coarser = ((k, pixel >> 2 * (order - k)) for k in sorted(orders) if k < order)
        if outer := next((at for at in coarser if at in entries), None):
            reason = f"lies inside of {min(entries[outer])}; a HATS catalogue has each part of the sky once: keep one"
            faults.append(Unreadable(first, reason, order, pixel))
    return faults


def _properties(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the key = value lines of the first file that exists, {} if none does."""
    path = next((root / name for name in names if (root / name).is_file()), None)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from error
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}


def select(catalog: Catalog, region: Region) -> Catalog:
    """Return the catalogue with only the partitions that the region's cover touches; no file is read."""
    touches = _touching(region)
    return replace(catalog, partitions=tuple(p for p in catalog.partitions if touches(p.order, p.pixel)))


def _touching(region: Region) -> Callable[[int, int], bool]:
    """Return the function that tells whether a pixel (order, number) touches a region's cover."""
    covers: dict[int, set[int]] = {}

    def touches(order: int, pixel: int) -> bool:
        at = min(order, MAX_COVER_ORDER)
        if at != ANYWHERE and at not in covers:
            covers[at] = set(region.cover(at).tolist())
        return at == ANYWHERE or pixel >> 2 * (order - at) in covers[at]

    return touches


def missing_partitions(catalog: Catalog, region: Region) -> list[int]:
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
        raise CatalogError(f"{path}: cannot be read as Parquet ({error}); {remedy(error)}") from error


def remedy(error: Exception) -> str:
    """Return what to do about a partition that cannot be read."""
    if isinstance(error, PermissionError):
        return "give yourself permission to read it"
    if isinstance(error, FileNotFoundError):
        return "it was there when the catalogue was listed: bring it back, and run the same command again"
    return "fetch it again"


def parquet_schema(path: str) -> pa.Schema:
    return parquet_dataset(path).schema


def source_columns(catalog: Catalog, path: str) -> dict[str, str]:
    """Return our name -> the file's name for the columns it has; `CatalogError` without a required one."""
    renamed, present = dict(catalog.renamed), set(parquet_schema(path).names)
    known = SOURCE_SCHEMA.names if catalog.kind == "prepared" else INPUT_COLUMNS
    names = {name: renamed.get(name, name) for name in known}
    missing = [names[name] for name in CATALOG_COLUMNS if names[name] not in present]
    if missing:
        raise CatalogError(
            f"{path}: no column {', '.join(missing)}; a catalogue needs {', '.join(CATALOG_COLUMNS)}. "
            "A plain list of positions can be given as one table file with ra and dec"
        )
    return {ours: theirs for ours, theirs in names.items() if theirs in present}
