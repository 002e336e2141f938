"""Train on the nodes of a Dask cluster: one Dask task for each node starts its ranks and supervises them.

launch (driver) -> node.run_node (Dask task) -> rank.main (one process for each rank)

Twice a second a node publishes the reports of its ranks as a Dask event, which is also its heartbeat. The driver
stops a node by cancelling its task. Dask cancels the task, too, when the driver dies.
"""

from __future__ import annotations

import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from distributed import Client, Future
from distributed.comm.addressing import get_address_host

from ...engine.workers import submit_to
from ...errors import ClusterLost, ConfigError, Interrupted, SkyclassError
from ...settings import read_toml
from ...text import counted, one_or_many
from ..data.dataset import load_dataset
from ..locks import file_lock
from ..progress import Progress, no_progress
from .machines import LOCK, Machine, describe_machine, make_nodes, select_workers, workers_by_host
from .node import POLL_S, LaunchSpec, Node, Outcome, Report, combined_outcome, run_node
from .recipe import TrainConfig, train_config

RANK = ("-m", "skyclass.training.fit.rank")
CALL_S = 60
"""Time for the scheduler or a worker to answer a call of the driver."""
PEER_GRACE_S = 5.0
"""Time that the driver waits for the cause after a rank has reported only a lost peer."""

PrintLine = Callable[[str], object]


def launch(
    train_toml: Path,
    client: Client,
    nodes: int | None = None,
    ranks_per_node: int | None = None,
    max_restarts: int = 3,
    print_line: PrintLine = print,
    progress: Progress = no_progress,
    command: Sequence[str] = RANK,
    silent_s: float = 60.0,
    grace_s: float = 30.0,
) -> None:
    """Run the training of TRAIN.toml on the nodes of a cluster. No rank is left afterwards, not even after Ctrl-C.

    When a rank dies or is silent for `silent_s`, all ranks start again from the last checkpoint.

    Parameters
    ----------
    train_toml : Path
        The file. Every node reads it, the dataset and the output folder under the same paths.
    client : Client
        Client of the cluster.
    nodes : int, optional
        Number of machines to use; by default all. On a cluster of one machine, the number of its workers to use as
        nodes.
    ranks_per_node : int, optional
        Ranks on each node; by default one for each of its GPUs, or one on a node without a GPU.
    max_restarts : int
        Number of times that all ranks may start again.
    print_line : callable
        Receives the lines that ranks print.
    progress : callable
        Receives the events of `train.train`.
    command : sequence of str
        Arguments of Python for a rank.
    silent_s, grace_s : float
        Silence after which a node or rank counts as dead, and time for ranks to write a checkpoint and end (s).

    Raises
    ------
    ConfigError
        The file, the dataset or the cluster cannot be used. Raised before anything starts, or when a rank finds it.
    SkyclassError
        Ranks keep failing.
    ClusterLost
        The scheduler or a node is gone, or a node is silent for `silent_s`.
    Interrupted
        A signal has stopped the ranks.
    """
    file = Path(train_toml).absolute()
    run = read_training(file)
    folder = Path(f"{run.out}.rendezvous").absolute()
    with private_folder(folder) as is_locked:
        addresses, machines = ask_machines(client, nodes, (str(Path.cwd()), str(file), str(folder)))
        members = make_nodes(addresses, machines, ranks_per_node, run.device == "cpu")
        for node in members:
            print_line(node_text(node))
        use_file = is_locked and all(machines[address].sees_lock for address in addresses)
        host = None if use_file else get_address_host(addresses[0])
        spec = LaunchSpec(tuple(command), str(file), str(Path.cwd()), members, host, silent_s, grace_s)
        raise_unless_done(run_attempts(client, spec, folder, max_restarts, print_line, progress))


def read_training(file: Path) -> TrainConfig:
    """Return the training of a file; `ConfigError` for a file, or a dataset named in it, that cannot be used."""
    run = train_config(read_toml(str(file)))
    load_dataset(run.dataset)
    return run


def node_text(node: Node) -> str:
    """Return one line about a node."""
    gpus = f"{one_or_many(len(node.devices), 'GPU', 'GPUs')} {','.join(node.devices)}" if node.devices else "no GPU"
    return f"[{node.name}] {counted(node.ranks, 'rank')}, {counted(node.threads, 'thread')} each, {gpus}"


@contextmanager
def private_folder(path: Path) -> Iterator[bool]:
    """Make a folder of mode 0700 with a locked file, and remove it after the block.

    The block receives whether the folder is private and the file is locked. A folder that a killed driver has left is
    replaced. Raises `ConfigError` while another driver holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        with file_lock(path / LOCK, wait=False) as state:
            if state == "held":
                raise ConfigError(
                    f"another driver is training here, it has locked {path / LOCK}: wait for it, or stop it"
                )
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    try:
        with file_lock(path / LOCK, wait=False) as state:
            yield state == "taken" and path.stat().st_mode & 0o077 == 0
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def translate_scheduler_errors() -> Iterator[None]:
    """Turn the exceptions of Dask for a lost scheduler into `ClusterLost`."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise ClusterLost(
            f"the Dask scheduler does not answer ({type(error).__name__}: {error}); the nodes stop by themselves; "
            "run the same command again to resume from the last checkpoint"
        ) from error


def ask_machines(client: Client, n_nodes: int | None, paths: Sequence[str]) -> tuple[list[str], dict[str, Machine]]:
    """Return the worker address of each node, and the machines of these workers and of GPU workers on their hosts."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    addresses = select_workers(workers_by_host(workers), n_nodes)
    hosts = {get_address_host(address) for address in addresses}
    gpu_workers = [a for a in workers if get_address_host(a) in hosts and workers[a]["resources"].get("GPU")]
    asked = list(dict.fromkeys([*addresses, *gpu_workers]))
    with translate_scheduler_errors():
        answers = client.run(describe_machine, paths, workers=asked, on_error="return", callback_timeout=CALL_S)
    if failed := [a for a, answer in answers.items() if not isinstance(answer, Machine)]:
        raise ClusterLost(f"no answer from worker {', '.join(failed)}: {answers[failed[0]]}")
    return addresses, answers


def run_attempts(
    client: Client, spec: LaunchSpec, folder: Path, max_restarts: int, print_line: PrintLine, progress: Progress
) -> Outcome:
    """Return the outcome of a training. After a failure, all ranks start again from the last checkpoint."""
    for restarts in range(max_restarts + 1):
        topic = f"skyclass-train-{uuid.uuid4().hex}"
        current = replace(spec, topic=topic, rendezvous=str(folder / f"ranks-{restarts}"))
        outcome = Attempt(client, current, print_line, progress).run()
        if outcome.status != "failed":
            break
        if restarts < max_restarts:
            print_line(
                f"{outcome.reason}; all ranks start again from the last checkpoint ({restarts + 1} of {max_restarts})"
            )
    return outcome


def raise_unless_done(outcome: Outcome) -> None:
    """Raise the error of an outcome, unless its status is "done"."""
    if outcome.status == "interrupted":
        raise Interrupted(f"training stopped: {outcome.reason}")
    if outcome.status != "done":
        raise (ConfigError if outcome.status == "refused" else SkyclassError)(f"training failed: {outcome.reason}")


@dataclass
class Attempt:
    """The driver's side of one attempt at a training."""

    client: Client
    spec: LaunchSpec
    print_line: PrintLine
    progress: Progress
    events: SimpleQueue[tuple[float, Report]] = field(default_factory=SimpleQueue)
    futures: list[Future[None]] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    silent_s: dict[int, float] = field(default_factory=dict)
    polled_at: float = field(default_factory=time.monotonic)

    def run(self) -> Outcome:
        """Return the outcome of the attempt. No node that answers has a rank afterwards."""
        self.client.subscribe_topic(self.spec.topic, self.events.put)
        try:
            for index, node in enumerate(self.spec.nodes):
                self.futures.append(submit_to(self.client, node.address, run_node, self.spec, index))
                self.silent_s[index] = 0.0
            return self.wait_for_nodes()
        finally:
            if self.client.status == "running":  # otherwise the scheduler is gone, and the nodes stop by themselves
                self.stop()

    def wait_for_nodes(self) -> Outcome:
        """Return the outcome once all nodes have ended, or one has failed."""
        failed_s = 0.0
        while len(self.outcomes) < len(self.futures) and failed_s <= PEER_GRACE_S:
            self.poll_events()
            self.raise_if_node_lost()
            failures = [outcome for outcome in self.outcomes.values() if outcome.is_failure]
            failed_s += math.inf if any(not f.lost_peer for f in failures) else POLL_S * bool(failures)
        return combined_outcome(self.outcomes.values())

    def poll_events(self) -> None:
        """Wait `POLL_S`, handle the events since the last call, and record the tasks that failed.

        The time since the last call is added to the silence of each node that published no event.
        """
        time.sleep(POLL_S)
        now, before = time.monotonic(), self.polled_at
        self.polled_at = now
        for index in self.silent_s:  # bounded, so that a pause of the driver does not count as silence of the nodes
            self.silent_s[index] += min(now - before, 10 * POLL_S)
        while not self.events.empty():
            _, report = self.events.get()
            self.handle_event(report)
        for index, future in enumerate(self.futures):
            if future.status == "error" and index not in self.outcomes:
                name, error = self.spec.nodes[index].name, future.exception()
                self.outcomes[index] = Outcome("failed", f"the task on {name} failed: {error!r}")

    def handle_event(self, event: Report) -> None:
        """Pass on the reports of a node, reset its silence, and keep its outcome once it has ended."""
        self.silent_s[event["node"]] = 0.0
        for rank, report in event["reports"]:
            if "progress" in report:
                self.progress(report["progress"])
            else:
                self.print_line(f"[rank {rank}] {report['text']}")
        if event["outcome"]:
            self.outcomes[event["node"]] = Outcome(**event["outcome"])

    def raise_if_node_lost(self) -> None:
        """Raise `ClusterLost` for the first node that has left the cluster or is silent."""
        running = {i: node for i, node in enumerate(self.spec.nodes) if i not in self.outcomes}
        with translate_scheduler_errors():
            present = self.client.nthreads([node.address for node in running.values()], callback_timeout=CALL_S)
        for index, node in running.items():
            reason = "has left the cluster"
            if node.address in present:
                if self.silent_s[index] < self.spec.silent_s:
                    continue
                reason = f"is silent for {self.silent_s[index]:.0f} s: busy, paused or frozen, or its machine is down"
            self.outcomes[index] = Outcome("failed", reason)
            raise ClusterLost(
                f"node {node.name} is lost: its Dask worker {node.address} {reason}; the other nodes were stopped, and "
                "the same command resumes from the last checkpoint"
            )

    def stop(self) -> None:
        """Cancel the tasks and wait until every node that answers has ended its ranks."""
        self.client.cancel(self.futures)
        deadline = time.monotonic() + self.spec.grace_s + PEER_GRACE_S
        while len(self.outcomes) < len(self.futures) and time.monotonic() < deadline:
            self.poll_events()
        self.client.unsubscribe_topic(self.spec.topic)
