"""The only place that opens DuckDB: a connection that reads the files of one catalogue and nothing else.

Conditions and queries are text from outside. DuckDB by itself reads every file that the process can read, loads
extensions from the network, and writes files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

MOST_MEMORY_BYTES = 4_000_000_000
"""Above this, or above half of the machine's memory, DuckDB works on disk."""


@contextmanager
def connect(root: Path | None, tmp: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection that may read files below `root` (None: no file) and spills into a private folder in `tmp`.

    A query can read neither other files nor variables of Python, nor write, nor load an extension, nor change that.
    """
    with tempfile.TemporaryDirectory(prefix="skyclass-", dir=tmp) as spill, duckdb.connect() as connection:
        for statement in _settings(root, spill):
            connection.execute(statement)
        yield connection


def literal(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def parquet_scan(paths: list[str]) -> str:
    """Return the SQL of a table over Parquet files; the names of their folders give no columns."""
    return f"read_parquet([{', '.join(map(literal, paths))}], hive_partitioning = false)"


def _settings(root: Path | None, spill: str) -> list[str]:
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    allowed = f"[{literal(f'{root}/')}]" if root else "[]"
    return [
        f"SET memory_limit = '{min(half, MOST_MEMORY_BYTES)}B'",
        f"SET temp_directory = {literal(spill)}",
        "SET python_enable_replacements = false",
        "SET autoinstall_known_extensions = false",
        "SET autoload_known_extensions = false",
        "SET allow_community_extensions = false",
        f"SET allowed_directories = {allowed}",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ]
