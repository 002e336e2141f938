"""Commands on results: verify, recalibrate, query, report, cutouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, NotPublished
from ..text import counted, table_text
from ..types import BANDS
from .output import print_quarantined, say, translate_catalogue_errors
from .parameters import overwrite_option, parse_cone

if TYPE_CHECKING:
    import pyarrow as pa

PREVIEW_ROWS = 30
"""Rows of an answer that are printed; a file gets all."""


@click.command()
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
    from ..catalog.export import refuse_existing
    from ..images.export import write_cutouts

    refuse_existing(Path(output), overwrite)
    names = tuple(bands.lower().split(","))
    if unknown := [b for b in names if b not in BANDS]:
        raise ConfigError(f"--bands {bands}: unknown {', '.join(unknown)}; choose from {', '.join(BANDS)}")
    report = write_cutouts(catalog, images, output, size, names, allow_truncated)
    say(report.summary)
    return print_quarantined(
        report.quarantined, "repair what the reasons say, then run the same command with --overwrite"
    )


@click.command()
@click.argument("catalogue")
def verify(catalogue: str) -> int:
    """Check a published catalogue: every row accounted for, every file unchanged, every key once."""
    from ..run.finish import verify as verify_catalogue

    with translate_catalogue_errors(catalogue):
        report = verify_catalogue(catalogue)
    say(*str(report).rstrip("\n").split("\n"))
    if not report.ok:
        say("to replace it: `skyclass publish RUN_FOLDER` makes a new publication from the committed tiles of its run")
    return 0 if report.ok else 1


@click.command()
@click.argument("catalogue")
@click.option("--prior", help="none, estimate, the name of a shipped table, or a JSON file.")
@click.option("--out", metavar="FOLDER", help="New folder.  [default: a new version in the run folder]")
@click.option("--undo", is_flag=True, help="Make the version before the current one current again.")
def recalibrate(catalogue: str, prior: str | None, out: str | None, undo: bool) -> int:
    """Publish a class catalogue with another prior, from its own rows: no image is read and no network runs."""
    from ..catalog.prior_files import prior_lines
    from ..run.recalibrate import recalibrate as publish_with
    from ..run.recalibrate import undo_recalibration

    if undo == (prior is not None) or (undo and out is not None):
        raise ConfigError("recalibrate takes either --prior, with or without --out, or --undo")
    with translate_catalogue_errors(catalogue):
        folder = undo_recalibration(catalogue) if prior is None else publish_with(catalogue, prior, out)
    say(*prior_lines(folder), f"published {folder}")
    return 0


@click.command()
@click.argument("catalogue")
@click.option("--cone", metavar="RA,DEC,RADIUS", help="Degrees; the radius may carry a unit: 30arcmin.")
@click.option("--where", help='SQL condition, such as "p_quasar > 0.9 AND w1snr > 20".')
@click.option("--columns", help="Comma-separated; all when absent.")
@click.option("--sql", help="SQL over the table `classes` (the rows selected so far).")
@click.option(
    "-o",
    "--output",
    help=f"Write .parquet, .csv, .fits or .vot; print the first {PREVIEW_ROWS} rows otherwise.",
)
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
    """Select rows of a class catalogue by position and condition; print the first of them, or export all."""
    from ..catalog.export import check_target, export_table
    from ..catalog.query import open_catalog

    with translate_catalogue_errors(catalogue):
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
            say(f"{counted(len(answer), 'row')} written to {export_table(answer, output, overwrite)}")
        else:
            written = classes.export(output, overwrite)
            say(f"{counted(classes.count(), 'row')} written to {written}")
    elif sql is not None:
        answer = classes.sql_arrow(sql)
        print_first(answer, len(answer))
    else:
        print_first(classes.sql_arrow(f"SELECT * FROM classes LIMIT {PREVIEW_ROWS}"), classes.count())
    return 0


def print_first(answer: pa.Table, n_rows: int) -> None:
    """Print the first rows of an answer, and how many it has."""
    from ..catalog.export import plain_table, to_pandas

    click.echo(table_text(to_pandas(plain_table(answer.slice(0, PREVIEW_ROWS)))))
    left_out = f", the first {PREVIEW_ROWS} of them above; -o FILE writes all" if n_rows > PREVIEW_ROWS else ""
    say(counted(n_rows, "row") + left_out)


@click.command()
@click.argument("path")
@click.option(
    "-o", "--output", help="HTML page, .html or .htm.  [default: report.html, beside an evaluation, else here]"
)
@overwrite_option
def report(path: str, output: str | None, overwrite: bool) -> int:
    """Make one HTML page, figures included, from a class catalogue or an evaluation."""
    from ..report import write_html

    try:
        with translate_catalogue_errors(path):
            page = write_html(path, output, overwrite)
    except NotPublished as error:
        raise ConfigError(f"{path} is no evaluation (no evaluation.json) and no class catalogue: {error}") from error
    say(f"written to {page}")
    return 0
