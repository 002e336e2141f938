"""Engines whose rows must be equal."""

from distributed import Client

from skyclass.engine.cluster import worker_pool


def engine_workers(address: str, client: Client):
    """One CPU worker process beside the GPU stand-in, and the wait for it."""
    from contextlib import contextmanager

    @contextmanager
    def running():
        with worker_pool(address, 1, "CPU=1", "2GB"):
            client.wait_for_workers(2)
            yield

    return running()
