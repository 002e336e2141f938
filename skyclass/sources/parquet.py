"""Parquet files of a catalogue: opened without columns from their paths, faults as `CatalogError`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds

from ..errors import CatalogError


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
