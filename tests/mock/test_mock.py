"""The simulated sky against the facts of AllWISE and, where they are at hand, against real data."""

import hashlib
import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from click.testing import CliRunner
from scipy.optimize import curve_fit
from scipy.spatial import cKDTree

from skyclass.cli.main import cli
from skyclass.errors import ConfigError, StoreError
from skyclass.mock import write_mock
from skyclass.mock.conditions import band_sky, zodiacal_sky_dn
from skyclass.mock.counts import natural_counts
from skyclass.mock.field import SkyModel, sources_near
from skyclass.mock.grid import BandFacts, grid, header_bytes, nearest_tiles, tile_name
from skyclass.mock.measure import image_scatter, lower_scatter, photometry
from skyclass.mock.population import CLASS_OF_SUBTYPE, COLOURS, SUBTYPES, draw
from skyclass.mock.psf import atlas_psf
from skyclass.mock.render import light_image, render
from skyclass.mock.selection import owned
from skyclass.sky.healpix import healpix, separation_deg, unit_vectors
from skyclass.sky.tile_wcs import edge_distance_px, tile_pixels
from skyclass.types import DEFAULT_CLASSES, Tile
from tests.support.paths import SHARED

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the folder of real data ../shared is absent")

BANDS = ("w1", "w2", "w3")
HEADER_KEYWORDS = (
    "SIMPLE BITPIX NAXIS NAXIS1 NAXIS2 BUNIT EXTEND COMMENT COMMENT CRVAL1 CRVAL2 EQUINOX CTYPE1 CTYPE2 "
    "CRPIX1 CRPIX2 CDELT1 CDELT2 CROTA2 HISTORY BITMASK WRELEASE FILETYPE ORIGIN FCREATE DATEOBS1 DATEOBS2 "
    "MIDOBS TELESCOP BAND WAVELEN COADDID NUMFRMS MOONREJ MOONINP MAGZP MAGZPUNC SIZEX SIZEY PXSCAL1 PXSCAL2 "
    "MEDINT MEDCOV MINCOV MAXCOV LOWCOVPC LOWCOPC NOMCOVPC PCTMINC ROBSIG PIXCHIS1 PIXCHIS2 MEDNMSK RANDSEED "
    "ELON ELAT GLON GLAT MOONMASK - FLXWTNUM FLXWTDX FLXWTUDX FLXWTSDX FLXWTDY FLXWTUDY FLXWTSDY"
).split()


@pytest.fixture(scope="module")
def natural(tmp_path_factory):
    return write_mock(tmp_path_factory.mktemp("natural"), n_tiles=2, seed=3, sources_per_tile=700, size_px=900)


@pytest.fixture(scope="module")
def rows(natural) -> pd.DataFrame:
    files = sorted(natural.catalog.glob("*/*/*.parquet"))
    catalogue = pd.concat([pq.ParquetFile(f).read().to_pandas() for f in files])
    truth = pd.read_parquet(natural.truth).drop(columns=["ra", "dec", "coadd_id", "cntr"])
    return catalogue.merge(truth, on="source_id", validate="one_to_one")


def _tile(size_px: int = 400) -> Tile:
    return nearest_tiles((150.1, 2.2), 1, size_px, BANDS)[0]


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def _cards(header: bytes) -> list[str]:
    return [header[i : i + 80].decode("ascii") for i in range(0, len(header), 80)]


# --- tiles and headers -----------------------------------------------------------------------------


def test_grid_has_the_tiles_of_allwise():
    ra, dec = grid()
    names = [tile_name(a, d) for a, d in zip(ra, dec, strict=True)]
    assert len(names) == 18_240 and len(set(names)) == 18_240
    # Tiles named in public examples and headers; no tile is called 1503p016.
    assert {"1210p015_ac51", "0098p408_ac51", "2279p454_ac51", "0904m213_ac51"} <= set(names)
    assert "1503p016_ac51" not in names


@needs_data
def test_grid_agrees_with_the_published_list():
    table = fits.getdata(DATA / "archive" / "wise-tiles.fits")
    ra, dec = grid()
    lon, lat = table["ra"].astype(float), table["dec"].astype(float)
    distance, partner = cKDTree(unit_vectors(ra, dec)).query(unit_vectors(lon, lat))
    assert len({*partner}) == 18_240
    # Centres drift from equal steps along a row, which costs a twentieth of the names their last digit.
    assert np.degrees(distance).max() < 0.02
    same = [tile_name(ra[i], dec[i])[:8] == str(c)[:8] for i, c in zip(partner, table["coadd_id"], strict=True)]
    assert np.mean(same) > 0.94


@pytest.mark.parametrize("band", ["w1", "w2", "w3", "w4"])
def test_header_is_the_real_one_card_by_card(band):
    header = header_bytes(_tile(4095), BandFacts(band, 4.4, 50.3, 0.8, 60.5, 0.11, 7))
    cards = _cards(header)
    end = cards.index("END".ljust(80))
    keywords = [c[:8].strip() for c in cards[:end]]
    exposure = ["FRC8P8ET", "FRC4P4ET", "FRC2P2ET", "FRC1P1ET"] if band == "w3" else []
    at = HEADER_KEYWORDS.index("ELON")
    assert keywords == HEADER_KEYWORDS[:at] + exposure + HEADER_KEYWORDS[at:]
    assert len(header) == 5760 and all(len(c) == 80 for c in cards)
    # 5,760 bytes of header and 4095 x 4095 pixels, padded to whole blocks, as on the archive's servers.
    assert len(header) + -(-4095 * 4095 * 4 // 2880) * 2880 == 67_083_840
    values = fits.Header.fromstring(header.decode("ascii"))
    assert values["MAGZP"] == {"w1": 20.5, "w2": 19.5, "w3": 18.0, "w4": 13.0}[band]
    assert values["CRPIX1"] == 2048 and values["COADDID"] == "1497p015_ac51"
    assert values["-"] == f"1497p015_ac51-{band}-int-3.fits"
    assert "SIMULATED by skyclass mock, seed 7" in str(values["HISTORY"])


@needs_data
def test_header_has_the_cards_of_a_genuine_one():
    real = _cards((DATA / "atlas_cutouts" / "2279p454_ac51-w1.fits").read_bytes()[:5760])
    mine = _cards(header_bytes(_tile(), BandFacts("w1", 4.4, 50.3, 0.8, 60.5, 0.11, 7)))
    assert [c[:8] for c in mine] == [c[:8] for c in real]


# --- the sky ---------------------------------------------------------------------------------------


@pytest.mark.integration
def test_neighbouring_tiles_share_one_sky_and_own_each_source_once():
    tiles = nearest_tiles((150.1, 2.2), 3, 4095, BANDS)
    sky = SkyModel(11, "natural", density=0.03)
    seen = [sources_near(sky, tile, 0.0, (0,)) for tile in tiles]
    owners: dict[tuple[float, float], int] = {}
    for tile, found in zip(tiles, seen, strict=True):
        for other, also in zip(tiles, seen, strict=True):
            there = edge_distance_px(other, *tile_pixels(other, found.ra, found.dec)) > 0
            here = edge_distance_px(tile, *tile_pixels(tile, also.ra, also.dec)) > 0
            assert {*found.ra[there]} == {*also.ra[here]}
        mine = owned(tile, tiles, found.ra, found.dec)
        for place in zip(found.ra[mine], found.dec[mine], strict=True):
            owners[place] = owners.get(place, 0) + 1
    everything = {p for found in seen for p in zip(found.ra, found.dec, strict=True)}
    assert owners.keys() == everything and set(owners.values()) == {1}


def test_classes_follow_brightness():
    counts = natural_counts(240.0, 42.0)
    shares = counts.fractions([10.0, 16.0, 17.0])
    assert np.allclose(shares.sum(1), 1)
    assert shares[0, 2] > 0.95 and shares[2, 0] > shares[2, 2]
    made = draw(np.random.default_rng(0), 60_000, counts, 8.0, 17.0)
    quasars = (CLASS_OF_SUBTYPE[made.subtype] == DEFAULT_CLASSES.index("quasar")).mean()
    assert 0.005 < quasars < 0.03
    early, late = ((made.subtype == SUBTYPES.index(s)).sum() for s in ("early", "late"))
    assert 0.7 < early / late < 0.95


def _moments(name: str) -> tuple[np.ndarray, np.ndarray]:
    weight = np.array([w for w, _, _ in COLOURS[name]])
    mean = np.array([m for _, m, _ in COLOURS[name]])
    second = [np.array([[a, c], [c, b]]) + np.outer(m, m) for _, m, (a, c, b) in COLOURS[name]]
    total = weight @ mean / weight.sum()
    return total, np.tensordot(weight, second, 1) / weight.sum() - np.outer(total, total)


@needs_data
@pytest.mark.parametrize(
    ("name", "table", "chosen"),
    [
        ("late", "sdss_galaxies", "abs(w1mpro - w2mpro) < 2.5 and -1 < w2mpro - w3mpro < 6"),
        ("quasar", "desi_quasars", "w2mpro < 14.5"),
        ("FGK", "exoplanet_host_stars",
         "w1mpro > 8 and w1lim == 0 and w2lim == 0 and w3lim == 0 and w3sigmpro < 0.1"),
    ],
)  # fmt: skip
def test_colours_have_the_moments_of_their_tables(name, table, chosen):
    data = pd.read_parquet(DATA / "tables" / f"{table}.parquet").query(chosen)
    colours = np.column_stack([data.w1mpro - data.w2mpro, data.w2mpro - data.w3mpro])
    mean, covariance = _moments(name)
    assert np.allclose(mean, colours.mean(0), atol=0.01)
    assert np.allclose(np.sqrt(np.diag(covariance)), colours.std(0), rtol=0.03)


# --- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("band", "fwhm_arcsec"), [("w1", 8.5), ("w2", 9.4), ("w3", 11.0)])
def test_a_star_has_its_flux_width_and_place(band, fwhm_arcsec):
    x, y, flux = 200.37, 199.81, 1000.0
    image = light_image(atlas_psf(band, 0.7), (np.array([x]), np.array([y]), np.array([flux])), (400, 400))
    assert image.sum() == pytest.approx(flux, rel=0.01)
    stamp, (yy, xx) = image[191:210, 191:210], np.mgrid[191:210, 191:210]

    def gaussian(_, height, x0, y0, sigma, level):
        return (level + height * np.exp(-0.5 * ((xx - x0) ** 2 + (yy - y0) ** 2) / sigma**2)).ravel()

    fit, _ = curve_fit(gaussian, None, stamp.ravel(), (stamp.max(), 200, 200, 3, 0))
    assert fit[1] == pytest.approx(x, abs=0.01) and fit[2] == pytest.approx(y, abs=0.01)
    assert abs(fit[3]) * 2.3548 * 1.375 == pytest.approx(fwhm_arcsec, abs=0.15)


def test_close_stars_are_measured_apart_and_nothing_is_measured_where_there_is_nothing():
    tile = _tile()
    sky = band_sky(1, tile, "w1")
    x, y, flux = (
        np.array([150.2, 157.0, 280.0]),
        np.array([200.0, 203.3, 120.0]),
        np.array([4000.0, 2500.0, 0.0]),
    )
    nothing = sources_near(SkyModel(1, "natural", density=0.0), tile, 0.0, (0,))
    image = render(sky, nothing, tile) + light_image(atlas_psf("w1", sky.scan_rad), (x, y, flux), tile.shape)
    found = photometry(image, sky, x, y)
    assert np.allclose(found.flux[:2], flux[:2], rtol=0.03)
    assert abs(found.snr[2]) < 5 and (found.snr[:2] > 20).all()
    assert np.isfinite(found.mag[2])


@pytest.mark.integration
@pytest.mark.parametrize(("band", "low", "high"), [("w1", 0.05, 0.20), ("w2", 0.05, 0.16), ("w3", 0.26, 0.75)])
def test_sky_and_noise_lie_where_real_tiles_lie(natural, band, low, high):
    # The ecliptic latitude of the tiles is about -9 degrees.
    sky = zodiacal_sky_dn(band, -9.0)
    for path in natural.images.rglob(f"*-{band}-int-3.fits"):
        image = fits.getdata(path).astype(np.float32)
        assert np.nanmedian(image) == pytest.approx(sky, rel=0.12)
        scatter = np.median([image_scatter(image[i : i + 261, i : i + 261]) for i in (0, 200, 400, 600)])
        assert low < scatter < high
        assert 0 < np.isnan(image).sum() < 0.01 * image.size


@pytest.fixture(scope="module")
def at_2010h(tmp_path_factory):
    """The simulated sky at the position of the real field 2010H."""
    return write_mock(tmp_path_factory.mktemp("field"), n_tiles=1, seed=5, size_px=800, centers=[(121.0089, 1.5144)])


def _pixel_noise(image):
    second = 4 * image[1:-1, 1:-1] - image[:-2, 1:-1] - image[2:, 1:-1] - image[1:-1, :-2] - image[1:-1, 2:]
    return np.nanmedian(np.abs(second))


@pytest.mark.integration
@needs_data
@pytest.mark.parametrize("band", BANDS)
def test_level_and_noise_are_those_of_a_real_field(at_2010h, band):
    def correlation(image):
        sigma = lower_scatter(image)
        level = np.nan_to_num(np.clip(image - np.nanmedian(image), -3 * sigma, 3 * sigma))
        return np.array([(level[:, k:] * level[:, :-k]).mean() for k in (1, 2, 4, 8)]) / (level**2).mean()

    mine = fits.getdata(next(at_2010h.images.rglob(f"*-{band}-int-3.fits"))).astype(np.float64)
    real = fits.getdata(DATA / "atlas_cutouts" / f"2010H-{band}.fits").astype(np.float64)
    # Boxes of the size of the field, so that a gradient across the tile does not count.
    boxes = [mine[y : y + 261, x : x + 261] for y in (0, 260, 520) for x in (0, 260, 520)]
    for measure, tolerance in ((np.nanmedian, 0.1), (_pixel_noise, 0.15), (lower_scatter, 0.25)):
        assert np.median([measure(box) for box in boxes]) == pytest.approx(measure(real), rel=tolerance)
    assert np.allclose(np.median([correlation(box) for box in boxes], axis=0), correlation(real), atol=0.15)


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    def digests(name, seed):
        write_mock(tmp_path / name, n_tiles=2, seed=seed, sources_per_tile=40, size_px=256)
        root = tmp_path / name
        return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in _files(root)}

    first, again, other = digests("a", 1), digests("b", 1), digests("c", 2)
    assert first == again
    assert all(first[p] != other[p] for p in first if p.suffix == ".fits")
    # A mock may be made anew in its own place, and leaves nothing of the old one.
    assert digests("c", 1) == first


def test_layout_is_that_of_the_archive(natural):
    note = json.loads((natural.directory / "mock.json").read_text())
    assert note["simulated"] is True and note["arguments"]["seed"] == 3
    for cid in natural.coadd_ids:
        for band in BANDS:
            path = natural.images / cid[:2] / cid[:4] / cid / f"{cid}-{band}-int-3.fits"
            header = fits.getheader(path)
            assert header["BITPIX"] == -32 and header["NAXIS1"] == 900 and header["CRPIX2"] == 450.5
            assert not {"RADESYS", "CUNIT1", "CUNIT2", "CD1_1", "PC1_1"} & set(header)
            assert path.stat().st_size % 2880 == 0
    common = pq.read_schema(natural.catalog / "_common_metadata")
    assert common.names[-2:] == ["healpix_k0", "healpix_k5"]
    assert common.field("ra").metadata == {b"units": b"deg", b"description": b"right ascension (J2000)"}
    truth = pq.read_schema(natural.truth)
    assert b"SIMULATED" in truth.metadata[b"simulated"]


def test_partitions_hold_their_own_pixel(natural):
    for path in natural.catalog.glob("*/*/*.parquet"):
        k0, k5 = (int(part.partition("=")[2]) for part in path.parts[-3:-1])
        table = pq.ParquetFile(path).read()
        assert path.name == "part0.snappy.parquet" and k0 == k5 // 1024
        assert (healpix(5, table["ra"].to_numpy(), table["dec"].to_numpy()) == k5).all()
        assert table.schema.field("cntr").type == "int64" and table.schema.field("src").type == "int32"
        assert table["w4mpro"].null_count == table.num_rows


def test_rows_are_those_of_the_catalogue(natural, rows):
    assert 1.25 * 1400 > len(rows) == natural.n_sources > 0.9 * 1400
    assert rows.source_id.is_unique and rows.cntr.is_unique and rows.coadd_id.nunique() == 2
    first = rows.iloc[0]
    assert str(first.cntr) == f"{first.coadd_id[:4]}1{first.coadd_id[5:8]}01351{first.src:06d}"
    assert first.source_id == f"{first.coadd_id}-{first.src:06d}"
    assert rows.designation.str.fullmatch(r"J\d{6}\.\d{2}[+-]\d{6}\.\d").all()
    for tile in nearest_tiles((150.1, 2.2), 2, 900, BANDS):
        mine = rows[rows.coadd_id == tile.coadd_id]
        x, y = tile_pixels(tile, mine.ra, mine.dec)
        assert np.allclose(x, mine.wx, atol=0.01) and np.allclose(y, mine.wy, atol=0.01)
    # More than 50 arcsec from the border, S/N 5 somewhere.
    assert rows[["wx", "wy"]].min().min() >= 36.3 and rows[["wx", "wy"]].max().max() <= 900 - 36.3
    assert (rows[["w1snr", "w2snr", "w3snr"]].max(axis=1) >= 4.95).all()


def test_photometry_is_measured_and_faint_w3_is_an_upper_limit(rows):
    limit = rows.w3snr < 1.95
    assert limit.mean() > 0.4 and rows.w3sigmpro[limit].isna().all() and rows.w3mpro[limit].notna().all()
    assert rows.w3sigmpro[rows.w3snr > 2.05].notna().all()
    bright = rows[(rows.w1snr > 20) & (rows.half_light_radius_arcsec == 0) & (rows.w1sat == 0)]
    error = (bright.w1mpro - bright.true_w1_mag).to_numpy()
    assert abs(np.median(error)) < 0.02 and 0 < np.median(np.abs(error)) < 0.05
    detected = {band: float((rows[f"{band}snr"] > 5).mean()) for band in BANDS}
    assert detected["w1"] > 0.9 and 0.4 < detected["w2"] < 0.8 and 0.03 < detected["w3"] < 0.25
    # Stated errors of the 319 sources around Arp 220 (2.16, 3.01, 35.7 DN) put S/N 5 at these magnitudes.
    for band, mag in zip(BANDS, (17.9, 16.6, 12.4), strict=True):
        assert abs(rows[rows[f"{band}snr"].between(4.5, 5.5)][f"{band}mpro"].median() - mag) < 0.5


@pytest.mark.integration
def test_balanced_mix_gives_nothing_away_by_brightness(tmp_path):
    made = write_mock(tmp_path / "mock", n_tiles=2, seed=4, sources_per_tile=900, size_px=900, mix="balanced")
    assert all(0.29 < n / made.n_sources < 0.38 for n in made.class_counts.values())
    truth = pd.read_parquet(made.truth)
    shares = [
        np.histogram(g.true_w1_mag, [10, 13, 14.5, 15.5, 16.2, 17])[0] / len(g) for _, g in truth.groupby("class")
    ]
    assert np.ptp(shares, axis=0).max() < 0.08


@pytest.mark.integration
def test_the_command_line_makes_four_bands_and_prints_lines_that_can_follow_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--size", "500", "--sources-per-tile", "120", "--tiles", "1", "--mix", "balanced"]
    three, four = (
        CliRunner().invoke(cli, ["mock", name, *size, *more], standalone_mode=False, catch_exceptions=False).output
        for name, more in (("three", []), ("four", ["--bands", "w4, W1,w2,w3"]))
    )
    assert [sorted({p.name.split("-")[1] for p in Path(name).rglob("*.fits")}) for name in ("three", "four")] == [
        ["w1", "w2", "w3"], ["w1", "w2", "w3", "w4"],
    ]  # fmt: skip
    centre, classify, dataset = (shlex.split(line) for line in three.splitlines()[-3:])
    rows = pd.read_parquet("three/truth.parquet")
    ra, dec, radius = centre[-1].split(",")
    apart = separation_deg(float(ra), float(dec), rows["ra"].to_numpy(), rows["dec"].to_numpy())
    assert apart.max() <= float(radius.removesuffix("deg")) < apart.max() + 0.011
    assert classify[:2] == ["skyclass", "classify"] and "--bands w1,w2,w3 " in " ".join(dataset)
    run = partial(CliRunner().invoke, cli, standalone_mode=False)
    bare = [word for word in dataset[1:] if word not in ("--bands", "w1,w2,w3")]
    with pytest.raises(ConfigError, match=r"no image of w4 .*--bands w1,w2,w3 \("):
        run(bare, catch_exceptions=False)
    assert "SIMULATED images" in run(dataset[1:]).output and (tmp_path / "dataset" / "pixels.npy").exists()
    default = [word.replace("three", "four") for word in bare[:-1]]
    assert "in w1, w2, w3, w4" in run([*default, "other"]).output and "--bands w1,w2,w3,w4" in four
    with pytest.raises(ConfigError, match="bands = 'w1,w5': write w1,w2,w3 or"):
        run(["mock", "no", "--bands", "w5,w1"], catch_exceptions=False)


def test_bad_arguments_are_named_together_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)tiles = 0.*size = 5000 px.*mix = 'even'"):
        write_mock(tmp_path / "m", n_tiles=0, size_px=5000, mix="even")
    with pytest.raises(ConfigError, match="sources per tile = 900000"):
        write_mock(tmp_path / "m", sources_per_tile=900_000, size_px=500)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ConfigError, match="center = -10,0: .*add 360 to a negative RA"):
        write_mock(tmp_path / "m", centers=[(-10, 0)], size_px=256)
    with pytest.raises(ConfigError, match="needs a folder of its own"):
        write_mock("", size_px=256)
    (tmp_path / "mine" / "catalog").mkdir(parents=True)
    with pytest.raises(ConfigError, match="choose another folder"):
        write_mock(tmp_path / "mine", size_px=256)
    (tmp_path / "mine" / "mock.json").write_text("{}")
    with pytest.raises(ConfigError, match="lies in the simulated sky .*mine: choose a folder outside of it"):
        write_mock(tmp_path / "mine" / "catalog", size_px=256)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write .*file/m: Not a directory"):
        write_mock(tmp_path / "file" / "m", size_px=256)
    assert (tmp_path / "mine" / "catalog").exists()
