"""`skyclass demo`: a simulated sky, classified, published, queried, and held against its truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..config import RunConfig
from ..engine import classify
from ..publish import verify
from ..query import ClassCatalog, open_catalog
from ..training.evaluate import colour_cuts
from ..types import CLASSES
from . import MockReport, write_mock

Say = Callable[[str], None]
DEMO_SEED = 2026
"""Not the seed of any sky that the shipped model was trained on."""


def run_demo(folder: Path, n_tiles: int, sources_per_tile: int, size_px: int, say: Say) -> bool:
    """Make, classify, publish, query and compare; `say` hears each step. Return whether the catalogue is sound."""
    say(f"1. a SIMULATED sky in {folder}/mock: {n_tiles} Atlas tiles of {size_px} x {size_px} pixels")
    sky = write_mock(
        str(folder / "mock"),
        n_tiles=n_tiles,
        seed=DEMO_SEED,
        sources_per_tile=sources_per_tile,
        size_px=size_px,
    )
    run = RunConfig(catalog=str(sky.catalog), images=str(sky.images), out=str(folder / "classes"))
    say(f"2. skyclass classify --catalog {run.catalog} --images {run.images} --model {run.model} --out {run.out}")
    report = classify(run)
    say(
        f"   {report.sources_in:,} sources in = {report.classified:,} classified + {report.without_class:,} without "
        f"an image, {report.sources_per_second:,.0f} sources/s; {report.tile_bytes_read / 1e6:,.0f} MB read of "
        f"{report.tile_bytes / 1e6:,.0f} MB of tiles"
    )
    catalogue = folder / "classes" / "catalog"
    say(f"3. skyclass verify {catalogue}")
    verified = verify(catalogue)
    say(f"   {verified}")
    classes = open_catalog(str(catalogue))
    say("4. against the simulated truth (natural mix; a purity here is one of this simulation only)")
    say(summary(classes, sky))
    say(example_query(classes, catalogue))
    return verified.ok


def summary(classes: ClassCatalog, sky: MockReport) -> str:
    """Return a table by true class, and the balanced accuracies of the network and of two colour cuts."""
    truth = pd.read_parquet(sky.truth)[["source_id", "class"]].rename(columns={"class": "truth"})
    columns = ["source_id", "class", "w1mpro", "w2mpro", "w3mpro", "w1snr"]
    rows = classes.select(columns).to_pandas().merge(truth, on="source_id", validate="one_to_one")
    counts = pd.crosstab(rows["truth"], rows["class"].fillna("none"))
    lines = [counts.reindex(index=list(CLASSES), fill_value=0).to_string(), ""]
    for name, part in (("all", rows), ("W1 S/N > 20", rows[rows["w1snr"] > 20])):
        cuts = colour_cuts(*(part[c].to_numpy(float) for c in ("w1mpro", "w2mpro", "w3mpro")))
        network, plain = (balanced_accuracy(part["truth"], given) for given in (part["class"], pd.Series(cuts)))
        lines.append(f"balanced accuracy, {name} ({len(part):,}): network {network:.3f}, two colour cuts {plain:.3f}")
    return "\n".join("   " + line for line in lines)


def balanced_accuracy(truth: pd.Series, given: pd.Series) -> float:
    """Return the mean over classes of the share of its sources that got it; without a class is wrong."""
    right = pd.Series(truth.to_numpy() == given.to_numpy(), index=truth.to_numpy())
    return float(right.groupby(level=0).mean().mean())


def example_query(classes: ClassCatalog, catalogue: Path) -> str:
    """Return an example query as a command with what it prints."""
    middle = classes.select(["ra", "dec"]).to_pandas().median()
    cone = f"{middle['ra']:.2f},{middle['dec']:.2f},15arcmin"
    condition = "p_quasar > 0.8 AND w1snr > 20"
    columns = ["designation", "ra", "dec", "w1mpro", "class", "p_quasar", "flags"]
    found = classes.cone(middle["ra"], middle["dec"], "15arcmin").where(condition).select(columns).to_pandas()
    command = f'skyclass query {catalogue} --cone {cone} --where "{condition}" --columns {",".join(columns)}'
    return f"5. {command}\n{found.head(8).to_string(index=False)}\n   {len(found)} rows"
