"""Several processes that train one network: who they are, what they share, and one BatchNorm for all of them.

The same code runs alone, under torchrun, under srun and where `launch.py` starts it; it reads its rank from the
environment. A global batch is cut into one slice a rank, the loss is divided by the weight of the whole batch and
BatchNorm sees all of it, so two ranks take the same step as one, to rounding. Ranks exchange numbers only: torch's
object collectives would unpickle, and so run, whatever a peer sends.
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
from ...model.classifier import resolve_device
from .node import RENDEZVOUS, RENDEZVOUS_HOST

TIMEOUT_S = 90
"""How long a rank waits for another before it gives up: a dead node is told within two minutes."""
PORT = "29511"


@dataclass(frozen=True)
class Group:
    """One rank among `world`; alone it is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True for the rank that writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return this rank's part of a batch of n: the parts are disjoint and cover it."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def any(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether it is up on any rank; without a flag, wait for all ranks."""
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
        """Return the number of every rank, in their order."""
        values = torch.zeros(self.world, dtype=torch.float64, device=self.device)
        values[self.rank] = value
        return [float(n) for n in self.sum(values).tolist()]

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the ranks; alone it is itself."""
        if self.world == 1:
            return network
        known = inspect.signature(DistributedDataParallel).parameters  # renamed in torch 2.13
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False}  # BatchNorm is one over all ranks
        # Else torch lays its buckets out anew after the first step, and a sum over three ranks or more rounds otherwise
        # in the first step after a resume than it did in the undisturbed run.
        options["find_unused_parameters"] = True
        return DistributedDataParallel(network, **options)


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join this process to the other ranks of its training; leave them at the end.

    A rank that does not answer for `TIMEOUT_S` raises `PeerLost` on the others.
    """
    rank, world, local_rank = place(os.environ)
    own = rank_device(device, local_rank, world)
    if world == 1:
        yield Group(device=own)
        return
    wait = timedelta(seconds=TIMEOUT_S)
    try:
        store = rendezvous_store(rank, world, wait)
        backend = "nccl" if own.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, timeout=wait, rank=rank, world_size=world)
        yield Group(rank, world, own)
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

    `launch.py` names a new file in a private folder; beside it, where the file system has no locks, the one address
    on which rank 0 listens. torchrun and srun name MASTER_ADDR: there a store listens on every interface.
    """
    path, host = os.environ.get(RENDEZVOUS), os.environ.get(RENDEZVOUS_HOST)
    if path is None:
        return agreed(next(rendezvous("env://", rank, world, timeout=wait))[0], rank, world)
    store = bound_store(Path(path), host, rank, wait) if host else FileStore(path, world)
    store.set_timeout(wait)
    return store


def bound_store(port_file: Path, host: str, rank: int, wait: timedelta) -> Store:
    """Return a store that rank 0 serves on one address only; the other ranks read its port from a file."""
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


def agreed(store: Store, rank: int, world: int) -> Store:
    """Return a part of the store that only the ranks of this very start use.

    After a restart torchrun hands out the same store again, where the addresses of the dead ranks still stand: a rank
    that reads one waits for a port that nobody listens on. So each rank names itself anew and rank 0 says whose
    names it has read; who is among them says so, and all go on once rank 0 has heard it of every one of them.
    """
    own, deadline = uuid4().hex, time.monotonic() + TIMEOUT_S
    store.set(f"hello/{rank}", own)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("list", json.dumps([own, *(store.get(f"hello/{r}").decode() for r in range(1, world))]))
        names: list[str] = json.loads(store.get("list"))
        start = hashlib.sha256(" ".join(names).encode()).hexdigest()
        if rank and names[rank] == own:
            store.set(f"{start}/{rank}", "here")
        if rank == 0 and store.check([f"{start}/{r}" for r in range(1, world)]):
            store.set(f"{start}/go", "all here")
        if names[rank] == own and store.check([f"{start}/go"]):
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
    return any(words in str(error).lower() for words in LOST)


def place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (rank, world size, rank on this node) as the launcher sets them; (0, 1, 0) without one.

    Under srun MASTER_ADDR and MASTER_PORT are set as well, to the first node of the step, unless they are given.
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
    """Return the device of one rank of a node: on CUDA each has its own, the only one it sees or that of its number."""
    kind = resolve_device(device)
    if world == 1 or kind == "cpu":
        return kind
    if kind != "cuda":
        raise ConfigError(f"device = {device!r} with {world} ranks: they cannot share a GPU; choose cuda or auto")
    visible = torch.cuda.device_count()
    own = 0 if visible == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else local_rank  # srun may show each its own only
    if own >= visible:
        raise ConfigError(
            f"rank {local_rank} of this node has no GPU of its own: torch sees {visible}; "
            "start as many ranks as there are GPUs"
        )
    torch.cuda.set_device(own)
    return f"cuda:{own}"


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all ranks, for CPUs too (torch's own SyncBatchNorm wants GPUs).

    Same parameters and buffers as the BatchNorm that it stands in for, so their states fit each other.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Any (N, C, ...) will do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        wide = x.float()
        count = wide.new_full((1,), x.numel() / x.shape[1])
        sums = _SumOverRanks.apply(torch.cat((wide.sum(axes), (wide * wide).sum(axes), count)))  # type: ignore[no-untyped-call]
        c = x.shape[1]
        n, mean = sums[-1], sums[:c] / sums[-1]
        variance = (sums[c : 2 * c] / n - mean * mean).clamp_min(0)
        self._remember(mean.detach(), (variance * n / (n - 1)).detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shape = (1, c) + (1,) * (x.ndim - 2)
        normal: Tensor = (wide * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
        return normal

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synced(network: nn.Module, group: Group) -> nn.Module:
    """Return the network with every BatchNorm made one over all ranks."""
    if group.world == 1:
        return network
    if group.device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return,no-untyped-call]
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, _like(child))
    return network


def _like(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> SyncedBatchNorm:
    twin = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    twin.load_state_dict(norm.state_dict())
    return twin
