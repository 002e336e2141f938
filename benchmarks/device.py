"""`python -m benchmarks.device`: measure one GPU in one command; `--device cpu` tests the command.

    gemm       torch.mm in bf16: the limit of this device
    eager      fp32, NCHW, on images in its memory: a first script
    network    the graph of the engine alone, on composites in its memory: each of `WAYS` at each of `BATCHES`
    upload     the classifier: composites in host memory -> probabilities in host memory; as it is, and compiled
    line       tiles on local disk -> class catalogue: split, CPU workers and dask-cuda workers; fused, one worker whose
               threads cut for its GPU; as it is, and compiled. `of_network` is the rate relative to the network alone

One JSON line each, all in one run. The sky is SIMULATED.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import click
import dask
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster
from distributed.security import Security

from skyclass.engine import engine
from skyclass.engine.cluster import DASK_SETTINGS, connect, worker_environment
from skyclass.errors import CannotCompile
from skyclass.model.classifier import NetworkClassifier, load_classifier
from skyclass.model.compile import Captured, Network, compiled
from skyclass.model.devices import resolve_device
from skyclass.run.progress import no_progress
from skyclass.types import Float16

from .field import DENSE, MODEL, Field, field_of
from .rivals import eager_network, macs_an_image
from .run import WORK, write_record
from .scenarios import Scenario
from .timing import commit, cores, cpu_model

COPIES = {"cuda": 10, "cpu": 1}
"""Number of times that each source of `line` is classified."""
GEMM = {"cuda": 8_192, "cpu": 1_024}
BATCHES = {"cuda": (256, 1_024, 4_096), "cpu": (32,)}
Way = Callable[[NetworkClassifier, list[torch.Tensor]], Network]
WAYS: dict[str, Way] = {
    "as it is": lambda classifier, _: classifier.module,
    "max-autotune": lambda classifier, _: torch.compile(
        classifier.module, dynamic=False, mode="max-autotune-no-cudagraphs"
    ),
    "captured": lambda classifier, example: Captured(classifier.module, example),
    "compiled": lambda classifier, example: compiled(classifier.module, example, classifier.name),
}
"""Ways to run the graph of the engine. "compiled" is that of `--compile on`: on a GPU torch.compile, captured."""
SETTINGS = {"as it is": "off", "compiled": "on"}
"""Way -> setting `compile` of a run, for the ways that a run supports."""


def timed(work: Callable[[], float], device: str, repeats: int) -> float:
    """Return the median amount/s of some runs after a warm-up. The device has finished each run."""
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        amount = work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        rates.append(amount / (time.perf_counter() - began))
    return median(rates[1:])


def measurements(device: str, images: Float16, repeats: int, ways: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of the network: matrix product, eager, graph alone, with upload."""
    kind = device.partition(":")[0]
    square = torch.randn(GEMM[kind], GEMM[kind], device=device, dtype=torch.bfloat16)
    flops = timed(lambda: 2 * GEMM[kind] ** 3 * bool(len(torch.mm(square, square))), device, 10 * repeats)
    peak = flops / (2 * macs_an_image())
    yield {"stage": "gemm", "images_per_s": round(peak, 1), "tflops": round(flops / 1e12, 2)}
    classifier = load_classifier(MODEL, device)
    rate = timed(eager_on(device, classifier.prepared.micro_batch), device, repeats)
    yield {"stage": "eager", "images_per_s": round(rate, 1), "of_bf16_peak": round(rate / peak, 3)}
    for way, batch in product(ways, BATCHES[kind]):
        record = {"stage": "network", "way": way, "batch": batch}
        try:
            rate = timed(graph_on(classifier, images, batch, WAYS[way]), device, repeats)
        except (
            CannotCompile,
            RuntimeError,
            ValueError,
        ) as error:  # a way that this machine does not support is a result, too
            yield record | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        yield record | {"images_per_s": round(rate, 1), "of_bf16_peak": round(rate / peak, 3)}
    for way in (way for way in ways if way in SETTINGS):
        record = {"stage": "upload", "way": way}
        try:
            classifier = load_classifier(MODEL, device, compile=SETTINGS[way] == "on")
            rate = timed(predicting(classifier, images), device, repeats)
        except (CannotCompile, RuntimeError, ValueError) as error:
            yield record | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        record |= {"batch": classifier.prepared.micro_batch, "images_per_s": round(rate, 1)}
        yield record | {"of_bf16_peak": round(rate / peak, 3)}


def eager_on(device: str, batch: int) -> Callable[[], float]:
    """Return the work of an fp32 network in the default layout of torch, on one batch in the memory of the device."""
    network, x = eager_network().to(device), torch.randn(batch, 3, 80, 80, device=device)

    @torch.inference_mode()
    def work() -> float:
        network(x)
        return batch

    return work


def predicting(classifier: NetworkClassifier, images: Float16) -> Callable[[], float]:
    """Return the work of a classifier on composites in host memory."""
    return lambda: len(classifier.predict(images))


def graph_on(classifier: NetworkClassifier, images: Float16, n: int, way: Way) -> Callable[[], float]:
    """Return the work of the graph of the engine, with the resizing, on one batch of n in the memory of the device."""
    batch = torch.from_numpy(np.resize(images, (n, *images.shape[1:]))).to(classifier.device)
    graph = way(classifier, [batch])

    @torch.inference_mode()
    def work() -> float:
        graph(batch)
        return n

    return work


def pipeline_record(scenario: Scenario, device: str, form: str, way: str, copies: int = 1) -> dict[str, Any]:
    """Return the record of a whole run of the engine with one GPU of this machine, or its CPUs."""
    with tempfile.TemporaryDirectory() as folder, FORMS[form](device) as client:
        field = field_of(scenario, WORK, f"{folder}/classes")
        table = multiplied(field, copies, f"{folder}/table.parquet")
        run = replace(field.run, catalog=table, device=device, compile=SETTINGS[way])
        first = replace(run, catalog=field.run.catalog, out=f"{folder}/first")
        engine.classify(first, client, no_progress)  # loads the network and the page cache
        report = engine.classify(run, client, no_progress)
    busy = {"pool_busy": report.pool_busy, "bound_by": report.bound_by}
    seconds = {"seconds_of_stages": {stage: round(s, 2) for stage, s in report.stage_seconds.items()}}
    rate = {"sources_per_s": report.sources_per_second, "n_sources": report.sources_in}
    return {"stage": "line", "form": form, "way": way} | rate | busy | seconds


def multiplied(field: Field, copies: int, path: str) -> str:
    """Write a table with several copies of each source of a field under other names, and return its path."""
    rows = field.rows[["source_id", "ra", "dec"]]
    table = pd.concat([rows.assign(source_id=rows["source_id"].astype(str) + f"-{copy}") for copy in range(copies)])
    table.assign(coadd_id=field.strips[0].tile.coadd_id).to_parquet(path, index=False)
    return path


def split(device: str) -> AbstractContextManager[Client]:
    """Give a client of a worker with one GPU and CPU workers on the other cores."""
    return connect("local", max(1, cores() - 1), gpus=0 if device == "cpu" else 1)


@contextmanager
def fused(device: str) -> Iterator[Client]:
    """Give a client of one worker with one GPU, whose threads are the cores of this machine."""
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0, "resources": {"GPU": 1}}
    options["security"] = Security.temporary()
    settings = DASK_SETTINGS | {"distributed.nanny.pre-spawn-environ": worker_environment()}
    with dask.config.set(settings), LocalCluster(n_workers=1, threads_per_worker=max(2, cores()), **options) as pool:
        with Client(pool) as client:
            yield client


FORMS: dict[str, Callable[[str], AbstractContextManager[Client]]] = {"split": split, "fused": fused}


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--images", "n", default=16_384, show_default=True, help="Composites in memory.")
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(list(WAYS)),
    default=[way for way in WAYS if way != "max-autotune"],
    show_default=True,
    help="Way to run the network; repeatable. max-autotune takes minutes to compile.",
)
@click.option("--quick", is_flag=True, help="A small tile and one way, to test the command.")
@click.option("-o", "--output", help="Append the JSON lines to this file.")
def main(device: str, n: int, repeats: int, ways: tuple[str, ...], quick: bool, output: str | None) -> None:
    """Measure one device: network alone, with upload, and the whole pipeline."""
    device = resolve_device(device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    around = {
        "device": device,
        "name": name,
        "cores": cores(),
        "commit": commit(),
        "simulated_sky": True,
        "quick": quick,
    }
    images = np.random.default_rng(0).normal(0, 2, (n, 3, 37, 37)).astype(np.float16)
    alone: dict[str, float] = {}
    for record in measurements(device, images, repeats, ["as it is"] if quick else ways):
        write_record(record | around, output, click.echo)
        if record["stage"] == "upload" and "images_per_s" in record:
            alone[record["way"]] = record["images_per_s"]
    scenario = Scenario("quick", 1, 300, 700, 1) if quick else DENSE
    for form, way in product(FORMS, alone):
        record = pipeline_record(scenario, device, form, way, COPIES[device.partition(":")[0]])
        record["of_network"] = round(record["sources_per_s"] / alone[way], 3)
        write_record(record | around, output, click.echo)


if __name__ == "__main__":
    main()
