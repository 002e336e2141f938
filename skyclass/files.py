"""Durable files: written whole or not at all, claimed at most once, digested."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import NotPublished, StoreError
from .regular import open_regular
from .schema import REPEATING, ROW_GROUP_ROWS, SORT_KEYS
from .types import Json

_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, then run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable, or choose another"),
}


NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems answer to what they cannot do."""


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` that names `path`, the reason and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        way_out = _WAYS_OUT.get(error.errno or 0, "correct that, then run the same command again")
        raise StoreError(f"cannot write {path}: {reason}: {way_out}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it; raise `OSError`, also where the file exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: without it a rename may be lost with the power.

    Some network file systems cannot do that for a folder, and write names at once or by their own rules.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """Return a temporary name in the folder of `path`, hidden and with its ending: links between folders may fail."""
    return path.parent / f".{uuid.uuid4().hex}.{path.name}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what the block writes there takes its place, whole or not at all.

    The ending of the name is kept, for writers that go by it. Raises `StoreError` on a full disk.
    """
    temp = beside(path)
    try:
        with translate_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp
            os.replace(temp, path)
            sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably, replacing what was there."""
    with replacing(path) as temp:
        write_durably(temp, data)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically and durably; keys keep their order."""
    write_bytes(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def read_whole(path: Path) -> bytes:
    """Return the bytes of a regular file; raise `FileNotFoundError` where it is missing.

    `StoreError` for one that cannot be read: a pipe or a device is not waited for.
    """
    try:
        with BufferedReader(open_regular(path)) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> Json:
    """Return the JSON object in a file; raise `StoreError` where it is missing or damaged."""
    try:
        values = json.loads(read_whole(path))
    except FileNotFoundError as error:
        raise NotPublished(f"{path} does not exist: check the folder, or classify first") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} holds {type(values).__name__}, not an object: it is damaged")
    return values


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; reads it in pieces."""
    with BufferedReader(open_regular(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parquet_bytes(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None, store_schema: bool = True) -> bytes:
    """Return a Parquet file as bytes, the same for the same rows: zstd, no clock, small row groups.

    Without Arrow's own schema in the file (`store_schema`), readers take `metadata` for the metadata of the schema.
    """
    schema = table.schema.remove_metadata()
    sink = pa.BufferOutputStream()
    options: Json = {"use_dictionary": [name for name in REPEATING if name in schema.names]}
    options |= {"sorting_columns": _sorting(schema), "store_schema": store_schema}
    with pq.ParquetWriter(sink, schema, compression="zstd", **options) as writer:
        writer.write_table(table.cast(schema).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        # as metadata of the schema it would stand in the footer twice, once of it in base64
        writer.add_key_value_metadata(dict(metadata or {}))
    return cast(bytes, sink.getvalue().to_pybytes())


def _sorting(schema: pa.Schema) -> Any:
    if not set(SORT_KEYS) <= set(schema.names):
        return None
    return pq.SortingColumn.from_ordering(schema, [(key, "ascending") for key in SORT_KEYS])


def unfinished(folder: Path) -> list[Path]:
    """Return the files of a folder that a kill left under the temporary names of `replacing`."""
    return [path for path in folder.glob(".*") if re.match(r"\.[0-9a-f]{32}\.", path.name)]


def remove(path: Path) -> int:
    """Remove a file or folder and return how many bytes it had."""
    is_folder = path.is_dir() and not path.is_symlink()
    files = [p for p in path.rglob("*") if p.is_file()] if is_folder else [path]
    nbytes = sum(p.lstat().st_size for p in files)
    with translate_write_errors(path):
        shutil.rmtree(path) if is_folder else path.unlink()
    return nbytes


def content_digest(table: pa.Table) -> str:
    """Return a hash of the content of a table. The division into chunks does not change it."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
