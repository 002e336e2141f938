"""COUNT, CUT, INFER and COMMIT: one function each, the same in plain Python and on Dask.

A strip goes in, a strip comes out. A fault of a tile is data: its sources keep their rows, flagged and
without a class. What can go wrong beyond that is a defect and is raised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputChanged, RowsLost, TileFault
from ..images.composite import BLOCK, CompositeSettings, composite
from ..images.cutouts import Cutter, in_order, mark, parts_of, read_bands
from ..images.records import record_files, replaced_fault
from ..model.photometry import features
from ..model.probabilities import is_distribution
from ..schema import CLASS_SCHEMA, bad_bits, bad_value_counts
from ..sky.healpix import healpix29
from ..sky.tile_wcs import tile_pixels
from ..sources.footers import unchanged
from ..sources.partitions import count_tiles, read_partition
from ..types import (
    CLASSES,
    FAULT_FLAGS,
    NO_TILE,
    UNCOVERED_FLAGS,
    Bool,
    Flag,
    Float16,
    Float32,
    Float64,
    Int32,
    Int64,
    RowRange,
    Strip,
    Tile,
    TilePlan,
)
from .commits import Commit, commit_tile, existing_commit
from .context import RunContext, strips_of, tiles_near

COUNT_SCHEMA = pa.schema(
    [
        ("coadd_id", pa.string()),
        ("partition", pa.int64()),
        ("n", pa.int64()),
        ("nbytes", pa.int64()),
        ("footer", pa.string()),
    ]
)

TILE_ATTEMPTS = 2
"""Times that a tile is done whose files change meanwhile, or whose workers die, before it is quarantined."""

STAGES = ("read", "cut", "infer", "commit")
"""Where time is spent; `cut` is cutting and compositing, block by block."""


@dataclass(frozen=True)
class Timing:
    """Where a piece of work spent its seconds, and the tile bytes it read of how many."""

    stage: str
    seconds: float
    bytes_read: int = 0
    bytes_of_tile: int = 0


@dataclass(frozen=True)
class CutStrip:
    """Composites of a strip on their way to the network: `images` (N, C, S, S) float16, NaN = missing.

    `photometry` (N, F) float32 are the features of the same sources, NaN = unknown, if the model takes any. With a
    `fault` there is neither (None) and each source carries the fault's flag. `source_id` says whose rows they are:
    rows are joined by name, never by place. `tile` has the files that were read; None where the tile cannot be opened.
    """

    strip: Strip
    source_id: pa.Array
    images: Float16 | None
    photometry: Float32 | None
    flags: Int32
    valid_frac: Float32
    fault: TileFault | None
    tile: Tile | None
    timings: tuple[Timing, ...]

    def __sizeof__(self) -> int:
        """Return the bytes of the images: Dask asks, to know what its workers hold."""
        return object.__sizeof__(self) + (0 if self.images is None else self.images.nbytes)


@dataclass(frozen=True)
class StripResult:
    """What is known of each source of a strip: `probabilities` (N, 3) float32, NaN where there is no class."""

    strip: Strip
    source_id: pa.Array
    probabilities: Float32
    flags: Int32
    valid_frac: Float32
    fault: TileFault | None
    tile: Tile | None
    timings: tuple[Timing, ...]


def count_partition(context: RunContext, partition: int) -> pa.Table:
    """Return the sources of a partition by tile, with the partition's digest (`COUNT_SCHEMA`)."""
    with unchanged(context.sources.partitions[partition].path) as digest:
        counts = count_tiles(context.sources, partition, context.region, partial(tiles_near, context, partition))
    columns = {"nbytes": pa.array([digest.nbytes] * len(counts), pa.int64()), "footer": [digest.footer] * len(counts)}
    return pa.table({name: counts[name] for name in counts.column_names} | columns, schema=COUNT_SCHEMA)


def cut_strip(context: RunContext, strip: Strip) -> CutStrip:
    """Return the composites of a strip, each band's rows read once."""
    began = time.perf_counter()
    try:
        tile = open_tile(
            context, strip.tile, verify=strip.start == 0
        )  # once a tile: a fault of one strip is its tile's
        sources = tile_sources(context, strip.tile, tile).slice(strip.start, strip.stop - strip.start)
        x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
        opened = time.perf_counter() - began
        images, flags, valid_frac, read = cut_image_sets(context, tile, x, y)
    except TileFault as fault:
        return faulty_strip(context, strip, fault, Timing("read", time.perf_counter() - began))
    wanted = context.bundle.photometry
    photometry = features(sources, wanted.features) if wanted else None
    timings = (
        replace(read, seconds=opened + read.seconds, bytes_of_tile=tile.nbytes if strip.start == 0 else 0),
        Timing("cut", time.perf_counter() - began - opened - read.seconds),
    )
    return CutStrip(strip, ids_of(sources), images, photometry, flags, valid_frac, None, tile, timings)


def cut_image_sets(context: RunContext, tile: Tile, x: Float64, y: Float64) -> tuple[Float16, Int32, Float32, Timing]:
    """Return composites, flags and valid fractions of sources, each from the image set that covers it best.

    The last element is the time and the bytes of reading. One image set is in memory at a time.
    """
    size_px, settings = context.bundle.size_px, context.bundle.composite
    results, seconds, bytes_read = [], 0.0, 0
    parts = parts_of(tile, x, y, size_px)
    for part in parts:
        began = time.perf_counter()
        rows = read_bands(context.archive, part.tile, part.y, size_px)
        seconds += time.perf_counter() - began
        bytes_read += sum(band.pixels.nbytes for band in rows)
        results.append(cut_and_composite(rows, part.tile, part.x, part.y, size_px, settings))
    images, flags, valid_frac = results[0] if len(parts) == 1 else in_order(parts, results)
    return images, flags, valid_frac, Timing("read", seconds, bytes_read)


def cut_and_composite(
    rows: Sequence[RowRange], tile: Tile, x: Float64, y: Float64, size_px: int, settings: CompositeSettings
) -> tuple[Float16, Int32, Float32]:
    """Return composites (N, B, S, S), flags (N,) and valid fractions (N,) of sources, cut `BLOCK` at a time.

    Sources must be in the order of their pixel rows: then a block's pixels come once from memory, and its cutouts
    never go there.
    """
    cutter = Cutter(rows, tile, x, y, size_px)
    images = np.empty((len(x), len(tile.bands), size_px, size_px), np.float16)
    pixels = np.empty((BLOCK, *images.shape[1:]), np.float32)
    for start in range(0, len(x), BLOCK):
        block = slice(start, min(start + BLOCK, len(x)))
        cut = pixels[: block.stop - start]
        cutter.cut(block, cut)
        composite(cut, tile.zero_point_mag, settings, images[block])
    return images, *cutter.describe()


def faulty_strip(context: RunContext, strip: Strip, fault: TileFault, timing: Timing) -> CutStrip:
    """Return a strip without images, each source flagged with the fault of its tile."""
    uncovered = strip.tile.coadd_id == NO_TILE
    flag = UNCOVERED_FLAGS if uncovered else FAULT_FLAGS[fault.kind]
    n = strip.stop - strip.start
    source_id = ids_of(tile_sources(context, strip.tile).slice(strip.start, n))
    flags, valid_frac = np.full(n, int(flag), np.int32), np.zeros(n, np.float32)
    return CutStrip(strip, source_id, None, None, flags, valid_frac, None if uncovered else fault, None, (timing,))


def infer_strip(context: RunContext, composites: CutStrip) -> StripResult:
    """Return class probabilities for a strip; NaN for sources without an image, or where the model gives none."""
    began = time.perf_counter()
    flags = composites.flags
    probabilities = np.full((len(flags), len(CLASSES)), np.nan, dtype=np.float32)
    has_image = (flags & int(Flag.NO_IMAGE)) == 0
    if composites.images is not None and has_image.any():
        chosen = slice(None) if has_image.all() else has_image  # a slice copies nothing
        photometry = None if composites.photometry is None else composites.photometry[chosen]
        probabilities[chosen] = context.classifier.predict(composites.images[chosen], photometry)
        probabilities, flags = without_faults(probabilities, flags, has_image)
    timing = Timing("infer", time.perf_counter() - began)
    return StripResult(
        composites.strip,
        composites.source_id,
        probabilities,
        flags,
        composites.valid_frac,
        composites.fault,
        composites.tile,
        (*composites.timings, timing),
    )


def without_faults(probabilities: Float32, flags: Int32, has_image: Bool) -> tuple[Float32, Int32]:
    """Return probabilities and flags; rows of an image that are no probabilities become NaN, flagged `MODEL_FAULT`."""
    faulty = has_image & ~is_distribution(probabilities)
    if not faulty.any():
        return probabilities, flags
    return np.where(faulty[:, None], np.float32(np.nan), probabilities), flags | mark(faulty, Flag.MODEL_FAULT)


def classify_strip(context: RunContext, strip: Strip) -> StripResult:
    """Return CUT and INFER in one piece of work: no transport between them."""
    return infer_strip(context, cut_strip(context, strip))


def commit_strips(context: RunContext, tile: TilePlan, results: list[StripResult]) -> tuple[Commit, tuple[Timing, ...]]:
    """Return the commit of a tile whose strips are all there, one immutable file claimed once, and all its timings.

    Raises the `TileFault` of a tile whose files changed between two of its strips.
    """
    began = time.perf_counter()
    opened = opened_tile(results)
    fault = next((str(r.fault) for r in results if r.fault), None)
    bad_values = bad_value_counts(bad_bits(tile_sources(context, tile)))
    images = record_files(context.archive, opened) if opened and not fault else {}
    commit = commit_tile(context.folder, tile.coadd_id, class_rows(context, tile, results), fault, bad_values, images)
    timings = [timing for result in results for timing in result.timings]
    return commit, (*timings, Timing("commit", time.perf_counter() - began))


def opened_tile(results: list[StripResult]) -> Tile | None:
    """Return the tile that all strips were cut from; None if none could be opened.

    Raises the `TileFault` of a file that is another one in some of the strips.
    """
    if changed := next((r.fault for r in results if r.fault and r.fault.kind == "changed"), None):
        raise changed
    tiles = [r.tile for r in results if r.tile]
    if other := next((tile for tile in tiles if tile != tiles[0]), None):
        raise replaced_fault(tiles[0], other)
    return tiles[0] if tiles else None


def classify_whole(context: RunContext, tile: TilePlan, strip_sources: int) -> tuple[Commit, tuple[Timing, ...]]:
    """Return the commit of a tile, all its strips done one after the other: nothing but the commit is sent."""
    return commit_strips(context, tile, [classify_strip(context, strip) for strip in strips_of(tile, strip_sources)])


def commit_fault(context: RunContext, tile: TilePlan, reason: str) -> tuple[Commit, tuple[Timing, ...]]:
    """Return the commit of a tile that cannot be classified: all its rows, flagged, without a class.

    If a worker committed the tile before it died or hung, that stands.
    """
    if commit := existing_commit(context.folder, tile.coadd_id):
        return commit, ()
    fault = TileFault(tile.coadd_id, reason)
    cut = faulty_strip(context, Strip(tile, 0, tile.n_sources), fault, Timing("cut", 0.0))
    return commit_strips(context, tile, [infer_strip(context, cut)])


def next_attempt(tile: TilePlan) -> TilePlan:
    """Return a tile to be done again because its files changed."""
    return replace(tile, attempt=tile.attempt + 1)


def kept_changing(fault: TileFault) -> str:
    """Return why a tile is quarantined whose files changed in each attempt."""
    return f"{fault.reason} ({TILE_ATTEMPTS} attempts)"


def class_rows(context: RunContext, tile: TilePlan, results: list[StripResult]) -> pa.Table:
    """Return the rows of a tile in `CLASS_SCHEMA`; `RowsLost` unless each source has exactly one result.

    A fault of one strip is a fault of the tile: what stands in a row does not depend on how strips were cut.
    """
    sources = tile_sources(context, tile)
    faulty = next((r for r in results if r.fault), None)
    place = np.arange(len(sources)) if faulty else places(sources, results, tile)
    probabilities, flags, valid_frac = (
        np.concatenate([getattr(r, name) for r in results])[place] for name in ("probabilities", "flags", "valid_frac")
    )
    if faulty:  # a tile that disappeared meanwhile has strips in two orders: no row is joined by name
        require_rows(tile, len(sources), len(flags), len(flags))
        probabilities, flags, valid_frac = (
            np.full_like(a, v) for a, v in ((probabilities, np.nan), (flags, faulty.flags[0]), (valid_frac, 0))
        )
    columns = {name: sources[name] for name in sources.column_names}
    columns |= class_columns(probabilities)
    columns |= {
        "_healpix_29": healpix29(sources["ra"].to_numpy(), sources["dec"].to_numpy()),
        "flags": flags | mark(bad_bits(sources) != 0, Flag.BAD_VALUE),
        "valid_frac": valid_frac,
        "model_id": pa.array([context.bundle.model_id] * len(sources)),
        "run_id": pa.array([context.run_id] * len(sources)),
    }
    return pa.table({name: columns[name] for name in CLASS_SCHEMA.names}, schema=CLASS_SCHEMA)


def places(sources: pa.Table, results: list[StripResult], tile: TilePlan) -> Int64:
    """Return for each source the place of its result in the concatenated `results`."""
    given = pa.concat_arrays([r.source_id for r in results])
    place = pc.index_in(ids_of(sources), value_set=given)
    require_rows(tile, len(sources), len(given), len(pc.unique(place)) - bool(place.null_count))
    return np.asarray(place.to_numpy(zero_copy_only=False), dtype=np.int64)


def require_rows(tile: TilePlan, read: int, classified: int, distinct: int) -> None:
    """Raise `RowsLost` unless as many sources were read and classified as planned."""
    if {read, classified, distinct} != {tile.n_sources}:
        raise RowsLost(
            f"tile {tile.coadd_id}: {tile.n_sources} sources planned, {read} read, {classified} classified, {distinct} "
            "of them distinct; does the catalogue repeat a source_id?"
        )


def ids_of(sources: pa.Table) -> pa.Array:
    """Return the source ids of a table as one array."""
    return sources["source_id"].combine_chunks()


def class_columns(probabilities: Float32) -> dict[str, pa.Array]:
    """Return the columns class, p_*, margin and entropy (nats) for (N, 3) probabilities; NaN rows become null."""
    known = ~np.isnan(probabilities.sum(axis=1))
    p = np.where(known[:, None], probabilities, 1 / len(CLASSES))
    ranked = np.sort(p, axis=1)
    numbers = {f"p_{name}": p[:, i] for i, name in enumerate(CLASSES)}
    numbers["margin"] = ranked[:, -1] - ranked[:, -2]
    numbers["entropy"] = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1)
    columns = {name: pa.array(v.astype(np.float32), mask=~known) for name, v in numbers.items()}
    columns["class"] = pa.array(np.asarray(CLASSES, dtype=object)[p.argmax(axis=1)], pa.string(), mask=~known)
    return columns


def open_tile(context: RunContext, tile: TilePlan, verify: bool = False) -> Tile:
    """Return the tile of a plan with the bands of the model, its files checked with `verify`; raises `TileFault`."""
    if tile.coadd_id == NO_TILE:
        raise TileFault(NO_TILE, "no tile covers these positions", kind="missing_tile")
    return context.archive.tile(tile.coadd_id, context.bundle.bands, verify or tile.attempt > 1)


def read_unchanged(context: RunContext, partition: int, key: str, coadd_id: str) -> pa.Table:
    """Return the sources of a tile in a partition; `InputChanged` unless the partition is the planned one."""
    partitions = context.sources.partitions
    if partition >= len(partitions):
        raise InputChanged(
            f"{context.catalog} has {len(partitions)} partitions: fewer than when the run was planned: put them back, "
            "and run the same command again"
        )
    with unchanged(partitions[partition].path, key):
        return read_partition(
            context.sources, partition, context.region, coadd_id, partial(tiles_near, context, partition)
        )


@lru_cache(maxsize=8)
def tile_sources(context: RunContext, tile: TilePlan, opened: Tile | None = None) -> pa.Table:
    """Return the sources of a tile, ordered by pixel row on its image so that a strip is one contiguous row range.

    Without an opened tile they are in the order of their names. The order depends on the catalogue and the header of
    the opened tile alone: each worker finds the same one.
    """
    sources = planned_sources(context, tile)
    if opened is None:
        return sources
    _, y = tile_pixels(opened, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    return sources.take(pa.array(np.argsort(y, kind="stable"))).combine_chunks()


@lru_cache(maxsize=8)
def planned_sources(context: RunContext, tile: TilePlan) -> pa.Table:
    """Return the sources of a tile in the order of their names. The cache spares its strips from reading them again."""
    keys = tile.keys or ("",) * len(tile.partitions)
    parts = [read_unchanged(context, i, key, tile.coadd_id) for i, key in zip(tile.partitions, keys, strict=True)]
    sources = pa.concat_tables(parts)
    source_id = sources["source_id"].to_numpy(zero_copy_only=False).astype(str)
    return sources.take(pa.array(np.argsort(source_id, kind="stable"))).combine_chunks()
