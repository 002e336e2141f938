"""`skyclass demo`: a simulated sky, classified, published, queried, and held against its truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pandas as pd

from ..catalog.query import ClassCatalog, open_catalog
from ..engine.engine import classify
from ..run.config import RunConfig
from ..run.finish import verify
from ..text import counted, shell_command, table_text
from ..training.evaluation.metrics import colour_cuts
from ..types import CLASSES
from . import MockReport

Say = Callable[[str], None]


def run_demo(folder: Path, sky: MockReport, say: Say) -> bool:
    """Classify, publish, query and compare a simulated sky; `say` hears each step. Return whether all is sound."""
    run = RunConfig(catalog=str(sky.catalog), images=str(sky.images), out=str(folder / "classes"))
    options = {"--catalog": run.catalog, "--images": run.images, "--model": run.model, "--out": run.out}
    say(f"2. {shell_command(['skyclass', 'classify', *chain.from_iterable(options.items())])}")
    report = classify(run)
    say(
        f"   {report.sources_in:,} sources in = {report.classified:,} classified + {report.without_class:,} without "
        f"an image, {report.sources_per_second:,.0f} sources/s; {report.tile_bytes_read / 1e6:,.0f} MB read of "
        f"{report.tile_bytes / 1e6:,.0f} MB of tiles"
    )
    catalogue = folder / "classes" / "catalog"
    say(f"3. {shell_command(['skyclass', 'verify', catalogue])}")
    verified = verify(catalogue)
    say(f"   {verified}")
    classes = open_catalog(str(catalogue))
    say("4. against the simulated truth: rows are true classes, columns what the model gave")
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
    options = ["--cone", cone, "--where", condition, "--columns", ",".join(columns)]
    command = shell_command(["skyclass", "query", catalogue, *options])
    return f"5. {command}\n{table_text(found.head(8))}\n   {counted(len(found), 'row')}"
