"""The window of a run: attempts at tiles whose workers die or hang or whose files change. The stages are stand-ins."""

import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

from skyclass.engine import tile_window, window
from skyclass.engine.workers import Placement
from skyclass.errors import ClusterLost, TileFault
from skyclass.types import TilePlan

RELEASE = threading.Event()
VISITS: Counter = Counter()
TILES = [TilePlan(name, 4_000, (0,)) for name in ("a", "b", "c")]
STRIPS = {(tile.coadd_id, start) for tile in TILES for start in range(0, 4_000, 1_000)}


class State:
    """Collects what the window reports."""

    def __init__(self):
        self.context, self.pools, self.strips, self.repeated, self.commits = None, {}, [], [], []

    def count_strip(self, strip):
        self.strips.append((strip.tile.coadd_id, strip.start, strip.stop))

    def uncount_tile(self, coadd_id):
        self.repeated.append(coadd_id)

    def record_commit(self, tile, n_strips):
        self.commits.append((tile, n_strips))


def classify(context, strip):
    return strip


def kill_once(context, strip):
    """Fail as a task does whose worker died, at the first visit of the first strip of tile b."""
    VISITS[strip.tile.coadd_id, strip.start] += 1
    if strip.tile.coadd_id == "b" and VISITS["b", 0] == 1:
        raise KilledWorker("a task", SimpleNamespace(address="tcp://1"), 3)
    return strip


def kill(context, strip):
    if strip.tile.coadd_id == "b":
        raise KilledWorker("a task", SimpleNamespace(address="tcp://1"), 3)
    return strip


def hang(context, strip):
    if strip.tile.coadd_id == "b":
        RELEASE.wait(60)
    return strip


def commit(context, tile, results):
    """Return the number of strips as the timings; the strips must be whole and in order."""
    edges = [edge for strip in results for edge in (strip.start, strip.stop)]
    assert edges[0] == 0 and edges[-1] == tile.n_sources and edges[1:-1:2] == edges[2::2]
    return tile.coadd_id, len(results)


def commit_changed(context, tile, results):
    """Fail for tile b as a commit does whose files changed between two strips."""
    if tile.coadd_id == "b":
        raise TileFault("b", f"changed in attempt {tile.n_file_changes + 1}", kind="changed")
    return tile.coadd_id, len(results)


def commit_fault(context, tile, reason):
    return tile.coadd_id, reason


@pytest.fixture
def client():
    RELEASE.clear()
    VISITS.clear()
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as pool, Client(pool) as client:
        try:
            yield client
        finally:
            RELEASE.set()


@pytest.fixture
def drive(client, monkeypatch):
    """Run three tiles of four strips through stages, and return the state."""

    def drive(classify_strip=classify, commit_strips=commit):
        state = State()
        for name, work in (("classify_strip", classify_strip), ("commit_strips", commit_strips)):
            monkeypatch.setattr(tile_window, name, work)
        monkeypatch.setattr(tile_window, "commit_fault", commit_fault)
        tile_window.run_tiles(client, state, TILES, 1_024, Placement(False, 4, {"workers": (2, ("cut",))}))
        return state

    return drive


def test_every_strip_and_tile_is_counted_once(drive):
    state = drive()
    assert sorted(state.strips) == [(tile, start, start + 1_000) for tile, start in sorted(STRIPS)]
    assert sorted(state.commits) == [("a", 4), ("b", 4), ("c", 4)] and not state.repeated
    assert state.pools == {"workers": (2, ("cut",))}


def test_a_tile_whose_worker_died_is_repeated_last_in_smaller_strips(drive):
    state = drive(kill_once)
    assert sorted(state.commits[:2]) == [("a", 4), ("c", 4)] and state.commits[2:] == [("b", 8)]
    assert state.repeated == ["b"]


@pytest.mark.fault(2)
def test_a_tile_that_kills_workers_in_each_attempt_is_quarantined(drive):
    state = drive(kill)
    *others, (tile, reason) = state.commits
    assert sorted(others) == [("a", 4), ("c", 4)] and tile == "b" and state.repeated == ["b", "b"]
    assert "workers died of it" in reason and "in 2 attempts" in reason and "give workers more memory" in reason


@pytest.mark.fault(31)
def test_a_tile_whose_files_change_in_each_attempt_is_quarantined(drive):
    state = drive(commit_strips=commit_changed)
    assert state.commits[-1] == ("b", "changed in attempt 2 (2 attempts)") and state.repeated == ["b", "b"]
    assert sorted(state.commits[:2]) == [("a", 4), ("c", 4)]


@pytest.mark.fault(5)
def test_a_tile_that_hangs_is_repeated_after_its_worker_is_restarted(drive, monkeypatch):
    monkeypatch.setattr(tile_window, "STALL_S", 0.5)
    monkeypatch.setattr(tile_window, "STALL_STRIPS", 0)
    restarted = []

    def restart(self, workers):
        restarted.extend(workers)
        RELEASE.set()

    monkeypatch.setattr(window.BoundedWindow, "restart", restart)
    state = drive(hang)
    assert len(restarted) == 1 and restarted[0].startswith("inproc://")
    assert sorted(tile for tile, _ in state.commits) == ["a", "b", "c"] and ("b", 8) in state.commits


@pytest.mark.integration
@pytest.mark.fault(5)
def test_a_run_in_which_nothing_finishes_after_restarts_ends(drive, monkeypatch):
    monkeypatch.setattr(tile_window, "STALL_S", 0.2)
    monkeypatch.setattr(tile_window, "STALL_STRIPS", 0)
    monkeypatch.setattr(window.BoundedWindow, "unfinished", lambda self: {})
    with pytest.raises(ClusterLost, match="the run has stalled: .* restarted 3 times; .*same command resumes"):
        drive(hang)


def test_an_error_of_a_stage_ends_the_run(drive):
    def fail(context, strip):
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        drive(fail)
