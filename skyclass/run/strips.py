"""What the stages of a strip return, and the time of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import TileFault
from ..types import Flag, Float16, Float32, Int32, Strip, Tile

TIMED_STAGES = ("read", "cut", "infer", "commit")
"""Stages that are timed. `cut` includes the composites, which are made block by block."""


class SourceValues(NamedTuple):
    """The values of N sources that become columns, (N,) each.

    `flags` int32 of `Flag`, `valid_frac`, `w1_aperture` and `outlier` float32. The last two are NaN where unknown.
    """

    flags: Int32
    valid_frac: Float32
    w1_aperture: Float32
    outlier: Float32

    @classmethod
    def without_image(cls, n: int, flags: Flag | int) -> SourceValues:
        """Return the values of `n` sources that have no image, all with the same flags."""
        return cls(np.full(n, int(flags), np.int32), np.zeros(n, np.float32), unknown(n), unknown(n))


def unknown(n: int) -> Float32:
    """Return `n` values that are not known, NaN."""
    return np.full(n, np.nan, np.float32)


@dataclass(frozen=True)
class Timing:
    """The seconds of a stage, the pixel bytes that it read, and the pixel bytes of the tile."""

    stage: str
    seconds: float
    bytes_read: int = 0
    bytes_of_tile: int = 0


@dataclass(frozen=True)
class CutStrip:
    """The composites of a strip: `images` (N, C, S, S) float16, NaN = missing.

    `photometry` (N, F) float32 are the features of the same sources, NaN = unknown, if the model needs any. With a
    `fault`, `images` and `photometry` are None, and each source has the flag of the fault. Rows are joined by
    `source_id`, never by index. `tile` has the files that were read; it is None where the tile cannot be opened. `w1`
    (N,) is W1 of the catalogue or of the aperture, NaN = unknown; None without images.
    """

    strip: Strip
    source_id: pa.Array
    images: Float16 | None
    photometry: Float32 | None
    values: SourceValues
    fault: TileFault | None
    tile: Tile | None
    timings: tuple[Timing, ...]
    w1: Float32 | None = None

    def __sizeof__(self) -> int:
        """Return the size in bytes, for Dask's measure of the memory of a worker."""
        return object.__sizeof__(self) + (0 if self.images is None else self.images.nbytes)


@dataclass(frozen=True)
class StripResult:
    """The result of a strip: `probabilities` (N, K) float32, NaN for sources without a class."""

    strip: Strip
    source_id: pa.Array
    probabilities: Float32
    values: SourceValues
    fault: TileFault | None
    tile: Tile | None
    timings: tuple[Timing, ...]
