"""Commands on a run: classify, plan, publish, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import __version__, api
from ..run.config import RunConfig
from ..text import counted, one_or_many
from ..types import Flag
from .options import ConfigCommand, config_options, read_config
from .output import EXIT_QUARANTINED, print_quarantined, say


@click.command(cls=ConfigCommand)
@config_options(RunConfig, "RUN_TOML")
def classify(toml: str | None, **options: Any) -> int:
    """Classify every source of a catalogue and publish the class catalogue in OUT/catalog.

    RUN_TOML holds the same keys as the options below, which override it; `skyclass init run` writes one.
    """
    run = read_config(RunConfig, toml, options)
    say(f"skyclass {__version__}: {run.catalog} with {run.model}, cluster {run.cluster}; planning ...", err=True)
    report = api.classify(run)
    _print_report(report, run)
    return EXIT_QUARANTINED if report.quarantined or report.model_faults else 0


def _print_report(report: Any, run: RunConfig) -> None:
    from ..catalog.prior_files import prior_lines

    faults = f" + {report.model_faults:,} without probabilities" if report.model_faults else ""
    lines = [
        f"{counted(report.sources_in, 'source')} in = {report.classified:,} classified "
        f"+ {report.without_class - report.model_faults:,} without an image{faults}; {report.flagged:,} flagged",
        "classes: " + ", ".join(f"{n:,} {name}" for name, n in report.class_counts.items()),
        f"{counted(report.tiles, 'tile')} ({report.tiles_resumed} from an earlier run), "
        f"{report.tile_bytes_read / 1e6:,.0f} MB read of {report.tile_bytes / 1e6:,.0f} MB of tiles",
        _pace(report),
        f"model {report.model_id}" + (": trained on a SIMULATED sky only" if report.simulated_model else ""),
        f"class catalogue: {Path(run.out) / 'catalog'}",
    ]
    lines[-1:-1] = prior_lines(Path(run.out) / "catalog")
    lines[2:2] = _of_inputs(report)
    say(*lines)
    if report.model_faults:
        has = one_or_many(report.model_faults, "has", "have")
        say(
            f"{counted(report.model_faults, 'source')} {has} no class because {report.model_id} gave no probabilities "
            "for the images (flag 512, MODEL_FAULT): choose another model"
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


@click.command(cls=ConfigCommand)
@config_options(RunConfig, "RUN_TOML", not_required=["out"])
def plan(toml: str | None, **options: Any) -> int:
    """Print the rows, tiles, bytes, memory and time of a run, without running or writing anything."""
    run = read_config(RunConfig, toml, options | {"out": options["out"] or "unused"})
    say(*api.plan(run).lines)
    return 0


@click.command()
@click.argument("directory")
@click.option("--prior", help="As of classify.  [default: the one of the call that started the run]")
def publish(directory: str, prior: str | None) -> int:
    """Publish the class catalogue of a finished run folder (again)."""
    from ..catalog.prior_files import prior_lines
    from ..run.finish import publish_run
    from ..run.folder import RunFolder, read_run
    from ..run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder) as lease:
        manifest = publish_run(folder, fence=lease.check, prior=prior)
    say(*prior_lines(manifest.parent), f"published {manifest}")
    return 0


@click.command()
@click.argument("directory")
def gc(directory: str) -> int:
    """Remove what killed runs left behind in a run folder, and earlier publications of its catalogue.

    Tiles and the current publication stay. Programs that have an earlier publication open lose it.
    """
    from ..catalog.versions import superseded_publications
    from ..files import remove
    from ..run.folder import RunFolder, leftover_files, read_run
    from ..run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder):
        leftovers, earlier = leftover_files(folder), superseded_publications(folder.path)
        nbytes = sum(map(remove, leftovers + earlier))
    amount = f"{counted(len(leftovers), 'leftover')} and {counted(len(earlier), 'earlier publication')}"
    say(f"{amount} removed, {nbytes / 1e6:,.1f} MB")
    return 0
