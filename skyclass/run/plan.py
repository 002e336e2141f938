"""The plan of a run: the sources of each tile, counted partition by partition.

The plan gives the exact number of rows to conserve, the order of the tiles, and the total for the estimated time.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from ..errors import CatalogError
from ..sky.regions import region_text
from ..sources.footers import PartitionDigest
from ..types import NO_TILE, TilePlan
from .context import RunContext


@dataclass(frozen=True)
class Plan:
    """The tiles of a run, those with most sources first. `digest` covers each `coadd_id` and its count.

    `catalog` is a digest of the content of the catalogue. `partitions` has the digests of the partitions with sources;
    it is empty for a user's table.
    """

    tiles: tuple[TilePlan, ...]
    digest: str
    catalog: str = ""
    partitions: Mapping[int, PartitionDigest] = field(default_factory=dict)

    @property
    def n_sources(self) -> int:
        """Number of sources, which is the number of rows that the run writes."""
        return sum(tile.n_sources for tile in self.tiles)

    @property
    def on_tiles(self) -> list[TilePlan]:
        """The tiles of the plan, without the entry `NO_TILE` for sources without a tile."""
        return [tile for tile in self.tiles if tile.coadd_id != NO_TILE]

    @property
    def without_tile(self) -> int:
        """Number of sources without a tile."""
        return self.n_sources - sum(tile.n_sources for tile in self.on_tiles)


def without_tile_lines(n_sources: int) -> list[str]:
    """Return the line of a report on sources without a tile, [] if there are none."""
    if not n_sources:
        return []
    why = "they are outside the images, or their coadd_id is invalid"
    return [f"sources without a tile: {n_sources:,}; {why}; their rows have no class"]


def partition_digests(counts: pa.Table) -> dict[int, PartitionDigest]:
    """Return the digests of the partitions that have sources."""
    columns = (counts[name].to_pylist() for name in ("partition", "nbytes", "footer"))
    return {i: PartitionDigest(nbytes, footer) for i, nbytes, footer in zip(*columns, strict=True)}


def catalog_digest(digests: Iterable[PartitionDigest]) -> str:
    """Return a digest of the content of partitions; paths and names do not matter."""
    return hashlib.sha256(repr(sorted(map(tuple, digests))).encode()).hexdigest()[:16]


def partition_names(context: RunContext, plan: Plan) -> dict[str, PartitionDigest]:
    """Return the digests of the partitions of a plan by their paths below the root of the catalogue."""
    sources = context.sources
    paths = {i: sources.partitions[i].path for i in sorted(plan.partitions)}
    return {os.path.relpath(path, sources.location): plan.partitions[i] for i, path in paths.items()}


def make_plan(
    context: RunContext,
    counts: pa.Table,
    catalog: str = "",
    partitions: Mapping[int, PartitionDigest] = MappingProxyType({}),
) -> Plan:
    """Return the plan for counts (coadd_id, partition, n), the digest of the catalogue, and those of its partitions."""
    if not counts.num_rows:
        raise CatalogError(f"{context.catalog}: no source in the {region_text(context.region)}; nothing to classify")
    keys = {i: digest.key for i, digest in partitions.items()}  # one string for each partition, shared by its tiles
    tiles: dict[str, Counter[int]] = defaultdict(Counter)
    for row in counts.select(["coadd_id", "partition", "n"]).to_pylist():
        tiles[row["coadd_id"] or NO_TILE][row["partition"]] += row["n"]
    plans = [
        TilePlan(coadd_id, n.total(), tuple(sorted(n)), tuple(keys[i] for i in sorted(n) if keys))
        for coadd_id, n in tiles.items()
    ]
    ordered = tuple(sorted(plans, key=lambda t: (-t.n_sources, t.coadd_id)))
    names_and_counts = repr([(t.coadd_id, t.n_sources) for t in ordered])
    return Plan(ordered, hashlib.sha256(names_and_counts.encode()).hexdigest()[:16], catalog, partitions)


def table_counts(table: pa.Table) -> pa.Table:
    """Return (coadd_id, partition, n) of a table that is the only partition of its catalogue."""
    counts = table.group_by("coadd_id").aggregate([("source_id", "count")])
    zeros = pa.array(np.zeros(len(counts), np.int64))
    return pa.table({"coadd_id": counts["coadd_id"], "partition": zeros, "n": counts["source_id_count"]})
