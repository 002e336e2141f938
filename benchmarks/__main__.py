"""Benchmarks from the command line: `python -m benchmarks [SCENARIO]`."""

import click

from .run import run_scenario


@click.command()
@click.argument("scenario", default="laptop")
@click.option("-o", "--output", help="Append the JSON lines to this file too.")
def main(scenario: str, output: str | None) -> None:
    """Time each stage and the whole pipeline of SCENARIO, tiny or laptop (some minutes); one JSON line each."""
    run_scenario(scenario, output, click.echo)


if __name__ == "__main__":
    main()
