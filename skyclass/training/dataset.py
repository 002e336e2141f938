"""A labelled set of composites in a folder: `images.npy`, `rows.parquet`, `dataset.json`.

Images are native size and float16, so a hundred thousand of them are 0.8 GB; they are mapped, not read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ..archive import open_archive
from ..bundle import Cut
from ..catalog import assign_tiles, open_catalog, read_partition
from ..composite import CompositeSettings, composite
from ..cutouts import cut
from ..errors import CatalogError, ConfigError, TileFault
from ..sky import healpix, tile_pixels
from ..types import CLASSES, Archive, Bool, Flag, Float16, Int64

IMAGES, ROWS, SETTINGS = "images.npy", "rows.parquet", "dataset.json"
STRIP = 16_384
SPLIT_ORDER = 9
"""HEALPix order of the pixels that go to training or validation as a whole: 6.9 arcmin, many cutouts wide."""

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Dataset:
    """Composites and what is known of them, row by row.

    `images` (N, C, S, S) float16, NaN = missing; `labels` (N,) int64 index into `CLASSES`; `rows` the table
    of `source_id`, `coadd_id`, `ra`, `dec` (deg) and photometry; `cut` and `composite` say how images were
    made.
    """

    images: Float16
    labels: Int64
    rows: pa.Table
    cut: Cut
    composite: CompositeSettings

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int64 | Bool) -> Dataset:
        """Return the rows at `index` (positions or a mask), images in memory."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return replace(self, images=self.images[index], labels=self.labels[index], rows=self.rows.take(index))


def class_counts(labels: Int64) -> dict[str, int]:
    """Return the number of rows of each class."""
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def save_dataset(path: str | Path, dataset: Dataset) -> None:
    """Write a dataset folder; `ConfigError` if there is one already."""
    with _folder(path) as folder:
        np.save(folder / IMAGES, dataset.images)
        _save_rows(folder, dataset.rows, dataset.labels)
        _save_settings(folder, dataset.cut, dataset.composite)


def load_dataset(path: str | Path) -> Dataset:
    """Return the dataset in a folder, its images memory-mapped; `ConfigError` when a file is missing."""
    folder = Path(path)
    if missing := [name for name in (IMAGES, ROWS, SETTINGS) if not (folder / name).is_file()]:
        raise ConfigError(
            f"{folder} is not a dataset ({', '.join(missing)} missing): name `catalog`, `images`, `labels`"
        )
    settings = json.loads((folder / SETTINGS).read_text())
    rows = pq.read_table(folder / ROWS)
    labels = rows["label"].to_numpy().astype(np.int64)
    cut_settings = Cut(**settings["cut"] | {"bands": tuple(settings["cut"]["bands"])})
    images = np.load(folder / IMAGES, mmap_mode="r")
    stretch = CompositeSettings.from_dict(settings["composite"])
    return Dataset(images, labels, rows.drop_columns("label"), cut_settings, stretch)


def split_sky(dataset: Dataset, val_fraction: float) -> tuple[Int64, Int64]:
    """Return positions of the training and validation rows, disjoint on the sky.

    Whole HEALPix pixels of order 9 go to one side by a hash of their number: a source stays on its side
    whatever else is in the dataset. Raises `ConfigError` when a class is missing on one side.
    """
    pixels = healpix(SPLIT_ORDER, dataset.rows["ra"].to_numpy(), dataset.rows["dec"].to_numpy())
    held = _hash01(pixels) < val_fraction
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    present = set(np.unique(dataset.labels))
    for side, index in (("training", train), ("validation", val)):
        if lost := [CLASSES[k] for k in sorted(present - set(np.unique(dataset.labels[index])))]:
            raise ConfigError(
                f"no {', '.join(lost)} in the {side} set: {len(dataset)} rows lie in "
                f"{len(np.unique(pixels))} sky pixels; "
                f"use more sky or another val_fraction than {val_fraction}"
            )
    return train, val


def build_dataset(
    catalog: str,
    images: str,
    labels: str,
    bands: tuple[str, ...],
    size_px: int,
    composite_settings: CompositeSettings,
    out: str | Path,
    progress: Progress | None = None,
) -> Dataset:
    """Cut and composite every labelled source of a catalogue into the dataset folder `out`; return it.

    `labels` is a Parquet or CSV table with `source_id` and `class`. Sources without an image in some band are
    left out and counted: `progress` gets {"tile", "done", "total", "dropped", "fault"} after each tile.
    Raises `ConfigError` when nothing matches or `out` exists.
    """
    archive = open_archive(images, bands)
    rows = labelled_rows(catalog, labels)
    if rows["coadd_id"].null_count:
        rows = assign_tiles(rows, archive.list_tiles())
    rows = rows.sort_by([("coadd_id", "ascending"), ("source_id", "ascending")])
    with _folder(out) as folder:
        with open(folder / "pixels", "w+b") as pixels:
            kept = _cut_all(archive, rows, bands, size_px, composite_settings, pixels, progress)
            _to_npy(pixels, folder / IMAGES, (len(kept), len(bands), size_px, size_px))
        (folder / "pixels").unlink()
        rows = rows.take(kept)
        _save_rows(folder, rows.drop_columns("label"), rows["label"].to_numpy())
        _save_settings(folder, Cut(size_px, bands), composite_settings)
    return load_dataset(out)


def labelled_rows(catalog: str, labels: str) -> pa.Table:
    """Return the catalogue rows that `labels` names, with `label` (int64, index into `CLASSES`) appended."""
    table, source = read_labels(labels), open_catalog(catalog)
    found = []
    for i in range(len(source.partitions)):
        rows = read_partition(source, i)
        place = pc.index_in(rows["source_id"], table["source_id"])
        hit = pc.is_valid(place)
        found.append(rows.filter(hit).append_column("label", table["label"].take(place.filter(hit))))
    rows = pa.concat_tables(found)
    if not len(rows):
        raise CatalogError(f"no source_id of {labels} is in {catalog}: are they of the same catalogue?")
    return rows


def read_labels(path: str) -> pa.Table:
    """Return `source_id` (string) and `label` (int64) from a Parquet or CSV table of `source_id`, `class`."""
    if not Path(path).is_file():
        raise CatalogError(f"{path}: there is no such label table")
    table = pq.read_table(path) if Path(path).suffix == ".parquet" else pyarrow.csv.read_csv(path)
    if missing := {"source_id", "class"} - set(table.column_names):
        raise CatalogError(f"{path}: column {', '.join(sorted(missing))} is missing")
    label = pc.index_in(table["class"].cast(pa.string()), pa.array(CLASSES))
    if label.null_count:
        strange = pc.unique(table["class"].filter(pc.is_null(label))).to_pylist()
        raise CatalogError(f"{path}: class {strange[:5]} is unknown: use {', '.join(CLASSES)}")
    source_id = table["source_id"].cast(pa.string())
    if len(pc.unique(source_id)) != len(source_id):
        raise CatalogError(f"{path}: some source_id stands twice: keep one label a source")
    return pa.table({"source_id": source_id, "label": label.cast(pa.int64())})


def _cut_all(
    archive: Archive,
    rows: pa.Table,
    bands: tuple[str, ...],
    size_px: int,
    settings: CompositeSettings,
    out: IO[bytes],
    progress: Progress | None,
) -> Int64:
    """Append the composites of `rows` (sorted by tile) to `out`; return the positions of those with one."""
    row_bytes = len(bands) * size_px * size_px * 2
    kept = np.empty(0, dtype=np.int64)
    for coadd_id, first, last in _tiles(rows):
        fault = None
        try:
            index = np.arange(first, last)
            kept = np.append(kept, _cut_tile(archive, coadd_id, rows, index, bands, size_px, settings, out))
        except TileFault as error:  # a tile that breaks half-way leaves none of its rows
            fault = error.reason
            out.seek(len(kept) * row_bytes)
            out.truncate()
        if progress:
            dropped = last - len(kept)
            done = {"tile": coadd_id, "done": last, "total": len(rows)}
            progress(done | {"dropped": dropped, "fault": fault})
    if not len(kept):
        raise ConfigError(f"none of {len(rows)} labelled sources has an image in {', '.join(bands)}")
    return kept


def _cut_tile(
    archive: Archive,
    coadd_id: str,
    rows: pa.Table,
    index: Int64,
    bands: tuple[str, ...],
    size_px: int,
    settings: CompositeSettings,
    out: IO[bytes],
) -> Int64:
    """Append the composites of one tile to `out`; return the positions of their rows, in that order."""
    tile = archive.tile(coadd_id, bands)
    x, y = tile_pixels(tile, rows["ra"].to_numpy()[index], rows["dec"].to_numpy()[index])
    kept = []
    for part in np.array_split(np.argsort(y, kind="stable"), -(-len(index) // STRIP)):
        batch = cut(archive, tile, x[part], y[part], size_px)
        good = (batch.flags & int(Flag.NO_IMAGE)) == 0
        out.write(composite(batch.pixels[good], batch.zero_point_mag, settings).tobytes())
        kept.append(index[part[good]])
    return np.concatenate(kept)


def _tiles(rows: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield (coadd_id, first, last) for each run of equal coadd_id; rows without a tile are passed over."""
    names = rows["coadd_id"].to_pandas().fillna("").to_numpy(dtype=str)
    edges = np.flatnonzero(np.r_[True, names[1:] != names[:-1], True])
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        if names[first]:
            yield str(names[first]), int(first), int(last)


def _to_npy(pixels: IO[bytes], path: Path, shape: tuple[int, ...]) -> None:
    """Copy raw float16 pixels behind an npy header, whose length of rows is known only at the end."""
    pixels.seek(0)
    with open(path, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(pixels, file)


def _save_rows(folder: Path, rows: pa.Table, labels: Int64) -> None:
    pq.write_table(rows.append_column("label", pa.array(labels, pa.int64())), folder / ROWS)


def _save_settings(folder: Path, cut_settings: Cut, settings: CompositeSettings) -> None:
    document = {"cut": asdict(cut_settings), "composite": settings.to_dict()}
    (folder / SETTINGS).write_text(json.dumps(document, indent=2) + "\n")


@contextmanager
def _folder(path: str | Path) -> Iterator[Path]:
    """Give a folder that appears under its name only when the block ends well."""
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} exists: choose another folder for the dataset")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        yield folder
        folder.rename(path)


def _hash01(pixels: Int64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a uniform number in [0, 1) for each pixel (the finaliser of splitmix64, Steele et al. 2014)."""
    z = pixels.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
