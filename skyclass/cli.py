"""The command line: each verb parses, makes a configuration, calls one function and gives an exit code.

0 done; 1 failed; 2 wrong usage or input; 3 done, with quarantined tiles or
sources for which the model gave no probabilities; 4 interrupted, run again to resume.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO, TypeVar

import click

from . import __version__
from .engine.dask_config import load_dask
from .errors import ConfigError, Interrupted, NotPublished, NotStarted, SkyclassError, TableWarning
from .locations import refuse_logins
from .run.config import RunConfig, run_config
from .settings import read_toml
from .signals import leave, was_stopped
from .sky.healpix import parse_angle
from .sky.regions import Box, Cone
from .text import printable, shell_command, table_text
from .types import BANDS, CLASSES, Flag

if TYPE_CHECKING:
    import pyarrow as pa

F = TypeVar("F", bound=Callable[..., Any])
EXIT_QUARANTINED = 3
PREVIEW_ROWS = 30
UNUSABLE_PATHS = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES}
"""What a path that was given wrong leads to; other errors of the system are failures."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin make a busy machine five times slower
    print_any_character()
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the one into the other
        _fail(Interrupted(STOPPED))
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(*text.getvalue().rstrip().split("\n"), err=True)
        sys.exit(2)
    except SkyclassError as error:
        _fail(error)
    except OSError as error:
        if was_stopped():
            _fail(Interrupted(STOPPED))
        _fail((ConfigError if error.errno in UNUSABLE_PATHS else SkyclassError)(describe(error)))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning about a user's table as one line; others with their place in the code."""
    place = "" if issubclass(category, TableWarning) else f"{filename}:{lineno}: {category.__name__}: "
    say(f"skyclass: warning: {place}{message}", err=True)


STOPPED = "stopped; what a run or a training has committed is kept: the same command resumes it"


def describe(error: OSError) -> str:
    """Return what failed and on which file."""
    if error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or repr(error)


def _fail(error: SkyclassError) -> NoReturn:
    lines = [error.message or repr(error), *(f"  {detail}" for detail in error.details)]
    if isinstance(error, Interrupted) and not isinstance(error, NotStarted):
        lines.append(f"  {shell_command(['skyclass', *sys.argv[1:]])}")
    leave("\n".join(map(printable, lines)), error.exit_code)


def print_any_character() -> None:
    """Let output show what its encoding lacks as escapes, and warnings what a terminal should not see.

    Warnings of astropy are left out: they repeat cards of damaged headers as they are, and errors name what is wrong.
    """
    warnings.filterwarnings("ignore", module=r"astropy\.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    logging.getLogger(__package__).addHandler(handler)


class PrintableFormatter(logging.Formatter):
    """Messages in one line each, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return printable(record.getMessage())


def say(*lines: str, err: bool = False) -> None:
    """Print lines, whatever the ids and file names in them hold."""
    click.echo("\n".join(map(printable, lines)), err=err)


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output file where it exists.")


@contextmanager
def saying_what_is_there(path: str) -> Iterator[None]:
    """Turn `NotPublished` into one that says what is at a path, and which command makes a class catalogue of it."""
    try:
        yield
    except NotPublished as error:
        from .run.next_step import not_published

        raise not_published(path, error) from error


class Commands(click.Group):
    """Commands that refuse any argument with a login in a URL, before one of them can print or store it."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            name, value = _named(word)
            refuse_logins({name: value})
        return super().main(words, *others, **options)


def _named(word: str) -> tuple[str, str]:
    """Return the option and the value of a word of the command line."""
    option, equals, value = word.partition("=")
    return (option, value) if equals and option.startswith("-") else ("argument", word)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="skyclass")
def cli() -> None:
    """Classify whole infrared catalogues from their images."""


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
    say(f"skyclass {__version__}: {run.catalog} with {run.model}, cluster {run.cluster}; planning ...", err=True)
    report = _classify(run)
    _print_report(report, run)
    return EXIT_QUARANTINED if report.quarantined or report.model_faults else 0


def _classify(run: RunConfig) -> Any:
    if run.cluster != "none":
        load_dask()
        from .engine.engine import classify

        return classify(run)
    from .model.malloc import keep_memory
    from .run.pipeline import classify as classify_here
    from .run.progress import show

    keep_memory()
    return classify_here(run, show)


def _print_report(report: Any, run: RunConfig) -> None:
    faults = f" + {report.model_faults:,} without probabilities" if report.model_faults else ""
    lines = [
        f"{report.sources_in:,} sources in = {report.classified:,} classified "
        f"+ {report.without_class - report.model_faults:,} without an image{faults}; {report.flagged:,} flagged",
        "classes: " + ", ".join(f"{report.class_counts.get(c, 0):,} {c}" for c in CLASSES),
        f"{report.tiles} tiles ({report.tiles_resumed} from an earlier run), "
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
    _print_quarantined(report.quarantined, report.remedy)


def _print_quarantined(quarantined: Mapping[str, str], remedy: str) -> int:
    """Print why tiles were not used, and return the exit code."""
    for tile, reason in quarantined.items():
        say(f"quarantined {tile}: {reason}")
    if quarantined:
        say(f"to do these again: {remedy}")
    return EXIT_QUARANTINED if quarantined else 0


def _of_inputs(report: Any) -> list[str]:
    """Return what the report says of the catalogue's values and of sources without a tile."""
    from .run.plan import without_tile_lines
    from .schema import bad_values_text

    bad = [f"values read as missing (flag {Flag.BAD_VALUE:d}): {bad_values_text(report.bad_values)}"]
    return [*without_tile_lines(report.without_tile), *(bad if report.bad_values else [])]


def _pace(report: Any) -> str:
    if report.tiles_resumed == report.tiles:
        return "nothing was left to do"
    busy = ", ".join(f"{pool} busy for {share:.0%} of it" for pool, share in report.pool_busy.items())
    rate = f"{report.wall_seconds:,.1f} s, {report.sources_per_second:,.0f} sources/s"
    return f"{rate}; bound by {report.bound_by} ({busy})"


@cli.command()
@run_options
def plan(run_toml: str | None, cone: str | None, **flags: Any) -> int:
    """Say what a run would do: rows, tiles, bytes, memory, time. Nothing is run or written."""
    load_dask()
    from .engine.cluster import check_memory_limit
    from .run.forecast import forecast

    run = _run(run_toml, cone, flags | {"out": flags["out"] or "unused"})
    check_memory_limit(run.memory_limit)
    for line in forecast(run):
        say(line)
    return 0


@cli.command()
@click.option("--catalog", required=True, help="Table of positions (ra, dec), or a catalogue.")
@click.option("--images", required=True, help="Folder of Atlas tiles, or s3://, https://.")
@click.option("-o", "--output", required=True, help="FILE.npz")
@overwrite_option
@click.option("--size", default="50arcsec", show_default=True, help="Side, as an angle or in pixels (37px).")
@click.option("--bands", default="w1,w2,w3", show_default=True)
@click.option("--allow-truncated", is_flag=True, help="Accept a VOTable that was cut at a row limit.")
def cutouts(
    catalog: str, images: str, output: str, size: str, bands: str, overwrite: bool, allow_truncated: bool
) -> int:
    """Cut native-size cutouts, to look at or to keep, in the order of the table."""
    from .catalog.export import refuse_existing
    from .images.export import write_cutouts

    refuse_existing(Path(output), overwrite)
    names = tuple(bands.lower().split(","))
    if unknown := [b for b in names if b not in BANDS]:
        raise ConfigError(f"--bands {bands}: unknown {', '.join(unknown)}; choose from {', '.join(BANDS)}")
    report = write_cutouts(catalog, images, output, size, names, allow_truncated)
    say(report.summary)
    return _print_quarantined(
        report.quarantined, "repair what the reasons say, then run the same command with --overwrite"
    )


@cli.command()
@click.argument("directory")
@click.option("--tiles", default=2, show_default=True, help="Number of neighbouring Atlas tiles.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same bytes.")
@click.option("--sources-per-tile", type=int, help="[default: 20000 on a full tile, the same density on a smaller one]")
@click.option("--size", default=4095, show_default=True, help="Pixels on a side of a tile.")
@click.option("--mix", type=click.Choice(["natural", "balanced"]), default="natural", show_default=True)
@click.option("--bands", default="w1,w2,w3", show_default=True, help="Images to make; w4 may be added.")
def mock(
    directory: str,
    tiles: int,
    seed: int,
    sources_per_tile: int,
    size: int,
    mix: Literal["natural", "balanced"],
    bands: str,
) -> int:
    """Make a simulated sky: images, catalogue and truth, in the layouts of the real archive.

    An earlier simulated sky in DIRECTORY is replaced, and that is said.
    """
    from .mock import write_mock

    names = tuple(sorted({band.strip() for band in bands.lower().split(",")}))
    replaced = (Path(directory) / "mock.json").exists()
    made = write_mock(directory, tiles, seed, sources_per_tile, size, mix, bands=names)
    if replaced:
        say(f"the simulated sky that was in {made.directory} before is gone")
    counts = ", ".join(f"{n:,} {name}" for name, n in made.class_counts.items())
    say(f"SIMULATED sky in {made.directory}: {made.n_sources:,} sources ({counts}) on {', '.join(made.coadd_ids)}")
    (ra, dec), options = made.center, ["--catalog", made.catalog, "--images", made.images]
    say(f"centre RA {ra:.4f} Dec {dec:+.4f}; all of it: --cone {ra:.4f},{dec:.4f},{made.radius_deg:g}deg")
    click.echo(shell_command(["skyclass", "classify", *options, "--out", "classes"]))
    labelled = ["--labels", made.truth, *options, "--bands", ",".join(names)]
    click.echo(shell_command(["skyclass", "dataset", *labelled, "--out", "dataset"]))
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
    load_dask()
    from .mock import write_mock
    from .mock.demo import run_demo

    say(f"1. a SIMULATED sky in {directory}/mock: {tiles} Atlas tiles of {size} x {size} pixels, {mix} mix")
    sky = write_mock(Path(directory) / "mock", tiles, seed, sources_per_tile, size, mix)
    return 0 if run_demo(Path(directory), sky, lambda text: say(*text.rstrip("\n").split("\n"))) else 1


@cli.command()
@click.argument("directory")
def publish(directory: str) -> int:
    """Publish the class catalogue of a finished run folder (again)."""
    from .run.commits import RunFolder, read_run
    from .run.finish import publish as publish_run
    from .run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder) as lease:
        say(f"published {publish_run(folder, fence=lease.check)}")
    return 0


@cli.command()
@click.argument("directory")
def gc(directory: str) -> int:
    """Remove what killed runs left behind in a run folder, and earlier publications of its catalogue.

    Tiles and the current publication stay. Programs that have an earlier publication open lose it.
    """
    from .catalog.versions import superseded_publications
    from .run.commits import RunFolder, litter, read_run, remove
    from .run.lease import hold_lease

    folder = RunFolder(Path(directory))
    read_run(folder)
    with hold_lease(folder):
        leftovers, earlier = litter(folder), superseded_publications(folder.path)
        nbytes = sum(map(remove, leftovers + earlier))
    say(f"{len(leftovers)} leftovers removed, {len(earlier)} earlier publications removed, {nbytes / 1e6:,.1f} MB")
    return 0


@cli.command()
@click.argument("catalogue")
def verify(catalogue: str) -> int:
    """Check a published catalogue: every row accounted for, every file unchanged, every key once."""
    from .run.finish import verify as verify_catalogue

    with saying_what_is_there(catalogue):
        report = verify_catalogue(catalogue)
    say(*str(report).rstrip("\n").split("\n"))
    return 0 if report.ok else 1


@cli.command()
@click.argument("catalogue")
@click.option("--cone", metavar="RA,DEC,RADIUS", help="Degrees; the radius may carry a unit: 30arcmin.")
@click.option("--where", help='SQL condition, such as "p_quasar > 0.9 AND w1snr > 20".')
@click.option("--columns", help="Comma-separated; all when absent.")
@click.option("--sql", help="SQL over the table `classes` (the rows selected so far).")
@click.option("-o", "--output", help="Write .parquet, .csv, .fits or .vot; print otherwise.")
@overwrite_option
def query(
    catalogue: str,
    cone: str | None,
    where: str | None,
    columns: str | None,
    sql: str | None,
    output: str | None,
    overwrite: bool,
) -> int:
    """Select rows of a class catalogue by position and condition; print or export them."""
    from .catalog.export import check_target, export_table
    from .catalog.query import open_catalog

    with saying_what_is_there(catalogue):
        classes = open_catalog(catalogue)
    if output is not None:
        check_target(Path(output), overwrite)
    if cone is not None:
        classes = classes.region(parse_cone(cone))
    if where is not None:
        classes = classes.where(where)
    if columns is not None:
        classes = classes.select([c.strip() for c in columns.split(",")])
    if output is not None:
        if sql is not None:
            answer = classes.sql_arrow(sql)
            say(f"{len(answer):,} rows written to {export_table(answer, output, overwrite)}")
        else:
            written = classes.export(output, overwrite)
            say(f"{classes.count():,} rows written to {written}")
    elif sql is not None:
        click.echo(shown(classes.sql_arrow(sql)))
    else:
        click.echo(shown(classes.sql_arrow(f"SELECT * FROM classes LIMIT {PREVIEW_ROWS}")))
        say(f"{classes.count():,} rows")
    return 0


def shown(answer: pa.Table) -> str:
    """Return an answer as lines for a terminal."""
    from .catalog.export import plain_table
    from .catalog.query import to_pandas

    return table_text(to_pandas(plain_table(answer)))


@cli.command()
@click.argument("labels_toml", required=False, type=click.Path(dir_okay=False))
@click.option("--out", help="Label table to write, Parquet.")
@click.option("--catalog", help="AllWISE partitions to match against; IRSA is asked without them.")
@click.option("--data-release", type=int, help="SDSS data release.  [default: 17]")
@click.option("--per-class", type=int, help="Most spectra of each class, in plate order.  [default: all]")
@click.option("--one-in", type=int, help="Take one spectrum in so many, spread over the sky.  [default: 1]")
@click.option("--region", metavar="RA0,RA1,DEC0,DEC1", help="Box in degrees.  [default: all the sky]")
@click.option("--min-snr", type=float, help="Least W1 and W2 S/N.  [default: 5]")
@click.option("--max-match-arcsec", type=float, help="Largest distance of a match.  [default: 2]")
@click.option("--sdss-url", help="SkyServer of a mirror.  [default: that of SDSS]")
@click.option("--tap-url", help="TAP service of a mirror of IRSA.  [default: that of IRSA]")
@click.option("--timeout", "timeout_s", type=float, help="Seconds that a service may be silent.  [default: 600]")
def labels(labels_toml: str | None, region: str | None, **flags: Any) -> int:
    """Fetch a label table: SDSS spectra matched to AllWISE. The same command goes on where it was stopped."""
    from .training.labels import fetch_labels, labels_config
    from .training.watch import say_steps

    data = read_toml(labels_toml) if labels_toml else {}
    data |= {key: value for key, value in flags.items() if value is not None}
    if region:
        data["region"] = parse_box(region)
    say(f"label table written to {fetch_labels(labels_config(data), say_steps)}")
    return 0


def parse_box(text: str) -> Box:
    """Return the box of "RA0,RA1,DEC0,DEC1"."""
    parts = text.split(",")
    if len(parts) != 4:
        raise ConfigError(f"--region {text!r}: write RA0,RA1,DEC0,DEC1 in degrees, such as 140,160,-2,5")
    return Box(*map(parse_angle, parts))


@cli.command()
@click.argument("dataset_toml", required=False, type=click.Path(dir_okay=False))
@click.option("--out", help="Folder of the dataset; must not exist.")
@click.option("--labels", help="Table with ra, dec, class; optionally source_id, coadd_id and photometry.")
@click.option("--images", help="Folder of Atlas tiles, or s3://, https://.")
@click.option("--catalog", help="Catalogue that gives positions, tiles and photometry of the labelled sources.")
@click.option("--bands", help="Comma-separated.  [default: w1,w2,w3,w4]")
@click.option("--size-px", type=int, help="Native pixels on a side of a cutout.  [default: 37]")
@click.option("--preset", help="paper: 7,298 galaxies, 7,215 quasars, 7,223 stars.")
@click.option("--counts", metavar="CLASS=N,...", help="Sources to draw of each class.  [default: all]")
@click.option("--min-w1snr", type=float)
@click.option("--min-w2snr", type=float)
@click.option("--seed", type=int, help="Decides the draw and the splits.")
@click.option("--simulated/--real", default=None, help="What the images are, where the files do not say.")
@click.option("--allow-truncated", is_flag=True, default=None, help="Accept VOTables that were cut at a row limit.")
@click.option("--cluster", help="local, or a scheduler's address.  [default: this process]")
@click.option("--workers", type=int, help="Workers of a local cluster.  [default: cores]")
def dataset(
    dataset_toml: str | None,
    bands: str | None,
    counts: str | None,
    cluster: str | None,
    workers: int | None,
    **flags: Any,
) -> int:
    """Cut a training set out of labelled images: cutouts, photometry and splits that are disjoint on the sky."""
    from .training.choose import dataset_config
    from .training.dataset import build_dataset, summary
    from .training.watch import show_cutting

    data = read_toml(dataset_toml) if dataset_toml else {}
    data |= {key: value for key, value in flags.items() if value is not None}
    data |= {"bands": [band.strip() for band in bands.lower().split(",")]} if bands else {}
    data |= {"counts": parse_counts(counts)} if counts else {}
    needs_cluster(cluster, {"--workers": workers})
    if workers is not None and cluster != "local":
        raise ConfigError(f"--workers {workers}: {cluster} has the workers it has; the number is for --cluster local")
    config = dataset_config(data)
    with show_cutting() as watch:
        if cluster:
            load_dask()
            from .engine.cluster import connect

            with connect(cluster, workers, gpus=0) as client:
                made = build_dataset(config, client, watch)
        else:
            made = build_dataset(config, None, watch)
    say(f"dataset written to {config.out}", *summary(made).rstrip("\n").split("\n"))
    return 0


def needs_cluster(cluster: str | None, options: dict[str, object]) -> None:
    """Raise `ConfigError` for options that say how to use a cluster where none is asked for."""
    if given := [name for name, value in options.items() if value is not None and not cluster]:
        raise ConfigError(f"{', '.join(given)}: of a cluster, and there is none; give --cluster local or an address")


def parse_counts(text: str) -> dict[str, int]:
    """Return the counts of "galaxy=500,star=300"."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(number.strip().isdigit() for _, _, number in pairs):
        raise ConfigError(f"--counts {text!r}: write CLASS=N,..., such as galaxy=500,quasar=500,star=500")
    return {name.strip(): int(number) for name, _, number in pairs}


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...] DATASET")
@click.option("-o", "--output", required=True, help="Folder for evaluation.json, evaluation.md and figures.")
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), default="test", show_default=True)
@click.option("--calibrate", metavar="BUNDLE", help="Fit the first model's calibration on split val; evaluate it too.")
@click.option("--kind", type=click.Choice(["temperature", "bias"]), help="With --calibrate.  [default: temperature]")
@click.option("--prior", type=click.Choice(["sample", "equal"]), help="With --calibrate.  [default: sample]")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
def evaluate(
    models: tuple[str, ...],
    output: str,
    split: str,
    calibrate: str | None,
    kind: str | None,
    prior: str | None,
    **where: Any,
) -> int:
    """Measure models on a labelled dataset: rates, ROC, calibration, by S/N, magnitude and latitude."""
    if len(models) < 2:
        raise ConfigError(f"evaluate {models[0]}: give one or more models and, last, a dataset folder")
    if (kind or prior) and not calibrate:
        raise ConfigError("--kind, --prior: of a calibration, and none is asked for; give --calibrate BUNDLE")
    from .model.bundle import load_bundle
    from .report import RESULTS
    from .training.calibration import calibrate as fit
    from .training.dataset import load_dataset
    from .training.evaluate import check_fit, check_folder, evaluate_models, write_evaluation

    check_folder(Path(output))
    data, bundles = load_dataset(models[-1]), [load_bundle(name) for name in models[:-1]]
    check_fit(bundles, data)
    if calibrate:
        bundles.append(fit(bundles[0], data, "val", calibrate, kind or "temperature", prior or "sample", **where))
    replaced = (Path(output) / RESULTS).is_file()
    folder = write_evaluation(output, evaluate_models(bundles, data, split, **where))
    say(*(folder / "evaluation.md").read_text().rstrip("\n").split("\n"))
    say(f"written to {output}" + (", in place of an earlier evaluation" if replaced else ""))
    return 0


@cli.command()
@click.argument("path")
@click.option("-o", "--output", help="HTML page.  [default: report.html, beside an evaluation, else here]")
@overwrite_option
def report(path: str, output: str | None, overwrite: bool) -> int:
    """Make one HTML page, figures included, from a class catalogue or an evaluation."""
    from .report import write_html

    try:
        with saying_what_is_there(path):
            page = write_html(path, output, overwrite)
    except NotPublished as error:
        raise ConfigError(f"{path} is no evaluation (no evaluation.json) and no class catalogue: {error}") from error
    say(f"written to {page}")
    return 0


def is_first_rank() -> bool:
    """Return whether this process is the one of its training that speaks."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@cli.command()
@click.argument("train_toml", type=click.Path(dir_okay=False))
@click.option("--cluster", help="local, or a scheduler's address: ranks on each of its nodes.  [default: here]")
@click.option("--nodes", type=int, help="Nodes of the cluster to use.  [default: all]")
@click.option("--ranks-per-node", type=int, help="Processes on each node.  [default: its GPUs, or 1]")
def train(train_toml: str, cluster: str | None, nodes: int | None, ranks_per_node: int | None) -> int:
    """Train a network on a dataset and write its model bundle; the same command on it resumes.

    Works the same under torchrun and srun: `torchrun --nproc-per-node 2 -m skyclass train TRAIN.toml`.
    """
    from .training.recipe import train_config
    from .training.watch import show_training

    needs_cluster(cluster, {"--nodes": nodes, "--ranks-per-node": ranks_per_node})
    run, is_first = train_config(read_toml(train_toml)), is_first_rank()
    if cluster:
        load_dask()
        from .engine.cluster import connect
        from .training.launch import launch

        with connect(cluster, nodes if cluster == "local" else None, gpus=0) as client, show_training() as watch:
            launch(Path(train_toml), client, nodes, ranks_per_node, echo=partial(say, err=True), watch=watch)
    else:
        from .training.train import train as train_here

        with show_training() if is_first else nullcontext() as watch:
            train_here(run, watch)
    if is_first:
        from .model.bundle import load_bundle

        say(f"{load_bundle(Path(run.out).absolute()).model_id} written to {run.out}")
    return 0


@cli.command()
@click.argument("scenario", default="laptop")
@click.option("-o", "--output", default=None, help="Append JSON lines here too.")
def bench(scenario: str, output: str | None) -> int:
    """Time each stage and the whole line of SCENARIO, tiny or laptop (some minutes); one JSON line each."""
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
