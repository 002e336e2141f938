"""Locations in messages: shown as they are, without what may be secret."""

from __future__ import annotations

import pytest

from skyclass.locations import without_secrets


@pytest.mark.parametrize(
    "location",
    ["/data/images", "zip:///tmp/images.zip", "zip:/tmp/images.zip", "s3://bucket/prefix", "HTTPS://host/path/"],
)
def test_a_location_without_secrets_is_shown_as_it_is(location: str) -> None:
    assert without_secrets(location) == location


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:pass@host/path", "https://***@host/path"),
        ("https://user:pa/ss@host/path", "https://***@host/path"),
        ("https:/user:pass@host/path", "https:/***@host/path"),
        ("https:///user:pass@host/path", "https:///***@host/path"),
        ("https://user:p@ss@host/path", "https://***@host/path"),
        ("https://host/path?key=1#part", "https://host/path?***"),
        ("https://host/path#key=1", "https://host/path#***"),
        (" s3://user:pass@bucket", "s3://***@bucket"),
    ],
)
def test_logins_queries_and_fragments_are_hidden(location: str, shown: str) -> None:
    assert without_secrets(location) == shown
