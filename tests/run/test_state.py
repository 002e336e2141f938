"""The state of a run: what is counted, when, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skyclass.errors import LeaseLost, RowsLost
from skyclass.run import state as module
from skyclass.run.commits import Commit
from skyclass.run.folder import RunFolder
from skyclass.run.plan import Plan
from skyclass.run.state import RunState
from skyclass.run.strips import Timing
from skyclass.types import NO_TILE, Strip, TilePlan

BIG, SMALL = TilePlan("1500p015_ac51", 30, (0,)), TilePlan("1515p015_ac51", 12, (0,))
OUTSIDE = TilePlan(NO_TILE, 3, (0,))


class Reporter:
    """Adds what it is told."""

    total = 0

    def advance(self, n_sources: int) -> None:
        self.total += n_sources


def commit_of(tile: TilePlan, **changes: Any) -> Commit:
    """Return a commit of stars, one of them flagged."""
    fields: dict[str, Any] = {"classes": {"star": tile.n_sources}, "flags": {"EDGE": 1}} | changes
    return Commit(tile.coadd_id, f"tiles/{tile.coadd_id}.parquet", "0", 100, tile.n_sources, 1, **fields)


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    """A run of two tiles and of three sources on no tile."""
    folder = RunFolder(tmp_path / "run")
    folder.make()
    bundle = SimpleNamespace(model_id="m-1", training={"simulated": True})
    context: Any = SimpleNamespace(folder=folder, run_id="r", out=str(folder.path), bundle=bundle)
    lease: Any = SimpleNamespace(check=lambda: None)
    return RunState(context, Plan((BIG, SMALL, OUTSIDE), "digest"), lease, Reporter())


def test_each_source_is_counted_once_however_often_its_strip_is_repeated(state: RunState) -> None:
    reporter: Any = state.reporter
    state.count_strip(Strip(BIG, 0, 20))
    state.count_strip(Strip(BIG, 0, 20))
    assert (reporter.total, state.n_classified_now) == (20, 20)
    state.count_strip(Strip(BIG, 20, 30))
    state.count_strip(Strip(SMALL, 0, 12))
    assert reporter.total == 42
    state.uncount_tile(SMALL.coadd_id)
    state.uncount_tile(SMALL.coadd_id)
    assert reporter.total == 30
    state.count_strip(Strip(SMALL, 0, 5))
    state.record_commit(commit_of(SMALL), [])
    assert reporter.total == 42, "the commit counts the rows whose strips were not counted"
    state.count_strip(Strip(SMALL, 5, 12))
    assert (reporter.total, state.n_classified_now) == (42, 42)


def test_commits_of_earlier_drivers_are_neither_new_nor_pending(state: RunState) -> None:
    assert state.resume({SMALL.coadd_id: commit_of(SMALL)}) == 33
    assert not state.has_new_commits and state.pending == [BIG, OUTSIDE]
    state.record_commit(commit_of(BIG, images={"a.fits": {}}), [])
    assert state.has_new_commits and state.pending == [OUTSIDE]
    assert state.commits[BIG.coadd_id].images == {}, "records of images stay on disk"
    assert '"images": {"a.fits": {}}' in state.context.folder.journal_path.read_text()


def test_a_driver_without_the_lease_records_nothing(state: RunState) -> None:
    def lost() -> None:
        raise LeaseLost("another driver has taken over")

    state.lease = SimpleNamespace(check=lost)  # type: ignore[assignment]
    with pytest.raises(LeaseLost):
        state.record_commit(commit_of(BIG), [])
    assert not state.commits and not state.context.folder.journal_path.exists()


def test_the_report_adds_up(state: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    state.pools = {"cpu": (2, ("read", "cut")), "gpu": (1, ("infer",))}
    state.resume({SMALL.coadd_id: commit_of(SMALL, bad_values={"w1mpro": 2})})
    timings = [Timing("read", 2.0, 500, 1000), Timing("cut", 4.0), Timing("infer", 4.0)]
    state.record_commit(commit_of(BIG, classes={"quasar": 10, "unclassified": 20}, fault="w1: truncated"), timings)
    with pytest.raises(RowsLost, match="45 sources in, 42 rows out"):
        state.report()
    state.record_commit(commit_of(OUTSIDE, classes={"unclassified": 3}), [])
    monkeypatch.setattr(module.time, "perf_counter", lambda: state.began + 10.0)
    report = state.report()
    assert (report.sources_in, report.classified, report.without_class, report.flagged) == (45, 22, 23, 3)
    assert report.class_counts == {"quasar": 10, "star": 12} and report.flag_counts == {"EDGE": 3}
    assert report.bad_values == {"w1mpro": 2} and report.without_tile == 3
    assert (report.tiles, report.tiles_resumed) == (2, 1) and report.quarantined == {BIG.coadd_id: "w1: truncated"}
    assert "--retry-quarantined" in report.remedy and report.simulated_model
    assert (report.tile_bytes, report.tile_bytes_read) == (1000, 500)
    assert (report.wall_seconds, report.sources_per_second) == (10.0, 3.3)
    assert report.stage_seconds == {"read": 2.0, "cut": 4.0, "infer": 4.0}
    assert report.pool_busy == {"cpu": 0.3, "gpu": 0.4} and report.bound_by == "infer"
    assert repr(report) == "<RunReport r: 45 sources in, 22 classified; 2 tiles, 1 quarantined>"
    assert "<th>class_counts</th><td>quasar 10, star 12</td>" in report._repr_html_()
    assert replace(report, quarantined={}).__repr__().endswith("2 tiles>")


def test_without_faults_there_is_no_remedy(state: RunState) -> None:
    for tile in (BIG, SMALL, OUTSIDE):
        state.record_commit(commit_of(tile), [])
    report = state.report()
    assert report.remedy == "" and report.quarantined == {} and report.model_faults == 0
    assert isinstance(state.context.folder, RunFolder)


def test_a_stopped_run_notes_how_many_sources_are_committed(state: RunState) -> None:
    state.resume({SMALL.coadd_id: commit_of(SMALL)})
    with pytest.raises(KeyboardInterrupt) as caught, state.noting_commits():
        state.count_strip(Strip(BIG, 0, 20))
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["12 of 45 sources are committed"]
    with pytest.raises(LeaseLost) as other, state.noting_commits():
        raise LeaseLost
    assert not hasattr(other.value, "__notes__")
