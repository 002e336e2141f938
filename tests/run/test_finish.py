"""The end of a run: which folders a run may use, and when its commits are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skyclass.errors import NotPublished, RowsLost, RunMismatch, StoreError
from skyclass.run.commits import commit_tile, committed
from skyclass.run.finish import (
    catalog_rows,
    check_output_folder,
    is_published,
    publish_run,
    tiles_digest,
    verify,
)
from skyclass.run.folder import RunFolder, read_run
from tests.support.class_rows import TILES, class_rows, make_run


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    check_output_folder(folder)
    folder.make()
    check_output_folder(folder)
    (folder.path / "holiday.jpg").write_bytes(b"")
    (folder.path / "a.txt").write_bytes(b"")
    with pytest.raises(RunMismatch, match=f"{folder.path} is no run of skyclass and holds a.txt: give a new folder"):
        check_output_folder(folder)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(RunMismatch, match=f"{file} is a file, and a run needs a folder"):
        check_output_folder(RunFolder(file))


def test_files_of_users_beside_a_run_are_no_obstacle(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[:1])
    (folder.path / "notes.txt").write_bytes(b"")
    check_output_folder(folder)


def test_a_publication_holds_the_present_commits_with_all_files(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[:1])
    assert not is_published(folder)
    publish_run(folder)
    assert is_published(folder) and len(read_run(folder)["run_id"]) == 16
    file = sorted(folder.catalog.rglob("Npix=*.parquet"))[0]
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    assert not is_published(folder)
    file.write_bytes(content)
    assert is_published(folder)
    (folder.catalog / "manifest.json").write_text("{}")
    assert not is_published(folder)


def test_a_run_without_all_rows_is_not_published(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[:2])
    n_rows = sum(n for _, n, *_ in TILES[:2])
    folder.tile_path(TILES[1][0]).unlink()
    with pytest.raises(NotPublished, match=rf"{TILES[0][1]:,} of {n_rows:,} sources are classified"):
        publish_run(folder)
    assert not folder.catalog.exists()


def test_a_catalogue_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[:1])
    folder.catalog.mkdir()
    (folder.catalog / "novel.txt").write_bytes(b"chapter 1")
    with pytest.raises(RunMismatch, match="exists and is no class catalogue of skyclass; publishing would replace it"):
        check_output_folder(folder)


def test_the_rows_of_a_catalogue_are_those_of_the_commits(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[:2])
    commits = committed(folder)
    rows = catalog_rows(folder, commits, 5000)
    files = [folder.tile_path(name) for name in sorted(commits)]
    assert list(rows.files) == files and rows.nbytes == sum(path.stat().st_size for path in files)
    assert rows.n_rows == 5000 and rows.folder == folder.path and rows.tmp == folder.tmp
    run = read_run(folder)
    assert rows.created == run["created"] and list(rows.provenance) == ["run_id", "fingerprint", "info"]
    assert rows.digest == tiles_digest(dict(reversed(commits.items()))) and len(rows.digest) == 64
    a, b = commits.values()
    assert tiles_digest({"a": a}) != tiles_digest({"b": b}) != rows.digest


def test_a_publication_needs_exactly_the_planned_rows(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    with pytest.raises(RowsLost, match="400"):
        publish_run(folder, n_expected=400)
    with pytest.raises(NotPublished):
        publish_run(folder, n_expected=501)
    fences: list[int] = []
    manifest = publish_run(folder.path, n_expected=500, fence=lambda: fences.append(1))
    assert manifest.name == "manifest.json" and manifest.parent.samefile(folder.catalog) and fences
    assert verify(folder.path).ok and verify(folder.catalog).ok


def test_a_publication_of_other_commits_is_not_the_present_one(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    publish_run(folder)
    text = folder.run_path.read_text()
    folder.run_path.write_text(text.replace(read_run(folder)["run_id"], "0" * 16))
    assert not is_published(folder)
    folder.run_path.write_text(text.replace('"n_sources": 500', '"n_sources": 501'))
    assert read_run(folder)["info"]["n_sources"] == 501 and not is_published(folder)
    assert not verify(folder.path).ok, "the plan has another number of rows"
    folder.run_path.write_text(text)
    assert is_published(folder) and verify(folder.path).ok
    name = TILES[3][0]
    folder.tile_path(name).unlink()
    folder.journal_path.unlink()
    commit_tile(folder, name, class_rows(name, 500, 0.0, -1.5, seed=9))
    assert not is_published(folder)


def test_a_catalogue_away_from_its_run_is_verified_by_its_manifest(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    publish_run(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder.catalog.resolve(), copy)
    assert verify(copy).ok
    run = read_run(folder)
    (tmp_path / "run.json").write_text(json.dumps(run | {"run_id": "0" * 16, "info": {"n_sources": 3}}))
    assert verify(copy).ok, "the run beside it is another one"
    (tmp_path / "run.json").write_text(json.dumps(run | {"info": {"n_sources": 3}}))
    assert not verify(copy).ok


def test_a_tile_that_was_changed_after_its_commit_is_not_published(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    path = folder.tile_path(TILES[3][0])
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"changed after their commit: 1 tile .{path.stem}."):
        publish_run(folder)
    assert not path.exists() and not folder.catalog.exists()
