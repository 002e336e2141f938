"""The nouns of skyclass: tiles, strips, cutouts, flags, and the two seams `Archive` and `Classifier`.

Frozen and inert: nothing here opens a file, reads a clock or knows Dask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BANDS = ("w1", "w2", "w3", "w4")
"""Bands of WISE, at 3.4, 4.6, 12 and 22 um."""
DEFAULT_CLASSES = ("galaxy", "quasar", "star")
"""Classes of IICnet, of the simulated sky and of the labels from SDSS. Every model has its own `bundle.classes`."""
CLASS_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""What the name of a class must match, because the column `p_<class>` has it."""
MOST_CLASSES = 64
RESERVED_CLASS_NAMES = ("unclassified", "total")
"""Names that count rows without a class, or all rows."""
NO_TILE = "no tile"
"""The `coadd_id` of the plan for sources without a tile. No tile has it: a `coadd_id` holds no blank."""
FILE_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What every `coadd_id` must match, because it becomes the name of a file."""
ATLAS_COADD_ID = re.compile(r"(\d{4})([pm])(\d{3})_[a-z]{2}\d+")
"""A `coadd_id` of the Atlas. The groups are RA in 0.1 degree, sign of Dec, and Dec in 0.1 degree of the centre."""
PIXEL_SCALE_ARCSEC = 1.375
"""Pixel of an AllWISE Atlas image (Explanatory Supplement, section II.3)."""

Json = dict[str, Any]

ParallelMap = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Yields work(*item) for items; the order may differ from that of the items. `itertools.starmap` is one."""
FloatArray = NDArray[np.floating]
Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def class_problems(classes: Sequence[str]) -> list[str]:
    """Return the problems of the class names of a model or a dataset; an empty list if there is none.

    >>> class_problems(("galaxy", "QSO", "galaxy"))
    ['galaxy is repeated', "'QSO' is no name of a class (a lower-case letter, then at most 31 of a-z, 0-9, _)"]
    """
    rule = "a lower-case letter, then at most 31 of a-z, 0-9, _"
    problems = (
        []
        if 2 <= len(classes) <= MOST_CLASSES
        else [f"the number of classes is {len(classes)}: give 2 to {MOST_CLASSES}"]
    )
    for name in dict.fromkeys(classes):
        if not isinstance(name, str) or not CLASS_NAME.fullmatch(name):
            problems.append(f"{name!r} is no name of a class ({rule})")
        elif name in RESERVED_CLASS_NAMES or name.endswith("_sky"):
            problems.append(f"{name} is reserved: choose another name")
        elif list(classes).count(name) > 1:
            problems.append(f"{name} is repeated")
    return problems


class Flag(IntFlag):
    """Bits of the column `flags`: what was wrong with the pixels or the catalogue row of a source.

    The attribute `meaning` of each bit is one sentence; the page on the class catalogue lists the bits.

    Examples
    --------
    >>> from skyclass import Flag
    >>> Flag(129)
    <Flag.EDGE|NO_IMAGE: 129>
    >>> Flag.NO_IMAGE.meaning
    'no class was given: some band has no pixel at all; probabilities are null'
    """

    meaning: str

    def __new__(cls, value: int, meaning: str = "") -> Flag:
        flag = int.__new__(cls, value)
        flag._value_, flag.meaning = value, meaning
        return flag

    EDGE = 1, "the cutout leaves the tile; the source stays centred, the pixels outside are missing"
    NAN_PIXELS = 2, "pixels inside the tile are missing (saturated cores, zero coverage)"
    CENTRE_MISSING = 4, "the central pixel is missing in at least one band"
    OFF_TILE = 8, "no pixel of the cutout lies on the tile, or no tile covers the position"
    TILE_MISSING = 16, "the archive has no image of the tile, or no tile covers the position"
    TILE_BAD = 32, "an image of the tile is damaged or not an Atlas image; the run report has the reason"
    BAND_MISSING = 64, "the tile lacks a band that the model needs"
    NO_IMAGE = 128, "no class was given: some band has no pixel at all; probabilities are null"
    BAD_VALUE = 256, "a value that is no number in its physical range, or a name that no tile has, was read as missing"
    MODEL_FAULT = 512, "no class was given: for this image the model gives no probabilities; they are null"
    BLANK = 1024, "the images have no source at the centre: it is hardly brighter than its surroundings"
    BLENDED = 2048, "a neighbour at 8 arcsec has at least half the W1 flux of the centre"
    HALO = 4096, "the light around is far stronger than the source: the halo of a bright star, or a nebula"
    OUTLIER = 8192, "the image is unlike those of each class with the same W1: `outlier` is above 1"
    NO_PHOTOMETRY = 16384, "the catalogue has no W1 magnitude of the source"
    EXTRAPOLATED = 32768, "outside of prior or calibration: no class shares are known; `p_<class>_sky` are null"
    UNSURE = 65536, "the highest `p_<class>_sky` is below 0.7"


PRIOR_FLAGS = Flag.EXTRAPOLATED | Flag.UNSURE
"""Flags that the publication sets, because they depend on the prior."""

FAULT_FLAGS = {
    "missing_tile": Flag.TILE_MISSING | Flag.NO_IMAGE,
    "missing_band": Flag.BAND_MISSING | Flag.NO_IMAGE,
    "bad": Flag.TILE_BAD | Flag.NO_IMAGE,
    "changed": Flag.TILE_BAD | Flag.NO_IMAGE,
}
"""Flags of the sources of a tile, by the `kind` of its `TileFault`."""

UNCOVERED_FLAGS = Flag.OFF_TILE | Flag.TILE_MISSING | Flag.NO_IMAGE
"""Flags of a source that no tile covers, or whose tile has a name that no tile can have."""


@dataclass(frozen=True)
class FileStamp:
    """Distinguishes a file from another file of the same name, without reading either.

    The stamp of a local file has its size, the time of its last change, its inode and its `device` number. Device
    numbers differ between hosts, so pickling drops them, and equality ignores them. The stamp of any other file has its
    size and a `tag`, which counts as an identifier of the content: the ETag of a server, the time of the last change
    from a server without ETags, or a digest that a source makes.
    """

    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    tag: str = ""
    device: int | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"device": None}


@dataclass(frozen=True)
class ImageFile:
    """The file of one band of a tile as it was when the tile was opened.

    `name` is the path below the archive's root; the pixels begin after `data_offset` bytes, and `header_sha256` is the
    digest of these bytes.
    """

    name: str
    data_offset: int
    header_sha256: str
    stamp: FileStamp


@dataclass(frozen=True)
class Tile:
    """One Atlas tile (coadd) as its headers describe it: SIN projection, north up, no distortion.

    `shape` is (rows, columns); `crpix` is the 1-based FITS pixel of `crval_deg`; `zero_point_mag` is
    Vega and stands in the order of `bands`, the bands that were asked for. `files` are the files of `bands`, in the
    same order: two tiles are equal only if their files are the same ones (see `images/identity.py`). `repr` omits them.
    `other_image_sets` are of the same tile, on the same pixel grid but with other footprints, as in a folder with one
    cutout for each source (see `images/tiles.py`). Each source is cut from the image set that covers it best.
    """

    coadd_id: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    crval_deg: tuple[float, float]
    crpix: tuple[float, float]
    cdelt_deg: tuple[float, float]
    zero_point_mag: tuple[float, ...]
    files: tuple[ImageFile, ...] = field(default=(), repr=False)
    other_image_sets: tuple[Tile, ...] = ()

    @property
    def image_sets(self) -> tuple[Tile, ...]:
        """This tile and its further image sets."""
        return (self, *self.other_image_sets)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels in all bands and image sets."""
        return sum(4 * s.shape[0] * s.shape[1] * len(s.bands) for s in self.image_sets)


@dataclass(frozen=True)
class TilePlan:
    """The sources of one tile: how many, and the catalogue partitions that hold them.

    `keys` are the digests of these partitions when they were counted (see `sources/footers.py`); without keys the
    partitions are read as they are. `n_file_changes` is the number of earlier attempts during which the image files of
    the tile changed.
    """

    coadd_id: str
    n_sources: int
    partitions: tuple[int, ...]
    keys: tuple[str, ...] = ()
    n_file_changes: int = 0


@dataclass(frozen=True)
class Strip:
    """Sources `start:stop` of a tile, ordered by pixel row: one contiguous row range of the tile."""

    tile: TilePlan
    start: int
    stop: int


@dataclass(frozen=True)
class CutoutBatch:
    """Native-size cutouts of N sources in B bands.

    `pixels` (N, B, S, S) float32 DN, NaN where there is no pixel; `x`, `y` (N,) 1-based FITS pixels of
    the source in its tile; `flags` (N,) int32 of `Flag`; `valid_frac` (N,) share of finite pixels;
    `zero_point_mag` (B,) Vega.
    """

    pixels: Float32
    x: Float64
    y: Float64
    flags: Int32
    valid_frac: Float32
    zero_point_mag: tuple[float, ...]


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `start + len(pixels)` of one band of a tile: `pixels` (rows, columns) float32 DN.

    `is_finite`: whether each of them is a finite number, so that no later step checks it again.
    """

    start: int
    pixels: Float32
    is_finite: bool


class Archive(Protocol):
    """Where tiles come from. An archive opens files only when a method needs them."""

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the tile as its headers describe it; raise `TileFault` if a band is missing or bad.

        With `verify` also for files that are not what their checksums say, where there are checksums.
        """
        ...

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows `start:stop` (0-based) of a band as native float32 DN; raise `TileFault`.

        The kind of the fault is "changed" if the file is no longer the one that `tile.files` names.
        """
        ...


class Classifier(Protocol):
    """A network on a device."""

    model_id: str

    def predict(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return (N, K) probabilities in the order of the model's classes for composites (N, C, S, S).

        `photometry` (N, F) are the features of the same sources, for a network that takes them; NaN = unknown.
        """
        ...

    def predict_and_embed(self, images: Float16, photometry: Float32 | None = None) -> tuple[Float32, Float32]:
        """Return the probabilities of `predict` and the embedding (N, W) in one pass; W is 0 if there is none."""
        ...
