"""One driver a run folder: who may take over when, and who must stop."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skyclass.errors import LeaseHeld, LeaseLost
from skyclass.run import lease as module
from skyclass.run.folder import RunFolder
from skyclass.run.lease import hold_lease, newest_epoch
from tests.support.class_rows import make_run

DRIVER = """
    import sys, time
    from skyclass.run import lease
    from skyclass.errors import LeaseLost
    from skyclass.run.commits import RunFolder
    lease.BEAT_S = 0.1
    with lease.hold_lease(RunFolder(sys.argv[1])) as held:
        print("holds", flush=True)
        for _ in range(600):
            time.sleep(0.1)
            try:
                held.check()
            except LeaseLost as error:
                print("lost", error, flush=True)
                break
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "SILENT_S", 1.5)


def driver(folder: RunFolder) -> subprocess.Popen[str]:
    """Start another process that holds the lease, and wait until it does."""
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "holds\n"
    return process


@pytest.mark.fault(10)
def test_one_driver_a_folder_and_the_next_when_it_has_left(folder: RunFolder) -> None:
    for epoch in (1, 2):
        with hold_lease(folder) as lease:
            assert lease.epoch == newest_epoch(folder) == epoch
            with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on .*wait for it"), hold_lease(folder):
                pass
            lease.check()
    assert sorted(path.name for path in folder.leases.iterdir()) == ["000002.done", "000002.json"]
    assert not list(folder.tmp.iterdir())


def test_the_lease_of_a_killed_driver_is_taken_at_once(folder: RunFolder) -> None:
    other = driver(folder)
    with pytest.raises(LeaseHeld, match=f"process {other.pid} on"), hold_lease(folder):
        pass
    other.kill()
    other.communicate()
    began = time.monotonic()
    with hold_lease(folder) as lease:
        assert lease.epoch == 2 and time.monotonic() - began < module.SILENT_S


@pytest.mark.integration
@pytest.mark.fault(30)
def test_a_suspended_driver_is_passed_over_and_stops_when_it_wakes(folder: RunFolder) -> None:
    other = driver(folder)
    os.kill(other.pid, signal.SIGSTOP)
    with hold_lease(folder) as lease:
        os.kill(other.pid, signal.SIGCONT)
        said = other.communicate(timeout=30)[0]
        assert said.startswith("lost") and "epoch 2; this driver had 1" in said
        lease.check()
    with hold_lease(folder) as lease:
        assert lease.epoch == 3, "who was passed over frees nothing when it leaves"


@pytest.mark.integration
@pytest.mark.fault(30)
def test_a_driver_of_another_host_is_believed_while_it_gives_signs(folder: RunFolder) -> None:
    with hold_lease(folder):
        pass
    (folder.leases / "000001.done").unlink()
    path = folder.leases / "000001.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    stop = threading.Event()
    heart = threading.Thread(target=module._beat, args=(path, stop))
    heart.start()
    with pytest.raises(LeaseHeld, match="process 1 on elsewhere"), hold_lease(folder):
        pass
    stop.set()
    heart.join()
    with hold_lease(folder) as lease:
        assert lease.epoch == 2
        with pytest.raises(LeaseLost, match="another driver has taken over"):
            module.Lease(folder, 1).check()


@pytest.mark.integration
@pytest.mark.fault(10)
def test_of_many_that_come_at_once_one_drives(folder: RunFolder) -> None:
    held, refused, gate = [], [], threading.Barrier(8)

    def come() -> None:
        gate.wait()
        try:
            with hold_lease(folder) as lease:
                held.append(lease.epoch)
                time.sleep(1)
        except LeaseHeld:
            refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == [1] and len(refused) == 7


def alive(folder: RunFolder, **changes: object) -> None:
    """Leave a lease of epoch 1 as a living driver does, with some facts of it changed."""
    with hold_lease(folder):
        path = folder.leases / "000001.json"
        holder = json.loads(path.read_bytes()) | changes
    path.with_suffix(".done").unlink()
    path.write_text(json.dumps(holder))


@pytest.mark.integration
@pytest.mark.fault(10)
@pytest.mark.parametrize("fact", ["pid_namespace", "boot"])
def test_a_process_id_of_another_table_says_nothing(folder: RunFolder, fact: str) -> None:
    """A container or another machine has this host's name, and process ids that are dead or others here."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive(folder, pid=dead.pid)
    began = time.monotonic()
    with hold_lease(folder):
        assert time.monotonic() - began < module.SILENT_S, "here it is known to be dead"
    (folder.leases / "000002.json").unlink()
    alive(folder, **{"pid": dead.pid, fact: "of somebody else"})
    path, stop = folder.leases / "000001.json", threading.Event()
    heart = threading.Thread(target=module._beat, args=(path, stop))
    heart.start()
    with pytest.raises(LeaseHeld, match=f"process {dead.pid} on"), hold_lease(folder):
        pass
    stop.set()
    heart.join()
    with hold_lease(folder) as lease:
        assert lease.epoch == 2


@pytest.mark.integration
@pytest.mark.fault(10)
@pytest.mark.skipif(os.geteuid() != 0, reason="unshare --pid needs root")
@pytest.mark.parametrize("options", [["--mount-proc"], []], ids=["own /proc", "the host's /proc"])
def test_the_lease_of_a_driver_in_another_pid_namespace_is_not_taken(folder: RunFolder, options: list[str]) -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("unshare --pid is not allowed here")
    space = ["unshare", "--pid", "--fork", "--kill-child", *options]
    command = [*space, sys.executable, "-c", textwrap.dedent(DRIVER), str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "holds\n"
        with pytest.raises(LeaseHeld, match="in use by process"), hold_lease(folder):
            pass
        other.kill()
    with hold_lease(folder) as lease:
        assert lease.epoch == 2


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="unshare --pid needs root")
def test_two_drivers_in_one_container_with_the_proc_of_the_host(folder: RunFolder) -> None:
    """There /proc shows other processes under the same numbers."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("unshare --pid is not allowed here")
    second = "from skyclass.run import lease\nfrom skyclass.run.commits import RunFolder\nlease.BEAT_S = 0.1\n"
    second += f"with lease.hold_lease(RunFolder({str(folder.path)!r})): print('taken')\n"
    first = shlex.join([sys.executable, "-c", textwrap.dedent(DRIVER), str(folder.path)])
    script = f"{first} & read line < {folder.path}.holds; {shlex.join([sys.executable, '-c', second])}; kill $!"
    os.mkfifo(f"{folder.path}.holds")
    script = script.replace(" & ", f" > {folder.path}.holds & ", 1)
    done = subprocess.run(["unshare", "--pid", "--fork", "bash", "-c", script], capture_output=True, text=True)
    assert "LeaseHeld" in done.stderr and "taken" not in done.stdout, done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("name", ["leases/000001.json", "run.json", "journal.jsonl", "partitions.json", "report.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_a_pipe_or_device_in_the_run_folder_blocks_nobody(tmp_path: Path, name: str, make) -> None:
    """It is refused with what it is, or replaced where it would be written anyway."""
    made, _ = make_run(tmp_path / "run", (("1500p015_ac51", 20, 150.0, 1.5),))
    made.leases.mkdir()
    path = made.path / name
    path.unlink(missing_ok=True)
    make(path)
    code = """
        import sys
        from skyclass.run import commits, lease
        from skyclass.run.folder import RunFolder, start_or_resume
        from skyclass.errors import StoreError
        from skyclass.files import write_json
        lease.SILENT_S = 1.0
        folder = RunFolder(sys.argv[1])
        try:
            with lease.hold_lease(folder):
                start_or_resume(folder, {"catalog": "another"}, {})
        except StoreError as error:
            print(type(error).__name__, error)
        try:
            done = commits.committed(folder)
            commits.journal_commit(folder, *done.values())
        except StoreError as error:
            print(type(error).__name__, error)
        write_json(folder.report_path, {"a": 1})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(made.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if name != "report.json":
        assert "StoreError" in done.stdout and str(path) in done.stdout and "not a regular file" in done.stdout
    assert made.report_path.is_file() and not made.report_path.is_symlink()


def test_a_heartbeat_that_fails_is_named_and_the_next_one_may_succeed(tmp_path, monkeypatch, caplog):
    path, ended, beats = tmp_path / "000001.json", threading.Event(), []

    def utime(touched):
        beats.append(touched)
        if len(beats) == 1:
            raise OSError(errno.EIO, "Input/output error")
        if len(beats) == 3:
            ended.set()  # for a loop that does not end by itself
            raise FileNotFoundError

    monkeypatch.setattr(module.os, "utime", utime)
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    with caplog.at_level(logging.WARNING, "skyclass"):
        module._beat(path, ended)
    assert beats == [path] * 3
    assert caplog.messages == [f"no heartbeat at {path}: [Errno 5] Input/output error"]


has_own_proc = pytest.mark.skipif(not module._start(os.getpid()), reason="/proc belongs to another PID namespace")


@has_own_proc
def test_when_a_process_started_is_unknown_in_another_pid_namespace(monkeypatch):
    own = module._start(os.getpid())
    assert own == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19] and int(own) > 0
    assert module._start(2**22 + 1) == ""
    monkeypatch.setattr(module, "_link", lambda path: "1")
    assert module._start(os.getpid()) == ""


def test_a_driver_that_was_passed_over_may_not_write(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with hold_lease(folder) as lease:
        lease.check()
        (folder.leases / f"{lease.epoch + 1:06d}.json").write_text("{}")
        with pytest.raises(
            LeaseLost, match=rf"another driver has taken over .epoch {lease.epoch + 1}; this driver had {lease.epoch}."
        ):
            lease.check()
        (folder.leases / f"{lease.epoch + 1:06d}.json").unlink()
        lease.check()


OWN = {"host": socket.gethostname(), **module._process_table()}


@pytest.mark.parametrize(
    ("change", "holder_is_valid"),
    [
        ({}, True),
        ({"pid": 1}, True),
        ({"pid": 2**31 - 1}, True),
        ({"pid": 0}, False),
        ({"pid": -1}, False),
        ({"pid": 2**31}, False),
        ({"pid": True}, False),
        ({"pid": "7"}, False),
        ({"host": 3}, False),
        ({"start": None}, False),
        ({"boot": 1}, False),
    ],
)
def test_only_a_whole_record_names_a_holder(tmp_path: Path, change: dict[str, Any], holder_is_valid: bool) -> None:
    holder = {"host": "h", "pid": 7, "boot": "b", "pid_namespace": "n", "start": "1"} | change
    path = tmp_path / "000001.json"
    path.write_text(json.dumps(holder))
    assert module._read(path) == (holder if holder_is_valid else {})
    assert module._read(tmp_path / "absent.json") == {}
    path.write_text("[1]")
    assert module._read(path) == {}


@has_own_proc
def test_who_has_certainly_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pid, start = os.getpid(), module._start(os.getpid())
    assert not module._is_dead(OWN | {"pid": pid, "start": start})
    assert not module._is_dead(OWN | {"pid": pid}) and not module._is_dead(OWN | {"pid": pid, "start": ""})
    assert module._is_dead(OWN | {"pid": pid, "start": "1"}), "the number belongs to another process now"
    ended = 2**22 + 1
    assert module._is_dead(OWN | {"pid": ended, "start": "1"})
    for name in OWN:
        assert not module._is_dead(OWN | {"pid": ended, name: "another"}), name
    assert not module._is_dead({})

    def refused(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError

    monkeypatch.setattr(module.os, "kill", refused)
    assert not module._is_dead(OWN | {"pid": pid, "start": start})
    monkeypatch.setattr(module, "_start", lambda pid: "")
    assert not module._is_dead(OWN | {"pid": pid, "start": "1"}), "unknown start"


def test_the_highest_epoch_counts(folder: RunFolder) -> None:
    assert newest_epoch(folder) == 0
    folder.leases.mkdir(parents=True)
    for name in ("000002.json", "000010.json", "000011.done", "x.json", ".000012.json"):
        (folder.leases / name).write_text("{}")
    assert newest_epoch(folder) == 10
    module._remove_earlier(module.Lease(folder, 10))
    assert sorted(path.name for path in folder.leases.iterdir()) == [
        ".000012.json",
        "000010.json",
        "000011.done",
        "x.json",
    ]


def test_a_silent_holder_is_passed_over_after_the_limit(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the clock of the driver that waits: it looks ten times for each heartbeat."""
    monkeypatch.setattr(module, "BEAT_S", 2.5)
    monkeypatch.setattr(module, "SILENT_S", 30.0)
    folder.leases.mkdir(parents=True)
    held = module.Lease(folder, 1)
    path = folder.leases / "000001.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    now, waits = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with caplog.at_level(logging.WARNING, "skyclass"):
        module._await_end(held)
    assert waits == [0.25] * 121, "silent for more than 30 s"
    assert caplog.messages == ["taking over from process 7 on elsewhere, which sent no heartbeat for 30 s"]
    path.write_text("damaged")
    waits.clear()
    module._await_end(held)
    assert caplog.messages[1].startswith("taking over from process ? on ?") and len(waits) > 100
    path.with_suffix(".done").touch()
    waits.clear()
    module._await_end(held)
    assert not waits
    path.with_suffix(".done").unlink()
    path.write_text(json.dumps(OWN | {"pid": 2**22 + 1, "start": "1"}))
    module._await_end(held)
    assert not waits, "it has ended"


def test_the_next_heartbeat_of_a_holder_ends_the_wait(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.leases.mkdir(parents=True)
    path = folder.leases / "000001.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.utime(path, ns=(5, 5))

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with pytest.raises(LeaseHeld, match="is in use by process 7 on elsewhere: wait for it, or give another"):
        module._await_end(module.Lease(folder, 1))
    assert len(waits) == 3
    assert module._last_beat(path) == 5 and module._last_beat(folder.leases / "000009.json") == -1


def test_a_lease_is_on_disk_before_it_counts(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr(
        module, "sync_folder", lambda path: synced.append(sorted(entry.name for entry in path.glob("[!.]*")))
    )
    with hold_lease(folder):
        assert synced == [["000001.json"]]
        holder = json.loads((folder.leases / "000001.json").read_bytes())
        assert holder == OWN | {"pid": os.getpid(), "start": module._start(os.getpid())}
        assert any(thread.name == "skyclass-heartbeat" and thread.daemon for thread in threading.enumerate())
    assert not any(thread.name == "skyclass-heartbeat" for thread in threading.enumerate())
    assert not list(folder.leases.glob(".*"))
