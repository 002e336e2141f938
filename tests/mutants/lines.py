"""A pytest plugin that records which test runs which line, and how long each test takes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

SECONDS = "SKYCLASS_TEST_SECONDS"
"""Environment variable: the file of seconds by test."""

seconds: dict[str, float] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Name the test in the coverage data."""
    current = coverage.Coverage.current()
    assert current is not None, "run this plugin below `coverage run`"
    current.switch_context(item.nodeid)
    result = yield
    current.switch_context("")
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the seconds of a phase of a test."""
    seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Write the seconds of all tests."""
    Path(os.environ[SECONDS]).write_text(json.dumps(seconds))
