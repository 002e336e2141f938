"""Locations that users give: paths that this machine has, and URLs without a user name or password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):/")


def refuse_logins(locations: Mapping[str, object]) -> None:
    """Raise `ConfigError` if a value is a URL with user information; the message does not contain it.

    Any "@" counts, because a password may contain "/": everything after the scheme could be one. File URLs are paths.
    """
    for name, location in locations.items():
        scheme = SCHEME.match(location) if isinstance(location, str) else None
        if scheme and scheme[1].lower() != "file" and "@" in str(location):
            raise ConfigError(
                f"{name} = {without_secrets(str(location))}: a URL must not contain a user name or password, because "
                "locations are written to reports and published files; for S3 set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for other servers copy the files to a folder first, and give "
                "that folder (write %40 for an @ that belongs to the path)"
            )


def without_secrets(location: str) -> str:
    """Return a location for messages: without user information, and with *** for what follows "?" or "#"."""
    scheme = SCHEME.match(location)
    if not scheme:
        return location
    rest = location[scheme.end() :]
    _, at, after_login = rest.lstrip("/").rpartition("@")
    slashes = rest[: len(rest) - len(rest.lstrip("/"))]
    shown = re.sub(r"([?#]).+", r"\1***", after_login, flags=re.DOTALL)
    return f"{scheme[0].lstrip()}{slashes}{'***@' if at else ''}{shown}"


def user_path(location: str) -> Path:
    """Return the local path of a location, ~ and file:// resolved; `ConfigError` where a user after ~ is unknown."""
    path = Path(location.removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{location}: this machine has no home folder for {path.parts[0]}") from error


def is_storable(text: str) -> bool:
    """Return whether text can be part of a path and of a record: UTF-8 without NUL."""
    return "\0" not in text and not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def absolute(location: str) -> str:
    """Return a local path that means the same in every process; a URL as it is."""
    return location if "://" in location else str(user_path(location).absolute())
