"""One driver a run folder: who may take over when, and who must stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from skyclass import lease as module
from skyclass.errors import LeaseHeld, LeaseLost
from skyclass.lease import hold_lease, newest_epoch
from skyclass.store import RunFolder

DRIVER = """
    import sys, time
    from skyclass import lease
    from skyclass.errors import LeaseLost
    from skyclass.store import RunFolder
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


@pytest.mark.fault(30)
def test_a_suspended_driver_is_passed_over_and_stops_when_it_wakes(folder: RunFolder) -> None:
    other = driver(folder)
    os.kill(other.pid, signal.SIGSTOP)
    with hold_lease(folder) as lease:
        os.kill(other.pid, signal.SIGCONT)
        said = other.communicate(timeout=30)[0]
        assert said.startswith("lost") and "epoch 2, this one had 1" in said
        lease.check()
    with hold_lease(folder) as lease:
        assert lease.epoch == 3, "who was passed over frees nothing when it leaves"


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
