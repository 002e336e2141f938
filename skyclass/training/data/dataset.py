"""A labelled set of cutouts in a folder: `pixels.npy`, `rows.parquet`, `dataset.json`.

Cutouts have native size and all bands, float32 DN, so that any composite, choice of bands or network can be trained
from one set. They are memory-mapped, never read whole: sets have 10^4 to 10^6 sources of 22 kB each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import ConfigError
from ...files import sha256_of, translate_write_errors, write_json
from ...model.bundle import Cut
from ...schema import bad_values_text
from ...types import DEFAULT_CLASSES, Bool, Float32, Int64
from ..locks import file_lock
from .splits import NO_SPLIT, SPLITS, split_table

PIXELS, ROWS, SETTINGS = "pixels.npy", "rows.parquet", "dataset.json"
VERIFIED = ".checked.json"
"""Size and time of the pixels when their digest was right, so that they are read whole once and not at every start."""
FORMAT = "skyclass training set 3"
LOCK = ".lock"
BLOCK = 2048
"""Cutouts in memory at a time."""


@dataclass(frozen=True)
class Dataset:
    """Cutouts and what is known of each.

    `pixels` (N, B, S, S) float32 DN at `zero_point_mag` (B,), NaN = missing; `labels` (N,) int64 index into
    `classes`; `rows` the columns of `SOURCE_SCHEMA`, further numeric columns, `flags` and `split` ("train", "val",
    "test", or "none" for a source near another split); `provenance` the origin of all, with the key `simulated`. `path`
    is the folder, None for a dataset in memory.

    A dataset without images has B = 0. Its `cut` is then that of models trained on it, for `classify`.
    """

    pixels: Float32
    labels: Int64
    rows: pa.Table
    cut: Cut
    zero_point_mag: tuple[float, ...]
    provenance: dict[str, Any]
    path: Path | None = None
    classes: tuple[str, ...] = DEFAULT_CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_images(self) -> bool:
        """Whether the dataset has cutouts."""
        return bool(self.pixels.shape[1])

    def take(self, index: Int64 | Bool) -> Dataset:
        """Return the rows at `index` (positions or a mask), their pixels in memory."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        rows = self.rows.take(pa.array(index))
        return replace(self, pixels=self.pixels[index], labels=self.labels[index], rows=rows, path=None)

    def split(self, name: str) -> Int64:
        """Return the positions of the rows of a split."""
        if name not in (*SPLITS, NO_SPLIT):
            raise ConfigError(f"split {name!r}: choose one of {', '.join((*SPLITS, NO_SPLIT))}")
        return np.flatnonzero(np.asarray(pc.equal(self.rows["split"], name))).astype(np.int64)


def rows_digest(dataset: Dataset) -> str:
    """Return a digest of the label and the split of each source."""
    digest = hashlib.sha256(dataset.labels.tobytes())
    for name in ("source_id", "split"):
        digest.update("\n".join(dataset.rows[name].to_pylist()).encode())
    return digest.hexdigest()[:16]


def pixels_digest(dataset: Dataset) -> str | None:
    """Return the digest of a dataset's pixels, or of its rows if it has no images; None if it is not recorded."""
    digest = dataset.provenance.get("digests", {}).get("pixels")
    return str(digest) if digest else None


def summary(dataset: Dataset) -> str:
    """Return a table of class by split, and the dropped sources by reason."""
    table = split_table(dataset.labels, dataset.rows["split"].to_pylist(), dataset.classes)
    splits = (*SPLITS, NO_SPLIT)
    width = 1 + max(map(len, (*dataset.classes, "galaxy")))
    lines = [" " * width + "".join(f"{name:>9}" for name in splits) + f"{'total':>9}"]
    for row in (*dataset.classes, "total"):
        counts = [sum(table[split].values()) if row == "total" else table[split][row] for split in splits]
        lines.append(f"{row:{width}}" + "".join(f"{n:9,}" for n in (*counts, sum(counts))))
    size, origin = dataset.cut.size_px, "SIMULATED" if dataset.provenance.get("simulated") else "real"
    if dataset.has_images:
        bands = ", ".join(dataset.cut.bands)
        lines.append(f"{len(dataset):,} cutouts of {size} x {size} px in {bands}, {origin} images")
    else:
        lines.append(f"{len(dataset):,} {origin} sources without cutouts")
    if dropped := {reason: n for reason, n in dataset.provenance.get("dropped", {}).items() if n}:
        lines.append("left out: " + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()))
    if bad_values := dataset.provenance.get("bad_values"):
        lines.append(f"values read as missing: {bad_values_text(bad_values)}")
    return "\n".join([*lines, *dataset.provenance.get("notes", [])])


# --- reading ---------------------------------------------------------------------------------------


def load_dataset(path: str | Path) -> Dataset:
    """Return the dataset in a folder, its pixels memory-mapped.

    Raises `ConfigError` when the folder is not a dataset, or when its files are damaged, changed or do not belong
    together. Pixels whose size or time is new are read whole once, and compared with their digest.
    """
    folder = Path(path)
    if missing := [name for name in (PIXELS, ROWS, SETTINGS) if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} is not a dataset ({', '.join(missing)} missing): make one with `skyclass dataset`")
    settings = _read_settings(folder)
    try:
        rows = pq.read_table(folder / ROWS, partitioning=None)
        pixels = np.load(folder / PIXELS, mmap_mode="r")
        cut = Cut(**settings["cut"] | {"bands": tuple(settings["cut"]["bands"])})
        zero_point_mag = tuple(float(z) for z in settings["zero_point_mag"])
        classes = tuple(settings["classes"])
        labels = rows["label"].to_numpy().astype(np.int64)
        splits = set(pc.unique(rows["split"]).to_pylist())
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ConfigError(f"{folder}: damaged dataset ({error}): make it again") from error
    shape = (len(labels), len(cut.bands) if zero_point_mag else 0, cut.size_px, cut.size_px)
    if pixels.shape != shape or pixels.dtype != np.float32 or len(zero_point_mag) != shape[1]:
        mismatch = f"{PIXELS} is {pixels.dtype} {pixels.shape}, {ROWS} and {SETTINGS} ask for float32 {shape}"
        raise ConfigError(f"{folder}: damaged dataset ({mismatch}): make it again")
    if not splits <= {*SPLITS, NO_SPLIT} or (len(labels) and not 0 <= labels.min() <= labels.max() < len(classes)):
        raise ConfigError(f"{folder}: damaged dataset (unknown labels or splits): make it again")
    _verify_digests(folder, settings["files"])
    rows = rows.drop_columns("label")
    return Dataset(pixels, labels, rows, cut, zero_point_mag, settings["provenance"], folder, classes)


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SETTINGS}: damaged ({error}): make the dataset again") from error
    version = settings.get("format") if isinstance(settings, dict) else None
    if version != FORMAT or not all(isinstance(settings.get(part), dict) for part in ("provenance", "files")):
        raise ConfigError(f"{folder}: its format is {version!r}, this version reads {FORMAT!r}: make the dataset again")
    return dict(settings)


def _verify_digests(folder: Path, digests: dict[str, str]) -> None:
    """Raise `ConfigError` when a file is not the one that was written: labels would belong to other pixels."""
    stat = (folder / PIXELS).stat()
    stamp = {"sha256": digests.get(PIXELS), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    pixels_known = _read_stamp(folder) == stamp
    names = [ROWS] if pixels_known else [ROWS, PIXELS]
    if changed := [name for name in names if sha256_of(folder / name) != digests.get(name)]:
        raise ConfigError(
            f"{folder}: {', '.join(changed)} changed since the dataset was made (its SHA-256 is not the one in "
            f"{SETTINGS}): bring the file back, or make the dataset again"
        )
    if not pixels_known and os.access(folder, os.W_OK):
        write_json(folder / VERIFIED, stamp)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """Return size and time of the pixels at their last verification, None without a readable record."""
    try:
        return dict(json.loads((folder / VERIFIED).read_text()))
    except (OSError, ValueError, TypeError):
        return None


# --- writing ---------------------------------------------------------------------------------------


def save_dataset(path: str | Path, dataset: Dataset) -> None:
    """Write a dataset folder, block by block; `ConfigError` if it exists."""
    with new_folder(path) as folder:
        shape = dataset.pixels.shape
        copy = np.lib.format.open_memmap(folder / PIXELS, mode="w+", dtype="<f4", shape=shape)
        for start in range(0, len(dataset), BLOCK):
            copy[start : start + BLOCK] = dataset.pixels[start : start + BLOCK]
        copy.flush()
        save_rows_and_settings(folder, dataset)


def save_rows_and_settings(folder: Path, dataset: Dataset) -> None:
    """Write the rows and the settings of a dataset; hash the pixel file, which is already in the folder."""
    table = dataset.rows.append_column("label", pa.array(dataset.labels, pa.int64()))
    simulated = {"simulated": "SIMULATED: no row describes a real source"}
    metadata = simulated if dataset.provenance.get("simulated") else None
    pq.write_table(table.replace_schema_metadata(metadata), folder / ROWS)
    settings = {
        "format": FORMAT,
        "files": {name: sha256_of(folder / name) for name in (PIXELS, ROWS)},
        "cut": asdict(dataset.cut),
        "zero_point_mag": dataset.zero_point_mag,
        "classes": dataset.classes,
        "provenance": dataset.provenance,
    }
    write_json(folder / SETTINGS, settings)


def refuse_existing(path: str | Path) -> None:
    """Raise `ConfigError` where a dataset would replace something."""
    if Path(path).exists():
        raise ConfigError(f"{path} exists: choose another folder for the dataset")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a folder that gets its name when the block succeeds. Raises `StoreError` on a full disk."""
    refuse_existing(path)
    path = Path(path).absolute()
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
            with file_lock(Path(temporary) / LOCK):
                folder = Path(temporary) / "new"
                folder.mkdir()
                yield folder
                refuse_existing(path)
                folder.rename(path)


def _remove_abandoned(path: Path) -> None:
    """Remove the unfinished folders of killed attempts at this dataset: their locks are free."""
    for folder in path.parent.glob(f".{path.name}-*"):
        if (folder / LOCK).is_file():
            with file_lock(folder / LOCK, wait=False) as state:
                if state == "taken":
                    shutil.rmtree(folder)
