"""The manifest of a published class catalogue: which files it has, with rows and digests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import NotPublished, StoreError
from ..files import read_json, write_json
from ..types import Json

CATALOG_ORDER = 5
"""HEALPix order of a published file: 3.36 square degrees, about 60,000 AllWISE sources."""

MANIFEST_FORMAT = "skyclass class catalogue 1"


def pixel_path(pixel: int, order: int = CATALOG_ORDER) -> str:
    """Return a pixel's file relative to the catalogue, as HATS lays it out (IVOA note HATS)."""
    return f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


@dataclass(frozen=True)
class PixelRecord:
    """One published file; `path` is relative to the catalogue, `healpix_min/max` span `_healpix_29`."""

    pixel: int
    path: str
    rows: int
    sha256: str
    nbytes: int
    classes: dict[str, int]
    n_flagged: int
    healpix_min: int
    healpix_max: int


@dataclass(frozen=True)
class Manifest:
    """What a published catalogue holds. Readers trust this and list no folder.

    `sidecars` maps the files beside the data to their SHA-256; `classes` and `n_flagged` are totals.
    """

    run_id: str
    rows: int
    rows_expected: int
    classes: dict[str, int]
    n_flagged: int
    label: str
    provenance: Json
    files: tuple[PixelRecord, ...]
    sidecars: dict[str, str]


MANIFEST_NAME = "manifest.json"


def write_manifest(catalog: Path, manifest: Manifest) -> Path:
    """Write manifest.json and return its path."""
    path = catalog / MANIFEST_NAME
    write_json(path, {"format": MANIFEST_FORMAT, **asdict(manifest)})
    return path


def read_manifest(catalog: Path) -> Manifest:
    """Return the manifest of a published catalogue; raise `StoreError` where `catalog` is none."""
    values = read_json(catalog / MANIFEST_NAME)
    if values.pop("format", None) != MANIFEST_FORMAT:
        raise StoreError(f"{catalog} is no class catalogue: its {MANIFEST_NAME} is not {MANIFEST_FORMAT!r}")
    try:
        files = tuple(PixelRecord(**record) for record in values.pop("files"))
        return Manifest(files=files, **values)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{catalog / MANIFEST_NAME} is damaged: {error}") from error


def find_catalog(path: str | Path) -> Path:
    """Return the folder of the published catalogue, given it or its run folder; raise `StoreError`."""
    given = Path(path)
    for folder in (given, given / "catalog"):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise NotPublished(
        f"{given} is no published class catalogue (no {MANIFEST_NAME}): give the catalog folder of a run, "
        "or publish the run first with 'skyclass publish'"
    )
