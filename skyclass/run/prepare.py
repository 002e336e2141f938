"""Preparation of a run: plan it, open or resume its folder, load its commits, choose precision and compilation.

Every fault of the configuration is raised here, before any tile is submitted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pyarrow as pa

from ..catalog.prior_files import ESTIMATE, NO_CALIBRATION, read_prior
from ..errors import CannotCompile, CatalogError, ConfigError, RunMismatch
from ..files import content_digest, parquet_bytes, remove, unfinished, write_bytes
from ..images.archive import AtlasArchive, open_archive
from ..images.records import compare_files
from ..locations import absolute
from ..model.bundle import Bundle, load_bundle
from ..model.compile_policy import compiled_kinds
from ..model.devices import resolve_device, resolve_precision
from ..sky.regions import region_text
from ..sources.assign import with_tiles
from ..sources.opening import open_sources
from ..sources.source_table import SourceTable, read_all
from ..text import counted
from .commits import Commit, committed, journal_commit, retry_quarantined
from .config import RunConfig
from .context import RunContext, further_columns_of
from .finish import check_output_folder
from .folder import fingerprint, start_or_resume
from .plan import Plan, catalog_digest, make_plan, partition_digests, partition_names, table_counts
from .preflight import check_photometry, preflight, refuse_copies, refuse_faulty_model, translate_archive_errors
from .stages import count_partition

log = logging.getLogger(__name__)

TOO_FEW_FOR_CUDA = "on CUDA this takes more time than it saves for so few sources"
CHECKING_THREADS = 16
"""Image files that are checked at the same time: a network file system takes a millisecond for each."""
MAX_LISTED = 5
"""Most tiles, or partitions, that a message lists."""

CountTiles = Callable[[RunContext, Iterable[int]], pa.Table]


def open_run(run: RunConfig, context: RunContext, plan: Plan, table: pa.Table | None) -> RunContext:
    """Create the run folder, or open it to resume, and return the context with the run id.

    The caller holds the lease. Raises `RunMismatch` for the folder of a run with another fingerprint.
    """
    bundle = context.bundle
    arithmetic = context.precision + (", compiled" if context.is_compiled else "")
    fields = fingerprint(plan.catalog, run.region, bundle.digest, arithmetic, plan.digest)
    info = {"config": run.to_dict(), "n_sources": plan.n_sources, "n_tiles": len(plan.on_tiles)}
    model = {"id": bundle.model_id, "classes": list(bundle.classes), "training": dict(bundle.training)}
    model |= {"binned_calibration": bundle.binned_calibration.to_dict()} if bundle.binned_calibration else {}
    info |= {"model": model, "label": bundle.training["label"]}
    run_id = start_or_resume(context.folder, fields, info, partition_names(context, plan) if table is None else {})
    if table is not None:
        for path in unfinished(context.folder.sources):  # of a killed driver: the folder is read as a catalogue
            remove(path)
        write_bytes(context.folder.sources / "part0.parquet", parquet_bytes(table))
    return replace(context, run_id=run_id)


def load_committed(run: RunConfig, context: RunContext) -> dict[str, Commit]:
    """Return the commits of earlier drivers of this run, without the quarantined tiles that the run retries."""
    if run.retry_quarantined:
        retry_quarantined(context.folder)
    commits = committed(context.folder)
    with translate_archive_errors(context.folder):
        check_images(run, context, commits)
    return {name: replace(commit, images={}) for name, commit in commits.items()}


def check_images(run: RunConfig, context: RunContext, commits: Mapping[str, Commit]) -> None:
    """Raise `RunMismatch` for committed tiles whose images differ now; journal the new records of copied files."""
    compare = partial(compare_files, context.archive, context.bundle.bands)
    recorded = [commit for commit in commits.values() if commit.images]
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        comparisons = list(pool.map(lambda commit: compare(commit.coadd_id, commit.images), recorded))
    if changed := [comparison for comparison in comparisons if comparison.difference]:
        more = [f"and {len(changed) - MAX_LISTED} more"] if len(changed) > MAX_LISTED else []
        raise RunMismatch(
            f"{context.folder.path}: the images at {run.images} are not those of "
            f"{counted(len(changed), 'committed tile')}; put the earlier images back to resume the run, or give "
            "another output folder:",
            [f"tile {comparison.coadd_id}: {comparison.difference}" for comparison in changed[:MAX_LISTED]] + more,
        )
    for commit, comparison in zip(recorded, comparisons, strict=True):
        if comparison.record != commit.images:
            journal_commit(context.folder, replace(commit, images=comparison.record))


def plan_run(run: RunConfig, count: CountTiles) -> tuple[RunContext, Plan, pa.Table | None]:
    """Plan a run and write nothing. Return context, plan and, for a table of positions, its rows with their tiles.

    `count` returns the sources of partitions by tile, counted in this process or on a cluster.
    """
    bundle = load_bundle(run.model, trust_code=run.trust_code)
    sources = open_sources(run.catalog, run.region, run.allow_truncated, further_columns_of(bundle))
    archive = open_archive(run.images, tuple(bundle.bands))
    context = new_context(run, bundle)
    check_output_folder(context.folder)
    check_prior(run, bundle, sources)
    refuse_faulty_model(context)
    table = None
    if sources.is_partitioned:
        plan = plan_partitions(context, sources, count)
    else:
        context, plan, table = plan_table(context, sources, archive)
    with translate_archive_errors(context.folder):
        preflight(context, archive, plan, table)
    return context, plan, table


def check_prior(run: RunConfig, bundle: Bundle, sources: SourceTable) -> None:
    """Raise `ConfigError` for a prior that cannot be used with a model; warn where an estimate may mislead."""
    prior = read_prior(run.prior, bundle.classes)
    if prior is not None and bundle.binned_calibration is None:
        raise ConfigError(f"prior = {run.prior!r}: {NO_CALIBRATION}")
    if prior == ESTIMATE and not sources.is_partitioned:
        log.warning(
            "prior = 'estimate': the class shares will be those of the table %s; if it was selected by colour or "
            "class, p_<class>_sky says nothing about other sources",
            sources.location,
        )


def new_context(run: RunConfig, bundle: Bundle) -> RunContext:
    """Return the context of a run, with absolute paths, before the run has an id."""
    catalog, images, out = (absolute(path) for path in (run.catalog, run.images, run.out))
    model = run.model if bundle.is_packaged else str(bundle.path.absolute())
    precision, session = choose_precision(run), uuid4().hex
    where = (precision, run.device, out, session)
    return RunContext(catalog, run.region, images, model, bundle.digest, *where, trust_code=run.trust_code)


def plan_table(context: RunContext, sources: SourceTable, archive: AtlasArchive) -> tuple[RunContext, Plan, pa.Table]:
    """Return context, plan and rows of a user's table of positions; workers read the rows from the run folder."""
    with translate_archive_errors(context.folder):
        table = tiled_table(sources, archive)
    check_photometry(context.bundle, sources, table)
    context = replace(context, catalog=str(context.folder.sources), region=None)
    return context, make_plan(context, table_counts(table), content_digest(table)), table


def plan_partitions(context: RunContext, sources: SourceTable, count: CountTiles) -> Plan:
    """Return the plan for a catalogue in partitions, which `count` counts."""
    if not sources.partitions:
        raise CatalogError(
            f"{sources.location}: no partition of it touches the {region_text(sources.region)}: "
            "choose another region; its positions and sizes are in degrees unless they carry a unit"
        )
    check_photometry(context.bundle, sources)
    if missing := sources.missing_pixels():
        shown = ", ".join(map(str, missing[:MAX_LISTED])) + (", ..." if len(missing) > MAX_LISTED else "")
        log.warning(
            "%s lacks %s that the region touches: healpix_k5 = %s",
            sources.location, counted(len(missing), "partition"), shown,
        )  # fmt: skip
    with translate_archive_errors(context.folder):
        counts = count(context, range(len(sources.partitions)))
    digests = partition_digests(counts)
    refuse_copies(sources, digests)
    return make_plan(context, counts, catalog_digest(digests.values()), digests)


def choose_precision(run: RunConfig) -> str:
    """Return fp32 or bf16. The driver decides, so that no two workers of a run differ.

    The CUDA devices of a cluster that the run joins are assumed to multiply bf16. Raises `ConfigError` for a device
    that does not exist.
    """
    if run.device.startswith("cuda") and "://" in run.cluster:
        return "bf16" if run.precision == "auto" else run.precision
    return resolve_precision(resolve_device(run.device), run.precision)


def choose_compilation(
    run: RunConfig, context: RunContext, plan: Plan, warm_up: Callable[[RunContext], list[str]]
) -> RunContext:
    """Return the context with the decision whether the network is compiled, the same for all workers.

    The network is compiled if the run asks for it or is large enough, and every process that infers can compile it.
    `warm_up` loads the network of a context in these processes. It returns why a process does not compile the
    network: a failure, or `TOO_FEW_FOR_CUDA`. Raises `ConfigError` if a run with compile = "on" cannot be compiled.
    """
    compiled = replace(context, compile_on=compiled_kinds(run.compile, plan.n_sources))
    if not compiled.is_compiled:
        return context
    faults = warm_up(compiled)
    if not faults:
        return compiled
    reason = f"the network is not compiled: {'; '.join(faults)}"
    if run.compile == "on":
        raise ConfigError(f"compile = 'on', but {reason}; correct this, or choose auto or off")
    if set(faults) != {TOO_FEW_FOR_CUDA}:
        log.warning(reason)
    return context


def warm_up_local(context: RunContext) -> list[str]:
    """Load the network of a context in this process; return the reason of a failure, or an empty list."""
    if context.is_compiled and resolve_device(context.device).split(":")[0] not in context.compile_on:
        return [TOO_FEW_FOR_CUDA]
    try:
        _ = context.classifier
    except CannotCompile as error:
        return [str(error)]
    return []


def count_here(context: RunContext, partitions: Iterable[int]) -> pa.Table:
    """Return the counts of `count_partition` for partitions, counted in this process."""
    return pa.concat_tables([count_partition(context, i) for i in partitions])


def tiled_table(sources: SourceTable, archive: AtlasArchive) -> pa.Table:
    """Return the rows of a user's table inside its region, each with its tile, null where no tile covers it."""
    table = read_all(sources)
    if not len(table):
        raise CatalogError(f"{sources.location}: no source in the {region_text(sources.region)}; nothing to classify")
    return with_tiles(table, archive).sort_by([("coadd_id", "ascending"), ("source_id", "ascending")])
