"""The straight line with a stage taken out, and what each stage works on, held in memory.

Nothing is computed here: the functions are those of skyclass, and a null stage takes the place of an archive
or a classifier. With no stage taken out the rows are those of `skyclass.pipeline`; a test says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyclass.composite import composite
from skyclass.config import RunConfig
from skyclass.cutouts import cut, row_span
from skyclass.infer import NullClassifier
from skyclass.lease import hold_lease
from skyclass.photometry import features
from skyclass.pipeline import classify_tile, finish
from skyclass.plan import Line, begin, count_here, survey
from skyclass.progress import RunReport, Silent, Tally
from skyclass.sky import tile_pixels
from skyclass.stages import open_tile, tile_sources
from skyclass.types import Archive, Classifier, CutoutBatch, Float16, Float32, Float64, RowRange, Strip, Tile


@dataclass(frozen=True)
class NullArchive:
    """Constant pixels without any reading; headers come from the real archive."""

    real: Archive

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the real tile."""
        return self.real.tile(coadd_id, bands, verify)

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows of ones, (stop - start, columns) float32."""
        return np.ones((stop - start, tile.shape[1]), dtype=np.float32)


@dataclass(frozen=True)
class HeldArchive:
    """The rows of a strip that was read before, so that cutting can be timed without reading."""

    rows: dict[str, RowRange]

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Refuse: a strip that is held knows its tile."""
        raise NotImplementedError(f"{coadd_id}: held rows have no headers")

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return the rows as they were read."""
        return self.rows[band].pixels


@dataclass(frozen=True)
class BenchLine(Line):
    """A line in which the archive or the classifier may be a null stage."""

    null_archive: bool = False
    null_classifier: bool = False

    @property
    def archive(self) -> Archive:
        """The image archive, or constant pixels."""
        real = super().archive
        return NullArchive(real) if self.null_archive else real

    @property
    def classifier(self) -> Classifier:
        """The network, or a hash."""
        if self.null_classifier:
            return NullClassifier()
        return super().classifier


def classify(run: RunConfig, null_archive: bool = False, null_classifier: bool = False) -> RunReport:
    """Return the report of a whole run in this process, like `skyclass.pipeline.classify`, less a stage."""
    opened, plan, table = survey(run, count_here)
    with hold_lease(opened.folder) as lease:
        opened = begin(run, opened, plan, table)
        line = BenchLine(**vars(opened), null_archive=null_archive, null_classifier=null_classifier)
        tally = Tally(line, plan, lease, Silent())
        for tile in plan.tiles:
            classify_tile(line, tile, run.strip_sources, tally)
        return finish(line, tally)


@dataclass(frozen=True)
class HeldStrip:
    """Everything that the stages make of a strip, each stage's input being the output of the one before."""

    strip: Strip
    tile: Tile
    x: Float64
    y: Float64
    rows: dict[str, RowRange]
    batch: CutoutBatch
    images: Float16
    photometry: Float32 | None


def hold(line: Line, strip: Strip) -> HeldStrip:
    """Return a strip with its rows, cutouts, composites and, if the model takes any, photometry in memory."""
    tile = open_tile(line, strip.tile)
    sources = tile_sources(line, strip.tile).slice(strip.start, strip.stop - strip.start)
    x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    rows = read(line, tile, y)
    batch = cut(HeldArchive(rows), tile, x, y, line.bundle.size_px)
    images = composite(batch.pixels, batch.zero_point_mag, line.bundle.composite)
    wanted = line.bundle.photometry
    photometry = features(sources, wanted.features) if wanted else None
    return HeldStrip(strip, tile, x, y, rows, batch, images, photometry)


def read(line: Line, tile: Tile, y: Float64) -> dict[str, RowRange]:
    """Return the rows of each band that cutouts at `y` touch, as the archive reads them."""
    start, stop = row_span(tile, y, line.bundle.size_px)
    return {b: RowRange(start, line.archive.read_rows(tile, b, start, stop)) for b in tile.bands}
