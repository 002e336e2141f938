"""`write_mock`: a simulated archive on disk, with images and catalogue in their real layouts, and the true classes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial import cKDTree

from skyclass import __version__
from skyclass.errors import ConfigError
from skyclass.types import BANDS, DEFAULT_CLASSES, PIXEL_SCALE_ARCSEC, Bool, Float32, Float64, Int64, Tile

from ..files import translate_write_errors
from ..sky.healpix import healpix, separation_deg, unit_vectors
from ..sky.tile_wcs import edge_distance_px, tile_pixels
from .artifacts import contamination, parents
from .conditions import BandSky, band_sky
from .field import CANDIDATE, SATURATED, SkyModel, Sources, sources_near
from .grid import BLOCK_BYTES, FULL_SIZE_PX, BandFacts, header_bytes, nearest_tiles
from .measure import Photometry, image_scatter, photometry
from .population import CLASS_NAMES, MIXES, Mix
from .render import PAD_PX, render
from .rows import CATALOGUE_SCHEMA, COMMON_SCHEMA, TRUTH_SCHEMA, catalogue_rows, truth_rows
from .selection import BORDER_PX, listable, listed_deg2, owned, plan_sky, selected

BALANCED_TILE_SOURCES = 20_000
MAX_OUTLIERS_PER_DEG2 = 5_000.0
MIN_SIZE_PX = 128
MAX_TILES = 18_240
"""Tiles of the AllWISE Atlas."""
MAX_SOURCES_PER_DEG2 = 100_000
"""At a higher density a beam has about one source, and a catalogue cannot separate the sources."""
W1_CENTROID_ARCSEC = 3.4

SKY_FILES = ("catalog", "images", "truth.parquet")
NOTE = "mock.json"
"""File with the arguments of a simulated sky, which marks its folder."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MockReport:
    """The files of a simulated archive, its tiles, and its number of sources of each class.

    All sources lie within `radius_deg` of `center` (ra, dec in degrees), the mean position of the tiles.
    """

    directory: Path
    catalog: Path
    images: Path
    truth: Path
    coadd_ids: tuple[str, ...]
    n_sources: int
    class_counts: dict[str, int]
    center: tuple[float, float]
    radius_deg: float


@dataclass(frozen=True)
class _TileRows:
    """The catalogue and truth of one tile."""

    catalogue: pa.Table
    truth: pa.Table


def _check(arguments: dict[str, Any]) -> None:
    """Raise one `ConfigError` that names all invalid arguments of `write_mock`."""
    n_tiles, seed, size_px, mix = (arguments[name] for name in ("n_tiles", "seed", "size_px", "mix"))
    sources_per_tile, bands = arguments["sources_per_tile"], tuple(arguments["bands"])
    quasars, outliers = arguments["quasar_fraction"], arguments["outliers_per_deg2"]
    problems = []
    is_size = MIN_SIZE_PX <= size_px <= FULL_SIZE_PX
    most_sources = int(MAX_SOURCES_PER_DEG2 * listed_deg2(size_px)) if is_size else 0
    if not 1 <= n_tiles <= MAX_TILES:
        problems.append(f"tiles = {n_tiles}: choose 1 to {MAX_TILES:,}")
    if not 0 <= seed < 2**63:
        problems.append(f"seed = {seed}: choose 0 to 2^63 - 1")
    if not is_size:
        problems.append(f"size = {size_px} px: choose {MIN_SIZE_PX} to {FULL_SIZE_PX} (a full tile)")
    elif sources_per_tile is not None and not 1 <= sources_per_tile <= most_sources:
        problems.append(f"sources per tile = {sources_per_tile}: a tile of {size_px} px holds 1 to {most_sources:,}")
    if mix not in MIXES:
        problems.append(f"mix = {mix!r}: choose {' or '.join(MIXES)}")
    if bands not in (BANDS[:3], BANDS):
        problems.append(f"bands = {','.join(bands)!r}: write w1,w2,w3 or w1,w2,w3,w4")
    for ra, dec in arguments["centers"]:
        if not (0 <= ra <= 360 and -90 <= dec <= 90):
            add = ", so add 360 to a negative RA" if -360 <= ra < 0 else ""
            problems.append(f"center = {ra:g},{dec:g}: RA lies in 0 to 360 and Dec in -90 to 90 degrees{add}")
    if quasars is not None and not 0 <= quasars <= 1:
        problems.append(f"quasar fraction = {quasars:g}: choose 0 to 1")
    if not 0 <= outliers <= MAX_OUTLIERS_PER_DEG2:
        problems.append(f"outliers per deg2 = {outliers:g}: choose 0 to {MAX_OUTLIERS_PER_DEG2:,.0f}")
    if problems:
        raise ConfigError("the simulated sky cannot be made: " + "; ".join(problems))


def _check_folder(directory: Path) -> None:
    """Raise `ConfigError` for a folder with other files, and for one inside another simulated sky."""
    if str(directory) in ("", "."):
        raise ConfigError("a simulated sky needs a folder of its own: name one, such as sky")
    paths = [directory / name for name in SKY_FILES if (directory / name).exists()]
    if paths and not (directory / NOTE).exists():
        raise ConfigError(f"{paths[0]} exists and is not part of a simulated sky: choose another folder")
    if sky := next((folder for folder in directory.absolute().parents if (folder / NOTE).exists()), None):
        raise ConfigError(f"{directory} lies in the simulated sky {sky}: choose a folder outside of it")


def _clear(directory: Path) -> None:
    """Make the folder, without the files of an earlier simulated sky."""
    for path in (directory / name for name in SKY_FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)


def _write_image(root: Path, tile: Tile, sky: BandSky, image: Float32, seed: int) -> None:
    """Write one band in the layout of the archive: two header blocks, big-endian pixels, padding."""
    cid = tile.coadd_id
    path = root / cid[:2] / cid[:4] / cid / f"{cid}-{sky.band}-int-3.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = BandFacts(
        sky.band, float(np.nanmedian(image[::7, ::7])), sky.coverage, 0.8 * sky.coverage, 1.2 * sky.coverage,
        image_scatter(image), seed,
    )  # fmt: skip
    with path.open("wb") as out:
        out.write(header_bytes(tile, facts))
        out.write(image.astype(">f4").tobytes())
        out.write(bytes(-image.nbytes % BLOCK_BYTES))


def _position_sigma(sources: Sources) -> Float64:
    """Return the position error of the catalogue in arcsec: a constant, and a term that decreases with the S/N."""
    snr = np.maximum(10 ** (0.4 * (20.5 - sources.mags[:, 0])) / 3.6, 1.0)
    return np.hypot(0.04, np.minimum(W1_CENTROID_ARCSEC / snr * 0.6, 0.6))


def _shifted(sources: Sources, sigma_arcsec: Float64) -> tuple[Float64, Float64]:
    """Return the positions of the catalogue: the true positions with errors, to seven decimals."""
    east, north = sources.jitter.T * sigma_arcsec / 3600
    ra = (sources.ra + east / np.cos(np.radians(sources.dec))) % 360
    return ra.round(7), (sources.dec + north).round(7)


def _fitted(tile: Tile, sources: Sources) -> Sources:
    """Return the sources that an extractor separates on this tile: candidates and saturated stars."""
    known = sources.take((sources.layer == CANDIDATE) | (sources.layer == SATURATED))
    x, y = tile_pixels(tile, known.ra, known.dec)
    on_tile = edge_distance_px(tile, x, y) > 0
    return known.take(on_tile & (listable(x, y, known.mags[:, 0])))


def _n_near(tile: Tile, sources: Sources, x: Float64, y: Float64) -> Int64:
    """Return for each position the number of other candidates within 10 arcsec."""
    if not len(x):
        return np.zeros(0, np.int64)
    near = sources.take(sources.layer == CANDIDATE)
    tree = cKDTree(np.column_stack(tile_pixels(tile, near.ra, near.dec)))
    count = tree.query_ball_point(np.column_stack([x, y]), 10 / PIXEL_SCALE_ARCSEC, return_length=True)
    return cast(Int64, np.maximum(count - 1, 0))


def _contamination(
    tile: Tile, sources: Sources, conditions: BandSky, x: Float64, y: Float64, flux: Float64
) -> np.ndarray:
    """Return the letters of `cc_flags` of a band for sources at 1-based FITS pixels."""
    points = sources.take(sources.radius_arcsec == 0)
    px, py = tile_pixels(tile, points.ra, points.dec)
    stars = parents(conditions.band, conditions.scan_rad, px, py, points.mags[:, BANDS.index(conditions.band)])
    return contamination(stars, x, y, flux)


def _take(phot: Photometry, rows: Bool) -> Photometry:
    """Return some rows of photometry."""
    return Photometry(*(column[rows] for column in vars(phot).values()))


def _make_tile(sky: SkyModel, tile: Tile, tiles: list[Tile], images: Path, done: Callable[[], None]) -> _TileRows:
    """Render, write and measure one tile, and return its catalogue and truth."""
    sources = sources_near(sky, tile, PAD_PX)
    listed = _fitted(tile, sources)
    sigma_arcsec = _position_sigma(listed)
    ra, dec = _shifted(listed, sigma_arcsec)
    x, y = tile_pixels(tile, ra, dec)
    bands: dict[str, Photometry] = {}
    skies = {band: band_sky(sky.seed, tile, band) for band in tile.bands}
    for band, conditions in skies.items():
        image = render(conditions, sources, tile)
        _write_image(images, tile, conditions, image, sky.seed)
        if band in BANDS[:3]:
            bands[band] = photometry(image, conditions, x - 1, y - 1)
        done()
    size = tile.shape[0]
    rows = selected(
        sky.mix, *(np.array([getattr(p, name) for p in bands.values()]) for name in ("snr", "detection_snr"))
    )
    rows &= (listed.layer == CANDIDATE) & owned(tile, tiles, listed.ra, listed.dec)
    for axis in (x, y):
        rows &= (axis >= BORDER_PX) & (axis <= size - BORDER_PX)
    measured = {band: _take(p, rows) for band, p in bands.items()}
    flags = {b: _contamination(tile, sources, skies[b], x[rows], y[rows], p.flux) for b, p in measured.items()}
    n_near = _n_near(tile, sources, x[rows], y[rows])
    catalogue = catalogue_rows(tile, ra[rows], dec[rows], x[rows], y[rows], sigma_arcsec[rows], measured, n_near, flags)
    return _TileRows(catalogue, truth_rows(catalogue, listed.take(rows)))


def _write_catalogue(root: Path, table: pa.Table) -> None:
    """Write the hive partitions of AllWISE, one file per order-5 pixel, and `_common_metadata`."""
    k5 = healpix(5, table["ra"].to_numpy(), table["dec"].to_numpy())
    for pixel in np.unique(k5):
        folder = root / f"healpix_k0={pixel // 1024}" / f"healpix_k5={pixel}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = table.take(np.flatnonzero(k5 == pixel))
        pq.write_table(rows, folder / "part0.snappy.parquet", compression="snappy")
    root.mkdir(parents=True, exist_ok=True)
    pq.write_metadata(COMMON_SCHEMA, root / "_common_metadata")


def _write_note(path: Path, arguments: dict[str, Any], report: MockReport | None) -> None:
    """Write mock.json: arguments and results. It has no time and no path, so that equal seeds give equal bytes."""
    note: dict[str, Any] = {"simulated": True, "skyclass": __version__, "complete": report is not None}
    note["arguments"] = arguments
    if report:
        note |= {"tiles": report.coadd_ids, "n_sources": report.n_sources, "classes": report.class_counts}
    path.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def write_mock(
    directory: str | Path,
    n_tiles: int = 2,
    seed: int = 1,
    sources_per_tile: int | None = None,
    size_px: int = FULL_SIZE_PX,
    mix: Mix = "natural",
    centers: Sequence[tuple[float, float]] = ((150.1, 2.2),),
    progress: Progress | None = None,
    bands: tuple[str, ...] = BANDS[:3],
    quasar_fraction: float | None = None,
    outliers_per_deg2: float = 0.0,
) -> MockReport:
    """Write a simulated archive: `catalog/`, `images/`, `truth.parquet` and `mock.json`.

    Equal arguments give equal bytes. Every file has a mark that it is simulated.

    Parameters
    ----------
    directory : str or Path
        Folder of the archive. An earlier mock in it is replaced.
    n_tiles : int
        Number of tiles at each position: those of the AllWISE grid that are nearest to it.
    seed : int
        Seed of all random numbers.
    sources_per_tile : int, optional
        Approximate number of catalogue rows of a tile. By default a natural sky has the published counts at its
        position, and a balanced one 20,000 rows on a full tile and the same density on a smaller one.
    size_px : int
        Pixels on a side of a tile; 4095 for a full tile.
    mix : "natural" or "balanced"
        Class shares of the sky, or a third of each class with the same distribution of W1.
    centers : sequence of tuple of float
        Positions, each RA and Dec in degrees. The galactic position sets the counts of stars; the ecliptic latitude
        sets sky level, coverage, noise and scan direction.
    progress : callable, optional
        Called as `progress(done, total)` after each image.
    bands : tuple of str
        Bands of the images: w1, w2, w3, and optionally w4.
    quasar_fraction : float, optional
        Share of quasars among the candidates, in place of the published one.
    outliers_per_deg2 : float
        T dwarfs, young stellar objects and planetary nebulae per square degree, added as classes of the truth.

    Returns
    -------
    MockReport
        The files, the tiles and the number of sources of each class.

    Raises
    ------
    ConfigError
        An argument is invalid, or the folder has other files. Raised before anything is written.
    """
    directory = Path(directory)
    arguments = {
        "n_tiles": n_tiles, "seed": seed, "sources_per_tile": sources_per_tile, "size_px": size_px,
        "mix": mix, "centers": [list(center) for center in centers], "bands": list(bands),
        "quasar_fraction": quasar_fraction, "outliers_per_deg2": outliers_per_deg2,
    }  # fmt: skip
    _check(arguments)
    _check_folder(directory)
    tiles = list({t.coadd_id: t for c in centers for t in nearest_tiles(c, n_tiles, size_px, bands)}.values())
    sky = SkyModel(seed, mix, quasar_fraction=quasar_fraction, outliers_per_deg2=outliers_per_deg2)
    if sources_per_tile is None and mix == "balanced":
        sources_per_tile = max(20, round(BALANCED_TILE_SOURCES * listed_deg2(size_px) / listed_deg2(FULL_SIZE_PX)))
    with translate_write_errors(directory):
        _clear(directory)
        _write_note(directory / NOTE, arguments, None)
        if sources_per_tile is not None:
            sky = plan_sky(sky, tiles, round(1.02 * len(tiles) * sources_per_tile))
        report = _write_tables(directory, tiles, _make_tiles(sky, tiles, directory / "images", progress))
        _write_note(directory / NOTE, arguments, report)
    return report


def _make_tiles(sky: SkyModel, tiles: list[Tile], images: Path, progress: Progress | None) -> list[_TileRows]:
    """Write the images of all tiles, and return their rows."""
    n_images, finished = sum(len(tile.bands) for tile in tiles), 0

    def done() -> None:
        nonlocal finished
        finished += 1
        if progress:
            progress(finished, n_images)

    return [_make_tile(sky, tile, tiles, images, done) for tile in tiles]


def _write_tables(directory: Path, tiles: list[Tile], parts: list[_TileRows]) -> MockReport:
    """Write the catalogue and the truth of all tiles, and return the report."""
    catalogue = pa.concat_tables([CATALOGUE_SCHEMA.empty_table(), *(p.catalogue for p in parts)])
    truth = pa.concat_tables([TRUTH_SCHEMA.empty_table(), *(p.truth for p in parts)])
    _write_catalogue(directory / "catalog", catalogue)
    pq.write_table(truth, directory / "truth.parquet")
    classes = cast(list[str], truth["class"].to_pylist())
    return MockReport(
        directory, directory / "catalog", directory / "images", directory / "truth.parquet",
        tuple(t.coadd_id for t in tiles), catalogue.num_rows, _class_counts(classes),
        *_circle(tiles, catalogue),
    )  # fmt: skip


def _class_counts(classes: list[str]) -> dict[str, int]:
    """Return the number of sources of each class, and of each kind of outlier that is present."""
    counts = {name: classes.count(name) for name in CLASS_NAMES}
    return {name: n for name, n in counts.items() if n or name in DEFAULT_CLASSES}


def _circle(tiles: list[Tile], catalogue: pa.Table) -> tuple[tuple[float, float], float]:
    """Return the mean position (ra, dec) of the tiles and the radius of all sources, rounded up, in degrees."""
    x, y, z = unit_vectors(*np.transpose([tile.crval_deg for tile in tiles])).mean(0)
    ra, dec = (
        round(float(np.degrees(np.arctan2(y, x))) % 360, 4),
        round(float(np.degrees(np.arctan2(z, np.hypot(x, y)))), 4),
    )
    distance_deg = separation_deg(ra, dec, catalogue["ra"].to_numpy(), catalogue["dec"].to_numpy())
    return (ra, dec), math.ceil(100 * float(distance_deg.max(initial=0.0))) / 100
