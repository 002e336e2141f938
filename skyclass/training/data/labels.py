"""Labels of the sky: spectroscopic classes of SDSS for sources of AllWISE, in one Parquet table.

    SkyServer   SpecObj x WISE_xmatch x WISE_allsky, class by class, page by page      (astroquery.sdss)
    clean       values outside their physical range to null, one row a WISE source, conflicting classes dropped
    re-match    the 2012 All-Sky positions of SDSS (`_ab41`) to AllWISE (`_ac51`): by upload to IRSA's TAP
                service, or offline against a local copy of the catalogue
    write       labels with AllWISE position, tile and photometry; the file remembers query, cuts and counts

Pages are kept in a folder beside the table until it is written: the same command goes on from them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ... import __version__
from ...errors import CatalogError, ConfigError, SkyclassError
from ...files import replacing, write_json
from ...schema import SOURCE_SCHEMA, bad_value_counts, without_bad_values
from ...settings import build
from ...sky.healpix import healpix, separation_deg, unit_vectors
from ...sky.regions import Box, Region
from ...sources.layouts import Catalog, open_catalog
from ...sources.partitions import read_partition
from ...types import CLASSES, Bool, Float64, Int32, Int64
from .services import (
    ALLWISE,
    MATCH_SCHEMA,
    PHOTOMETRY,
    SDSS_CLASSES,
    SPECTRUM_SCHEMA,
    Progress,
    ServiceError,
    irsa_page,
    irsa_query,
    sdss_address,
    sdss_page,
    sdss_query,
    tap_address,
)

METADATA_KEY = b"skyclass.labels"

LABEL_SCHEMA = pa.schema(
    [
        *(SOURCE_SCHEMA.field(name) for name in ("ra", "dec")), ("class", pa.string()),
        *(SOURCE_SCHEMA.field(name) for name in ("source_id", "coadd_id", *PHOTOMETRY)),
        ("specobjid", pa.uint64()), ("z", pa.float64()), ("subclass", pa.string()), ("match_arcsec", pa.float64()),
    ]
)  # fmt: skip
"""The label table: position (deg), tile and photometry (Vega mag) of AllWISE; class and z of SDSS."""


@dataclass(frozen=True)
class LabelsConfig:
    """One label table. Field names are the keys of LABELS.toml."""

    out: str
    """Parquet file to write; pages of an unfinished download are kept in OUT.pages."""
    catalog: str | None = None
    """Local AllWISE catalogue to match with; IRSA's TAP service when absent."""
    data_release: int = 17
    """SDSS data release; its SkyServer must have WISE_xmatch and WISE_allsky (DR9 and later)."""
    per_class: int | None = None
    """Most spectra of a class to download, in the order of specObjID: the oldest plates. See `one_in`."""
    one_in: int = 1
    """Take one of so many spectra, spread evenly over plates and fibres."""
    region: Region | None = None
    """Only spectra in this box of RA and Dec."""
    min_snr: float = 5.0
    """W1 and W2 must be above this S/N, in All-Sky and in AllWISE."""
    max_match_arcsec: float = 2.0
    """Largest distance from SDSS to All-Sky, and from there to AllWISE."""
    page_rows: int = 20_000
    """Spectra asked for at a time; SkyServer gives at most 500,000 and 600 s to a query."""
    upload_rows: int = 2_000
    """Positions uploaded to IRSA at a time."""
    sdss_url: str | None = None
    """SkyServer of a mirror; astroquery's setting when absent."""
    tap_url: str | None = None
    """TAP service of a mirror of IRSA; astroquery's setting when absent."""
    timeout_s: float = 600.0
    """How long a service may be silent."""
    retries: int = 5
    """Further attempts at one page, each after a longer wait."""
    backoff_s: float = 2.0
    """First wait; doubled each time. A Retry-After of the service goes first."""

    def __post_init__(self) -> None:
        positive = ("data_release", "one_in", "max_match_arcsec", "page_rows", "upload_rows", "timeout_s")
        problems = [f"{name} = {getattr(self, name)}: must be above 0" for name in positive if getattr(self, name) <= 0]
        not_negative = ("min_snr", "retries", "backoff_s")
        problems += [f"{name} = {getattr(self, name)}: is negative" for name in not_negative if getattr(self, name) < 0]
        problems += [f"{name} = {url!r}: is no http(s) address" for name, url in self._urls() if not _is_address(url)]
        if not self.out.endswith(".parquet"):
            problems.append(f"out = {self.out!r}: name a .parquet file")
        if self.per_class is not None and self.per_class < 1:
            problems.append(f"per_class = {self.per_class}: must be at least 1, or absent for all")
        if 0 < self.data_release < 9:
            problems.append(f"data_release = {self.data_release}: has no WISE tables, choose 9 or later")
        if self.region is not None and not isinstance(self.region, Box):
            problems.append("region: SDSS is asked for a box only, {kind = 'box', ra_min, ra_max, dec_min, dec_max}")
        if problems:
            raise ConfigError("labels: " + "; ".join(problems))

    def _urls(self) -> list[tuple[str, str]]:
        pairs = (("sdss_url", self.sdss_url), ("tap_url", self.tap_url))
        return [(name, url) for name, url in pairs if url is not None]


def labels_config(data: Mapping[str, Any]) -> LabelsConfig:
    """Return the label table that a mapping describes; a `region` may be a dict such as {kind = "box", ...}."""
    return build(LabelsConfig, data, "labels")


def fetch_labels(config: LabelsConfig, progress: Progress | None = None) -> Path:
    """Download, clean and re-match the labels; return the path of the Parquet table (`LABEL_SCHEMA`).

    `progress` gets dicts with "step": "sdss" {class, page, rows}, "match" {done, total}, "wait" {service,
    seconds, reason}, "write" {counts}. Interrupted or failed, the same call goes on from the pages it has.
    Raises `ConfigError` for wrong input (`out` exists, pages of another query), `ServiceError` when a
    service gives no usable answer, `CatalogError` for a local catalogue that is no AllWISE, `SkyclassError`
    when no label is left.
    """
    tell = progress or _tell_nobody
    out = Path(config.out)
    if out.exists():
        raise ConfigError(f"{out} exists: remove it, or choose another `out`")
    source = open_catalog(config.catalog) if config.catalog else None  # found wanting before hours of download
    folder = _pages_folder(config, out)
    spectra = _download(config, folder, tell)
    cleaned, counts = clean(spectra)
    if source:
        found = match_offline(cleaned, source, config.max_match_arcsec, tell)
    else:
        found = _match_irsa(cleaned, config, folder, tell)
    table, counts = finish(cleaned, found, config.min_snr, counts)
    if not len(table):
        raise SkyclassError(
            f"{out}: no label is left, nothing is written ({_counted(counts)}); give a `catalog` that covers the "
            f"sources, or remove {folder} and widen the cuts"
        )
    _write(table.replace_schema_metadata({METADATA_KEY: json.dumps(_provenance(config, counts))}), out)
    shutil.rmtree(folder)
    tell({"step": "write", "out": str(out), "counts": counts})
    return out


def label_provenance(path: str | Path) -> dict[str, Any]:
    """Return what a label table remembers: date, services, queries, cuts, counts. {} for a foreign table."""
    stored = (pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}")
    return dict(json.loads(stored))


# --- cleaning: pure --------------------------------------------------------------------------------


def clean(spectra: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return one row for each All-Sky source, our class names, bad values null; and what was dropped.

    `spectra` has `SPECTRUM_SCHEMA`. A source with spectra of different classes goes; of several spectra of
    one class the nearest stays. Sorted by specobjid.
    """
    counts = {"spectra": len(spectra)}
    names = pa.array(list(SDSS_CLASSES.values()))
    place = pc.index_in(pc.utf8_upper(pc.utf8_trim_whitespace(spectra["class"])), names)
    counts["of_another_class"] = place.null_count
    known = spectra.set_column(1, "class", pa.array(CLASSES).take(place)).filter(pc.is_valid(place))
    known, bits = without_bad_values(known)
    counts |= _bad_counts(bits, "sdss")
    kept, conflicting = one_each(known, "cntr", "match_dist")
    counts["conflicting_class_in_sdss"] = conflicting
    counts["repeated_spectra"] = len(known) - conflicting - len(kept)
    return kept, counts


def finish(
    cleaned: pa.Table, found: pa.Table, min_snr: float, counts: Mapping[str, int]
) -> tuple[pa.Table, dict[str, int]]:
    """Return the label table (`LABEL_SCHEMA`, by specobjid) of cleaned spectra and their AllWISE sources.

    `found` has `MATCH_SCHEMA`. Each AllWISE source gets one label: the nearest; none where labels of different
    classes meet on it. Sources that AllWISE measures at or below `min_snr` in W1 or W2, or not at all, go.
    """
    counts = dict(counts) | {"without_allwise_source": len(cleaned) - len(found)}
    rows = cleaned.take(found["label_row"])
    own = {name: rows[name] for name in ("class", "specobjid", "z", "subclass")}
    table = pa.table([own[name] if name in own else found[name] for name in LABEL_SCHEMA.names], schema=LABEL_SCHEMA)
    table, bits = without_bad_values(table)
    counts |= _bad_counts(bits, "allwise")
    bright = pc.and_(pc.greater(table["w1snr"], min_snr), pc.greater(table["w2snr"], min_snr)).fill_null(False)
    measured = table.filter(bright)
    counts["below_min_snr_in_allwise"] = len(table) - len(measured)
    labels, conflicting = one_each(measured, "source_id", "match_arcsec")
    counts["conflicting_class_in_allwise"] = conflicting
    counts["sharing_an_allwise_source"] = len(measured) - conflicting - len(labels)
    per_class = Counter(labels["class"].to_pylist())
    return labels, counts | {"labels": len(labels)} | {name: per_class[name] for name in CLASSES}


def _bad_counts(bits: Int32, service: str) -> dict[str, int]:
    """Return how many values of each column of a service were outside their physical range."""
    return {f"bad_{name}_in_{service}": n for name, n in bad_value_counts(bits).items()}


def one_each(table: pa.Table, key: str, distance: str) -> tuple[pa.Table, int]:
    """Return the nearest row of each value of `key`, by specobjid, and how many rows conflict in class.

    Rows of a value that stands with more than one class are all left out; null values belong to nobody.
    """
    table = table.filter(pc.is_valid(table[key]))
    if not len(table):
        return table, 0
    group = pc.dictionary_encode(table[key].combine_chunks()).indices.to_numpy()
    label = pc.index_in(table["class"], pa.array(CLASSES)).to_numpy()
    order = np.lexsort((table["specobjid"].to_numpy(), table[distance].to_numpy(), group))
    first = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    size = np.diff(np.r_[first, len(order)])
    agreed = np.minimum.reduceat(label[order], first) == np.maximum.reduceat(label[order], first)
    kept = table.take(order[first[agreed]]).sort_by([("specobjid", "ascending"), (key, "ascending")])
    return kept.combine_chunks(), int(size[~agreed].sum())


def _download(config: LabelsConfig, folder: Path, tell: Progress) -> pa.Table:
    """Return all spectra (`SPECTRUM_SCHEMA`), from the pages in the folder and then from SkyServer."""
    for name in CLASSES:
        _download_class(config, name, folder, tell)
    pages = [_read_page(path) for name in CLASSES for path in _pages(folder, name)]
    return pa.concat_tables(pages, promote_options="none") if pages else SPECTRUM_SCHEMA.empty_table()


def _download_class(config: LabelsConfig, name: str, folder: Path, tell: Progress) -> None:
    """Write the missing pages of a class. Only an empty page is the end: a server may cut a page silently."""
    held = [_read_page(path) for path in _pages(folder, name)]
    n_rows, n_pages = sum(len(page) for page in held), len(held)
    after = next((_last_key(page) for page in reversed(held) if len(page)), (0, 0))
    done = bool(held) and not len(held[-1])
    while not done and (config.per_class is None or n_rows < config.per_class):
        rows = config.page_rows if config.per_class is None else min(config.page_rows, config.per_class - n_rows)
        page = sdss_page(config, name, after, rows, tell)
        _write(page, folder / f"{name}-{n_pages:06d}.parquet")
        done, n_pages, n_rows = not len(page), n_pages + 1, n_rows + len(page)
        after = after if done else _last_key(page)
        tell({"step": "sdss", "class": name, "page": n_pages, "rows": n_rows})


def _last_key(page: pa.Table) -> tuple[int, int]:
    return page["specobjid"][-1].as_py(), page["cntr"][-1].as_py()


def _match_irsa(cleaned: pa.Table, config: LabelsConfig, folder: Path, tell: Progress) -> pa.Table:
    """Return the nearest AllWISE source of each row (`MATCH_SCHEMA`), from pages in the folder, then from IRSA."""
    done = 0
    while path := next(iter(folder.glob(f"match-{done:09d}-*.parquet")), None):
        done = int(path.stem.rpartition("-")[2])
    while done < len(cleaned):
        stop = min(done + config.upload_rows, len(cleaned))
        page = nearest(cleaned, irsa_page(cleaned, done, stop, config, tell), config.max_match_arcsec)
        _write(page, folder / f"match-{done:09d}-{stop:09d}.parquet")
        done = stop
        tell({"step": "match", "done": done, "total": len(cleaned)})
    pages = [_read_page(path) for path in sorted(folder.glob("match-*.parquet"))]
    return pa.concat_tables([MATCH_SCHEMA.empty_table(), *pages])


def nearest(cleaned: pa.Table, candidates: pa.Table, max_match_arcsec: float) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the candidate nearest to each row of `cleaned`, none beyond the radius.

    `candidates` has `label_row`, the row of `cleaned` that each was found for, and the columns `ALLWISE`.
    """
    row = candidates["label_row"].to_numpy()
    if len(row) and (candidates["label_row"].null_count or row.min() < 0 or row.max() >= len(cleaned)):
        raise ServiceError(f"IRSA TAP returned a label_row that was not uploaded ({row.min()}..{row.max()})")
    place = cleaned.take(pa.array(row))
    arcsec = 3600 * separation_deg(place["ra"], place["dec"], candidates["ra"], candidates["dec"])
    table = candidates.append_column("match_arcsec", pa.array(arcsec)).select(MATCH_SCHEMA.names)
    order = np.lexsort((arcsec, row))
    order = order[arcsec[order] <= max_match_arcsec]
    return table.take(order[np.r_[True, np.diff(row[order]) > 0]] if len(order) else order).combine_chunks()


# --- AllWISE, offline ------------------------------------------------------------------------------


def match_offline(
    cleaned: pa.Table, source: Catalog, max_match_arcsec: float, progress: Progress | None = None
) -> pa.Table:
    """Return the nearest source of a local AllWISE catalogue for each row of `cleaned` (`MATCH_SCHEMA`).

    Partitions that no position comes near are not read; one is in memory at a time. Raises `CatalogError` when the
    catalogue is another release than AllWISE.
    """
    tell = progress or _tell_nobody
    ra, dec = cleaned["ra"].to_numpy(), cleaned["dec"].to_numpy()
    best_arcsec, found = np.full(len(ra), np.inf), [MATCH_SCHEMA.empty_table()]
    near = _rows_by_pixel(ra, dec, source, max_match_arcsec)
    wanted = [i for i, part in enumerate(source.partitions) if part.order < 0 or part.pixel in near[part.order]]
    for done, i in enumerate(wanted, 1):
        part = source.partitions[i]
        rows = np.arange(len(ra)) if part.order < 0 else near[part.order][part.pixel]
        here = _nearest_in(cleaned, rows, read_partition(source, i), max_match_arcsec)
        here = here.filter(pa.array(here["match_arcsec"].to_numpy() < best_arcsec[here["label_row"].to_numpy()]))
        best_arcsec[here["label_row"].to_numpy()] = here["match_arcsec"].to_numpy()
        found.append(here)
        tell({"step": "match", "done": done, "total": len(wanted)})
    table = pa.concat_tables(found).combine_chunks()
    # A row that a later partition improved on is still there, with its larger distance.
    final = table["match_arcsec"].to_numpy() == best_arcsec[table["label_row"].to_numpy()]
    return _allwise_only(table.filter(pa.array(final)).sort_by("label_row"), source.root)


def _rows_by_pixel(ra: Float64, dec: Float64, source: Catalog, radius_arcsec: float) -> dict[int, dict[int, Int64]]:
    """Return, by order and pixel of the catalogue's partitions, the positions within reach of the pixel.

    A position reaches the pixels of itself and of eight points on a circle whose octagon encloses the radius.
    """
    centre, north = unit_vectors(ra, dec), unit_vectors(ra, dec + 90.0)
    east = unit_vectors(ra + 90.0, np.zeros_like(dec))
    angle, reach = np.arange(8)[:, None, None] * np.pi / 4, np.tan(np.radians(1.1 * radius_arcsec / 3600))
    x, y, z = np.moveaxis(centre + reach * (np.cos(angle) * east + np.sin(angle) * north), -1, 0)
    lon = np.vstack([ra, np.degrees(np.arctan2(y, x))])
    lat = np.vstack([dec, np.degrees(np.arctan2(z, np.hypot(x, y)))])
    orders = {part.order for part in source.partitions if part.order >= 0}
    return {order: _grouped(healpix(order, lon, lat)) for order in orders}


def _grouped(pixels: Int64) -> dict[int, Int64]:
    """Return pixel -> the columns of `pixels` (points, positions) in which it stands."""
    columns = np.broadcast_to(np.arange(pixels.shape[1]), pixels.shape)
    pairs = np.unique(np.column_stack([pixels.ravel(), columns.ravel()]), axis=0)
    values, first = np.unique(pairs[:, 0], return_index=True)
    return dict(zip(values.tolist(), np.split(pairs[:, 1], first[1:]), strict=False))


def _nearest_in(cleaned: pa.Table, positions: Int64, rows: pa.Table, radius_arcsec: float) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the nearest of `rows` for each of the positions that has one within the radius."""
    from scipy.spatial import cKDTree

    if not len(rows) or not len(positions):
        return MATCH_SCHEMA.empty_table()
    tree = cKDTree(unit_vectors(rows["ra"].to_numpy(), rows["dec"].to_numpy()))
    asked = cleaned.take(pa.array(positions))
    chord = 2 * np.sin(np.radians(radius_arcsec / 3600) / 2) * (1 + 1e-9)
    _, index = tree.query(unit_vectors(asked["ra"], asked["dec"]), distance_upper_bound=chord)
    hit = index < len(rows)
    candidates = rows.take(pa.array(index[hit])).select(ALLWISE)
    return nearest(cleaned, candidates.append_column("label_row", pa.array(positions[hit])), radius_arcsec)


def _allwise_only(found: pa.Table, where: str) -> pa.Table:
    """Return the matches, or refuse a catalogue whose tiles are of another release, such as All-Sky (`_ab41`)."""
    tiles = found["coadd_id"].drop_null()
    strange: Bool = pc.invert(pc.match_substring_regex(tiles, r"^\d{4}[pm]\d{3}_ac\d+$"))
    if pc.any(strange).as_py():
        raise CatalogError(
            f"{where}: coadd_id {tiles.filter(strange)[0]} is no tile of AllWISE (such as 0098p408_ac51); labels "
            "need positions and tiles of AllWISE, not of the 2012 All-Sky release (_ab41)"
        )
    return found


# --- pages and files -------------------------------------------------------------------------------


def _pages_folder(config: LabelsConfig, out: Path) -> Path:
    """Return the folder of pages, made if absent; `ConfigError` when its pages answer another question."""
    folder = out.with_name(out.name + ".pages")
    # What decides neither the spectra nor their order may change between attempts: it is the way out of faults.
    free = {"out", "catalog", "page_rows", "upload_rows", "sdss_url", "tap_url", "timeout_s", "retries", "backoff_s"}
    asked = {key: value for key, value in _plain_config(config).items() if key not in free}
    asked["query"] = sdss_query(replace(config, page_rows=1), CLASSES[0])
    note = folder / "query.json"
    if note.is_file():
        held = json.loads(note.read_text())
        if changed := sorted(key for key in asked if held.get(key) != asked[key]):
            raise ConfigError(
                f"{folder} holds pages of another question ({', '.join(changed)} changed): remove the folder to "
                "start anew, or choose another `out`"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)
    return folder


def _pages(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*.parquet"))


def _read_page(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: this page cannot be read ({error}); remove its folder to start anew") from error


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as temp:
        pq.write_table(table, temp, compression="zstd")


def _provenance(config: LabelsConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what the table remembers of its making, plain JSON types."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "skyclass": __version__,
        "data_release": config.data_release,
        "sdss": sdss_address(config),
        "sdss_query": {name: sdss_query(config, name) for name in CLASSES},
        "allwise": config.catalog or tap_address(config),
        "allwise_query": None if config.catalog else irsa_query(config.max_match_arcsec),
        "cuts": {key: _plain_config(config)[key] for key in ("min_snr", "max_match_arcsec", "per_class", "one_in",
                                                             "region")} | {"zWarning": 0},
        "counts": dict(counts),
    }  # fmt: skip


def _plain_config(config: LabelsConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return values | {"region": config.region.to_dict() if config.region else None}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items())


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _tell_nobody(event: Mapping[str, Any]) -> None:
    """Hear what happens and do nothing."""
