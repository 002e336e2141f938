"""The simulated tile that several benchmarks work on, and the contestants that work on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd

from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext, strips_of
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.stages import open_tile, tile_sources
from skyclass.types import Strip

from .run import make_sky
from .scenarios import Scenario

BANDS = ("w1", "w2", "w3")
SIZE_PX = 37
MODEL = "iicnet-mock"
DENSE = Scenario("dense", n_tiles=1, sources_per_tile=40_000, size_px=4_095, repeats=3)
"""A tile with the mean source density of AllWISE."""
HALF = Scenario("half", n_tiles=1, sources_per_tile=20_000, size_px=4_095, repeats=2)
"""For whole runs, which take minutes on CPUs."""


@dataclass(frozen=True)
class Field:
    """The simulated tile, with its catalogue in memory."""

    run: RunConfig
    context: RunContext
    strips: list[Strip]
    rows: pd.DataFrame
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Contestant:
    """A contestant of a group: `work` takes no argument and returns its amount of work, in units of the group."""

    name: str
    work: Callable[[], float]
    settings: str


def field_of(scenario: Scenario, work: Path, out: str) -> Field:
    """Return the tile of a scenario with its catalogue in memory. The sky is made if it is absent."""
    sky = make_sky(scenario, work)
    run = RunConfig(str(sky / "catalog"), str(sky / "images"), out, MODEL)
    context, plan, _ = plan_run(run, count_here)
    (tile,) = plan.tiles
    rows = tile_sources(context, tile, open_tile(context, tile)).to_pandas()
    paths = tuple(str(next((sky / "images").rglob(f"*-{band}-int-3.fits"))) for band in BANDS)
    return Field(run, context, strips_of(tile, run.strip_sources), rows, paths)


def has(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False
