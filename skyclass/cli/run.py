"""Commands on a run: classify, plan, publish, gc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..engine.dask_config import load_dask
from ..run.config import RunConfig, run_config
from ..settings import read_toml
from ..text import counted
from ..types import CLASSES, Flag
from .output import EXIT_QUARANTINED, naming_file, print_quarantined, say
from .parameters import parse_cone

F = TypeVar("F", bound=Callable[..., Any])


def run_options(command: F) -> F:
    """Add the options of a run: one for each key of RUN.toml."""
    options = [
        click.argument("run_toml", required=False, type=click.Path(dir_okay=False)),
        click.option("--catalog", help="AllWISE partitions, HATS catalogue, or table of positions (ra, dec)."),
        click.option(
            "--images", help="Folder of Atlas tiles, in the archive's layout or any other; or s3://, https://."
        ),
        click.option("--model", help="Shipped model name or bundle folder.  [default: iicnet-mock]"),
        click.option("--out", help="Run folder; the same command on it resumes."),
        click.option("--cone", metavar="RA,DEC,RADIUS", help="Degrees; the radius may carry a unit: 30arcmin."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="[default: auto]"),
        click.option(
            "--compile",
            type=click.Choice(["auto", "on", "off"]),
            help="The network; auto: where it pays.  [default: auto]",
        ),
        click.option("--device", help="auto, cpu or cuda.  [default: auto]"),
        click.option("--cluster", help="local, none, or a scheduler's address.  [default: local]"),
        click.option("--workers", type=int, help="CPU workers of a local cluster.  [default: cores]"),
        click.option("--memory-limit", help="Memory of each local worker.  [default: 3GB]"),
        click.option("--strip-sources", type=int, help="Most sources in one unit of work.  [default: 16384]"),
        click.option(
            "--allow-truncated", is_flag=True, default=None, help="Accept a VOTable that was cut at a row limit."
        ),
        click.option("--retry-quarantined", is_flag=True, default=None, help="Do quarantined tiles again."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run(run_toml: str | None, cone: str | None, flags: dict[str, Any]) -> RunConfig:
    """Return the run of a file and flags; flags win."""
    data = read_toml(run_toml) if run_toml else {}
    data |= {key: value for key, value in flags.items() if value is not None}
    if cone:
        data["region"] = parse_cone(cone)
    with naming_file(run_toml):
        return run_config(data)


@click.command()
@run_options
def classify(run_toml: str | None, cone: str | None, **flags: Any) -> int:
    """Classify every source of a catalogue and publish the class catalogue under OUT/catalog."""
    run = _run(run_toml, cone, flags)
    say(f"skyclass {__version__}: {run.catalog} with {run.model}, cluster {run.cluster}; planning ...", err=True)
    report = _classify(run)
    _print_report(report, run)
    return EXIT_QUARANTINED if report.quarantined or report.model_faults else 0


def _classify(run: RunConfig) -> Any:
    if run.cluster != "none":
        load_dask()
        from ..engine.engine import classify

        return classify(run)
    from ..model.malloc import keep_memory
    from ..run.pipeline import classify as classify_here
    from ..run.progress import show

    keep_memory()
    return classify_here(run, show)


def _print_report(report: Any, run: RunConfig) -> None:
    faults = f" + {report.model_faults:,} without probabilities" if report.model_faults else ""
    lines = [
        f"{counted(report.sources_in, 'source')} in = {report.classified:,} classified "
        f"+ {report.without_class - report.model_faults:,} without an image{faults}; {report.flagged:,} flagged",
        "classes: " + ", ".join(f"{report.class_counts.get(c, 0):,} {c}" for c in CLASSES),
        f"{counted(report.tiles, 'tile')} ({report.tiles_resumed} from an earlier run), "
        f"{report.tile_bytes_read / 1e6:,.0f} MB read of {report.tile_bytes / 1e6:,.0f} MB of tiles",
        _pace(report),
        f"model {report.model_id}" + (": trained on a SIMULATED sky only" if report.simulated_model else ""),
        f"class catalogue: {Path(run.out) / 'catalog'}",
    ]
    lines[2:2] = _of_inputs(report)
    say(*lines)
    if report.model_faults:
        say(
            f"{report.model_faults:,} sources have no class because {report.model_id} gave no probabilities for their "
            "images (flag 512, MODEL_FAULT): choose another model"
        )
    print_quarantined(report.quarantined, report.remedy)


def _of_inputs(report: Any) -> list[str]:
    """Return what the report says of the catalogue's values and of sources without a tile."""
    from ..run.plan import without_tile_lines
    from ..schema import bad_values_text

    bad = [f"values read as missing (flag {Flag.BAD_VALUE:d}): {bad_values_text(report.bad_values)}"]
    return [*without_tile_lines(report.without_tile), *(bad if report.bad_values else [])]


def _pace(report: Any) -> str:
    if report.tiles_resumed == report.tiles:
        return "nothing was left to do"
    busy = ", ".join(f"{pool} busy for {share:.0%} of it" for pool, share in report.pool_busy.items())
    rate = f"{report.wall_seconds:,.1f} s, {report.sources_per_second:,.0f} sources/s"
    return f"{rate}; bound by {report.bound_by} ({busy})"


@click.command()
@run_options
def plan(run_toml: str | None, cone: str | None, **flags: Any) -> int:
    """Say what a run would do: rows, tiles, bytes, memory, time. Nothing is run or written."""
    load_dask()
    from ..engine.cluster import check_memory_limit
    from ..run.forecast import forecast

    run = _run(run_toml, cone, flags | {"out": flags["out"] or "unused"})
    check_memory_limit(run.memory_limit)
    for line in forecast(run):
        say(line)
    return 0


@click.command()
@click.argument("directory")
def publish(directory: str) -> int:
    """Publish the class catalogue of a finished run folder (again)."""
    from ..run.finish import publish_run
    from ..run.folder import RunFolder, read_run
    from ..run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder) as lease:
        say(f"published {publish_run(folder, fence=lease.check)}")
    return 0


@click.command()
@click.argument("directory")
def gc(directory: str) -> int:
    """Remove what killed runs left behind in a run folder, and earlier publications of its catalogue.

    Tiles and the current publication stay. Programs that have an earlier publication open lose it.
    """
    from ..catalog.versions import superseded_publications
    from ..files import remove
    from ..run.folder import RunFolder, litter, read_run
    from ..run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder):
        leftovers, earlier = litter(folder), superseded_publications(folder.path)
        nbytes = sum(map(remove, leftovers + earlier))
    amount = f"{counted(len(leftovers), 'leftover')} and {counted(len(earlier), 'earlier publication')}"
    say(f"{amount} removed, {nbytes / 1e6:,.1f} MB")
    return 0
