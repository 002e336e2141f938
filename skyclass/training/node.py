"""One node of a launched training: its torchrun, what it says, and how it ended. Runs in a task of a Dask worker.

run_node(job, index) -> torchrun on a leash -> lines to the desk -> Ending
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import psutil
from distributed import Queue, Variable

from ..errors import ConfigError
from .leash import MARK, sweep

TRAIN = ("-m", "skyclass", "train")
TICK_S = 1.0
CALL_S = 10
"""Patience of a node with the scheduler: below `Limits.silent_s`, so that one slow answer is not a dead node."""
STOP = -1
"""What the pulse shows when the nodes are to stop."""
LINE_CHARS, LINES_A_TICK, LINES_WAITING, NEWS_WAITING = 1_000, 200, 2_000, 64
"""Bounds on the log lines under way: what is above them is left out, and its number told. The news of a node is one
a tick, so a driver that is gone is known to be before they fill the queue."""
PEER_GRACE_S = 5.0
"""How long the driver waits for the cause after a rank has said only that another rank is gone."""
WRONG_INPUT = 2
"""Exit code of skyclass for input that cannot be used: starting the rank again would not help."""
SHELL_SIGNAL = 128

ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)", re.DOTALL)
FAILED = re.compile(r"(?!\[rank ).*failed \(exitcode: (-?\d+)\)")
OF_A_RANK = re.compile(r"\[rank (\d+)\] ?(?:\[rank\d+\]: ?)?(.*)")
ERROR = re.compile(r"skyclass: .+|(?:\w+\.)*\w*(?:Error|Exception)\b.*")
LOST_PEER = re.compile(r"another rank is gone|connection (closed|reset|refused)|timed? ?out", re.IGNORECASE)
OWN_NEWS = re.compile(
    r"[WEF]\d{4} .*?\] (?P<text>(?!Received|Sending).*)|(?!.*SignalException)(?=\w)(?P<error>.*Error\b.*)"
)
"""What of torchrun's own words is worth showing: not its tracebacks, nor that it obeys."""
ASKED_TO_STOP = re.compile(r"skyclass: (training )?(stopped|interrupted)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """How long one waits for another, in seconds: together less than two minutes."""

    silent_s: float = 45.0
    """Silence after which a node, or the driver, is given up."""
    grace_s: float = 30.0
    """Time for ranks to write a checkpoint and end; torchrun itself allows 30 s."""
    join_s: float = 120.0
    """Time for all nodes to begin."""


@dataclass(frozen=True)
class Machine:
    """What a worker says of where it runs; `visible` is its CUDA_VISIBLE_DEVICES, if set."""

    visible: str | None
    gpus: int
    cores: int


@dataclass(frozen=True)
class Node:
    """One node of a job: a Dask worker and the ranks that torchrun starts beside it."""

    name: str
    address: str
    host: str
    ranks: int
    threads: int
    devices: tuple[str, ...] | None
    """CUDA devices of its ranks; None leaves the environment as it is."""


@dataclass(frozen=True)
class NodeJob:
    """All that a node must know; the same for each."""

    id: str
    command: tuple[str, ...]
    """What a rank runs, after `torch.distributed.run`'s own arguments."""
    must_exist: tuple[str, ...]
    folder: str
    nodes: tuple[Node, ...]
    port: int
    max_restarts: int
    limits: Limits


@dataclass(frozen=True)
class Ending:
    """How torchrun ended on a node, and why in words; `peer` when all it knew was that another rank is gone."""

    how: Literal["done", "failed", "refused", "stopped"]
    reason: str = ""
    peer: bool = False


def torchrun_command(job: NodeJob, node: Node, python: str, log_dir: str) -> list[str]:
    """Return the command line of torchrun on a node: they meet on the first node, each known by its Dask address."""
    first = job.nodes[0]
    endpoint = f"[{first.host}]:{job.port}" if ":" in first.host else f"{first.host}:{job.port}"
    meeting = {"is_host": str(node == first).lower(), "join_timeout": int(job.limits.join_s), "read_timeout": 60}
    options = {
        "--nnodes": len(job.nodes),
        "--nproc-per-node": node.ranks,
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": endpoint,
        "--rdzv-id": job.id,
        "--rdzv-conf": ",".join(f"{key}={value}" for key, value in meeting.items()),
        "--local-addr": node.host,
        "--max-restarts": job.max_restarts,
        "--tee": 3,
        "--log-dir": log_dir,
    }
    words = [str(word) for option in options.items() for word in option]
    return [python, "-m", "torch.distributed.run", *words, *job.command]


def rank_environment(job: NodeJob, node: Node, inherited: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """Return the environment of a node's torchrun: that of the worker, with devices, threads and network set.

    Left alone, gloo looks its own host name up, which on many machines gives 127.0.1.1, where no other node finds it;
    and torchrun keeps one store for all attempts, in which restarted ranks find the addresses of those that died.
    """
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}
    fixed = {
        MARK: mark_of(job, node),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(node.threads)),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "150",
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    devices = {} if node.devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(node.devices)}
    return {**network, **inherited, **fixed, **devices}


def mark_of(job: NodeJob, node: Node) -> str:
    """Return what marks the processes of a node of a job."""
    return f"{job.id}-{job.nodes.index(node)}"


def interface_of(host: str) -> str | None:
    """Return the name of this machine's network interface with an address; None when none has it."""
    every = psutil.net_if_addrs().items()
    return next((name for name, addresses in every if any(a.address == host for a in addresses)), None)


def run_node(job: NodeJob, index: int) -> Ending:
    """Return how torchrun ended on this node: the Dask task.

    It ends as well when the driver says stop, or has not been heard of for `Limits.silent_s`.
    """
    node = job.nodes[index]
    if absent := [path for path in (job.folder, *job.must_exist) if not Path(path).exists()]:
        raise ConfigError(f"{node.name} does not see {', '.join(absent)}: use a folder that all nodes share")
    news, ear, log = Queue(job.id, maxsize=NEWS_WAITING * len(job.nodes)), Ear(job), Log()
    if ear.says_stop():
        return Ending("stopped")
    tell(news, index, log, begun=True)
    with torchrun(job, node) as leash:
        reader = threading.Thread(target=log.read, args=(leash.stdout,), daemon=True)
        reader.start()
        stopped = follow(leash, ear, lambda: tell(news, index, log), log)
        reader.join(CALL_S)
    while log.waiting:
        tell(news, index, log)
    news.close()
    return ending_of(list(log.tail), leash.returncode, stopped, node.name)


def follow(leash: subprocess.Popen[str], ear: Ear, report: Callable[[], None], log: Log) -> bool:
    """Report until torchrun has ended; return whether it ended because the driver said so, or said nothing."""
    stopped = False
    while leash.poll() is None:
        report()
        stopped = stopped or ear.says_stop()
        if stopped or log.refused():
            slip(leash)
        wait_for(leash, TICK_S)
    return stopped


@contextmanager
def torchrun(job: NodeJob, node: Node) -> Iterator[subprocess.Popen[str]]:
    """Give the leash with torchrun on it, standard output and error as one; nothing of it is left after the block."""
    mark = mark_of(job, node)
    log_dir = str(Path(tempfile.gettempdir()) / mark)
    hold = [sys.executable, "-m", "skyclass.training.leash", log_dir, str(job.limits.grace_s)]
    leash = subprocess.Popen(
        hold + torchrun_command(job, node, sys.executable, log_dir),
        env=rank_environment(job, node, os.environ, interface_of(node.host)),
        cwd=job.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C in the terminal of a local cluster is for the driver alone
    )
    try:
        yield leash
    finally:
        slip(leash)
        if not wait_for(leash, job.limits.grace_s + CALL_S):
            leash.kill()
        sweep(mark)
        leash.wait()


def slip(leash: subprocess.Popen[str]) -> None:
    """Let go of the leash: it ends torchrun, with some grace."""
    if leash.stdin and not leash.stdin.closed:
        leash.stdin.close()


def wait_for(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait for the end of a process, and return whether it came in time."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def tell(news: Queue, index: int, log: Log, begun: bool = False) -> None:
    """Send the driver a sign of life and the next lines; lines that find no room in time are left out."""
    lines = log.take()
    try:
        news.put({"node": index, "lines": lines, "begun": begun}, timeout=CALL_S / 2, callback_timeout=CALL_S)
    except OSError:  # full, or no scheduler: silence tells the driver, and lost lines are counted
        log.left_out += len(lines)


def ending_of(lines: Sequence[str], code: int, stopped: bool, name: str) -> Ending:
    """Return how a node ended by torchrun's exit code and last lines: the first rank to fail, and its error line."""
    if code == 0:
        return Ending("done")
    how: Literal["stopped", "refused", "failed"] = "refused" if refused(lines) else "failed"
    if stopped:
        how = "stopped"
    rank, rank_code = root_cause(lines)
    error = error_line(lines, rank)
    if rank_code is not None and rank_code < 0 and rank_code != -signal.SIGTERM:
        return Ending(how, f"rank {rank} on {name} was killed by {signal_name(-rank_code)}")
    if error:
        return Ending(how, f"rank {error.rank} on {name}: {error.text}", bool(LOST_PEER.search(error.text)))
    return Ending(how, "" if stopped else f"torchrun on {name} {own_end(lines, code)}")


def root_cause(lines: Iterable[str]) -> tuple[str | None, int | None]:
    """Return (rank, exit code) of the first rank that failed, by torchrun's last words; None where it had none."""
    found = ROOT_CAUSE.findall("\n".join(lines))
    return (found[-1][0], int(found[-1][1])) if found else (None, None)


def error_line(lines: Iterable[str], rank: str | None) -> RankLine | None:
    """Return the last error line of a rank, else of any; one that says only that another rank is gone comes last."""
    said = [RankLine(*match.groups()) for match in map(OF_A_RANK.fullmatch, lines) if match]
    errors = [line for line in said if ERROR.match(line.text) and not ASKED_TO_STOP.match(line.text)]
    return max(errors, key=lambda line: (not LOST_PEER.search(line.text), line.rank == rank), default=None)


def own_end(lines: Iterable[str], code: int) -> str:
    """Return how torchrun itself ended, when no rank said why."""
    if code > SHELL_SIGNAL:
        return f"was killed by {signal_name(code - SHELL_SIGNAL)}"
    own = [line for line in lines if not OF_A_RANK.fullmatch(line)]
    last = [line for line in own if ERROR.match(line)] or [line for line in own if line.strip()]
    return f"ended with code {code}" + (f": {last[-1]}" if last else "")


def refused(lines: Iterable[str]) -> bool:
    """Return whether a rank found its input unusable, by the exit code that torchrun tells."""
    codes = [match[1] for match in map(FAILED.match, lines) if match]
    return str(WRONG_INPUT) in codes


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL."""
    known = {member.value: member.name for member in signal.Signals}
    return known.get(number, f"signal {number}")


class RankLine(NamedTuple):
    """A line that a rank has printed."""

    rank: str
    text: str


class Ear:
    """What a node hears of the driver."""

    def __init__(self, job: NodeJob) -> None:
        self.pulse, self.silent_s = Variable(job.id), job.limits.silent_s
        self.last: int | None = None
        self.heard = time.monotonic()

    def says_stop(self) -> bool:
        """Return whether the driver says stop, is done and gone, or has said nothing new for too long."""
        try:
            beat = self.pulse.get(timeout=CALL_S / 2, callback_timeout=CALL_S)
        except OSError:  # no answer is no news
            beat = self.last
        if beat != self.last:
            self.last, self.heard = beat, time.monotonic()
        return beat == STOP or time.monotonic() - self.heard > self.silent_s


class Log:
    """The lines of a node: those on their way, how many did not fit, and the last ones."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.tail: deque[str] = deque(maxlen=LINES_WAITING)
        self.left_out = 0

    def read(self, stream: IO[str]) -> None:
        """Read to the end of a stream: a writer that nobody reads would stand still."""
        while line := stream.readline(LINE_CHARS):
            self.add(line.rstrip())

    def add(self, line: str) -> None:
        """Keep a line, or count it when there are too many."""
        self.tail.append(line)
        if not OF_A_RANK.fullmatch(line):
            if not (news := OWN_NEWS.fullmatch(line)):
                return
            line = news["text"] or news["error"]
        if len(self.waiting) < LINES_WAITING:
            self.waiting.append(line)
        else:
            self.left_out += 1

    def take(self) -> list[str]:
        """Return the next lines to send, after the number of those that were left out."""
        lines = [self.waiting.popleft() for _ in range(min(len(self.waiting), LINES_A_TICK))]
        missed, self.left_out = self.left_out, 0
        return [f"... {missed} lines left out", *lines] if missed else lines

    def refused(self) -> bool:
        """Return whether a rank has found its input unusable so far."""
        return refused(list(self.tail))
