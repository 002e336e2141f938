"""What notebooks and the command line start: a run, in this process or on a cluster, and its dry run.

Importing this module loads neither torch nor Dask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine.dask_config import load_dask
from .run.config import RunConfig

if TYPE_CHECKING:
    from distributed import Client

    from .run.plan_report import PlanReport
    from .run.progress import StartProgress
    from .run.report import RunReport


def classify(run: RunConfig, client: Client | None = None, watch: StartProgress | None = None) -> RunReport:
    """Classify every source of a catalogue and publish the class catalogue in the folder `catalog` of `run.out`.

    The same call with the same configuration resumes an interrupted run: classified tiles are kept.

    Parameters
    ----------
    run : RunConfig
        Input, output, and where the run is computed. With `cluster="none"`, this process does everything without
        Dask; the rows are the same.
    client : distributed.Client, optional
        Client of a cluster that is used instead of the one that `run.cluster` names.
    watch : callable, optional
        Makes the context manager that reports progress, given the number of sources. By default a bar is drawn on a
        terminal, and JSON lines are printed elsewhere, on standard error.

    Returns
    -------
    RunReport
        Sources in and out, classes, flags, tiles that could not be used, and times.

    Raises
    ------
    ConfigError
        The input cannot be used; nothing was begun.
    InputChanged
        A partition was replaced during the run. Committed tiles are kept.
    StoreError
        The output folder belongs to another run or another driver works in it, or it cannot be written.
    Interrupted
        The cluster or the image archive does not answer any more; the same call resumes the run.

    Examples
    --------
    >>> import skyclass as sc
    >>> run = sc.RunConfig(catalog="sky/catalog", images="sky/images", out="classes", cluster="none")
    >>> report = sc.classify(run)
    >>> report.sources_in == report.classified + report.without_class
    True
    """
    from .run.progress import rich_progress

    if client is None and run.cluster == "none":
        from .model.malloc import keep_memory
        from .run.pipeline import classify as classify_here

        keep_memory()
        return classify_here(run, watch or rich_progress)
    load_dask()
    from .engine.engine import classify as classify_on_dask

    return classify_on_dask(run, client, watch or rich_progress)


def plan(run: RunConfig) -> PlanReport:
    """Predict the bytes that a run reads, the memory of a worker and the time of the network. Write nothing.

    This process counts the sources of the catalogue and tries the network on a few images.

    Parameters
    ----------
    run : RunConfig
        The run; its output folder may exist or not.

    Returns
    -------
    PlanReport
        Numbers of sources, tiles and strips, bytes, and a rate measured on this machine. `print` shows them as
        `skyclass plan` does.

    Raises
    ------
    ConfigError
        The input cannot be used.
    RunMismatch
        The output folder holds anything other than a run of skyclass.

    Examples
    --------
    >>> import skyclass as sc
    >>> report = sc.plan(sc.RunConfig(catalog="sky/catalog", images="sky/images", out="classes"))
    >>> report.n_sources, report.n_tiles
    (46, 1)
    """
    load_dask()
    from .engine.cluster import check_memory_limit
    from .run.plan_report import plan_report

    check_memory_limit(run.memory_limit)
    return plan_report(run)
