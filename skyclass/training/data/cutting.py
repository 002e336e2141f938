"""Cutting a training set: whole tiles go to workers, their shards come back into one file in a fixed order.

The same code cuts in this process and on a Dask cluster, and both give the same bytes. Workers know names and numbers
only; positions and pixels go by the disk that they share with the driver.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import starmap
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ...errors import SkyclassError, TileFault
from ...files import replacing
from ...images.archive import AtlasArchive, open_archive
from ...images.composite import ATLAS_ZERO_POINT_MAG, flux_scale
from ...images.cutouts import cut
from ...sky.tile_wcs import tile_pixels
from ...types import Flag, Float32, Float64, Int32, Int64, Tile

STRIP_SOURCES = 2048
"""Cutouts in memory at a time: 45 MB in four bands."""

TASK_SOURCES = 1024
TASK_TILES = 64
"""A piece of work is one tile, or neighbours of it up to so many sources and tiles."""

COPY_BYTES = 8 << 20

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class CutJob:
    """What a worker must know: names and numbers.

    `scratch` is a folder on a disk that all share: it holds the positions and takes the shards. `session` names one
    building of a set: what a worker keeps open from an earlier one is not used again.
    """

    images: str
    bands: tuple[str, ...]
    size_px: int
    scratch: str
    session: str


@dataclass(frozen=True)
class Shard:
    """What came of a piece of work: positions of the rows that were kept, in the order of the shard's pixels."""

    number: int
    n_sources: int
    kept: Int64
    flags: Int32
    dropped: dict[str, int]
    faults: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Harvest:
    """What came of all of them, in the order of the table."""

    kept: Int64
    flags: Int32
    dropped: dict[str, int]
    faults: list[str]
    images_digest: str
    pixels_digest: str


Share = tuple[str, int, int]
"""A tile and its rows `first:last` of the table."""


def shares_of(names: list[str]) -> list[tuple[Share, ...]]:
    """Return pieces of work for the tile of each row, sorted: whole tiles, small ones together."""
    edges = np.flatnonzero([True, *(a != b for a, b in zip(names[:-1], names[1:], strict=True)), True]).tolist()
    tiles = [(names[first], first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
    pieces: list[tuple[Share, ...]] = []
    piece: list[Share] = []
    for tile in tiles:
        if piece and (tile[2] - piece[0][1] > TASK_SOURCES or len(piece) == TASK_TILES):
            pieces.append(tuple(piece))
            piece = []
        piece.append(tile)
    return [*pieces, tuple(piece)]


def cut_shard(job: CutJob, number: int, shares: tuple[Share, ...]) -> Shard:
    """Return what came of cutting some tiles into the file of shard `number`: raw float32, row after row.

    A tile that breaks leaves none of its rows. Doing it twice gives the same file.
    """
    positions = np.load(_positions_path(job), mmap_mode="r")
    kept, flags, tiles = [np.empty(0, np.int64)], [np.empty(0, np.int32)], []
    dropped: Counter[str] = Counter()
    faults = []
    with replacing(_shard_path(job.scratch, number)) as temp, open(temp, "wb") as file:
        for coadd_id, first, last in shares:
            start = file.tell()
            try:
                tile = _archive(job.images, job.bands, job.session).tile(coadd_id, job.bands)
                good, marks = _cut_tile(job, tile, np.array(positions[first:last]), file)
            except TileFault as fault:
                file.seek(start)
                file.truncate()
                dropped[f"tile_{fault.kind}" if fault.kind in ("bad", "changed") else fault.kind] += last - first
                faults.append(str(fault))
                continue
            dropped["no_pixels"] += last - first - len(good)
            kept.append(first + good)
            flags.append(marks)
            tiles.append(tile)
    n = shares[-1][2] - shares[0][1]
    lost = {reason: n for reason, n in dropped.items() if n}
    return Shard(number, n, np.concatenate(kept), np.concatenate(flags), lost, tuple(faults), tuple(tiles))


def _cut_tile(job: CutJob, tile: Tile, positions: Float64, file: IO[bytes]) -> tuple[Int64, Int32]:
    """Append the cutouts of one tile to `file`; return the places and flags of those that have pixels in all bands."""
    archive = _archive(job.images, job.bands, job.session)
    x, y = tile_pixels(tile, positions[:, 0], positions[:, 1])
    kept, flags = [], []
    for part in np.array_split(np.arange(len(x)), -(-len(x) // STRIP_SOURCES)):
        batch = cut(archive, tile, x[part], y[part], job.size_px)
        good = (batch.flags & int(Flag.NO_IMAGE)) == 0
        file.write(_at_reference(batch.pixels[good], tile).tobytes())
        kept.append(part[good])
        flags.append(batch.flags[good])
    return np.concatenate(kept).astype(np.int64), np.concatenate(flags)


def _at_reference(pixels: Float32, tile: Tile) -> Float32:
    """Return pixels at the zero points of Atlas images: untouched, unless a tile has others."""
    reference = zero_points(tile.bands)
    scaled = pixels if tile.zero_point_mag == reference else pixels * flux_scale(tile.zero_point_mag, reference)
    return scaled.astype("<f4", copy=False)


def zero_points(bands: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(ATLAS_ZERO_POINT_MAG[band] for band in bands)


def _positions_path(job: CutJob) -> Path:
    return Path(job.scratch) / "positions.npy"


def _shard_path(scratch: str, number: int) -> Path:
    return Path(scratch) / f"shard-{number:06d}.f32"


@lru_cache(maxsize=4)
def _archive(images: str, bands: tuple[str, ...], session: str) -> AtlasArchive:
    """Return the archive, opened once a process and session."""
    return open_archive(images, bands)


def cut_all(job: CutJob, table: pa.Table, dropped: dict[str, int], path: Path, client: Any, tell: Progress) -> Harvest:
    """Cut the sources of `table` (sorted by `coadd_id`) into the npy file `path`, here or on a cluster.

    `dropped` counts what was left out before, by reason; `tell` hears of each piece of work.
    """
    np.save(_positions_path(job), np.column_stack([table[name].to_numpy() for name in ("ra", "dec")]))
    pieces = shares_of(table["coadd_id"].to_pylist())
    with _workers(client) as each:
        shards = each(cut_shard, [(job, number, shares) for number, shares in enumerate(pieces)])
        return _collect(shards, job, path, len(table), dropped, tell)


@contextmanager
def _workers(client: Any) -> Iterator[Callable[..., Iterable[Shard]]]:
    """Give what does a function of each item: `starmap`, or the workers of a cluster, whose faults it words."""
    if client is None:
        yield starmap
        return
    from ...engine.engine import dask_faults, spread
    from ...engine.workers import await_workers

    await_workers(client)
    try:
        with dask_faults():
            yield partial(spread, client)
    except SkyclassError as error:
        if type(error) is not SkyclassError:  # a fault with a name of its own
            raise
        raise SkyclassError(
            f"cutting stopped: {error.__cause__ or error}; nothing is written, start it again"
        ) from error


def _collect(
    shards: Iterable[Shard], job: CutJob, path: Path, n_sources: int, dropped: dict[str, int], tell: Progress
) -> Harvest:
    """Append shards to an npy file in the order of their numbers, whatever order they come in."""
    lost, done, n_kept = Counter(dropped), 0, 0
    faults: list[str] = []
    early: dict[int, Shard] = {}
    ordered: list[Shard] = []
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        _write_header(file, job, 0)
        for shard in shards:
            early[shard.number] = shard
            done, n_kept = done + shard.n_sources, n_kept + len(shard.kept)
            lost.update(shard.dropped)
            faults += shard.faults
            tell({"done": done, "total": n_sources, "kept": n_kept, "dropped": dict(lost), "faults": [*shard.faults]})
            while len(ordered) in early:
                ordered.append(early.pop(len(ordered)))
                _append(file, _shard_path(job.scratch, ordered[-1].number), digest)
        file.seek(0)
        _write_header(file, job, n_kept)
        file.flush()
        os.fsync(file.fileno())
    tiles = sorted(repr(tile) for shard in ordered for tile in shard.tiles)
    return Harvest(
        np.concatenate([np.empty(0, np.int64), *(s.kept for s in ordered)]),
        np.concatenate([np.empty(0, np.int32), *(s.flags for s in ordered)]),
        dict(lost),
        sorted(faults),
        hashlib.sha256("\n".join(tiles).encode()).hexdigest()[:16],
        digest.hexdigest()[:16],
    )


def _write_header(file: IO[bytes], job: CutJob, n: int) -> None:
    """Write the npy header of `n` cutouts; numpy leaves room for the rows to grow, so its length is always the same."""
    shape = (n, len(job.bands), job.size_px, job.size_px)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _append(file: IO[bytes], shard: Path, digest: Any) -> None:
    """Move a shard to the end of `file`."""
    try:
        source = open(shard, "rb")
    except FileNotFoundError as error:
        raise SkyclassError(
            f"{shard} was written by a worker and is not here: the dataset's folder must be on a disk that all "
            "workers share"
        ) from error
    with source:
        while block := source.read(COPY_BYTES):
            digest.update(block)
            file.write(block)
    shard.unlink()
