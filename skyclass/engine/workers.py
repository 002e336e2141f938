"""The workers of a run: wait for them, check their versions, place the stages on them, and load the network there.

The Dask resources of a worker decide its stages: a worker with `GPU` infers, a worker with `CPU` cuts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from distributed import Client, Future, WorkerPlugin
from distributed.comm.core import CommClosedError
from distributed.worker import Worker

from ..errors import ClusterLost, ConfigError
from ..import_path import is_import_path
from ..model.bundle import check_source
from ..model.devices import has_cuda, set_threads
from ..networks import network_class
from ..run.context import RunContext
from ..run.prepare import warm_up_local
from ..run.strips import TIMED_STAGES
from ..text import counted, one_or_many
from ..version import versions

log = logging.getLogger(__name__)

T = TypeVar("T")

STRIPS_PER_SLOT = 2
"""Tasks in flight for each thread that infers: one runs while the pixels of the next are cut or moved."""

WORKERS_TIMEOUT_S = 600

REGISTER_ATTEMPTS = 2

RESUMES = "committed tiles are kept, and the same command resumes the run"


@dataclass(frozen=True)
class Placement:
    """Where tasks run, as Dask resources, and how many strips (whole tiles where `by_tile`) may be in flight.

    `pools` gives, for the report, the number of threads of each pool of workers and the stages that run there.
    """

    split: bool
    window: int
    pools: dict[str, tuple[int, tuple[str, ...]]]
    cut: dict[str, float] | None = None
    infer: dict[str, float] | None = None
    by_tile: bool = False
    """Whether a tile is one task while more tiles are left than the window holds: GPUs finish strips faster than a
    scheduler submits them."""


def placement_of(client: Client) -> Placement:
    """Return the placement for the workers of a cluster.

    CUT and INFER are separate tasks where some workers have the resource `GPU`, and one task where none has. They are
    one task, too, where every worker is a GPU worker with several threads, which then cut. The window holds two strips
    for each thread that infers and, for separate tasks, one for each thread that cuts.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    gpus = [w for w in workers if w["resources"].get("GPU", 0) >= 1]
    cpu_slots = sum(int(w["resources"].get("CPU", 0)) for w in workers)
    if gpus and len(gpus) == len(workers) and all(w["nthreads"] > 1 for w in gpus):
        threads, most = sum(w["nthreads"] for w in gpus), max(w["nthreads"] for w in gpus)
        share = {"GPU": 0.5 ** (most - 1).bit_length()}  # of each thread: a power of two, so that Dask's sums are exact
        return Placement(
            False, STRIPS_PER_SLOT * threads, {"GPU workers": (threads, TIMED_STAGES)}, share, share, by_tile=True
        )
    if not gpus:
        threads = max(1, sum(w["nthreads"] for w in workers))
        return Placement(False, STRIPS_PER_SLOT * threads, {"workers": (threads, TIMED_STAGES)})
    if cpu_slots and any(w["nthreads"] > 1 for w in gpus):
        log.warning(
            "GPU workers with several threads do not cut beside CPU workers: start GPU workers with one thread, or no "
            "CPU workers"
        )
    gpu_slots = sum(int(w["resources"]["GPU"]) for w in gpus)
    others = tuple(stage for stage in TIMED_STAGES if stage != "infer")
    pools = {"CPU workers": (cpu_slots or len(workers), others), "GPU workers": (gpu_slots, ("infer",))}
    return Placement(
        True, STRIPS_PER_SLOT * gpu_slots + cpu_slots, pools, {"CPU": 1} if cpu_slots else None, {"GPU": 1}
    )


def await_workers(client: Client, needs_gpu: bool = False) -> None:
    """Wait for a worker, with a GPU if the run needs one; raise `ClusterLost` when none joins."""
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


def submit_to(client: Client, address: str, work: Callable[..., T], *arguments: object) -> Future[T]:
    """Return the future of a call on one worker, before its other tasks; Dask neither moves nor repeats the call."""
    pinned = {"workers": [address], "allow_other_workers": False, "pure": False, "retries": 0}
    future: Future[T] = client.submit(work, *arguments, priority=10, **pinned)
    return future


def register(client: Client, plugin: WorkerPlugin) -> None:
    """Register a plugin on all workers and on workers that join later.

    Registering fails when a worker dies meanwhile, and is repeated: the restarted worker has the plugin.
    """
    for attempt in range(REGISTER_ATTEMPTS):
        try:
            client.register_plugin(plugin)
            return
        except CommClosedError:  # of a worker; when the scheduler is gone, the second attempt fails, too
            if attempt + 1 == REGISTER_ATTEMPTS:
                raise
            time.sleep(1)


def has_gpu(client: Client) -> bool:
    """Return whether any worker has the resource `GPU` or a CUDA device."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any("GPU" in w["resources"] for w in workers) or any(client.run(has_cuda, on_error="ignore").values())


def version_mismatch(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Return a description of how a worker's versions differ from the driver's, "" if they are equal."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name, 'unknown')} there, {here[name]} here" for name in names)


def check_worker_versions(client: Client) -> None:
    """Raise `ConfigError` when workers have other code, Python or libraries than the driver: rows would differ.

    A worker that dies meanwhile is ignored. `WorkerSetup` checks its replacement.
    """
    here = versions()
    answers = client.run(versions, on_error="return")
    answers = {address: answer for address, answer in answers.items() if not isinstance(answer, OSError)}
    mismatches = {
        address: version_mismatch(here, answer)
        if isinstance(answer, dict)
        else f"skyclass has no version there ({answer})"
        for address, answer in answers.items()
    }
    if different := sorted(f"{address}: {mismatch}" for address, mismatch in mismatches.items() if mismatch):
        differ = one_or_many(len(different), "differs", "differ")
        raise ConfigError(
            f"{len(different)} of {counted(len(answers), 'worker')} {differ} from this driver: "
            f"{'; '.join(different[:3])}; install the same versions on both"
        )


def check_worker_network(client: Client, context: RunContext, placement: Placement) -> None:
    """Raise `ConfigError` if a worker that infers lacks the code of a network outside of skyclass, or has another.

    `WarmUpPlugin` checks workers that join later.
    """
    name = context.bundle.network
    if not is_import_path(name):
        return
    answers = client.run(network_fault, context, placement, on_error="return")
    faults = {
        address: str(answer)
        for address, answer in answers.items()
        if answer is not None and not isinstance(answer, OSError)  # a worker that dies meanwhile
    }
    if faults:
        shown = "; ".join(f"worker {address}: {fault}" for address, fault in sorted(faults.items())[:3])
        raise ConfigError(
            f"{len(faults)} of {counted(len(answers), 'worker')} cannot run the network {name!r} of this driver: "
            f"{shown}; give every worker the same module"
        )


def network_fault(context: RunContext, placement: Placement, dask_worker: Worker) -> str | None:
    """Return why a worker cannot run the code of the network; None if it can, or does not infer."""
    if not infers(placement, dask_worker):
        return None
    bundle = context.bundle
    try:
        check_source(bundle)
        network_class(bundle.network)
    except ConfigError as error:
        return str(error)
    return None


def infers(placement: Placement, worker: Worker) -> bool:
    """Return whether a worker infers: all do where no worker is labelled `GPU`."""
    return not placement.infer or "GPU" in worker.state.total_resources


class WorkerSetup(WorkerPlugin):
    """Closes a worker that joins a run with other code or libraries than the driver's.

    A worker that stays gives torch one thread for each thread of Dask; `warm_worker` may give it more.
    """

    name = "skyclass-setup"

    def __init__(self) -> None:
        self.expected = versions()

    async def setup(self, worker: Worker) -> None:
        """Check the worker when it joins, and again after each restart."""
        if mismatch := version_mismatch(self.expected, versions()):
            log.error("this worker leaves the run: %s", mismatch)
            asyncio.get_running_loop().create_task(worker.close(reason="skyclass-version-skew"))
            return
        set_threads(1)


def warm_up_workers(client: Client, placement: Placement, context: RunContext) -> list[str]:
    """Load the network on all workers that infer, and return the reasons of those that cannot."""
    faults = client.run(warm_worker, context, placement, on_error="return")
    return sorted({str(fault) for fault in faults.values() if fault is not None})


async def warm_worker(context: RunContext, placement: Placement, dask_worker: Worker) -> str | None:
    """Load the network on a worker that infers, and return the reason if it cannot; heartbeats go on meanwhile."""
    if not infers(placement, dask_worker):
        return None
    if fault := await asyncio.to_thread(network_fault, context, placement, dask_worker):
        return fault
    if placement.split:  # the worker infers one strip at a time
        set_threads(dask_worker.state.nthreads)
    faults = await asyncio.to_thread(warm_up_local, context)
    return faults[0] if faults else None


class WarmUpPlugin(WorkerPlugin):
    """Loads the network on each worker before its first task: also on workers that join late or restart.

    A worker that cannot run the network as the others do is closed.
    """

    name = "skyclass-warm-up"

    def __init__(self, context: RunContext, placement: Placement) -> None:
        self.context, self.placement = context, placement

    async def setup(self, worker: Worker) -> None:
        """Load the network, or close the worker."""
        if fault := await warm_worker(self.context, self.placement, worker):
            log.error("this worker leaves the run: %s", fault)
            asyncio.get_running_loop().create_task(worker.close(reason="skyclass-cannot-infer"))
