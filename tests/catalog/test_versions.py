"""Which folder is the current publication, and what is on disk at each step that changes it."""

from __future__ import annotations

import errno
import logging
import os
import re
from pathlib import Path

import pytest

from skyclass.catalog import versions
from skyclass.catalog.versions import (
    begin_publication,
    current_publication,
    enclosing_publication,
    find_catalog,
    make_current,
    publications,
    refuse_foreign_catalog,
    restore_link,
    superseded_publications,
    unfinished_publications,
)
from skyclass.errors import NotPublished, RunMismatch, StoreError


def publication(run: Path, number: str) -> Path:
    """Make a folder that looks like a whole publication."""
    folder = run / "catalogs" / number
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def staged(run: Path) -> Path:
    """Return a publication that is written and not yet current."""
    folder = begin_publication(run)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three publications; the second is the current one."""
    for number in ("000002", "000010", "1000000"):
        publication(tmp_path, number)
    (tmp_path / "catalog").symlink_to("catalogs/000010")
    return tmp_path


def test_publications_are_folders_of_six_digits_or_more_in_the_order_of_their_numbers(run: Path) -> None:
    for name in ("00003", "abc", "0000004.building"):
        (run / "catalogs" / name).mkdir()
    (run / "catalogs" / "000005").write_text("a file")
    assert [path.name for path in publications(run)] == ["000002", "000010", "1000000"]
    assert [path.name for path in superseded_publications(run)] == ["000002", "1000000"]
    (run / "catalogs" / "0.building").mkdir()
    assert [path.name for path in unfinished_publications(run)] == ["0.building", "0000004.building"]
    assert publications(run / "nowhere") == [] and superseded_publications(run / "nowhere") == []


def test_the_link_names_the_current_publication_and_without_it_the_newest_whole_one(run: Path) -> None:
    assert current_publication(run) == run / "catalogs/000010"
    (run / "catalog").unlink()
    assert current_publication(run) == run / "catalogs/1000000"
    (run / "catalogs/1000000/manifest.json").unlink()
    assert current_publication(run) == run / "catalogs/000010"
    (run / "catalog").symlink_to("catalogs/000077")  # gone: nothing is chosen in its place
    assert current_publication(run) is None and superseded_publications(run) == []
    assert current_publication(run / "nowhere") is None


def test_a_publication_is_found_from_the_run_the_link_and_its_own_folder(run: Path) -> None:
    for path in (run, run / "catalog", str(run / "catalogs/000010")):
        assert find_catalog(path) == run / "catalogs/000010"
    assert find_catalog(run / "catalogs/000002") == run / "catalogs/000002"
    (run / "catalog").unlink()
    assert find_catalog(run / "catalog") == run / "catalogs/1000000"
    with pytest.raises(NotPublished, match="other does not exist: check the path"):
        find_catalog(run / "other")
    (run / "catalog").symlink_to("catalogs/000077")
    with pytest.raises(NotPublished, match="catalog does not exist: check the path"):
        find_catalog(run / "catalog")
    with pytest.raises(NotPublished, match="is no published class catalogue .no manifest.json.: give the catalog"):
        find_catalog(run)


def test_a_text_file_in_place_of_the_link_is_followed_and_any_other_file_is_not(run: Path) -> None:
    entry = run / "catalog"
    entry.unlink()
    entry.write_text("catalogs/000002")
    assert find_catalog(entry) == find_catalog(run) == run / "catalogs/000002"
    for text in ("catalogs/000002\n", "catalogs/00002", "../catalogs/000002", ""):
        entry.write_text(text)
        assert current_publication(run) is None
        with pytest.raises(NotPublished):
            find_catalog(entry)


def test_the_publication_round_a_path_is_found_through_links(run: Path) -> None:
    whole = run / "catalogs/000010"
    inside = ["catalogs/000010/out.csv", "catalogs/000010/dataset/deep/out.csv", "catalog/out.csv"]
    outside = ["out.csv", "catalogs/out.csv", "catalogs/000099/out.csv", "catalogs/000010", "000010/out.csv"]
    assert [enclosing_publication(run / path) for path in inside] == [whole] * 3
    assert [enclosing_publication(run / path) for path in outside] == [None] * 5
    for folder in (run / "other/000010", run / "catalogs/notes"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        assert enclosing_publication(folder / "out.csv") is None


def test_a_new_publication_is_an_empty_folder_and_removes_what_killed_drivers_left(tmp_path: Path) -> None:
    first = begin_publication(tmp_path)
    (first / "part").write_text("half")
    second = begin_publication(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{32}\.building", second.name) and second.parent == tmp_path / "catalogs"
    assert list((tmp_path / "catalogs").iterdir()) == [second] and list(second.iterdir()) == []


def test_numbers_go_on_from_the_largest_and_the_link_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_current(tmp_path, staged(tmp_path)) == tmp_path / "catalogs/000001"
    assert os.readlink(tmp_path / "catalog") == "catalogs/000001"
    publication(tmp_path, "000041")
    synced: list[Path] = []
    sync = versions.sync_folder
    monkeypatch.setattr(versions, "sync_folder", lambda folder: (synced.append(folder), sync(folder)))
    assert make_current(tmp_path, staged(tmp_path)).name == "000042"
    assert os.readlink(tmp_path / "catalog") == "catalogs/000042"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "catalogs"]
    assert sorted(path.name for path in (tmp_path / "catalogs").iterdir()) == ["000001", "000041", "000042"]
    assert synced[-2:] == [tmp_path / "catalogs", tmp_path]


def test_a_copy_that_followed_the_link_becomes_a_publication_itself(tmp_path: Path) -> None:
    """The folder `catalog` keeps its files under the next number, and the new publication gets the one after it."""
    publication(tmp_path, "000003")
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "manifest.json").write_text('{"copied": 1}')
    assert find_catalog(tmp_path) == tmp_path / "catalog"
    assert make_current(tmp_path, staged(tmp_path)).name == "000005"
    assert (tmp_path / "catalogs/000004/manifest.json").read_text() == '{"copied": 1}'
    assert os.readlink(tmp_path / "catalog") == "catalogs/000005"


@pytest.mark.parametrize("made", ["folder", "file", "link", "catalogs"])
def test_what_is_foreign_stays_and_the_publication_is_not_renamed(tmp_path: Path, made: str) -> None:
    entry = tmp_path / "catalog"
    folder = staged(tmp_path) if made != "catalogs" else tmp_path / "x.building"
    if made == "folder":
        entry.mkdir()
    elif made == "link":
        entry.symlink_to("catalogs/1")
    else:
        (tmp_path / made.replace("file", "catalog")).write_text("mine")
    reason = "catalogs is no folder, and publications" if made == "catalogs" else "catalog exists and is no class"
    with pytest.raises(RunMismatch, match=reason):
        make_current(tmp_path, folder)
    assert made == "catalogs" or list((tmp_path / "catalogs").iterdir()) == [folder]


def test_entries_of_skyclass_may_be_replaced(tmp_path: Path) -> None:
    entry = tmp_path / "catalog"
    refuse_foreign_catalog(tmp_path)
    (tmp_path / "catalogs").mkdir()
    refuse_foreign_catalog(tmp_path)
    entry.symlink_to("catalogs/000009")  # its publication is gone
    refuse_foreign_catalog(tmp_path)
    entry.unlink()
    entry.write_text("catalogs/000009")
    refuse_foreign_catalog(tmp_path)
    entry.unlink()
    entry.mkdir()
    (entry / "manifest.json").write_text("{}")
    refuse_foreign_catalog(tmp_path)


def test_a_lost_link_is_set_again_and_an_entry_is_left_alone(run: Path) -> None:
    restore_link(run)
    assert os.readlink(run / "catalog") == "catalogs/000010"
    (run / "catalog").unlink()
    restore_link(run)
    assert os.readlink(run / "catalog") == "catalogs/1000000"
    empty = run / "empty"
    empty.mkdir()
    restore_link(empty)
    assert list(empty.iterdir()) == []


def failing(number: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_without_symbolic_links_a_text_file_names_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "symlink", failing(errno.ENOSYS))
    with caplog.at_level(logging.WARNING):
        make_current(tmp_path, staged(tmp_path))
    entry = tmp_path / "catalog"
    assert not entry.is_symlink() and entry.read_text() == "catalogs/000001"
    assert caplog.messages == [
        f"{entry}: no symbolic links here; other tools open {tmp_path}/catalogs/000001",
    ]
    assert find_catalog(tmp_path) == tmp_path / "catalogs/000001"


@pytest.mark.parametrize("call", ["symlink", "replace"])
def test_a_failure_at_the_link_leaves_the_earlier_one_and_no_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    make_current(tmp_path, staged(tmp_path))
    folder = staged(tmp_path)
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}/catalog: No space left.*: free space, then"):
        make_current(tmp_path, folder)
    assert os.readlink(tmp_path / "catalog") == "catalogs/000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "catalogs"]
