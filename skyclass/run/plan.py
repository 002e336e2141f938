"""Everything that is settled before work starts: the line's parts, the plan, and whether the inputs can do it.

The plan counts the sources of each tile, partition by partition: the exact number of rows to conserve, the skew,
and the denominator of the ETA. All faults of configuration surface here, before anything is submitted.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from ..errors import ArchiveDown, ArchiveError, CannotCompile, CatalogError, ConfigError, RunMismatch
from ..files import parquet_bytes, write_bytes
from ..images.archive import open_archive, require_usable_tile
from ..images.atlas import AtlasArchive
from ..images.records import compare_files
from ..locations import user_path
from ..model.bundle import Bundle, load_bundle
from ..model.classifier import cuda_is_there, resolve_device, resolve_precision
from ..model.photometry import columns_of
from ..sky.regions import in_words
from ..sources.assign import with_tiles
from ..sources.footers import PartitionDigest
from ..sources.layouts import Catalog, gaps, open_catalog
from ..sources.partitions import read_partition
from ..sources.tables import standardise_table
from ..types import NO_TILE, Archive, TilePlan
from .commits import (
    Commit,
    RunFolder,
    committed,
    journal_commit,
    remove,
    retry_quarantined,
    start_or_resume,
    unfinished,
)
from .config import RunConfig, fingerprint
from .context import Line
from .finish import refuse_foreign
from .stages import count_partition

log = logging.getLogger(__name__)

COMPILE_FROM = 50_000
"""Sources from which compiling the network, a quarter of a minute on each kind of machine, pays."""

COMPILE_ON_CUDA_FROM = 5_000_000
"""The same for a GPU: it takes 20 s, and saves 5 us a source on an H100."""

ON_CUDA = "on CUDA it runs as it is"

CHECKING_THREADS = 16
"""Files that are looked at together: a network file system takes a millisecond for each."""
TOLD = 5

CountTiles = Callable[["Line", Iterable[int]], pa.Table]


@dataclass(frozen=True)
class Plan:
    """The tiles of a run, longest first. `digest` covers their names and counts.

    `catalog` is a digest of what the catalogue holds, and `partitions` are those of its partitions that have sources;
    none where the catalogue is a user's table.
    """

    tiles: tuple[TilePlan, ...]
    digest: str
    catalog: str = ""
    partitions: Mapping[int, PartitionDigest] = field(default_factory=dict)

    @property
    def n_sources(self) -> int:
        """Rows in, and so rows out."""
        return sum(tile.n_sources for tile in self.tiles)

    @property
    def on_tiles(self) -> list[TilePlan]:
        """The tiles of the plan without `NO_TILE`, which stands for sources without a tile."""
        return [tile for tile in self.tiles if tile.coadd_id != NO_TILE]

    @property
    def without_tile(self) -> int:
        """Sources without a tile."""
        return self.n_sources - sum(tile.n_sources for tile in self.on_tiles)


def without_tile_lines(n_sources: int) -> list[str]:
    """Return the line of a report on sources without a tile, none where there are no such sources."""
    if not n_sources:
        return []
    why = "they are outside the images, or their coadd_id is invalid"
    return [f"sources without a tile: {n_sources:,}; {why}; their rows have no class"]


def begin(run: RunConfig, line: Line, plan: Plan, table: pa.Table | None) -> Line:
    """Return the line with its run id, the run folder begun or, with the same fingerprint, resumed.

    The caller holds the lease. Raises `RunMismatch` for the folder of another run.
    """
    bundle = line.bundle
    arithmetic = line.precision + (", compiled" if line.compile != "off" else "")
    fields = fingerprint(plan.catalog, run.region, bundle.digest, arithmetic, plan.digest)
    info = {"config": run.to_dict(), "n_sources": plan.n_sources, "n_tiles": len(plan.on_tiles)}
    info |= {"model": {"id": bundle.model_id, "training": dict(bundle.training)}, "label": bundle.training["label"]}
    run_id = start_or_resume(line.folder, fields, info, partition_names(line, plan) if table is None else {})
    if table is not None:
        for left in unfinished(line.folder.sources):  # by a killed driver; the folder is read as a catalogue
            remove(left)
        write_bytes(line.folder.sources / "part0.parquet", parquet_bytes(table))
    return replace(line, run_id=run_id)


def earlier(run: RunConfig, line: Line) -> dict[str, Commit]:
    """Return what earlier drivers of this run have committed; quarantined tiles only if they are not to be retried."""
    if run.retry_quarantined:
        retry_quarantined(line.folder)
    commits = committed(line.folder)
    with archive_up(line.folder):
        check_images(run, line, commits)
    return {name: replace(commit, images={}) for name, commit in commits.items()}


def check_images(run: RunConfig, line: Line, commits: Mapping[str, Commit]) -> None:
    """Raise `RunMismatch` for committed tiles whose images are others now; the files of copies are recorded anew."""
    compare = partial(compare_files, line.archive, line.bundle.bands)
    recorded = [commit for commit in commits.values() if commit.images]
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        found = list(pool.map(lambda commit: compare(commit.coadd_id, commit.images), recorded))
    if changed := [comparison for comparison in found if comparison.difference]:
        more = [f"and {len(changed) - TOLD} more"] if len(changed) > TOLD else []
        raise RunMismatch(
            f"{line.folder.path}: {len(changed)} committed tiles were made from other images than those at "
            f"{run.images}; put the earlier images back to resume the run, or give another output folder:",
            [f"tile {comparison.coadd_id}: {comparison.difference}" for comparison in changed[:TOLD]] + more,
        )
    for commit, comparison in zip(recorded, found, strict=True):
        if comparison.record != commit.images:
            journal_commit(line.folder, replace(commit, images=comparison.record))


def survey(run: RunConfig, count: CountTiles) -> tuple[Line, Plan, pa.Table | None]:
    """Return line, plan and, for a table of positions, its rows with their tiles. Writes nothing.

    `count` gives the sources by tile of some partitions, here or on a cluster.
    """
    bundle, catalog = load_bundle(run.model), open_catalog(run.catalog, run.region)
    archive = open_archive(run.images, tuple(bundle.bands))
    catalog_at, images_at, out_at = (absolute(p) for p in (run.catalog, run.images, run.out))
    model = run.model if bundle.is_packaged else str(bundle.path.absolute())
    precision = settled_precision(run)
    line = Line(catalog_at, run.region, images_at, model, bundle.digest, precision, run.device, out_at, uuid4().hex)
    refuse_foreign(line.folder)
    refuse_faulty_model(line)
    table = None
    if catalog.kind == "table":
        with archive_up(line.folder):
            table = tiled_table(run, archive)
        check_photometry(bundle, catalog, table)
        line = replace(line, catalog=str(line.folder.sources), region=None)
        plan = make_plan(line, table_counts(table), content_digest(table))
    else:
        if not catalog.partitions:
            raise CatalogError(f"{run.catalog}: no partition of it touches the {in_words(run.region)}")
        check_photometry(bundle, catalog)
        if run.region and (missing := gaps(catalog, run.region)):
            log.warning("%s lacks partitions that the region touches: healpix_k5 = %s", run.catalog, missing)
        with archive_up(line.folder):
            counts = count(line, range(len(catalog.partitions)))
        digests = partition_digests(counts)
        refuse_copies(catalog, digests)
        plan = make_plan(line, counts, catalog_digest(digests.values()), digests)
    with archive_up(line.folder):
        preflight(line, archive, plan)
    return line, plan, table


@contextmanager
def archive_up(folder: RunFolder) -> Iterator[None]:
    """Turn an archive that does not answer into an `ArchiveError` while there is nothing yet to resume."""
    try:
        yield
    except ArchiveDown as error:
        if folder.journal_path.exists():
            raise
        raise ArchiveError(
            f"the image archive does not answer: {error.trouble}; nothing was begun: try again later, or mirror the "
            "tiles and give that folder"
        ) from error


def check_photometry(bundle: Bundle, catalog: Catalog, table: pa.Table | None = None) -> None:
    """Raise `CatalogError` when a catalogue lacks photometry that the model's features are made of.

    A survey's catalogue must have every column. A user's table (`table` holds its rows) may lack some, though not
    all: the features made of them count as the training mean, and a warning says so.
    """
    if bundle.photometry is None:
        return
    needed = columns_of(bundle.photometry.features)
    own = catalog.kind in ("table", "prepared")  # conformed: what the user's file lacks is null
    if own:
        rows = read_partition(catalog, 0) if table is None else table
        absent = [name for name in needed if rows[name].null_count == len(rows)]
    else:
        absent = missing_columns(catalog, needed)
    if not absent:
        return
    lack = f"{catalog.root} has no value in {', '.join(absent)}"
    if own and len(absent) < len(needed):
        log.warning("%s: %s takes the training mean of the features made of them", lack, bundle.model_id)
        return
    raise CatalogError(
        f"{lack}: {bundle.model_id} needs the photometry {', '.join(needed)}; give a catalogue with these columns "
        "(AllWISE has them), or choose a model of images alone, such as iicnet-mock"
    )


def missing_columns(catalog: Catalog, names: Iterable[str]) -> list[str]:
    """Return those of the names that the first partition of a catalogue has no column of; only its schema is read."""
    present = set(ds.dataset(catalog.partitions[0].path, format="parquet", partitioning=None).schema.names)
    return [name for name in names if name not in present]


def partition_digests(counts: pa.Table) -> dict[int, PartitionDigest]:
    """Return the digests of the partitions that have sources."""
    columns = (counts[name].to_pylist() for name in ("partition", "nbytes", "footer"))
    return {i: PartitionDigest(nbytes, footer) for i, nbytes, footer in zip(*columns, strict=True)}


def refuse_copies(catalog: Catalog, digests: Mapping[int, PartitionDigest]) -> None:
    """Raise `CatalogError` for two partitions with the same bytes: each of their sources would have two rows."""
    first: dict[PartitionDigest, str] = {}
    for i, digest in digests.items():
        path = catalog.partitions[i].path
        other = first.setdefault(digest, path)
        if other != path and filecmp.cmp(other, path, shallow=False):
            raise CatalogError(f"{path} is a copy of {other}: remove one of them")


def catalog_digest(digests: Iterable[PartitionDigest]) -> str:
    """Return a digest of the content of partitions, wherever they are and whatever their names are."""
    return hashlib.sha256(repr(sorted(map(tuple, digests))).encode()).hexdigest()[:16]


def partition_names(line: Line, plan: Plan) -> dict[str, PartitionDigest]:
    """Return the digests of the partitions of a plan by their names below the catalogue's root."""
    catalog = line.sources
    return {
        os.path.relpath(catalog.partitions[i].path, catalog.root): plan.partitions[i] for i in sorted(plan.partitions)
    }


def make_plan(
    line: Line, counts: pa.Table, catalog: str = "", partitions: Mapping[int, PartitionDigest] = MappingProxyType({})
) -> Plan:
    """Return the plan for counts (coadd_id, partition, n), a digest of the catalogue, and those of its partitions."""
    if not counts.num_rows:
        raise CatalogError(f"{line.catalog}: no source in the {in_words(line.region)}; nothing to classify")
    keys = {i: digest.key for i, digest in partitions.items()}  # one text a partition, in however many tiles
    tiles: dict[str, Counter[int]] = defaultdict(Counter)
    for row in counts.select(["coadd_id", "partition", "n"]).to_pylist():
        tiles[row["coadd_id"] or NO_TILE][row["partition"]] += row["n"]
    plans = [
        TilePlan(name, n.total(), tuple(sorted(n)), tuple(keys[i] for i in sorted(n) if keys))
        for name, n in tiles.items()
    ]
    ordered = tuple(sorted(plans, key=lambda t: (-t.n_sources, t.coadd_id)))
    named = repr([(t.coadd_id, t.n_sources) for t in ordered])
    return Plan(ordered, hashlib.sha256(named.encode()).hexdigest()[:16], catalog, partitions)


def refuse_faulty_model(line: Line) -> None:
    """Raise `BundleError` before any work for a model that gives no probabilities; tried on the CPU of this process.

    A GPU is left to the workers.
    """
    on_cuda = line.device.startswith("cuda") or (line.device == "auto" and cuda_is_there())
    here = replace(line, device="cpu", precision="fp32") if on_cuda else line
    _ = here.classifier  # loading tries it


def settled_precision(run: RunConfig) -> str:
    """Return fp32 or bf16, settled once by the driver, so that no two workers of a run differ.

    CUDA devices that only a joined cluster has are taken to multiply bf16. Raises `ConfigError` for a device
    that is not there.
    """
    if run.device.startswith("cuda") and "://" in run.cluster:
        return "bf16" if run.precision == "auto" else run.precision
    return resolve_precision(resolve_device(run.device), run.precision)


def settle_network(run: RunConfig, line: Line, plan: Plan, warm: Callable[[Line], list[str]]) -> Line:
    """Return the line whose network is compiled if the run asks for it, or is large enough, and all who infer can.

    `warm` loads the network of a line wherever it will run, and returns why that fails, reason by reason. Raises
    `ConfigError` where a run that insists on it cannot be compiled.
    """
    if run.compile == "off" or (run.compile == "auto" and plan.n_sources < COMPILE_FROM):
        return line
    everywhere = run.compile == "on" or plan.n_sources >= COMPILE_ON_CUDA_FROM
    asked = replace(line, compile="on" if everywhere else "auto")
    faults = warm(asked)
    if not faults:
        return asked
    words = f"the network is not compiled: {'; '.join(faults)}"
    if run.compile == "on":
        raise ConfigError(f"compile = 'on', but {words}; mend that, or use auto or off")
    if set(faults) != {ON_CUDA}:
        log.warning(words)
    return line


def warm_here(line: Line) -> list[str]:
    """Return [] once the network of a line is loaded in this process, or why it is not."""
    if line.compile == "auto" and resolve_device(line.device) != "cpu":
        return [ON_CUDA]
    try:
        _ = line.classifier
    except CannotCompile as error:
        return [str(error)]
    return []


def absolute(location: str) -> str:
    """Return a local path that means the same in every process; a URL as it is."""
    return location if "://" in location else str(user_path(location).absolute())


def content_digest(table: pa.Table) -> str:
    """Return a hash of the content of a table, whatever its chunks."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]


def count_here(line: Line, partitions: Iterable[int]) -> pa.Table:
    """Return (coadd_id, partition, n) of partitions, counted in this process."""
    return pa.concat_tables([count_partition(line, i) for i in partitions])


def preflight(line: Line, archive: Archive, plan: Plan) -> None:
    """Raise `ArchiveError` when none of the first tiles of the plan is usable; one message with the reasons."""
    names = [tile.coadd_id for tile in plan.on_tiles]
    require_usable_tile(archive, line.images, names, line.bundle.bands)


def tiled_table(run: RunConfig, archive: AtlasArchive) -> pa.Table:
    """Return a user's table of positions, cut to the region, each source with its tile (null where none)."""
    table = standardise_table(run.catalog, run.allow_truncated)
    if run.region:
        table = table.filter(pa.array(run.region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))
    if not len(table):
        raise CatalogError(f"{run.catalog}: no source in the {in_words(run.region)}; nothing to classify")
    return with_tiles(table, archive).sort_by([("coadd_id", "ascending"), ("source_id", "ascending")])


def table_counts(table: pa.Table) -> pa.Table:
    """Return (coadd_id, partition, n) of a table that is its own single partition."""
    counts = table.group_by("coadd_id").aggregate([("source_id", "count")])
    zeros = pa.array(np.zeros(len(counts), np.int64))
    return pa.table({"coadd_id": counts["coadd_id"], "partition": zeros, "n": counts["source_id_count"]})
