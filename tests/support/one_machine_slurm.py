"""A real Slurm on this machine, two nodes and no accounting: `with slurm(folder) as environment`. Needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
NODES = ("node1", "node2")


def missing() -> str:
    """Return why no Slurm can be started here; empty when it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge (`make slurm` does)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in held]
    finally:
        for sock in held:
            sock.close()


def configuration(folder: Path) -> str:
    """Return slurm.conf: virtual nodes on the loopback interface, each believed to have two processors."""
    host = socket.gethostname().split(".")[0]
    control, *ports = free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000"
        for name, port in zip(NODES, ports, strict=True)
    ]
    return "\n".join(
        [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={control}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge.sock",
            "CredType=cred/munge",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "ReturnToService=2",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "KillWait=10",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=2,requeue_delay=1",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"StateSaveLocation={folder}/state",
            f"SlurmctldLogFile={folder}/slurmctld.log",
            f"SlurmdLogFile={folder}/slurmd-%n.log",
            *nodes,
            f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
            "",
        ]
    )


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; give the environment in which Slurm's commands speak to them. All are stopped at the end."""
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(configuration(folder))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    munge = ["munged", "--force", *(f"--{k}={folder / v}" for k, v in files.items()), f"--log-file={folder}/munged.log"]
    try:
        for command in (munge, ["slurmctld"], *(["slurmd", "-N", name] for name in NODES)):
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=30)
        await_idle(environment)
        yield environment
    finally:
        for file in [*sorted(folder.glob("slurmd-*.pid")), folder / "slurmctld.pid", folder / "munged.pid"]:
            stop(file)


def await_idle(environment: dict[str, str], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        states = subprocess.run(["sinfo", "-h", "-o", "%t %D"], env=environment, capture_output=True, text=True).stdout
        if states.strip() == f"idle {len(NODES)}":
            return
        assert time.monotonic() < until, f"Slurm's nodes are not idle: {states}"
        time.sleep(0.2)


def stop(pid_file: Path) -> None:
    """End the daemon of a pid file and wait until it is gone."""
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            for _ in range(50):
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return
