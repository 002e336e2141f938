"""A cluster of real processes for tests that kill them: scheduler, nannies, workers and drivers, each on its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from distributed import Client
from distributed.security import Security

from skyclass.engine.dask_config import dask_environment
from skyclass.engine.tls import tls_environment
from skyclass.run.config import RunConfig
from skyclass.run.folder import RunFolder
from tests.support.paths import SUPPORT

SECURITY = Security.temporary()
"""The certificate of all pools of a test process; its drivers have it, too."""


def await_true(what: Callable[[], object], words: str, seconds: float = 120) -> None:
    """Return once it is true; fail after so long."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds} s: {words}"
        time.sleep(0.05)


@dataclass
class Pool:
    """A scheduler and a pool of single-threaded workers, whose strips are written to `trace`."""

    folder: Path
    n_workers: int = 2
    linger_s: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    address: str = ""
    scheduler: subprocess.Popen | None = None
    nannies: list[subprocess.Popen] = field(default_factory=list)
    """One for each worker, so that each can be killed, frozen or cut off on its own."""

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    def begun(self) -> list[tuple[float, str, int]]:
        """Return when which strip was begun: (time, tile, first source), in order."""
        words = [line.split() for line in self.trace.read_text().splitlines()] if self.trace.exists() else []
        return [(float(t), tile, int(start)) for t, _, tile, start in words]

    def start(self) -> None:
        """Start scheduler and workers, and wait until all are there."""
        self.folder.mkdir(exist_ok=True)
        where = self.folder / "scheduler.json"
        where.unlink(missing_ok=True)
        self.scheduler = self.spawn(
            "dask_scheduler", "--port", "0", "--scheduler-file", str(where), "--host", self.host
        )
        await_true(where.exists, "the scheduler is there")
        with Client(scheduler_file=str(where), security=SECURITY) as client:
            self.address = client.scheduler.address
            for _ in range(self.n_workers):
                self.add_worker()
            client.wait_for_workers(self.n_workers, timeout=120)

    def add_worker(self, *words: str, prefix: tuple[str, ...] = (), host: str = "") -> subprocess.Popen:
        """Start a nanny with its worker."""
        words = ("--nthreads", "1", "--memory-limit", "2GB", "--preload", str(SUPPORT / "tracing.py"), *words)
        nanny = self.spawn("dask_worker", self.address, "--host", host or self.host, *words, prefix=prefix)
        self.nannies.append(nanny)
        return nanny

    def spawn(self, module: str, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [*prefix, sys.executable, "-m", f"distributed.cli.{module}", *words, "--no-dashboard"]
        facts = {"TRACE": str(self.trace), "LINGER_S": str(self.linger_s)}
        environment = os.environ | dask_environment() | tls_environment(SECURITY) | facts | self.settings
        with open(self.folder / f"{module}.log", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def workers(self) -> list[int]:
        """Return the process ids of the workers themselves, below their nannies."""
        found = []
        for nanny in self.nannies:
            with suppress(psutil.NoSuchProcess):
                found += [p.pid for p in psutil.Process(nanny.pid).children(recursive=True) if "spawn_main" in words(p)]
        return found

    def stop(self) -> None:
        """Kill all that is left."""
        for process in (*self.nannies, self.scheduler):
            if process is None:
                continue
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            process.wait()
        self.nannies.clear()


def words(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def running(pool: Pool) -> Iterator[Pool]:
    """Start a pool, and stop it at the end."""
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()


def drive(run: RunConfig, address: str, cwd: Path, *flags: str) -> subprocess.Popen:
    """Start a driver in a process of its own: the command of a user."""
    command = [sys.executable, "-m", "skyclass", "classify", "--catalog", run.catalog, "--images", run.images]
    command += ["--model", run.model, "--out", run.out, "--cluster", address, "--precision", run.precision]
    command += ["--device", "cpu", "--strip-sources", str(run.strip_sources), *flags]
    environment = os.environ | tls_environment(SECURITY)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment
    )


def n_committed(run: RunConfig) -> int:
    """Return how many tiles are on disk."""
    return len(list(RunFolder(run.out).tiles.glob("*.parquet")))


def kill(pid: int) -> bool:
    """Kill a process; return whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
