"""The configuration of Dask: load it, check it, and add a scratch folder that only the user can enter.

Importing this module does not import Dask. `load_dask` does, and turns a configuration that Dask cannot read into one
message.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from ..errors import NotStarted
from ..model.malloc import MALLOC_ENVIRONMENT

DASK_SETTINGS: dict[str, Any] = {
    "distributed.worker.memory.target": False,  # paging cutouts to disk is slower than waiting
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.80,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.scheduler.worker-ttl": "120s",
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.no-workers-timeout": "10m",
    "distributed.comm.timeouts.connect": "30s",
    "distributed.deploy.lost-worker-timeout": "10m",  # by default, a local worker gone for 15 s is not replaced
    "distributed.admin.low-level-log-length": 20,  # the default takes megabytes for each worker
}

START_ERRORS = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, AssertionError, OSError, ImportError)
"""Errors that Dask raises for values of its configuration that it cannot use, and for workers that do not start."""

REMEDY = "correct Dask's configuration (files in ~/.config/dask and $DASK_CONFIG, variables DASK_*)"


GUARD = 'a script needs the line `if __name__ == "__main__":` before its calls, because every worker process imports it'


def dask_environment() -> dict[str, str]:
    """Return `DASK_SETTINGS` and the scratch folder as environment variables, for the processes of a cluster."""
    settings = DASK_SETTINGS | {"temporary-directory": str(scratch_folder())}
    return MALLOC_ENVIRONMENT | {
        "DASK_" + name.replace("-", "_").replace(".", "__").upper(): str(value) for name, value in settings.items()
    }


def worker_environment() -> dict[str, Any]:
    """Return the variables that nannies set before they start a worker: those of Dask and of the memory allocator."""
    import dask

    return {**dask.config.get("distributed.nanny.pre-spawn-environ"), **MALLOC_ENVIRONMENT}


@contextmanager
def translate_start_errors(what: str) -> Iterator[None]:
    """Turn errors that Dask raises while it starts into `NotStarted`, a one-line message that names the first cause."""
    try:
        yield
    except START_ERRORS as error:
        raise NotStarted(
            f"{what}: {first_cause(error)}; {REMEDY}, or run without Dask (classify --cluster none)"
        ) from error


def first_cause(error: BaseException) -> str:
    """Return the error at the start of a chain, in one line."""
    while error.__cause__:
        error = error.__cause__
    if str(error) == "Nanny failed to start worker process" or isinstance(error, TimeoutError):
        return f"a worker process did not start; {GUARD}"
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def load_dask() -> None:
    """Import Dask, and keep its log off the screen: the driver reports all faults.

    Raises `NotStarted` in a worker process that imports the script of its driver, and so would start another run.
    """
    if getattr(current_process(), "_inheriting", False):
        raise NotStarted(GUARD)
    with translate_start_errors("Dask cannot be used"):
        import_module("distributed")
    for name in ("distributed", "asyncio", "tornado.application"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        for handler in logger.handlers:  # Dask sets a level for each of its loggers
            handler.setLevel(logging.CRITICAL)


def check_dask_config() -> None:
    """Raise `NotStarted` for values of Dask's configuration that have another type than Dask's defaults.

    Dask reads many of them in the background, where a wrong one stops a cluster without a message.
    """
    import dask

    faults = [fault for defaults in dask.config.defaults for fault in wrong_types(defaults, dask.config.config)]
    if faults:
        raise NotStarted(f"Dask's configuration has values that cannot be used: {'; '.join(faults)}; {REMEDY}")


def wrong_types(defaults: Mapping[str, Any], config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Give a sentence for each value that is no mapping, list or quantity where its default is one."""
    import dask

    for key, default in defaults.items():
        name = f"{path}{key}"
        value = config.get(dask.config.canonical_name(key, dict(config)))
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            yield from wrong_types(default, value, f"{name}.")
        elif isinstance(default, Mapping) and value is not None:
            yield f"{name} = {value!r} is no mapping"
        elif isinstance(default, list) and value is not None and not isinstance(value, (list, tuple, str)):
            yield f"{name} = {value!r} is no list"
        elif is_quantity(default) and value is not None and not isinstance(value, bool) and not is_quantity(value):
            yield f"{name} = {value!r} is no number, time or amount of memory, such as {default!r}"


def is_quantity(value: object) -> bool:
    """Return whether Dask reads a value as a number, a time or an amount of memory."""
    from dask.utils import parse_bytes, parse_timedelta

    if not isinstance(value, str):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    for parse in (parse_bytes, parse_timedelta):
        try:
            parse(value)
        except (ValueError, KeyError, OverflowError):
            continue
        return True
    return False


def scratch_folder() -> Path:
    """Return the folder for the scratch files of clusters, below Dask's `temporary-directory`; make it if necessary.

    Only the user may enter it. Dask puts its scratch folder first in the module search path of every process, and the
    default folder, a fixed name in /tmp, may belong to another user, who could put code there.
    """
    import dask

    parent, name = dask.config.get("temporary-directory", None) or tempfile.gettempdir(), f"skyclass-{os.geteuid()}"
    try:
        folder = Path(parent) if Path(parent).name == name else Path(parent) / name
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, TypeError) as error:
        raise NotStarted(
            f"Dask's scratch folder cannot be made in {parent} ({error}): set temporary-directory of Dask's "
            "configuration, or DASK_TEMPORARY_DIRECTORY, to a folder that exists and can be written"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise NotStarted(
            f"{folder} is open to other users, who could run code from there: remove it, or set "
            "DASK_TEMPORARY_DIRECTORY to a folder that only you can enter"
        )
    return folder
