"""Which sources go into a training set; every refusal comes before a pixel is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ArchiveError, CatalogError, ConfigError
from ...files import content_digest, sha256_of
from ...images.archive import AtlasArchive, open_archive, require_usable_tile
from ...locations import user_path
from ...sources.assign import with_tiles
from ...types import BANDS, Int64
from .config import PRESETS, DatasetConfig
from .examples import (
    Labels,
    brighter,
    class_counts,
    count_words,
    images_simulated,
    keep,
    match_catalog,
    read_labels,
    refuse_empty_classes,
    settle_simulated,
    without_duplicates,
)
from .splits import Split, draw, split_sky, split_table


@dataclass(frozen=True)
class Chosen:
    """The sources to cut, sorted by tile and declination, with `label` and `split`; nothing of them is cut yet."""

    table: pa.Table
    simulated: bool
    dropped: dict[str, int]
    split: Split
    labels_digest: str
    matched_digest: str
    notes: tuple[str, ...] = ()


def choose(run: DatasetConfig) -> Chosen:
    """Return the sources of a training set; raises for all that cannot be right. Reads no pixel."""
    archive = _open(run.images, run.bands)
    labels = without_duplicates(read_labels(run.labels, run.allow_truncated))
    file_digest, digest = sha256_of(user_path(run.labels))[:16], ""
    if run.catalog:
        labels = match_catalog(labels, run.catalog, run.match_radius_arcsec, run.allow_truncated)
        digest = content_digest(labels.table)
    simulated = settle_simulated(run.simulated, [labels.simulated, images_simulated(run.images)])
    labels = _on_archive(labels, archive, run)
    wanted = {"counts": run.counts} | PRESETS.get(run.preset or "", {})
    notes = []
    for column, least in (("w1snr", run.min_w1snr), ("w2snr", run.min_w2snr)):
        least = wanted.get(f"min_{column}") if least is None else least
        notes += _unknown_snr(labels, column, least, run)
        labels = brighter(labels, column, least)
    labels = _drawn(labels, wanted["counts"] or {}, run)
    ra, dec, label = (labels.table[name].to_numpy() for name in ("ra", "dec", "label"))
    split = split_sky(ra, dec, label, run.split, run.seed, run.size_px)
    _refuse_empty_training(label, split, run)
    table = labels.table.append_column("split", pa.array(split.names.tolist(), pa.string()))
    keys = ("coadd_id", "dec", "ra", "source_id")
    table = table.sort_by([(key, "ascending") for key in keys]).combine_chunks()
    return Chosen(table, simulated, labels.dropped, split, file_digest, digest, tuple(notes))


def _unknown_snr(labels: Labels, column: str, least: float | None, run: DatasetConfig) -> list[str]:
    """Return a note where a least S/N is asked for and sources have none; `ConfigError` where no source has one."""
    unknown, n = labels.table[column].null_count, len(labels.table)
    if least is None or not unknown:
        return []
    if unknown == n and getattr(run, f"min_{column}") is not None:
        raise ConfigError(
            f"min_{column} = {least:g}: none of the {n:,} sources has {column}; give it in {run.labels}, name a "
            "catalogue that has it, or leave the limit out"
        )
    return [f"{unknown:,} sources of unknown {column} were not held to min_{column} = {least:g}"]


def _drawn(labels: Labels, counts: dict[str, int], run: DatasetConfig) -> Labels:
    """Return as many sources of each class as were asked for; `CatalogError` where there are fewer."""
    label = labels.table["label"].to_numpy()
    where = f"labels {run.labels}"
    refuse_empty_classes(label, f"{where} on {run.images}: of what is left{_dropped_words(labels.dropped)}")
    have = class_counts(label)
    if any(have[name] < n for name, n in counts.items()):
        need = ", ".join(f"{n:,} {name}" for name, n in counts.items())
        what = f"preset {run.preset}" if run.preset else "counts"
        raise CatalogError(
            f"{where}: {what} needs {need}; there are {count_words(label)}{_dropped_words(labels.dropped)}; "
            "label more sources, or set counts"
        )
    ra, dec = (labels.table[name].to_numpy() for name in ("ra", "dec"))
    return keep(labels, draw(ra, dec, label, counts, run.seed), "not_drawn")


def _dropped_words(dropped: dict[str, int]) -> str:
    words = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items() if n)
    return f" (left out: {words})" if words else ""


def _refuse_empty_training(label: Int64, split: Split, run: DatasetConfig) -> None:
    counts = split_table(label, split.names)["train"]
    if empty := [name for name, n in counts.items() if not n]:
        raise ConfigError(
            f"no {', '.join(empty)} in the training set: the {len(label):,} sources of {run.labels} lie in only "
            f"{split.n_pixels} HEALPix pixels of order {split.order}; label more sky, or try another seed or split"
        )


# --- the archive's part ----------------------------------------------------------------------------


def _open(images: str, bands: tuple[str, ...]) -> AtlasArchive:
    """Return the archive; a band that the whole of it lacks is told with the ones it has."""
    try:
        return open_archive(images, bands)
    except ArchiveError:
        present = [band for band in BANDS if _has(images, band)]
        if not present or set(bands) <= set(present):
            raise
        raise _band_error(images, bands, present) from None


def _has(images: str, band: str) -> bool:
    try:
        open_archive(images, (band,))
    except ArchiveError:
        return False
    return True


def _band_error(images: str, bands: tuple[str, ...], present: Iterable[str]) -> ConfigError:
    have = [band for band in BANDS if band in set(present)]
    lacking = ", ".join(band for band in bands if band not in have)
    fewer = [band for band in bands if band in have] or have
    return ConfigError(
        f"images {images}: no image of {lacking} for any labelled source, only of {', '.join(have)}; add them, or "
        f"choose those that are there with --bands {','.join(fewer)} (in a file: bands = {json.dumps(fewer)})"
    )


def _on_archive(labels: Labels, archive: AtlasArchive, run: DatasetConfig) -> Labels:
    """Return the sources on tiles of which the archive has all bands, each with its tile."""
    table = with_tiles(labels.table, archive)
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    names, place = np.unique(np.asarray(pc.fill_null(table["coadd_id"], "")).astype(str), return_inverse=True)
    bands_of = [set(archive.bands_of(str(name))) for name in names]
    present = set().union(*bands_of)
    if not present:
        raise CatalogError(
            f"none of the {len(table):,} labelled sources lies on a tile of {run.images}: they span RA "
            f"{ra.min():.3f}..{ra.max():.3f}, Dec {dec.min():+.3f}..{dec.max():+.3f}; is it another part of the sky?"
        )
    if not set(run.bands) <= present:
        raise _band_error(run.images, run.bands, present)
    there = np.array([bool(has) for has in bands_of])[place]
    complete = np.array([set(run.bands) <= has for has in bands_of])[place]
    kept = keep(replace(labels, table=table), there, "outside_archive")
    kept = keep(kept, complete[there], "missing_band")
    if not len(kept.table):
        raise CatalogError(f"images {run.images}: no tile of the labels has all of {', '.join(run.bands)}")
    require_usable_tile(archive, run.images, sorted(pc.unique(kept.table["coadd_id"]).to_pylist()), run.bands)
    return kept
