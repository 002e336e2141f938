"""Labels of the sky: spectroscopic classes of SDSS for sources of AllWISE, in one Parquet table.

    SkyServer   SpecObj x WISE_xmatch x WISE_allsky, class by class, page by page      (astroquery.sdss)
    clean       sentinels to null, one row a WISE source, conflicting classes dropped
    re-match    the 2012 All-Sky positions of SDSS (`_ab41`) to AllWISE (`_ac51`): by upload to IRSA's TAP
                service, or offline against a local copy of the catalogue
    write       labels with AllWISE position, tile and photometry; the file remembers query, cuts and counts

Pages are kept in a folder beside the table until it is written: the same command goes on from them.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from html import unescape
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from .. import __version__
from ..catalog import SOURCE_SCHEMA, Catalog, open_catalog, read_partition
from ..config import build
from ..errors import CatalogError, ConfigError, SkyclassError
from ..sky import Box, Region, healpix, region_from_dict, separation_deg, unit_vectors
from ..types import CLASSES, Bool, Float64, Int64

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], None]

SDSS_CLASSES = {"galaxy": "GALAXY", "quasar": "QSO", "star": "STAR"}
ALLWISE_TABLE = "allwise_p3as_psd"
SENTINEL_MAG = 30.0
"""Magnitudes this faint stand for "not measured": the tables of SDSS have no nulls, but 9999 and the like."""
EOL = "eol"
"""Last column of every row asked of SDSS: a row without it was cut short on the way."""
PER_POSITION = 50
"""Most AllWISE sources expected within the match radius of one position; more is an overflow."""
LONGEST_WAIT_S = 300.0
BUSY = (429, 502, 503, 504)
METADATA_KEY = b"skyclass.labels"

SPECTRUM_SCHEMA = pa.schema(
    [
        ("specobjid", pa.uint64()), ("class", pa.string()), ("subclass", pa.string()), ("z", pa.float64()),
        ("match_dist", pa.float64()), ("cntr", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()),
        *((f"w{b}{what}", pa.float32()) for what in ("mpro", "snr") for b in (1, 2, 3)),
    ]
)  # fmt: skip
"""A page of SDSS: `ra`, `dec` and photometry of the 2012 All-Sky source, `match_dist` arcsec from SDSS to it."""

SELECTED = {
    "specobjid": "s.specObjID", "class": "s.class", "subclass": "s.subClass", "z": "s.z",
    "match_dist": "xm.match_dist", "cntr": "w.cntr",
}  # fmt: skip
"""Our name -> SDSS's, where it is not the column of that name in WISE_allsky."""

PHOTOMETRY = tuple(f"w{b}{what}" for what in ("mpro", "snr") for b in (1, 2, 3))
ALLWISE = ("source_id", "coadd_id", "ra", "dec", *PHOTOMETRY)
MATCH_SCHEMA = pa.schema(
    [("label_row", pa.int64()), ("match_arcsec", pa.float64()), *(SOURCE_SCHEMA.field(name) for name in ALLWISE)]
)
"""The AllWISE source nearest to row `label_row` of the cleaned spectra."""

LABEL_SCHEMA = pa.schema(
    [
        *(SOURCE_SCHEMA.field(name) for name in ("ra", "dec")), ("class", pa.string()),
        *(SOURCE_SCHEMA.field(name) for name in ("source_id", "coadd_id", *PHOTOMETRY)),
        ("specobjid", pa.uint64()), ("z", pa.float64()), ("subclass", pa.string()), ("match_arcsec", pa.float64()),
    ]
)  # fmt: skip
"""The label table: position (deg), tile and photometry (Vega mag) of AllWISE; class and z of SDSS."""

PASSING = re.compile(
    r"time-?\s?out|timed? ?out|deadlock|per minute|transport-level|try again|temporar|unavailable|overload", re.I
)
"""What a service says when the same question may be answered later."""


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


class ServiceError(SkyclassError):
    """A public service did not answer, or refused what it was asked."""


class _Again(Exception):
    """The same question may be answered later; `wait_s` is what the service asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.wait_s = wait_s
        super().__init__(_first_line(reason))


class _Unreachable(_Again):
    """There was no connection: nobody answered at all."""


OFFLINE = (
    "the service cannot be reached: run this where it can be (a login node, not a compute node, on many clusters), or "
    "name a mirror; pages that came are kept and the same command goes on"
)


class _Refused(Exception):
    """Asking again is of no use."""

    def __init__(self, reason: str) -> None:
        super().__init__(_first_line(reason))


def labels_config(data: Mapping[str, Any]) -> LabelsConfig:
    """Return the label table that a mapping describes; a `region` may be a dict such as {kind = "box", ...}."""
    data = dict(data)
    if isinstance(data.get("region"), Mapping):
        data["region"] = region_from_dict(dict(data["region"]))
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
        found = match_catalog(cleaned, source, config.max_match_arcsec, tell)
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
    """Return one row for each All-Sky source, our class names, sentinels null; and what was dropped.

    `spectra` has `SPECTRUM_SCHEMA`. A source with spectra of different classes goes; of several spectra of
    one class the nearest stays. Sorted by specobjid.
    """
    counts = {"spectra": len(spectra)}
    names = pa.array(list(SDSS_CLASSES.values()))
    place = pc.index_in(pc.utf8_upper(pc.utf8_trim_whitespace(spectra["class"])), names)
    counts["of_another_class"] = place.null_count
    known = spectra.set_column(1, "class", pa.array(CLASSES).take(place)).filter(pc.is_valid(place))
    known = _without_sentinels(known)
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
    table = _without_sentinels(table)
    bright = pc.and_(pc.greater(table["w1snr"], min_snr), pc.greater(table["w2snr"], min_snr)).fill_null(False)
    measured = table.filter(bright)
    counts["below_min_snr_in_allwise"] = len(table) - len(measured)
    labels, conflicting = one_each(measured, "source_id", "match_arcsec")
    counts["conflicting_class_in_allwise"] = conflicting
    counts["sharing_an_allwise_source"] = len(measured) - conflicting - len(labels)
    per_class = Counter(labels["class"].to_pylist())
    return labels, counts | {"labels": len(labels)} | {name: per_class[name] for name in CLASSES}


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


def _without_sentinels(table: pa.Table) -> pa.Table:
    """Return the table with magnitudes and S/N that stand for "not measured" null."""
    for name in (name for name in PHOTOMETRY if name in table.column_names):
        column = table[name]
        good = pc.and_(pc.is_finite(column), pc.greater(column, -SENTINEL_MAG))
        if name.endswith("mpro"):
            good = pc.and_(good, pc.less(column, SENTINEL_MAG))
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pc.if_else(good, column, None))
    return table


# --- SDSS ------------------------------------------------------------------------------------------


def sdss_query(config: LabelsConfig, name: str, after: tuple[int, int] = (0, 0), rows: int | None = None) -> str:
    """Return the SQL of one page: spectra of class `name` after (specObjID, cntr), in that order.

    A spectrum may have several WISE sources, so the order needs both keys. One line, one SELECT and no
    semicolon, because SkyServer rewrites anything else (spExecuteSQL).
    """
    columns = [f"{SELECTED.get(column, f'w.{column}')} AS {column}" for column in SPECTRUM_SCHEMA.names]
    spectrum, source = after
    conditions = [
        f"s.class = '{SDSS_CLASSES[name]}'", "s.zWarning = 0",
        f"s.specObjID >= {spectrum}", f"(s.specObjID > {spectrum} OR w.cntr > {source})",
        f"xm.match_dist < {config.max_match_arcsec:g}",
        f"w.w1snr > {config.min_snr:g}", f"w.w2snr > {config.min_snr:g}",
        f"w.w1mpro < {SENTINEL_MAG:g}", f"w.w2mpro < {SENTINEL_MAG:g}",  # a sentinel S/N is above any limit
    ]  # fmt: skip
    if config.one_in > 1:
        conditions.append(f"(s.plate * 7919 + s.fiberID * 104729 + s.mjd) % {config.one_in} = 0")
    if isinstance(config.region, Box):
        conditions += _in_box(config.region)
    return (
        f"SELECT TOP {rows or config.page_rows} {', '.join(columns)}, '{EOL}' AS {EOL} FROM SpecObj AS s"
        " JOIN WISE_xmatch AS xm ON s.bestObjID = xm.sdss_objid JOIN WISE_allsky AS w ON xm.wise_cntr = w.cntr"
        f" WHERE {' AND '.join(conditions)} ORDER BY s.specObjID, w.cntr"
    )


def _in_box(box: Box) -> list[str]:
    """Return the SQL conditions of a box; RA 0 may lie inside it."""
    dec = [f"s.dec BETWEEN {box.dec_min!r} AND {box.dec_max!r}"]
    if box.width_deg >= 360:
        return dec
    low, high = box.ra_min % 360, box.ra_max % 360
    return [f"s.ra BETWEEN {low!r} AND {high!r}" if low <= high else f"(s.ra >= {low!r} OR s.ra <= {high!r})", *dec]


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
        page = _sdss_page(config, name, after, rows, tell)
        _write(page, folder / f"{name}-{n_pages:06d}.parquet")
        done, n_pages, n_rows = not len(page), n_pages + 1, n_rows + len(page)
        after = after if done else _last_key(page)
        tell({"step": "sdss", "class": name, "page": n_pages, "rows": n_rows})


def _last_key(page: pa.Table) -> tuple[int, int]:
    return page["specobjid"][-1].as_py(), page["cntr"][-1].as_py()


def _sdss_page(config: LabelsConfig, name: str, after: tuple[int, int], rows: int, tell: Progress) -> pa.Table:
    """Return one page, or raise `ServiceError` after the last attempt."""
    query = sdss_query(config, name, after, rows)
    asked = f"SDSS SkyServer DR{config.data_release} ({_sdss_address(config)}), asked for {rows} spectra of class "
    asked += f"{SDSS_CLASSES[name]} after specObjID {after[0]}"
    way_out = (
        f"lower `page_rows` (now {config.page_rows}) if it is about time or rows, choose another `data_release`, "
        "or name a mirror as `sdss_url`; pages that came are kept and the same command goes on"
    )
    return _persist(lambda: sdss_table(_ask_sdss(config, query), after), asked, way_out, config, tell)


def _ask_sdss(config: LabelsConfig, query: str) -> Response:
    from astroquery.sdss import SDSSClass, conf

    with conf.set_temp("skyserver_baseurl", _sdss_address(config)):
        response: Response = SDSSClass().query_sql_async(
            query, timeout=config.timeout_s, data_release=config.data_release, cache=False
        )
    return response


def _sdss_address(config: LabelsConfig) -> str:
    from astroquery.sdss import conf

    return (config.sdss_url or str(conf.skyserver_baseurl)).rstrip("/")


def sdss_table(response: Response, after: tuple[int, int]) -> pa.Table:
    """Return the page (`SPECTRUM_SCHEMA`) in an answer of SkyServer.

    Raises what `_persist` understands: errors come as JSON with status 500, as CSV with one column
    `error_message`, or as a web page with status 200; the row limit, the query rate and time-outs of the
    database are among them.
    """
    _check_busy(response)
    text = response.content.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    said = _sdss_complaint(text)
    if said is not None:
        raise _Again(said or "an error page without a reason") if not said or PASSING.search(said) else _Refused(said)
    _check_status(response, text)
    if not text or text.startswith("<"):
        raise _Again(f"a web page instead of a table: {_first_line(text)}" if text else "an empty answer")
    if text.startswith("No objects have been found"):
        return SPECTRUM_SCHEMA.empty_table()
    return _read_csv(text.partition("\n")[2] if text.startswith("#") else text, after)


def _sdss_complaint(text: str) -> str | None:
    """Return the reason in an error answer of SkyServer, "" if it gives none, None if it is no such answer."""
    if text.startswith("{") and '"ErrorMessage"' in text:
        found = re.search(r'"ErrorMessage"\s*:\s*("(?:[^"\\]|\\.)*")', text)
        return str(json.loads(found[1], strict=False)) if found else ""
    header, _, rest = text.removeprefix("#Table1").lstrip().partition("\n")
    if header.strip().lower() == "error_message":
        return rest.strip().strip('"')
    if "<title>skyserver error</title>" in text[:500].lower():
        page = re.sub(r"(?is)^.*?an error occ?urr?ed", "", text)
        return _plain(page.split("<form")[0])
    return None


def _read_csv(text: str, after: tuple[int, int]) -> pa.Table:
    """Return the rows of a CSV answer; `_Again` when it was cut short, `_Refused` when it has other columns."""
    first, newline, rest = text.partition("\n")
    header = [name.strip().lower() for name in first.split(",")]
    expected = [*SPECTRUM_SCHEMA.names, EOL]
    if not newline:
        raise _Again(f"the answer is cut short in its first line ({first})")
    if header != expected:
        raise _Refused(f"columns {', '.join(header[:8])} instead of {', '.join(expected)}")
    types = {field.name: field.type for field in SPECTRUM_SCHEMA} | {EOL: pa.string()}
    options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=["", "null", "NULL"])
    reading = pa_csv.ReadOptions(column_names=expected, skip_rows=1)
    if not rest.strip():
        return SPECTRUM_SCHEMA.empty_table()
    try:
        page = pa_csv.read_csv(io.BytesIO(text.encode()), reading, convert_options=options)
    except pa.ArrowException as error:
        raise _Again(f"the answer is cut short or damaged ({error})") from error
    if page[EOL].null_count or not pc.all(pc.equal(page[EOL], EOL)).as_py():
        raise _Again(f"the answer is cut short in its line {len(page)}")
    return _in_order(page.drop_columns(EOL).combine_chunks(), after)


def _in_order(page: pa.Table, after: tuple[int, int]) -> pa.Table:
    """Return the page if its keys rise from `after` on, or paging would skip or repeat spectra."""
    if any(page[name].null_count for name in ("specobjid", "cntr", "ra", "dec", "match_dist")):
        raise _Refused("a key or position is empty")
    spectrum, source = page["specobjid"].to_numpy(), page["cntr"].to_numpy()
    spectrum = np.r_[np.uint64(after[0]), spectrum]
    source = np.r_[np.int64(after[1]), source]
    later = spectrum[1:] > spectrum[:-1]
    if not np.all(later | ((spectrum[1:] == spectrum[:-1]) & (source[1:] > source[:-1]))):
        raise _Refused("rows are not in the order that was asked for (specObjID, cntr)")
    return page


# --- AllWISE, by upload ----------------------------------------------------------------------------


def irsa_query(max_match_arcsec: float) -> str:
    """Return the ADQL that finds the AllWISE sources near each uploaded position."""
    columns = ", ".join(["u.label_row", *(f"w.{name}" for name in ALLWISE)])
    return (
        f"SELECT {columns} FROM {ALLWISE_TABLE} AS w, TAP_UPLOAD.my_table AS u WHERE CONTAINS(POINT('ICRS', w.ra, "
        f"w.dec), CIRCLE('ICRS', u.ra, u.dec, {max_match_arcsec / 3600:.9f})) = 1"
    )


def _match_irsa(cleaned: pa.Table, config: LabelsConfig, folder: Path, tell: Progress) -> pa.Table:
    """Return the nearest AllWISE source of each row (`MATCH_SCHEMA`), from pages in the folder, then from IRSA."""
    done = 0
    while path := next(iter(folder.glob(f"match-{done:09d}-*.parquet")), None):
        done = int(path.stem.rpartition("-")[2])
    while done < len(cleaned):
        stop = min(done + config.upload_rows, len(cleaned))
        page = nearest(cleaned, _irsa_page(cleaned, done, stop, config, tell), config.max_match_arcsec)
        _write(page, folder / f"match-{done:09d}-{stop:09d}.parquet")
        done = stop
        tell({"step": "match", "done": done, "total": len(cleaned)})
    pages = [_read_page(path) for path in sorted(folder.glob("match-*.parquet"))]
    return pa.concat_tables([MATCH_SCHEMA.empty_table(), *pages])


def _irsa_page(cleaned: pa.Table, start: int, stop: int, config: LabelsConfig, tell: Progress) -> pa.Table:
    """Return the candidates of rows `start:stop`, or raise `ServiceError` after the last attempt."""
    asked = f"IRSA TAP ({_tap_address(config)}), asked for {ALLWISE_TABLE} sources within "
    asked += f"{config.max_match_arcsec:g} arcsec of {stop - start} uploaded positions"
    way_out = (
        f"lower `upload_rows` (now {config.upload_rows}) if it is about time or rows, name a mirror as `tap_url`, or "
        "match offline with `catalog` = a local copy of AllWISE; pages that came are kept and the same command goes on"
    )
    return _persist(lambda: irsa_table(_ask_irsa(config, cleaned, start, stop)), asked, way_out, config, tell)


def _ask_irsa(config: LabelsConfig, cleaned: pa.Table, start: int, stop: int) -> Response:
    """Return the answer to one upload. By pyvo, because `Irsa.query_tap` takes no upload (astroquery#2942)."""
    from astropy.table import Table
    from pyvo.dal import TAPService  # type: ignore[import-untyped]

    rows = cleaned.slice(start, stop - start)
    positions = {"label_row": np.arange(start, stop), "ra": rows["ra"].to_numpy(), "dec": rows["dec"].to_numpy()}
    with _session(config.timeout_s) as session:
        service = TAPService(_tap_address(config), session=session)
        uploads = {"my_table": Table(positions)}
        query = service.create_query(
            irsa_query(config.max_match_arcsec), maxrec=PER_POSITION * (stop - start), uploads=uploads
        )
        response: Response = query.submit()
        _ = response.content  # read while the session is open
        return response


def _session(timeout_s: float) -> Any:
    """Return a session whose every request has a time limit: pyvo gives none."""
    import requests
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return super().send(request, *args, **kwargs | {"timeout": timeout_s})

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Limited())
    return session


def _tap_address(config: LabelsConfig) -> str:
    from astroquery.ipac.irsa import conf

    return (config.tap_url or str(conf.tap_url)).rstrip("/")


def irsa_table(response: Response) -> pa.Table:
    """Return the candidates in an answer of a TAP service: `label_row` and the columns `ALLWISE`.

    Raises what `_persist` understands: QUERY_STATUS ERROR and OVERFLOW (also after the rows), a VOTable cut short,
    a web page in its place.
    """
    _check_busy(response)
    text = response.content[:2000].decode("utf-8", "replace")
    if "<VOTABLE" not in text.upper():
        _check_status(response, text)
        raise _Again(f"an answer that is no VOTable: {_first_line(text)}" if text.strip() else "an empty answer")
    status, reason, table = _read_votable(response)
    if status == "ERROR":
        raise (_Again if PASSING.search(reason) else _Refused)(reason)
    _check_status(response, text)
    if status == "OVERFLOW":
        raise _Refused(f"QUERY_STATUS OVERFLOW, the answer stops after {len(table)} rows")
    return table


def _read_votable(response: Response) -> tuple[str, str, pa.Table]:
    """Return QUERY_STATUS, its message and the table of an answer; `_Again` when the XML is cut short."""
    from xml.parsers.expat import ExpatError

    from astropy.io.votable import parse
    from astropy.utils.exceptions import AstropyWarning
    from pyvo.dal import DALFormatError, DALQueryError, TAPResults

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # units that the standard does not know: no concern of ours
        try:
            results = TAPResults(parse(io.BytesIO(response.content)), url=response.url)
            return results.status[0].upper(), str(results.status[1] or ""), _from_votable(results.to_table())
        except DALQueryError as error:
            return "ERROR", _first_line(str(error)), None
        except (DALFormatError, ExpatError, OSError, ValueError, IndexError, TypeError) as error:
            raise _Again(f"the VOTable is cut short or damaged ({_first_line(str(error))})") from error


def _from_votable(table: Any) -> pa.Table:
    """Return the columns `label_row` and `ALLWISE` of an astropy table, masked values null."""
    names = {name.lower(): name for name in table.colnames}
    if missing := [name for name in ("label_row", *ALLWISE) if name not in names]:
        raise _Refused(f"the answer has no column {', '.join(missing)}")
    schema = pa.schema([MATCH_SCHEMA.field(name) for name in ("label_row", *ALLWISE)])
    columns = [_from_column(table[names[field.name]], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _from_column(column: Any, kind: pa.DataType) -> pa.Array:
    mask = np.broadcast_to(np.ma.getmaskarray(np.ma.asarray(column)), len(column))
    values = np.ma.getdata(np.ma.asarray(column))
    if pa.types.is_string(kind):
        text = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        return pa.array([None if hidden or not v else v for v, hidden in zip(text, mask, strict=True)], kind)
    return pa.array(values.astype(kind.to_pandas_dtype()), mask=np.ascontiguousarray(mask))


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


def match_catalog(
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


# --- asking again ----------------------------------------------------------------------------------


def _persist(ask: Callable[[], T], asked: str, way_out: str, config: LabelsConfig, tell: Progress) -> T:
    """Return what `ask` returns, asked again after passing faults, each time later."""
    waits_s = [config.backoff_s * 2**attempt for attempt in range(config.retries)]
    for attempt, usual_s in enumerate([*waits_s, None], 1):
        try:
            return _try(ask, config.timeout_s)
        except _Refused as error:
            raise ServiceError(f"{asked}: it refused: {error} - {way_out}") from error
        except _Again as error:
            if usual_s is None:
                way_out = OFFLINE if isinstance(error, _Unreachable) else way_out
                raise ServiceError(
                    f"{asked}: no answer in {attempt} attempts, the last: {error} - {way_out}"
                ) from error
            wait_s = usual_s if error.wait_s is None else error.wait_s
            tell({"step": "wait", "service": asked.partition(",")[0], "seconds": wait_s, "reason": str(error)})
            sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _try(ask: Callable[[], T], timeout_s: float) -> T:
    """Return what `ask` returns; faults of the network become `_Again`."""
    import requests

    try:
        return ask()
    except requests.RequestException as error:
        said = str(error).rpartition("Caused by ")[2]
        if isinstance(error, requests.Timeout) or "timed out" in said:
            raise _Again(f"silence for {timeout_s:g} s (time-out)") from error
        kind = _Unreachable if said.startswith(("NewConnectionError", "NameResolutionError")) else _Again
        raise kind(f"connection failed, {said}") from error


def _check_busy(response: Response) -> None:
    """Raise `_Again` for the statuses of a busy or restarting service, whatever its page says."""
    if response.status_code in BUSY:
        wait_s = _retry_after_s(response.headers.get("Retry-After"))
        raise _Again(f"HTTP {response.status_code} {response.reason}: {_first_line(response.text)}", wait_s)


def _check_status(response: Response, text: str) -> None:
    """Raise for any other status that is an error."""
    if response.status_code >= 400:
        reason = f"HTTP {response.status_code} {response.reason}: {_first_line(text)}"
        raise _Again(reason) if response.status_code >= 500 else _Refused(reason)


def _retry_after_s(value: str | None) -> float | None:
    """Return the wait of a Retry-After header, which is seconds or a date (RFC 9110), at most five minutes."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return min(float(value), LONGEST_WAIT_S)
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _plain(html: str) -> str:
    """Return the words of a web page."""
    body = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def _first_line(text: str) -> str:
    """Return the first words of an answer, for a message."""
    line = _plain(text) if text.lstrip().startswith("<") else next((s for s in text.splitlines() if s.strip()), "")
    return line.strip()[:200] or "nothing"


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
    _replace(note, lambda path: path.write_text(json.dumps(asked, indent=2) + "\n"))
    return folder


def _pages(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*.parquet"))


def _read_page(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: this page cannot be read ({error}); remove its folder to start anew") from error


def _write(table: pa.Table, path: Path) -> None:
    _replace(path, partial(pq.write_table, table, compression="zstd"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Give `path` what `write` writes, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial_path)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


def _provenance(config: LabelsConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what the table remembers of its making, plain JSON types."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "skyclass": __version__,
        "data_release": config.data_release,
        "sdss": _sdss_address(config),
        "sdss_query": {name: sdss_query(config, name) for name in CLASSES},
        "allwise": config.catalog or _tap_address(config),
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
