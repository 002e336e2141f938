"""Checks of the inputs before a run writes anything: photometry, partitions, model and images."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from ..errors import ArchiveDown, ArchiveError, CatalogError
from ..images.archive import AtlasArchive
from ..images.usable import (
    require_position_on_tile,
    require_usable_tile,
    warn_of_misnamed_tiles,
    warn_of_refused_files,
)
from ..model.bundle import Bundle
from ..model.devices import has_cuda
from ..model.photometry import columns_of
from ..schema import SOURCE_SCHEMA
from ..sources.by_tile import PLAN_COLUMNS
from ..sources.footers import PartitionDigest
from ..sources.source_table import SourceTable, columns_without_values
from ..text import named
from .context import RunContext
from .folder import RunFolder
from .plan import Plan

log = logging.getLogger(__name__)


@contextmanager
def translate_archive_errors(folder: RunFolder) -> Iterator[None]:
    """Turn `ArchiveDown` into `ArchiveError` while the run has no commit, and so nothing to resume."""
    try:
        yield
    except ArchiveDown as error:
        if folder.journal_path.exists():
            raise
        raise ArchiveError(
            f"the image archive does not answer: {error.trouble}; nothing was begun: try again later, or copy the "
            "tiles and use that folder"
        ) from error


def check_photometry(bundle: Bundle, sources: SourceTable, table: pa.Table | None = None) -> None:
    """Raise `CatalogError` when a catalogue lacks photometry that the features of the model need.

    A partitioned catalogue must have every column. A user's table may lack some columns of `SOURCE_SCHEMA`: the
    training mean replaces the features that need them, with a warning. `table` holds the rows of a user's table that no
    run has prepared yet.
    """
    if bundle.photometry is None:
        return
    needed = columns_of(bundle.photometry.features)
    absent = sources.absent_columns(needed) if table is None else columns_without_values(table, needed)
    if not absent:
        return
    is_from_table = table is not None or sources.is_prepared  # columns that a table lacks are null
    what = f"value in {', '.join(absent)}" if is_from_table else named("column", absent)
    lack = f"{sources.location} has no {what}"
    if is_from_table and len(absent) < len(needed) and set(absent) <= set(SOURCE_SCHEMA.names):
        log.warning("%s: %s uses the training mean of the features that need them", lack, bundle.model_id)
        return
    raise CatalogError(
        f"{lack}: {bundle.model_id} needs the photometry {', '.join(needed)}; use a catalogue with these columns "
        "(AllWISE has them), or a model that needs images only, such as iicnet-mock"
    )


def refuse_copies(sources: SourceTable, digests: Mapping[int, PartitionDigest]) -> None:
    """Raise `CatalogError` for two partitions with the same bytes: each source in them would have two rows."""
    first: dict[PartitionDigest, str] = {}
    for i, digest in digests.items():
        path = sources.partitions[i].path
        other = first.setdefault(digest, path)
        if other != path and filecmp.cmp(other, path, shallow=False):
            raise CatalogError(f"{path} is a copy of {other}: remove one of them")


def refuse_faulty_model(context: RunContext) -> None:
    """Load the model on the CPU of this process; raise `BundleError` if it gives no probabilities.

    The driver does not use a GPU, which belongs to the workers.
    """
    on_cuda = context.device.startswith("cuda") or (context.device == "auto" and has_cuda())
    cpu_context = replace(context, device="cpu", precision="fp32") if on_cuda else context
    _ = cpu_context.classifier  # loading the network runs it once


def preflight(context: RunContext, archive: AtlasArchive, plan: Plan, table: pa.Table | None) -> None:
    """Raise `ArchiveError`, with all reasons, when none of the first tiles of the plan is usable.

    `table` holds the rows of a user's table that no run has prepared yet.
    """
    names = [tile.coadd_id for tile in plan.on_tiles]

    def sources() -> pa.Table:
        return context.sources.read(plan.tiles[0].partitions[0], PLAN_COLUMNS) if table is None else table

    warn_of_refused_files(archive, context.images)
    require_position_on_tile(archive, context.images, names, sources)
    require_usable_tile(archive, context.images, names, context.bundle.bands, None if table is None else sources)
    if table is not None:
        warn_of_misnamed_tiles(archive, context.images, names, table)
