"""Files of a published class catalogue, and which of their row groups touch a part of the sky."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError
from ..sky.healpix import MAX_ORDER
from ..types import Bool, Int64
from .sql import unreadable


@dataclass(frozen=True, eq=False)
class Footer:
    """Footer of a file with the range of `_healpix_29` of each row group."""

    metadata: pq.FileMetaData
    low: Int64
    high: Int64

    def touched(self, spans: Sequence[Int64]) -> list[int]:
        """Return the row groups that overlap one interval, at least, of every region's spans (n, 2)."""
        hit: Bool = np.ones(len(self.low), bool)
        for span in spans:
            # the first interval that ends at or after a group's low must begin before the group's high
            first = np.searchsorted(span[:, 1], self.low)
            begins = np.append(span[:, 0], np.iinfo(np.int64).max)[first]
            hit &= begins <= self.high
        return np.flatnonzero(hit).tolist()


@lru_cache(maxsize=256)
def read_footer(root: Path, path: str, nbytes: int, sha256: str) -> Footer:
    """Return a file's footer, kept for the next question; the digest tells a catalogue published anew."""
    with open_file(root, path, nbytes) as file:
        metadata = file.metadata
        column = metadata.schema.to_arrow_schema().get_field_index("_healpix_29")
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    low, high = ([getattr(group, end) for group in groups] for end in ("min", "max"))
    return Footer(metadata, np.asarray(low, np.int64), np.asarray(high, np.int64))


@contextmanager
def open_file(root: Path, path: str, nbytes: int, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Give a published file; raise `StoreError` where it is gone, damaged, or of another size than published."""
    try:
        if (size := os.stat(root / path).st_size) != nbytes:
            raise StoreError(
                f"{root / path} has {size:,} bytes and was published with {nbytes:,}: run 'skyclass verify', "
                "then publish the run again"
            )
        with pq.ParquetFile(root / path, metadata=metadata) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise unreadable(root, f"{root / path} cannot be read: {error}") from error


def spans_of(pixels: Int64, order: int) -> Int64:
    """Return sorted disjoint intervals (n, 2) of `_healpix_29`, ends included, for sorted NESTED pixels."""
    breaks = np.flatnonzero(np.diff(pixels) > 1) + 1
    runs = [run for run in np.split(pixels, breaks) if len(run)]
    shift = 2 * (MAX_ORDER - order)
    ends = [(int(run[0]) << shift, (int(run[-1]) + 1 << shift) - 1) for run in runs]
    return np.asarray(ends, np.int64).reshape(len(runs), 2)
