from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client

from skyclass.cluster import connect
from skyclass.errors import ConfigError
from skyclass.workers import Roles, roles

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "cluster" / "local"
Start = Callable[..., int]


def environment(**settings: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TLS_", "DASK_")) and k != "HOST"}
    path = os.pathsep.join([str(ROOT), inherited.get("PYTHONPATH", "")])
    fixed = {"PYTHON": sys.executable, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "DASHBOARD_PORT": "0"}
    return inherited | fixed | settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < until, f"nothing listens on port {port}"
            time.sleep(0.1)


@contextmanager
def running(log: Path, script: str, *arguments: str, **settings: str) -> Iterator[int]:
    with open(log, "w") as out:
        command = [str(SCRIPTS / script), *arguments]
        process = subprocess.Popen(command, env=environment(**settings), stdout=out, stderr=out, cwd=log.parent)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start scripts; those started last end first, so that workers leave before their scheduler."""
    with ExitStack() as stack:

        def start(script: str, *arguments: str, **settings: str) -> int:
            return stack.enter_context(running(tmp_path / f"{script}.log", script, *arguments, **settings))

        yield start


def listening(pid: int) -> set[str]:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    sockets = [s for member in family for s in member.net_connections("inet")]
    return {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}


def test_scripts_make_a_split_cluster_on_loopback(start: Start, tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    pids = [start("scheduler.sh", PORT=str(port))]
    wait_for(port)
    pids += [start("cpu-workers.sh", address, "1"), start("gpu-workers.sh", address)]
    with Client(address) as waiting:
        waiting.wait_for_workers(2, timeout=60)
    with connect(address) as client:
        pools = {"CPU workers": (1, ("read", "cut", "commit")), "GPU workers": (1, ("infer",))}
        assert roles(client) == Roles(split=True, window=3, pools=pools, cut={"CPU": 1}, infer={"GPU": 1})
        by_role = [client.submit(os.getpid, pure=False, resources={r: 1}).result(60) for r in ("CPU", "GPU")]
        assert len(set(by_role)) == 2
        names = ("worker_ttl", "allowed_failures", "no_workers_timeout")
        told = client.run_on_scheduler(lambda dask_scheduler: [getattr(dask_scheduler, n) for n in names])
        assert told == [120, 3, 600]
        for pid in pids:
            assert listening(pid) == {"127.0.0.1"}
    assert f"skyclass classify RUN.toml --cluster {address}" in (tmp_path / "scheduler.sh.log").read_text()
    assert "NO NVIDIA GPU FOUND" in (tmp_path / "gpu-workers.sh.log").read_text()


@pytest.mark.fault(26)
def test_tls_cluster_takes_members_only(start: Start, tmp_path: Path) -> None:
    made = subprocess.run([SCRIPTS / "tls.sh", "tls"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    ca, cert, key = (str(tmp_path / "tls" / f"{name}.pem") for name in ("ca", "cert", "key"))
    assert Path(key).stat().st_mode & 0o077 == 0
    files = {"TLS_CA": "tls/ca.pem", "TLS_CERT": "tls/cert.pem", "TLS_KEY": key}
    port = free_port()
    start("scheduler.sh", PORT=str(port), **files)
    wait_for(port)
    start("cpu-workers.sh", f"tls://127.0.0.1:{port}", "1", **files)
    member = {"ca-file": ca, "client.cert": cert, "client.key": key}
    with (
        dask.config.set({f"distributed.comm.tls.{k}": v for k, v in member.items()}),
        Client(f"tls://127.0.0.1:{port}") as client,
    ):
        future = client.submit(os.getpid, resources={"CPU": 1})
        assert future.result(60) != os.getpid()
        assert all(w.startswith("tls://127.0.0.1:") for w in client.scheduler_info()["workers"])
    with pytest.raises(ConfigError), connect(f"tcp://127.0.0.1:{port}"):
        pass


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "words"),
    [
        ("scheduler.sh", (), {"HOST": "192.0.2.1"}, "TLS_CA"),
        ("scheduler.sh", (), {"HOST": "0.0.0.0"}, "every interface"),
        ("scheduler.sh", (), {"HOST": "192.0.2.1", "TLS_CA": "absent.pem"}, "absent.pem"),
        ("cpu-workers.sh", ("tcp://127.0.0.1:8786",), {"HOST": "192.0.2.1"}, "TLS_CA"),
        ("cpu-workers.sh", ("tcp://192.0.2.1:8786",), {}, "not encrypted"),
        ("gpu-workers.sh", ("tls://192.0.2.1:8786",), {}, "TLS_CA"),
        ("gpu-workers.sh", (), {}, "scheduler's address"),
    ],
)
@pytest.mark.fault(26)
def test_nothing_leaves_this_machine_without_tls(
    script: str, arguments: tuple[str, ...], settings: dict[str, str], words: str
) -> None:
    command = [SCRIPTS / script, *arguments]
    refused = subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert words in refused.stderr
