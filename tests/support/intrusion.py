"""What another user of the machine can do on a cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest
from distributed import Client

from skyclass.engine.tls import tls_environment
from tests.support.paths import SUPPORT

STRANGER = 65534


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return where a process and its descendants listen."""
    family = [process, *process.children(recursive=True)]
    sockets = [s for member in family for s in member.net_connections("inet")]
    return {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}


def intrude(client: Client, *ways: str) -> dict[str, str]:
    """Return what another user can do on a cluster: way -> result. A "member" has the certificate of the cluster."""
    if os.geteuid():
        pytest.skip("needs root to become another user")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    servers = [address for worker, facts in workers.items() for address in (worker, facts["nanny"]) if address]
    member = tls_environment(client.security) if "member" in ways else None
    asked = {"uid": STRANGER, "scheduler": client.scheduler.address, "servers": servers, "ways": ways, "member": member}
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "intruder.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def speaks_http(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        connection.settimeout(10)
        try:
            return connection.recv(16).startswith(b"HTTP")
        except (TimeoutError, ConnectionError):
            return False
