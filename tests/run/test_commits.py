"""Commits: what is on disk in which order, and which of two attempts at a tile counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from skyclass.errors import CommitConflict, StoreError
from skyclass.run import commits as module
from skyclass.run.commits import (
    FILE_FIELDS,
    Commit,
    append_journal,
    commit_tile,
    committed,
    existing_commit,
    journal_commit,
    read_commit,
    read_journal,
    refuse_changed,
    retry_quarantined,
    uncommit,
)
from skyclass.run.folder import RunFolder
from skyclass.schema import FOOTER_KEY
from tests.support.class_rows import class_rows

A, B = "1500p015_ac51", "1515p015_ac51"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make()
    return made


def record(inode: int) -> dict[str, Any]:
    return {"a.fits": dict.fromkeys(FILE_FIELDS, 0) | {"inode": inode}}


def test_a_commit_states_what_the_file_holds(folder: RunFolder) -> None:
    rows = class_rows(A, 40, 150, 1.5)
    commit = commit_tile(folder, A, rows, "w1 zeroed", {"w1mpro": 2}, record(7))
    path = folder.tile_path(A)
    assert commit == read_commit(path) == existing_commit(folder, A)
    assert (commit.coadd_id, commit.file, commit.rows, commit.fault) == (A, f"tiles/{A}.parquet", 40, "w1 zeroed")
    assert commit.nbytes == path.stat().st_size and commit.images == record(7) and commit.bad_values == {"w1mpro": 2}
    assert sum(commit.classes.values()) == 40 and commit.n_flagged == commit.flags["NO_IMAGE"]
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    assert footer["rows"] == 40 and "sha256" not in footer
    assert existing_commit(folder, B) is None


def test_the_name_of_a_tile_is_on_disk_before_the_commit_counts(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr(
        module, "sync_folder", lambda path: synced.append(sorted(entry.name for entry in path.glob("[!.]*")))
    )
    commit = commit_tile(folder, A, class_rows(A, 5, 150, 1.5))
    assert synced == [[f"{A}.parquet"]]
    commit_tile(folder, A, class_rows(A, 5, 150, 1.5))
    assert synced == [[f"{A}.parquet"]] * 2, "an earlier attempt may have ended before it waited for the disk"
    uncommit(folder, commit, "why")
    assert synced[2:] == [[]]
    (event,) = read_journal(folder)
    assert {name: event[name] for name in ("event", "file", "coadd_id", "fault")} == {
        "event": "retry", "file": commit.file, "coadd_id": A, "fault": "why",
    }  # fmt: skip
    uncommit(folder, commit, "twice")


def test_a_withdrawal_is_journalled_before_the_file_goes(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_tile(folder, A, class_rows(A, 5, 150, 1.5))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "append_journal", killed)
    with pytest.raises(KeyboardInterrupt):
        uncommit(folder, commit, "why")
    assert folder.tile_path(A).exists()


def test_other_rows_count_as_a_conflict_only_where_the_images_are_the_same(folder: RunFolder) -> None:
    first = commit_tile(folder, A, class_rows(A, 20, 150, 1.5), images=record(1))
    other = class_rows(A, 20, 150, 1.5, seed=4)
    with pytest.raises(
        CommitConflict, match=f"tile {A} is committed as .* and 20 rows; another attempt gave .* and 20"
    ):
        commit_tile(folder, A, other, images=record(1))
    assert commit_tile(folder, A, other, images=record(2)) == first
    assert not list(folder.tiles.glob(".*"))


def test_a_file_that_reads_back_differently_is_no_commit(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_footer", lambda path: {"rows": 5})
    with pytest.raises(StoreError, match="reads back differently from what was written: check the disk"):
        commit_tile(folder, A, class_rows(A, 5, 150, 1.5))
    assert not list(folder.tiles.iterdir())


def test_only_files_of_another_size_are_read_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (A, B):
        journal_commit(folder, commit_tile(folder, name, class_rows(name, 5, 150, 1.5)))
    hashed: list[Path] = []

    def sha256(path: Path) -> str:
        hashed.append(path)
        return "0"

    monkeypatch.setattr(module, "sha256_of", sha256)
    both = committed(folder)
    assert list(both) == [A, B] and not hashed
    folder.journal_path.unlink()
    assert list(committed(folder)) == [A, B] and hashed == [folder.tile_path(A), folder.tile_path(B)]


def test_the_latest_event_of_a_file_counts(folder: RunFolder) -> None:
    commit = commit_tile(folder, A, class_rows(A, 5, 150, 1.5), fault="zeroed")
    journal_commit(folder, replace(commit, bad_values={"w1mpro": 1}))
    journal_commit(folder, commit)
    assert committed(folder)[A] == commit
    append_journal(folder, "retry", file=commit.file)
    assert committed(folder)[A] == commit, "from the file, as killed before it was removed"
    assert retry_quarantined(folder) == [A] and not committed(folder)


def test_changed_tiles_are_withdrawn_and_the_first_five_are_named(folder: RunFolder) -> None:
    names = [f"15{i:02d}p015_ac51" for i in range(7)]
    commits = [commit_tile(folder, name, class_rows(name, 3, 150, 1.5)) for name in names]
    refuse_changed(folder, commits)
    for name in names[:6]:
        with open(folder.tile_path(name), "ab") as file:
            file.write(b"x")
    with pytest.raises(StoreError) as caught:
        refuse_changed(folder, commits)
    assert f"6 tiles ({', '.join(names[:5])}); nothing was published" in str(caught.value)
    assert list(committed(folder)) == names[6:]


GOOD: dict[str, Any] = {
    "coadd_id": A, "file": f"tiles/{A}.parquet", "sha256": "0", "nbytes": 1, "rows": 2, "n_flagged": 0,
    "classes": {"star": 2}, "flags": {}, "fault": None, "bad_values": {}, "images": record(1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({}, True),
        ({"fault": "zeroed"}, True),
        ({"fault": 3}, False),
        ({"coadd_id": 1}, False),
        ({"file": None}, False),
        ({"sha256": 2}, False),
        ({"nbytes": 0}, True),
        ({"nbytes": -1}, False),
        ({"rows": True}, False),
        ({"n_flagged": 1.0}, False),
        ({"classes": {"star": -1}}, False),
        ({"flags": []}, False),
        ({"bad_values": {"w1mpro": "1"}}, False),
        ({"images": None}, False),
        ({"images": {"a.fits": 1}}, False),
        ({"images": {"a.fits": {"inode": 1}}}, False),
        ({"images": {}}, True),
    ],
)
def test_only_whole_records_are_commits(change: dict[str, Any], is_valid: bool) -> None:
    fields = GOOD | change
    assert module._commit_of(fields | {"event": "commit"}) == (Commit(**fields) if is_valid else None)


def test_a_torn_line_is_closed_before_the_next_event(folder: RunFolder) -> None:
    append_journal(folder, "one", a=1)
    folder.journal_path.write_bytes(folder.journal_path.read_bytes() + b'[1]\n"text"\n{"torn')
    append_journal(folder, "two")
    assert [event["event"] for event in read_journal(folder)] == ["one", "two"]
    assert b'\n{"torn\n{"event": "two"' in folder.journal_path.read_bytes()
    assert not folder.journal_path.read_bytes().startswith(b"\n") and read_journal(RunFolder(folder.path / "x")) == []
