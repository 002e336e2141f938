"""Options that several commands share, and values from text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..errors import ConfigError
from ..sky.healpix import parse_angle
from ..sky.regions import Box, Cone, Polygon, Region, region_from_dict

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output file where it exists.")


def parse_cone(text: str) -> Cone:
    """Return the cone of "RA,DEC,RADIUS"."""
    parts = text.split(",")
    if len(parts) != 3:
        raise ConfigError(f"--cone {text!r}: write RA,DEC,RADIUS, such as 150.1,2.2,30arcmin")
    with _naming_option("--cone", text):
        return Cone(parse_angle(parts[0]), parse_angle(parts[1]), parts[2])


def parse_position(text: str) -> tuple[float, float]:
    """Return RA and Dec in degrees of "RA,DEC"."""
    parts = text.split(",")
    if len(parts) != 2:
        raise ConfigError(f"--center {text!r}: write RA,DEC in degrees, such as 150.1,2.2")
    with _naming_option("--center", text):
        return parse_angle(parts[0]), parse_angle(parts[1])


def parse_box(text: str) -> Box:
    """Return the box of "RA0,RA1,DEC0,DEC1"."""
    parts = text.split(",")
    if len(parts) != 4:
        raise ConfigError(f"--box {text!r}: write RA0,RA1,DEC0,DEC1 in degrees, such as 140,160,-2,5")
    with _naming_option("--box", text):
        return Box(*map(parse_angle, parts))


def parse_polygon(text: str) -> Polygon:
    """Return the polygon of "RA,DEC,RA,DEC,RA,DEC,..."."""
    parts = text.split(",")
    if len(parts) < 6 or len(parts) % 2:
        raise ConfigError(f"--polygon {text!r}: write RA,DEC of three or more vertices, such as 10,0,12,0,11,2")
    with _naming_option("--polygon", text):
        angles = list(map(parse_angle, parts))
        return Polygon(tuple(zip(angles[::2], angles[1::2], strict=True)))


def parse_moc(path: str) -> Region:
    """Return the region of a MOC file."""
    return region_from_dict({"kind": "moc", "path": path})


@contextmanager
def _naming_option(option: str, text: str) -> Iterator[None]:
    """Let a `ConfigError` begin with an option and its text."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{option} {text!r}: {error.message}", error.details) from error
