"""Options that several commands take, and their values from text."""

from __future__ import annotations

import click

from ..errors import ConfigError
from ..sky.healpix import parse_angle
from ..sky.regions import Box, Cone

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output file where it exists.")


def parse_cone(text: str) -> Cone:
    """Return the cone of "RA,DEC,RADIUS"."""
    parts = text.split(",")
    if len(parts) != 3:
        raise ConfigError(f"--cone {text!r}: write RA,DEC,RADIUS, such as 150.1,2.2,30arcmin")
    return Cone(parse_angle(parts[0]), parse_angle(parts[1]), parts[2])


def parse_box(text: str) -> Box:
    """Return the box of "RA0,RA1,DEC0,DEC1"."""
    parts = text.split(",")
    if len(parts) != 4:
        raise ConfigError(f"--region {text!r}: write RA0,RA1,DEC0,DEC1 in degrees, such as 140,160,-2,5")
    return Box(*map(parse_angle, parts))


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
