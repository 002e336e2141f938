"""The context of a run: the inputs that a stage needs on any worker, opened once for each process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..images.archive import AtlasArchive, open_archive
from ..model.bundle import Bundle, read_bundle
from ..model.classifier import cached_classifier
from ..model.photometry import columns_of, further_columns
from ..sky.regions import Region
from ..sources.by_tile import positions_without_tile
from ..sources.opening import open_sources
from ..sources.source_table import SourceTable
from ..types import Classifier, Strip, Tile, TilePlan
from .folder import RunFolder


@dataclass(frozen=True)
class RunContext:
    """The names and settings that any stage of a run needs on a worker: at most a kilobyte, no data."""

    catalog: str
    region: Region | None
    images: str
    model: str
    model_digest: str
    precision: str
    device: str
    out: str
    session: str
    """Identifier of one call of `classify`: files that a worker opened for an earlier call are not used again."""
    run_id: str = ""
    compile_on: tuple[str, ...] = ()
    """Kinds of device, cpu and cuda, for which the network is compiled. If any, every worker that infers has one."""
    trust_code: bool = False
    """Whether the network may be code outside of skyclass."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.out))

    @property
    def bundle(self) -> Bundle:
        """The model bundle, read once for each process."""
        return _bundle(self.model, self.model_digest)

    @property
    def sources(self) -> SourceTable:
        """The partitions of this run, listed once for each process."""
        return _sources(self.catalog, self.region, further_columns_of(self.bundle), self.session)

    @property
    def archive(self) -> AtlasArchive:
        """The image archive, opened once for each process."""
        return _archive(self.images, self.bundle.bands, self.session)

    @property
    def is_compiled(self) -> bool:
        """True when the workers of this run compile the network."""
        return bool(self.compile_on)

    @property
    def classifier(self) -> Classifier:
        """The network on this worker's device, loaded once a process."""
        return cached_classifier(
            self.model, self.model_digest, self.device, self.precision, self.is_compiled, self.trust_code
        )


@lru_cache(maxsize=4)
def _bundle(model: str, digest: str) -> Bundle:
    return read_bundle(model, digest)


@lru_cache(maxsize=4)
def _archive(images: str, bands: tuple[str, ...], session: str) -> AtlasArchive:
    return open_archive(images, bands)


@lru_cache(maxsize=4)
def _sources(location: str, region: Region | None, further: tuple[str, ...], session: str) -> SourceTable:
    return open_sources(location, region, further=further)


def further_columns_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the columns that a model needs of a catalogue besides those of a source."""
    return further_columns(columns_of(bundle.photometry.features)) if bundle.photometry else ()


@lru_cache(maxsize=64)
def tiles_near(context: RunContext, partition: int) -> tuple[Tile, ...]:
    """Return the tiles near the sources of a partition that have no `coadd_id`."""
    if context.sources.is_prepared:  # the driver has assigned the sources to tiles
        return ()
    positions = positions_without_tile(context.sources, partition)
    return tuple(_archive(context.images, context.bundle.bands, context.session).list_tiles(positions))


def strips_of(tile: TilePlan, strip_sources: int) -> list[Strip]:
    """Return the strips of a tile: parts of equal size, of at most `strip_sources` sources."""
    n_strips = -(-tile.n_sources // strip_sources)
    edges = np.linspace(0, tile.n_sources, n_strips + 1).round().astype(int)
    return [Strip(tile, int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
