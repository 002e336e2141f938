"""`python -m benchmarks.profiles WHAT`: profiles of the stages, for changes of the speed.

    cut     tile files -> composites, one core
    infer   composites -> probabilities
    network the same compiled, kernel by kernel, on one thread
    line    the whole pipeline in one process
    scale   driver and scheduler with 256 simulated GPUs (`--form`), a tenth of the sky

The profiler is that of Python, or of torch for `network`. It makes calls slower, so only shares are meaningful; times
come from `benchmarks.rivals` and `benchmarks.scale`. The sky is SIMULATED.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import torch

from skyclass.engine import tile_window
from skyclass.model.classifier import MICRO_BATCH, load_classifier
from skyclass.model.compile import OPTIONS
from skyclass.model.devices import set_threads
from skyclass.model.malloc import keep_memory
from skyclass.run import pipeline
from skyclass.run.progress import no_progress
from skyclass.run.stages import cut_strip, infer_strip
from skyclass.types import Strip

from . import scale
from .field import DENSE, MODEL, Field, field_of
from .run import WORK
from .scenarios import Scenario
from .timing import commit, cores, cpu_model

INFERRED = 2_048
TENTH = 1_824
"""Tiles of a tenth of the sky."""


def top(profile: pstats.Stats, rows: int) -> str:
    """Return the functions with the most own time, and their share of the time with the functions that they call."""
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = profile.stats  # type: ignore[attr-defined]
    whole = sum(own for _, _, own, _, _ in stats.values())
    lines = ["| own time | with what it calls | calls | |", "|---:|---:|---:|---|"]
    for (file, _, name), (_, calls, own, cumulative, _) in sorted(stats.items(), key=lambda s: -s[1][2])[:rows]:
        _, package, inside = file.rpartition("skyclass/")
        short = package + inside if package else "/".join(Path(file).parts[-2:])
        where = short if file.endswith(".py") else ""
        lines.append(f"| {own / whole:.1%} | {min(cumulative / whole, 1):.1%} | {calls:,} | `{name}` {where} |")
    return "\n".join(lines)


def profiled(work: Callable[[], object]) -> pstats.Stats:
    """Return the profile of the second run of some work."""
    work()
    profiler = cProfile.Profile()
    profiler.runcall(work)
    return pstats.Stats(profiler)


def works(field: Field) -> dict[str, Callable[[], object]]:
    """Return the work that can be profiled in this process, by name."""
    tile = field.strips[0].tile
    cut = cut_strip(field.context, Strip(tile, 0, min(INFERRED, tile.n_sources)))
    return {
        "cut": lambda: [cut_strip(field.context, strip) for strip in field.strips],
        "infer": lambda: infer_strip(field.context, cut),
        "line": lambda: pipeline.classify(
            replace(field.run, out=tempfile.mkdtemp(dir=field.context.folder.path)), no_progress
        ),
    }


def kernels(rows: int, passes: int = 20) -> str:
    """Return the time of the compiled network by kernel: share, microseconds for an image, kernel, shapes of inputs."""
    graph, n = load_classifier(MODEL, "cpu").module, MICRO_BATCH["cpu"]
    composites = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (n, 3, 37, 37)).astype(np.float16))
    compiled = torch.compile(graph, dynamic=False, options=OPTIONS | {"cpp.enable_kernel_profile": True})
    with torch.inference_mode():
        compiled(composites)
        with torch.profiler.profile(record_shapes=True) as profile:
            for _ in range(passes):
                compiled(composites)
    events = profile.key_averages(group_by_input_shape=True)
    whole = sum(event.self_cpu_time_total for event in events)
    lines = ["| own time | us an image | |", "|---:|---:|---|"]
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:rows]:
        own, shapes = event.self_cpu_time_total, [shape for shape in event.input_shapes[:2] if len(shape) == 4]
        lines.append(f"| {own / whole:.1%} | {own / passes / n:.0f} | `{event.key}` {' * '.join(map(str, shapes))} |")
    return "\n".join(lines)


def profile_of_scale(form: str, gpus: int, tiles: int) -> dict[str, pstats.Stats]:
    """Return the profiles of the main thread of the driver and of the scheduler."""
    driver, run_tiles = cProfile.Profile(), tile_window.run_tiles
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scheduler.prof"
        with patch.object(tile_window, "run_tiles", lambda *given: driver.runcall(run_tiles, *given)):
            scale.simulate(gpus, scale.sky_plan(tiles), scale.RATES, form, path)
        return {"driver": pstats.Stats(driver), "scheduler": pstats.Stats(str(path))}


@click.command()
@click.argument("what", type=click.Choice(["cut", "infer", "network", "line", "scale"]))
@click.option("--form", default="split", show_default=True, type=click.Choice(scale.FORMS))
@click.option("--rows", default=15, show_default=True)
@click.option("--quick", is_flag=True, help="Small, to test the command.")
def main(what: str, form: str, rows: int, quick: bool) -> None:
    """Print a profile."""
    click.echo(f"{what}; {cpu_model()}, {cores()} cores, commit {commit()}; simulated sky\n")
    if what == "scale":
        for part, profile in profile_of_scale(form, *((2, 20) if quick else (256, TENTH))).items():
            click.echo(f"{part}, {form}:\n\n{top(profile, rows)}\n")
        return
    set_threads(1)
    keep_memory()
    if what == "network":
        click.echo(kernels(rows))
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        field = field_of(Scenario("quick", 1, 300, 700, 1) if quick else DENSE, WORK, f"{folder}/classes")
        field.context.folder.make()
        click.echo(top(profiled(works(field)[what]), rows))


if __name__ == "__main__":
    main()
