"""`python -m benchmarks.paper`: run what is missing of the study, then write its tables and figures."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import click

from skyclass.errors import Interrupted, SkyclassError
from skyclass.model.devices import resolve_device

from .experiments import EXPERIMENTS
from .figures import write_figures
from .limit import Duration, TimeLimit
from .pool import run_all
from .study import PRESETS, Study
from .tables import document, load_records

HERE = Path(__file__).parents[1]
GPU_WORKERS = 4
"""Trainings of small networks that share a GPU: each leaves it idle between its steps."""


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
    help="Experiments at a time, a thread each.  [default: the number of CPUs; 4 on a GPU]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where networks train; auto: a GPU if there is one.",
)
@click.option(
    "--time-limit",
    type=Duration(),
    metavar="TIME",
    help="Stop at checkpoints in time and end, such as 9min; the same command resumes.  [default: none]",
)
@click.option("--work", type=click.Path(path_type=Path), help="Skies and models.  [default: benchmarks/work/paper]")
@click.option("--results", type=click.Path(path_type=Path), help="Records.  [default: benchmarks/results/paper/PRESET]")
@click.option("--real", type=click.Path(path_type=Path), help="Folder of the real tables; left out when absent.")
@click.option("--report-only", is_flag=True, help="Run nothing; write tables and figures of what is there.")
def main(
    preset: str,
    only: tuple[str, ...],
    workers: int | None,
    device: str,
    time_limit: float | None,
    work: Path | None,
    results: Path | None,
    real: Path | None,
    report_only: bool,
) -> None:
    """Run the paper's study on a SIMULATED sky: every experiment leaves a record, and a record is not made twice.

    The exit code is 4 when experiments are left at the time limit.
    """
    chosen, limit = PRESETS[preset], TimeLimit(time_limit or math.inf)
    results = results or HERE / "results" / "paper" / preset
    exit_code = 0
    try:
        place = resolve_device(device)
    except SkyclassError as error:
        raise click.ClickException(str(error)) from error
    study = Study(chosen, work or HERE / "work" / "paper" / preset, results, real, place, limit)
    try:
        if not report_only:
            for words in run_all(study, only, workers or default_workers(place)):
                click.echo(words)
    except Interrupted as error:
        click.echo(str(error))
        exit_code = error.exit_code
    except SkyclassError as error:
        raise click.ClickException(str(error)) from error
    finally:
        results.mkdir(parents=True, exist_ok=True)
        records = load_records(results)
        pictures = write_figures(study, records)
        (results / "README.md").write_text(document(records, chosen, sorted((results / "figures").glob("*.png"))))
        click.echo(f"{sum(map(len, records.values()))} records, {len(pictures)} figures: {results / 'README.md'}")
    sys.exit(exit_code)


def default_workers(device: str) -> int:
    """Return how many experiments run at a time on this machine."""
    n_cpus = os.cpu_count() or 1
    return min(GPU_WORKERS, n_cpus) if device == "cuda" else n_cpus


if __name__ == "__main__":
    main()
