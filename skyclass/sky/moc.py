"""Multi-Order Coverage maps (IVOA MOC 2.0) as regions: sets of HEALPix cells read from a file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from ..types import Bool, Int64
from .healpix import MAX_ORDER, healpix

_REMEDY = "give a spatial MOC as a FITS, JSON or ASCII file"


@dataclass(frozen=True)
class Moc:
    """A region made of HEALPix cells; `read_moc` reads it from a file.

    A position is inside when its pixel of the MOC's own `order` belongs to the cells. The object carries the cells, so
    that workers need no access to the file. Two MOCs with the same cells are equal, wherever they were read.

    Parameters
    ----------
    path : str
        The file, for messages and for `to_dict`.
    digest : str
        Identity of order and cells: the start of a SHA-256, in hexadecimal.
    order : int
        HEALPix order of the smallest cells, 0 to 29.
    packed : bytes
        The cells: compressed ranges of NESTED pixels of `order`.
    """

    path: str = field(compare=False)
    digest: str
    order: int = field(compare=False)
    packed: bytes = field(compare=False, repr=False)

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        starts, stops = _unpacked(self.packed)
        pixels = healpix(self.order, ra, dec)
        last = np.searchsorted(starts, pixels, side="right") - 1
        return (last >= 0) & (pixels < stops[last])

    def cover(self, order: int) -> Int64:
        starts, stops = _unpacked(self.packed)
        shift = 2 * (self.order - order)
        if shift >= 0:
            return _expanded(starts >> shift, (stops - 1 >> shift) + 1)
        return _expanded(starts << -shift, stops << -shift)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "moc", "path": self.path, "digest": self.digest}


def read_moc(path: str | os.PathLike[str], digest: str = "") -> Moc:
    """Return the region of a MOC file: FITS, JSON or ASCII, recognised by its content.

    Parameters
    ----------
    path : str or path-like
        The file.
    digest : str, optional
        The digest that the cells must have: that of an earlier reading.

    Returns
    -------
    Moc
        The region, which carries the cells: the file may vanish afterwards.

    Raises
    ------
    ConfigError
        The file cannot be read, is no spatial MOC, has no cells, or has another digest.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "field.moc").write_text("3/1 5-6 4/100")
    ...     moc = read_moc(Path(folder, "field.moc"))
    >>> moc.order, moc.cover(3).tolist()
    (4, [1, 5, 6, 25])
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"moc path is {path!r}: it must be the name of a file")
    ranges, order = _read_ranges(path)
    if not len(ranges):
        raise ConfigError(f"MOC file {path} has no cells: it contains no position")
    found = hashlib.sha256(f"{order} ".encode() + ranges.astype("<i8").tobytes()).hexdigest()[:16]
    if digest not in ("", found):
        raise ConfigError(f"MOC file {path} has changed: its digest is {found}, and it was {digest}; restore the file")
    return Moc(os.path.abspath(path), found, order, _packed(ranges))


def _read_ranges(path: str | os.PathLike[str]) -> tuple[Int64, int]:
    """Return the cells of a MOC file as sorted disjoint ranges (n, 2), end excluded, and their order."""
    from mocpy import MOC  # takes 0.6 s, of which most is matplotlib

    try:
        with open(path, "rb") as file:
            content = file.read()
        form = "fits" if content.startswith(b"SIMPLE") else "json" if content.lstrip()[:1] == b"{" else "ascii"
        if form == "fits":
            _check_table_size(content)
        else:
            _check_cells(json.loads(content) if form == "json" else _orders(content.decode()))
        moc = MOC.load(path, format=form)
    except OSError as error:
        if error.strerror:
            raise ConfigError(f"MOC file {path} cannot be read: {error.strerror}") from error
        raise ConfigError(f"{path} is no MOC ({' '.join(str(error).split())}): {_REMEDY}") from error
    except ValueError as error:  # no UTF-8, no JSON, cells that do not exist
        raise ConfigError(f"{path} is no MOC ({error}): {_REMEDY}") from error
    except _rust_panics() as error:
        raise ConfigError(f"{path} is no MOC (its content is damaged: {error}): {_REMEDY}") from error
    return _ranges_of(moc, path), int(moc.max_order)


def _rust_panics() -> tuple[type[BaseException], ...]:
    """Return the exception classes of failed assertions in Rust code, such as that of mocpy.

    A damaged FITS file can fail an assertion in mocpy. The class of the exception derives from `BaseException`, and no
    module exports it: each extension made with pyo3 registers its own when it is imported.
    """
    return tuple(cls for cls in BaseException.__subclasses__() if cls.__module__ == "pyo3_runtime")


def _check_table_size(content: bytes) -> None:
    """Raise `ValueError` for a FITS table that is larger than its file: mocpy ends the process when it allocates it."""
    width, rows = (re.search(rb"NAXIS%d  = +(\d+)" % axis, content) for axis in (1, 2))
    if width and rows and int(width[1]) * int(rows[1]) > len(content):
        raise ValueError(f"its table has {int(rows[1]):,} rows, and the file {len(content):,} bytes")


def _ranges_of(moc: Any, path: str | os.PathLike[str]) -> Int64:
    """Return the cells of a `mocpy.MOC`; raise `ConfigError` where a damaged file gave cells that do not exist."""
    order = int(moc.max_order)
    ranges = np.asarray(moc.to_depth29_ranges, np.uint64).astype(np.int64) >> 2 * (MAX_ORDER - order)
    edges = ranges.ravel()
    if len(edges) and (edges[0] < 0 or edges[-1] > 12 * 4**order or (np.diff(edges) <= 0).any()):
        raise ConfigError(f"{path} is no MOC (it has cells that order {order} does not have): {_REMEDY}")
    return cast(Int64, ranges.reshape(-1, 2))


def _orders(text: str) -> dict[str, list[int]]:
    return {order: [] for order in re.findall(r"(\d+)/", text)}


def _check_cells(cells: Mapping[str, list[int]]) -> None:
    """Raise `ValueError` for orders and cells that do not exist: mocpy drops some of them without an error."""
    for order, pixels in cells.items():
        if not order.isdecimal() or int(order) > MAX_ORDER:
            raise ValueError(f"{order!r} is not an order from 0 to {MAX_ORDER}")
        n_pixels = 12 * 4 ** int(order)
        if not isinstance(pixels, list) or any(type(p) is not int or not 0 <= p < n_pixels for p in pixels):
            raise ValueError(f"order {order} holds other values than cells from 0 to {n_pixels - 1}")


def _packed(ranges: Int64) -> bytes:
    """Return ranges as a few bytes each: a region travels with every task of a run."""
    return zlib.compress(np.diff(ranges.ravel(), prepend=0).astype("<i8").tobytes(), 9)


@lru_cache(maxsize=4)
def _unpacked(packed: bytes) -> tuple[Int64, Int64]:
    """Return the starts and stops of packed ranges."""
    edges = np.cumsum(np.frombuffer(zlib.decompress(packed), "<i8").astype(np.int64))
    return edges[::2], edges[1::2]


def _expanded(starts: Int64, stops: Int64) -> Int64:
    """Return the sorted distinct pixels of ranges, end excluded."""
    counts = stops - starts
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(starts, counts) + offsets)
