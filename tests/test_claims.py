"""Claims where hard links work, work within one folder only, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyclass import claims
from skyclass.claims import claim, marker_of, probe
from skyclass.errors import StoreError
from skyclass.files import beside, sync_folder
from skyclass.run import lease
from skyclass.run.commits import commit_tile, committed
from skyclass.run.folder import RunFolder, leftover_files
from skyclass.run.lease import hold_lease
from tests.support.class_rows import class_rows
from tests.support.paths import CHECKOUT

TILE = "1500p015_ac51"

LINKS = """
import errno, os
own = os.link
def link(source, target, **options):
    apart = os.path.dirname(os.path.abspath(source)) != os.path.dirname(os.path.abspath(target))
    kind = os.environ["FAKE_LINK"]
    if kind == "nowhere" or (kind == "beegfs" and apart):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)
    if kind == "fuse" or (kind == "afs" and apart):
        number = errno.ENOSYS if kind == "fuse" else errno.EXDEV
        raise OSError(number, os.strerror(number), source, None, target)
    return own(source, target, **options)
os.link = link
"""
"""`os.link` as BeeGFS, AFS, SMB and some FUSE file systems have it; as sitecustomize, for other processes too."""

KINDS = ("beegfs", "afs", "nowhere", "fuse")


@pytest.fixture(params=KINDS)
def links(request, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FAKE_LINK", request.param)
    monkeypatch.setattr(os, "link", os.link)  # to be put back
    exec(LINKS, {})
    return request.param


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LINK", "nowhere")
    monkeypatch.setattr(os, "link", os.link)
    exec(LINKS, {})


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SILENT_S", 1.0)


def attempt(target: Path, content: bytes) -> Path:
    temp = beside(target)
    temp.write_bytes(content)
    return temp


def claimed(target: Path, content: bytes) -> bool:
    temp = attempt(target, content)
    try:
        return claim(temp, target)
    finally:
        temp.unlink(missing_ok=True)


def test_a_name_is_claimed_once_and_never_replaced(tmp_path: Path, links: str) -> None:
    assert probe(tmp_path) == ("links" if links in ("beegfs", "afs") else "markers")
    target = tmp_path / "a"
    assert claimed(target, b"1") and not claimed(target, b"2")
    assert target.read_bytes() == b"1" and os.listdir(tmp_path) == ["a"]


@pytest.mark.integration
def test_of_many_claims_at_once_one_succeeds_and_its_file_is_whole(tmp_path: Path, links: str) -> None:
    for round_ in range(20):
        target = tmp_path / f"{round_}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, target=target: claimed(target, bytes([i]) * 1000), range(8)))
        assert won.count(True) == 1 and target.read_bytes() == bytes([won.index(True)]) * 1000
    assert len(os.listdir(tmp_path)) == 20


DIES = """
    import os, signal, sys
    os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    from pathlib import Path
    from skyclass.claims import claim
    from skyclass.files import beside
    target = Path(sys.argv[1])
    temp = beside(target)
    temp.write_bytes(b"dead")
    claim(temp, target)
"""


@pytest.mark.integration
@pytest.mark.fault(9)
def test_a_claimant_that_dies_between_marker_and_rename_is_passed_over(tmp_path: Path, no_links: None) -> None:
    (tmp_path / "sitecustomize.py").write_text(LINKS)
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "a"
    path = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    command = [sys.executable, "-c", textwrap.dedent(DIES), str(target)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert marker_of(target).exists() and not target.exists()
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda i: claimed(target, bytes([i])), range(4)))
    assert won.count(True) == 1 and target.read_bytes() == bytes([won.index(True)])
    assert time.monotonic() - began >= claims.SILENT_S and not marker_of(target).exists()


def test_a_claimant_that_was_passed_over_replaces_nothing(tmp_path: Path, no_links: None, monkeypatch) -> None:
    """It was suspended between its marker and the rename; another claimed the name meanwhile."""
    target, write = tmp_path / "a", claims.write_durably

    def suspended(path: Path, data: bytes) -> None:
        write(path, data)
        monkeypatch.setattr(claims, "write_durably", write)
        claims._take_away(path)
        assert claimed(target, b"other")

    monkeypatch.setattr(claims, "write_durably", suspended)
    assert not claimed(target, b"suspended") and target.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_system_that_can_neither_is_refused_and_what_it_lacks_is_named(tmp_path, no_links, monkeypatch) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(StoreError, match="no hard links and cannot rename a file .*another file system"):
            probe(tmp_path)
    monkeypatch.setattr(claims, "write_durably", lambda path, data: path.write_bytes(data))
    with pytest.raises(StoreError, match="no hard links and creates a file that exists .*another file system"):
        probe(tmp_path)
    assert not os.listdir(tmp_path)


def test_tiles_and_leases_work_on_every_such_file_system(tmp_path: Path, links: str) -> None:
    folder = RunFolder(tmp_path / "run")
    with hold_lease(folder) as held:
        commit = commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5))
        assert commit_tile(folder, TILE, class_rows(TILE, 50, 150, 1.5)) == commit
        held.check()
    assert committed(folder) == {TILE: commit} and not leftover_files(folder)
    with hold_lease(folder) as held:
        assert held.epoch == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_written_all_the_same(tmp_path: Path, monkeypatch, number: int) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_what_a_dead_claimant_leaves_is_litter_and_no_commit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with hold_lease(folder):
        commit = commit_tile(folder, TILE, class_rows(TILE, 5, 150, 1.5))
    left = [beside(folder.tile_path("x")), marker_of(folder.tile_path("x")), beside(folder.leases / "lease")]
    for path in left:
        path.write_bytes(folder.tile_path(TILE).read_bytes())
    assert committed(folder) == {TILE: commit} and leftover_files(folder) == sorted(left)


CLASSIFY = """
from skyclass.engine.engine import classify
from skyclass.run.config import RunConfig
from skyclass.run.progress import no_progress
import sys
catalog, images, out, model = sys.argv[1:]
report = classify(RunConfig(catalog, images, out, model, None, "fp32", "cpu", workers=1), watch=no_progress)
print(report.classified + report.without_class)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["beegfs", "nowhere"])
def test_a_run_on_workers_where_links_are_missing(sky, bundle, tmp_path: Path, kind: str) -> None:
    """Driver and workers are processes whose `os.link` is replaced."""
    (tmp_path / "sitecustomize.py").write_text(LINKS)
    path = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    code = f"if __name__ == '__main__':\n{textwrap.indent(CLASSIFY, '    ')}"
    script = tmp_path / "classify.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(sky.catalog), str(sky.images), str(tmp_path / "out"), str(bundle)]
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_LINK": kind}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(sky.n_sources), done.stderr


@pytest.mark.integration
def test_a_lease_taken_by_two_at_once_is_held_by_one(tmp_path: Path, no_links: None) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.leases.mkdir()
    (marker := marker_of(folder.leases / "000001.json")).write_bytes(b"dead")
    with hold_lease(folder) as held:
        assert held.epoch == 1 and not marker.exists()
        assert lease.newest_epoch(folder) == 1
