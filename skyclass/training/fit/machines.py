"""The machines of a Dask cluster, and the nodes of a training that they become."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dask.system import CPU_COUNT
from distributed import Worker
from distributed.comm.addressing import get_address_host

from ...engine.cluster import count_gpus
from ...errors import ConfigError
from ...text import counted
from ..locks import file_lock
from .node import Node

LOCK = "lock"
"""Name of the file in the rendezvous folder that the driver locks."""


@dataclass(frozen=True)
class Machine:
    """The machine of a worker, as the worker sees it."""

    visible: str | None
    """CUDA_VISIBLE_DEVICES, if set."""
    gpus: int
    cores: int
    interface: str | None = "lo"
    """Network interface that has the worker's address."""
    absent: tuple[str, ...] = ()
    """Paths of the training that the worker cannot read."""
    sees_lock: bool = True
    """Whether the lock of the driver is visible to the worker."""


def describe_machine(paths: Sequence[str], dask_worker: Worker) -> Machine:
    """Return the machine of a worker. The last of `paths` is the folder with the lock of the driver."""
    absent = tuple(path for path in paths if not os.access(path, os.R_OK))
    host = get_address_host(dask_worker.address)
    interfaces = psutil.net_if_addrs().items()
    interface = next((name for name, addresses in interfaces if any(a.address == host for a in addresses)), None)
    sees_lock = not absent and is_locked(Path(paths[-1]) / LOCK)
    return Machine(os.environ.get("CUDA_VISIBLE_DEVICES"), count_gpus(), CPU_COUNT, interface, absent, sees_lock)


def is_locked(path: Path) -> bool:
    """Return whether another process, on this machine or another, holds the lock of a file."""
    with file_lock(path, wait=False) as state:
        return state == "held"


def workers_by_host(workers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the worker addresses of each host. GPU workers come last, because a model fills their memory."""
    hosts: dict[str, list[str]] = {}
    for address in sorted(workers, key=lambda a: (bool(workers[a]["resources"].get("GPU")), a)):
        hosts.setdefault(get_address_host(address), []).append(address)
    return dict(sorted(hosts.items()))


def select_workers(hosts: Mapping[str, Sequence[str]], n_nodes: int | None) -> list[str]:
    """Return one worker address for each node; `ConfigError` for a cluster that has fewer.

    A machine is one node. On a cluster of one machine with `n_nodes`, every worker can be a node.
    """
    if not hosts:
        raise ConfigError("the cluster has no workers: start some, docs/clusters.md shows how")
    one_machine = len(hosts) == 1
    candidates = [a for addresses in hosts.values() for a in (addresses if one_machine and n_nodes else addresses[:1])]
    if n_nodes is not None and not 1 <= n_nodes <= len(candidates):
        size = (
            f"one machine with {counted(len(candidates), 'worker')}" if one_machine else f"{len(candidates)} machines"
        )
        raise ConfigError(
            f"nodes = {n_nodes}: the cluster is {size}; choose 1 to {len(candidates)}, or start more workers"
        )
    return candidates[:n_nodes]


def make_nodes(
    addresses: Sequence[str], machines: Mapping[str, Machine], ranks_per_node: int | None, on_cpu: bool
) -> tuple[Node, ...]:
    """Return the nodes with their devices and cores. Nodes on one machine share its devices and cores.

    `machines` has the machine of each node by worker address, and of the GPU workers on the same hosts.
    """
    hosts = {address: get_address_host(address) for address in machines}
    nodes: list[Node] = []
    for address in addresses:
        same_host = [a for a in addresses if hosts[a] == hosts[address]]
        host_devices = all_devices([m for a, m in machines.items() if hosts[a] == hosts[address]])
        devices = () if on_cpu else host_devices[same_host.index(address) :: len(same_host)]
        ranks = ranks_per_node or len(devices) or 1
        name = hosts[address] if len(same_host) == 1 else address
        if devices and ranks > len(devices):
            raise ConfigError(
                f"{ranks} ranks on {name}, which has {counted(len(devices), 'GPU')}: choose at most as many"
            )
        if host_devices and not (devices or on_cpu):
            raise ConfigError(f"no GPU of {hosts[address]} is left for {name}: choose fewer nodes, or device = 'cpu'")
        threads = max(1, machines[address].cores // (ranks * len(same_host)))
        first_rank = sum(node.ranks for node in nodes)
        visible = devices if devices or on_cpu else None
        interface = checked_interface(name, machines[address])
        nodes.append(Node(name, address, interface, first_rank, ranks, threads, visible))
    return tuple(nodes)


def checked_interface(name: str, machine: Machine) -> str:
    """Return the network interface of a machine; `ConfigError` for one that cannot take part in the training."""
    if machine.absent:
        raise ConfigError(f"{name} cannot read {', '.join(machine.absent)}: use a folder that all nodes share")
    if machine.interface is None:
        raise ConfigError(
            f"no network interface of {name} has this address: start `dask worker` with the address of an "
            "interface, by --host"
        )
    return machine.interface


def all_devices(workers: Sequence[Machine]) -> tuple[str, ...]:
    """Return the CUDA devices that the workers of one machine see together, in one order for all of them.

    dask-cuda rotates the list of each worker so that another device is first. Other programs start workers that see
    one device each.
    """
    lists = [worker.visible.split(",") for worker in workers if worker.visible is not None]
    names = dict.fromkeys(name.strip() for names in lists for name in names if name.strip() not in ("", "-1"))
    if not lists:
        return tuple(str(i) for i in range(max(worker.gpus for worker in workers)))
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else 1_000, name)))
