"""The bytes of a user's table: regular files only, gunzipped up to a limit, text in UTF-8, and their format."""

from __future__ import annotations

import codecs
import gzip
import io
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from ..errors import CatalogError

MAX_GUNZIPPED_BYTES = 1_000_000_000
"""Most bytes that a gzip file may become: a file of a few MB can hold thousands of times its size."""

HEAD_BYTES = 1 << 20
"""Bytes in which the format and the header of a text table are looked for."""

PIECE_BYTES = 1 << 24

DAMAGE: tuple[type[Exception], ...] = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, NotImplementedError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What the parsers of astropy raise for damaged files, beside errors of their own."""

_MAGIC: Mapping[bytes, str] = {
    b"PAR1": "parquet", b"SIMPLE  =": "fits", b"\x1f\x8b": "gzip",
    b"# %ECSV": "ecsv", b"\\": "ipac", b"|": "ipac",
}  # fmt: skip
_OTHER_FORMATS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive (or an .xlsx, .npz file)", b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz", b"\x28\xb5\x2f\xfd": "compressed with zstd", b"\x89HDF": "HDF5",
    b"SQLite format 3": "an SQLite database", b"\x93NUMPY": "a numpy array", b"ARROW1": "Arrow IPC (Feather)",
    b"PARE": "encrypted Parquet", b"%PDF": "PDF", b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
}  # fmt: skip
_BYTE_ORDER_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@dataclass(frozen=True)
class TableFile:
    """A table file: its format, its first bytes and, where it is not read from `path` itself, its content."""

    path: Path
    format: str
    head: bytes
    content: bytes | None = None

    @property
    def source(self) -> str:
        return f"table {self.path}"

    @property
    def n_bytes(self) -> int:
        """The number of bytes of the content."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    def open(self) -> BinaryIO:
        """Return a stream of the content."""
        return open(self.path, "rb") if self.content is None else io.BytesIO(self.content)

    @contextmanager
    def translate_parser_errors(self, *errors: type[Exception]) -> Iterator[None]:
        """Turn what parsers raise for damaged files, and `errors`, into one `CatalogError`."""
        try:
            yield
        except CatalogError:
            raise
        except DAMAGE + errors as error:
            reason = str(error) or type(error).__name__
            raise CatalogError(
                f"{self.source}: cannot be read as {self.format} ({reason}); the file is damaged or cut short, "
                "fetch or write it again"
            ) from error


def open_table_file(path: Path) -> TableFile:
    """Return a table file, whose format its content tells; `CatalogError` for a file that is no table.

    Gzip files are decompressed up to `MAX_GUNZIPPED_BYTES`, UTF-16 and UTF-32 text becomes UTF-8. Folders, FIFOs and
    devices are refused before anything is opened.
    """
    source = f"table {path}"
    check_regular(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
        content = _gunzip(path) if head.startswith(b"\x1f\x8b") else None
        head = head if content is None else content[:HEAD_BYTES]
        if encoding := _utf_encoding(head):
            content = (path.read_bytes() if content is None else content).decode(encoding).encode()
            head = content[:HEAD_BYTES]
    except OSError as error:
        raise CatalogError(f"{source}: cannot be read ({error.strerror or error})") from error
    except UnicodeError as error:
        raise CatalogError(f"{source}: not valid UTF-16 or UTF-32 ({error}); save it as UTF-8") from error
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise CatalogError(f"{source}: the file is empty")
    file = TableFile(path, _format_of(head, source), head, content)
    _check_size(file)
    return file


def _check_size(file: TableFile) -> None:
    """Raise `CatalogError` for a file larger than memory, unless it is Parquet, of which only some columns are read."""
    memory = psutil.virtual_memory().total
    if file.format != "parquet" and file.n_bytes > memory:
        raise CatalogError(
            f"{file.source}: {file.n_bytes / 1e9:,.0f} GB, more than the memory of this machine "
            f"({memory / 1e9:,.0f} GB); a table is read whole: split it, or write it as Parquet"
        )


def check_regular(path: Path) -> None:
    """Raise `CatalogError` for what is no regular file: a folder, FIFO, device or socket."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CatalogError(f"table {path}: cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        raise CatalogError(f"table {path}: this is a folder, give the table file")
    if not stat.S_ISREG(mode):
        raise CatalogError(f"table {path}: this is a FIFO, device or socket; give a regular file")


def _gunzip(path: Path) -> bytes:
    """Return the decompressed content; `CatalogError` where the gzip is damaged or becomes too large."""
    content = bytearray()
    try:
        with gzip.open(path) as stream:
            while piece := stream.read(PIECE_BYTES):
                content += piece
                if len(content) > MAX_GUNZIPPED_BYTES:
                    raise CatalogError(
                        f"table {path}: it decompresses to more than {MAX_GUNZIPPED_BYTES / 1e9:g} GB, the limit for "
                        "gzip tables; decompress it with gunzip, or write it as Parquet"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"table {path}: damaged gzip ({error}); fetch it again") from error
    return bytes(content)


def _utf_encoding(head: bytes) -> str | None:
    """Return the encoding of text in UTF-16 or UTF-32, with or without a byte order mark, else None."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    start = head[: min(len(head), 256) // 2 * 2]
    odd, even = start[1::2].count(0), start[0::2].count(0)
    if max(odd, even) > len(start) / 4 and min(odd, even) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


def _format_of(head: bytes, source: str) -> str:
    """Return the format of a table's first bytes: "parquet", "fits", ..., "text" for CSV and the like."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for magic, name in _MAGIC.items():
        if start.startswith(magic) and name != "gzip":
            return name
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise CatalogError(f"{source}: this is {name}; give CSV, IPAC, VOTable, FITS, ECSV or Parquet")
    if start.startswith(b"<") and b"VOTABLE" in head:
        return "votable"
    if start.startswith((b"<", b"\x1f\x8b")) or b"\0" in head[:4096]:
        raise CatalogError(f"{source}: its content is none of CSV, IPAC, VOTable, FITS, ECSV or Parquet")
    return "text"
