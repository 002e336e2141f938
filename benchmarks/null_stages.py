"""The plain pipeline with a null stage instead of the archive or the classifier, and the inputs of stages in memory.

All functions are those of skyclass. Without a null stage the rows are those of `skyclass.run.pipeline`; a test compares
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyclass.images.cutouts import read_bands
from skyclass.model.classifier import NullClassifier
from skyclass.model.photometry import features
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext
from skyclass.run.lease import hold_lease
from skyclass.run.pipeline import classify_tile, publish_and_report
from skyclass.run.prepare import count_here, open_run, plan_run
from skyclass.run.progress import NullReporter
from skyclass.run.report import RunReport
from skyclass.run.stages import cut_and_composite, open_tile
from skyclass.run.state import RunState
from skyclass.run.tile_sources import tile_sources
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import Archive, Classifier, Float16, Float32, Float64, Int32, RowRange, Strip, Tile


@dataclass(frozen=True)
class NullArchive:
    """An archive of constant pixels, which reads no file. Headers come from the real archive."""

    real: Archive

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the real tile."""
        return self.real.tile(coadd_id, bands, verify)

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows of ones, (stop - start, columns) float32."""
        return np.ones((stop - start, tile.shape[1]), dtype=np.float32)

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return no digests, because there are no pixels."""
        return {}


@dataclass(frozen=True)
class BenchContext(RunContext):
    """A run context whose archive or classifier may be a null stage."""

    null_archive: bool = False
    null_classifier: bool = False

    @property
    def archive(self) -> Archive:
        """The image archive, or constant pixels."""
        real = super().archive
        return NullArchive(real) if self.null_archive else real

    @property
    def classifier(self) -> Classifier:
        """The network, or a hash of the input."""
        if self.null_classifier:
            return NullClassifier()
        return super().classifier


def classify(run: RunConfig, null_archive: bool = False, null_classifier: bool = False) -> RunReport:
    """Return the report of a whole run in this process, like `pipeline.classify`, with null stages."""
    opened, plan, table = plan_run(run, count_here)
    with hold_lease(opened.folder) as lease:
        opened = open_run(run, opened, plan, table)
        context = BenchContext(**vars(opened), null_archive=null_archive, null_classifier=null_classifier)
        tally = RunState(context, plan, lease, NullReporter())
        for tile in plan.tiles:
            classify_tile(context, tile, run.strip_sources, tally)
        return publish_and_report(run, context, tally)


@dataclass(frozen=True)
class PreparedStrip:
    """The inputs of all stages for a strip."""

    strip: Strip
    tile: Tile
    x: Float64
    y: Float64
    rows: tuple[RowRange, ...]
    images: Float16
    flags: Int32
    photometry: Float32 | None


def prepare_strip(context: RunContext, strip: Strip) -> PreparedStrip:
    """Return a strip with its tile rows, composites and, if the model uses it, photometry in memory."""
    tile = open_tile(context, strip.tile)
    sources = tile_sources(context, strip.tile, tile).slice(strip.start, strip.stop - strip.start)
    x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    rows = read_bands(context.archive, tile, y, context.bundle.size_px)
    images, values = cut_and_composite(rows, tile, x, y, context.bundle.size_px, context.bundle.composite)
    settings = context.bundle.photometry
    photometry = features(sources, settings.features) if settings else None
    return PreparedStrip(strip, tile, x, y, rows, images, values.flags, photometry)
