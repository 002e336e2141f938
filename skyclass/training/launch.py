"""Train on the nodes of a Dask cluster: Dask starts and watches, torchrun trains.

One task a node runs `torch.distributed.run` there and sends its log lines home. Driver and nodes hear of each other
every second, through a queue and a variable on the scheduler; who falls silent is given up, so that neither a dead
node nor a dead driver leaves anybody waiting.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, Future, Queue, Variable
from distributed.comm.addressing import get_address_host

from ..cluster import count_gpus
from ..config import read_toml
from ..errors import ConfigError, Interrupted, SkyclassError
from .node import (
    CALL_S,
    NEWS_WAITING,
    OF_A_RANK,
    PEER_GRACE_S,
    STOP,
    TICK_S,
    TRAIN,
    Ending,
    Limits,
    Machine,
    Node,
    NodeJob,
    run_node,
)

Echo = Callable[[str], object]


def launch(
    train_toml: Path,
    client: Client,
    nodes: int | None = None,
    ranks_per_node: int | None = None,
    max_restarts: int = 3,
    echo: Echo = print,
    module: Sequence[str] = TRAIN,
    limits: Limits | None = None,
) -> None:
    """Return when the training that TRAIN.toml describes has ended well on the nodes of a cluster.

    There is one node for each machine of the cluster, or the first `nodes` of them; on a cluster of one machine `nodes`
    of its workers, each as if it were a machine. A node has `ranks_per_node` ranks, else one for each of its
    GPUs, else one. Each needs the file, the dataset and the output folder under the same paths. `echo` gets
    the log, line by line, with its rank or node before it.

    A rank that dies is started again with all others, at most `max_restarts` times on each node. Raises `ConfigError`
    before anything starts for a file, dataset or cluster that will not do, and when a rank finds so;
    `SkyclassError` when ranks keep failing, with the last error line, and when a node is dead, by its name and
    within two minutes. Whatever ends it, Ctrl-C included, no rank is left running.
    """
    file = Path(train_toml).absolute()
    on_cpu = tuple(module) == TRAIN and check_training(file).device == "cpu"
    with scheduler_faults():
        job = plan_job(client, [*module, str(file)], file, nodes, ranks_per_node, on_cpu, max_restarts, limits)
        for node in job.nodes:
            echo(f"[{node.name}] {node.ranks} rank(s), {node.threads} thread(s) each{_gpu_words(node)}")
        with submitted(client, job, echo) as desk:
            raise_failures(desk.attend())


def _gpu_words(node: Node) -> str:
    return f", GPUs {','.join(node.devices)}" if node.devices else ", no GPU"


def check_training(file: Path) -> Any:
    """Return the `TrainConfig` of a file; `ConfigError` when it, or the dataset that it names, cannot be used."""
    from .dataset import load_dataset  # here, not above: workers need neither torch nor these
    from .recipe import train_config

    run = train_config(read_toml(str(file)))
    load_dataset(run.dataset)
    return run


@contextmanager
def scheduler_faults() -> Iterator[None]:
    """Turn what Dask raises when the scheduler is gone into one message of ours."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise SkyclassError(
            f"the Dask scheduler does not answer ({type(error).__name__}: {error}); the nodes stop by themselves; "
            "run the same command again to resume from the last checkpoint"
        ) from error


def plan_job(
    client: Client,
    command: Sequence[str],
    file: Path,
    nodes: int | None,
    ranks_per_node: int | None,
    on_cpu: bool,
    max_restarts: int,
    limits: Limits | None,
) -> NodeJob:
    """Return the job on the workers that the cluster has now: who takes part, with which devices, where they meet."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    chosen = choose_workers(by_machine(workers), nodes)
    hosts = {get_address_host(address) for address in chosen}
    mates = [a for a in workers if get_address_host(a) in hosts]
    asked = [a for a in mates if a in chosen or workers[a]["resources"].get("GPU")]
    answers = client.run(describe_machine, workers=asked, on_error="return")
    if silent := [a for a, answer in answers.items() if not isinstance(answer, Machine)]:
        raise SkyclassError(f"no answer from worker {', '.join(silent)}: {answers[silent[0]]}")
    members = make_nodes(chosen, answers, ranks_per_node, on_cpu)
    port = client.run(free_port, members[0].host, workers=[members[0].address])[members[0].address]
    return NodeJob(
        id=f"skyclass-train-{uuid.uuid4().hex[:12]}",
        command=tuple(command),
        must_exist=(str(file),),
        folder=str(Path.cwd()),
        nodes=members,
        port=port,
        max_restarts=max_restarts,
        limits=limits or Limits(),
    )


def by_machine(workers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the worker addresses of each host, those that are not GPU workers first: their memory is free."""
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


def describe_machine() -> Machine:
    """Return what this worker knows of its machine."""
    return Machine(os.environ.get("CUDA_VISIBLE_DEVICES"), count_gpus(), CPU_COUNT)


def free_port(host: str) -> int:
    """Return a TCP port of this machine that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def make_nodes(
    chosen: Sequence[str], answers: Mapping[str, Machine], ranks_per_node: int | None, on_cpu: bool
) -> tuple[Node, ...]:
    """Return the nodes with their shares of devices and cores; nodes on one machine share both."""
    hosts = {address: get_address_host(address) for address in answers}
    members = []
    for address in chosen:
        mates = [a for a in chosen if hosts[a] == hosts[address]]
        machine = [answer for a, answer in answers.items() if hosts[a] == hosts[address]]
        devices = () if on_cpu else all_devices(machine)[mates.index(address) :: len(mates)]
        ranks = ranks_per_node or len(devices) or 1
        name = hosts[address] if len(mates) == 1 else address
        if devices and ranks > len(devices):
            raise ConfigError(f"{ranks} ranks on {name}, which has {len(devices)} GPU(s): choose at most as many")
        if not (devices or on_cpu) and all_devices(machine):
            raise ConfigError(f"no GPU of {hosts[address]} is left for {name}: choose fewer nodes, or device = 'cpu'")
        threads = max(1, answers[address].cores // (ranks * len(mates)))
        members.append(Node(name, address, hosts[address], ranks, threads, devices if devices or on_cpu else None))
    return tuple(members)


def all_devices(workers: Sequence[Machine]) -> tuple[str, ...]:
    """Return the CUDA devices of a machine by what its workers see, in one order for all.

    dask-cuda turns the list of each worker so that another device is first, and others start workers that see
    one device each: the devices of a machine are what its workers see together.
    """
    seen = [worker.visible.split(",") for worker in workers if worker.visible is not None]
    names = dict.fromkeys(name.strip() for names in seen for name in names if name.strip() not in ("", "-1"))
    if not seen:
        return tuple(str(i) for i in range(max(worker.gpus for worker in workers)))
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else 1_000, name)))


@contextmanager
def submitted(client: Client, job: NodeJob, echo: Echo) -> Iterator[Desk]:
    """Give the driver's desk with a task running on each node; after the block all are stopped, their log read."""
    desk = Desk(client, job, echo)
    try:
        desk.submit()
        yield desk
    finally:
        desk.stop()


def raise_failures(endings: Sequence[Ending]) -> None:
    """Raise what went wrong on all nodes in one message; causes go before what followed from them."""
    failed = [e for e in endings if e.how in ("failed", "refused")]
    if not failed:
        if any(e.how != "done" for e in endings):  # nodes that no longer heard of the driver, as when it was suspended
            raise Interrupted("the nodes stopped before the training was done; run the same command again to resume")
        return
    causes = [e for e in failed if not e.peer] or [e for e in endings if e.reason and not e.peer] or failed
    kind = ConfigError if any(e.how == "refused" for e in causes) else SkyclassError
    raise kind("training failed: " + "; ".join(dict.fromkeys(e.reason for e in causes)))


@dataclass
class Desk:
    """The driver's side of a job: who was heard when, and how it ended where."""

    client: Client
    job: NodeJob
    echo: Echo
    futures: list[Future[Any]] = field(default_factory=list)
    endings: dict[int, Ending] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    beat: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self.news = Queue(self.job.id, client=self.client, maxsize=NEWS_WAITING * len(self.job.nodes))
        self.pulse = Variable(self.job.id, client=self.client)
        self.pulse.set(self.beat, callback_timeout=CALL_S)

    def submit(self) -> None:
        """Submit the task of each node to its worker and to no other."""
        for index, node in enumerate(self.job.nodes):
            pinned = {"workers": [node.address], "allow_other_workers": False, "pure": False, "retries": 0}
            self.futures.append(self.client.submit(run_node, self.job, index, priority=10, **pinned))
            self.heard[index] = time.monotonic()

    def attend(self) -> list[Ending]:
        """Return the endings when all nodes have ended, or one has failed; `SkyclassError` when one is dead."""
        failed_at: float | None = None
        while len(self.endings) < len(self.futures):
            self.listen()
            self.mourn()
            failed = [e for e in self.endings.values() if e.how != "done"]
            failed_at = (failed_at or time.monotonic()) if failed else None
            if any(not e.peer for e in failed) or (failed_at and time.monotonic() - failed_at > PEER_GRACE_S):
                self.stop()
                break
            time.sleep(TICK_S / 2)
        return list(self.endings.values())

    def listen(self) -> None:
        """Give a sign of life, and take in what the nodes have sent and how they ended."""
        self.beat += 1
        self.pulse.set(self.beat, callback_timeout=CALL_S)
        self.hear()

    def hear(self) -> None:
        """Take in what the nodes have sent and how they ended; a node's lines are there before its end is."""
        ended = [i for i, f in enumerate(self.futures) if f.done() and i not in self.endings]
        for word in self.news.get(batch=True, callback_timeout=CALL_S):
            index = word["node"]
            self.heard[index] = time.monotonic()
            self.begun[index] = self.begun.get(index, 0) + word["begun"]
            for line in word["lines"]:
                self.echo(self.shown(index, line))
        for index in ended:
            self.endings[index] = self.ending(index)

    def shown(self, index: int, line: str) -> str:
        """Return a line with its rank before it, or its node if it is torchrun's own."""
        match = OF_A_RANK.fullmatch(line)
        return f"[rank {match[1]}] {match[2]}" if match else f"[{self.job.nodes[index].name}] {line}"

    def ending(self, index: int) -> Ending:
        """Return how the task of a node ended."""
        future = self.futures[index]
        if future.status == "finished":
            ending: Ending = future.result()
            return ending
        error = future.exception() if future.status == "error" else None
        if isinstance(error, ConfigError):
            return Ending("refused", str(error))
        return Ending("failed", f"the task on {self.job.nodes[index].name} failed: {error or future.status}")

    def mourn(self) -> None:
        """Raise `SkyclassError` for the first node that is dead: gone, restarted behind our back, or silent."""
        running = [i for i in range(len(self.futures)) if i not in self.endings]
        present = self.client.nthreads([self.job.nodes[i].address for i in running], callback_timeout=CALL_S)
        for index in running:
            if reason := self.death(index, self.job.nodes[index].address in present):
                self.dead.add(index)
                raise SkyclassError(
                    f"node {self.job.nodes[index].name} is lost: {reason}; training was stopped on the others, and the "
                    "same command resumes from the last checkpoint"
                )

    def death(self, index: int, present: bool) -> str:
        """Return why a node must be given up; empty while it lives."""
        address, silent_s = self.job.nodes[index].address, time.monotonic() - self.heard[index]
        if not present:
            return f"its Dask worker {address} has left the cluster"
        if self.begun.get(index, 0) > 1:
            return f"its Dask worker {address} died and came back"
        if silent_s <= self.job.limits.silent_s:
            return ""
        if index not in self.begun:
            return f"its Dask worker {address} did not begin within {silent_s:.0f} s, being busy, paused or frozen"
        return f"its Dask worker {address} has been silent for {silent_s:.0f} s: machine or network down, or frozen"

    def stop(self) -> None:
        """Stop the nodes that still run, and wait until they have; a second call does nothing."""
        if self.stopped:
            return
        self.stopped = True
        try:
            self.pulse.set(STOP, callback_timeout=CALL_S)
            self.await_ends(time.monotonic() + self.job.limits.grace_s + 2 * CALL_S)
            self.client.cancel(self.futures)
            self.news.close()
            if not self.dead:  # else a node that wakes up later must still hear it
                self.pulse.delete()
        except (OSError, CancelledError) as error:  # in a `finally`: what is being raised says it better
            self.echo(f"the Dask scheduler does not answer ({error}); the nodes stop by themselves")

    def await_ends(self, until: float) -> None:
        """Take in what the living nodes send until all have ended, or time is up."""
        while len(self.endings.keys() | self.dead) < len(self.futures) and time.monotonic() < until:
            self.hear()
            time.sleep(TICK_S / 4)
