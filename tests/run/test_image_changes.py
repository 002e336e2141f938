"""Images replaced during and between runs: a tile is of one set of files, or it says why not."""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from distributed import Client, LocalCluster

from skyclass.engine import engine, tile_window
from skyclass.errors import RunMismatch
from skyclass.images.atlas import BLOCK_BYTES
from skyclass.images.local import LocalSource
from skyclass.mock import write_mock
from skyclass.run import pipeline, stages
from skyclass.run.commits import committed, read_commit, uncommit
from skyclass.run.config import RunConfig
from skyclass.run.folder import RunFolder
from skyclass.run.progress import no_progress
from skyclass.run.report import RunReport
from skyclass.types import Flag
from tests.support.faults import Chaos
from tests.support.runs import rows_of, run_on

SIZE_PX = 256


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two very small tiles, four strips each."""
    return write_mock(str(tmp_path_factory.mktemp("small")), n_tiles=2, seed=3, sources_per_tile=60, size_px=SIZE_PX)


@pytest.fixture
def run(small, bundle, tmp_path) -> RunConfig:
    """A run over a copy of the images."""
    shutil.copytree(small.images, tmp_path / "images")
    return dataclasses.replace(run_on(small, bundle, tmp_path / "classes", 20), images=str(tmp_path / "images"))


@pytest.fixture(scope="module")
def undisturbed(small, bundle, tmp_path_factory) -> pa.Table:
    run = run_on(small, bundle, tmp_path_factory.mktemp("undisturbed") / "classes", 20)
    pipeline.classify(run)
    return rows_of(run)


def file_of(run: RunConfig, coadd_id: str, band: str = "w2") -> Path:
    return next(Path(run.images).rglob(f"{coadd_id}-{band}-int-3.fits"))


def other_pixels(path: Path, factor: float = 1.2) -> None:
    """Replace an image by one with the same header and size, and other pixels."""
    data = path.read_bytes()
    n_bytes = 4 * SIZE_PX**2
    start = len(data) // BLOCK_BYTES * BLOCK_BYTES - -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES
    pixels = np.frombuffer(data[start : start + n_bytes], ">f4") * np.float32(factor)
    new = path.with_suffix(".new")
    new.write_bytes(data[:start] + pixels.astype(">f4").tobytes() + data[start + n_bytes :])
    new.replace(path)


def plain(run: RunConfig) -> RunReport:
    return pipeline.classify(run)


@contextmanager
def in_process_workers():
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as pool, Client(pool) as client:
        yield client


def on_workers(run: RunConfig) -> RunReport:
    with in_process_workers() as client:
        return engine.classify(run, client, no_progress)


def replaced_in_the_middle(patch: pytest.MonkeyPatch, path: Path, coadd_id: str, times: int) -> list[int]:
    """Replace an image each time that the second strip of its tile is begun, at most `times`; return the times."""
    cut, done = stages.cut_strip, []

    def replacing(context, strip):
        if (
            strip.tile.coadd_id == coadd_id
            and strip.start
            and len(done) < times
            and strip.tile.n_file_changes == len(done)
        ):
            done.append(len(done) + 1)
            other_pixels(path, 1.2 + len(done) / 10)
        return cut(context, strip)

    for module in (stages, pipeline, tile_window):
        patch.setattr(module, "cut_strip", replacing)
    return done


@pytest.mark.integration
@pytest.mark.fault(31)
@pytest.mark.parametrize("classify", [plain, on_workers])
def test_a_tile_replaced_once_during_the_run_is_of_the_new_file_alone(
    run, small, undisturbed, chaos: Chaos, monkeypatch, tmp_path, classify
):
    coadd_id = small.coadd_ids[0]
    with monkeypatch.context() as patch:
        done = replaced_in_the_middle(patch, file_of(run, coadd_id), coadd_id, 1)
        report = classify(run)
    assert done == [1] and not report.quarantined
    expected = dataclasses.replace(run, out=str(tmp_path / "expected"))
    pipeline.classify(expected)  # of the new file from the start
    chaos.same_rows(rows_of(run), rows_of(expected))
    here = pc.equal(undisturbed["coadd_id"], coadd_id)
    assert not rows_of(run).filter(here)["p_star"].equals(undisturbed.filter(here)["p_star"])


@pytest.mark.integration
@pytest.mark.fault(31)
@pytest.mark.parametrize("classify", [plain, on_workers])
def test_a_tile_that_keeps_changing_is_quarantined_with_that_reason(
    run, small, undisturbed, chaos: Chaos, monkeypatch, classify
):
    coadd_id = small.coadd_ids[0]
    with monkeypatch.context() as patch:
        done = replaced_in_the_middle(patch, file_of(run, coadd_id), coadd_id, 9)
        report = classify(run)
    assert done == [1, 2] and list(report.quarantined) == [coadd_id]
    assert "w2-int-3.fits changed during the run" in report.quarantined[coadd_id]
    assert "(2 attempts)" in report.quarantined[coadd_id]
    rows = rows_of(run)
    here = pc.equal(rows["coadd_id"], coadd_id)
    flags = set(pc.bit_wise_and(rows.filter(here)["flags"], int(Flag.TILE_BAD | Flag.NO_IMAGE)).to_pylist())
    assert flags == {int(Flag.TILE_BAD | Flag.NO_IMAGE)} and rows.filter(here)["class"].null_count == sum(
        here.to_pylist()
    )
    away = pc.not_equal(rows["coadd_id"], coadd_id)
    chaos.injected(2)
    chaos.same_rows(rows.filter(away), undisturbed.filter(away))


@pytest.mark.integration
@pytest.mark.fault(31)
def test_a_tile_removed_during_the_run_is_quarantined_and_no_row_is_lost(run, small, monkeypatch):
    coadd_id = small.coadd_ids[0]
    path, cut = file_of(run, coadd_id), stages.cut_strip

    def removing(context, strip):
        if strip.tile.coadd_id == coadd_id and strip.start:
            path.unlink(missing_ok=True)
        return cut(context, strip)

    monkeypatch.setattr(pipeline, "cut_strip", removing)
    report = pipeline.classify(run)
    assert list(report.quarantined) == [coadd_id] and report.sources_in == small.n_sources == len(rows_of(run))


def undo(run: RunConfig, coadd_id: str) -> None:
    """Leave a run as an interruption leaves it: one tile to do."""
    folder = RunFolder(Path(run.out))
    uncommit(folder, committed(folder)[coadd_id], "to be done again")
    folder.catalog.unlink() if folder.catalog.is_symlink() else shutil.rmtree(folder.catalog)


@pytest.mark.integration
@pytest.mark.fault(11)
def test_a_committed_tile_whose_image_was_replaced_is_refused_by_name(run, small, undisturbed, chaos: Chaos):
    done, left = small.coadd_ids
    pipeline.classify(run)
    undo(run, left)
    path = file_of(run, done)
    kept = path.read_bytes()
    other_pixels(path)
    with pytest.raises(
        RunMismatch, match=f"not those of 1 committed tile; .*\n  tile {done}: .*{path.name} .other pixels. changed"
    ) as caught:
        pipeline.classify(run)
    assert caught.value.exit_code == 2
    path.unlink()
    with pytest.raises(RunMismatch, match=f"tile {done}.*w2: missing band"):
        pipeline.classify(run)
    path.write_bytes(kept)  # put back, with another time
    assert pipeline.classify(run).tiles_resumed == 1
    chaos.injected(2)
    chaos.same_rows(rows_of(run), undisturbed)


@pytest.mark.integration
@pytest.mark.parametrize("how", ["mv", "copy with times", "copy", "symlink"])
def test_images_that_were_moved_copied_or_linked_resume(run, small, undisturbed, tmp_path, monkeypatch, how):
    done, left = small.coadd_ids
    pipeline.classify(run)
    undo(run, left)
    there = tmp_path / "there"
    if how == "mv":
        shutil.move(run.images, there)
    elif how == "symlink":
        there.symlink_to(run.images)
    else:
        shutil.copytree(run.images, there, copy_function=shutil.copy2 if how == "copy with times" else shutil.copyfile)
    moved = dataclasses.replace(run, images=str(there))
    opened, read = [], LocalSource.read
    monkeypatch.setattr(
        LocalSource, "read", lambda self, name, *span: (opened.append(name), read(self, name, *span))[1]
    )
    assert pipeline.classify(moved).tiles_resumed == 1 and rows_of(moved).equals(undisturbed)
    assert any(done in path for path in opened) == (how == "copy"), "files of the same size and time are not opened"
    opened.clear()
    undo(moved, left)
    assert pipeline.classify(moved).tiles_resumed == 1
    assert not any(done in path for path in opened), "what was compared is recorded anew"


@pytest.mark.integration
def test_a_commit_records_the_files_of_its_tile(run, small):
    pipeline.classify(run)
    folder = RunFolder(Path(run.out))
    for coadd_id in small.coadd_ids:
        commit = read_commit(folder.tile_path(coadd_id))
        assert commit == committed(folder)[coadd_id] and len(commit.images) == 3
        for name, fields in commit.images.items():
            status = os.stat(Path(run.images) / name)
            assert (fields["size_bytes"], fields["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
            assert len(fields["header_sha256"]) == len(fields["pixel_sha256"]) == 64
