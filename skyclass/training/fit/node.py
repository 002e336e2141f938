"""A node of a launched training: the Dask task that starts its ranks, publishes what they report and ends them.

A rank reports JSON lines through a pipe: `{}` as a sign of life, `{"watch": record}` for a record of the training,
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
TICK_S = 0.5
BEAT_S = 2.0
"""Seconds between two signs of life of a rank."""
LINE_BYTES, LINES_A_TICK = 1_000, 200
"""Bounds on the text of ranks that a node publishes: it drops what exceeds them, and says how much."""
Report = dict[str, Any]
Inbox = SimpleQueue[tuple[int, Report]]
"""What ranks report, with the number of the rank."""


@dataclass(frozen=True)
class Node:
    """One node of a job: a Dask worker and the ranks that it starts."""

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
class Job:
    """What each node must know of a training."""

    command: tuple[str, ...]
    """Arguments of Python for a rank; the number of its pipe and `train_toml` follow."""
    train_toml: str
    folder: str
    """Working directory of the ranks."""
    nodes: tuple[Node, ...]
    rendezvous_host: str | None
    """Address on which rank 0 listens; None where the ranks meet through a file."""
    silent_s: float
    """Silence after which a node or a rank counts as dead."""
    grace_s: float
    """Time for ranks to write a checkpoint and end."""
    rendezvous: str = ""
    """A path in a private folder that no attempt has used before."""
    topic: str = ""
    """Name of the Dask events of this attempt."""


@dataclass(frozen=True)
class Ending:
    """How a rank, a node or an attempt ended; `lost_peer` when a rank knew only that another rank is gone."""

    how: Literal["done", "failed", "refused", "interrupted"]
    reason: str = ""
    lost_peer: bool = False

    @property
    def is_failure(self) -> bool:
        """True where the other ranks cannot go on."""
        return self.how in ("failed", "refused")


ENDINGS: dict[int, Literal["done", "refused", "interrupted"]] = {0: "done", 2: "refused", 4: "interrupted"}
"""By exit code; any other code is a failure."""


def verdict(endings: Collection[Ending]) -> Ending:
    """Return how all ended together: causes go before consequences, and all causes are named."""
    failures = [e for e in endings if e.is_failure]
    causes = [e for e in failures if not e.lost_peer] or failures or [e for e in endings if e.how == "interrupted"]
    if not causes:
        return Ending("done")
    how = "refused" if any(e.how == "refused" for e in causes) else causes[0].how
    return Ending(how, "; ".join(dict.fromkeys(e.reason for e in causes)), all(e.lost_peer for e in causes))


@dataclass
class Rank:
    """A process of this node, and what it has reported."""

    number: int
    process: subprocess.Popen[bytes]
    readers: tuple[threading.Thread, ...]
    heard: Report = field(default_factory=dict)
    silent_s: float = 0.0

    def has_ended(self) -> bool:
        """Return whether the process has ended and all that it wrote is read."""
        if self.process.poll() is None:
            return False
        for reader in self.readers:
            reader.join(BEAT_S)  # in vain where a child of the rank has inherited its output
        return True

    def ending(self, job: Job, node: Node) -> Ending | None:
        """Return how the rank ended; None while it lives. A rank that is silent for too long counts as failed."""
        name, code = f"rank {self.number} on {node.name}", self.process.returncode
        if code is None and self.silent_s < job.silent_s:
            return None
        if code is None:
            return Ending("failed", f"{name} has been silent for {self.silent_s:.0f} s: it is stopped or frozen")
        if code < 0:
            return Ending("failed", f"{name} was killed by {signal.Signals(-code).name}")
        reason = self.heard.get("error", f"ended with code {code}")
        return Ending(ENDINGS.get(code, "failed"), f"{name}: {reason}", self.heard.get("lost_peer", False))


def run_node(job: Job, index: int) -> None:
    """Run the ranks of a node until all have ended, one has failed, or this task is cancelled: the Dask task."""
    from distributed import get_worker  # here, not above: a rank imports this file, too

    worker, node, inbox = get_worker(), job.nodes[index], Inbox()
    key = worker.get_current_task()
    ranks: list[Rank] = []

    def publish(reports: list[tuple[int, Report]], ending: Ending | None = None) -> None:
        event = {"node": index, "reports": reports, "ending": ending and asdict(ending)}
        worker.log_event(job.topic, event)

    try:
        for local_rank in range(node.ranks):
            ranks.append(start_rank(job, node, local_rank, inbox))
        ending, stop_at = None, math.inf
        while ending is None:
            time.sleep(TICK_S)
            ending = listen(job, node, ranks, inbox, publish)
            if stop_at == math.inf and not is_wanted(worker, key):
                stop_at = time.monotonic() + job.grace_s
                for rank in ranks:
                    rank.process.terminate()
            if time.monotonic() > stop_at:
                ending = Ending("interrupted", f"the ranks on {node.name} did not end in {job.grace_s:.0f} s")
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
    publish([], ending)


def is_wanted(worker: Worker, key: Any) -> bool:
    """Return whether the driver still waits for a task: Dask cancels it when the driver asks for that, or dies."""
    task = worker.state.tasks.get(key)
    return (
        task is not None and task.state in ("executing", "long-running") and worker.status.name in ("running", "paused")
    )


def listen(
    job: Job,
    node: Node,
    ranks: list[Rank],
    inbox: Inbox,
    publish: Callable[[list[tuple[int, Report]]], None],
) -> Ending | None:
    """Publish what the ranks have reported; return how they ended together, None while they go on."""
    n_ended = sum([rank.has_ended() for rank in ranks])
    reports = [inbox.get() for _ in range(inbox.qsize())]
    publish([(number, report) for number, report in reports if "watch" in report or "text" in report])
    for rank in ranks:
        rank.silent_s += TICK_S
    for number, report in reports:
        rank = ranks[number - node.first_rank]
        rank.silent_s = 0.0
        rank.heard |= report
    endings = [ending for rank in ranks if (ending := rank.ending(job, node))]
    return verdict(endings) if n_ended == len(ranks) or any(e.is_failure for e in endings) else None


def start_rank(job: Job, node: Node, local_rank: int, inbox: Inbox) -> Rank:
    """Start a rank; threads put what it reports and prints into the inbox."""
    number = node.first_rank + local_rank
    pipe, report_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *job.command, str(report_fd), job.train_toml],
        env=rank_environment(job, node, local_rank, os.environ),
        cwd=job.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(report_fd,),
        start_new_session=True,  # a Ctrl-C in the terminal of a local cluster is for the driver alone
    )
    os.close(report_fd)
    streams = ((read_reports, os.fdopen(pipe, "rb")), (read_text, process.stdout))
    readers = tuple(threading.Thread(target=f, args=(stream, number, inbox), daemon=True) for f, stream in streams)
    for reader in readers:
        reader.start()
    return Rank(number, process, readers)


def read_reports(stream: IO[bytes], rank: int, inbox: Inbox) -> None:
    """Put the reports of a rank into the inbox."""
    with stream:
        for line in stream:
            if line.endswith(b"\n"):  # else the rank was killed while it wrote
                inbox.put((rank, json.loads(line)))


def read_text(stream: IO[bytes], rank: int, inbox: Inbox) -> None:
    """Put the lines that a rank prints into the inbox; drop them, and say how many, while too many wait there."""
    dropped = 0
    with stream:
        while line := stream.readline(LINE_BYTES):
            if inbox.qsize() >= LINES_A_TICK:
                dropped += 1
                continue
            if dropped:
                inbox.put((rank, {"text": f"... {dropped} lines left out"}))
            inbox.put((rank, {"text": line.decode(errors="replace").rstrip()}))
            dropped = 0


def rank_environment(job: Job, node: Node, local_rank: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank: that of the worker, with rank, devices, threads, network and rendezvous set.

    It lacks MASTER_ADDR, for which torch would listen on every interface, and Dask's settings, which may hold the key
    of the cluster.
    """
    kept = {k: v for k, v in inherited.items() if not k.startswith(("MASTER_", "DASK_", RENDEZVOUS))}
    numbers = {
        "RANK": node.first_rank + local_rank,
        "WORLD_SIZE": sum(each.ranks for each in job.nodes),
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": node.ranks,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), node.threads),
        "PYTHONUNBUFFERED": 1,
    }
    meeting = {RENDEZVOUS: job.rendezvous} | ({RENDEZVOUS_HOST: job.rendezvous_host} if job.rendezvous_host else {})
    devices = {} if node.devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(node.devices)}
    network = {"GLOO_SOCKET_IFNAME": node.interface, "NCCL_SOCKET_IFNAME": f"={node.interface}"}
    numbers_as_text = {name: str(number) for name, number in numbers.items()}
    return {**kept, **numbers_as_text, **meeting, **devices, **network, "OMP_WAIT_POLICY": "PASSIVE"}
