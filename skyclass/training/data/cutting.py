"""The cutouts of a training set: whole tiles go to workers, whose shards form one file in a fixed order.

The same code cuts in this process and on a Dask cluster, and both give the same bytes. Tasks carry names and numbers
only: positions and pixels pass through a disk that the workers share with the driver.
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
from ..progress import Progress

STRIP_SOURCES = 2048
"""Cutouts in memory at a time: 45 MB in four bands."""

TASK_SOURCES = 1024
TASK_TILES = 64
"""A task is one tile, or several neighbouring tiles up to these numbers of sources and tiles."""

COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class CutJob:
    """What a worker needs: names and numbers.

    `scratch` is a folder on a shared disk, with the positions and the shards. `session` identifies one build of a
    dataset: a worker does not use an archive that it opened for another one.
    """

    images: str
    bands: tuple[str, ...]
    size_px: int
    scratch: str
    session: str


@dataclass(frozen=True)
class Shard:
    """The result of a task: `row_index` of the rows that were cut, in the order of the shard's pixels."""

    number: int
    n_sources: int
    row_index: Int64
    flags: Int32
    dropped: dict[str, int]
    faults: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class CutResult:
    """The result of all tasks, in the order of the table."""

    row_index: Int64
    flags: Int32
    dropped: dict[str, int]
    faults: list[str]
    images_digest: str
    pixels_digest: str


TileRows = tuple[str, int, int]
"""A tile and its rows `first:last` of the table."""


def plan_tasks(coadd_ids: list[str]) -> list[tuple[TileRows, ...]]:
    """Return the tiles of each task, for the sorted tile of each row: whole tiles, small ones together."""
    changes = (a != b for a, b in zip(coadd_ids[:-1], coadd_ids[1:], strict=True))
    edges = np.flatnonzero([True, *changes, True]).tolist()
    tiles = [(coadd_ids[first], first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
    tasks: list[tuple[TileRows, ...]] = []
    task: list[TileRows] = []
    for tile in tiles:
        if task and (tile[2] - task[0][1] > TASK_SOURCES or len(task) == TASK_TILES):
            tasks.append(tuple(task))
            task = []
        task.append(tile)
    return [*tasks, tuple(task)]


def cut_shard(job: CutJob, number: int, tiles: tuple[TileRows, ...]) -> Shard:
    """Cut some tiles into the file of shard `number`, raw float32, row after row; return what the file holds.

    A tile with a fault contributes no row. A repeated call writes the same file.
    """
    positions = np.load(_positions_path(job), mmap_mode="r")
    row_index, flags, cut_tiles = [np.empty(0, np.int64)], [np.empty(0, np.int32)], []
    dropped: Counter[str] = Counter()
    faults = []
    with replacing(_shard_path(job.scratch, number)) as temp, open(temp, "wb") as file:
        for coadd_id, first, last in tiles:
            start = file.tell()
            try:
                tile = _archive(job.images, job.bands, job.session).tile(coadd_id, job.bands)
                with_pixels, tile_flags = _cut_tile(job, tile, np.array(positions[first:last]), file)
            except TileFault as fault:
                file.seek(start)
                file.truncate()
                dropped[f"tile_{fault.kind}" if fault.kind in ("bad", "changed") else fault.kind] += last - first
                faults.append(str(fault))
                continue
            dropped["no_pixels"] += last - first - len(with_pixels)
            row_index.append(first + with_pixels)
            flags.append(tile_flags)
            cut_tiles.append(tile)
    n_sources = tiles[-1][2] - tiles[0][1]
    drops = {reason: n for reason, n in dropped.items() if n}
    return Shard(
        number, n_sources, np.concatenate(row_index), np.concatenate(flags), drops, tuple(faults), tuple(cut_tiles)
    )


def _cut_tile(job: CutJob, tile: Tile, positions: Float64, file: IO[bytes]) -> tuple[Int64, Int32]:
    """Append the cutouts of one tile to `file`; return index and flags of those that have pixels in all bands."""
    archive = _archive(job.images, job.bands, job.session)
    x, y = tile_pixels(tile, positions[:, 0], positions[:, 1])
    row_index, flags = [], []
    for strip in np.array_split(np.arange(len(x)), -(-len(x) // STRIP_SOURCES)):
        cutouts = cut(archive, tile, x[strip], y[strip], job.size_px)
        has_pixels = (cutouts.flags & int(Flag.NO_IMAGE)) == 0
        file.write(at_atlas_zero_point(cutouts.pixels[has_pixels], tile).tobytes())
        row_index.append(strip[has_pixels])
        flags.append(cutouts.flags[has_pixels])
    return np.concatenate(row_index).astype(np.int64), np.concatenate(flags)


def at_atlas_zero_point(pixels: Float32, tile: Tile) -> Float32:
    """Return pixels at the zero points of Atlas images: unchanged, unless a tile has other zero points."""
    reference = zero_points(tile.bands)
    scaled = pixels if tile.zero_point_mag == reference else pixels * flux_scale(tile.zero_point_mag, reference)
    return scaled.astype("<f4", copy=False)


def zero_points(bands: tuple[str, ...]) -> tuple[float, ...]:
    """Return the zero points of Atlas images in magnitudes."""
    return tuple(ATLAS_ZERO_POINT_MAG[band] for band in bands)


def _positions_path(job: CutJob) -> Path:
    return Path(job.scratch) / "positions.npy"


def _shard_path(scratch: str, number: int) -> Path:
    return Path(scratch) / f"shard-{number:06d}.f32"


@lru_cache(maxsize=4)
def _archive(images: str, bands: tuple[str, ...], session: str) -> AtlasArchive:
    """Return the archive, opened once for each process and session."""
    return open_archive(images, bands)


def cut_all(
    job: CutJob, table: pa.Table, dropped: dict[str, int], path: Path, client: Any, progress: Progress
) -> CutResult:
    """Cut the sources of `table` (sorted by `coadd_id`) into the npy file `path`, here or on a cluster.

    `dropped` counts the sources dropped before, by reason; `progress` gets an event after each task.
    """
    np.save(_positions_path(job), np.column_stack([table[name].to_numpy() for name in ("ra", "dec")]))
    tasks = plan_tasks(table["coadd_id"].to_pylist())
    with _parallel_map(client) as parallel_map:
        shards = parallel_map(cut_shard, [(job, number, tiles) for number, tiles in enumerate(tasks)])
        return _collect(shards, job, path, len(table), dropped, progress)


@contextmanager
def _parallel_map(client: Any) -> Iterator[Callable[..., Iterable[Shard]]]:
    """Yield `starmap`, or a map over the workers of a cluster, which returns shards in any order.

    Errors of Dask become `SkyclassError`.
    """
    if client is None:
        yield starmap
        return
    from ...engine.engine import translate_dask_errors
    from ...engine.window import map_unordered
    from ...engine.workers import await_workers

    await_workers(client)
    try:
        with translate_dask_errors():
            yield partial(map_unordered, client)
    except SkyclassError as error:
        if type(error) is not SkyclassError:  # a subclass has a message of its own
            raise
        raise SkyclassError(
            f"cutting stopped: {error.__cause__ or error}; nothing is written, start it again"
        ) from error


def _collect(
    shards: Iterable[Shard], job: CutJob, path: Path, n_sources: int, dropped: dict[str, int], progress: Progress
) -> CutResult:
    """Append shards to an npy file in the order of their numbers, in whatever order they arrive."""
    drops, n_done, n_cut = Counter(dropped), 0, 0
    faults: list[str] = []
    waiting: dict[int, Shard] = {}
    ordered: list[Shard] = []
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        _write_header(file, job, 0)
        for shard in shards:
            waiting[shard.number] = shard
            n_done, n_cut = n_done + shard.n_sources, n_cut + len(shard.row_index)
            drops.update(shard.dropped)
            faults += shard.faults
            progress(
                {"done": n_done, "total": n_sources, "kept": n_cut, "dropped": dict(drops), "faults": [*shard.faults]}
            )
            while len(ordered) in waiting:
                ordered.append(waiting.pop(len(ordered)))
                _append(file, _shard_path(job.scratch, ordered[-1].number), digest)
        file.seek(0)
        _write_header(file, job, n_cut)
        file.flush()
        os.fsync(file.fileno())
    tiles = sorted(repr(tile) for shard in ordered for tile in shard.tiles)
    return CutResult(
        np.concatenate([np.empty(0, np.int64), *(shard.row_index for shard in ordered)]),
        np.concatenate([np.empty(0, np.int32), *(shard.flags for shard in ordered)]),
        dict(drops),
        sorted(faults),
        hashlib.sha256("\n".join(tiles).encode()).hexdigest()[:16],
        digest.hexdigest()[:16],
    )


def _write_header(file: IO[bytes], job: CutJob, n: int) -> None:
    """Write the npy header of `n` cutouts, whose length does not depend on `n`: numpy reserves room for the rows."""
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
