"""Local clusters: who can talk to them, how they start and fail to, and how they end."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from skyclass.engine import cluster, dask_config, engine
from skyclass.engine.cluster import check_memory_limit, connect
from skyclass.errors import ClusterLost, ConfigError, NotStarted
from tests.support.intrusion import intrude, listening, speaks_http
from tests.support.paths import CHECKOUT
from tests.support.pools import await_true, drive

pytestmark = [pytest.mark.spawn, pytest.mark.integration]

CLASSIFY = [sys.executable, "-m", "skyclass", "classify", "--catalog", "absent.csv", "--images", "."]
CLASSIFY += ["--out", "classes", "--workers", "1"]


def test_a_local_cluster_listens_on_loopback_with_tls_and_no_other_user_can_run_code_on_it():
    before = listening(psutil.Process())
    with connect("local", workers=1) as client:
        assert client.submit(os.getpid).result(60) != os.getpid()
        ports = listening(psutil.Process()) - before
        assert {ip for ip, _ in ports} == {"127.0.0.1"}
        assert len(ports) == 3  # scheduler, nanny, worker: no HTTP server
        assert not any(speaks_http(port) for _, port in ports)
        found = intrude(client, "tcp", "no certificate", "self-made", "member")
    ran = {way for way, result in found.items() if result.startswith("ran as uid")}
    assert ran == {"member: scheduler", "member: task", "member: server 0", "member: server 1"}, found
    assert len(found) == 16


def test_the_intruder_of_these_tests_can_run_code_on_a_cluster_without_tls():
    with LocalCluster(1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None) as pool:
        with Client(pool) as client:
            found = intrude(client, "tcp")
    assert {way for way, result in found.items() if result == "ran as uid 0"} == {
        "tcp: scheduler",
        "tcp: task",
        "tcp: server 0",
    }, found


def test_scratch_files_are_not_where_other_users_could_leave_code(tmp_path, monkeypatch):
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        folder = dask_config.scratch_folder()
        assert folder == tmp_path / f"skyclass-{os.geteuid()}" and folder.stat().st_mode & 0o777 == 0o700
        with dask.config.set({"temporary-directory": str(folder)}):
            assert dask_config.scratch_folder() == folder
        with connect("local", workers=1) as client:
            (path,) = client.run(lambda: [p for p in sys.path if "dask-scratch-space" in p][0]).values()
            assert Path(path).is_relative_to(folder)
        folder.chmod(0o777)
        with pytest.raises(NotStarted, match=f"{folder} is open to other users"), connect("local", workers=1):
            pass
        shutil.rmtree(folder)
        folder.symlink_to(tmp_path)
        with pytest.raises(NotStarted, match="is open to other users"):
            dask_config.scratch_folder()


# --- clusters that do not start --------------------------------------------------------------------


FAULTS = {
    "temporary folder": ({"temporary-directory": "/proc/nope"}, r"cannot be made in /proc/nope .*No such file"),
    "preload": (
        {"distributed.worker.preload": ["no_such_module"]},
        "did not start: ModuleNotFoundError: .*no_such_mod",
    ),
    "time": ({"distributed.comm.timeouts.tcp": "abc"}, "comm.timeouts.tcp = 'abc' is no number, time or amount"),
    "fraction": ({"distributed.worker.memory.transfer": "most"}, "worker.memory.transfer = 'most' is no number, time"),
    "list": ({"distributed.scheduler.preload": 5}, "distributed.scheduler.preload = 5 is no list"),
    "mapping": ({"distributed.nanny.environ": "A=B"}, "distributed.nanny.environ = 'A=B' is no mapping"),
    "ciphers": ({"distributed.comm.tls.ciphers": "none-such"}, "did not start: .*[Nn]o cipher"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_dask_configuration_is_one_message_with_exit_code_4(fault):
    settings, words = FAULTS[fault]
    with dask.config.set(settings), pytest.raises(NotStarted, match=words) as caught, connect("local", workers=1):
        pass
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value) and "Dask" in str(caught.value)


def test_settings_of_a_site_for_its_own_clusters_do_not_disturb_a_local_cluster():
    site = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": "/etc/absent.pem"}
    site |= {"distributed.scheduler.contact-address": "tcp://192.0.2.1:8786"}
    with dask.config.set(site), connect("local", workers=1) as client:
        assert client.submit(sum, [1, 2]).result(60) == 3


def test_settings_that_dask_accepts_are_accepted():
    site = {"distributed.comm.timeouts.tcp": 30, "distributed.worker.memory.transfer": False}
    site |= {"distributed.scheduler.bandwidth": "100MB", "distributed.worker.lifetime.duration": None}
    with dask.config.set(site):
        dask_config.check_dask_config()


def test_a_worker_killed_while_the_cluster_starts(tmp_path):
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    before = set(psutil.Process().children(recursive=True))
    preload = {"distributed.worker.preload": [str(tmp_path / "killed.py")]}
    with (
        dask.config.set(preload),
        pytest.raises(NotStarted, match="process did not start; a script") as caught,
    ):
        with connect("local", workers=2):
            pass
    assert caught.value.exit_code == 4
    assert not [
        p for p in set(psutil.Process().children(recursive=True)) - before if "spawn_main" in " ".join(p.cmdline())
    ]


CONFIG_FILES = {
    "broken.yaml": (
        "distributed:\n  worker:\n   memory: [unclosed\n",
        "broken.yaml' is malformed.*expected ',' or ']'",
    ),
    "list.yaml": ("- 1\n- 2\n", "must have a dict as the top level"),
    "logging.yaml": ("logging: {distributed: deafening}\n", "[Dd]eafening|DEAFENING"),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_configuration_file_that_dask_cannot_read(tmp_path, name):
    text, words = CONFIG_FILES[name]
    (tmp_path / name).write_text(text)
    done = command(cwd=tmp_path, DASK_CONFIG=str(tmp_path / name))
    assert done.returncode == 4, done.stderr
    (line,) = done.stderr.splitlines()[1:]
    assert line.startswith("skyclass: ")
    assert re.search(words, line), line


def command(*options: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess:
    """Return what a run does whose catalogue is refused once the cluster has started."""
    return subprocess.run(
        [*CLASSIFY, *options], capture_output=True, text=True, timeout=200, cwd=cwd, env=os.environ | settings
    )


# --- signals while a command starts ----------------------------------------------------------------


@contextmanager
def starting(cwd: Path) -> Iterator[subprocess.Popen]:
    """Start a run, in a process group of its own as a shell does; at the end nothing of it may be left."""
    driver = subprocess.Popen(
        CLASSIFY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, process_group=0
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def handles_signals(process: psutil.Process) -> bool:
    return bool(mask_of(Path(f"/proc/{process.pid}/status").read_text(), "SigCgt") & 1 << signal.SIGTERM - 1)


def mask_of(status: str, name: str) -> int:
    """Return a set of signals as the kernel describes it in /proc/PID/status."""
    return int(re.search(rf"{name}:\s*([0-9a-f]+)", status)[1], 16)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_is_one_line_with_exit_code_4(number, tmp_path):
    with starting(tmp_path) as driver:
        await_true(lambda: handles_signals(psutil.Process(driver.pid)), "signals are handled")
        driver.send_signal(number)
        _, said = driver.communicate(timeout=150)
    assert driver.returncode == 4
    assert said == "skyclass: stopped before any work began\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_cluster_starts_is_one_line_and_leaves_no_process(number, tmp_path):
    with starting(tmp_path) as driver:
        process = psutil.Process(driver.pid)
        await_true(lambda: workers_of(process), "a worker process is there")
        family = process.children(recursive=True)
        if number == signal.SIGTERM:
            driver.send_signal(number)
        else:
            os.killpg(driver.pid, number)  # a terminal sends it to all
        _, said = driver.communicate(timeout=150)
        assert not psutil.wait_procs(family, timeout=100)[1]
    assert driver.returncode == 4
    assert said.splitlines()[1:] == ["skyclass: stopped before the local cluster was ready; no work has begun"]


def test_workers_ignore_what_a_terminal_sends_to_all_also_after_a_restart():
    def status() -> str:
        return Path("/proc/self/status").read_text()

    with connect("local", workers=1) as client:
        for _ in range(2):
            (text,) = client.run(status).values()
            assert mask_of(text, "SigBlk") & 1 << signal.SIGINT - 1 and mask_of(text, "SigBlk") & 1 << signal.SIGHUP - 1
            client.restart(timeout=60)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # the driver's own are as before


def test_no_home_and_no_passwd_entry_is_one_message(tmp_path):
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to become a user without passwd entry")
    reads_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # the interpreter may be private
    stranger = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *reads_all, "env", "-u", "HOME"]
    done = subprocess.run([*stranger, *CLASSIFY], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "skyclass: HOME is not set and uid 54321 has no passwd entry: set HOME\n"


# --- clusters that do not end ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [TimeoutError(), OSError("Stream is closed"), AssertionError("closing")])
def test_what_fails_while_a_cluster_closes_is_only_logged(error, monkeypatch, caplog):
    def fail(self, timeout=None):
        raise error

    close = LocalCluster.close
    monkeypatch.setattr(LocalCluster, "close", fail)
    pools = []
    monkeypatch.setattr(
        cluster, "_cpu_pool", lambda *a, make=cluster._cpu_pool, **k: pools.append(make(*a, **k)) or pools[0]
    )
    with caplog.at_level(logging.WARNING, "skyclass"), connect("local", workers=1) as client:
        answer = client.submit(sum, [1, 2]).result(60)
        (pid,) = client.run(os.getpid).values()
    assert answer == 3
    assert f"LocalCluster did not close in order: {error!r}" in caplog.messages
    await_true(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "the worker is gone")
    with suppress(TimeoutError, OSError):  # its worker is gone
        close(pools[0])


def test_an_error_without_words_is_named(tmp_path):
    code = "from skyclass.cli import main as cli\ndef fail(**_): raise TimeoutError\ncli.cli = fail\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "skyclass: TimeoutError()\n")


@pytest.mark.slow
def test_all_processes_of_classify_listen_on_loopback_only(run, tmp_path):
    driver = drive(dataclasses.replace(run, strip_sources=32), "local", tmp_path, "--workers", "1")
    found: set[tuple[str, int]] = set()
    while driver.poll() is None:
        with suppress(psutil.NoSuchProcess):
            found |= listening(psutil.Process(driver.pid))
        time.sleep(0.2)
    _, said = driver.communicate()
    assert driver.returncode == 0, said
    assert {ip for ip, _ in found} == {"127.0.0.1"} and len(found) >= 3


def test_a_cluster_that_does_not_answer_is_lost_and_a_file_system_that_does_not_is_named():
    is_lost = pytest.raises(ClusterLost, match=r"the cluster does not answer \(TimeoutError\(\)\)")
    with is_lost, engine.translate_dask_errors():
        raise TimeoutError
    with pytest.raises(TimeoutError, match="nfs"), engine.translate_dask_errors():
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/nfs/tile.fits")


@pytest.mark.parametrize("amount", ["3 elephants", "1e400", "-1e400", "-3GB", "inf", "nan", "GB3"])
def test_what_is_no_amount_of_memory_is_refused(amount: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"memory_limit = {amount!r}: write an amount such as 3GB")):
        check_memory_limit(amount)
    assert dask_config.is_quantity("1e400") is False


@pytest.mark.parametrize(
    ("amount", "missing_unit"),
    [
        ("3", "; '3' is 3 bytes: write 3GB"),
        (" 1 ", "; ' 1 ' is 1 byte: write 1GB"),
        ("4e8", "; '4e8' is 400,000,000 bytes: write an amount such as 3GB"),
        ("3MB", ""),
        ("500 MiB", ""),
    ],
)
def test_too_little_memory_is_refused_and_a_missing_unit_is_told(amount: str, missing_unit: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_memory_limit(amount)
    assert str(caught.value) == (
        f"memory_limit = {amount!r}: a worker needs 0.6 GB before it holds a strip; `skyclass plan` prints how much a "
        f"run needs{missing_unit}"
    )


@pytest.mark.parametrize("amount", ["0", "3GB", "4 GiB", "1e10"])
def test_an_amount_of_memory_is_accepted(amount: str) -> None:
    check_memory_limit(amount)


@pytest.mark.integration
def test_a_script_without_a_main_guard_ends_with_the_line_that_it_needs(tmp_path: Path) -> None:
    """Each worker process imports the script, which must not start a run of its own there."""
    script = tmp_path / "script.py"
    script.write_text("import skyclass as sc\nsc.classify(sc.RunConfig('c', 'i', out='o', workers=1))\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1 and list(tmp_path.iterdir()) == [script]
    assert 'a script needs the line `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
