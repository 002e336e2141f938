"""`python -m benchmarks.paper`: run what is missing of the study, then write its tables and figures."""

from __future__ import annotations

import os
from pathlib import Path

import click

from skyclass.errors import SkyclassError

from .experiments import EXPERIMENTS
from .figures import write_figures
from .pool import run_all
from .study import PRESETS, Study
from .tables import document, load_records

HERE = Path(__file__).parents[1]


@click.command()
@click.option("--preset", type=click.Choice(list(PRESETS)), default="cpu", show_default=True)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(EXPERIMENTS)),
    help="An experiment, such as iicnet; may be repeated.  [default: all]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Experiments at a time, a thread each.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Skies and models.  [default: benchmarks/work/paper]")
@click.option("--results", type=click.Path(path_type=Path), help="Records.  [default: benchmarks/results/paper/PRESET]")
@click.option("--real", type=click.Path(path_type=Path), help="Folder of the real tables; left out when absent.")
@click.option("--report-only", is_flag=True, help="Run nothing; write tables and figures of what is there.")
def main(
    preset: str,
    only: tuple[str, ...],
    workers: int,
    work: Path | None,
    results: Path | None,
    real: Path | None,
    report_only: bool,
) -> None:
    """Run the paper's study on a SIMULATED sky: every experiment leaves a record, and a record is not made twice."""
    chosen = PRESETS[preset]
    results = results or HERE / "results" / "paper" / preset
    study = Study(chosen, work or HERE / "work" / "paper" / preset, results, real)
    try:
        if not report_only:
            study.prepare()
            for words in run_all(study, only, workers):
                click.echo(words)
    except SkyclassError as error:
        raise click.ClickException(str(error)) from error
    finally:
        results.mkdir(parents=True, exist_ok=True)
        records = load_records(results)
        (results / "README.md").write_text(document(records, chosen))
        pictures = write_figures(study, records)
        click.echo(f"{sum(map(len, records.values()))} records, {len(pictures)} figures: {results / 'README.md'}")


if __name__ == "__main__":
    main()
