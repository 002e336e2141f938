"""A cluster with separate workers for cutting and for inference."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

from skyclass.engine.cluster import worker_pool


@contextmanager
def split_client() -> Iterator[Client]:
    """Give a client of one CPU worker and one worker with the resource GPU=1, which stands in for a GPU."""
    gpu = {"threads_per_worker": 1, "resources": {"GPU": 1}}
    local = {"n_workers": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**local, **gpu) as pool, Client(pool) as client:
        with worker_pool(pool.scheduler_address, 1, "CPU=1", "2GB"):
            client.wait_for_workers(2)
            yield client
