"""How a run reports its progress: a bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from skyclass.run import progress as module
from skyclass.run.progress import JsonLines, _Rate, no_progress, rich_progress


def test_the_rate_of_a_bar() -> None:
    shown: Any = _Rate()
    assert str(shown.render(SimpleNamespace(speed=1234.6))) == "1,235 sources/s"
    assert str(shown.render(SimpleNamespace(speed=None))) == "-- sources/s"


def test_json_lines_come_at_intervals_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    lines = JsonLines(1000, began=100.0, printed=100.0)

    def printed() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    now = 110.0
    lines.advance(100)
    assert printed() == []
    now = 145.0
    lines.advance(300)
    assert printed() == [{"sources": 400, "of": 1000, "sources_per_s": 8.9, "eta_s": 68}], "67.5 s at 8.89 in a second"
    now = 150.0
    lines.advance(100)
    assert printed() == []
    lines.advance(500)
    assert printed() == [{"sources": 1000, "of": 1000, "sources_per_s": 20.0, "eta_s": 0}]


def test_without_any_source_the_rest_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.time, "perf_counter", lambda: 200.0)
    JsonLines(10, began=100.0, printed=100.0).advance(0)
    assert json.loads(capsys.readouterr().err) == {"sources": 0, "of": 10, "sources_per_s": 0.0, "eta_s": None}


def test_elsewhere_than_on_a_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with rich_progress(5) as reporter:
        assert isinstance(reporter, JsonLines)
        reporter.advance(5)
    with no_progress(5) as silent:
        silent.advance(5)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_on_a_terminal_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()

    def console(stderr: bool) -> Console:
        assert stderr
        return Console(file=terminal, force_terminal=True, width=120)

    monkeypatch.setattr(module, "Console", console)
    with rich_progress(12_345) as reporter:
        reporter.advance(345)
        reporter.advance(12_000)
    assert "classifying 12,345 of 12,345" in terminal.getvalue() and "ETA" in terminal.getvalue()
