"""Several experiments of a study at a time, each in a process with one thread; GPUs are shared."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

from skyclass.errors import Interrupted, SkyclassError
from skyclass.model.devices import set_threads
from skyclass.text import counted

from .experiments import NEEDS, SKIES_OF, WITHOUT_CHECKPOINTS, run_experiment, todo
from .limit import interrupted_at_end
from .study import Study

Item = tuple[str, int]
"""An experiment and its seed."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What arithmetic libraries read when they are loaded, so workers must inherit it."""


def run_all(study: Study, only: tuple[str, ...], workers: int) -> Iterator[str]:
    """Yield a line for each experiment that ends; those whose models come from others wait for them.

    One that fails stops no other, but those that need it; at the end `SkyclassError` names them all. At the end of the
    study's time limit nothing starts any more, trainings stop at a checkpoint, and `Interrupted` says how many
    experiments are left.
    """
    failed: dict[Item, str] = {}
    waiting = [item for item in todo(study) if not only or item[0] in only]
    left: list[Item] = []
    spawn = multiprocessing.get_context("spawn")
    with inherited(dict.fromkeys(THREADS, "1")), ProcessPoolExecutor(workers, spawn, set_threads, (1,)) as pool:
        running: dict[Future[str], Item] = {}
        while waiting or running:
            for item in startable(study, waiting, {*waiting, *left, *running.values()})[: workers - len(running)]:
                study.prepare(("dataset", *SKIES_OF.get(item[0], ())))
                waiting.remove(item)
                running[pool.submit(one, study, *item)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                if isinstance(error := future.exception(), Interrupted):
                    left.append(item)
                    yield f"{item[0]}, seed {item[1]}: {error}"
                elif error:
                    failed[item] = f"{item[0]}, seed {item[1]}: {error}"
                    lost = [w for w in waiting if (item[0] in NEEDS.get(w[0], ())) and w[1] == item[1]]
                    failed |= {w: f"{w[0]}, seed {w[1]}: needs {item[0]}" for w in lost}
                    waiting = [w for w in waiting if w not in lost]
                    yield failed[item]
                else:
                    yield future.result()
    if failed:
        raise SkyclassError(f"{len(failed)} experiments failed: " + "; ".join(failed.values()))
    if left := [*left, *waiting]:
        names = ", ".join(sorted({name for name, _ in left}))
        raise Interrupted(f"{counted(len(left), 'experiment')} left ({names}): run the same command again")


def startable(study: Study, waiting: list[Item], unfinished: set[Item]) -> list[Item]:
    """Return the experiments that need none of the unfinished ones, and for which the time limit leaves time."""
    ready = [(name, seed) for name, seed in waiting if not {(n, seed) for n in NEEDS.get(name, ())} & unfinished]
    return [item for item in ready if study.limit.allows(item[0] not in WITHOUT_CHECKPOINTS)]


@contextmanager
def inherited(variables: dict[str, str]) -> Iterator[None]:
    """Let processes started in the block have these environment variables; those of this one come back after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def one(study: Study, name: str, seed: int) -> str:
    """Run one experiment; return a line about it."""
    with interrupted_at_end(study.limit):
        record = run_experiment(study, name, seed)
    found = f", accuracy {record['accuracy']:.4f}" if isinstance(record.get("accuracy"), float) else ""
    return f"{name}, seed {seed}: {record['seconds']:,.0f} s{found}"
