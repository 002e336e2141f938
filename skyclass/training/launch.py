"""Train on the nodes of a Dask cluster: Dask starts and watches, torchrun trains.

One task a node runs `torch.distributed.run` there and sends its log lines home. Driver and nodes hear of each other
every second, through a queue and a variable on the scheduler; who falls silent is given up, so that neither a dead
node nor a dead driver leaves anybody waiting.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import psutil
from dask.system import CPU_COUNT
from distributed import Client, Future, Queue, Variable
from distributed.comm.addressing import get_address_host

from ..cluster import count_gpus
from ..config import read_toml
from ..errors import ConfigError, SkyclassError
from .leash import MARK, sweep

Echo = Callable[[str], object]

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
class Job:
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
) -> Job:
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
    return Job(
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


def torchrun_command(job: Job, node: Node, python: str, log_dir: str) -> list[str]:
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


def rank_environment(job: Job, node: Node, inherited: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """Return the environment of a node's torchrun: that of the worker, with devices, threads and network set.

    Left alone, gloo looks its own host name up, which on many machines gives 127.0.1.1, where no other node finds it;
    and torchrun keeps one store for all attempts, in which restarted ranks find the addresses of those that died.
    """
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}
    fixed = {
        MARK: mark_of(job, node),
        "OMP_NUM_THREADS": str(node.threads),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "150",
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    devices = {} if node.devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(node.devices)}
    return {**network, **inherited, **fixed, **devices}


def mark_of(job: Job, node: Node) -> str:
    """Return what marks the processes of a node of a job."""
    return f"{job.id}-{job.nodes.index(node)}"


def interface_of(host: str) -> str | None:
    """Return the name of this machine's network interface with an address; None when none has it."""
    every = psutil.net_if_addrs().items()
    return next((name for name, addresses in every if any(a.address == host for a in addresses)), None)


def run_node(job: Job, index: int) -> Ending:
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
def torchrun(job: Job, node: Node) -> Iterator[subprocess.Popen[str]]:
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


@contextmanager
def submitted(client: Client, job: Job, echo: Echo) -> Iterator[Desk]:
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
        return
    causes = [e for e in failed if not e.peer] or [e for e in endings if e.reason and not e.peer] or failed
    kind = ConfigError if any(e.how == "refused" for e in causes) else SkyclassError
    raise kind("training failed: " + "; ".join(dict.fromkeys(e.reason for e in causes)))


class RankLine(NamedTuple):
    """A line that a rank has printed."""

    rank: str
    text: str


class Ear:
    """What a node hears of the driver."""

    def __init__(self, job: Job) -> None:
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


@dataclass
class Desk:
    """The driver's side of a job: who was heard when, and how it ended where."""

    client: Client
    job: Job
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
