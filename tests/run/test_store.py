"""The run folder: a tile is committed exactly once, whatever is killed, raced, or full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io.votable.ucd import check_ucd

from skyclass import files
from skyclass.catalog.versions import begin_publication
from skyclass.errors import CommitConflict, RunMismatch, StoreError
from skyclass.files import read_json, replacing, write_json
from skyclass.run.commits import (
    append_journal,
    commit_tile,
    committed,
    journal_commit,
    read_commit,
    read_journal,
    refuse_changed,
    retry_quarantined,
)
from skyclass.run.folder import RunFolder, expected_rows, leftover_files, read_run, start_or_resume
from skyclass.schema import FOOTER_KEY, SORT_KEYS
from skyclass.types import Flag
from tests.support.class_rows import CLASS_COLUMNS, CLASS_SCHEMA, FINGERPRINT, class_rows, make_run
from tests.support.paths import CHECKOUT

TILE = "1500p015_ac51"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    start_or_resume(made, FINGERPRINT, {"n_sources": 100})
    return made


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the helpers of the tests at hand."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True)


def test_every_column_and_flag_is_documented() -> None:
    assert list(CLASS_COLUMNS) == CLASS_SCHEMA.names
    for unit, ucd, description in CLASS_COLUMNS.values():
        u.Unit(unit, format="vounit")
        assert check_ucd(ucd, check_controlled_vocabulary=True), ucd
        assert description
    assert all(flag.meaning for flag in Flag)
    assert all(f"{flag.value} {flag.name}" in CLASS_COLUMNS["flags"][2] for flag in Flag)


def test_the_same_fingerprint_resumes_and_another_is_refused_by_name(folder: RunFolder) -> None:
    run_id = read_run(folder)["run_id"]
    assert start_or_resume(folder, dict(reversed(FINGERPRINT.items())), {"other": 1}) == run_id
    assert expected_rows(folder) == 100
    with pytest.raises(RunMismatch, match="model: a1 there, zz now(.|\n)*new: .none. there, 1 now") as caught:
        start_or_resume(folder, {**FINGERPRINT, "model": "zz", "new": "1"}, {})
    assert "plan" not in str(caught.value) and "another output folder" in str(caught.value)


def test_commit_gives_the_same_bytes_in_any_row_order_chunking_and_string_type(tmp_path: Path) -> None:
    rows = class_rows(TILE, 500, 150, 1.5)
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(500)))
    chunked = pa.concat_tables([shuffled.slice(0, 200), shuffled.slice(200)])
    large = chunked.set_column(1, "source_id", chunked["source_id"].cast(pa.large_string()))
    folders = [RunFolder(tmp_path / name) for name in "ab"]
    for folder in folders:
        folder.make()
    commits = [commit_tile(f, TILE, t) for f, t in zip(folders, (rows, large), strict=True)]
    assert commits[0] == commits[1]
    assert folders[0].tile_path(TILE).read_bytes() == folders[1].tile_path(TILE).read_bytes()
    n_flagged = pc.sum(pc.not_equal(rows["flags"], 0)).as_py()
    assert commits[0].n_flagged == commits[0].classes["unclassified"] == n_flagged


def test_rows_read_back_and_nan_is_null(folder: RunFolder) -> None:
    rows = class_rows(TILE, 50, 150, 1.5)
    with_nan = rows.set_column(7, "w1mpro", pa.array(np.full(50, np.nan, np.float32)))
    commit = commit_tile(folder, TILE, with_nan)
    back = pq.read_table(folder.path / commit.file)
    assert back["w1mpro"].null_count == 50
    assert back.drop_columns("w1mpro").equals(
        rows.sort_by([(key, "ascending") for key in SORT_KEYS]).drop_columns("w1mpro")
    )


def test_rows_that_do_not_fit_are_refused_with_every_reason(folder: RunFolder) -> None:
    rows = class_rows(TILE, 5, 150, 1.5)
    wrong = rows.drop_columns("ra").append_column("extra", pa.array(range(5)))
    wrong = wrong.set_column(3, "cntr", pa.array(np.ones(5)))
    with pytest.raises(StoreError, match="no column ra; unknown column extra; cntr is double, must be int64"):
        commit_tile(folder, TILE, wrong)
    strange = rows.set_column(15, "class", pa.array(["galaxy"] * 4 + ["nebula"]))
    with pytest.raises(StoreError, match="class 'nebula'"):
        commit_tile(folder, TILE, strange)
    with pytest.raises(StoreError, match="cannot be a file name"):
        commit_tile(folder, "../outside", rows)
    assert not committed(folder)


@pytest.mark.fault(29)
def test_a_second_attempt_agrees_or_raises(folder: RunFolder) -> None:
    first = commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5))
    assert commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5)) == first
    with pytest.raises(CommitConflict, match=f"{TILE}.*not deterministic"):
        commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5, seed=9))
    assert committed(folder) == {TILE: first}
    assert not list(folder.tiles.glob(".*"))


@pytest.mark.fault(10)
def test_racing_attempts_make_one_file(folder: RunFolder) -> None:
    rows = class_rows(TILE, 200, 150, 1.5)
    with ThreadPoolExecutor(8) as pool:
        commits = list(pool.map(lambda _: commit_tile(folder, TILE, rows), range(16)))
    assert len({commit.sha256 for commit in commits}) == 1
    assert [path.name for path in folder.tiles.iterdir()] == [f"{TILE}.parquet"]
    assert not list(folder.tiles.glob(".*"))


@pytest.mark.integration
@pytest.mark.fault(17)
def test_a_full_disk_names_the_way_out_and_leaves_nothing(folder: RunFolder) -> None:
    done = python(
        """
        import resource, sys
        from tests.support.class_rows import class_rows
        from skyclass.errors import StoreError
        from skyclass.run.commits import RunFolder, commit_tile
        rows = class_rows("1500p015_ac51", 5000, 150, 1.5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            commit_tile(RunFolder(sys.argv[1]), "1500p015_ac51", rows)
        except StoreError as error:
            print(error)
        """,
        folder.path,
    )
    assert "File too large" in done.stdout and "free space" in done.stdout, done.stderr
    assert str(folder.tile_path(TILE)) in done.stdout
    assert not list(folder.tiles.glob(".*")) and not committed(folder)


@pytest.mark.integration
@pytest.mark.parametrize(("step", "done"), [("os.link", 0), ("commits.sync_folder", 1)])
@pytest.mark.fault(9)
def test_a_kill_at_any_step_loses_nothing(folder: RunFolder, step: str, done: int) -> None:
    """Killed before the claim the tile is to do; after it, the tile is done although no journal says so."""
    killed = python(
        f"""
        import os, signal, sys
        from tests.support.class_rows import class_rows
        from skyclass.run import commits, folder
        {step} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        commits.commit_tile(folder.RunFolder(sys.argv[1]), "{TILE}", class_rows("{TILE}", 50, 150, 1.5))
        """,
        folder.path,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(committed(folder)) == done
    commit = commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5))
    assert committed(folder) == {TILE: commit}


def test_a_torn_tile_is_no_commit_and_is_made_again(folder: RunFolder) -> None:
    rows = class_rows(TILE, 50, 150, 1.5)
    commit = commit_tile(folder, TILE, rows)
    journal_commit(folder, commit)
    path = folder.tile_path(TILE)
    for torn in (path.read_bytes()[:-40], b"", b"PAR1"):
        path.write_bytes(torn)
        assert not committed(folder)
        assert commit_tile(folder, TILE, rows) == commit
    assert committed(folder) == {TILE: commit}


def test_a_tile_saved_again_with_other_values_is_found_and_made_again(folder: RunFolder) -> None:
    rows = class_rows(TILE, 50, 150, 1.5)
    commit = commit_tile(folder, TILE, rows)
    journal_commit(folder, commit)
    path = folder.tile_path(TILE)
    index = rows.schema.get_field_index("p_star")
    changed = pq.read_table(path).set_column(index, "p_star", pa.array(np.full(50, 0.5, np.float32)))
    footer = {FOOTER_KEY: pq.read_metadata(path).metadata[FOOTER_KEY]}
    pq.write_table(changed.replace_schema_metadata(footer), path)
    assert path.stat().st_size != commit.nbytes and read_commit(path) is not None
    assert committed(folder) == {TILE: commit}
    with pytest.raises(StoreError, match=f"changed after their commit: 1 tile .{TILE}.*run the same"):
        refuse_changed(folder, committed(folder).values())
    assert not committed(folder)
    assert commit_tile(folder, TILE, rows) == commit


@pytest.mark.parametrize("journaled", [True, False])
def test_the_rows_of_another_tile_are_no_commit(folder: RunFolder, journaled: bool) -> None:
    rows, others = class_rows(TILE, 50, 150, 1.5), class_rows("1515p015_ac51", 20, 151.5, 1.5)
    commit, other = commit_tile(folder, TILE, rows), commit_tile(folder, "1515p015_ac51", others)
    if journaled:
        journal_commit(folder, commit)
    folder.tile_path(TILE).write_bytes(folder.tile_path("1515p015_ac51").read_bytes())
    if journaled:
        with pytest.raises(StoreError, match=f"changed after their commit: 1 tile .{TILE}."):
            refuse_changed(folder, committed(folder).values())
    assert committed(folder) == {"1515p015_ac51": other}
    assert commit_tile(folder, TILE, rows) == commit
    assert committed(folder) == {"1515p015_ac51": other, TILE: commit}


def test_the_journal_is_a_cache_and_survives_a_torn_line(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, (("1500p015_ac51", 20, 150.0, 1.5), ("1515p015_ac51", 20, 151.5, 1.5)))
    before = committed(folder)
    with open(folder.journal_path, "ab") as file:
        file.write(b'{"event": "comm')
    append_journal(folder, "quarantine", coadd_id="x", reason="why")
    assert [event["event"] for event in read_journal(folder)] == ["commit", "commit", "quarantine"]
    folder.journal_path.unlink()
    assert committed(folder) == before and len(before) == 2


def test_quarantined_tiles_are_taken_back_and_no_other(folder: RunFolder) -> None:
    rows = class_rows(TILE, 20, 150, 1.5)
    good = commit_tile(folder, TILE, rows)
    bad = commit_tile(folder, "1515p015_ac51", class_rows("1515p015_ac51", 20, 151.5, 1.5), fault="zeroed")
    for commit in (good, bad):
        journal_commit(folder, commit)
    assert retry_quarantined(folder) == ["1515p015_ac51"]
    assert committed(folder) == {TILE: good}
    # killed after the new claim and before the journal: the old line must not stand for the new file
    again = commit_tile(folder, "1515p015_ac51", class_rows("1515p015_ac51", 20, 151.5, 1.5))
    assert committed(folder) == {TILE: good, "1515p015_ac51": again} and again.fault is None


def test_litter_is_what_kills_leave_and_never_a_result(folder: RunFolder) -> None:
    commit = commit_tile(folder, TILE, class_rows(TILE, 20, 150, 1.5))
    write_json(folder.report_path, {"a": 1})
    staging_folder = begin_publication(folder.path)
    left = [folder.tmp / "x.parquet", folder.path / f".{'0' * 32}.report.json", staging_folder / "part"]
    for path in left:
        path.write_bytes(b"1234")
    link = folder.path / f".{'1' * 32}.catalog"
    link.symlink_to("catalogs/1")
    found = leftover_files(folder)
    assert set(found) == {left[0], left[1], staging_folder, link}
    assert sum(map(files.remove, found)) == 12 + len("catalogs/1") and not leftover_files(folder)
    assert committed(folder) == {TILE: commit} and folder.report_path.exists()


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": 2})
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    with pytest.raises(RuntimeError), replacing(path) as temp:
        temp.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"b": 1, "a": 2}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        read_json(path)


def test_the_journal_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert folder.journal_path.read_text().count('"event"') == len(synced), "written before the sync"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    append_journal(folder, "started", host="a")
    append_journal(folder, "ended")
    assert synced == [str(folder.journal_path)] * 2
    events = [json.loads(line) for line in folder.journal_path.read_text().splitlines()]
    assert [(event["event"], event.get("host")) for event in events] == [("started", "a"), ("ended", None)]
    with open(folder.journal_path, "a") as file:
        file.write('{"torn')
    append_journal(folder, "again")
    assert folder.journal_path.read_text().splitlines()[2:][0] == '{"torn' and synced[2:] == synced[:1]
