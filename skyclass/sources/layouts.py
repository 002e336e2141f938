"""Layouts of catalogues in folders, each listed by a function that opens no file with rows.

    hive      {root}/healpix_k0=K0/healpix_k5=K5/*.parquet     the files of one NESTED order-5 pixel (IRSA)
    hats      {root}/[dataset/]Norder=K/Dir=D/Npix=N.parquet   or a folder Npix=N/, or another suffix: `hats_layout`
    prepared  a folder of Parquet of exactly `source_schema`: what a run writes once a table has its tiles

Sidecars such as `_metadata` (0.6 GB at IRSA) are never opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ..schema import INPUT_COLUMNS, SOURCE_SCHEMA, source_schema
from .listing import ANYWHERE, Unreadable, holds, numbered_folders, row_files
from .parquet import parquet_schema
from .source_table import Partition

HIVE_PREFIXES = (
    "", "wise-allwise.parquet", "healpix_k5/wise-allwise.parquet",
    "wise/allwise/catalogs/p3as_psd/healpix_k5/wise-allwise.parquet",
)  # fmt: skip
HIVE_KEYS = ("healpix_k0=", "healpix_k5=")
HIVE_ORDER = 5


class Layout(NamedTuple):
    """What reading needs to know of a layout."""

    name: str
    is_prepared: bool = False
    """Whether a run wrote the files from a user's table: exactly `SOURCE_SCHEMA`, with the tile of each source."""
    complete_order: int | None = None
    """HEALPix order of which a complete catalogue has every pixel; None where orders follow the density of sources."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `SOURCE_SCHEMA` that a file may have."""
        return tuple(SOURCE_SCHEMA.names) if self.is_prepared else INPUT_COLUMNS


HIVE = Layout("hive", complete_order=HIVE_ORDER)
PREPARED = Layout("prepared", is_prepared=True)


class Listing(NamedTuple):
    """A catalogue as its folders are, and the entries that should hold rows and cannot be read.

    `renamed` maps names of `SOURCE_SCHEMA` to those in the files, where they differ.
    """

    layout: Layout
    root: str
    partitions: tuple[Partition, ...]
    faults: list[Unreadable]
    renamed: tuple[tuple[str, str], ...] = ()


def list_prepared(root: Path) -> Listing | None:
    """Return a folder of Parquet files that have exactly `source_schema` of any further columns, or None."""
    files, faults = row_files(root, (".parquet",))
    if not files or not all(_is_prepared(parquet_schema(path)) for path in files):
        return None
    return Listing(PREPARED, str(root), tuple(Partition(path, ANYWHERE, 0) for path in files), faults)


def _is_prepared(schema: pa.Schema) -> bool:
    return bool(schema.equals(source_schema(schema.names[len(SOURCE_SCHEMA) :])))


def list_hive(path: Path) -> Listing | None:
    """Return the IRSA catalogue at or below a folder, or None. The pixel is that of the inner folder."""
    root = next((path / prefix for prefix in HIVE_PREFIXES if holds(path / prefix, HIVE_KEYS[0])), None)
    if root is None:
        return None
    outer, faults = numbered_folders(root, HIVE_KEYS[0])
    partitions: list[Partition] = []
    for folder, k0 in outer:
        inner, outer_faults = numbered_folders(folder, HIVE_KEYS[1], 0, k0)
        faults += outer_faults
        for leaf, pixel in inner:
            files, leaf_faults = row_files(leaf, (".parquet",), HIVE_ORDER, pixel)
            partitions += [Partition(file, HIVE_ORDER, pixel) for file in files]
            faults += leaf_faults
            if pixel >> 2 * HIVE_ORDER != k0:
                reason = f"belongs in {HIVE_KEYS[0]}{pixel >> 2 * HIVE_ORDER}; move it there, or remove a copy"
                faults.append(Unreadable(str(leaf), reason, HIVE_ORDER, pixel))
    partitions.sort(key=lambda part: (part.pixel, part.path))
    return Listing(HIVE, str(root), tuple(partitions), faults)
