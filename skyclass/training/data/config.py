"""The configurations of label tables and datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from ...errors import ConfigError
from ...images.size import parse_size
from ...model.bundle import MOST_PX
from ...model.photometry import feature
from ...run.config import check_folder
from ...settings import FROM_LIST, FROM_MAPPING, MAX_INTEGER, build, configuration
from ...sky.regions import Box, Region
from ...types import BANDS, DEFAULT_CLASSES, class_problems

MAX_MATCH_ARCSEC = 60.0
"""How far from a label's position its source may be listed, when both carry its `source_id`."""
FIRST_DATA_RELEASE = 9
"""The first data release of SDSS that has the tables WISE_xmatch and WISE_allsky."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "counts": {"galaxy": 7298, "quasar": 7215, "star": 7223},
        "min_w1snr": 5.0,
        "min_w2snr": 5.0,
    },
}
"""The set of Zhao et al. 2023 (RAA 23, 085010)."""


def _check_table_name(out: str) -> str:
    if not out.endswith(".parquet"):
        raise ValueError("name a .parquet file")
    return out


def _check_data_release(data_release: int) -> int:
    if data_release < FIRST_DATA_RELEASE:
        raise ValueError(f"this data release has no WISE tables: choose {FIRST_DATA_RELEASE} or later")
    return data_release


def _check_box(region: Region | None) -> Region | None:
    if region is not None and not isinstance(region, Box):
        raise ValueError("SDSS accepts a box only, {kind = 'box', ra_min, ra_max, dec_min, dec_max}")
    return region


def _check_url(url: str | None) -> str | None:
    parts = urlsplit(url or "http://default")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("write an address such as https://HOST/PATH")
    return url


def _check_bands(bands: tuple[str, ...]) -> tuple[str, ...]:
    lower = tuple(band.lower() for band in bands)
    if not lower or not set(lower) <= set(BANDS) or len(set(lower)) < len(lower):
        raise ValueError(f"choose one or more of {', '.join(BANDS)}, each once")
    return lower


def _check_counts(counts: dict[str, int] | None, info: ValidationInfo) -> dict[str, int] | None:
    classes = info.data.get("classes", DEFAULT_CLASSES)
    if unknown := set(counts or ()) - set(classes):
        raise ValueError(f"{', '.join(sorted(unknown))} is no class: choose from {', '.join(classes)}")
    if counts and info.data.get("preset"):
        raise ValueError("preset and counts exclude each other: choose one of them")
    return counts


def _check_tables(tables: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
    if bool(tables) == bool(info.data.get("labels", "unknown")):
        raise ValueError("name a label table as labels, or a table for each class as tables; one of the two")
    return tables


def _check_no_images(no_images: bool, info: ValidationInfo) -> bool:
    if no_images == bool(info.data.get("images", not no_images)):
        raise ValueError(
            "name a folder as images (--images), or set no_images = true (--no-images) for a dataset without cutouts; "
            "one of the two"
        )
    return no_images


def _check_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    lower = tuple(dict.fromkeys(column.lower() for column in columns))
    if unusable := [column for column in lower if (named := feature(column)) is None or named.columns != (column,)]:
        raise ValueError(f"{', '.join(unusable)}: name numeric columns of the catalogue, such as j_m_2mass or pmra")
    return lower


def _check_size(size: str) -> str:
    try:
        size_px = parse_size(size)
    except ConfigError as error:
        raise ValueError(error.message) from error
    if size_px > MOST_PX:
        raise ValueError(f"{size_px} pixels are more than a model takes: choose {MOST_PX}px or less")
    return size


def _check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    if problems := class_problems(classes):
        raise ValueError("; ".join(problems))
    return classes


def _check_preset(preset: str | None, info: ValidationInfo) -> str | None:
    needed, classes = PRESETS.get(preset or "", {}).get("counts", {}), info.data.get("classes", DEFAULT_CLASSES)
    if missing := set(needed) - set(classes):
        raise ValueError(f"the preset {preset} needs the classes {', '.join(sorted(missing))} among `classes`")
    return preset


def _check_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    if len(shares) != 3 or min(shares) < 0 or not shares[0]:
        raise ValueError("write the shares of training, validation and test, training above 0, such as [8, 1, 1]")
    return shares


Url = Annotated[str | None, AfterValidator(_check_url)]
Bands = Annotated[tuple[str, ...], FROM_LIST, AfterValidator(_check_bands)]


@configuration(
    "labels",
    {"out": "Input and output", "data_release": "Spectra", "min_snr": "Quality", "page_rows": "Services"},
)
class LabelsConfig:
    """One label table: the keys of LABELS.toml, and with dashes the options of `skyclass labels`."""

    out: Annotated[str, Field(examples=["labels.parquet"]), AfterValidator(_check_table_name)]
    """Parquet file to write. The folder OUT.pages keeps the pages of an unfinished download."""
    catalog: Annotated[str | None, Field(examples=["allwise/catalog"])] = None
    """Local AllWISE catalogue to match with; the TAP service of IRSA when absent."""
    data_release: Annotated[int, Field(le=1000), AfterValidator(_check_data_release)] = 17
    """SDSS data release. Its SkyServer must have WISE_xmatch and WISE_allsky (DR9 and later)."""
    per_class: Annotated[int | None, Field(ge=1, le=MAX_INTEGER, examples=[10000])] = None
    """Largest number of spectra of a class, in the order of specObjID, that is the oldest plates first; all when
    absent. See one_in."""
    one_in: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 1
    """Take one spectrum in this many, spread evenly over plates and fibres."""
    region: Annotated[
        Annotated[Region, *FROM_MAPPING] | None,
        Field(examples=[{"kind": "box", "ra_min": 140.0, "ra_max": 160.0, "dec_min": -2.0, "dec_max": 5.0}]),
        AfterValidator(_check_box),
    ] = None
    """Only spectra in this box of RA and Dec; the whole sky when absent."""
    min_snr: Annotated[float, Field(ge=0)] = 5.0
    """W1 and W2 must be above this S/N, in All-Sky and in AllWISE."""
    max_match_arcsec: Annotated[float, Field(gt=0)] = 2.0
    """Largest distance from SDSS to All-Sky, and from there to AllWISE, in arcsec."""
    page_rows: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 20_000
    """Number of spectra in one query. SkyServer returns at most 500,000, and works at most 600 s."""
    upload_rows: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 2_000
    """Number of positions in one upload to IRSA."""
    sdss_url: Annotated[Url, Field(examples=["https://skyserver.example.org"])] = None
    """SkyServer of a mirror; the setting of astroquery when absent."""
    tap_url: Annotated[Url, Field(examples=["https://tap.example.org/TAP"])] = None
    """TAP service of a mirror of IRSA; the setting of astroquery when absent."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without an answer after which a query fails."""
    retries: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 5
    """Number of further attempts at a page, each after a longer wait."""
    backoff_s: Annotated[float, Field(ge=0)] = 2.0
    """Seconds before the second attempt; the wait doubles each time. A Retry-After of the service has priority."""


@configuration(
    "dataset",
    {"out": "Input and output", "bands": "Cutouts", "classes": "Sources", "simulated": "Statements about the input"},
    usual=("labels", "images"),
)
class DatasetConfig:
    """One training set: the keys of DATASET.toml, and with dashes the options of `skyclass dataset`."""

    out: Annotated[str, Field(min_length=1, examples=["dataset"]), AfterValidator(check_folder)]
    """Folder of the dataset. It must not exist."""
    labels: Annotated[str | None, Field(min_length=1, examples=["labels.parquet"])] = None
    """Table with ra and dec in degrees and class, and optionally source_id, coadd_id and photometry. Required without
    tables."""
    images: Annotated[str | None, Field(min_length=1, examples=["allwise/images"])] = None
    """Folder of Atlas tiles, or its address: s3://, https://. Required without no_images."""
    catalog: Annotated[str | None, Field(examples=["allwise/catalog"])] = None
    """Catalogue with positions, tiles and photometry of the labelled sources, matched by source_id, or by position
    where the labels have no source_id. The label table has them when absent."""
    tables: Annotated[
        dict[str, str] | None,
        Field(examples=[{"galaxy": "galaxies.parquet", "quasar": "quasars.fits", "star": "stars.csv"}]),
        AfterValidator(_check_tables),
    ] = None
    """Instead of labels: a table for each class. A table may lack ra and dec in a dataset without images; the split is
    then by row, not by sky."""
    no_images: Annotated[bool, AfterValidator(_check_no_images)] = False
    """Make a dataset of photometry without cutouts, for networks that take photometry alone. For a model of such a
    dataset, classify cuts images with the bands and the size given here."""
    columns: Annotated[
        tuple[str, ...], FROM_LIST, Field(examples=[["w4mpro", "pmra"]]), AfterValidator(_check_columns)
    ] = ()
    """Further numeric columns of the catalogue, or of the label table without one, for features of photometry: w4mpro,
    j_m_2mass, h_m_2mass, k_m_2mass, pmra, pmdec or others. w1mpro to w3mpro and w1snr to w3snr are always there."""
    bands: Bands = BANDS
    """Bands of the cutouts."""
    size: Annotated[str, AfterValidator(_check_size)] = "37px"
    """Side of a cutout: native pixels, or an angle such as 50arcsec. 37 pixels are 51 arcsec."""
    classes: Annotated[tuple[str, ...], FROM_LIST, AfterValidator(_check_classes)] = DEFAULT_CLASSES
    """Classes in the order of the probabilities. In the label table, qso is quasar, and blanks and dashes are _."""
    preset: Annotated[Literal["paper"] | None, Field(examples=["paper"]), AfterValidator(_check_preset)] = None
    """paper: 7,298 galaxies, 7,215 quasars and 7,223 stars with W1 and W2 S/N above 5 where known."""
    counts: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=MAX_INTEGER)]] | None,
        Field(examples=[{"galaxy": 500, "quasar": 500, "star": 500}]),
        AfterValidator(_check_counts),
    ] = None
    """Number of sources to draw from each class. Of a class without a number, all sources."""
    seed: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    """Seed of the draw and of the splits."""
    match_radius_arcsec: Annotated[float, Field(gt=0, le=MAX_MATCH_ARCSEC)] = 2.0
    """Largest distance of a label from its source in arcsec, matched by position or by source_id."""
    min_w1snr: Annotated[float | None, Field(examples=[5.0])] = None
    """Leave out sources whose known W1 S/N is not above this."""
    min_w2snr: Annotated[float | None, Field(examples=[5.0])] = None
    """Leave out sources whose known W2 S/N is not above this."""
    split: Annotated[tuple[float, ...], FROM_LIST, AfterValidator(_check_shares)] = (8.0, 1.0, 1.0)
    """Shares of training, validation and test."""
    simulated: Annotated[bool | None, Field(examples=[False])] = None
    """Whether the images are simulated. Required where the files do not say it."""
    allow_truncated: bool = False
    """Accept VOTables that a service cut at its row limit (QUERY_STATUS OVERFLOW)."""

    @property
    def origin(self) -> str:
        """Where the sources come from, for messages."""
        sources = self.labels or ", ".join((self.tables or {}).values())
        return f"{sources} on {self.images}" if self.images else sources

    @property
    def size_px(self) -> int:
        """Side of a cutout in native pixels."""
        return parse_size(self.size)


def labels_config(data: Mapping[str, Any]) -> LabelsConfig:
    """Return the label table that a mapping describes; a `region` may be a dict such as {kind = "box", ...}."""
    return build(LabelsConfig, data)


def dataset_config(data: Mapping[str, Any]) -> DatasetConfig:
    """Return the dataset that a mapping (DATASET.toml) describes; `ConfigError` lists every problem."""
    return build(DatasetConfig, data)
