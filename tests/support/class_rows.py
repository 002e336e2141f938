"""Random rows of the class catalogue, and run folders with committed tiles of them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from skyclass.model.priors import BinnedCalibration
from skyclass.run.commits import commit_tile, journal_commit
from skyclass.run.folder import RunFolder, start_or_resume
from skyclass.schema import class_columns, class_schema
from skyclass.sky.healpix import healpix29
from skyclass.types import DEFAULT_CLASSES

CLASS_COLUMNS = class_columns(DEFAULT_CLASSES)
CLASS_SCHEMA = class_schema(DEFAULT_CLASSES)
MODEL = {"classes": list(DEFAULT_CLASSES)}
"""Of the provenance of a run."""
FINGERPRINT = {"model": "a1", "plan": "b2", "code": "0.1.0"}


def class_rows(coadd_id: str, n: int, ra: float, dec: float, size_deg: float = 2.5, seed: int = 0) -> pa.Table:
    """Return `n` rows spread over a box of `size_deg` round a position; one in ten has no image."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-size_deg / 2, size_deg / 2, (2, n))
    decs = np.clip(dec + offsets[0], -90, 90)
    ras = (ra + offsets[1] / np.cos(np.radians(dec))) % 360
    p = rng.dirichlet(np.ones(3), n).astype(np.float32)
    missing = rng.random(n) < 0.1
    ranked = np.sort(p, axis=1)
    numbers = {
        **{f"p_{name}": p[:, i] for i, name in enumerate(DEFAULT_CLASSES)},
        "margin": ranked[:, 2] - ranked[:, 1],
        "entropy": -(p * np.log(p)).sum(axis=1),
    }
    columns = {name: pa.array(values, pa.float32(), mask=missing) for name, values in numbers.items()}
    for name in ("w1mpro", "w2mpro", "w3mpro", "w1snr", "w2snr", "w3snr", "w1_aperture", "outlier"):
        columns[name] = pa.array(rng.normal(15, 1, n), pa.float32())
    columns |= {
        "_healpix_29": pa.array(healpix29(ras, decs)),
        "source_id": pa.array([f"{coadd_id}-{i:06d}" for i in range(n)]),
        "designation": pa.array([f"J{i:06d}" for i in range(n)]),
        "cntr": pa.array(rng.integers(0, 2**60, n)),
        "ra": pa.array(ras),
        "dec": pa.array(decs),
        "coadd_id": pa.array([coadd_id] * n),
        "cc_flags": pa.array(["0000"] * n),
        "ext_flg": pa.array([None if i % 7 == 0 else i % 6 for i in range(n)], pa.int32()),
        "class": pa.array(np.asarray(DEFAULT_CLASSES, object)[p.argmax(axis=1)], pa.string(), mask=missing),
        "flags": pa.array(np.where(missing, 128, 0), pa.int32()),
        "set_90": pa.array(np.where(p.max(axis=1) > 0.8, "star", "galaxy|star"), pa.string(), mask=missing),
        "valid_frac": pa.array(np.where(missing, 0.0, 1.0), pa.float32()),
        "model_id": pa.array(["m1"] * n),
        "run_id": pa.array(["r1"] * n),
    }
    return pa.table({name: columns[name] for name in CLASS_SCHEMA.names}, schema=CLASS_SCHEMA)


TILES = (
    ("1500p015_ac51", 3000, 150.0, 1.5),
    ("1515p015_ac51", 2000, 151.5, 1.5),
    ("1500p030_ac51", 8000, 150.0, 3.0),
    ("0000m015_ac51", 500, 0.0, -1.5),
)
"""Tiles that overlap, share order-5 pixels, and wrap through RA 0."""


def make_run(
    path: Path,
    tiles: tuple[tuple[str, int, float, float], ...] = TILES,
    calibration: BinnedCalibration | None = None,
) -> tuple[RunFolder, pa.Table]:
    """Return a run folder whose tiles are committed and journaled, and all their rows."""
    folder = RunFolder(path)
    training = {"simulated": True, "label": "trained on the simulated sky"}
    model: dict[str, Any] = MODEL | {"id": "m1", "training": training}
    if calibration:
        model["binned_calibration"] = calibration.to_dict()
    start_or_resume(folder, FINGERPRINT, {"n_sources": sum(tile[1] for tile in tiles), "model": model})
    tables = [class_rows(name, n, ra, dec, seed=i) for i, (name, n, ra, dec) in enumerate(tiles)]
    for tile, table in zip(tiles, tables, strict=True):
        journal_commit(folder, commit_tile(folder, tile[0], table))
    return folder, pa.concat_tables(tables)
