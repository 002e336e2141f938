"""Labels of the sky: spectroscopic classes of SDSS for sources of AllWISE, in one Parquet table.

    sdss.py         SpecObj x WISE_xmatch x WISE_allsky, class by class, page by page
    label_table.py  clean: implausible values become null, one row for each All-Sky source, conflicting classes dropped
    irsa.py         match the 2012 All-Sky positions of SDSS (`_ab41`) to AllWISE (`_ac51`) by upload to IRSA,
    allwise.py      or offline with a local copy of the catalogue
    label_table.py  one label for each AllWISE source, with its position, tile and photometry

The table stores its queries, cuts and counts. Pages stay in a folder beside it until it is written, so that the same
command continues an interrupted download.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ... import __version__
from ...errors import CatalogError, ConfigError, SkyclassError
from ...files import replacing, write_json
from ...sky.regions import Box
from ...sources.opening import open_sources
from ...types import DEFAULT_CLASSES
from ..progress import Progress, no_progress
from .allwise import MATCH_SCHEMA, match_offline, nearest_sources
from .config import LabelsConfig
from .irsa import TapService, candidate_query, irsa_address
from .label_table import LABEL_SCHEMA, clean_spectra, label_table
from .sdss import FIRST_KEY, SPECTRUM_SCHEMA, SkyServer, SpectrumQuery, sdss_address
from .service import RetryPolicy

__all__ = ["LABEL_SCHEMA", "fetch_labels", "label_provenance"]

METADATA_KEY = b"skyclass.labels"
RESUMABLE = frozenset(
    {"out", "catalog", "page_rows", "upload_rows", "sdss_url", "tap_url", "timeout_s", "retries", "backoff_s"}
)
"""Settings that may change between attempts: they decide neither the spectra nor their order, and cure faults."""


def fetch_labels(config: LabelsConfig, progress: Progress = no_progress) -> Path:
    """Download, clean and match the labels; return the path of the Parquet table (`LABEL_SCHEMA`).

    The same call continues after an interruption or a failure from the pages that it has. `progress` gets dicts with
    "step": "sdss" {class, page, rows}, "match" {done, total}, "wait" {service, seconds, reason}, "write" {out, counts}.
    Raises `ConfigError` for wrong input (`out` exists, pages of another query), `ServiceError` when a service gives no
    usable answer, `CatalogError` for a local catalogue of another release, `SkyclassError` when no label is left.
    """
    out = Path(config.out)
    if out.exists():
        raise ConfigError(f"{out} exists: remove it, or choose another `out`")
    catalog = open_sources(config.catalog) if config.catalog else None  # errors come before hours of download
    folder = _page_folder(config, out)
    cleaned, counts = clean_spectra(_download(config, folder, progress))
    if catalog:
        matches = match_offline(cleaned, catalog, config.max_match_arcsec, progress)
    else:
        matches = _match_by_upload(cleaned, config, folder, progress)
    table, counts = label_table(cleaned, matches, config.min_snr, counts)
    if not len(table):
        drops = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items())
        raise SkyclassError(
            f"{out}: no label is left, nothing is written ({drops}); give a `catalog` that covers the sources, or "
            f"remove {folder} and widen the cuts"
        )
    _write(table.replace_schema_metadata({METADATA_KEY: json.dumps(_provenance(config, counts))}), out)
    shutil.rmtree(folder)
    progress({"step": "write", "out": str(out), "counts": counts})
    return out


def label_provenance(path: str | Path) -> dict[str, Any]:
    """Return date, services, queries, cuts and counts of a label table; {} for a table of another program."""
    stored = (pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}")
    return dict(json.loads(stored))


# --- services --------------------------------------------------------------------------------------


def _spectrum_query(config: LabelsConfig) -> SpectrumQuery:
    box = config.region if isinstance(config.region, Box) else None
    return SpectrumQuery(config.max_match_arcsec, config.min_snr, config.one_in, box)


def _retry_policy(config: LabelsConfig) -> RetryPolicy:
    return RetryPolicy(config.timeout_s, config.retries, config.backoff_s)


def _download(config: LabelsConfig, folder: Path, progress: Progress) -> pa.Table:
    """Return all spectra (`SPECTRUM_SCHEMA`): the pages in the folder, and the missing ones from SkyServer."""
    server = SkyServer(sdss_address(config.sdss_url), config.data_release, _retry_policy(config))
    for class_name in DEFAULT_CLASSES:
        _download_class(config, server, class_name, folder, progress)
    pages = [_read_page(path) for class_name in DEFAULT_CLASSES for path in _page_paths(folder, class_name)]
    return pa.concat_tables(pages, promote_options="none") if pages else SPECTRUM_SCHEMA.empty_table()


def _download_class(config: LabelsConfig, server: SkyServer, class_name: str, folder: Path, progress: Progress) -> None:
    """Write the missing pages of a class. Only an empty page is the last: a server may shorten a page silently."""
    pages = [_read_page(path) for path in _page_paths(folder, class_name)]
    n_rows, n_pages = sum(len(page) for page in pages), len(pages)
    last_key = next((_last_key(page) for page in reversed(pages) if len(page)), FIRST_KEY)
    complete = bool(pages) and not len(pages[-1])
    while not complete and (config.per_class is None or n_rows < config.per_class):
        limit = config.page_rows if config.per_class is None else min(config.page_rows, config.per_class - n_rows)
        page = server.page(_spectrum_query(config), class_name, limit, last_key, progress)
        _write(page, folder / f"{class_name}-{n_pages:06d}.parquet")
        complete, n_pages, n_rows = not len(page), n_pages + 1, n_rows + len(page)
        last_key = last_key if complete else _last_key(page)
        progress({"step": "sdss", "class": class_name, "page": n_pages, "rows": n_rows})


def _last_key(page: pa.Table) -> tuple[int, int]:
    return page["specobjid"][-1].as_py(), page["cntr"][-1].as_py()


def _match_by_upload(cleaned: pa.Table, config: LabelsConfig, folder: Path, progress: Progress) -> pa.Table:
    """Return (`MATCH_SCHEMA`) the nearest AllWISE source of each row: pages in the folder, the others from IRSA."""
    service = TapService(irsa_address(config.tap_url), _retry_policy(config))
    start = 0
    while path := next(iter(folder.glob(f"match-{start:09d}-*.parquet")), None):
        start = int(path.stem.rpartition("-")[2])
    while start < len(cleaned):
        stop = min(start + config.upload_rows, len(cleaned))
        candidates = service.candidates(cleaned, start, stop, config.max_match_arcsec, progress)
        page = nearest_sources(cleaned, candidates, config.max_match_arcsec)
        _write(page, folder / f"match-{start:09d}-{stop:09d}.parquet")
        start = stop
        progress({"step": "match", "done": start, "total": len(cleaned)})
    pages = [_read_page(path) for path in sorted(folder.glob("match-*.parquet"))]
    return pa.concat_tables([MATCH_SCHEMA.empty_table(), *pages])


# --- files -----------------------------------------------------------------------------------------


def _page_folder(config: LabelsConfig, out: Path) -> Path:
    """Return the folder of pages, created if absent; `ConfigError` when its pages answer another query."""
    folder = out.with_name(out.name + ".pages")
    settings = {key: value for key, value in _plain_config(config).items() if key not in RESUMABLE}
    settings["query"] = _spectrum_query(config).sql(DEFAULT_CLASSES[0], n_rows=1)
    record = folder / "query.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
        return folder
    stored = json.loads(record.read_text())
    if changed := sorted(key for key in settings if stored.get(key) != settings[key]):
        raise ConfigError(
            f"{folder} holds pages of another query ({', '.join(changed)} changed): remove the folder to start again, "
            "or choose another `out`"
        )
    return folder


def _page_paths(folder: Path, class_name: str) -> list[Path]:
    return sorted(folder.glob(f"{class_name}-*.parquet"))


def _read_page(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: this page cannot be read ({error}); remove its folder to start again") from error


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as temp:
        pq.write_table(table, temp, compression="zstd")


def _provenance(config: LabelsConfig, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what the table stores of its making, as JSON types."""
    query, settings = _spectrum_query(config), _plain_config(config)
    cuts = ("min_snr", "max_match_arcsec", "per_class", "one_in", "region")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "skyclass": __version__,
        "data_release": config.data_release,
        "sdss": sdss_address(config.sdss_url),
        "sdss_query": {name: query.sql(name, config.page_rows) for name in DEFAULT_CLASSES},
        "allwise": config.catalog or irsa_address(config.tap_url),
        "allwise_query": None if config.catalog else candidate_query(config.max_match_arcsec),
        "cuts": {key: settings[key] for key in cuts} | {"zWarning": 0},
        "counts": dict(counts),
    }


def _plain_config(config: LabelsConfig) -> dict[str, Any]:
    return vars(config) | {"region": config.region.to_dict() if config.region else None}
