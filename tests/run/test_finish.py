"""The end of a run: which folders a run may use, and when its commits are published."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyclass.errors import NotPublished, RunMismatch
from skyclass.run.finish import check_output_folder, is_published, publish_run
from skyclass.run.folder import RunFolder, read_run
from tests.support.class_rows import TILES, make_run


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
