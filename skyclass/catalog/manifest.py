"""The manifest of a published class catalogue: which files it has, with rows and digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import StoreError
from ..files import read_json, write_json
from ..schema import UNCLASSIFIED, class_schema
from ..sky.healpix import MAX_ORDER
from ..types import Json, class_problems

CATALOG_ORDER = 5
"""HEALPix order of a published file: 3.36 square degrees, about 60,000 AllWISE sources."""

PIXEL_SHIFT = 2 * (MAX_ORDER - CATALOG_ORDER)
"""`_healpix_29 >> PIXEL_SHIFT` is the pixel of a published file."""

MANIFEST_FORMAT = "skyclass class catalogue 3"


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

    `sidecars` maps the files beside the data to their SHA-256; `classes` and `n_flagged` are totals; `tiles` is a
    digest of the committed tiles that the rows come from.
    """

    run_id: str
    tiles: str
    rows: int
    rows_expected: int
    classes: dict[str, int]
    n_flagged: int
    label: str
    provenance: Json
    files: tuple[PixelRecord, ...]
    sidecars: dict[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the model, in the order of the probabilities."""
        return class_names(self.provenance)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the published files."""
        return schema_of(self.provenance)

    @property
    def prior_key(self) -> str | None:
        """What the prior was asked for as: "estimate", or the `prior_id` of a table; None without a prior."""
        prior = self.provenance.get("prior")
        return str(prior["key"]) if prior else None


MANIFEST_NAME = "manifest.json"


def manifest_of(
    records: Sequence[PixelRecord],
    expected_rows: int,
    provenance: Mapping[str, Any],
    sidecars: Mapping[str, str],
    tiles: str,
) -> Manifest:
    """Return the manifest of files, with the totals over them."""
    classes = Counter(dict.fromkeys((*class_names(provenance), UNCLASSIFIED), 0))
    for record in records:
        classes.update(record.classes)
    return Manifest(
        run_id=str(provenance["run_id"]),
        tiles=tiles,
        rows=sum(record.rows for record in records),
        rows_expected=expected_rows,
        classes=dict(classes),
        n_flagged=sum(record.n_flagged for record in records),
        label=label_of(provenance),
        provenance=dict(provenance),
        files=tuple(records),
        sidecars=dict(sidecars),
    )


def label_of(provenance: Mapping[str, Any]) -> str:
    """Return the words on what the model was trained on; "simulated" stands in them where it applies."""
    training = provenance.get("info", {}).get("model", {}).get("training", {})
    label = str(training.get("label", "training of the model not recorded"))
    if training.get("simulated") and "simulated" not in label.lower():
        label = f"trained on simulated data: {label}"
    return " ".join(label.split())


def class_names(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of the model that made the rows; raise `StoreError` where the provenance has none."""
    names = provenance.get("info", {}).get("model", {}).get("classes")
    if not isinstance(names, list | tuple) or class_problems(names):
        raise StoreError(
            f"the run does not record the classes of its model ({names!r}): classify again into another folder"
        )
    return tuple(names)


def schema_of(provenance: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of the published files of rows with this provenance."""
    return class_schema(class_names(provenance), has_prior="prior" in provenance)


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
        manifest = Manifest(files=files, **values)
        class_names(manifest.provenance)
        return manifest
    except (KeyError, TypeError) as error:
        raise StoreError(f"{catalog / MANIFEST_NAME} is damaged: {error}") from error
