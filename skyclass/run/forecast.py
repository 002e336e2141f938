"""The dry run: sources, bytes, memory and time that a run needs, from its plan and a measurement of the network."""

from __future__ import annotations

import time

import numpy as np

from ..errors import TileFault
from ..model.classifier import load_classifier, set_threads
from ..text import counted
from .config import RunConfig
from .context import RunContext, strips_of
from .plan import Plan, without_tile_lines
from .prepare import count_here, plan_run

PROBE_IMAGES = 256
BYTES_PER_PIXEL = 4
WORKER_BASE_BYTES = 700e6
"""Memory of a worker process with torch, Dask and a compiled network, without pixels."""


def forecast(run: RunConfig) -> list[str]:
    """Return the forecast of a run as lines of text. Writes nothing; measures the network on a few images."""
    context, plan, _ = plan_run(run, count_here)
    strips = [s for tile in plan.tiles for s in strips_of(tile, run.strip_sources)]
    largest = max(s.stop - s.start for s in strips)
    rate = probe_rate(context)
    hours = plan.n_sources / rate / 3600
    duration = f"{hours:,.1f} process hours" if hours > 1 else f"{60 * hours:.1f} process minutes"
    crowded = plan.on_tiles[0]
    return [
        f"{counted(plan.n_sources, 'source')} on {counted(len(plan.on_tiles), 'tile')}, "
        f"{counted(len(strips), 'strip')}",
        *without_tile_lines(plan.without_tile),
        f"most crowded tile: {crowded.coadd_id} with {counted(crowded.n_sources, 'source')}",
        f"{tile_bytes(context, plan) / 1e9:,.2f} GB of tile pixels at most",
        f"up to {strip_bytes(context, largest) / 1e9:.1f} GB of memory for each worker",
        f"{rate:,.0f} sources/s in the network of one process here (just measured): {duration}",
    ]


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
    classifier = load_classifier(context.model, context.device, context.precision)
    images = np.random.default_rng(0).normal(size=(n, len(bundle.bands), bundle.size_px, bundle.size_px))
    composites, wanted = images.astype(np.float16), bundle.photometry
    photometry = np.zeros((n, len(wanted.features)), np.float32) if wanted else None
    classifier.predict(composites[:64], None if photometry is None else photometry[:64])
    began = time.perf_counter()
    classifier.predict(composites, photometry)
    return n / (time.perf_counter() - began)
