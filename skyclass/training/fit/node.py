"""A node of a training: the Dask task that starts its ranks, publishes their reports and ends them.

A rank writes JSON lines into a pipe: `{}` as a heartbeat, `{"progress": event}` for an event of the training, and
`{"error": text, "lost_peer": bool}` when it fails.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distributed import Worker

RENDEZVOUS = "SKYCLASS_RENDEZVOUS"
"""Environment variable: a new path in a private folder, where the ranks of one attempt find each other."""
RENDEZVOUS_HOST = "SKYCLASS_RENDEZVOUS_HOST"
"""Environment variable: the address on which rank 0 listens, where the file system has no locks between machines."""
POLL_S = 0.5
HEARTBEAT_S = 2.0
"""Seconds between two heartbeats of a rank."""
MAX_LINE_BYTES, MAX_LINES = 1_000, 200
"""Bounds on the printed lines of a rank that a node publishes at a time. It counts the lines that it drops."""
Report = dict[str, Any]
Inbox = SimpleQueue[tuple[int, Report]]
"""Reports of the ranks of a node, with the number of the rank."""


@dataclass(frozen=True)
class Node:
    """One node of a training: a Dask worker and the ranks that it starts."""

    name: str
    address: str
    interface: str
    """The network interface that has the address of the worker."""
    first_rank: int
    ranks: int
    threads: int
    devices: tuple[str, ...] | None
    """CUDA devices of its ranks; None leaves the environment as it is."""


@dataclass(frozen=True)
class LaunchSpec:
    """The part of a launch that every node needs."""

    command: tuple[str, ...]
    """Arguments of Python for a rank; the number of its pipe and `train_toml` follow."""
    train_toml: str
    folder: str
    """Working directory of the ranks."""
    nodes: tuple[Node, ...]
    rendezvous_host: str | None
    """Address on which rank 0 listens; None where the ranks find each other through a file."""
    silent_s: float
    """Silence after which a node or a rank counts as dead."""
    grace_s: float
    """Time for ranks to write a checkpoint and end."""
    rendezvous: str = ""
    """A path in a private folder that no attempt has used before."""
    topic: str = ""
    """Topic of the Dask events of this attempt."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a rank, a node or an attempt. `lost_peer` means that a rank knows only that another is gone."""

    status: Literal["done", "failed", "refused", "interrupted"]
    reason: str = ""
    lost_peer: bool = False

    @property
    def is_failure(self) -> bool:
        """True if the other ranks cannot continue."""
        return self.status in ("failed", "refused")


STATUS: dict[int, Literal["done", "refused", "interrupted"]] = {0: "done", 2: "refused", 4: "interrupted"}
"""Status by exit code; any other code is a failure."""


def combined_outcome(outcomes: Collection[Outcome]) -> Outcome:
    """Return the common outcome of several. It names all causes of a failure, and a lost peer only without a cause."""
    failures = [o for o in outcomes if o.is_failure]
    causes = [o for o in failures if not o.lost_peer] or failures or [o for o in outcomes if o.status == "interrupted"]
    if not causes:
        return Outcome("done")
    status = "refused" if any(o.status == "refused" for o in causes) else causes[0].status
    return Outcome(status, "; ".join(dict.fromkeys(o.reason for o in causes)), all(o.lost_peer for o in causes))


@dataclass
class RankProcess:
    """The process of a rank of this node, and its reports."""

    number: int
    process: subprocess.Popen[bytes]
    readers: tuple[threading.Thread, ...]
    reported: Report = field(default_factory=dict)
    """All reports of the rank so far, merged."""
    silent_s: float = 0.0

    def has_ended(self) -> bool:
        """Return whether the process has ended and all of its output is read."""
        if self.process.poll() is None:
            return False
        for reader in self.readers:
            reader.join(HEARTBEAT_S)  # times out if a child of the rank has inherited its output
        return True

    def outcome(self, spec: LaunchSpec, node: Node) -> Outcome | None:
        """Return the outcome of the rank, None while it runs. A rank that is silent for too long has failed."""
        name, code = f"rank {self.number} on {node.name}", self.process.returncode
        if code is None and self.silent_s < spec.silent_s:
            return None
        if code is None:
            return Outcome("failed", f"{name} has been silent for {self.silent_s:.0f} s: it is stopped or frozen")
        if code < 0:
            return Outcome("failed", f"{name} was killed by {signal.Signals(-code).name}")
        reason = self.reported.get("error", f"ended with code {code}")
        return Outcome(STATUS.get(code, "failed"), f"{name}: {reason}", self.reported.get("lost_peer", False))


def run_node(spec: LaunchSpec, index: int) -> None:
    """Run the ranks of a node until all have ended, one has failed, or this Dask task is cancelled."""
    from distributed import get_worker  # ranks import this module, and need no Dask

    worker, node, inbox = get_worker(), spec.nodes[index], Inbox()
    key = worker.get_current_task()
    ranks: list[RankProcess] = []

    def publish(reports: list[tuple[int, Report]], outcome: Outcome | None = None) -> None:
        event = {"node": index, "reports": reports, "outcome": outcome and asdict(outcome)}
        worker.log_event(spec.topic, event)

    try:
        for local_rank in range(node.ranks):
            ranks.append(start_rank(spec, node, local_rank, inbox))
        outcome, stop_at = None, math.inf
        while outcome is None:
            time.sleep(POLL_S)
            outcome = poll_ranks(spec, node, ranks, inbox, publish)
            if stop_at == math.inf and not is_task_running(worker, key):
                stop_at = time.monotonic() + spec.grace_s
                for rank in ranks:
                    rank.process.terminate()
            if time.monotonic() > stop_at:
                outcome = Outcome("interrupted", f"the ranks on {node.name} did not end in {spec.grace_s:.0f} s")
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
    publish([], outcome)


def is_task_running(worker: Worker, key: Any) -> bool:
    """Return whether a task still runs. Dask cancels it when the driver cancels it or dies."""
    task = worker.state.tasks.get(key)
    return (
        task is not None and task.state in ("executing", "long-running") and worker.status.name in ("running", "paused")
    )


def poll_ranks(
    spec: LaunchSpec,
    node: Node,
    ranks: list[RankProcess],
    inbox: Inbox,
    publish: Callable[[list[tuple[int, Report]]], None],
) -> Outcome | None:
    """Publish the reports of the ranks. Return the outcome of the node, None while its ranks run."""
    n_ended = sum([rank.has_ended() for rank in ranks])
    reports = [inbox.get() for _ in range(inbox.qsize())]
    publish([(number, report) for number, report in reports if "progress" in report or "text" in report])
    for rank in ranks:
        rank.silent_s += POLL_S
    for number, report in reports:
        rank = ranks[number - node.first_rank]
        rank.silent_s = 0.0
        rank.reported |= report
    outcomes = [outcome for rank in ranks if (outcome := rank.outcome(spec, node))]
    return combined_outcome(outcomes) if n_ended == len(ranks) or any(o.is_failure for o in outcomes) else None


def start_rank(spec: LaunchSpec, node: Node, local_rank: int, inbox: Inbox) -> RankProcess:
    """Start a rank, and threads that put its reports and its printed lines into the inbox; return its process."""
    number = node.first_rank + local_rank
    pipe, report_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *spec.command, str(report_fd), spec.train_toml],
        env=rank_environment(spec, node, local_rank, os.environ),
        cwd=spec.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(report_fd,),
        start_new_session=True,  # a Ctrl-C in the terminal of a local cluster goes to the driver alone
    )
    os.close(report_fd)
    streams = ((read_reports, os.fdopen(pipe, "rb")), (read_text, process.stdout))
    readers = tuple(threading.Thread(target=f, args=(stream, number, inbox), daemon=True) for f, stream in streams)
    for reader in readers:
        reader.start()
    return RankProcess(number, process, readers)


def read_reports(stream: IO[bytes], rank: int, inbox: Inbox) -> None:
    """Put the reports of a rank into the inbox."""
    with stream:
        for line in stream:
            if line.endswith(b"\n"):  # otherwise the rank was killed while it wrote the line
                inbox.put((rank, json.loads(line)))


def read_text(stream: IO[bytes], rank: int, inbox: Inbox) -> None:
    """Put the lines that a rank prints into the inbox. While the inbox is full, count the lines instead."""
    n_dropped = 0
    with stream:
        while line := stream.readline(MAX_LINE_BYTES):
            if inbox.qsize() >= MAX_LINES:
                n_dropped += 1
                continue
            if n_dropped:
                inbox.put((rank, {"text": f"... {n_dropped} lines left out"}))
            inbox.put((rank, {"text": line.decode(errors="replace").rstrip()}))
            n_dropped = 0


def rank_environment(spec: LaunchSpec, node: Node, local_rank: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank: that of the worker, with rank, devices, threads, network and rendezvous set.

    It lacks MASTER_ADDR, with which torch would listen on every interface, and the settings of Dask, which may hold
    the key of the cluster.
    """
    base = {k: v for k, v in inherited.items() if not k.startswith(("MASTER_", "DASK_", RENDEZVOUS))}
    numbers = {
        "RANK": node.first_rank + local_rank,
        "WORLD_SIZE": sum(each.ranks for each in spec.nodes),
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": node.ranks,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), node.threads),
        "PYTHONUNBUFFERED": 1,
    }
    host = {RENDEZVOUS_HOST: spec.rendezvous_host} if spec.rendezvous_host else {}
    rendezvous = {RENDEZVOUS: spec.rendezvous} | host
    devices = {} if node.devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(node.devices)}
    network = {"GLOO_SOCKET_IFNAME": node.interface, "NCCL_SOCKET_IFNAME": f"={node.interface}"}
    numbers_as_text = {name: str(number) for name, number in numbers.items()}
    return {**base, **numbers_as_text, **rendezvous, **devices, **network, "OMP_WAIT_POLICY": "PASSIVE"}
