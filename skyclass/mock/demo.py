"""`skyclass demo`: classify a simulated sky, publish it, query it, and compare it with its true classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pandas as pd

from ..api import classify
from ..catalog.query import ClassCatalog, open_catalog
from ..run.config import RunConfig
from ..run.finish import verify
from ..text import counted, shell_command, table_text
from ..training.evaluation.metrics import colour_cuts
from ..types import DEFAULT_CLASSES
from . import MockReport

SHOWN_ROWS = 12
"""Rows of the example query that the demo prints."""

PrintLine = Callable[[str], None]


def run_demo(folder: Path, sky: MockReport, print_line: PrintLine) -> bool:
    """Classify, publish, query and compare a simulated sky, and return whether the catalogue is valid."""
    run = RunConfig(catalog=str(sky.catalog), images=str(sky.images), out=str(folder / "classes"))
    options = {"--catalog": run.catalog, "--images": run.images, "--model": run.model, "--out": run.out}
    print_line(f"2. {shell_command(['skyclass', 'classify', *chain.from_iterable(options.items())])}")
    report = classify(run)
    print_line(
        f"   {report.sources_in:,} sources in = {report.classified:,} classified + {report.without_class:,} without "
        f"an image, {report.sources_per_second:,.0f} sources/s; {report.tile_bytes_read / 1e6:,.0f} MB read of "
        f"{report.tile_bytes / 1e6:,.0f} MB of tiles"
    )
    catalogue = folder / "classes" / "catalog"
    print_line(f"3. {shell_command(['skyclass', 'verify', catalogue])}")
    verified = verify(catalogue)
    print_line(f"   {verified}")
    classes = open_catalog(str(catalogue))
    print_line("4. comparison with the simulated truth: rows are true classes, columns are classes of the model")
    print_line(summary(classes, sky))
    print_line(example_query(classes, catalogue))
    return verified.ok


def summary(classes: ClassCatalog, sky: MockReport) -> str:
    """Return a table by true class, and the balanced accuracies of the network and of two colour cuts."""
    truth = pd.read_parquet(sky.truth)[["source_id", "class"]].rename(columns={"class": "truth"})
    columns = ["source_id", "class", "w1mpro", "w2mpro", "w3mpro", "w1snr", "w3snr"]
    rows = classes.select(columns).to_pandas().merge(truth, on="source_id", validate="one_to_one")
    counts = pd.crosstab(rows["truth"], rows["class"].fillna("none"))
    lines = [counts.reindex(index=list(DEFAULT_CLASSES), fill_value=0).to_string(), ""]
    for name, part in (("all", rows), ("W1 S/N > 20", rows[rows["w1snr"] > 20])):
        cuts = colour_cuts(*(part[c].to_numpy(float) for c in ("w1mpro", "w2mpro", "w3mpro", "w3snr")))
        network, by_cuts = (
            balanced_accuracy(part["truth"], predicted) for predicted in (part["class"], pd.Series(cuts))
        )
        lines.append(f"balanced accuracy, {name} ({len(part):,}): network {network:.3f}, two colour cuts {by_cuts:.3f}")
    return "\n".join("   " + line for line in lines)


def balanced_accuracy(truth: pd.Series, predicted: pd.Series) -> float:
    """Return the mean recall of the classes. A source without a class counts as wrong."""
    right = pd.Series(truth.to_numpy() == predicted.to_numpy(), index=truth.to_numpy())
    return float(right.groupby(level=0).mean().mean())


def example_query(classes: ClassCatalog, catalogue: Path) -> str:
    """Return an example query: its command and its output."""
    centre = classes.select(["ra", "dec"]).to_pandas().median()
    ra, dec = round(float(centre["ra"]), 2), round(float(centre["dec"]), 2)
    condition = "p_quasar > 0.8 AND w1snr > 20"
    columns = ["designation", "ra", "dec", "w1mpro", "class", "p_quasar", "flags"]
    rows = classes.cone(ra, dec, "15arcmin").where(condition).select(columns).to_pandas()
    options = ["--cone", f"{ra:.2f},{dec:.2f},15arcmin", "--where", condition, "--columns", ",".join(columns)]
    command = shell_command(["skyclass", "query", catalogue, *options])
    shown = f", the first {SHOWN_ROWS} shown" if len(rows) > SHOWN_ROWS else ""
    return f"5. {command}\n{table_text(rows.head(SHOWN_ROWS))}\n   {counted(len(rows), 'row')}{shown}"
