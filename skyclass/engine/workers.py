"""The workers of a run: awaited, asked for their versions, told who does what, and given the network before any work.

Roles are labels: a worker that declares the Dask resource `GPU` infers, one that declares `CPU` cuts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from distributed import Client, WorkerPlugin
from distributed.comm.core import CommClosedError
from distributed.worker import Worker

from ..errors import ClusterLost, ConfigError
from ..model.classifier import cuda_is_there, set_threads
from ..run.context import RunContext
from ..run.prepare import warm_up_local
from ..run.stages import STAGES
from ..version import versions

log = logging.getLogger(__name__)

STRIPS_PER_SLOT = 2
"""In flight for each thread that infers: one at work, one whose pixels are being made or moved."""

WORKERS_TIMEOUT_S = 600

REGISTER_ATTEMPTS = 2

RESUMES = "what is committed is kept, and the same command resumes"


@dataclass(frozen=True)
class Placement:
    """Where work goes, as Dask resources, and how many strips (whole tiles where `by_tile`) may be in flight.

    `pools` says for the report how many threads do which stages.
    """

    split: bool
    window: int
    pools: dict[str, tuple[int, tuple[str, ...]]]
    cut: dict[str, float] | None = None
    infer: dict[str, float] | None = None
    by_tile: bool = False
    """Whether a tile is one task as long as more tiles are left than the window takes: GPUs finish strips faster than
    a scheduler hands them out."""


def placement_of(client: Client) -> Placement:
    """Return who does what: split where workers are labelled `GPU`, fused where none is.

    Fused too where all are GPU workers that have several threads: they cut for themselves. The window is two strips for
    each thread that infers and, when split, one for each that cuts.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    gpus = [w for w in workers if w["resources"].get("GPU", 0) >= 1]
    cpu_slots = sum(int(w["resources"].get("CPU", 0)) for w in workers)
    if gpus and len(gpus) == len(workers) and all(w["nthreads"] > 1 for w in gpus):
        threads, most = sum(w["nthreads"] for w in gpus), max(w["nthreads"] for w in gpus)
        share = {"GPU": 0.5 ** (most - 1).bit_length()}  # for each thread; Dask adds these up, so a sum must be exact
        return Placement(
            False, STRIPS_PER_SLOT * threads, {"GPU workers": (threads, STAGES)}, share, share, by_tile=True
        )
    if not gpus:
        threads = max(1, sum(w["nthreads"] for w in workers))
        return Placement(False, STRIPS_PER_SLOT * threads, {"workers": (threads, STAGES)})
    if cpu_slots and any(w["nthreads"] > 1 for w in gpus):
        log.warning(
            "GPU workers with several threads do not cut beside CPU workers: start them with one, or without those"
        )
    gpu_slots = sum(int(w["resources"]["GPU"]) for w in gpus)
    others = tuple(stage for stage in STAGES if stage != "infer")
    pools = {"CPU workers": (cpu_slots or len(workers), others), "GPU workers": (gpu_slots, ("infer",))}
    return Placement(
        True, STRIPS_PER_SLOT * gpu_slots + cpu_slots, pools, {"CPU": 1} if cpu_slots else None, {"GPU": 1}
    )


def await_workers(client: Client, needs_gpu: bool = False) -> None:
    """Wait for the first worker, and for one with a GPU if the run asks for that; `ClusterLost` when none comes."""
    began = time.monotonic()
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
    except TimeoutError as error:
        raise ClusterLost(f"no worker joined {client} in {WORKERS_TIMEOUT_S} s: start some; {RESUMES}") from error
    while needs_gpu and not has_gpu(client):
        if time.monotonic() - began > WORKERS_TIMEOUT_S:
            raise ClusterLost(
                f"no worker with a GPU joined {client} in {WORKERS_TIMEOUT_S} s: start some, or run with device = "
                f"cpu; {RESUMES}"
            )
        time.sleep(1)


def register(client: Client, plugin: WorkerPlugin) -> None:
    """Give a plugin to all workers, those to come too; one that dies while it is told comes back and has it."""
    for attempt in range(REGISTER_ATTEMPTS):
        try:
            client.register_plugin(plugin)
            return
        except CommClosedError:  # of a worker; if it is the scheduler's, so is the next
            if attempt + 1 == REGISTER_ATTEMPTS:
                raise
            time.sleep(1)


def has_gpu(client: Client) -> bool:
    """Return whether any worker is labelled `GPU` or has a CUDA device."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any("GPU" in w["resources"] for w in workers) or any(client.run(cuda_is_there, on_error="ignore").values())


def version_mismatch(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Return in words how a worker's versions differ from the driver's, "" if they do not."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name, 'unknown')} there, {here[name]} here" for name in names)


def check_worker_versions(client: Client) -> None:
    """Raise `ConfigError` when workers have other code, Python or libraries than the driver: rows would differ.

    One that dies while it is asked is no worker; what comes in its place is asked by `WorkerSetup`.
    """
    here, said = versions(), client.run(versions, on_error="return")
    answers = {address: answer for address, answer in said.items() if not isinstance(answer, OSError)}
    faults = {
        address: version_mismatch(here, answer)
        if isinstance(answer, dict)
        else f"skyclass has no version there ({answer})"
        for address, answer in answers.items()
    }
    if strange := {address: words for address, words in faults.items() if words}:
        told = "; ".join(f"{address}: {words}" for address, words in sorted(strange.items())[:3])
        raise ConfigError(
            f"{len(strange)} of {len(answers)} workers differ from this driver: {told}; install the same on both"
        )


class WorkerSetup(WorkerPlugin):
    """Sends away a worker that joins a run with other code or libraries than the driver's.

    One that stays has one thread of torch for each of Dask's, until it is told that it has more.
    """

    name = "skyclass-setup"

    def __init__(self) -> None:
        self.expected = versions()

    async def setup(self, worker: Worker) -> None:
        """Look at the worker once, when it joins or comes back."""
        if words := version_mismatch(self.expected, versions()):
            log.error("this worker leaves the run: %s", words)
            asyncio.get_running_loop().create_task(worker.close(reason="skyclass-version-skew"))
            return
        set_threads(1)


def warm_up_workers(client: Client, placement: Placement, context: RunContext) -> list[str]:
    """Return why workers that infer cannot load the network of a line; it is loaded on all others."""
    said = client.run(warm_worker, context, placement, on_error="return")
    faults = {address: fault for address, fault in said.items() if fault is not None}
    return sorted({str(fault) for fault in faults.values()})


async def warm_worker(context: RunContext, placement: Placement, dask_worker: Worker) -> str | None:
    """Return why a worker cannot load the network, None once it has or need not, beside its heartbeats."""
    if placement.infer and "GPU" not in dask_worker.state.total_resources:  # others infer
        return None
    if placement.split:  # it infers one strip at a time
        set_threads(dask_worker.state.nthreads)
    faults = await asyncio.to_thread(warm_up_local, context)
    return faults[0] if faults else None


class WarmUpPlugin(WorkerPlugin):
    """Loads the network before a worker is given any work: a worker that comes late or comes back, too.

    One that cannot run it as the others do is sent away.
    """

    name = "skyclass-warm-up"

    def __init__(self, context: RunContext, placement: Placement) -> None:
        self.context, self.placement = context, placement

    async def setup(self, worker: Worker) -> None:
        """Load the network, or leave."""
        if fault := await warm_worker(self.context, self.placement, worker):
            log.error("this worker leaves the run: %s", fault)
            asyncio.get_running_loop().create_task(worker.close(reason="skyclass-cannot-compile"))
