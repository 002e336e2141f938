"""A new dataset: labelled sources in a folder, cut from the image archive, or without cutouts."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from ...files import content_digest
from ...images.cutouts import flag_where
from ...locations import absolute
from ...model.bundle import Cut
from ...schema import bad_bits, bad_value_counts
from ...types import Flag
from ...version import code_version
from ..progress import Progress, no_progress
from .classes import label_counts, require_all_classes
from .config import DatasetConfig
from .cutting import CutJob, CutResult, cut_all, zero_points
from .dataset import PIXELS, Dataset, load_dataset, new_folder, refuse_existing, save_rows_and_settings
from .select import Selection, select_sources
from .splits import SPLITS, split_table

MAX_FAULTS = 20
"""Faults of tiles that the provenance lists; all are counted."""
LOCATIONS = ("out", "labels", "tables", "catalog", "images")
"""Settings that the provenance does not repeat among `settings`."""


def build_dataset(config: DatasetConfig, client: Any = None, progress: Progress = no_progress) -> Dataset:
    """Return the training set of labelled sources in the folder `config.out`, cut from the archive if it has images.

    With a `distributed.Client` its workers cut, otherwise this process; both give the same bytes. Input errors are
    raised before anything is cut (`ConfigError`, `CatalogError`, `ArchiveError`). Sources off the archive or without an
    image are dropped, and counted by reason in the provenance. `progress` gets {"done", "total", "kept", "dropped",
    "faults"} in sources after each task.
    """
    refuse_existing(config.out)
    selection = select_sources(config)
    with new_folder(config.out) as folder:
        if config.images:
            result = _cut(config.images, config, selection, folder, client, progress)
        else:
            result = _without_pixels(config, selection, folder)
        rows = selection.table.take(pa.array(result.row_index))
        flags = result.flags | flag_where(bad_bits(rows) != 0, Flag.BAD_VALUE)
        labels = rows["label"].to_numpy()
        require_all_classes(labels, config.classes, f"{config.origin}: after cutting")
        provenance = _provenance(config, selection, result, rows)
        rows = rows.append_column("flags", pa.array(flags)).drop_columns("label")
        pixels = np.load(folder / PIXELS, mmap_mode="r")
        cut = Cut(config.size_px, config.bands)
        zero_point_mag = zero_points(config.bands) if config.images else ()
        save_rows_and_settings(
            folder, Dataset(pixels, labels, rows, cut, zero_point_mag, provenance, classes=config.classes)
        )
    return load_dataset(config.out)


def _cut(
    images: str, config: DatasetConfig, selection: Selection, folder: Path, client: Any, progress: Progress
) -> CutResult:
    """Write the cutouts of a selection."""
    progress({"done": 0, "total": len(selection.table), "kept": 0, "dropped": selection.dropped, "faults": []})
    with tempfile.TemporaryDirectory(prefix="cut-", dir=folder.parent) as scratch:
        job = CutJob(absolute(images), config.bands, config.size_px, scratch, uuid4().hex)
        return cut_all(job, selection.table, selection.dropped, folder / PIXELS, client, progress)


def _without_pixels(config: DatasetConfig, selection: Selection, folder: Path) -> CutResult:
    """Write pixels without bands for the sources of a selection; the digest of the rows replaces that of the pixels."""
    n = len(selection.table)
    np.save(folder / PIXELS, np.empty((n, 0, config.size_px, config.size_px), "<f4"))
    digest = content_digest(selection.table.drop_columns(["label", "split"]))
    return CutResult(np.arange(n), np.zeros(n, np.int32), selection.dropped, [], "", digest)


def _provenance(config: DatasetConfig, selection: Selection, result: CutResult, rows: pa.Table) -> dict[str, Any]:
    """Return the origin of a dataset, without time and folder name: equal input gives equal bytes."""
    labels, split = rows["label"].to_numpy(), selection.split
    counts = split_table(labels, rows["split"].to_pylist(), config.classes)
    empty = [
        f"no {class_name} in {name}: evaluation or early stopping on it will miss that class"
        for name, share in zip(SPLITS, config.split, strict=True)
        for class_name in config.classes
        if share and not counts[name][class_name]
    ]
    return {
        "simulated": selection.simulated,
        "labels": config.labels,
        "tables": config.tables,
        "catalog": config.catalog,
        "images": config.images,
        "digests": {
            "labels": selection.labels_digest,
            "catalog": selection.catalog_digest,
            "images": result.images_digest,
            "pixels": result.pixels_digest,
        },
        "code": code_version(),
        "settings": {key: value for key, value in asdict(config).items() if key not in LOCATIONS},
        "counts": label_counts(labels, config.classes),
        "dropped": result.dropped,
        "bad_values": bad_value_counts(bad_bits(rows)),
        "n_faults": len(result.faults),
        "faults": result.faults[:MAX_FAULTS],
        "split": {
            "order": split.order,
            "seed": config.seed,
            "n_pixels": split.n_pixels,
            "reach_arcsec": round(split.reach_arcsec, 3),
            "counts": counts,
        },
        "notes": [*selection.notes, *empty],
    }
