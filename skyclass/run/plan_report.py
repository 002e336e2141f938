"""The dry run: sources, bytes, memory and time that a run needs, from its plan and a measurement of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..errors import TileFault
from ..model.classifier import load_classifier
from ..model.devices import set_threads
from ..text import counted, html_table
from .config import RunConfig
from .context import RunContext, strips_of
from .plan import Plan, without_tile_lines
from .prepare import count_here, plan_run

PROBE_IMAGES = 256
BYTES_PER_PIXEL = 4
WORKER_BASE_BYTES = 700e6
"""Memory of a worker process with torch, Dask and a compiled network, without pixels."""


@dataclass(frozen=True)
class PlanReport:
    """What a run would read, hold and take; `str` gives the lines that `skyclass plan` prints.

    Parameters
    ----------
    n_sources : int
        Sources to classify.
    n_tiles : int
        Atlas tiles that they lie on.
    n_strips : int
        Pieces of work.
    without_tile : int
        Sources that no tile covers; their rows have no class.
    largest_tile : str
        Name of the tile with the most sources.
    largest_tile_sources : int
        Sources on that tile.
    tile_bytes : int
        Bytes of the pixels of all tiles. Strips that share pixel rows read these twice.
    worker_bytes : float
        Peak memory of a worker in bytes.
    sources_per_second : float
        Rate of the network in one process of this machine, measured now.
    """

    n_sources: int
    n_tiles: int
    n_strips: int
    without_tile: int
    largest_tile: str
    largest_tile_sources: int
    tile_bytes: int
    worker_bytes: float
    sources_per_second: float

    @property
    def process_seconds(self) -> float:
        """Seconds that the network takes in one process."""
        return self.n_sources / self.sources_per_second

    @property
    def lines(self) -> list[str]:
        """The report, line by line."""
        minutes = self.process_seconds / 60
        takes = f"{minutes / 60:,.1f} process hours" if minutes > 60 else f"{minutes:.1f} process minutes"
        return [
            f"{counted(self.n_sources, 'source')} on {counted(self.n_tiles, 'tile')}, "
            f"{counted(self.n_strips, 'strip')}",
            *without_tile_lines(self.without_tile),
            f"most crowded tile: {self.largest_tile} with {counted(self.largest_tile_sources, 'source')}",
            f"{self.tile_bytes / 1e9:,.2f} GB of tile pixels",
            f"up to {self.worker_bytes / 1e9:.1f} GB of memory for each worker",
            f"{self.sources_per_second:,.0f} sources/s in the network of one process here (just measured): {takes}",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<PlanReport: {self.lines[0]}>"

    def _repr_html_(self) -> str:
        return html_table("PlanReport", vars(self))


def plan_report(run: RunConfig) -> PlanReport:
    """Plan a run and return its report. Writes nothing; measures the network on a few images."""
    context, plan, _ = plan_run(run, count_here)
    strips = [strip for tile in plan.tiles for strip in strips_of(tile, run.strip_sources)]
    largest_tile = plan.on_tiles[0]
    return PlanReport(
        n_sources=plan.n_sources,
        n_tiles=len(plan.on_tiles),
        n_strips=len(strips),
        without_tile=plan.without_tile,
        largest_tile=largest_tile.coadd_id,
        largest_tile_sources=largest_tile.n_sources,
        tile_bytes=tile_bytes(context, plan),
        worker_bytes=strip_bytes(context, max(strip.stop - strip.start for strip in strips)),
        sources_per_second=probe_rate(context),
    )


def tile_bytes(context: RunContext, plan: Plan) -> int:
    """Return the bytes of all tiles of a plan, assuming the size of the first usable tile for each."""
    for planned in plan.on_tiles:
        try:
            return context.archive.tile(planned.coadd_id, context.bundle.bands).nbytes * len(plan.on_tiles)
        except TileFault:
            continue
    return 0


def strip_bytes(context: RunContext, n_sources: int) -> float:
    """Return the peak memory of a worker in bytes: the rows of all bands, float16 composites, and a copy of these."""
    cut = context.bundle.cut
    rows = len(cut.bands) * BYTES_PER_PIXEL * 4095**2
    composites = n_sources * len(cut.bands) * cut.size_px**2 * 2
    return WORKER_BASE_BYTES + rows + 2 * composites


def probe_rate(context: RunContext) -> float:
    """Return the images per second of the network in one process with one thread, like a local worker."""
    set_threads(1)
    bundle, n = context.bundle, PROBE_IMAGES
    classifier = load_classifier(context.model, context.device, context.precision, trust_code=context.trust_code)
    images = np.random.default_rng(0).normal(size=(n, len(bundle.bands), bundle.size_px, bundle.size_px))
    composites, wanted = images.astype(np.float16), bundle.photometry
    photometry = np.zeros((n, len(wanted.features)), np.float32) if wanted else None
    classifier.predict(composites[:64], None if photometry is None else photometry[:64])
    began = time.perf_counter()
    classifier.predict(composites, photometry)
    return n / (time.perf_counter() - began)
