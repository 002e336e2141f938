"""COUNT, CUT, INFER and COMMIT: the functions that the plain pipeline calls and that the engine runs on workers.

A fault of a tile is data: its sources keep their rows, with a flag and without a class. Any other fault is raised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from ..errors import TileFault
from ..images.aperture import centre_flags, measure_centres
from ..images.composite import BLOCK, CompositeSettings, border_levels, composite
from ..images.cutouts import Cutter, flag_where, group_by_image_set, in_order, read_bands
from ..images.records import record_files, replaced_fault
from ..model.photometry import features
from ..model.probabilities import is_distribution
from ..schema import bad_bits, bad_value_counts
from ..sky.tile_wcs import tile_pixels
from ..sources.by_tile import count_tiles
from ..sources.footers import unchanged
from ..types import (
    FAULT_FLAGS,
    NO_TILE,
    UNCOVERED_FLAGS,
    Bool,
    Flag,
    Float16,
    Float32,
    Float64,
    Int32,
    RowRange,
    Strip,
    Tile,
    TilePlan,
)
from .class_rows import class_rows, known_w1
from .commits import Commit, commit_tile, existing_commit
from .context import RunContext, strips_of, tiles_near
from .strips import CutStrip, SourceValues, StripResult, Timing, unknown
from .tile_sources import ids_of, tile_sources

PARTITION_COUNTS = pa.schema(
    [
        ("coadd_id", pa.string()),
        ("partition", pa.int64()),
        ("n", pa.int64()),
        ("nbytes", pa.int64()),
        ("footer", pa.string()),
    ]
)
"""Schema of the number of sources in a partition by tile, with the digest of the partition."""

TILE_ATTEMPTS = 2
"""Attempts at a tile whose files change, or whose workers die, before it is quarantined."""


def count_partition(context: RunContext, partition: int) -> pa.Table:
    """Return the number of sources of a partition by tile, with the digest of the partition (`PARTITION_COUNTS`)."""
    with unchanged(context.sources.partitions[partition].path) as digest:
        counts = count_tiles(context.sources, partition, partial(tiles_near, context, partition))
    columns = {"nbytes": pa.array([digest.nbytes] * len(counts), pa.int64()), "footer": [digest.footer] * len(counts)}
    return pa.table({name: counts[name] for name in counts.column_names} | columns, schema=PARTITION_COUNTS)


def cut_strip(context: RunContext, strip: Strip) -> CutStrip:
    """Return the composites of a strip; the pixel rows of each band are read once."""
    began = time.perf_counter()
    is_first = strip.start == 0
    try:
        # Only the first strip verifies the files: a fault of one strip is a fault of the whole tile.
        tile = open_tile(context, strip.tile, verify=is_first)
        sources = tile_sources(context, strip.tile, tile).slice(strip.start, strip.stop - strip.start)
        x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
        opened = time.perf_counter() - began
        images, values, read = cut_image_sets(context, tile, x, y)
    except TileFault as fault:
        return faulty_strip(context, strip, fault, Timing("read", time.perf_counter() - began))
    settings = context.bundle.photometry
    photometry = features(sources, settings.features) if settings else None
    timings = (
        replace(read, seconds=opened + read.seconds, bytes_of_tile=tile.nbytes if is_first else 0),
        Timing("cut", time.perf_counter() - began - opened - read.seconds),
    )
    w1 = known_w1(sources, values)
    return CutStrip(strip, ids_of(sources), images, photometry, values, None, tile, timings, w1)


def open_tile(context: RunContext, tile: TilePlan, verify: bool = False) -> Tile:
    """Return the tile of a plan in the bands of the model; `verify` checks its files. Raises `TileFault`."""
    if tile.coadd_id == NO_TILE:
        raise TileFault(NO_TILE, "no tile covers these positions", kind="missing_tile")
    return context.archive.tile(tile.coadd_id, context.bundle.bands, verify or tile.n_file_changes > 0)


def cut_image_sets(context: RunContext, tile: Tile, x: Float64, y: Float64) -> tuple[Float16, SourceValues, Timing]:
    """Return composites and values of sources, each from the image set that covers it best.

    The last element is the timing of reading. Only one image set is in memory at a time.
    """
    size_px, settings = context.bundle.size_px, context.bundle.composite
    results, seconds, bytes_read = [], 0.0, 0
    groups = group_by_image_set(tile, x, y, size_px)
    for group in groups:
        began = time.perf_counter()
        rows = read_bands(context.archive, group.image_set, group.y, size_px)
        seconds += time.perf_counter() - began
        bytes_read += sum(band.pixels.nbytes for band in rows)
        images, values = cut_and_composite(rows, group.image_set, group.x, group.y, size_px, settings)
        results.append((images, *values))
    images, *arrays = results[0] if len(groups) == 1 else in_order(groups, results)
    return images, SourceValues(*arrays), Timing("read", seconds, bytes_read)


def cut_and_composite(
    rows: Sequence[RowRange], tile: Tile, x: Float64, y: Float64, size_px: int, settings: CompositeSettings
) -> tuple[Float16, SourceValues]:
    """Return composites (N, B, S, S) and values of sources, cut `BLOCK` at a time.

    Sources must be in the order of their pixel rows. Then each block reads its pixels from memory once, and its cutouts
    stay in the processor's cache.
    """
    cutter = Cutter(rows, tile, x, y, size_px)
    images = np.empty((len(x), len(tile.bands), size_px, size_px), np.float16)
    pixels = np.empty((BLOCK, *images.shape[1:]), np.float32)
    flags, w1_aperture = np.zeros(len(x), np.int32), np.empty(len(x), np.float32)
    for start in range(0, len(x), BLOCK):
        block = slice(start, min(start + BLOCK, len(x)))
        cut = pixels[: block.stop - start]
        cutter.cut(block, cut)
        sky, scatter = border_levels(cut, settings.border_px)
        composite(cut, tile.zero_point_mag, settings, images[block], sky)
        measures = measure_centres(cut, sky, scatter, tile.bands, tile.zero_point_mag)
        flags[block], w1_aperture[block] = centre_flags(measures), measures.w1_aperture
    flags_of_pixels, valid_frac = cutter.flags_and_valid_frac()
    return images, SourceValues(flags | flags_of_pixels, valid_frac, w1_aperture, unknown(len(x)))


def faulty_strip(context: RunContext, strip: Strip, fault: TileFault, timing: Timing) -> CutStrip:
    """Return a strip without images, in which each source has the flag of the fault of its tile."""
    uncovered = strip.tile.coadd_id == NO_TILE
    flag = UNCOVERED_FLAGS if uncovered else FAULT_FLAGS[fault.kind]
    n = strip.stop - strip.start
    source_id = ids_of(tile_sources(context, strip.tile).slice(strip.start, n))
    values = SourceValues.without_image(n, flag)
    return CutStrip(strip, source_id, None, None, values, None if uncovered else fault, None, (timing,))


def infer_strip(context: RunContext, composites: CutStrip) -> StripResult:
    """Return the class probabilities and scores of a strip; NaN without an image, or where the model gives none."""
    began = time.perf_counter()
    flags = composites.values.flags
    probabilities = np.full((len(flags), len(context.bundle.classes)), np.nan, dtype=np.float32)
    outlier = unknown(len(flags))
    has_image = (flags & int(Flag.NO_IMAGE)) == 0
    if composites.images is not None and has_image.any():
        chosen = slice(None) if has_image.all() else has_image  # a slice copies nothing
        photometry = None if composites.photometry is None else composites.photometry[chosen]
        probabilities[chosen], embedding = context.classifier.predict_and_embed(composites.images[chosen], photometry)
        if (statistics := context.bundle.outliers) and composites.w1 is not None:
            outlier[chosen] = statistics.scores(embedding, composites.w1[chosen])
        probabilities, flags = without_faults(probabilities, flags, has_image)
    timing = Timing("infer", time.perf_counter() - began)
    return StripResult(
        composites.strip,
        composites.source_id,
        probabilities,
        composites.values._replace(flags=flags, outlier=outlier),
        composites.fault,
        composites.tile,
        (*composites.timings, timing),
    )


def without_faults(probabilities: Float32, flags: Int32, has_image: Bool) -> tuple[Float32, Int32]:
    """Return probabilities and flags: for an image without valid probabilities NaN and the flag `MODEL_FAULT`."""
    faulty = has_image & ~is_distribution(probabilities)
    if not faulty.any():
        return probabilities, flags
    return np.where(faulty[:, None], np.float32(np.nan), probabilities), flags | flag_where(faulty, Flag.MODEL_FAULT)


def classify_strip(context: RunContext, strip: Strip) -> StripResult:
    """Return the result of CUT and INFER in one task: no transfer of composites between workers."""
    return infer_strip(context, cut_strip(context, strip))


def commit_strips(context: RunContext, tile: TilePlan, results: list[StripResult]) -> tuple[Commit, tuple[Timing, ...]]:
    """Commit a tile from the results of all its strips, and return the commit with all timings.

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
    """Return the tile from which all strips were cut; None if no strip could open it.

    Raises the `TileFault` of a file that differs between strips.
    """
    if changed := next((r.fault for r in results if r.fault and r.fault.kind == "changed"), None):
        raise changed
    tiles = [r.tile for r in results if r.tile]
    if other := next((tile for tile in tiles if tile != tiles[0]), None):
        raise replaced_fault(tiles[0], other)
    return tiles[0] if tiles else None


def classify_whole(context: RunContext, tile: TilePlan, strip_sources: int) -> tuple[Commit, tuple[Timing, ...]]:
    """Classify the strips of a tile one after the other, commit the tile, and return the commit with all timings."""
    return commit_strips(context, tile, [classify_strip(context, strip) for strip in strips_of(tile, strip_sources)])


def commit_fault(context: RunContext, tile: TilePlan, reason: str) -> tuple[Commit, tuple[Timing, ...]]:
    """Commit the rows of a tile that cannot be classified, with a flag and without a class, and return the commit.

    If a worker committed the tile before it died or hung, that commit is returned.
    """
    if commit := existing_commit(context.folder, tile.coadd_id):
        return commit, ()
    fault = TileFault(tile.coadd_id, reason)
    cut = faulty_strip(context, Strip(tile, 0, tile.n_sources), fault, Timing("cut", 0.0))
    return commit_strips(context, tile, [infer_strip(context, cut)])


def next_attempt(tile: TilePlan) -> TilePlan:
    """Return the plan of another attempt at a tile whose files changed."""
    return replace(tile, n_file_changes=tile.n_file_changes + 1)


def kept_changing(fault: TileFault) -> str:
    """Return the reason for quarantine of a tile whose files changed in each attempt."""
    return f"{fault.reason} ({TILE_ATTEMPTS} attempts)"
