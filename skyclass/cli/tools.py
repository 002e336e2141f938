"""Commands that make a simulated sky, show skyclass on it, and write configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ..engine.dask_config import load_dask
from ..files import replacing
from ..run.config import RunConfig
from ..text import counted, shell_command
from ..training.data.config import DatasetConfig, LabelsConfig
from ..training.fit.recipe import TrainConfig
from .output import say
from .parameters import overwrite_option, parse_position
from .templates import template


@click.command()
@click.argument("directory")
@click.option("--tiles", default=2, show_default=True, help="Number of neighbouring Atlas tiles at each --center.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--sources-per-tile",
    type=int,
    help="[default: the published counts at --center; balanced: 20000 on a full tile, that density on a smaller one]",
)
@click.option("--size", default=4095, show_default=True, help="Pixels on a side; below 4095 the middle of a tile.")
@click.option("--mix", type=click.Choice(["natural", "balanced"]), default="natural", show_default=True)
@click.option("--bands", default="w1,w2,w3", show_default=True, help="Images to make; w4 may be added.")
@click.option(
    "--center",
    "centers",
    multiple=True,
    default=["150.1,2.2"],
    show_default=True,
    metavar="RA,DEC",
    help="Position in degrees; may be repeated. It chooses the tiles, with their star counts, sky level, coverage, "
    "noise and scan direction.",
)
@click.option(
    "--quasar-fraction",
    type=float,
    help="Share of quasars among the candidates.  [default: published counts; a third if balanced]",
)
@click.option(
    "--outliers-per-deg2",
    default=0.0,
    show_default=True,
    help="T dwarfs, young stellar objects and planetary nebulae to add, for tests of outliers.",
)
def mock(
    directory: str,
    tiles: int,
    seed: int,
    sources_per_tile: int | None,
    size: int,
    mix: Literal["natural", "balanced"],
    bands: str,
    centers: tuple[str, ...],
    quasar_fraction: float | None,
    outliers_per_deg2: float,
) -> int:
    """Make a simulated sky: images, catalogue and truth, in the layouts of the real archive.

    An earlier simulated sky in DIRECTORY is replaced, and the command reports this.
    """
    from ..mock import write_mock

    names = tuple(sorted({band.strip() for band in bands.lower().split(",")}))
    replaced = all((Path(directory) / name).exists() for name in ("mock.json", "truth.parquet"))
    made = write_mock(
        directory, tiles, seed, sources_per_tile, size, mix, [parse_position(text) for text in centers], bands=names,
        quasar_fraction=quasar_fraction, outliers_per_deg2=outliers_per_deg2,
    )  # fmt: skip
    if replaced:
        say(f"the simulated sky that was in {made.directory} before is gone")
    counts = ", ".join(f"{n:,} {name}" for name, n in made.class_counts.items())
    n_sources = counted(made.n_sources, "source")
    say(f"SIMULATED sky in {made.directory}: {n_sources} ({counts}) on {', '.join(made.coadd_ids)}")
    (ra, dec), options = made.center, ["--catalog", made.catalog, "--images", made.images]
    if len(centers) == 1:
        say(f"centre RA {ra:.4f} Dec {dec:+.4f}; all of it: --cone {ra:.4f},{dec:.4f},{made.radius_deg:g}deg")
    click.echo(shell_command(["skyclass", "classify", *options, "--out", "classes"]))
    if outliers_per_deg2:
        say("the truth has classes of outliers, which no training set takes: use it to test a model")
        return 0
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


TEMPLATES: dict[str, tuple[type, str]] = {
    "run": (RunConfig, "skyclass classify RUN.toml"),
    "labels": (LabelsConfig, "skyclass labels LABELS.toml"),
    "dataset": (DatasetConfig, "skyclass dataset DATASET.toml"),
    "train": (TrainConfig, "skyclass train TRAIN.toml"),
}


@click.command()
@click.argument("kind", type=click.Choice(list(TEMPLATES)))
@click.option("-o", "--output", help="File to write.  [default: RUN.toml, LABELS.toml, ...]")
@overwrite_option
def init(kind: str, output: str | None, overwrite: bool) -> int:
    """Write a commented configuration file with every key and its default."""
    from ..catalog.export import refuse_existing

    file = Path(output or f"{kind.upper()}.toml")
    refuse_existing(file, overwrite)
    with replacing(file) as temporary:
        temporary.write_text(template(*TEMPLATES[kind]), "utf-8")
    say(f"written to {file}")
    return 0
