from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dask
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from distributed import Client

from skyclass.engine.cluster import connect
from skyclass.engine.tls import make_tls_folder
from skyclass.engine.workers import Placement, placement_of
from skyclass.errors import ConfigError
from tests.support.intrusion import intrude, listening, speaks_http
from tests.support.paths import CHECKOUT

SCRIPTS = CHECKOUT / "cluster" / "local"
Start = Callable[..., int]


def environment(**settings: str) -> dict[str, str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("TLS_", "DASK_")) and k not in ("HOST", "DASHBOARD_PORT")
    }
    path = os.pathsep.join([str(CHECKOUT), inherited.get("PYTHONPATH", "")])
    fixed = {"PYTHON": sys.executable, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return inherited | fixed | settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, seconds: float = 200) -> None:
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


@contextmanager
def member(folder: Path) -> Iterator[None]:
    """Let clients in this process show the certificate in a folder."""
    files = {"ca-file": "ca.pem", "client.cert": "cert.pem", "client.key": "key.pem"}
    with dask.config.set({f"distributed.comm.tls.{key}": str(folder / name) for key, name in files.items()}):
        yield


@pytest.mark.integration
@pytest.mark.fault(26)
def test_scripts_make_a_split_cluster_for_its_members_on_loopback(start: Start, tmp_path: Path) -> None:
    port, tls = free_port(), tmp_path / "tls"
    address = f"tls://127.0.0.1:{port}"
    pids = [start("scheduler.sh", PORT=str(port), TLS_DIR=str(tls))]
    wait_for(port)
    assert {p.name: p.stat().st_mode & 0o777 for p in (tls, *tls.iterdir())} == {
        "tls": 0o700, "ca.pem": 0o600, "cert.pem": 0o600, "key.pem": 0o600
    }  # fmt: skip
    workers = [("cpu-workers.sh", address, "1"), ("gpu-workers.sh", address)]
    pids += [start(*words, TLS_DIR=str(tls)) for words in workers]
    with member(tls), Client(address) as waiting:
        waiting.wait_for_workers(2, timeout=120)
    with member(tls), connect(address) as client:
        pools = {"CPU workers": (1, ("read", "cut", "commit")), "GPU workers": (1, ("infer",))}
        assert placement_of(client) == Placement(split=True, window=3, pools=pools, cut={"CPU": 1}, infer={"GPU": 1})
        by_role = [client.submit(os.getpid, pure=False, resources={r: 1}).result(60) for r in ("CPU", "GPU")]
        assert len(set(by_role)) == 2
        names = ("worker_ttl", "allowed_failures", "no_workers_timeout")
        told = client.run_on_scheduler(lambda dask_scheduler: [getattr(dask_scheduler, n) for n in names])
        assert told == [120, 3, 600]
        # scheduler; nanny and worker of each pool: no HTTP server
        assert [sorted(ip for ip, _ in listening(psutil.Process(pid))) for pid in pids] == [
            ["127.0.0.1"], ["127.0.0.1"] * 2, ["127.0.0.1"] * 2
        ]  # fmt: skip
        found = intrude(client, "tcp", "no certificate", "self-made")
        assert len(found) == 18 and not [way for way, result in found.items() if result.startswith("ran")], found
    with pytest.raises(ConfigError, match="no Dask scheduler answers"), connect(f"tcp://127.0.0.1:{port}"):
        pass
    with pytest.raises(ConfigError, match="needs certificates"), connect(address):
        pass
    assert f"skyclass classify RUN.toml --cluster {address}" in (tmp_path / "scheduler.sh.log").read_text()
    assert "NO NVIDIA GPU FOUND" in (tmp_path / "gpu-workers.sh.log").read_text()


@pytest.mark.integration
def test_the_dashboard_of_a_scheduler_is_on_loopback_where_it_is_asked_for(start: Start, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    pid = start("scheduler.sh", PORT=str(ports[0]), DASHBOARD_PORT=str(ports[1]), TLS_DIR="tls")
    for port in ports:
        wait_for(port)
    assert listening(psutil.Process(pid)) == {("127.0.0.1", port) for port in ports}
    assert speaks_http(ports[1]) and (tmp_path / "tls" / "key.pem").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "arguments", "settings", "words"),
    [
        ("scheduler.sh", (), {"HOST": "0.0.0.0"}, "every interface"),
        ("cpu-workers.sh", ("tls://127.0.0.1:8786",), {"TLS_DIR": "absent"}, "has no ca.pem, cert.pem, key.pem"),
        ("cpu-workers.sh", ("tls://127.0.0.1:8786",), {"TLS_DIR": "open"}, "is open to other users"),
        ("cpu-workers.sh", ("tls://127.0.0.1:8786",), {"TLS_DIR": "expired"}, "has expired on 2020-01-02"),
        ("cpu-workers.sh", ("tcp://127.0.0.1:8786",), {"TLS_DIR": "tls"}, "TLS only"),
        ("gpu-workers.sh", ("tls://192.0.2.1:8786",), {"TLS_DIR": "tls"}, "set HOST"),
        ("gpu-workers.sh", (), {"TLS_DIR": "tls"}, "scheduler's address"),
        ("scheduler.sh", (), {"HOME": "", "TLS_DIR": ""}, "HOME is not set"),
        (
            "scheduler.sh",
            (),
            {"TLS_DIR": "tls", "DASK_TEMPORARY_DIRECTORY": "/proc/nope"},
            "cannot be made in /proc/nope",
        ),
    ],
)
@pytest.mark.fault(26)
def test_scripts_refuse_what_others_could_enter(
    script: str, arguments: tuple[str, ...], settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    for name in ("tls", "open", "expired"):
        make_tls_folder(tmp_path / name)
    (tmp_path / "open").chmod(0o755)
    expire(tmp_path / "expired" / "cert.pem", tmp_path / "expired" / "key.pem")
    command = [SCRIPTS / script, *arguments]
    refused = subprocess.run(
        command, env=environment(**settings), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert refused.returncode == 2
    assert words in refused.stderr and "Traceback" not in refused.stderr


def expire(certificate: Path, key: Path) -> None:
    """Replace a certificate by one whose time is over."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "expired")])
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    days = [datetime(2020, 1, day, tzinfo=UTC) for day in (1, 2)]
    signed = builder.not_valid_before(days[0]).not_valid_after(days[1]).sign(private, hashes.SHA256())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
