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

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What arithmetic libraries read when they are loaded, so workers must inherit it."""


def run_all(study: Study, only: tuple[str, ...], workers: int) -> Iterator[str]:
    """Yield a line for each experiment that ends; those whose models come from others wait for them.

    One that fails stops no other, but those that need it; at the end `SkyclassError` names them all. At the end of the
    study's time limit nothing starts any more, trainings stop at a checkpoint, and `Interrupted` says how many
    experiments are left.
    """
    failed: dict[tuple[str, int], str] = {}
    waiting = [item for item in todo(study) if not only or item[0] in only]
    left: list[tuple[str, int]] = []
    spawn = multiprocessing.get_context("spawn")
    with inherited(dict.fromkeys(THREADS, "1")), ProcessPoolExecutor(workers, spawn, set_threads, (1,)) as pool:
        running: dict[Future[str], tuple[str, int]] = {}
        while waiting or running:
            busy = {*waiting, *left, *running.values()}
            ready = [i for i in waiting if not any((need, i[1]) in busy for need in NEEDS.get(i[0], ()))]
            for item in [i for i in ready if study.limit.allows(i[0] not in WITHOUT_CHECKPOINTS)]:
                if len(running) == workers:
                    break
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
        raise Interrupted(
            f"{counted(len(left), 'experiment')} left at the time limit ({', '.join(sorted({n for n, _ in left}))}): "
            "run the same command again"
        )


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
