"""HATS catalogues: partitions of several HEALPix orders, with properties and a list of partitions beside them."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import CatalogError
from .layouts import Layout, Listing
from .listing import (
    ANYWHERE,
    PARQUET,
    Unreadable,
    entry_fault,
    folder_entries,
    holds,
    is_partition_like,
    listing_fault,
    numbered_folders,
    row_files,
)
from .source_table import Partition

HATS = Layout("hats")
HATS_KEYS = ("Norder=", "Dir=", "Npix=")
HATS_PROPERTIES = ("hats.properties", "properties")


def list_hats(path: Path) -> Listing | None:
    """Return the HATS catalogue in a folder, its `dataset/`, or its collection's primary table, or None."""
    primary = _read_properties(path, ("collection.properties",)).get("hats_primary_table_url")
    if primary:
        return list_hats(path / primary)
    properties = _read_properties(path, HATS_PROPERTIES)
    product = properties.get("dataproduct_type", "object")
    if product not in ("object", "source"):
        raise CatalogError(f"catalogue {path}: a HATS '{product}' lists no sources; give its main catalogue")
    root = next((root for root in (path / "dataset", path) if holds(root, HATS_KEYS[0])), None)
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
    return Listing(HATS, str(path), ordered, faults, renamed)


def _hats_partitions(root: Path, suffix: str) -> tuple[list[Partition], list[Unreadable]]:
    """Return the partitions that the folders of a HATS catalogue hold, and the entries that cannot be read."""
    orders, faults = numbered_folders(root, HATS_KEYS[0])
    partitions: list[Partition] = []
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
    known_pixels = {(fault.order, fault.pixel) for fault in known}
    faults = []
    for order, pixel in sorted(at for at, n in Counter(listed).items() if n > 1):
        faults.append(Unreadable(str(info), f"names Norder={order}, Npix={pixel} twice; fetch it again", order, pixel))
    for order, pixel in sorted(set(listed) - paths.keys() - known_pixels):
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
    """Return the partitions of a HATS catalogue whose pixel another partition covers too: rows would be read twice."""
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


def _read_properties(root: Path, file_names: Sequence[str]) -> dict[str, str]:
    """Return the key = value lines of the first of the files that exists in `root`, {} if none exists."""
    path = next((root / name for name in file_names if (root / name).is_file()), None)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from error
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}
