"""Which partitions a run reads: the size of each and the SHA-256 of its Parquet footer.

A footer holds the schema, and the place, size and least and greatest value of every column chunk: another content has
another footer or size. Both are read without the rows.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import CatalogError, InputChanged
from ..regular import open_regular

MAGIC = b"PAR1"
TAIL_BYTES = 8
"""The length of the footer, then `MAGIC`."""


class PartitionDigest(NamedTuple):
    """The content of a partition: its bytes, and the SHA-256 of its footer (of a folder: of those of its files)."""

    nbytes: int
    footer: str

    @property
    def key(self) -> str:
        """The digest as one string, for `TilePlan.keys`."""
        return f"{self.nbytes}-{self.footer[:24]}"


def partition_digest(path: str) -> PartitionDigest:
    """Return the digest of a Parquet file, or of a folder of such files; raise `CatalogError` for any other content."""
    files = [path] if not os.path.isdir(path) else _files_in(path)
    digests = [_file_digest(file, *_stamp(file)) for file in files]
    if len(digests) == 1:
        return digests[0]
    footers = hashlib.sha256("".join(sorted(digest.footer for digest in digests)).encode())
    return PartitionDigest(sum(digest.nbytes for digest in digests), footers.hexdigest())


@contextmanager
def unchanged(path: str, planned: str = "") -> Iterator[PartitionDigest]:
    """Yield the digest of a partition; check that it is unchanged when the block ends.

    Raises `InputChanged` if its key is not the planned one (where given), or if it is another file when the block ends.
    """
    before = partition_digest(path)
    if planned and before.key != planned:
        raise _changed(path)
    try:
        yield before
    except CatalogError as error:  # perhaps because the file was being replaced
        if _digest_or_none(path) != before:
            raise _changed(path) from error
        raise
    if _digest_or_none(path) != before:
        raise _changed(path)


def _digest_or_none(path: str) -> PartitionDigest | None:
    try:
        return partition_digest(path)
    except CatalogError:
        return None


def _changed(path: str) -> InputChanged:
    return InputChanged(
        f"{path} was replaced while the run read the catalogue: its size or Parquet footer is no longer what the plan "
        "was made with. Put the earlier file back and run the same command again, or start a new run in another folder"
    )


def _files_in(folder: str) -> list[str]:
    return sorted(str(p) for p in Path(folder).rglob("*") if p.name[0] not in "._" and p.is_file())


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=1024)
def _file_digest(path: str, nbytes: int, mtime_ns: int, inode: int) -> PartitionDigest:
    # `mtime_ns` and `inode` are only a part of the cache's key: a file replaced under its name is read again.
    try:
        with io.BufferedReader(open_regular(path)) as stream:
            stream.seek(max(0, nbytes - TAIL_BYTES))
            tail = stream.read(TAIL_BYTES)
            length = int.from_bytes(tail[:4], "little")
            if not tail.endswith(MAGIC) or length + TAIL_BYTES > nbytes:
                raise CatalogError(f"{path}: cannot be read as Parquet (no footer at its end); fetch it again")
            stream.seek(nbytes - TAIL_BYTES - length)
            footer = stream.read(length)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from error
    return PartitionDigest(nbytes, hashlib.sha256(footer).hexdigest())
