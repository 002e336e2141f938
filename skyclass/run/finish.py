"""Run folder -> HATS class catalogue: one sorted file per HEALPix pixel, the manifest last, then one atomic switch.

Nothing here knows Dask: a cluster maps `publish_pixel` over `publish_plan`, `publish` does so in a loop.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..catalog.hats import file_metadata, sidecar_files, text_sizes
from ..catalog.manifest import (
    MANIFEST_NAME,
    PIXEL_SHIFT,
    PixelRecord,
    manifest_of,
    pixel_path,
    read_manifest,
    write_manifest,
)
from ..catalog.verify import VerifyReport, quoted, repeated_ids, verify_publication
from ..catalog.versions import (
    PUBLICATIONS,
    begin_publication,
    current_publication,
    find_catalog,
    make_current,
    refuse_foreign_catalog,
    superseded_publications,
)
from ..errors import RowsLost, RunMismatch, StoreError
from ..files import parquet_bytes, write_bytes
from ..schema import CLASS_SCHEMA, class_counts, conform, flagged
from ..types import Json
from . import commits as store
from .commits import Commit, RunFolder

FOOTER_BYTES = 32_768
"""Most that the header, provenance and statistics of a published file take."""

Progress = Callable[[int, int], None]
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Gives work(*item) for items in any order, as `itertools.starmap` does."""


def provenance(folder: RunFolder) -> Json:
    """Return what is known of the run: `run_id`, `fingerprint`, `info`. No clock: equal runs, equal bytes."""
    run = store.read_run(folder)
    return {name: run[name] for name in ("run_id", "fingerprint", "info")}


def refuse_foreign(folder: RunFolder) -> None:
    """Raise `RunMismatch` for an output folder that holds anything else than a run of skyclass."""
    refuse_foreign_catalog(folder.path)
    if folder.path.exists() and not folder.path.is_dir():
        raise RunMismatch(f"{folder.path} is a file, and a run needs a folder: give the run another output folder")
    if folder.path.exists() and not folder.run_path.exists():
        ours = {
            p.name
            for p in (folder.tmp, folder.tiles, folder.leases, folder.partitions_path, *store.unfinished(folder.path))
        }
        if foreign := sorted({p.name for p in folder.path.iterdir()} - ours):
            raise RunMismatch(f"{folder.path} is no run of skyclass and holds {foreign[0]}: give a new folder")


def publish_plan(folder: RunFolder) -> list[tuple[int, tuple[str, ...]]]:
    """Return (order-5 pixel, files of the tiles that have rows in it), by pixel; reads one column."""
    files: dict[int, list[str]] = defaultdict(list)
    for commit in store.committed(folder).values():
        path = str(folder.path / commit.file)
        column = pq.read_table(path, columns=["_healpix_29"])["_healpix_29"]
        for pixel in np.unique(column.to_numpy() >> PIXEL_SHIFT).tolist():
            files[pixel].append(path)
    return [(pixel, tuple(files[pixel])) for pixel in sorted(files)]


def publish_pixel(folder: RunFolder, building: Path, pixel: int, files: Sequence[str]) -> PixelRecord:
    """Return the record of one published file, written below `building`: all rows of an order-5 pixel, sorted.

    Safe to repeat. Raises `StoreError` on a full disk.
    """
    low, high = pixel << PIXEL_SHIFT, (pixel + 1) << PIXEL_SHIFT
    inside = (pc.field("_healpix_29") >= low) & (pc.field("_healpix_29") < high)
    parts = [pq.read_table(path, schema=CLASS_SCHEMA, filters=inside) for path in files]
    rows = conform(pa.concat_tables(parts))
    footer = file_metadata(CLASS_SCHEMA, provenance(folder), text_sizes(rows))
    data = parquet_bytes(rows, footer, store_schema=False)
    path = pixel_path(pixel)
    write_bytes(Path(building) / path, data)
    span = pc.min_max(rows["_healpix_29"]).as_py()
    return PixelRecord(
        pixel, path, len(rows), sha256(data).hexdigest(), len(data), class_counts(rows),
        flagged(rows), span["min"], span["max"],
    )  # fmt: skip


def finish_catalog(
    folder: RunFolder,
    building: Path,
    records: Iterable[PixelRecord],
    expected_rows: int,
    tiles: str,
) -> None:
    """Check the files in `building` and write what stands beside them, the manifest last.

    Raises `RowsLost` unless the files together hold `expected_rows`, and `StoreError` where a source id
    occurs twice.
    """
    records = sorted(records, key=lambda record: record.pixel)
    _conserve(sum(record.rows for record in records), expected_rows, f"the {len(records)} published files")
    if repeated := repeated_ids(building, records, folder.tmp):
        raise StoreError(
            f"source_id is not unique: {quoted(repeated)} occur more than once; give each source of the input "
            "its own source_id"
        )
    run = provenance(folder)
    sidecars = sidecar_files(records, run, str(store.read_run(folder)["created"]))
    for name, data in sidecars.items():
        write_bytes(building / name, data)
    digests = {name: sha256(data).hexdigest() for name, data in sidecars.items()}
    write_manifest(building, manifest_of(records, expected_rows, run, digests, tiles))


def _conserve(rows: int, expected_rows: int, where: str) -> None:
    if rows != expected_rows:
        raise RowsLost(
            f"{expected_rows:,} rows planned, {rows:,} in {where}: nothing was published. Classify "
            "into this folder again, which completes the tiles that are missing; if it ends here again, report a defect"
        )


def check_space(folder: RunFolder, tile_bytes: int, n_files: int) -> None:
    """Raise `StoreError` where a publication does not fit on the disk.

    A published file compresses as the tiles that its rows come from do, within a tenth.
    """
    target = folder.path / PUBLICATIONS  # may be a link to another disk
    disk = shutil.disk_usage(target if target.exists() else folder.path)
    needed = tile_bytes * 11 // 10 + FOOTER_BYTES * n_files
    if disk.total and disk.free < needed:  # some network file systems tell no sizes
        earlier = superseded_publications(folder.path)
        hint = f"'skyclass gc' removes {len(earlier)} earlier publications; " if earlier else ""
        raise StoreError(
            f"{target}: the class catalogue needs {needed:,} bytes and {disk.free:,} are "
            f"available: nothing was published. {hint}free space, then run the same command again"
        )


def tiles_digest(commits: Mapping[str, Commit]) -> str:
    """Return a digest of the content of all committed tiles."""
    content = sorted((commit.coadd_id, commit.sha256) for commit in commits.values())
    return sha256(json.dumps(content).encode()).hexdigest()


def is_published(folder: RunFolder) -> bool:
    """Return whether the current publication holds the committed tiles of this run, its files all there."""
    root = current_publication(folder.path)
    if root is None:
        return False
    try:
        manifest = read_manifest(root)
    except StoreError:  # of another version, or damaged: a new publication is what helps
        return False
    for record in manifest.files:
        path = root / record.path
        if not path.is_file() or path.stat().st_size != record.nbytes:
            return False
    return (
        manifest.run_id == store.read_run(folder)["run_id"]
        and manifest.rows == store.expected_rows(folder)
        and manifest.tiles == tiles_digest(store.committed(folder))
    )


def publish(
    folder: RunFolder | str | Path,
    progress: Progress | None = None,
    expected_rows: int | None = None,
    each: Each = starmap,
    fence: Callable[[], None] = lambda: None,
) -> Path:
    """Return the manifest of the class catalogue, published from the committed tiles of a run.

    The catalogue is a new folder; readers of earlier publications keep theirs. `progress(done, total)` is called
    after each file. `expected_rows` is what the plan counted unless given. `each` does the work of the files, here
    or on a cluster. The caller holds the lease, and `fence` raises where it has lost it meanwhile. Raises `RowsLost`
    and `StoreError` as `finish_catalog` and `check_space`; then the earlier publication stays the current one.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    expected = store.expected_rows(folder) if expected_rows is None else expected_rows
    commits = store.committed(folder)
    _conserve(sum(commit.rows for commit in commits.values()), expected, f"the {len(commits)} committed tiles")
    store.refuse_changed(folder, commits.values())
    refuse_foreign(folder)
    folder.make()
    plan, records = publish_plan(folder), []
    check_space(folder, sum(commit.nbytes for commit in commits.values()), len(plan))
    building = begin_publication(folder.path)
    for record in each(partial(publish_pixel, folder, building), plan):
        records.append(record)
        if progress:
            progress(len(records), len(plan))
    finish_catalog(folder, building, records, expected, tiles_digest(commits))
    fence()
    make_current(folder.path, building)
    return folder.catalog / MANIFEST_NAME


def verify(catalog: str | Path) -> VerifyReport:
    """Return every way in which a catalogue (or the one of a run folder) differs from what was published.

    Checks SHA-256, schema, rows, sorting, pixel and class counts of each file, unique source ids, totals
    against the plan, and files that nobody published. Raises `StoreError` where there is no catalogue.
    """
    root = find_catalog(catalog)
    run = RunFolder(root.parent.parent if root.parent.name == PUBLICATIONS else root.parent)
    is_of_run = run.run_path.is_file() and store.read_run(run)["run_id"] == read_manifest(root).run_id
    return verify_publication(root, store.expected_rows(run) if is_of_run else None)
