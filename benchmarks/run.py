"""Measure a scenario: each stage alone, the whole pipeline, the pipeline with a null stage, the engine."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skyclass.engine import engine
from skyclass.engine.cluster import connect
from skyclass.images.composite import BLOCK
from skyclass.images.cutouts import Cutter, read_bands
from skyclass.mock import write_mock
from skyclass.model.classifier import cached_classifier
from skyclass.model.malloc import keep_memory
from skyclass.run import pipeline
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext, strips_of
from skyclass.run.finish import publish_run
from skyclass.run.folder import RunFolder
from skyclass.run.prepare import count_here, open_run, plan_run
from skyclass.run.progress import no_progress
from skyclass.run.report import RunReport
from skyclass.run.stages import (
    commit_strips,
    cut_and_composite,
    cut_strip,
    infer_strip,
    open_tile,
)
from skyclass.run.strips import StripResult
from skyclass.run.tile_sources import planned_sources, tile_sources
from skyclass.types import Flag, TilePlan

from . import null_stages
from .null_stages import PreparedStrip, prepare_strip
from .scenarios import Scenario, find
from .timing import (
    Amount,
    Measurement,
    drop_from_page_cache,
    measure,
    peak_here_mb,
    reset_peak,
    surroundings,
)

WORK = Path(__file__).parent / "work"
"""Simulated skies, made once, and run folders, removed after the measurement. Not in git."""


@dataclass(frozen=True)
class Bench:
    """A scenario with its sky on disk and the inputs of all stages in memory."""

    scenario: Scenario
    images: Path
    run: RunConfig
    context: RunContext
    strips: tuple[PreparedStrip, ...]
    results: dict[TilePlan, list[StripResult]]

    @property
    def n_sources(self) -> int:
        """Sources of the whole scenario."""
        return sum(tile.n_sources for tile in self.results)

    def fresh(self) -> RunConfig:
        """Return the run with a new folder, and drop the images from the page cache."""
        drop_from_page_cache(self.images)
        return replace(self.run, out=self.new_folder())

    def new_folder(self) -> str:
        """Return the name of a new run folder."""
        return f"{self.run.out}-{uuid.uuid4().hex}"

    def amount(self, n_bytes: int | None = None) -> Amount:
        """Return the amount of work of one run over all sources."""
        return Amount(self.n_sources, n_bytes)


def run_scenario(
    scenario: str | Scenario, output: str | None, echo: Callable[[str], None], work: Path = WORK
) -> list[dict[str, Any]]:
    """Return one record for each stage, print it by `echo`, and append it to the file `output`."""
    scenario = find(scenario) if isinstance(scenario, str) else scenario
    facts = {"scenario": scenario.name, "settings": asdict(scenario) | {"model": Path(scenario.model).name}}
    conditions = surroundings(scenario)
    records = []
    folder = work / "runs"
    keep_memory()
    try:
        for measurement in measurements(prepare_bench(scenario, work, folder)):
            records.append({**facts, **measurement.to_dict(), **conditions})
            write_record(records[-1], output, echo)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return records


def write_record(record: dict[str, Any], output: str | None, echo: Callable[[str], None]) -> None:
    """Print a record, and append it to a file, if given."""
    text = json.dumps(record)
    echo(text)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a") as file:
            file.write(text + "\n")


def prepare_bench(scenario: Scenario, work: Path, folder: Path) -> Bench:
    """Return a scenario that is ready to be measured: with its sky, one finished run, and the inputs of all stages."""
    sky = make_sky(scenario, work)
    catalog, images = sky / "catalog", sky / "images"
    out = folder / scenario.name
    shutil.rmtree(folder, ignore_errors=True)
    run = RunConfig(
        catalog=str(catalog), images=str(images), out=str(out), model=scenario.model,
        device=scenario.device, precision=scenario.precision,
    )  # fmt: skip
    pipeline.classify(run)
    context, plan, table = plan_run(run, count_here)
    context = open_run(run, context, plan, table)
    strips = {tile: strips_of(tile, run.strip_sources) for tile in plan.tiles}
    prepared = tuple(prepare_strip(context, strip) for parts in strips.values() for strip in parts)
    results = {t: [infer_strip(context, cut_strip(context, s)) for s in parts] for t, parts in strips.items()}
    return Bench(scenario, images, run, context, prepared, results)


def make_sky(scenario: Scenario, work: Path) -> Path:
    """Return the folder of the simulated sky of a scenario, and make it if it is absent."""
    size = f"{scenario.n_tiles}x{scenario.sources_per_tile}-{scenario.size_px}px-seed{scenario.seed}"
    sky = work / f"sky-{size}"
    if not sky.exists():
        making = work / f"making-{uuid.uuid4().hex}"
        write_mock(
            str(making), n_tiles=scenario.n_tiles, seed=scenario.seed,
            sources_per_tile=scenario.sources_per_tile, size_px=scenario.size_px,
        )  # fmt: skip
        making.rename(sky)
    return sky


def measurements(bench: Bench) -> Iterator[Measurement]:
    """Yield the measurements of a scenario."""
    yield from stage_measurements(bench)
    yield from pipeline_measurements(bench)
    for workers in bench.scenario.engine_workers:
        yield engine_measurement(bench, workers)


def stage_measurements(bench: Bench) -> Iterator[Measurement]:
    """Yield the measurement of each stage alone, with inputs in memory."""
    nothing = bool
    threads = torch.get_num_threads()
    yield measure("catalog", lambda _: time_catalog(bench), nothing, bench.scenario)
    yield measure("read", lambda _: time_read(bench), lambda: drop_from_page_cache(bench.images), bench.scenario)
    yield measure("cut", lambda _: time_cut(bench), nothing, bench.scenario)
    yield measure("composites", lambda _: time_composites(bench), nothing, bench.scenario)
    yield measure("infer", lambda _: time_infer(bench), nothing, bench.scenario, threads)
    yield measure("commit", lambda context: time_commit(bench, context), lambda: fresh_context(bench), bench.scenario)
    yield measure("publish", lambda _: time_publish(bench), nothing, bench.scenario)


def time_catalog(bench: Bench) -> Amount:
    """Read and order the sources of each tile."""
    for tile in bench.results:
        planned_sources.cache_clear()
        tile_sources.__wrapped__(bench.context, tile, open_tile(bench.context, tile))
    return bench.amount()


def time_read(bench: Bench) -> Amount:
    """Read the tile rows of each strip from disk."""
    size_px = bench.context.bundle.size_px
    rows = [read_bands(bench.context.archive, held.tile, held.y, size_px) for held in bench.strips]
    return bench.amount(sum(band.pixels.nbytes for bands in rows for band in bands))


def time_cut(bench: Bench) -> Amount:
    """Cut from rows in memory, with flags. The bytes are those of the cutouts."""
    size_px, n_bands = bench.context.bundle.size_px, len(bench.context.bundle.bands)
    pixels = np.empty((BLOCK, n_bands, size_px, size_px), np.float32)
    for held in bench.strips:
        cutter = Cutter(held.rows, held.tile, held.x, held.y, size_px)
        for start in range(0, len(held.x), BLOCK):
            block = slice(start, min(start + BLOCK, len(held.x)))
            cutter.cut(block, pixels[: block.stop - start])
        cutter.flags_and_valid_frac()
    return bench.amount(bench.n_sources * pixels[0].nbytes)


def time_composites(bench: Bench) -> Amount:
    """Cut and composite from rows in memory. The bytes are those of the composites."""
    for held in bench.strips:
        cut_and_composite(
            held.rows, held.tile, held.x, held.y, bench.context.bundle.size_px, bench.context.bundle.composite
        )
    return bench.amount(sum(held.images.nbytes for held in bench.strips))


def time_infer(bench: Bench) -> Amount:
    """Classify composites in memory. The bytes are those of the composites."""
    context = bench.context
    classifier = cached_classifier(context.model, context.model_digest, context.device, context.precision)
    for held in bench.strips:
        has_image: np.ndarray[Any, Any] = (held.flags & int(Flag.NO_IMAGE)) == 0
        photometry = None if held.photometry is None else held.photometry[has_image]
        classifier.predict(held.images[has_image], photometry)
    return bench.amount(sum(held.images.nbytes for held in bench.strips))


def fresh_context(bench: Bench) -> RunContext:
    """Return the context of a run with an empty folder and cached sources, as after cutting."""
    context = replace(bench.context, out=bench.new_folder())
    context.folder.make()
    for tile in bench.results:
        tile_sources(context, tile)
    return context


def time_commit(bench: Bench, context: RunContext) -> Amount:
    """Make the rows of each tile and commit them. The bytes are those of the files."""
    commits = [commit_strips(context, tile, results)[0] for tile, results in bench.results.items()]
    return bench.amount(sum(commit.nbytes for commit in commits))


def time_publish(bench: Bench) -> Amount:
    """Publish the class catalogue of a finished run. The bytes are those of its Parquet files."""
    publish_run(bench.context.folder)
    files = RunFolder(bench.context.folder.catalog).path.rglob("*.parquet")
    return bench.amount(sum(path.stat().st_size for path in files))


def pipeline_measurements(bench: Bench) -> Iterator[Measurement]:
    """Yield the measurements of the whole pipeline, and of the pipeline with a null archive or a null network."""
    pipelines: dict[str, Callable[[RunConfig], RunReport]] = {
        "line": pipeline.classify,
        "line-null-archive": lambda run: null_stages.classify(run, null_archive=True),
        "line-null-classifier": lambda run: null_stages.classify(run, null_classifier=True),
    }
    for name, classify in pipelines.items():
        yield measure(name, whole(classify), bench.fresh, bench.scenario, torch.get_num_threads())


def whole(classify: Callable[[RunConfig], RunReport]) -> Callable[[RunConfig], Amount]:
    """Return the work of a whole run. The bytes are those of the tile rows that it requested."""

    def work(run: RunConfig) -> Amount:
        report = classify(run)
        return Amount(report.sources_in, report.tile_bytes_read)

    return work


def engine_measurement(bench: Bench, workers: int) -> Measurement:
    """Return the measurement of the engine on a local cluster of workers with one thread; memory is summed."""
    with connect("local", workers=workers) as client:
        client.run(reset_peak)
        return measure(
            f"engine-{workers}",
            whole(lambda run: engine.classify(run, client, no_progress)),
            bench.fresh,
            bench.scenario,
            workers,
            lambda: peak_here_mb() + sum(client.run(peak_here_mb).values()),
        )
