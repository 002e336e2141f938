"""The plain pipeline: repeated attempts at a tile, and when a catalogue is published."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skyclass.errors import TileFault
from skyclass.files import read_json
from skyclass.run import pipeline
from skyclass.run.folder import RunFolder
from skyclass.run.pipeline import classify_tile, publish_and_report
from skyclass.types import Strip, TilePlan

TILE = TilePlan("1500p015_ac51", 10, (0,))
STRIPS = [(0, 5), (5, 10)]


class State:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def count_strip(self, strip: Strip) -> None:
        self.calls.append((strip.start, strip.stop))

    def uncount_tile(self, coadd_id: str) -> None:
        self.calls.append(f"uncount {coadd_id}")

    def record_commit(self, commit: Any, timings: Any) -> None:
        self.calls.append((commit, timings))


@pytest.mark.parametrize("n_changes", [0, 1, 2])
def test_a_tile_whose_files_change_is_tried_twice(monkeypatch: pytest.MonkeyPatch, n_changes: int) -> None:
    attempts: list[int] = []

    def commit_strips(context: Any, tile: TilePlan, results: Any) -> Any:
        attempts.append(tile.n_file_changes)
        assert results == [f"inferred cut {start}" for start, _ in STRIPS]
        if len(attempts) <= n_changes:
            raise TileFault(tile.coadd_id, "w1 was replaced", kind="changed")
        return "commit", "timings"

    monkeypatch.setattr(pipeline, "cut_strip", lambda context, strip: f"cut {strip.start}")
    monkeypatch.setattr(pipeline, "infer_strip", lambda context, cut: f"inferred {cut}")
    monkeypatch.setattr(pipeline, "commit_strips", commit_strips)
    monkeypatch.setattr(pipeline, "commit_fault", lambda context, tile, reason: (f"fault: {reason}", ()))
    state: Any = State()
    classify_tile(SimpleNamespace(), TILE, 5, state)  # type: ignore[arg-type]
    again = [f"uncount {TILE.coadd_id}"]
    if n_changes < 2:
        assert state.calls == [*STRIPS, *(again + STRIPS) * n_changes, ("commit", "timings")]
        assert attempts == [0, 1][: n_changes + 1]
    else:
        *calls, (fault, timings) = state.calls
        assert calls == [*STRIPS, *again, *STRIPS, *again] and attempts == [0, 1] and timings == ()
        assert fault.startswith("fault: ") and fault.endswith("w1 was replaced (2 attempts)")


@pytest.mark.parametrize(
    ("has_new_commits", "is_published", "publishes"),
    [(True, False, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_only_new_commits_and_an_absent_publication_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_new_commits: bool, is_published: bool, publishes: bool
) -> None:
    calls: list[str] = []
    folder = RunFolder(tmp_path)

    def publish(published: RunFolder, parallel_map: Any, fence: Any, prior: str) -> None:
        assert published == folder and parallel_map is starmap and prior == "estimate"
        fence()
        calls.append("publish")

    def starmap(*_: Any) -> Any: ...

    monkeypatch.setattr(pipeline, "is_published", lambda folder, prior: is_published)
    monkeypatch.setattr(pipeline, "publish_run", publish)
    monkeypatch.setattr(pipeline, "restore_link", lambda path: calls.append(f"link in {path}"))
    report = SimpleNamespace(to_dict=lambda: {"classified": 3})
    lease = SimpleNamespace(check=lambda: calls.append("check"))
    state: Any = SimpleNamespace(report=lambda: report, lease=lease, has_new_commits=has_new_commits)
    context: Any = SimpleNamespace(folder=folder)
    run: Any = SimpleNamespace(prior="estimate")
    assert publish_and_report(run, context, state, starmap) is report  # type: ignore[comparison-overlap]
    assert calls == ["check", *(["check", "publish"] if publishes else []), f"link in {tmp_path}"]
    assert folder.report_path.exists() == publishes
    if publishes:
        assert read_json(folder.report_path) == {"classified": 3}
