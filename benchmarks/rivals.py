"""`python -m benchmarks.rivals`: compare skyclass with its alternatives, in turns, in one run.

    cut      tile files -> pixels for a network, one core
    infer    composites -> class probabilities, all cores, and the matrix product of the machine
    whole    catalogue and images -> classes, all cores

The contestants of a group take turns in each round, so that other work on the machine slows all of them. The result is
the ratio within a round. Contestants that cut use the memory settings of the workers of the engine, and run once before
each turn, because the first use of memory takes up to as long as cutting. All sources are SIMULATED. Cutana and LSDB
come with `pip install '.[rivals]'`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import click
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch

from skyclass.engine import engine
from skyclass.engine.cluster import connect, worker_pool
from skyclass.model.bundle import load_bundle, load_weights
from skyclass.model.classifier import cached_classifier, load_classifier
from skyclass.model.devices import set_threads
from skyclass.model.malloc import keep_memory
from skyclass.networks import build, macs
from skyclass.run.progress import no_progress
from skyclass.types import DEFAULT_CLASSES, Float16, Strip

from .field import DENSE, HALF, MODEL, SIZE_PX, Contestant, Field, field_of, has
from .null_stages import prepare_strip
from .rival_cutters import astropy_stamps, cutters
from .run import WORK, write_record
from .scenarios import Scenario
from .timing import commit, cores, cpu_model

GEMM = 2_048
AGREEMENT = 10_000


# --- infer -----------------------------------------------------------------------------------------


def inferrers(images: Float16) -> list[Contestant]:
    """Return the contestants that infer the same composites, and matrix products as the limit of the processor."""
    eager = eager_network()
    square = torch.randn(GEMM, GEMM)
    plain, fast = load_classifier(MODEL, "cpu"), load_classifier(MODEL, "cpu", compile=True)
    flops = 2 * GEMM**3 / macs_an_image() / 2
    contestants = [
        Contestant("skyclass", lambda: len(fast.predict(images)), f"compiled, {fast.precision}"),
        Contestant("skyclass, eager", lambda: len(plain.predict(images)), f"fused, channels_last, {plain.precision}"),
        Contestant("eager PyTorch", lambda: infer_eagerly(eager, images), "fp32, NCHW, batches of 256, F.interpolate"),
        Contestant("GEMM fp32", lambda: multiply(square, flops), f"torch.mm of {GEMM}, in images"),
    ]
    if fast.precision == "bf16":  # without hardware support a product takes minutes
        narrow = square.to(torch.bfloat16)
        contestants.append(Contestant("GEMM bf16", lambda: multiply(narrow, flops), f"torch.mm of {GEMM}, in images"))
    return contestants


@cache
def macs_an_image() -> int:
    """Return the number of multiply-accumulates of one image."""
    return macs(eager_network(), (1, 3, 80, 80))


@torch.inference_mode()
def multiply(matrix: torch.Tensor, images_each: float, times: int = 10) -> float:
    """Multiply matrices, and return the number of images with as many operations."""
    for _ in range(times):
        torch.mm(matrix, matrix)
    return times * images_each


def eager_network() -> torch.nn.Module:
    """Return the shipped network as a user loads it."""
    bundle = load_bundle(MODEL)
    network = build(bundle.network, **bundle.network_options)
    network.load_state_dict(load_weights(bundle))
    return network.eval()


@torch.inference_mode()
def infer_eagerly(network: torch.nn.Module, images: Float16, batch: int = 256) -> float:
    """Infer as in a first script: batches of float32, resized by torch, and the network without changes."""
    for start in range(0, len(images), batch):
        eager_probabilities(network, images[start : start + batch])
    return len(images)


@torch.inference_mode()
def eager_probabilities(network: torch.nn.Module, images: Float16) -> torch.Tensor:
    """Return probabilities (N, 3) of one batch."""
    settings = load_bundle(MODEL).preprocessing
    x = torch.nan_to_num(torch.from_numpy(images.astype(np.float32)))
    x = torch.nn.functional.interpolate(x, size=settings.input_px, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    return torch.softmax(network((x - mean) / std), dim=1)


def agreement(images: Float16) -> dict[str, Any]:
    """Compare the network of the engine with fp32: share of equal classes, largest difference of a probability."""
    exact = load_classifier(MODEL, "cpu", "fp32").predict(images)
    fast = load_classifier(MODEL, "cpu", compile=True).predict(images)
    return {
        "n_sources": len(images),
        "same_class": round(float((exact.argmax(1) == fast.argmax(1)).mean()), 5),
        "largest_difference": round(float(np.abs(exact - fast).max()), 4),
    }


# --- whole -----------------------------------------------------------------------------------------


def classifiers(field: Field, images: Float16, n_loop: int, n_frame: int, stack: ExitStack) -> list[Contestant]:
    """Return the contestants that classify from catalogue and images, and the slowest stage alone on one core."""
    one, two = (stack.enter_context(connect("local", workers=n, gpus=0)) for n in (1, 2))
    split, split_tcp = (stack.enter_context(split_cluster(tls)) for tls in (True, False))
    frame = field.rows.head(n_frame)
    fast = load_classifier(MODEL, "cpu", compile=True)
    found = [
        Contestant("skyclass, 2 workers", lambda: classify(field, two), "fused, compiled, published as a catalogue"),
        Contestant("skyclass, 1 worker", lambda: classify(field, one), "fused, compiled, published"),
        Contestant("skyclass, split", lambda: classify(field, split), "one worker cuts, one infers, published"),
        Contestant("skyclass, split, no TLS", lambda: classify(field, split_tcp), "the same over plain TCP"),
        Contestant("network alone", lambda: alone(fast, images), "one thread, composites in memory, compiled"),
        Contestant("network alone, twice", lambda: alone_on(two), "two processes at once, the same on each"),
        Contestant("Cutout2D + PyTorch", lambda: loop_and_network(field, n_loop), f"first {n_loop} sources, fp32"),
        Contestant("dask map_partitions", lambda: naive_dask(field, frame, two), f"numpy + PyTorch fp32, {n_frame}"),
    ]
    if has("lsdb"):
        words = f"the same function, {n_frame}"
        import lsdb

        catalog = lsdb.from_dataframe(frame[["source_id", "ra", "dec"]], ra_column="ra", dec_column="dec")
        found.append(Contestant("LSDB map_partitions", lambda: with_lsdb(catalog, field.paths, two), words))
    return found


def classify(field: Field, client: Any) -> float:
    """Return the number of sources that a whole run of the engine classified."""
    out = tempfile.mkdtemp(dir=Path(field.run.out).parent)
    run = replace(field.run, out=f"{out}/classes", compile="on", cluster="tcp://given")
    report = engine.classify(run, client, no_progress)
    shutil.rmtree(out)
    return report.sources_in


def alone(classifier: Any, images: Float16) -> float:
    """Infer on one thread, like a worker."""
    threads = torch.get_num_threads()
    set_threads(1)
    try:
        return len(classifier.predict(images))
    finally:
        set_threads(threads)


def alone_on(client: Any) -> float:
    """Infer on one thread of each worker at the same time: the gain of a second core."""
    addresses = client.scheduler_info(n_workers=-1)["workers"]
    return sum(client.gather([client.submit(alone_on_worker, workers=[a], pure=False) for a in addresses]))


def alone_on_worker() -> float:
    """Infer images of noise on a worker, and return their number."""
    classifier = cached_classifier(MODEL, load_bundle(MODEL).digest, "cpu", "auto", compile=True)
    noise = np.random.default_rng(0).normal(0, 2, (64, 3, SIZE_PX, SIZE_PX)).astype(np.float16)
    return len(classifier.predict(np.tile(noise, (32, 1, 1, 1))))


@contextmanager
def split_cluster(tls: bool) -> Iterator[Any]:
    """Give a client of one worker that cuts and one with the resource GPU that infers."""
    from distributed import Client, LocalCluster
    from distributed.security import Security

    security = Security.temporary() if tls else None
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}, "security": security}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as pool, Client(pool) as client:
        with worker_pool(pool.scheduler_address, 1, "CPU=1", "3GB", security):
            client.wait_for_workers(2)
            yield client


def loop_and_network(field: Field, n: int) -> float:
    """Cut and infer as in a first script."""
    stamps = np.stack(list(astropy_stamps(field, n))).transpose(0, 3, 1, 2).astype(np.float16)
    return infer_eagerly(eager_network(), stamps)


def naive_dask(field: Field, frame: pd.DataFrame, client: Any) -> float:
    """Classify by `dask.dataframe.map_partitions` of one function, with two partitions for each worker."""
    ddf = dd.from_pandas(frame[["source_id", "ra", "dec"]], npartitions=4)
    meta = {"source_id": "str", "class": "str"}
    return len(client.compute(ddf.map_partitions(classify_frame, field.paths, meta=meta)).result())


def with_lsdb(catalog: Any, paths: Sequence[str], client: Any) -> float:
    """Classify by `Catalog.map_partitions` of LSDB. The catalogue exists beforehand."""
    with client.as_current():
        return len(catalog.map_partitions(classify_frame, paths).compute())


def classify_frame(frame: pd.DataFrame, paths: Sequence[str]) -> pd.DataFrame:
    """Return the classes of a frame of positions: read, cut and infer in one function."""
    if not len(frame):
        return pd.DataFrame({"source_id": pd.Series(dtype="str"), "class": pd.Series(dtype="str")})
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(paths[0]) as first:
        x, y = WCS(first[0].header).all_world2pix(frame["ra"], frame["dec"], 0)
    cube = np.stack([np.pad(fits.getdata(p).astype(np.float32), SIZE_PX, constant_values=np.nan) for p in paths])
    left, low = (np.round(v).astype(int) - SIZE_PX // 2 + SIZE_PX for v in (x, y))
    stamps = np.stack([cube[:, j : j + SIZE_PX, i : i + SIZE_PX] for i, j in zip(left, low, strict=True)])
    network, names = eager_network(), []
    for start in range(0, len(stamps), 256):
        p = eager_probabilities(network, np.arcsinh(stamps[start : start + 256]).astype(np.float16))
        names += [DEFAULT_CLASSES[i] for i in p.argmax(1).tolist()]
    return pd.DataFrame({"source_id": frame["source_id"].to_numpy(), "class": names})


# --- turns -----------------------------------------------------------------------------------------


def take_turns(
    group: str, contestants: Sequence[Contestant], rounds: int, settle: bool = False
) -> list[dict[str, Any]]:
    """Return a record for each contestant: its rate, and the ratio of the first rate to its own, medians over rounds.

    With `settle` each contestant runs once before each timed turn.
    """
    for contestant in contestants:
        contestant.work()
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            if settle:
                contestant.work()
            began = time.perf_counter()
            amount = contestant.work()
            rates[contestant.name].append(amount / (time.perf_counter() - began))
    first = rates[contestants[0].name]
    return [
        {
            "group": group,
            "contestant": c.name,
            "settings": c.settings,
            "sources_per_s": round(median(rates[c.name]), 1),
            "ratio": round(median(a / b for a, b in zip(first, rates[c.name], strict=True)), 3),
            "rounds": rounds,
        }
        for c in contestants
    ]


def conditions() -> dict[str, Any]:
    """Return machine, commit and versions."""
    names = ("torch", "numpy", "dask", "astropy", "cutana", "lsdb")
    versions = {name: metadata.version(name) for name in names if has(name)}
    return {"simulated_sky": True, "commit": commit(), "cpu": cpu_model(), "cores": cores(), "versions": versions}


@click.command()
@click.option("--group", "groups", multiple=True, type=click.Choice(["cut", "infer", "whole"]), help="[default: all]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A small tile, to test the command.")
@click.option("-o", "--output", help="Append the JSON lines to this file.")
def main(groups: tuple[str, ...], rounds: int, quick: bool, output: str | None) -> None:
    """Compare skyclass with its rivals."""
    scenario = Scenario("quick", 1, 600, 700, 1) if quick else DENSE
    n_loop, n_some = (20, 200) if quick else (400, 6_000)
    facts = conditions()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        field = field_of(scenario, WORK, f"{folder}/classes")
        images = prepare_strip(field.context, Strip(field.strips[0].tile, 0, min(AGREEMENT, len(field.rows)))).images

        def write(records: list[dict[str, Any]]) -> None:
            for record in records:
                write_record(record | facts, output, click.echo)

        if not groups or "infer" in groups:
            write(take_turns("infer", inferrers(images[:2_048]), rounds))
            write([{"group": "infer", "contestant": "agreement with fp32"} | agreement(images)])
        if not groups or "whole" in groups:
            half = field_of(scenario if quick else HALF, WORK, f"{folder}/half")
            some = min(n_some // 4, len(half.rows))
            write(take_turns("whole", classifiers(half, images[:2_048], n_loop, some, stack), rounds))
        if not groups or "cut" in groups:  # last, because it changes the settings of this process
            set_threads(1)
            keep_memory()
            write(take_turns("cut", cutters(field, n_loop, min(n_some, len(field.rows))), rounds, settle=True))


if __name__ == "__main__":
    main()
