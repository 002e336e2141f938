"""Locations that users give: no URL with a user name or password enters a configuration, a record or a message."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    """Return a location for messages: without user information and without what follows "?" or "#"."""
    scheme = SCHEME.match(location)
    if not scheme:
        return location
    rest = location[scheme.end() :].lstrip("/")
    user, at, rest = rest.rpartition("@")
    shown = re.sub(r"([?#]).+", r"\1***", rest, flags=re.DOTALL)
    return f"{scheme[1]}://{'***@' if at else ''}{shown}"
