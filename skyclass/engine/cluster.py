"""Make or join a Dask cluster. The only file that imports dask_cuda, and only when there are GPUs.

A GPU worker is any worker with the Dask resource `GPU`, a CPU worker any worker with the resource `CPU`. Placement
depends on these resources only, so that a worker without a GPU can represent one in tests.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from asyncio import CancelledError
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.node import ServerNode
from distributed.security import Security
from distributed.worker import Worker

from ..errors import ConfigError, NotStarted
from ..text import counted
from .dask_config import (
    DASK_SETTINGS,
    check_dask_config,
    dask_environment,
    scratch_folder,
    translate_start_errors,
    worker_environment,
)
from .tls import tls_environment

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120
CLOSE_TIMEOUT_S = 60
LEAST_MEMORY = 600_000_000
"""Bytes that a worker needs for torch, Dask and the rows of a catalogue. With less, Dask pauses it at once."""
LOOPBACK = "127.0.0.1"
"""The only interface on which the processes of a local cluster listen."""
DRIVER_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Signals that a terminal sends to the workers, too."""


@contextmanager
def connect(
    cluster: str = "local", workers: int | None = None, memory_limit: str = "3GB", gpus: int | None = None
) -> Iterator[Client]:
    """Start a Dask cluster on this machine or join one, for the time of a `with` block.

    A local cluster listens on the loopback interface only, and only processes that hold its certificate, which exists
    in memory, can talk to it. It ends with the block; a fault while it ends is only logged.

    Parameters
    ----------
    cluster : str, default "local"
        "local" starts a cluster; an address such as tcp://127.0.0.1:8786 joins one.
    workers : int, optional
        Single-threaded CPU processes of a local cluster; as many as there are cores by default.
    memory_limit : str, default "3GB"
        Memory of each CPU process of a local cluster.
    gpus : int, optional
        GPU workers of a local cluster; as many as NVIDIA's driver reports by default.

    Yields
    ------
    distributed.Client
        Client of the cluster.

    Raises
    ------
    ConfigError
        No scheduler answers at the address, or the memory limit is unusable.
    NotStarted
        The local cluster does not start.

    Examples
    --------
    >>> import skyclass as sc
    >>> with sc.connect("local", workers=1, gpus=0) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    with ExitStack() as stack:
        if cluster == "local":
            check_memory_limit(memory_limit)
            client = _start_local(stack, workers or CPU_COUNT, count_gpus() if gpus is None else gpus, memory_limit)
        else:
            stack.enter_context(dask.config.set(DASK_SETTINGS))
            client = _connect_to_scheduler(cluster)
            stack.callback(close, client)
        yield client


def check_memory_limit(memory_limit: str) -> None:
    """Raise `ConfigError` for text that Dask does not read as an amount of memory, and for less than a worker needs."""
    invalid = ConfigError(f"memory_limit = {memory_limit!r}: write an amount such as 3GB")
    try:
        n_bytes = parse_bytes(memory_limit)
    except (ValueError, OverflowError) as error:
        raise invalid from error
    if n_bytes < 0:
        raise invalid
    if 0 < n_bytes < LEAST_MEMORY:
        raise ConfigError(
            f"memory_limit = {memory_limit!r}: a worker needs {LEAST_MEMORY / 1e9:.1f} GB before it holds a strip; "
            f"`skyclass plan` prints how much a run needs{_missing_unit(memory_limit, n_bytes)}"
        )


def _missing_unit(memory_limit: str, n_bytes: int) -> str:
    """Return the part of a message about an amount of memory without a unit, "" for one with a unit."""
    if memory_limit.strip()[-1:].isalpha():
        return ""
    amount = f"{n_bytes}GB" if n_bytes < 1000 else "an amount such as 3GB"
    return f"; {memory_limit!r} is {counted(n_bytes, 'byte')}: write {amount}"


def _connect_to_scheduler(address: str) -> Client:
    """Return a client of a running scheduler; `ConfigError` if it does not answer or needs certificates."""
    try:
        return Client(address, timeout="15s")
    except TypeError as error:  # distributed raises it for tls:// without certificates
        names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"))
        raise ConfigError(f"{address} needs certificates: set {names}; docs/clusters.md shows how") from error
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({error}): start one with cluster/local/scheduler.sh, or use "
            "--cluster local; a scheduler with TLS has an address that begins with tls://"
        ) from error


def _start_local(stack: ExitStack, n_workers: int, n_gpus: int, memory_limit: str) -> Client:
    """Return a client of a new cluster on this machine: CPU workers, and dask-cuda workers where there are GPUs."""
    if n_gpus and not find_spec("dask_cuda"):
        log.warning("%d GPUs found, but no dask-cuda: using CPU workers; install skyclass[cuda]", n_gpus)
        n_gpus = 0
    with translate_start_errors("the local Dask cluster did not start"):
        stack.enter_context(dask.config.set(DASK_SETTINGS))
        check_dask_config()
        stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": worker_environment()}))
        stack.enter_context(dask.config.set({"temporary-directory": str(scratch_folder()), **NOT_FOR_LOCAL}))
        security, before = Security.temporary(), worker_processes()
        make = partial(_gpu_pool, n_gpus) if n_gpus else partial(_cpu_pool, n_workers, memory_limit)
        pool = start(partial(make, security=security))
        stack.callback(close_pool, pool, before)
        if n_gpus:
            stack.enter_context(worker_pool(pool.scheduler_address, n_workers, "CPU=1", memory_limit, security))
        client = Client(pool.scheduler_address, security=security)
        stack.callback(close, client)
        client.wait_for_workers(n_workers + n_gpus, timeout=START_TIMEOUT_S)
        client.run_on_scheduler(stop_http)
        client.register_plugin(StopHttp())
    return client


NOT_FOR_LOCAL = {
    "distributed.scheduler.contact-address": None,
    "distributed.scheduler.idle-timeout": None,
    "distributed.worker.multiprocessing-method": "spawn",
}
"""Settings that a site may have changed for other clusters, reset for a local cluster."""

LOCAL_OPTIONS: dict[str, Any] = {
    "threads_per_worker": 1,
    "host": LOOPBACK,
    "dashboard_address": f"{LOOPBACK}:0",
    "scheduler_kwargs": {"dashboard": False},  # it has no authentication
    "silence_logs": logging.CRITICAL,  # the driver raises what a task raises
}


def _cpu_pool(n_workers: int, memory_limit: str, security: Security) -> LocalCluster:
    return LocalCluster(n_workers=n_workers, memory_limit=memory_limit, security=security, **LOCAL_OPTIONS)


def _gpu_pool(n_gpus: int, security: Security) -> LocalCluster:
    """Return GPU workers without a memory limit: they hold the strips in flight, and Dask would pause them for good."""
    from dask_cuda import LocalCUDACluster

    unlimited = {"memory_limit": None, "device_memory_limit": None}
    pool: LocalCluster = LocalCUDACluster(n_gpus, resources={"GPU": 1}, security=security, **unlimited, **LOCAL_OPTIONS)
    return pool


def start(make: Callable[[], LocalCluster]) -> LocalCluster:
    """Return the cluster that `make` starts; its processes ignore Ctrl-C and SIGHUP.

    A terminal sends these signals to all its processes, and only the driver acts on them. A thread that blocks them
    makes the cluster: the threads and processes of the cluster inherit the mask, and the driver can still be stopped.
    """
    start_resource_tracker()
    before = worker_processes()
    starter = ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, DRIVER_SIGNALS))
    pool = starter.submit(make)
    starter.shutdown(wait=False)
    try:
        return pool.result(START_TIMEOUT_S)
    except KeyboardInterrupt:
        abandon(pool, before)
        raise NotStarted("stopped before the local cluster was ready; no work has begun") from None
    except FutureTimeout:
        abandon(pool, before)
        raise


def start_resource_tracker() -> None:
    """Start Python's helper process for semaphores before the first worker does.

    The helper must ignore SIGHUP, too, and must not warn of the semaphores of a driver that was stopped. Starting it
    unblocks SIGINT in the calling thread, which must not be the thread that makes the cluster.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def abandon(pool: Future[LocalCluster], before: Collection[BaseProcess]) -> None:
    """Kill the workers of a cluster that is still starting, until the start fails."""
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while not pool.done() and time.monotonic() < deadline:
        kill_workers(before)
        time.sleep(0.1)
    if pool.done() and not pool.exception():
        close_pool(pool.result(), before)


def close(resource: Client | LocalCluster) -> bool:
    """Close a client or cluster, and return whether that succeeded; a fault is only logged, as the work is complete."""
    try:
        resource.close(timeout=CLOSE_TIMEOUT_S)
    except (OSError, RuntimeError, AssertionError, CancelledError, FutureCancelled) as error:
        log.warning("%s did not close in order: %r", type(resource).__name__, error)
        return False
    return True


def close_pool(pool: LocalCluster, before: Collection[BaseProcess]) -> None:
    """Close a local cluster, and kill the workers that remain."""
    if not close(pool):
        kill_workers(before)


def worker_processes() -> list[BaseProcess]:
    """Return the worker processes of all local clusters of this process."""
    return [p for p in multiprocessing.active_children() if p.name.startswith("Dask Worker process")]


def kill_workers(but: Collection[BaseProcess]) -> None:
    """Kill the worker processes of local clusters, except some."""
    for process in worker_processes():
        if process not in but:
            process.kill()


def stop_http(dask_scheduler: ServerNode) -> None:
    """Let a scheduler or worker listen for Dask's own protocol only: its HTTP server has no authentication."""
    dask_scheduler.stop_services()


dask_setup = stop_http
"""The function that `dask worker --preload skyclass.engine.cluster` calls."""


class StopHttp(WorkerPlugin):
    """Stops the HTTP server of each worker, also of workers that join later."""

    name = "skyclass-stop-http"

    def setup(self, worker: Worker) -> None:
        """Stop the server when the worker joins."""
        stop_http(worker)


@contextmanager
def worker_pool(
    address: str, workers: int, resources: str, memory_limit: str, security: Security | None = None
) -> Iterator[None]:
    """Run single-threaded worker processes with these resources at a scheduler on this machine during the block.

    The processes are a separate process group, so that Ctrl-C in the terminal reaches the driver only.
    """
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", LOOPBACK, "--no-dashboard"]
    command += ["--dashboard-address", f"{LOOPBACK}:0", "--nworkers", str(workers), "--nthreads", "1"]
    command += ["--resources", resources, "--memory-limit", memory_limit, "--preload", "skyclass.engine.cluster"]
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"}  # the driver raises what a task raises
    settings = dask_environment() | (tls_environment(security) if security else {}) | quiet
    pool = subprocess.Popen(command, env=os.environ | settings, process_group=0)
    try:
        yield
    finally:
        pool.terminate()
        try:
            pool.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pool.kill()
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
