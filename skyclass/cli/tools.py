"""Commands that make a simulated sky, show skyclass on it, and time it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from ..engine.dask_config import load_dask
from ..errors import ConfigError
from ..text import counted, shell_command
from .output import say


@click.command()
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
    from ..mock import write_mock

    names = tuple(sorted({band.strip() for band in bands.lower().split(",")}))
    replaced = (Path(directory) / "mock.json").exists()
    made = write_mock(directory, tiles, seed, sources_per_tile, size, mix, bands=names)
    if replaced:
        say(f"the simulated sky that was in {made.directory} before is gone")
    counts = ", ".join(f"{n:,} {name}" for name, n in made.class_counts.items())
    n_sources = counted(made.n_sources, "source")
    say(f"SIMULATED sky in {made.directory}: {n_sources} ({counts}) on {', '.join(made.coadd_ids)}")
    (ra, dec), options = made.center, ["--catalog", made.catalog, "--images", made.images]
    say(f"centre RA {ra:.4f} Dec {dec:+.4f}; all of it: --cone {ra:.4f},{dec:.4f},{made.radius_deg:g}deg")
    click.echo(shell_command(["skyclass", "classify", *options, "--out", "classes"]))
    labelled = ["--labels", made.truth, *options, "--bands", ",".join(names)]
    click.echo(shell_command(["skyclass", "dataset", *labelled, "--out", "dataset"]))
    return 0


@click.command()
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
    from ..mock import write_mock
    from ..mock.demo import run_demo

    say(f"1. a SIMULATED sky in {directory}/mock: {tiles} Atlas tiles of {size} x {size} pixels, {mix} mix")
    sky = write_mock(Path(directory) / "mock", tiles, seed, sources_per_tile, size, mix)
    return 0 if run_demo(Path(directory), sky, lambda text: say(*text.rstrip("\n").split("\n"))) else 1


@click.command()
@click.argument("scenario", default="laptop")
@click.option("-o", "--output", default=None, help="Append JSON lines here too.")
def bench(scenario: str, output: str | None) -> int:
    """Time each stage and the whole line of SCENARIO, tiny or laptop (some minutes); one JSON line each."""
    checkout = Path(__file__).parents[2]
    if not (checkout / "benchmarks" / "run.py").is_file():
        raise ConfigError(
            f"`skyclass bench` needs the folder benchmarks/ beside the package, and {checkout} has none: "
            "install skyclass from a checkout with `pip install --editable .`"
        )
    sys.path.insert(0, str(checkout))
    from benchmarks.run import run_scenario

    run_scenario(scenario, output, click.echo)
    return 0
