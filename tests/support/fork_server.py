"""A process beside each test process imports everything once; commands and workers are forked from it in milliseconds.

Workers of users are spawned: tests marked `spawn`, and all tests with the option --spawn, start them in that way.
"""

from __future__ import annotations

from multiprocessing import get_context

import pytest

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preloaded"])
METHOD = "distributed.worker.multiprocessing-method"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--spawn", action="store_true", help="start the workers of local clusters as for users")


@pytest.fixture(autouse=True)
def forked_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let local clusters fork their workers."""
    import distributed.utils  # not above: on import, Dask looks whether logging has handlers, which pytest adds late

    from skyclass.engine import cluster

    distributed.utils._forkserver_preload_set = True  # or Dask replaces the list of imports
    if not request.config.getoption("spawn") and not request.node.get_closest_marker("spawn"):
        monkeypatch.setitem(cluster.NOT_FOR_LOCAL, METHOD, "forkserver")
