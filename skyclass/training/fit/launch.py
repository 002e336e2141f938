"""Train on the nodes of a Dask cluster: one Dask task for each node starts its ranks and watches them.

launch (driver) -> rank.run_node (Dask task) -> rank.main (one process for each rank)

Twice a second a node publishes what its ranks report as a Dask event, which is its sign of life, too. The driver
stops a node by cancelling its task; Dask cancels the task as well when the driver dies.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Literal

import psutil
from dask.system import CPU_COUNT
from distributed import Client, Future, Worker
from distributed.comm.addressing import get_address_host

from ...engine.cluster import count_gpus
from ...errors import ClusterLost, ConfigError, Interrupted, SkyclassError
from ...settings import read_toml
from .node import TICK_S, Ending, Job, Node, Report, run_node, verdict

RANK = ("-m", "skyclass.training.fit.rank")
CALL_S = 60
"""How long a scheduler or worker may take to answer a question of the driver."""
PEER_GRACE_S = 5.0
"""How long the driver waits for the cause after a rank has reported only that another rank is gone."""

Echo = Callable[[str], object]
Watch = Callable[[Report], object]


@dataclass(frozen=True)
class Machine:
    """What a worker reports of its machine."""

    visible: str | None
    """CUDA_VISIBLE_DEVICES, if set."""
    gpus: int
    cores: int
    interface: str | None = "lo"
    """Network interface that has the worker's address."""
    absent: tuple[str, ...] = ()
    """Paths of the job that the worker cannot read."""
    sees_lock: bool = True
    """Whether the file that the driver has locked is locked here, too."""


def launch(
    train_toml: Path,
    client: Client,
    nodes: int | None = None,
    ranks_per_node: int | None = None,
    max_restarts: int = 3,
    echo: Echo = print,
    watch: Watch = lambda record: None,
    command: Sequence[str] = RANK,
    silent_s: float = 60.0,
    grace_s: float = 30.0,
) -> None:
    """Train what TRAIN.toml describes on the nodes of a cluster.

    There is one node for each machine of the cluster, or the first `nodes` of them; on a cluster of one machine `nodes`
    of its workers, each as if it were a machine. A node has `ranks_per_node` ranks, else one for each of its GPUs, else
    one. All need the file, the dataset and the output folder under the same paths. `watch` gets the records of
    `train.train`, `echo` the lines that ranks print.

    When a rank dies, or is silent for `silent_s`, all ranks start again from the last checkpoint, at most
    `max_restarts` times. Raises `ConfigError` for a file, dataset or cluster that cannot be used, before anything
    starts or when a rank finds so; `SkyclassError` when ranks keep failing; `ClusterLost` when the scheduler is gone,
    or when a node is gone or silent for `silent_s`; `Interrupted` when ranks are told to stop. Afterwards no rank is
    left, Ctrl-C included.
    """
    file = Path(train_toml).absolute()
    run = check_training(file)
    folder = Path(f"{run.out}.rendezvous").absolute()
    with private_folder(folder) as locked:
        chosen, machines = ask_machines(client, nodes, (str(Path.cwd()), str(file), str(folder)))
        members = make_nodes(chosen, machines, ranks_per_node, run.device == "cpu")
        for node in members:
            gpus = f"GPUs {','.join(node.devices)}" if node.devices else "no GPU"
            echo(f"[{node.name}] {node.ranks} rank(s), {node.threads} thread(s) each, {gpus}")
        meets_by_file = locked and all(machines[address].sees_lock for address in chosen)
        host = None if meets_by_file else get_address_host(chosen[0])
        job = Job(tuple(command), str(file), str(Path.cwd()), members, host, silent_s, grace_s)
        raise_unless_done(run_job(client, job, folder, max_restarts, echo, watch))


def check_training(file: Path) -> Any:
    """Return the `TrainConfig` of a file; `ConfigError` when it, or the dataset that it names, cannot be used."""
    from ..data.dataset import load_dataset  # here, not above: workers need neither torch nor these
    from .recipe import train_config

    run = train_config(read_toml(str(file)))
    load_dataset(run.dataset)
    return run


@contextmanager
def private_folder(path: Path) -> Iterator[bool]:
    """Make a folder of mode 0700 and remove it afterwards; give whether it is private and its file `lock` is locked.

    A folder that a killed driver has left is replaced. Raises `ConfigError` while another driver holds its lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        with open(path / "lock", "a") as old:
            if lock(old) == "held":
                raise ConfigError(f"another driver is training here, it has locked {old.name}: wait for it, or stop it")
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    try:
        with open(path / "lock", "w") as file:
            yield lock(file) == "taken" and path.stat().st_mode & 0o077 == 0
    finally:
        shutil.rmtree(path, ignore_errors=True)


def lock(file: IO[str]) -> Literal["taken", "held", "none"]:
    """Lock a file until it is closed; return "held" when another process has locked it, "none" without file locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:  # ENOSYS, ENOLCK or EOPNOTSUPP: it depends on the file system and on how it is mounted
        return "none"
    return "taken"


@contextmanager
def scheduler_faults() -> Iterator[None]:
    """Turn what Dask raises when the scheduler is gone into `ClusterLost`."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise ClusterLost(
            f"the Dask scheduler does not answer ({type(error).__name__}: {error}); the nodes stop by themselves; "
            "run the same command again to resume from the last checkpoint"
        ) from error


def ask_machines(client: Client, nodes: int | None, paths: Sequence[str]) -> tuple[list[str], dict[str, Machine]]:
    """Return the addresses of the workers that become nodes, and what they and the GPU workers beside them report."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    chosen = choose_workers(by_machine(workers), nodes)
    hosts = {get_address_host(address) for address in chosen}
    asked = [a for a in workers if a in chosen or get_address_host(a) in hosts and workers[a]["resources"].get("GPU")]
    with scheduler_faults():
        answers = client.run(describe_machine, paths, workers=asked, on_error="return", callback_timeout=CALL_S)
    if silent := [a for a, answer in answers.items() if not isinstance(answer, Machine)]:
        raise ClusterLost(f"no answer from worker {', '.join(silent)}: {answers[silent[0]]}")
    return chosen, answers


def by_machine(workers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the worker addresses of each host; GPU workers come last, because their memory is full."""
    hosts: dict[str, list[str]] = {}
    for address in sorted(workers, key=lambda a: (bool(workers[a]["resources"].get("GPU")), a)):
        hosts.setdefault(get_address_host(address), []).append(address)
    return dict(sorted(hosts.items()))


def choose_workers(hosts: Mapping[str, Sequence[str]], nodes: int | None) -> list[str]:
    """Return one worker address for each node; `ConfigError` when the cluster has fewer."""
    if not hosts:
        raise ConfigError("the cluster has no workers: start some, cluster/README.md shows how")
    one_machine = len(hosts) == 1
    pool = [a for addresses in hosts.values() for a in (addresses if one_machine and nodes else addresses[:1])]
    if nodes is not None and not 1 <= nodes <= len(pool):
        what = f"one machine with {len(pool)} worker(s)" if one_machine else f"{len(pool)} machines"
        raise ConfigError(f"nodes = {nodes}: the cluster is {what}; choose 1 to {len(pool)}, or start more workers")
    return pool[:nodes]


def describe_machine(paths: Sequence[str], dask_worker: Worker) -> Machine:
    """Return what a worker reports of its machine; the last of `paths` is the folder that holds the driver's lock."""
    absent = tuple(path for path in paths if not os.access(path, os.R_OK))
    host = get_address_host(dask_worker.address)
    every = psutil.net_if_addrs().items()
    interface = next((name for name, addresses in every if any(a.address == host for a in addresses)), None)
    sees_lock = not absent and is_locked(Path(paths[-1]) / "lock")
    return Machine(os.environ.get("CUDA_VISIBLE_DEVICES"), count_gpus(), CPU_COUNT, interface, absent, sees_lock)


def is_locked(path: Path) -> bool:
    """Return whether another process, on this machine or another, holds the lock of a file."""
    with open(path, "r+") as file:
        return lock(file) == "held"


def make_nodes(
    chosen: Sequence[str], machines: Mapping[str, Machine], ranks_per_node: int | None, on_cpu: bool
) -> tuple[Node, ...]:
    """Return the nodes with their shares of devices and cores; nodes on one machine share both."""
    hosts = {address: get_address_host(address) for address in machines}
    members: list[Node] = []
    for address in chosen:
        mates = [a for a in chosen if hosts[a] == hosts[address]]
        devices = all_devices([m for a, m in machines.items() if hosts[a] == hosts[address]])
        share = () if on_cpu else devices[mates.index(address) :: len(mates)]
        ranks = ranks_per_node or len(share) or 1
        name = hosts[address] if len(mates) == 1 else address
        if share and ranks > len(share):
            raise ConfigError(f"{ranks} ranks on {name}, which has {len(share)} GPU(s): choose at most as many")
        if devices and not (share or on_cpu):
            raise ConfigError(f"no GPU of {hosts[address]} is left for {name}: choose fewer nodes, or device = 'cpu'")
        threads = max(1, machines[address].cores // (ranks * len(mates)))
        first_rank = sum(node.ranks for node in members)
        visible = share if share or on_cpu else None
        interface = check_machine(name, machines[address])
        members.append(Node(name, address, interface, first_rank, ranks, threads, visible))
    return tuple(members)


def check_machine(name: str, machine: Machine) -> str:
    """Return the network interface of a machine that can take part; else raise `ConfigError`."""
    if machine.absent:
        raise ConfigError(f"{name} cannot read {', '.join(machine.absent)}: use a folder that all nodes share")
    if machine.interface is None:
        raise ConfigError(
            f"no network interface of {name} has this address: give `dask worker` one that has, by --host"
        )
    return machine.interface


def all_devices(workers: Sequence[Machine]) -> tuple[str, ...]:
    """Return the CUDA devices of a machine by what its workers see, in one order for all.

    dask-cuda rotates the list of each worker so that another device is first, and other programs start workers that see
    one device each: the devices of a machine are what its workers see together.
    """
    lists = [worker.visible.split(",") for worker in workers if worker.visible is not None]
    names = dict.fromkeys(name.strip() for names in lists for name in names if name.strip() not in ("", "-1"))
    if not lists:
        return tuple(str(i) for i in range(max(worker.gpus for worker in workers)))
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else 1_000, name)))


def run_job(client: Client, job: Job, folder: Path, max_restarts: int, echo: Echo, watch: Watch) -> Ending:
    """Return how a job ended: after a failure all ranks start again from the last checkpoint."""
    for restarts in range(max_restarts + 1):
        topic = f"skyclass-train-{uuid.uuid4().hex}"
        attempt = Attempt(client, replace(job, topic=topic, rendezvous=str(folder / f"ranks-{restarts}")), echo, watch)
        ending = attempt.run()
        if ending.how != "failed":
            break
        if restarts < max_restarts:
            echo(f"{ending.reason}; all ranks start again from the last checkpoint ({restarts + 1} of {max_restarts})")
    return ending


def raise_unless_done(ending: Ending) -> None:
    """Raise how a job ended, unless it is done."""
    if ending.how == "interrupted":
        raise Interrupted(f"training stopped: {ending.reason}")
    if ending.how != "done":
        raise (ConfigError if ending.how == "refused" else SkyclassError)(f"training failed: {ending.reason}")


@dataclass
class Attempt:
    """The driver's side of one attempt at a job."""

    client: Client
    job: Job
    echo: Echo
    watch: Watch
    events: SimpleQueue[tuple[float, Report]] = field(default_factory=SimpleQueue)
    futures: list[Future[None]] = field(default_factory=list)
    endings: dict[int, Ending] = field(default_factory=dict)
    silent_s: dict[int, float] = field(default_factory=dict)
    listened_at: float = field(default_factory=time.monotonic)

    def run(self) -> Ending:
        """Return how the attempt ended; afterwards no node that answers has a rank."""
        self.client.subscribe_topic(self.job.topic, self.events.put)
        try:
            for index, node in enumerate(self.job.nodes):
                pinned = {"workers": [node.address], "allow_other_workers": False, "pure": False, "retries": 0}
                self.futures.append(self.client.submit(run_node, self.job, index, priority=10, **pinned))
                self.silent_s[index] = 0.0
            return self.attend()
        finally:
            if self.client.status == "running":  # else the scheduler is gone, and the nodes stop by themselves
                self.stop()

    def attend(self) -> Ending:
        """Return how the attempt ended: when all nodes have ended, or when one has failed."""
        failed_s = 0.0
        while len(self.endings) < len(self.futures) and failed_s <= PEER_GRACE_S:
            self.listen()
            self.raise_lost()
            failures = [e for e in self.endings.values() if e.is_failure]
            failed_s += math.inf if any(not e.lost_peer for e in failures) else TICK_S * bool(failures)
        return verdict(self.endings.values())

    def listen(self) -> None:
        """Take in what the nodes have published since the last call, and how long they have been silent."""
        time.sleep(TICK_S)
        now, before = time.monotonic(), self.listened_at
        self.listened_at = now
        for index in self.silent_s:  # a driver that was suspended does not take its own pause for their silence
            self.silent_s[index] += min(now - before, 10 * TICK_S)
        while not self.events.empty():
            self.receive(self.events.get()[1])
        for index, future in enumerate(self.futures):
            if future.status == "error" and index not in self.endings:
                name, error = self.job.nodes[index].name, future.exception()
                self.endings[index] = Ending("failed", f"the task on {name} failed: {error!r}")

    def receive(self, event: Report) -> None:
        """Show what the ranks of a node have reported, and note that the node lives, or how it has ended."""
        self.silent_s[event["node"]] = 0.0
        for rank, report in event["reports"]:
            if "watch" in report:
                self.watch(report["watch"])
            else:
                self.echo(f"[rank {rank}] {report['text']}")
        if event["ending"]:
            self.endings[event["node"]] = Ending(**event["ending"])

    def raise_lost(self) -> None:
        """Raise `ClusterLost` for the first node that has left the cluster or is silent."""
        running = {i: node for i, node in enumerate(self.job.nodes) if i not in self.endings}
        with scheduler_faults():
            present = self.client.nthreads([node.address for node in running.values()], callback_timeout=CALL_S)
        for index, node in running.items():
            reason = "has left the cluster"
            if node.address in present:
                if self.silent_s[index] < self.job.silent_s:
                    continue
                reason = f"is silent for {self.silent_s[index]:.0f} s: busy, paused or frozen, or its machine is down"
            self.endings[index] = Ending("failed", reason)
            raise ClusterLost(
                f"node {node.name} is lost: its Dask worker {node.address} {reason}; the other nodes were stopped, and "
                "the same command resumes from the last checkpoint"
            )

    def stop(self) -> None:
        """Cancel the tasks and wait until every node that answers has ended its ranks."""
        self.client.cancel(self.futures)
        deadline = time.monotonic() + self.job.grace_s + PEER_GRACE_S
        while len(self.endings) < len(self.futures) and time.monotonic() < deadline:
            self.listen()
        self.client.unsubscribe_topic(self.job.topic)
