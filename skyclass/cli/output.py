"""What commands print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from ..errors import ConfigError, NotPublished
from ..text import printable

EXIT_QUARANTINED = 3


def say(*lines: str, err: bool = False) -> None:
    """Print lines; control characters in ids and file names are escaped."""
    click.echo("\n".join(map(printable, lines)), err=err)


@contextmanager
def naming_file(path: str | None) -> Iterator[None]:
    """Put the name of the configuration file, where there is one, before the message of a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error.message}", error.details) from error


@contextmanager
def translate_catalogue_errors(path: str) -> Iterator[None]:
    """Add to `NotPublished` what the path holds, and the command that publishes its class catalogue."""
    try:
        yield
    except NotPublished as error:
        from ..run.next_step import not_published

        raise not_published(path, error) from error


def print_quarantined(quarantined: Mapping[str, str], remedy: str) -> int:
    """Print why tiles were not used, and return the exit code."""
    for tile, reason in quarantined.items():
        say(f"quarantined {tile}: {reason}")
    if quarantined:
        say(f"to do these again: {remedy}")
    return EXIT_QUARANTINED if quarantined else 0
