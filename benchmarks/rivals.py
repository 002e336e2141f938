"""`python -m benchmarks.rivals`: skyclass beside what a user would otherwise take, in turn, in one run.

    cut      tile files -> pixels ready for a network, one core
    infer    composites -> class probabilities, all cores, beside the machine's own matrix product
    whole    catalogue and images -> classes, all cores

The contestants of a group take turns, round by round, so that a busy machine slows them alike; what counts is
the ratio of a round. Those that cut have memory as the engine's workers have it, and do so once more before each
turn: fresh memory costs up to as much as cutting. All sources are SIMULATED. Cutana and LSDB come with
`pip install '.[rivals]'`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from skyclass.images.composite import ATLAS_NOISE_DN
from skyclass.model.bundle import load_bundle, load_weights
from skyclass.model.classifier import cached_classifier, load_classifier, set_threads
from skyclass.model.malloc import keep_memory
from skyclass.networks import build, macs
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext, strips_of
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.progress import no_progress
from skyclass.run.stages import cut_strip, open_tile
from skyclass.run.tile_sources import tile_sources
from skyclass.types import CLASSES, Float16, Strip

from .null_stages import hold
from .run import WORK, make_sky, write_record
from .scenarios import Scenario
from .timing import commit, cores, cpu_model

BANDS = ("w1", "w2", "w3")
SIZE_PX = 37
MODEL = "iicnet-mock"
DENSE = Scenario("dense", n_tiles=1, sources_per_tile=40_000, size_px=4_095, repeats=3)
"""A tile as crowded as the mean of AllWISE."""
HALF = Scenario("half", n_tiles=1, sources_per_tile=20_000, size_px=4_095, repeats=2)
"""For whole runs, which on CPUs take minutes."""
GEMM = 2_048
AGREEMENT = 10_000


@dataclass(frozen=True)
class Field:
    """The simulated tile that all work on."""

    run: RunConfig
    line: RunContext
    strips: list[Strip]
    rows: pd.DataFrame
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Contestant:
    """Somebody in a group: `work` takes no argument and returns how much it did, in units of the group."""

    name: str
    work: Callable[[], float]
    settings: str


def field_of(scenario: Scenario, work: Path, out: str) -> Field:
    """Return the tile of a scenario, made if it is not there, with its catalogue in memory."""
    sky = make_sky(scenario, work)
    run = RunConfig(str(sky / "catalog"), str(sky / "images"), out, MODEL)
    line, plan, _ = plan_run(run, count_here)
    (tile,) = plan.tiles
    rows = tile_sources(line, tile, open_tile(line, tile)).to_pandas()
    paths = tuple(str(next((sky / "images").rglob(f"*-{band}-int-3.fits"))) for band in BANDS)
    return Field(run, line, strips_of(tile, run.strip_sources), rows, paths)


# --- cut -------------------------------------------------------------------------------------------


def cutters(field: Field, n_loop: int, n_cutana: int) -> list[Contestant]:
    """Return who cuts, one core each; the catalogue is in memory for all."""
    own = "float16, sky subtracted, asinh, flags"
    found = [
        Contestant("skyclass", lambda: cut_with_skyclass(field), own),
        Contestant("numpy, the same", lambda: cut_with_numpy(field, sky_and_asinh), "sky, asinh, float16, no flags"),
        Contestant("numpy, lupton", lambda: cut_with_numpy(field, lupton_uint8), "float32 -> Lupton uint8, dropped"),
        Contestant("numpy", lambda: cut_with_numpy(field, None), "float32, no composite, cutouts dropped"),
        Contestant("Cutout2D, lupton", lambda: cut_with_astropy(field, n_loop), f"a loop over {n_loop} sources, uint8"),
    ]
    if has("cutana"):
        for name, method, kind in (("Cutana, asinh", "asinh", "uint8"), ("Cutana", "none", "float32")):
            settings = f"direct, 2,000 at a time, {method}, {kind}, first {n_cutana} sources"
            found.append(Contestant(name, lambda m=method, k=kind: cut_with_cutana(field, n_cutana, m, k), settings))  # type: ignore[misc]
    return found


def cut_with_skyclass(field: Field) -> float:
    """CUT of the engine, strip by strip."""
    return sum(len(cut_strip(field.line, strip).flags) for strip in field.strips)


def cut_with_numpy(field: Field, composite: Callable[[np.ndarray], np.ndarray] | None) -> float:
    """What somebody writes who knows numpy: read, swap, pad, slice in blocks, stretch in blocks."""
    from astropy.io import fits
    from astropy.wcs import WCS

    half = SIZE_PX // 2
    with fits.open(field.paths[0]) as first:
        x, y = WCS(first[0].header).all_world2pix(field.rows["ra"], field.rows["dec"], 0)
    cube = np.stack([np.pad(fits.getdata(p).astype(np.float32), SIZE_PX, constant_values=np.nan) for p in field.paths])
    left, low = (np.round(v).astype(int) - half + SIZE_PX for v in (x, y))
    for start in range(0, len(x), 256):
        block = slice(start, start + 256)
        stamps = np.stack(
            [cube[:, j : j + SIZE_PX, i : i + SIZE_PX] for i, j in zip(left[block], low[block], strict=True)]
        )
        if composite:
            composite(stamps)
    return len(x)


def sky_and_asinh(stamps: np.ndarray, border: int = 3) -> np.ndarray:
    """Return (N, 3, S, S) float16 like the engine: less the median of the border, arcsinh of x / softening."""
    frame = np.ones(stamps.shape[-2:], bool)
    frame[border:-border, border:-border] = False
    sky = np.nanmedian(stamps[:, :, frame], axis=-1)[..., None, None]
    softening = np.array([ATLAS_NOISE_DN[band] for band in BANDS], np.float32)[:, None, None]
    return np.arcsinh((stamps - sky) / softening).astype(np.float16)


def lupton_uint8(stamps: np.ndarray, stretch: float = 5.0, q: float = 8.0) -> np.ndarray:
    """Return (N, 3, S, S) uint8 after Lupton et al. 2004 for (N, 3, S, S)."""
    intensity = stamps.mean(axis=1, keepdims=True)
    factor = np.arcsinh(q * intensity / stretch) / (q * np.where(intensity == 0, 1, intensity))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN beyond the edge
        return np.clip(255 * stamps * factor, 0, 255).astype(np.uint8)


def cut_with_astropy(field: Field, n: int) -> float:
    """What a user writes first: a loop, three `Cutout2D` and `make_lupton_rgb` for each source."""
    for _ in astropy_stamps(field, n):
        pass
    return n


def astropy_stamps(field: Field, n: int) -> Iterator[np.ndarray]:
    """Give the RGB image (S, S, 3) uint8 of each of the first n sources."""
    from astropy.coordinates import SkyCoord
    from astropy.io import fits
    from astropy.nddata import Cutout2D
    from astropy.visualization import make_lupton_rgb
    from astropy.wcs import WCS

    with ExitStack() as stack:
        files = [stack.enter_context(fits.open(path)) for path in field.paths]
        images, wcs = [file[0].data for file in files], WCS(files[0][0].header)
        for ra, dec in field.rows[["ra", "dec"]].head(n).to_numpy():
            position = SkyCoord(ra, dec, unit="deg")
            stamps = [Cutout2D(i, position, SIZE_PX, wcs=wcs, mode="partial", fill_value=0).data for i in images]
            yield make_lupton_rgb(*stamps[::-1], stretch=5, Q=8)


def cut_with_cutana(field: Field, n: int, method: str, kind: str) -> float:
    """Cutana's fastest way: in process, called for 2,000 sources at a time."""
    import cutana

    config = cutana.get_default_config()
    config.target_resolution, config.data_type, config.normalisation_method = SIZE_PX, kind, method
    config.apply_flux_conversion, config.process_threads, config.skip_fits_check = False, 1, True
    config.write_to_disk, config.max_workers = False, 1
    names = [Path(path).stem for path in field.paths]
    config.channel_weights = {name: [float(i == j) for j in range(3)] for i, name in enumerate(names)}
    config.selected_extensions = [{"name": name, "ext": "PRIMARY"} for name in names]
    rows = field.rows.head(n)
    table = pd.DataFrame({"SourceID": rows["source_id"], "RA": rows["ra"], "Dec": rows["dec"]})
    table["diameter_pixel"], table["fits_file_paths"] = SIZE_PX, [str(list(field.paths))] * len(table)
    done = 0
    for start in range(0, n, 2_000):
        for batch in cutana.create_cutouts_direct(table.iloc[start : start + 2_000], config, max_workers=1):
            done += len(batch["cutouts"])
    return done


# --- infer -----------------------------------------------------------------------------------------


def inferrers(images: Float16) -> list[Contestant]:
    """Return who infers the same composites, and the matrix products that say what this processor can do."""
    eager = eager_network()
    square = torch.randn(GEMM, GEMM)
    narrow = square.to(torch.bfloat16)
    plain, fast = load_classifier(MODEL, "cpu"), load_classifier(MODEL, "cpu", compile=True)
    flops = 2 * GEMM**3 / macs_an_image() / 2
    return [
        Contestant("skyclass", lambda: len(fast.predict(images)), f"compiled, {fast.precision}"),
        Contestant("skyclass, eager", lambda: len(plain.predict(images)), f"fused, channels_last, {plain.precision}"),
        Contestant("eager PyTorch", lambda: infer_eagerly(eager, images), "fp32, NCHW, batches of 256, F.interpolate"),
        Contestant("GEMM bf16", lambda: multiply(narrow, flops), f"torch.mm of {GEMM}, in images"),
        Contestant("GEMM fp32", lambda: multiply(square, flops), f"torch.mm of {GEMM}, in images"),
    ]


@cache
def macs_an_image() -> int:
    """Return the multiply-accumulates of one image."""
    return macs(eager_network(), (1, 3, 80, 80))


@torch.inference_mode()
def multiply(matrix: torch.Tensor, images_each: float, times: int = 10) -> float:
    """Multiply matrices; return how many images have as many operations."""
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
    """What a user writes first: batches of float32, resized by torch, through the network as it is."""
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
    """Return how far what the engine runs is from fp32: share of equal classes, largest difference."""
    exact = load_classifier(MODEL, "cpu", "fp32").predict(images)
    fast = load_classifier(MODEL, "cpu", compile=True).predict(images)
    return {
        "n_sources": len(images),
        "same_class": round(float((exact.argmax(1) == fast.argmax(1)).mean()), 5),
        "largest_difference": round(float(np.abs(exact - fast).max()), 4),
    }


# --- whole -----------------------------------------------------------------------------------------


def classifiers(field: Field, images: Float16, n_loop: int, n_frame: int, stack: ExitStack) -> list[Contestant]:
    """Return who classifies from catalogue and images, and the slowest stage alone on one core."""
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
    """Return how many sources a whole run of the engine classified."""
    out = tempfile.mkdtemp(dir=Path(field.run.out).parent)
    run = replace(field.run, out=f"{out}/classes", compile="on", cluster="tcp://given")
    report = engine.classify(run, client, no_progress)
    shutil.rmtree(out)
    return report.sources_in


def alone(classifier: Any, images: Float16) -> float:
    """The network on one thread, as a worker has it."""
    threads = torch.get_num_threads()
    set_threads(1)
    try:
        return len(classifier.predict(images))
    finally:
        set_threads(threads)


def alone_on(client: Any) -> float:
    """The network on one thread of each worker, all at once: how much more two cores are than one."""
    addresses = client.scheduler_info(n_workers=-1)["workers"]
    return sum(client.gather([client.submit(alone_there, workers=[a], pure=False) for a in addresses]))


def alone_there() -> float:
    """Return how many images of noise a worker has inferred."""
    classifier = cached_classifier(MODEL, load_bundle(MODEL).digest, "cpu", "auto", compile=True)
    noise = np.random.default_rng(0).normal(0, 2, (64, 3, SIZE_PX, SIZE_PX)).astype(np.float16)
    return len(classifier.predict(np.tile(noise, (32, 1, 1, 1))))


@contextmanager
def split_cluster(tls: bool) -> Iterator[Any]:
    """Give a client of one worker that cuts and one, labelled GPU, that infers."""
    from distributed import Client, LocalCluster
    from distributed.security import Security

    security = Security.temporary() if tls else None
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}, "security": security}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as pool, Client(pool) as client:
        with worker_pool(pool.scheduler_address, 1, "CPU=1", "3GB", security):
            client.wait_for_workers(2)
            yield client


def loop_and_network(field: Field, n: int) -> float:
    """What a user writes first, whole."""
    stamps = np.stack(list(astropy_stamps(field, n))).transpose(0, 3, 1, 2).astype(np.float16)
    return infer_eagerly(eager_network(), stamps)


def naive_dask(field: Field, frame: pd.DataFrame, client: Any) -> float:
    """`dask.dataframe.map_partitions` of a function that does all of it, two partitions a worker."""
    ddf = dd.from_pandas(frame[["source_id", "ra", "dec"]], npartitions=4)
    meta = {"source_id": "str", "class": "str"}
    return len(client.compute(ddf.map_partitions(classify_frame, field.paths, meta=meta)).result())


def with_lsdb(catalog: Any, paths: Sequence[str], client: Any) -> float:
    """`Catalog.map_partitions` of LSDB, its catalogue made beforehand from the frame."""
    with client.as_current():
        return len(catalog.map_partitions(classify_frame, paths).compute())


def classify_frame(frame: pd.DataFrame, paths: Sequence[str]) -> pd.DataFrame:
    """Return the classes of a frame of positions: read, cut and infer in one function, as a user writes it."""
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
        names += [CLASSES[i] for i in p.argmax(1).tolist()]
    return pd.DataFrame({"source_id": frame["source_id"].to_numpy(), "class": names})


# --- turns -----------------------------------------------------------------------------------------


def has(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def take_turns(
    group: str, contestants: Sequence[Contestant], rounds: int, settle: bool = False
) -> list[dict[str, Any]]:
    """Return a record for each contestant: its rate, and the ratio of the first one's to it, medians over rounds.

    To settle, each works once more before its turn is timed.
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


def around() -> dict[str, Any]:
    """Return on what machine, with which versions, this was measured."""
    names = ("torch", "numpy", "dask", "astropy", "cutana", "lsdb")
    versions = {name: metadata.version(name) for name in names if has(name)}
    return {"simulated_sky": True, "commit": commit(), "cpu": cpu_model(), "cores": cores(), "versions": versions}


@click.command()
@click.option("--group", "groups", multiple=True, type=click.Choice(["cut", "infer", "whole"]), help="[default: all]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A small tile, to see that all of it works.")
@click.option("-o", "--output", help="Append JSON lines here too.")
def main(groups: tuple[str, ...], rounds: int, quick: bool, output: str | None) -> None:
    """Measure skyclass beside its rivals."""
    scenario = Scenario("quick", 1, 600, 700, 1) if quick else DENSE
    n_loop, n_some = (20, 200) if quick else (400, 6_000)
    facts = around()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        field = field_of(scenario, WORK, f"{folder}/classes")
        images = hold(field.line, Strip(field.strips[0].tile, 0, min(AGREEMENT, len(field.rows)))).images

        def say(records: list[dict[str, Any]]) -> None:
            for record in records:
                write_record(record | facts, output, click.echo)

        if not groups or "infer" in groups:
            say(take_turns("infer", inferrers(images[:2_048]), rounds))
            say([{"group": "infer", "contestant": "agreement with fp32"} | agreement(images)])
        if not groups or "whole" in groups:
            half = field_of(scenario if quick else HALF, WORK, f"{folder}/half")
            some = min(n_some // 4, len(half.rows))
            say(take_turns("whole", classifiers(half, images[:2_048], n_loop, some, stack), rounds))
        if not groups or "cut" in groups:  # last, as what it does to this process stays
            set_threads(1)
            keep_memory()
            say(take_turns("cut", cutters(field, n_loop, min(n_some, len(field.rows))), rounds, settle=True))


if __name__ == "__main__":
    main()
