"""The sources of a training set; every input error is reported before a pixel is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ArchiveError, CatalogError, ConfigError
from ...files import content_digest, sha256_of
from ...images.archive import AtlasArchive, open_archive
from ...images.usable import remedy_of_hours, require_usable_tile, warn_of_refused_files
from ...locations import user_path
from ...model.photometry import further_columns
from ...sky.healpix import healpix29
from ...sources.assign import with_tiles
from ...sources.source_table import columns_without_values
from ...text import counted, one_or_many
from ...types import BANDS, Int64
from .catalog_match import match_catalog
from .classes import label_counts, label_counts_text, require_all_classes
from .config import PRESETS, DatasetConfig
from .examples import (
    Labels,
    images_simulated,
    keep_rows,
    min_snr,
    read_labels,
    read_tables,
    resolve_simulated,
    without_duplicates,
)
from .splits import Split, draw_sources, split_rows, split_sky, split_table


@dataclass(frozen=True)
class Selection:
    """The sources to cut: `table` has `label` and `split`, sorted by tile and declination."""

    table: pa.Table
    simulated: bool
    dropped: dict[str, int]
    split: Split
    labels_digest: str
    catalog_digest: str
    notes: tuple[str, ...] = ()


def select_sources(config: DatasetConfig) -> Selection:
    """Return the sources of a training set. Reads no pixel.

    Raises `ConfigError`, `CatalogError` or `ArchiveError` for input that cannot be used.
    """
    archive = _open_archive(config.images, config.bands) if config.images else None
    further = further_columns(config.columns)
    labels, labels_digest, catalog_digest = *_read_labels(config, further), ""
    _require_positions(labels, config)
    labels = without_duplicates(labels)
    if config.catalog:
        labels = match_catalog(labels, config.catalog, config.match_radius_arcsec, config.allow_truncated, further)
        catalog_digest = content_digest(labels.table)
    _require_columns(labels.table, config)
    marks = [labels.simulated, images_simulated(config.images) if config.images else None]
    simulated = resolve_simulated(config.simulated, marks)
    if archive:
        labels = _on_archive(labels, archive, config)
    labels, notes = _apply_min_snr(labels, config)
    labels = _draw(labels, config)
    split, split_notes = _split(labels.table, config)
    notes += split_notes
    _require_training_classes(labels.table["label"].to_numpy(), split, config)
    table = labels.table.append_column("split", pa.array(split.names.tolist(), pa.string()))
    keys = ("coadd_id", "dec", "ra", "source_id")
    table = table.sort_by([(key, "ascending") for key in keys]).combine_chunks()
    return Selection(table, simulated, labels.dropped, split, labels_digest, catalog_digest, tuple(notes))


def _read_labels(config: DatasetConfig, further: tuple[str, ...]) -> tuple[Labels, str]:
    """Return the labelled sources and a digest of them."""
    if config.labels:
        labels = read_labels(config.labels, config.classes, config.allow_truncated, further)
        return labels, sha256_of(user_path(config.labels))[:16]
    labels = read_tables(config.tables or {}, config.classes, config.allow_truncated, further)
    return labels, content_digest(labels.table)


def _require_positions(labels: Labels, config: DatasetConfig) -> None:
    """Raise `CatalogError` for sources without positions that need one."""
    n_without = labels.table["ra"].null_count
    if n_without and (config.catalog or config.images):
        need = "a catalogue needs" if config.catalog else "images need"
        raise CatalogError(
            f"tables {config.origin}: {counted(n_without, 'source')} without ra and dec, which {need}: add the "
            "columns, or make a dataset with no_images = true and without catalog"
        )


def _split(table: pa.Table, config: DatasetConfig) -> tuple[Split, list[str]]:
    """Return the split, on the sky where all sources have positions, and a note where it is not."""
    ra, dec, label = (table[name].to_numpy() for name in ("ra", "dec", "label"))
    if not (n_without := table["ra"].null_count):
        return split_sky(ra, dec, label, config.split, config.seed, config.size_px), []
    have = one_or_many(n_without, "has", "have")
    note = (
        f"split at random by row, not by sky, because {counted(n_without, 'source')} {have} no position: neighbours on "
        "the sky may be in training and test"
    )
    return split_rows(label, config.split, config.seed), [note]


def _require_columns(table: pa.Table, config: DatasetConfig) -> None:
    """Raise `CatalogError` for columns of the configuration without any value."""
    if absent := columns_without_values(table, config.columns):
        raise CatalogError(
            f"{config.catalog or config.origin}: none of the {len(table):,} labelled sources has a value in "
            f"{', '.join(absent)}: name a catalogue that has it as catalog, or leave it out of columns"
        )


def _apply_min_snr(labels: Labels, config: DatasetConfig) -> tuple[Labels, list[str]]:
    """Return the sources above the S/N limits of the configuration or its preset, and notes on unknown S/N."""
    preset, notes = PRESETS.get(config.preset or "", {}), []
    limits = {"w1snr": config.min_w1snr, "w2snr": config.min_w2snr}
    for column, limit in limits.items():
        threshold = preset.get(f"min_{column}") if limit is None else limit
        notes += _unknown_snr_notes(labels, column, threshold, config)
        labels = min_snr(labels, column, threshold)
    return labels, notes


def _unknown_snr_notes(labels: Labels, column: str, threshold: float | None, config: DatasetConfig) -> list[str]:
    """Return a note on sources of unknown S/N below a limit; `ConfigError` where no source has one."""
    n_unknown, n = labels.table[column].null_count, len(labels.table)
    if threshold is None or not n_unknown:
        return []
    if n_unknown == n and getattr(config, f"min_{column}") is not None:
        raise ConfigError(
            f"min_{column} = {threshold:g}: none of the {n:,} sources has {column}; add it to the labels, name a "
            "catalogue that has it, or remove the limit"
        )
    were = one_or_many(n_unknown, "was", "were")
    return [f"{counted(n_unknown, 'source')} of unknown {column} {were} not held to min_{column} = {threshold:g}"]


def _draw(labels: Labels, config: DatasetConfig) -> Labels:
    """Return the configured number of sources of each class; `CatalogError` where there are fewer."""
    counts: dict[str, int] = config.counts or PRESETS.get(config.preset or "", {}).get("counts", {})
    label = labels.table["label"].to_numpy()
    drops = _drops_text(labels.dropped)
    require_all_classes(label, labels.classes, f"labels {config.origin}: of the remaining sources{drops}")
    available = label_counts(label, labels.classes)
    if any(available[name] < n for name, n in counts.items()):
        needed = ", ".join(f"{n:,} {name}" for name, n in counts.items())
        setting = f"preset {config.preset}" if config.preset else "counts"
        raise CatalogError(
            f"labels {config.origin}: {setting} needs {needed}; there are "
            f"{label_counts_text(label, labels.classes)}{drops}; label "
            "more sources, or set counts"
        )
    ra, dec = (labels.table[name].to_numpy() for name in ("ra", "dec"))
    numbers = np.arange(len(label)) if labels.table["ra"].null_count else healpix29(ra, dec)
    n_drawn = {labels.classes.index(name): n for name, n in counts.items()}
    return keep_rows(labels, draw_sources(numbers, label, n_drawn, config.seed), "not_drawn")


def _drops_text(dropped: dict[str, int]) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items() if n)
    return f" (left out: {reasons})" if reasons else ""


def _require_training_classes(label: Int64, split: Split, config: DatasetConfig) -> None:
    counts = split_table(label, split.names, config.classes)["train"]
    if empty := [name for name, n in counts.items() if not n]:
        where = f" lie in only {counted(split.n_pixels, 'HEALPix pixel')} of order {split.order}"
        raise ConfigError(
            f"no {', '.join(empty)} in the training set: the {len(label):,} sources of {config.origin}"
            f"{' are too few' if split.order is None else where}; label more sky, or try another seed or split"
        )


# --- the image archive -----------------------------------------------------------------------------


def _open_archive(images: str, bands: tuple[str, ...]) -> AtlasArchive:
    """Return the archive; the error for a band that it lacks everywhere names the bands that it has."""
    try:
        return open_archive(images, bands)
    except ArchiveError:
        present = [band for band in BANDS if _has_band(images, band)]
        if not present or set(bands) <= set(present):
            raise
        raise _missing_band_error(images, bands, present) from None


def _has_band(images: str, band: str) -> bool:
    try:
        open_archive(images, (band,))
    except ArchiveError:
        return False
    return True


def _missing_band_error(images: str, bands: tuple[str, ...], present: Iterable[str]) -> ConfigError:
    available = [band for band in BANDS if band in set(present)]
    missing = ", ".join(band for band in bands if band not in available)
    usable = [band for band in bands if band in available] or available
    return ConfigError(
        f"images {images}: no image of {missing} for any labelled source, only of {', '.join(available)}; add them, or "
        f"choose available bands with --bands {','.join(usable)} (in a file: bands = {json.dumps(usable)})"
    )


def _on_archive(labels: Labels, archive: AtlasArchive, config: DatasetConfig) -> Labels:
    """Return the sources on tiles of which the archive has all bands, each with its tile."""
    assert config.images
    warn_of_refused_files(archive, config.images)
    table = with_tiles(labels.table, archive)
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    coadd_ids = np.asarray(pc.fill_null(table["coadd_id"], "")).astype(str)
    tiles, tile_of_row = np.unique(coadd_ids, return_inverse=True)
    bands_of_tile = [set(archive.bands_of(str(tile))) for tile in tiles]
    present = set().union(*bands_of_tile)
    if not present:
        hours = f"; {remedy}" if (remedy := remedy_of_hours(ra)) else ""
        raise CatalogError(
            f"none of the {len(table):,} labelled sources lies on a tile of {config.images}: they span RA "
            f"{ra.min():.3f}..{ra.max():.3f}, Dec {dec.min():+.3f}..{dec.max():+.3f}{hours}; is it another part of the "
            "sky?"
        )
    if not set(config.bands) <= present:
        raise _missing_band_error(config.images, config.bands, present)
    has_image = np.array([bool(bands) for bands in bands_of_tile])[tile_of_row]
    has_all_bands = np.array([set(config.bands) <= bands for bands in bands_of_tile])[tile_of_row]
    labels = keep_rows(replace(labels, table=table), has_image, "outside_archive")
    labels = keep_rows(labels, has_all_bands[has_image], "missing_band")
    if not len(labels.table):
        raise CatalogError(f"images {config.images}: no tile of the labels has all of {', '.join(config.bands)}")
    remaining_tiles = sorted(pc.unique(labels.table["coadd_id"]).to_pylist())
    require_usable_tile(archive, config.images, remaining_tiles, config.bands)
    return labels
