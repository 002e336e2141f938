"""`python -m benchmarks.device`: what one GPU gives, in one command; `--device cpu` tries the command itself.

    gemm       torch.mm in bf16: what this device can do
    eager      fp32, NCHW, on images that are there already: what a user writes first
    network    the engine's graph alone, on composites that are there already
    upload     the classifier: composites in host memory -> probabilities in host memory
    line       tiles on local disk -> class catalogue, on dask-cuda, with the share of time that the GPU was at work

One JSON line each, all in one run. The sky is SIMULATED.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from skyclass import engine
from skyclass.cluster import connect
from skyclass.infer import NetworkClassifier, load_classifier, resolve_device
from skyclass.progress import quiet
from skyclass.types import Float16

from .measure import commit, cores, cpu_model
from .rivals import DENSE, MODEL, eager_network, field_of, macs_an_image
from .run import WORK, write_record
from .scenarios import Scenario

GEMM = {"cuda": 8_192, "cpu": 1_024}


def timed(work: Callable[[], float], device: str, repeats: int) -> float:
    """Return amount/s of the median of some runs after one that is dropped; the device has finished each."""
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        amount = work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        rates.append(amount / (time.perf_counter() - began))
    return median(rates[1:])


def measurements(device: str, images: Float16, repeats: int) -> Iterator[dict[str, Any]]:
    """Give the records of the network: matrix product, eager, graph alone, with upload."""
    kind = device.partition(":")[0]
    square = torch.randn(GEMM[kind], GEMM[kind], device=device, dtype=torch.bfloat16)
    flops = timed(lambda: 2 * GEMM[kind] ** 3 * bool(len(torch.mm(square, square))), device, 10 * repeats)
    peak = flops / (2 * macs_an_image())
    yield {"stage": "gemm", "images_per_s": round(peak, 1), "tflops": round(flops / 1e12, 2)}
    classifier = load_classifier(MODEL, device)
    stages: dict[str, Callable[[], float]] = {
        "eager": eager_on(device, classifier.micro_batch),
        "network": graph_on(classifier, images),
        "upload": lambda: len(classifier.predict(images)),
    }
    for stage, work in stages.items():
        rate = timed(work, device, repeats)
        yield {"stage": stage, "images_per_s": round(rate, 1), "of_bf16_peak": round(rate / peak, 3)}


def eager_on(device: str, batch: int) -> Callable[[], float]:
    """Return the work of an fp32 network in torch's default layout on one batch that is on the device."""
    network, x = eager_network().to(device), torch.randn(batch, 3, 80, 80, device=device)

    @torch.inference_mode()
    def work() -> float:
        network(x)
        return batch

    return work


def graph_on(classifier: NetworkClassifier, images: Float16) -> Callable[[], float]:
    """Return the work of the engine's graph, resize included, on one batch that is on the device."""
    n = classifier.micro_batch
    batch = torch.from_numpy(np.resize(images, (n, *images.shape[1:]))).to(classifier.device)

    @torch.inference_mode()
    def work() -> float:
        classifier.graph(batch)
        return n

    return work


def line_record(scenario: Scenario, device: str) -> dict[str, Any]:
    """Return the record of a whole run of the engine on this machine's GPUs, or CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        field = field_of(scenario, WORK, f"{folder}/classes")
        run = replace(field.run, device=device, compile="off")
        with connect("local", gpus=0 if device == "cpu" else None) as client:
            engine.classify(replace(run, out=f"{folder}/first"), client, quiet)  # loads the network and the page cache
            report = engine.classify(run, client, quiet)
    busy = {"pool_busy": report.pool_busy, "bound_by": report.bound_by}
    return {"stage": "line", "sources_per_s": report.sources_per_second, "n_sources": report.sources_in} | busy


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--images", "n", default=16_384, show_default=True, help="Composites in memory.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A small tile, to see that the command works.")
@click.option("-o", "--output", help="Append JSON lines here too.")
def main(device: str, n: int, repeats: int, quick: bool, output: str | None) -> None:
    """Measure one device: network alone, with upload, and the whole line."""
    device = resolve_device(device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    around = {"device": device, "name": name, "cores": cores(), "commit": commit(), "simulated_sky": True}
    images = np.random.default_rng(0).normal(0, 2, (n, 3, 37, 37)).astype(np.float16)
    for record in measurements(device, images, repeats):
        write_record(record | around, output, click.echo)
    write_record(
        line_record(Scenario("quick", 1, 300, 700, 1) if quick else DENSE, device) | around, output, click.echo
    )


if __name__ == "__main__":
    main()
