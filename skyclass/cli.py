"""The command line: each verb parses, makes a configuration, calls one function and gives an exit code.

0 done; 1 failed; 2 wrong usage or input; 3 done, with quarantined tiles; 4 interrupted, run again to resume.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from . import __version__
from .config import RunConfig, read_toml, run_config
from .errors import ConfigError, Interrupted, SkyclassError
from .sky import Cone, parse_angle
from .types import BANDS, CLASSES

F = TypeVar("F", bound=Callable[..., Any])
EXIT_QUARANTINED = 3
PREVIEW_ROWS = 30


def main() -> None:
    """Run the command line and end the process with its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's word to stop, like Ctrl-C
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the one into the other
        _fail(Interrupted("stopped; what is committed is kept: run the same command again to resume"))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except SkyclassError as error:
        _fail(error)
    except OSError as error:
        _fail(SkyclassError(f"{error.strerror or error}: {error.filename or 'no file named'}"))


def _fail(error: SkyclassError) -> None:
    click.echo(f"skyclass: {error}", err=True)
    sys.stderr.flush()
    os._exit(error.exit_code)  # native threads of Arrow and torch may still run, and abort an orderly exit


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="skyclass")
def cli() -> None:
    """Classify whole infrared catalogues from their images."""
    logging.getLogger("distributed").setLevel(logging.ERROR)


def run_options(command: F) -> F:
    """Add the options of a run: one for each key of RUN.toml."""
    options = [
        click.argument("run_toml", required=False, type=click.Path(dir_okay=False)),
        click.option("--catalog", help="AllWISE partitions, HATS catalogue, or table of positions (ra, dec)."),
        click.option("--images", help="Folder of Atlas tiles, in the archive's layout or any other."),
        click.option("--model", help="Shipped model name or bundle folder.  [default: iicnet-mock]"),
        click.option("--out", help="Run folder; the same command on it resumes."),
        click.option("--cone", metavar="RA,DEC,RADIUS", help="Degrees; the radius may carry a unit: 30arcmin."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"])),
        click.option("--device", help="auto, cpu or cuda."),
        click.option("--cluster", help="local, none, or a scheduler's address.  [default: local]"),
        click.option("--workers", type=int, help="CPU workers of a local cluster.  [default: cores]"),
        click.option("--memory-limit", help="Memory of each local worker.  [default: 3GB]"),
        click.option("--strip-sources", type=int, help="Most sources in one unit of work.  [default: 16384]"),
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
    return run_config(data)


def parse_cone(text: str) -> Cone:
    """Return the cone of "RA,DEC,RADIUS"."""
    parts = text.split(",")
    if len(parts) != 3:
        raise ConfigError(f"--cone {text!r}: write RA,DEC,RADIUS, such as 150.1,2.2,30arcmin")
    return Cone(parse_angle(parts[0]), parse_angle(parts[1]), parts[2])


@cli.command()
@run_options
def classify(run_toml: str | None, cone: str | None, **flags: Any) -> int:
    """Classify every source of a catalogue and publish the class catalogue under OUT/catalog."""
    run = _run(run_toml, cone, flags)
    click.echo(f"skyclass {__version__}: {run.catalog} with {run.model}, cluster {run.cluster}; planning ...", err=True)
    report = _classify(run)
    _print_report(report, run)
    return EXIT_QUARANTINED if report.quarantined else 0


def _classify(run: RunConfig) -> Any:
    if run.cluster != "none":
        from .engine import classify

        return classify(run)
    from .pipeline import classify as classify_here
    from .progress import show

    return classify_here(run, show)


def _print_report(report: Any, run: RunConfig) -> None:
    lines = [
        f"{report.sources_in:,} sources in = {report.classified:,} classified "
        f"+ {report.without_class:,} without an image; {report.flagged:,} flagged",
        "classes: " + ", ".join(f"{report.class_counts.get(c, 0):,} {c}" for c in CLASSES),
        f"{report.tiles} tiles ({report.tiles_resumed} from an earlier run), "
        f"{report.tile_bytes_read / 1e6:,.0f} MB read of {report.tile_bytes / 1e6:,.0f} MB of tiles",
        f"{report.wall_seconds:,.1f} s, {report.sources_per_second:,.0f} sources/s",
        f"model {report.model_id}" + (": trained on a SIMULATED sky only" if report.simulated_model else ""),
        f"class catalogue: {Path(run.out) / 'catalog'}",
    ]
    click.echo("\n".join(lines))
    for tile, reason in report.quarantined.items():
        click.echo(f"quarantined {tile}: {reason}")


@cli.command()
@run_options
def plan(run_toml: str | None, cone: str | None, **flags: Any) -> int:
    """Say what a run would do: rows, tiles, bytes, memory, time. Nothing is run or written."""
    from .forecast import forecast

    for line in forecast(_run(run_toml, cone, flags | {"out": flags["out"] or "unused"})):
        click.echo(line)
    return 0


@cli.command()
@click.option("--catalog", required=True, help="Table of positions (ra, dec), or a catalogue.")
@click.option("--images", required=True, help="Folder of Atlas tiles.")
@click.option("-o", "--output", required=True, help="FILE.npz")
@click.option("--size", default="50arcsec", show_default=True, help="Side, as an angle or in pixels (37px).")
@click.option("--bands", default="w1,w2,w3", show_default=True)
def cutouts(catalog: str, images: str, output: str, size: str, bands: str) -> int:
    """Cut native-size cutouts, to look at or to keep, in the order of the table."""
    from .stamps import write_cutouts

    names = tuple(bands.lower().split(","))
    if unknown := [b for b in names if b not in BANDS]:
        raise ConfigError(f"--bands {bands}: unknown {', '.join(unknown)}; choose from {', '.join(BANDS)}")
    click.echo(write_cutouts(catalog, images, output, size, names))
    return 0


@cli.command()
@click.argument("directory")
@click.option("--tiles", default=2, show_default=True, help="Number of neighbouring Atlas tiles.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same bytes.")
@click.option("--sources-per-tile", type=int, help="[default: 20000 on a full tile, the same density on a smaller one]")
@click.option("--size", default=4095, show_default=True, help="Pixels on a side of a tile.")
@click.option("--mix", type=click.Choice(["natural", "balanced"]), default="natural", show_default=True)
def mock(
    directory: str,
    tiles: int,
    seed: int,
    sources_per_tile: int,
    size: int,
    mix: Literal["natural", "balanced"],
) -> int:
    """Make a simulated sky: images, catalogue and truth, in the layouts of the real archive."""
    from .mock import write_mock

    made = write_mock(directory, n_tiles=tiles, seed=seed, sources_per_tile=sources_per_tile, size_px=size, mix=mix)
    counts = ", ".join(f"{n:,} {name}" for name, n in made.class_counts.items())
    click.echo(
        f"SIMULATED sky in {made.directory}: {made.n_sources:,} sources ({counts}) on {', '.join(made.coadd_ids)}"
    )
    click.echo(f"skyclass classify --catalog {made.catalog} --images {made.images} --out classes")
    return 0


@cli.command()
@click.argument("directory", default="skyclass-demo")
@click.option("--tiles", default=2, show_default=True)
@click.option("--sources-per-tile", default=12_000, show_default=True)
@click.option("--size", default=4095, show_default=True, help="Pixels on a side of a tile.")
@click.option("--seed", default=2026, show_default=True, help="Not that of a sky the model was trained on.")
@click.option("--mix", type=click.Choice(["natural", "balanced"]), default="natural", show_default=True)
def demo(
    directory: str, tiles: int, sources_per_tile: int, size: int, seed: int, mix: Literal["natural", "balanced"]
) -> int:
    """Make a simulated sky, classify it, publish it, and compare it with the truth."""
    from .mock import write_mock
    from .mock.demo import run_demo

    click.echo(f"1. a SIMULATED sky in {directory}/mock: {tiles} Atlas tiles of {size} x {size} pixels, {mix} mix")
    sky = write_mock(Path(directory) / "mock", tiles, seed, sources_per_tile, size, mix)
    return 0 if run_demo(Path(directory), sky, click.echo) else 1


@cli.command()
@click.argument("directory")
def publish(directory: str) -> int:
    """Publish the class catalogue of a finished run folder (again)."""
    from .publish import publish as publish_run
    from .store import RunFolder, hold_lease, read_run

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder):
        click.echo(f"published {publish_run(folder)}")
    return 0


@cli.command()
@click.argument("catalogue")
def verify(catalogue: str) -> int:
    """Check a published catalogue: every row accounted for, every file unchanged, every key once."""
    from .publish import verify as verify_catalogue

    report = verify_catalogue(catalogue)
    click.echo(str(report))
    return 0 if report.ok else 1


@cli.command()
@click.argument("catalogue")
@click.option("--cone", metavar="RA,DEC,RADIUS", help="Degrees; the radius may carry a unit: 30arcmin.")
@click.option("--where", help='SQL condition, such as "p_quasar > 0.9 AND w1snr > 20".')
@click.option("--columns", help="Comma-separated; all when absent.")
@click.option("--sql", help="SQL over the table `classes` (the rows selected so far).")
@click.option("-o", "--output", help="Write .parquet, .csv, .fits or .vot; print otherwise.")
def query(
    catalogue: str,
    cone: str | None,
    where: str | None,
    columns: str | None,
    sql: str | None,
    output: str | None,
) -> int:
    """Select rows of a class catalogue by position and condition; print or export them."""
    from .query import export_table, open_catalog

    classes = open_catalog(catalogue)
    if cone:
        classes = classes.region(parse_cone(cone))
    if where:
        classes = classes.where(where)
    if columns:
        classes = classes.select([c.strip() for c in columns.split(",")])
    if output:
        if sql:
            answer = classes.sql_arrow(sql)
            click.echo(f"{len(answer):,} rows written to {export_table(answer, output)}")
        else:
            written = classes.export(output)
            click.echo(f"{classes.count():,} rows written to {written}")
    elif sql:
        click.echo(classes.sql(sql).to_string(index=False))
    else:
        click.echo(classes.sql(f"SELECT * FROM classes LIMIT {PREVIEW_ROWS}").to_string(index=False))
        click.echo(f"{classes.count():,} rows")
    return 0


@cli.command()
@click.argument("train_toml", type=click.Path(dir_okay=False))
def train(train_toml: str) -> int:
    """Train a network on labelled sources and write its model bundle."""
    from .training.train import train as run_training
    from .training.train import train_config

    bundle = run_training(train_config(read_toml(train_toml)), lambda e: click.echo(json.dumps(e), err=True))
    click.echo(f"{bundle.model_id} written to {bundle.path}")
    return 0


@cli.command()
@click.argument("scenario", default="laptop")
@click.option("-o", "--output", default=None, help="Append JSON lines here too.")
def bench(scenario: str, output: str | None) -> int:
    """Time each stage and the whole line; one JSON line each."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "benchmarks" / "run.py").is_file():
        raise ConfigError(
            f"`skyclass bench` needs the folder benchmarks/ beside the package, and {checkout} has none: "
            "install skyclass from a checkout with `pip install --editable .`"
        )
    sys.path.insert(0, str(checkout))
    from benchmarks.run import run_scenario

    run_scenario(scenario, output, click.echo)
    return 0
