"""A labelled set of cutouts in a folder: `pixels.npy`, `rows.parquet`, `dataset.json`; how it is made and read.

Cutouts are native size, float32 DN in all bands, so any composite, band choice or network can be trained from one
set. They are cut by the engine's own code, in this process or on a Dask cluster, and mapped, never read whole: sets
have 10^4 to 10^6 sources, 22 kB each.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import ConfigError
from ...files import replacing, sha256_of, storing, write_json
from ...images.composite import CompositeSettings, composite
from ...images.cutouts import mark
from ...locations import absolute
from ...model.bundle import Cut
from ...schema import bad_bits, bad_value_counts, bad_values_text
from ...types import CLASSES, Bool, Flag, Float16, Float32, Int64
from ...version import code_version
from .config import DatasetConfig
from .cutting import CutJob, Harvest, Progress, cut_all, zero_points
from .examples import class_counts, refuse_empty_classes
from .select import Chosen, choose
from .splits import NO_SPLIT, SPLITS, split_table

__all__ = [
    "Dataset",
    "build_dataset",
    "class_counts",
    "composites",
    "load_dataset",
    "save_dataset",
    "summary",
]

PIXELS, ROWS, SETTINGS = "pixels.npy", "rows.parquet", "dataset.json"
CHECKED = ".checked.json"
"""Size and time of the pixels whose digest was right, so that they are read whole once and not at every start."""
FORMAT = "skyclass training set 2"
LOCK = ".lock"
BLOCK = 2048
"""Cutouts in memory at a time."""

MAX_FAULTS = 20
"""Faults of tiles that the provenance words; all are counted."""


# --- the dataset -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Cutouts and what is known of them, row by row.

    `pixels` (N, B, S, S) float32 DN at `zero_point_mag` (B,), NaN = missing; `labels` (N,) int64 index into
    `CLASSES`; `rows` the columns of `SOURCE_SCHEMA`, `flags` and `split` ("train", "val", "test", or "none" for a
    source too close to another split); `provenance` says where all came from, `simulated` among it. `path` is the
    folder, None for a dataset in memory.
    """

    pixels: Float32
    labels: Int64
    rows: pa.Table
    cut: Cut
    zero_point_mag: tuple[float, ...]
    provenance: dict[str, Any]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

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
    """Return a hash of which sources have which labels and lie in which split."""
    rows = hashlib.sha256(dataset.labels.tobytes())
    for name in ("source_id", "split"):
        rows.update("\n".join(dataset.rows[name].to_pylist()).encode())
    return rows.hexdigest()[:16]


def summary(dataset: Dataset) -> str:
    """Return a table of class by split, with what was left out and why."""
    table = split_table(dataset.labels, dataset.rows["split"].to_pylist())
    names = (*SPLITS, NO_SPLIT)
    lines = [f"{'':8}" + "".join(f"{name:>9}" for name in names) + f"{'total':>9}"]
    for row in (*CLASSES, "total"):
        counts = [sum(table[s].values()) if row == "total" else table[s][row] for s in names]
        lines.append(f"{row:8}" + "".join(f"{n:9,}" for n in (*counts, sum(counts))))
    size, note = dataset.cut.size_px, "SIMULATED" if dataset.provenance.get("simulated") else "real"
    lines.append(f"{len(dataset):,} cutouts of {size} x {size} px in {', '.join(dataset.cut.bands)}, {note} images")
    if dropped := {k: n for k, n in dataset.provenance.get("dropped", {}).items() if n}:
        lines.append("left out: " + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()))
    if bad_values := dataset.provenance.get("bad_values"):
        lines.append(f"values read as missing: {bad_values_text(bad_values)}")
    return "\n".join([*lines, *dataset.provenance.get("notes", [])])


# --- on disk ---------------------------------------------------------------------------------------


def load_dataset(path: str | Path) -> Dataset:
    """Return the dataset in a folder, its pixels memory-mapped.

    Raises `ConfigError` when the folder is not a dataset, or its files are damaged, were changed or do not belong
    together. Pixels that are new or were touched are read whole, once, and compared with their digest.
    """
    folder = Path(path)
    if missing := [name for name in (PIXELS, ROWS, SETTINGS) if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} is not a dataset ({', '.join(missing)} missing): make one with `skyclass dataset`")
    settings = _read_settings(folder)
    try:
        rows = pq.read_table(folder / ROWS, partitioning=None)
        pixels = np.load(folder / PIXELS, mmap_mode="r")
        cut_settings = Cut(**settings["cut"] | {"bands": tuple(settings["cut"]["bands"])})
        zero_point_mag = tuple(float(z) for z in settings["zero_point_mag"])
        labels = rows["label"].to_numpy().astype(np.int64)
        names = set(pc.unique(rows["split"]).to_pylist())
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ConfigError(f"{folder}: damaged dataset ({error}): make it again") from error
    shape = (len(labels), len(cut_settings.bands), cut_settings.size_px, cut_settings.size_px)
    if pixels.shape != shape or pixels.dtype != np.float32 or len(zero_point_mag) != shape[1]:
        found = f"{PIXELS} is {pixels.dtype} {pixels.shape}, {ROWS} and {SETTINGS} ask for float32 {shape}"
        raise ConfigError(f"{folder}: damaged dataset ({found}): make it again")
    if not names <= {*SPLITS, NO_SPLIT} or (len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES)):
        raise ConfigError(f"{folder}: damaged dataset (labels or splits that are none): make it again")
    _refuse_changed(folder, settings["files"])
    rows = rows.drop_columns("label")
    return Dataset(pixels, labels, rows, cut_settings, zero_point_mag, settings["provenance"], folder)


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SETTINGS}: damaged ({error}): make the dataset again") from error
    found = settings.get("format") if isinstance(settings, dict) else None
    if found != FORMAT or not all(isinstance(settings.get(part), dict) for part in ("provenance", "files")):
        raise ConfigError(f"{folder}: its format is {found!r}, this version reads {FORMAT!r}: make the dataset again")
    return dict(settings)


def _refuse_changed(folder: Path, digests: dict[str, str]) -> None:
    """Raise `ConfigError` when a file is not the one that was written: labels would stand at other pixels."""
    stat = (folder / PIXELS).stat()
    stamp = {"sha256": digests.get(PIXELS), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    known = _checked(folder) == stamp
    names = [ROWS] if known else [ROWS, PIXELS]
    if changed := [name for name in names if sha256_of(folder / name) != digests.get(name)]:
        raise ConfigError(
            f"{folder}: {', '.join(changed)} changed since the dataset was made (its SHA-256 is not the one in "
            f"{SETTINGS}): bring the file back, or make the dataset again"
        )
    if not known and os.access(folder, os.W_OK):
        write_json(folder / CHECKED, stamp)


def _checked(folder: Path) -> dict[str, Any] | None:
    """Return what was noted of pixels that were found right, None without a note that can be read."""
    try:
        return dict(json.loads((folder / CHECKED).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save_dataset(path: str | Path, dataset: Dataset) -> None:
    """Write a dataset folder, block by block; `ConfigError` if there is one already."""
    with _new_folder(path) as folder:
        shape = dataset.pixels.shape
        copy = np.lib.format.open_memmap(folder / PIXELS, mode="w+", dtype="<f4", shape=shape)
        for start in range(0, len(dataset), BLOCK):
            copy[start : start + BLOCK] = dataset.pixels[start : start + BLOCK]
        copy.flush()
        _save_rows(folder, dataset.rows, dataset.labels, bool(dataset.provenance.get("simulated")))
        _save_settings(folder, dataset.cut, dataset.zero_point_mag, dataset.provenance)


def _save_rows(folder: Path, rows: pa.Table, labels: Int64, simulated: bool) -> None:
    table = rows.append_column("label", pa.array(labels, pa.int64()))
    note = {"simulated": "SIMULATED: no row describes a real source"} if simulated else None
    pq.write_table(table.replace_schema_metadata(note), folder / ROWS)


def _save_settings(folder: Path, cut: Cut, zero_point_mag: tuple[float, ...], provenance: dict[str, Any]) -> None:
    """Write the settings, and with them the digests of the files that are there already."""
    files = {name: sha256_of(folder / name) for name in (PIXELS, ROWS)}
    own = {"cut": asdict(cut), "zero_point_mag": zero_point_mag}
    write_json(folder / SETTINGS, {"format": FORMAT, "files": files} | own | {"provenance": provenance})


def _refuse_existing(path: str | Path) -> None:
    if Path(path).exists():
        raise ConfigError(f"{path} exists: choose another folder for the dataset")


@contextmanager
def _new_folder(path: str | Path) -> Iterator[Path]:
    """Give a folder that appears under its name only when the block ends well. Raises `StoreError` on a full disk."""
    _refuse_existing(path)
    path = Path(path).absolute()
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
            with _locked(Path(temporary)):
                folder = Path(temporary) / "new"
                folder.mkdir()
                yield folder
                _refuse_existing(path)
                folder.rename(path)


def _sweep(path: Path) -> None:
    """Remove what an earlier attempt at this dataset left behind when it was killed: its lock is free."""
    for left in path.parent.glob(f".{path.name}-*"):
        if (left / LOCK).is_file():
            try:
                with _locked(left, fcntl.LOCK_NB):
                    shutil.rmtree(left)
            except BlockingIOError:  # somebody is at work there
                continue


# --- composites ------------------------------------------------------------------------------------


def composites(dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> Float16:
    """Return the composites (N, C, S, S) float16 of `bands`, NaN = missing, made in blocks.

    For a dataset on disk they are a memory map, made once and kept in its folder: whole or not at all, and by one
    process where several ask at once. Raises `ConfigError` for a band that the dataset lacks.
    """
    if lacking := [band for band in bands if band not in dataset.cut.bands]:
        have = ", ".join(dataset.cut.bands)
        raise ConfigError(f"the dataset has no {', '.join(lacking)}, only {have}: train on those, or cut it again")
    shape = (len(dataset), len(bands), dataset.cut.size_px, dataset.cut.size_px)
    if dataset.path is None:
        out: Float16 = np.empty(shape, np.float16)
        _composite_into(out, dataset, bands, settings)
        return out
    path = dataset.path / f"composites-{_composites_digest(dataset, bands, settings)}.npy"
    return _kept(path, shape, partial(_composite_into, dataset=dataset, bands=bands, settings=settings))


def _composites_digest(dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> str:
    """Return a name for composites: what they are made of, how, and by which code."""
    pixels = dataset.provenance.get("digests", {}).get("pixels", "")
    facts = [pixels, len(dataset), list(bands), settings.to_dict(), code_version()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _composite_into(out: Float16, dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> None:
    """Fill `out` with composites, a block at a time."""
    index = [dataset.cut.bands.index(band) for band in bands]
    zero_point_mag = tuple(dataset.zero_point_mag[i] for i in index)
    for start in range(0, len(dataset), BLOCK):
        pixels = np.asarray(dataset.pixels[start : start + BLOCK])[:, index]
        out[start : start + BLOCK] = composite(pixels, zero_point_mag, settings)


def _kept(path: Path, shape: tuple[int, ...], fill: Callable[[Float16], None]) -> Float16:
    """Return a float16 memory map of a file, which is filled first where it is absent or another's."""
    if (found := _mapped(path, shape)) is not None:
        return found
    with _one_at_a_time(path.parent):
        if (found := _mapped(path, shape)) is None:
            with replacing(path) as temp:
                new = np.lib.format.open_memmap(temp, mode="w+", dtype="<f2", shape=shape)
                fill(new)
                new.flush()
            found = np.load(path, mmap_mode="r")
    return found


def _mapped(path: Path, shape: tuple[int, ...]) -> Float16 | None:
    """Return the memory map of a file, None where it is absent or damaged."""
    try:
        found: Float16 = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return found if found.shape == shape and found.dtype == np.float16 else None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock of a folder that ends with this process; where a disk has no locks, processes work side by side."""
    with storing(folder), _locked(folder):
        yield


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Hold the lock of a folder; `BlockingIOError` with `fcntl.LOCK_NB` where another process holds it."""
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | how)
        except BlockingIOError:
            raise
        except OSError:
            pass  # no locks on this disk: each then writes its own file under a temporary name, slower, not wrong
        yield


# --- making one ---------------------------------------------------------------------------------------


def build_dataset(run: DatasetConfig, client: Any = None, progress: Progress | None = None) -> Dataset:
    """Return the training set of labelled sources, cut from the archive into the folder `run.out`.

    With a `distributed.Client` its workers cut, otherwise this process; both give the same bytes. What cannot be
    right is refused before anything is cut (`ConfigError`, `CatalogError`, `ArchiveError`); sources off the
    archive or without an image are dropped, counted by reason in the provenance and told to `progress`, which gets
    {"done", "total", "kept", "dropped", "faults"} in sources after each piece of work.
    """
    _refuse_existing(run.out)
    chosen = choose(run)
    tell = progress or (lambda _: None)
    tell({"done": 0, "total": len(chosen.table), "kept": 0, "dropped": chosen.dropped, "faults": []})
    with _new_folder(run.out) as folder:
        with tempfile.TemporaryDirectory(prefix="cut-", dir=folder.parent) as scratch:
            job = CutJob(absolute(run.images), run.bands, run.size_px, scratch, uuid4().hex)
            harvest = cut_all(job, chosen.table, chosen.dropped, folder / PIXELS, client, tell)
        rows = chosen.table.take(pa.array(harvest.kept))
        flags = harvest.flags | mark(bad_bits(rows) != 0, Flag.BAD_VALUE)
        rows = rows.append_column("flags", pa.array(flags))
        labels = rows["label"].to_numpy()
        refuse_empty_classes(labels, f"{run.labels} on {run.images}: after cutting")
        provenance = _provenance(run, chosen, harvest, rows)
        _save_rows(folder, rows.drop_columns("label"), labels, provenance["simulated"])
        _save_settings(folder, Cut(run.size_px, run.bands), zero_points(run.bands), provenance)
    return load_dataset(run.out)


def _provenance(run: DatasetConfig, chosen: Chosen, harvest: Harvest, rows: pa.Table) -> dict[str, Any]:
    """Return where a dataset came from. No clock, no name of its folder: equal input, equal bytes."""
    labels = rows["label"].to_numpy()
    split, counts = chosen.split, split_table(labels, rows["split"].to_pylist())
    notes = [*chosen.notes]
    notes += [
        f"no {name} in {s}: evaluation or early stopping on it will miss that class"
        for s, share in zip(SPLITS, run.split, strict=True)
        for name in CLASSES
        if share and not counts[s][name]
    ]
    digests = {
        "labels": chosen.labels_digest,
        "catalog": chosen.matched_digest,
        "images": harvest.images_digest,
        "pixels": harvest.pixels_digest,
    }
    return {
        "simulated": chosen.simulated,
        "labels": run.labels,
        "catalog": run.catalog,
        "images": run.images,
        "digests": digests,
        "code": code_version(),
        "settings": {k: v for k, v in asdict(run).items() if k not in ("out", "labels", "catalog", "images")},
        "counts": class_counts(labels),
        "dropped": harvest.dropped,
        "bad_values": bad_value_counts(bad_bits(rows)),
        "n_faults": len(harvest.faults),
        "faults": harvest.faults[:MAX_FAULTS],
        "split": {
            "order": split.order,
            "seed": run.seed,
            "n_pixels": split.n_pixels,
            "reach_arcsec": round(split.reach_arcsec, 3),
            "counts": counts,
        },
        "notes": notes,
    }
