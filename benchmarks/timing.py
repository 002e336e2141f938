"""Measure the time and the peak memory of a stage, and describe the machine."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

import skyclass
from skyclass.model.devices import resolve_device, resolve_precision

from .scenarios import Scenario

T = TypeVar("T")
VERSIONS_OF = ("numpy", "torch", "dask", "distributed", "pyarrow")


@dataclass(frozen=True)
class Amount:
    """The amount of work of one run; `n_bytes` is None for a stage without a meaningful number of bytes."""

    n_sources: int
    n_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """The measurement of a stage: the seconds of each run after the warm-ups."""

    stage: str
    amount: Amount
    seconds: tuple[float, ...]
    threads: int
    peak_rss_mb: float
    load_average: float
    """Load of the last minute at the end of the stage. Well above `cores`, the machine had other work."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types. Rates are those of the median run."""
        median = statistics.median(self.seconds)
        n_bytes = self.amount.n_bytes
        return {
            "stage": self.stage,
            "n_sources": self.amount.n_sources,
            "n_runs": len(self.seconds),
            "seconds": round(median, 6),
            "seconds_of_runs": [round(s, 6) for s in self.seconds],
            "sources_per_s": round(self.amount.n_sources / median, 1),
            "threads": self.threads,
            "sources_per_s_per_thread": round(self.amount.n_sources / median / self.threads, 1),
            "MB_per_s": None if n_bytes is None else round(n_bytes / median / 1e6, 1),
            "peak_rss_mb": round(self.peak_rss_mb, 1),
            "load_average": round(self.load_average, 2),
        }


def measure(
    stage: str,
    work: Callable[[T], Amount],
    before: Callable[[], T],
    scenario: Scenario,
    threads: int = 1,
    peak_rss_mb: Callable[[], float] | None = None,
) -> Measurement:
    """Return the measurement of `work`, called with the result of `before`. `before` and the warm-ups are not timed."""
    for _ in range(scenario.warmups):
        work(before())
    reset_peak()
    seconds = []
    for _ in range(scenario.repeats):
        prepared = before()
        began = time.perf_counter()
        amount = work(prepared)
        seconds.append(time.perf_counter() - began)
    peak = (peak_rss_mb or peak_here_mb)()
    return Measurement(stage, amount, tuple(seconds), threads, peak, os.getloadavg()[0])


def reset_peak() -> None:
    """Reset the peak memory of this process, on systems that support it (Linux)."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def peak_here_mb() -> float:
    """Return the peak resident memory of this process in MB, since `reset_peak` on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def drop_from_page_cache(folder: Path) -> bool:
    """Drop the files of a folder from the page cache, and return whether the system supports that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # unwritten pages cannot be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def surroundings(scenario: Scenario) -> dict[str, Any]:
    """Return the conditions of a measurement: commit, versions, machine, device, precision, date."""
    device = resolve_device(scenario.device)
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "simulated_sky": True,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "skyclass": skyclass.__version__}
        | {name: metadata.version(name) for name in VERSIONS_OF},
        "hardware": {"cpu": cpu_model(), "cores": cores(), "memory_gb": round(memory_gb, 1), "gpu": gpu},
        "device": device,
        "precision": resolve_precision(device, scenario.precision),
        "page_cache": "dropped" if hasattr(os, "posix_fadvise") else "warm",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str:
    """Return the git commit of this checkout, "-dirty" if files differ from it; "unknown" without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
