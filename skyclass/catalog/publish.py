"""Publish a class catalogue: one sorted file per HEALPix pixel, the manifest last, then one atomic switch.

Nothing here knows a run or Dask. `publish_catalog` calls `write_pixel` for each pixel through the parallel map that it
is given: `itertools.starmap` in one process, a map over the workers of a cluster elsewhere.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import starmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError, RowsLost, StoreError
from ..files import parquet_bytes, write_bytes
from ..model.priors import BinnedCalibration, PriorTable
from ..schema import class_counts, class_schema, conform, flagged
from ..text import counted
from ..types import Json, ParallelMap
from .hats import file_metadata, sidecar_files, text_sizes
from .manifest import (
    MANIFEST_NAME,
    PIXEL_SHIFT,
    PixelRecord,
    class_names,
    manifest_of,
    pixel_path,
    schema_of,
    write_manifest,
)
from .prior_files import NO_CALIBRATION, Prior, prior_files
from .sky_columns import CataloguePrior, counts_of_rows, with_sky_columns, without_prior_flags
from .sky_prior import BinEstimate, SkyCounts, estimated_prior, merged_counts
from .verify import quoted, repeated_ids
from .versions import CURRENT, PUBLICATIONS, begin_publication, make_current, superseded_publications

FOOTER_BYTES = 32_768
"""Upper limit of the header, provenance and statistics of a published file."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CatalogRows:
    """The rows of a class catalogue before its publication. The files together hold each source once.

    Attributes
    ----------
    folder : Path
        Folder of the link `catalog` and of the publications.
    tmp : Path
        Scratch folder.
    files : tuple of Path
        Parquet files in the `class_schema` of the model.
    nbytes : int
        Bytes of the files.
    n_rows : int
        Rows that the published files must hold together.
    digest : str
        Digest of the content of the files; it goes into the manifest.
    provenance : dict
        `run_id`, `fingerprint` and `info`; equal runs have equal provenance, so no time is in it.
    created : str
        Time at which the run began (ISO 8601).
    calibration : BinnedCalibration or None
        Calibration of the model in bins of W1 and |b|; a file beside the catalogue has it.
    prior : PriorTable or "estimate" or None
        Class shares for the columns `p_<class>_sky`: a table, or an estimate from the rows. Without a prior the
        catalogue does not have these columns.
    """

    folder: Path
    tmp: Path
    files: tuple[Path, ...]
    nbytes: int
    n_rows: int
    digest: str
    provenance: Json
    created: str
    calibration: BinnedCalibration | None = None
    prior: Prior = None

    @property
    def prior_key(self) -> str | None:
        """What the prior is asked for as, see `Manifest.prior_key`."""
        return self.prior.prior_id if isinstance(self.prior, PriorTable) else self.prior


def publish_catalog(
    rows: CatalogRows,
    progress: Progress | None = None,
    parallel_map: ParallelMap = starmap,
    fence: Callable[[], None] = lambda: None,
) -> Path:
    """Publish the rows, make them current, and return the manifest's path.

    Parameters
    ----------
    rows : CatalogRows
        The rows, and the folder that receives the publication. Readers of earlier publications keep theirs.
    progress : callable, optional
        Called with (files done, files in total) after each file.
    parallel_map : callable
        Yields `work(*item)` for items, in any order.
    fence : callable
        Called before the switch; raises where the caller no longer owns the folder.

    Raises
    ------
    RowsLost
        If the published files do not hold `rows.n_rows` rows. The earlier publication stays the current one.
    StoreError
        If the disk is too small, or a source id occurs twice.
    """
    pixels = files_by_pixel(rows.files)
    check_space(rows, len(pixels))
    prior, bins = prior_of(rows, parallel_map)
    if prior:
        rows = replace(rows, provenance=rows.provenance | {"prior": prior_provenance(rows, prior.table)})
    staging_folder = begin_publication(rows.folder)
    records: list[PixelRecord] = []
    for record in parallel_map(partial(write_pixel, rows.provenance, prior, staging_folder), pixels):
        records.append(record)
        if progress:
            progress(len(records), len(pixels))
    finish_publication(rows, staging_folder, records, prior_files(rows.calibration, prior, bins))
    fence()
    make_current(rows.folder, staging_folder)
    return rows.folder / CURRENT / MANIFEST_NAME


def prior_of(rows: CatalogRows, parallel_map: ParallelMap) -> tuple[CataloguePrior | None, list[BinEstimate]]:
    """Return the prior of a publication, and the bins from which it was estimated.

    Raises `ConfigError` where the model has no calibration in bins of W1 and |b|.
    """
    if rows.prior is None:
        return None, []
    if rows.calibration is None:
        raise ConfigError(NO_CALIBRATION)
    if isinstance(rows.prior, PriorTable):
        return CataloguePrior(rows.calibration, rows.prior), []
    parts = parallel_map(partial(counts_of_file, rows.calibration), [(str(path),) for path in rows.files])
    table, bins = estimated_prior(merged_counts(parts), rows.calibration)
    return CataloguePrior(rows.calibration, table), bins


def counts_of_file(calibration: BinnedCalibration, path: str) -> SkyCounts:
    """Return the counts of the rows of a file by bins of W1 and |b|."""
    return counts_of_rows(pq.read_table(path, schema=class_schema(calibration.classes)), calibration)


def prior_provenance(rows: CatalogRows, table: PriorTable) -> Json:
    """Return what every published file says of its prior."""
    return {"key": rows.prior_key, "prior_id": table.prior_id, "label": table.label}


def files_by_pixel(files: Iterable[Path]) -> list[tuple[int, tuple[str, ...]]]:
    """Return (order-5 pixel, files with rows in it), sorted by pixel. One column of each file is read."""
    by_pixel: dict[int, list[str]] = defaultdict(list)
    for path in files:
        column = pq.read_table(path, columns=["_healpix_29"])["_healpix_29"]
        for pixel in np.unique(column.to_numpy() >> PIXEL_SHIFT).tolist():
            by_pixel[pixel].append(str(path))
    return [(pixel, tuple(by_pixel[pixel])) for pixel in sorted(by_pixel)]


def write_pixel(
    provenance: Json, prior: CataloguePrior | None, staging_folder: Path, pixel: int, files: Sequence[str]
) -> PixelRecord:
    """Write the sorted rows of an order-5 pixel to a file of `staging_folder`, and return the record of the file.

    With a prior the rows get its columns. A repeated call writes the same file again.
    """
    low, high = pixel << PIXEL_SHIFT, (pixel + 1) << PIXEL_SHIFT
    inside = (pc.field("_healpix_29") >= low) & (pc.field("_healpix_29") < high)
    classes = class_names(provenance)
    of_model, schema = class_schema(classes), schema_of(provenance)
    rows = pa.concat_tables([pq.read_table(path, schema=of_model, filters=inside) for path in files])
    rows = conform(with_sky_columns(rows, prior) if prior else without_prior_flags(rows))
    footer = file_metadata(schema, provenance, text_sizes(rows))
    data = parquet_bytes(rows, footer, store_schema=False)
    path = pixel_path(pixel)
    write_bytes(Path(staging_folder) / path, data)
    span = pc.min_max(rows["_healpix_29"]).as_py()
    return PixelRecord(
        pixel, path, len(rows), sha256(data).hexdigest(), len(data), class_counts(rows, classes),
        flagged(rows), span["min"], span["max"],
    )  # fmt: skip


def finish_publication(
    rows: CatalogRows, staging_folder: Path, records: Iterable[PixelRecord], more_files: Mapping[str, bytes]
) -> None:
    """Check the files in `staging_folder`, and write the files beside them, `more_files` among them, the manifest last.

    Raises `RowsLost` unless the files together hold `rows.n_rows`, and `StoreError` where a source id occurs twice.
    """
    records = sorted(records, key=lambda record: record.pixel)
    require_row_total(
        sum(record.rows for record in records), rows.n_rows, f"the {counted(len(records), 'published file')}"
    )
    if repeated := repeated_ids(staging_folder, records, rows.tmp):
        raise StoreError(
            f"source_id is not unique: {quoted(repeated)} occur more than once; give each source of the input "
            "its own source_id"
        )
    sidecars = {**sidecar_files(records, rows.provenance, rows.created), **more_files}
    for name, data in sidecars.items():
        write_bytes(staging_folder / name, data)
    digests = {name: sha256(data).hexdigest() for name, data in sidecars.items()}
    write_manifest(staging_folder, manifest_of(records, rows.n_rows, rows.provenance, digests, rows.digest))


def require_row_total(n_rows: int, n_expected: int, source: str) -> None:
    """Raise `RowsLost` unless `source` holds as many rows as planned."""
    if n_rows != n_expected:
        raise RowsLost(
            f"{counted(n_expected, 'row')} planned, {n_rows:,} in {source}: nothing was published. Classify "
            "into this folder again, which completes the tiles that are missing; if it ends here again, report a defect"
        )


def check_space(rows: CatalogRows, n_files: int) -> None:
    """Raise `StoreError` where a publication does not fit on the disk.

    A publication is at most a tenth larger than the files of the rows, and `FOOTER_BYTES` more for each of its files.
    """
    target = rows.folder / PUBLICATIONS  # may be a link to another disk
    disk = shutil.disk_usage(target if target.exists() else rows.folder)
    n_needed = rows.nbytes * 11 // 10 + FOOTER_BYTES * n_files
    if disk.total and disk.free < n_needed:  # some network file systems report no sizes
        earlier = superseded_publications(rows.folder)
        hint = f"'skyclass gc' removes {counted(len(earlier), 'earlier publication')}; " if earlier else ""
        raise StoreError(
            f"{target}: the class catalogue needs {n_needed:,} bytes and {disk.free:,} are "
            f"available: nothing was published. {hint}free space, then run the same command again"
        )
