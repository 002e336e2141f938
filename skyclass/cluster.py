"""Make or join a Dask cluster. The only file that imports dask_cuda, and only when there are GPUs.

A GPU worker is any worker with the resource `GPU`, a CPU worker one with the resource `CPU`: roles are labels, so
routing is the same with real GPUs and with a plain worker that stands in for one.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, LocalCluster

from .errors import ConfigError
from .memory import MALLOC_ENVIRONMENT

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120
LEAST_MEMORY = 600_000_000
"""Bytes of a worker with torch, Dask and the rows of a catalogue, with which it is not paused at once."""
LOOPBACK = "127.0.0.1"
"""A Dask scheduler runs any code for whoever reaches its port: nothing of ours listens beyond this machine."""

DASK_SETTINGS: dict[str, Any] = {
    "distributed.worker.memory.target": False,  # paging cutouts to disk is slower than waiting
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.80,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.scheduler.worker-ttl": "120s",
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.no-workers-timeout": "10m",
    "distributed.comm.timeouts.connect": "30s",
    "distributed.deploy.lost-worker-timeout": "10m",  # or a local worker not back in 15 s is given up for good
    "distributed.admin.low-level-log-length": 20,  # of diaries and of messages, these for each worker: megabytes
}


def dask_environment() -> dict[str, str]:
    """Return `DASK_SETTINGS` as environment variables: how schedulers and workers of other processes get them."""
    return MALLOC_ENVIRONMENT | {
        "DASK_" + name.replace("-", "_").replace(".", "__").upper(): str(value) for name, value in DASK_SETTINGS.items()
    }


def worker_environment() -> dict[str, Any]:
    """Return what nannies set before they start a worker: Dask's own choice, with our memory thresholds."""
    return {**dask.config.get("distributed.nanny.pre-spawn-environ"), **MALLOC_ENVIRONMENT}


def silence_dask() -> None:
    """Keep Dask's log off the screen of a command: what goes wrong there is raised here, too, and told in our words."""
    for name in ("distributed", "asyncio", "tornado.application"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        for handler in logger.handlers:  # Dask gives its loggers levels of their own
            handler.setLevel(logging.CRITICAL)


@contextmanager
def connect(
    cluster: str = "local", workers: int | None = None, memory_limit: str = "3GB", gpus: int | None = None
) -> Iterator[Client]:
    """Give a client of a cluster: "local" starts one on this machine, an address joins one.

    A local cluster has one single-threaded process for each of `workers` (default: cores) and one GPU worker for
    each of `gpus` (default: those NVIDIA's driver reports). It listens on the loopback interface only and
    ends with the block. Raises `ConfigError` when no scheduler answers at the address.
    """
    with dask.config.set(DASK_SETTINGS | {"distributed.nanny.pre-spawn-environ": worker_environment()}):
        if cluster != "local":
            with _join(cluster) as client:
                yield client
            return
        n_workers, n_gpus = workers or CPU_COUNT, count_gpus() if gpus is None else gpus
        if n_gpus and not find_spec("dask_cuda"):
            log.warning("%d GPUs found, but no dask-cuda: using CPU workers; install skyclass[cuda]", n_gpus)
            n_gpus = 0
        check_memory_limit(memory_limit)
        with _local(n_workers, memory_limit, n_gpus) as address, Client(address) as client:
            client.wait_for_workers(n_workers + n_gpus, timeout=START_TIMEOUT_S)
            yield client


def check_memory_limit(memory_limit: str) -> None:
    """Raise `ConfigError` for what Dask does not read as an amount of memory, and for less than a worker needs."""
    try:
        n_bytes = parse_bytes(memory_limit)
    except ValueError as error:
        raise ConfigError(f"memory_limit = {memory_limit!r}: write an amount such as 3GB") from error
    if 0 < n_bytes < LEAST_MEMORY:
        raise ConfigError(
            f"memory_limit = {memory_limit!r}: a worker needs {LEAST_MEMORY / 1e9:.1f} GB before it holds a strip; "
            "`skyclass plan` says how much a run needs"
        )


def _join(address: str) -> Client:
    try:
        return Client(address, timeout="15s")
    except TypeError as error:  # what distributed raises for tls:// without certificates
        names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"))
        raise ConfigError(f"{address} needs certificates: set {names}; cluster/README.md shows how") from error
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({error}): start one with cluster/local/scheduler.sh, or use "
            "--cluster local; a scheduler with TLS has an address that begins with tls://"
        ) from error


@contextmanager
def _local(workers: int, memory_limit: str, n_gpus: int) -> Iterator[str]:
    """Give the address of a cluster on this machine: CPU workers, and dask-cuda workers where there are GPUs."""
    options: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": memory_limit, "host": LOOPBACK}
    options["dashboard_address"] = f"{LOOPBACK}:0"
    options["silence_logs"] = logging.CRITICAL  # what a task raises, the driver raises again, in its own words
    if not n_gpus:
        with deaf_to_ctrl_c():
            pool = LocalCluster(n_workers=workers, **options)
        with pool:
            yield pool.scheduler_address
        return
    from dask_cuda import LocalCUDACluster

    # what a GPU worker holds is what is in flight: with a limit Dask would pause it for good, its strips in its hands
    unlimited = options | {"memory_limit": None, "device_memory_limit": None}
    with LocalCUDACluster(n_workers=n_gpus, resources={"GPU": 1}, **unlimited) as pool:
        with worker_pool(pool.scheduler_address, workers, "CPU=1", memory_limit):
            yield pool.scheduler_address


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes that start in this block ignore Ctrl-C: a terminal sends it to all, and the driver decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def worker_pool(address: str, workers: int, resources: str, memory_limit: str) -> Iterator[None]:
    """Hold single-threaded worker processes with these resources at a scheduler on this machine."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", LOOPBACK]
    command += ["--dashboard-address", f"{LOOPBACK}:0", "--nworkers", str(workers), "--nthreads", "1"]
    command += ["--resources", resources, "--memory-limit", memory_limit]
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"}  # what a task raises, the driver raises again
    pool = subprocess.Popen(command, env={**os.environ, **dask_environment(), **quiet})
    try:
        yield
    finally:
        pool.terminate()
        pool.wait()


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use; 0 without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
