"""Sound inputs of every kind, small, made once: what the cases damage copies of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BANDS = ("w1", "w2", "w3")
N_SOURCES = 10


def make_seeds(folder: Path) -> None:
    """Write a simulated sky, tables of its sources in all formats, a model, finished runs and TOML files."""
    from skyclass.mock import write_mock

    sky = write_mock(str(folder / "sky"), n_tiles=2, seed=5, sources_per_tile=N_SOURCES, size_px=256)
    files = sorted(Path(sky.catalog).rglob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    write_tables(rows, folder / "tables")
    write_model(folder / "model")
    make_runs(folder)
    write_toml(folder / "toml")


def write_tables(rows: pa.Table, folder: Path) -> None:
    """Write positions, ids and photometry as CSV, gzipped CSV, IPAC, VOTable, FITS, ECSV and Parquet."""
    from astropy.table import Table

    folder.mkdir()
    names = ("source_id", "ra", "dec", "coadd_id", "w1mpro", "w2mpro", "w3mpro", "w1snr")
    frame = rows.select(list(names)).slice(0, 2 * N_SOURCES).to_pandas()
    table = Table.from_pandas(frame)
    for name in ("ra", "dec"):
        table[name].unit = "deg"
    frame.to_csv(folder / "t.csv", index=False)
    (folder / "t.csv.gz").write_bytes(gzip.compress((folder / "t.csv").read_bytes(), mtime=0))
    table.write(folder / "t.tbl", format="ascii.ipac")
    table.write(folder / "t.vot", format="votable")
    table.write(folder / "b.vot", format="votable", tabledata_format="binary2")
    table.write(folder / "t.fits")
    table.write(folder / "t.ecsv", format="ascii.ecsv")
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "t.parquet")


def write_model(folder: Path) -> None:
    """Write a bundle of random weights that takes small images: fast, not good."""
    import torch

    from skyclass.images.composite import atlas_settings
    from skyclass.model.bundle import Cut, Preprocessing, save_bundle
    from skyclass.networks import build
    from skyclass.types import DEFAULT_CLASSES

    torch.manual_seed(0)
    fields = {
        "name": "tiny",
        "network": "iicnet",
        "network_options": {"head": [8]},
        "cut": Cut(21, BANDS),
        "composite": atlas_settings(BANDS),
        "preprocessing": Preprocessing(32, (0.3, 0.3, 0.1), (1.0, 1.0, 1.0)),
        "classes": DEFAULT_CLASSES,
        "temperature": 1.0,
        "training": {"simulated": True, "label": "random weights, for tests"},
    }
    save_bundle(folder, fields, build("iicnet", head=[8]).state_dict())


def make_runs(folder: Path) -> None:
    """Classify the sky twice, from its partitions and from a table, into `run` and `table_run`."""
    from skyclass.run.config import RunConfig
    from skyclass.run.pipeline import classify

    where = {"images": str(folder / "sky" / "images"), "model": str(folder / "model"), "precision": "fp32"}
    sources = {"run": folder / "sky" / "catalog", "table_run": folder / "tables" / "t.csv"}
    for name, catalog in sources.items():
        classify(RunConfig(catalog=str(catalog), out=str(folder / name), device="cpu", compile="off", **where))


def write_toml(folder: Path) -> None:
    """Write TOML files of each verb, with paths that a case fills in."""
    folder.mkdir()
    run = {"catalog": "@/sky/catalog", "images": "@/sky/images", "model": "@/model", "out": "out", "cluster": "none"}
    region = 'region = {kind = "cone", ra = 150.0, dec = 2.2, radius = "1deg"}\n'
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in run.items())
    options = 'precision = "fp32"\ndevice = "cpu"\ncompile = "off"\nstrip_sources = 16\nretry_quarantined = false\n'
    (folder / "run.toml").write_text(lines + options)
    (folder / "region.toml").write_text(lines + options + region)
    (folder / "dataset.toml").write_text(
        'out = "set"\nlabels = "@/sky/truth.parquet"\nimages = "@/sky/images"\ncatalog = "@/sky/catalog"\n'
        'bands = ["w1", "w2"]\nsize = "15px"\ncounts = {galaxy = 3, star = 4}\nmin_w1snr = 1.0\nseed = 1\n'
    )
    (folder / "train.toml").write_text(
        'recipe = "modern"\nname = "m"\nlabel = "for tests"\nout = "m"\ndataset = "no-dataset"\nepochs = 1\nseed = 1\n'
        'learning_rate = 1e-3\nnetwork = "iicnet"\nbatch_size = 4\n'
    )


def sky_rng(seed: int, index: int) -> np.random.Generator:
    """Return the random numbers of one case, which depend on the seed and its index alone."""
    return np.random.default_rng([seed, index])
