"""The ranks that train one network: their numbers, their rendezvous and their exchange of numbers.

The same code runs alone, under torchrun, under srun and under `launch.py`. It reads its rank from the environment. A
global batch is cut into one slice for each rank, the loss is divided by the weight of the whole batch, and BatchNorm
uses the statistics of the whole batch. So two ranks take the same step as one, to rounding. Ranks exchange numbers
only: the object collectives of torch would unpickle, and so execute, the data of a peer.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ...errors import ConfigError, PeerLost
from ...model.devices import resolve_device
from .node import RENDEZVOUS, RENDEZVOUS_HOST

TIMEOUT_S = 90
"""Time that a rank waits for another: a dead node is reported within two minutes."""
PORT = "29511"


@dataclass(frozen=True)
class Group:
    """One rank of `world`. A process that trains alone is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True for the rank that writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return the part of this rank in a batch of n rows. The parts are disjoint and cover the batch."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any rank has set it. Without flags, wait for all ranks."""
        if self.world == 1:
            return list(flags)
        total = torch.tensor([*map(float, flags), 0.0], device=self.device)
        dist.all_reduce(total)
        return [bool(n) for n in total.tolist()[:-1]]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: float) -> list[float]:
        """Return the value of every rank, in the order of the ranks."""
        values = torch.zeros(self.world, dtype=torch.float64, device=self.device)
        values[self.rank] = value
        return [float(n) for n in self.sum(values).tolist()]

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the ranks, or the network itself for one rank."""
        if self.world == 1:
            return network
        known = inspect.signature(DistributedDataParallel).parameters  # renamed in torch 2.13
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False}  # BatchNorm has the same state on all ranks
        # Otherwise torch changes its buckets after the first step. A sum over three or more ranks would then round
        # differently in the first step after a resume than in an uninterrupted run.
        options["find_unused_parameters"] = True
        return DistributedDataParallel(network, **options)


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the other ranks of a training during the block.

    If a rank does not answer for `TIMEOUT_S`, the others raise `PeerLost`.
    """
    rank, world, local_rank = rank_numbers(os.environ)
    own_device = rank_device(device, local_rank, world)
    if world == 1:
        yield Group(device=own_device)
        return
    wait = timedelta(seconds=TIMEOUT_S)
    try:
        store = rendezvous_store(rank, world, wait)
        backend = "nccl" if own_device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, timeout=wait, rank=rank, world_size=world)
        yield Group(rank, world, own_device)
    except (dist.DistError, RuntimeError) as error:
        if not _is_lost_peer(error):
            raise
        raise PeerLost(
            f"rank {rank} of {world}: another rank is gone or did not answer for {TIMEOUT_S} s "
            f"({str(error).splitlines()[0]}); run the same command again to resume from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rendezvous_store(rank: int, world: int, wait: timedelta) -> Store:
    """Return the store through which the ranks find each other.

    `launch.py` sets a new file in a private folder. Where the file system has no locks, it also sets the only address
    on which rank 0 listens. torchrun and srun set MASTER_ADDR, and their store listens on every interface.
    """
    path, host = os.environ.get(RENDEZVOUS), os.environ.get(RENDEZVOUS_HOST)
    if path is None:
        return store_of_this_start(next(rendezvous("env://", rank, world, timeout=wait))[0], rank, world)
    store = bound_store(Path(path), host, rank, wait) if host else FileStore(path, world)
    store.set_timeout(wait)
    return store


def bound_store(port_file: Path, host: str, rank: int, wait: timedelta) -> Store:
    """Return a store that rank 0 serves on one address only. The other ranks read its port from a file."""
    if rank == 0:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = listener.getsockname()[1]
        unfinished = port_file.with_suffix(".new")
        unfinished.write_text(str(port))
        unfinished.rename(port_file)
        fd = listener.detach()
        return TCPStore(host, port, None, True, wait, wait_for_workers=False, master_listen_fd=fd)
    deadline = time.monotonic() + wait.total_seconds()
    while not port_file.exists():
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"timed out waiting for rank 0 to write {port_file}")
        time.sleep(0.1)
    return TCPStore(host, int(port_file.read_text()), None, False, wait, wait_for_workers=False)


def store_of_this_start(store: Store, rank: int, world: int) -> Store:
    """Return a part of the store that only the ranks of this start use.

    After a restart torchrun passes on the same store, with the addresses of the dead ranks. A rank that reads one of
    them waits for a port on which no process listens. So each rank sets a new random name, and rank 0 publishes the
    list of names that it has read. A rank that finds its own name in the list confirms it, and all continue once rank 0
    has the confirmation of every rank.
    """
    name, deadline = uuid4().hex, time.monotonic() + TIMEOUT_S
    store.set(f"hello/{rank}", name)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("list", json.dumps([name, *(store.get(f"hello/{r}").decode() for r in range(1, world))]))
        names: list[str] = json.loads(store.get("list"))
        start = hashlib.sha256(" ".join(names).encode()).hexdigest()
        if rank and names[rank] == name:
            store.set(f"{start}/{rank}", "here")
        if rank == 0 and store.check([f"{start}/{r}" for r in range(1, world)]):
            store.set(f"{start}/go", "all here")
        if names[rank] == name and store.check([f"{start}/go"]):
            return PrefixStore(start, store)
        time.sleep(0.05)
    raise dist.DistStoreError(f"not all of {world} ranks came in {TIMEOUT_S} s")


LOST = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "not all of",
)


def _is_lost_peer(error: Exception) -> bool:
    return any(text in str(error).lower() for text in LOST)


def rank_numbers(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (rank, world size, rank on this node) as the launcher sets them; (0, 1, 0) without a launcher.

    Under srun this also sets MASTER_ADDR and MASTER_PORT to the first node of the step, unless they are set.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        os.environ.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        os.environ.setdefault("MASTER_PORT", PORT)
    else:
        return 0, 1, 0
    if absent := [name for name in names if name not in environment]:
        raise ConfigError(f"{', '.join(absent)} is not set beside {names[0]}: start the ranks with torchrun or srun")
    rank, world, local_rank = (int(environment[name]) for name in names)
    return rank, world, local_rank


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list such as gpu[03-07,11]."""
    if "[" not in node_list:
        return node_list.split(",")[0]
    done = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"SLURM_STEP_NODELIST = {node_list!r}: scontrol cannot read it; set MASTER_ADDR yourself")
    return done.stdout.split()[0]


def rank_device(device: str, local_rank: int, world: int) -> str:
    """Return the device of one rank of a node. On CUDA it is the only visible device, or the one of its local rank."""
    kind = resolve_device(device)
    if world == 1 or kind == "cpu":
        return kind
    if kind != "cuda":
        raise ConfigError(f"device = {device!r} with {world} ranks: they cannot share a GPU; choose cuda or auto")
    visible = torch.cuda.device_count()
    # srun may make a different single device visible to each rank
    number = 0 if visible == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else local_rank
    if number >= visible:
        raise ConfigError(
            f"rank {local_rank} of this node has no GPU of its own: torch sees {visible}; "
            "start as many ranks as there are GPUs"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
