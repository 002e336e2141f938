"""A run on a Dask cluster: workers checked and warmed up, partitions counted, tiles classified, catalogue published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import pyarrow as pa
from distributed import Client
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError

from ..errors import ClusterLost, SkyclassError
from ..model.devices import resolve_device
from ..run.config import RunConfig
from ..run.context import RunContext
from ..run.lease import hold_lease
from ..run.pipeline import publish_and_report
from ..run.prepare import choose_compilation, load_committed, open_run, plan_run
from ..run.progress import StartProgress, rich_progress
from ..run.report import RunReport
from ..run.stages import count_partition
from ..run.state import RunState
from .cluster import connect
from .tile_window import run_tiles
from .window import map_unordered
from .workers import (
    RESUMES,
    WarmUpPlugin,
    WorkerSetup,
    await_workers,
    check_worker_network,
    check_worker_versions,
    placement_of,
    register,
    warm_up_workers,
)

NOT_BEGUN = "no tile was begun: check the catalogue's disk on these workers, and run the same command again"


def classify(run: RunConfig, client: Client | None = None, watch: StartProgress = rich_progress) -> RunReport:
    """Return the report of a run on a cluster, and publish its catalogue as `run.out`/catalog.

    Without a client, the run starts or joins the cluster that its configuration names. Running the same configuration
    again resumes the run: committed tiles stay as they are. Raises `ConfigError` before any work for input that cannot
    be used.
    """
    with nullcontext(client) if client else cluster_of(run) as client, translate_dask_errors():
        await_workers(client, needs_gpu=run.device.startswith("cuda"))
        check_worker_versions(client)
        register(client, WorkerSetup())
        context, plan, table = plan_run(run, partial(count_on, client))
        placement = placement_of(client)
        check_worker_network(client, context, placement)
        context = choose_compilation(run, context, plan, partial(warm_up_workers, client, placement))
        register(client, WarmUpPlugin(context, placement))
        with hold_lease(context.folder) as lease:
            context = open_run(run, context, plan, table)
            state = RunState(context, plan, lease)
            with watch(state.resume(load_committed(run, context))) as state.reporter, state.noting_commits():
                run_tiles(client, state, state.pending, run.strip_sources, placement)
            return publish_and_report(run, context, state, partial(map_unordered, client))


def cluster_of(run: RunConfig) -> AbstractContextManager[Client]:
    """Return a context manager that gives a client of the cluster of a run.

    Raises `ConfigError` for a device that this machine lacks, because no worker of a local cluster can have it either.
    """
    if run.cluster == "local":
        resolve_device(run.device)
    return connect(run.cluster, run.workers, run.memory_limit, 0 if run.device == "cpu" else None)


@contextmanager
def translate_dask_errors() -> Iterator[None]:
    """Turn the errors that Dask raises when workers or the scheduler are gone into errors of skyclass."""
    try:
        yield
    except KilledWorker as error:
        # From counting, publishing or cutting a dataset; `map_unordered` has already repeated the task.
        raise SkyclassError(
            f"workers died in every attempt, perhaps for lack of memory (--memory-limit): {error}"
        ) from error
    except NoValidWorkerError as error:
        raise ClusterLost(f"no worker is left that could do the work: {error}; {RESUMES}") from error
    except TimeoutError as error:
        if error.errno is not None:  # of a file system
            raise
        raise ClusterLost(f"the cluster does not answer ({error!r}); {RESUMES}") from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterLost(f"the scheduler is gone ({type(error).__name__}: {error}); {RESUMES}") from error


def count_on(client: Client, context: RunContext, partitions: Iterable[int]) -> pa.Table:
    """Return the counts of `count_partition` for partitions, in the order of the partitions."""
    items = [(context, partition) for partition in partitions]
    counts = pa.concat_tables(map_unordered(client, count_partition, items, NOT_BEGUN))
    return counts.sort_by("partition")  # a stable sort: the tiles of a partition keep their order
