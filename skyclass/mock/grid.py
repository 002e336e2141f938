"""The tile grid of AllWISE, derived from its published tiles, and the header of an Atlas image.

The grid has exactly 18,240 tiles. Its names agree with the published ones except for right ascensions close to a tenth
of a degree, because the true centres deviate from equal steps by up to 0.015 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord

from skyclass.types import PIXEL_SCALE_ARCSEC, Tile

from ..sky.healpix import separation_deg

FULL_SIZE_PX = 4095
ROW_STEP_DEG = 5452 / 3600
"""Tile size of 1.5644444 deg less the 180 arcsec of overlap (All-Sky Explanatory Supplement V.3)."""
HALF_SIZE_DEG = 0.7822222
LAST_ROW = 59
CDELT_DEG = 0.0003819444391411
ZERO_POINT_MAG = {"w1": 20.5, "w2": 19.5, "w3": 18.0, "w4": 13.0}
BLOCK_BYTES = 2880

Value = str | float | int


@dataclass(frozen=True)
class BandFacts:
    """The properties of one band of one simulated tile in its header; sky and sigma in DN."""

    band: str
    sky: float
    coverage: float
    min_coverage: float
    max_coverage: float
    robust_sigma: float
    seed: int


def row_length(k: int) -> int:
    """Return how many tiles lie in the row of declination k * 5452 arcsec."""
    dec = abs(k) * ROW_STEP_DEG
    return round(360 * math.cos(math.radians(max(0.0, dec - HALF_SIZE_DEG))) / ROW_STEP_DEG)


def tile_name(ra_deg: float, dec_deg: float) -> str:
    """Return the AllWISE tile name of a tile centre, e.g. `1497p015_ac51`."""
    # The offset makes 271.2999999 count as 271.3.
    ra10, dec10 = int(10 * ra_deg + 1e-6), 10 * abs(dec_deg)
    number = int(dec10 + 1e-6) if dec_deg >= 0 else math.ceil(dec10 - 1e-6)
    return f"{ra10:04d}{'p' if dec_deg >= 0 else 'm'}{number:03d}_ac51"


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Return (ra, dec) in degrees of all 18,240 tile centres, to the six decimals of a header."""
    rows = range(-LAST_ROW, LAST_ROW + 1)
    ra = np.concatenate([np.arange(row_length(k)) * 360 / row_length(k) for k in rows])
    dec = np.concatenate([np.full(row_length(k), k * ROW_STEP_DEG) for k in rows])
    return ra.round(6), dec.round(6)


def nearest_tiles(center: tuple[float, float], n: int, size_px: int, bands: tuple[str, ...]) -> list[Tile]:
    """Return the n tiles closest to a position, nearest first: `size_px` pixels around their true centres."""
    ra, dec = grid()
    order = np.argsort(separation_deg(*center, ra, dec), kind="stable")[:n]
    crpix = (size_px + 1) / 2
    return [
        Tile(
            tile_name(float(ra[i]), float(dec[i])), bands, (size_px, size_px), (float(ra[i]), float(dec[i])),
            (crpix, crpix), (-CDELT_DEG, CDELT_DEG), tuple(ZERO_POINT_MAG[b] for b in bands),
        )
        for i in order
    ]  # fmt: skip


def _card(keyword: str, value: Value, comment: str = "") -> str:
    """Return one 80-character FITS card; text is left-justified, numbers and pre-formatted literals right."""
    if isinstance(value, str) and not value.startswith("="):
        text = f"'{value:<8}'"
        text = f"{text:<20}"
    else:
        text = f"{str(value).removeprefix('='):>20}"
    return f"{keyword:<8}= {text}{' / ' + comment if comment else ''}"[:80].ljust(80)


def _layout_cards(tile: Tile) -> Iterable[str]:
    """Yield the cards of the array, the standard comments and the world coordinates."""
    yield _card("SIMPLE", "=T", "file does conform to FITS standard")
    yield _card("BITPIX", -32, "number of bits per data pixel")
    yield _card("NAXIS", 2, "number of data axes")
    yield _card("NAXIS1", tile.shape[1], "length of data axis 1")
    yield _card("NAXIS2", tile.shape[0], "length of data axis 2")
    yield _card("BUNIT", "DN", "image pixel units")
    yield _card("EXTEND", "=T", "FITS dataset may contain extensions")
    yield "COMMENT   FITS (Flexible Image Transport System) format is defined in 'Astronomy".ljust(80)
    yield "COMMENT   and Astrophysics', volume 376, page 359; bibcode: 2001A&A...376..359H".ljust(80)
    yield _card("CRVAL1", f"={tile.crval_deg[0]:.6f}", "RA at CRPIX1,CRPIX2, J2000.0 (deg)")
    yield _card("CRVAL2", f"={tile.crval_deg[1]:.6f}", "Dec at CRPIX1,CRPIX2, J2000.0 (deg)")
    yield _card("EQUINOX", "=2000.0", "Equinox of WCS, (year)")
    yield _card("CTYPE1", "RA---SIN", "Projection type for axis 1")
    yield _card("CTYPE2", "DEC--SIN", "Projection type for axis 2")
    yield _card("CRPIX1", f"={tile.crpix[0]:.6f}", "Axis 1 reference pixel at CRVAL1,CRVAL2")
    yield _card("CRPIX2", f"={tile.crpix[1]:.6f}", "Axis 2 reference pixel at CRVAL1,CRVAL2")
    yield _card("CDELT1", f"={tile.cdelt_deg[0]:.16f}", "Axis 1 scale at CRPIX1,CRPIX2 (deg/pix)")
    yield _card("CDELT2", f"={tile.cdelt_deg[1]:.16f}", "Axis 2 scale at CRPIX1,CRPIX2 (deg/pix)")
    yield _card("CROTA2", "=0.000000", "Image twist: +axis2 W of N, J2000.0 (deg)")


_FIXED = {
    "w1": (405273647, 3.368, "=20.5", 0.006, 512),
    "w2": (405273647, 4.618, "=19.5", 0.007, 512),
    "w3": (413662255, 12.082, "=18.", 0.012, 269),
    "w4": (413662255, 22.194, "=13.", 0.012, 269),
}
"""BITMASK, WAVELEN, MAGZP, MAGZPUNC and NUMFRMS of each band, as in real headers."""


def _origin_cards(tile: Tile, facts: BandFacts) -> Iterable[str]:
    """Yield the cards of origin, dates, band and zero point."""
    bitmask, wavelength, zero_point, zero_point_error, frames = _FIXED[facts.band]
    # One HISTORY card, not two, because the W3 header fills all 72 cards.
    yield f"HISTORY AWAIC layout, SIMULATED by skyclass mock, seed {facts.seed}".ljust(80)
    yield _card("BITMASK", bitmask, "Fatal bitstring mask template")
    yield _card("WRELEASE", "release-v6.0", "WSDS s/w release tag")
    yield _card("FILETYPE", "intensity image", "product description")
    yield _card("ORIGIN", "skyclass mock (SIMULATED)", "origin of image data")
    yield _card("FCREATE", "2013-08-04T23:14:39.000Z", "WSDC file creation date/time (UTC)")
    yield _card("DATEOBS1", "2010-01-12T11:40:58.174", "obs. date/time of earliest frame (UTC)")
    yield _card("DATEOBS2", "2011-01-15T17:29:10.332", "obs. date/time of latest frame (UTC)")
    yield _card("MIDOBS", "2010-07-20T18:47:27.777", "obs. date/time of middle frame (UTC)")
    yield _card("TELESCOP", "WISE", "telescope used to acquire data")
    yield _card("BAND", int(facts.band[1]), "wavelength band number")
    yield _card("WAVELEN", wavelength, "[microns] effective wavelength of band")
    yield _card("COADDID", tile.coadd_id, "atlas-image identifier")
    yield _card("NUMFRMS", frames, "final number of frames touching footprint")
    yield _card("MOONREJ", 0, "number of frames rejected due to moon-glow")
    yield _card("MOONINP", 0, "initial number of frames with suspect moon-glow")
    yield _card("MAGZP", zero_point, "[mag] relative photometric zero point")
    yield _card("MAGZPUNC", zero_point_error, "[mag] 1-sigma uncertainty in zero point")


def _depth_cards(tile: Tile, facts: BandFacts) -> Iterable[str]:
    """Yield the cards of size, sky level, coverage and noise."""
    for letter, n in (("X", tile.shape[1]), ("Y", tile.shape[0])):
        yield _card(f"SIZE{letter}", f"={n * CDELT_DEG:.6f}", "[deg] linear dimension")
    for axis in (1, 2):
        yield _card(f"PXSCAL{axis}", PIXEL_SCALE_ARCSEC, "[asec/pix] scale at CRPIX1,CRPIX2")
    yield _card("MEDINT", f"={facts.sky:.12f}", "[DN] median of intensity pixels")
    yield _card("MEDCOV", f"={facts.coverage:.8f}", "[pixels] median depth-of-coverage")
    yield _card("MINCOV", f"={facts.min_coverage:.8f}", "[pixels] minimum depth-of-coverage")
    yield _card("MAXCOV", f"={facts.max_coverage:.8f}", "[pixels] maximum depth-of-coverage")
    for keyword, limit in (("LOWCOVPC", 4), ("LOWCOPC", 6), ("NOMCOVPC", 8)):
        yield _card(keyword, 0, f"[%] area of footprint with depth <= {limit} pixels")
    yield _card("PCTMINC", 0, "[%] area of internal outlier tile <= 4 pix deep")
    yield _card("ROBSIG", f"={facts.robust_sigma:.12f}", "[DN] robust spatial sigma")
    yield _card("PIXCHIS1", 1, "ratio ROBSIG/(median unc)")
    yield _card("PIXCHIS2", 1, "ratio ROBSIG/(modal unc)")
    yield _card("MEDNMSK", 12882, "median number of pixels masked per frame")
    yield _card("RANDSEED", facts.seed, "random seed")


def _position_cards(tile: Tile, facts: BandFacts) -> Iterable[str]:
    """Yield the cards of exposure times (W3), position on the sky, file name and astrometric check."""
    if facts.band == "w3":
        for keyword, share in (("FRC8P8ET", 1), ("FRC4P4ET", 0), ("FRC2P2ET", 0), ("FRC1P1ET", 0)):
            yield _card(keyword, share, "fraction of NUMFRMS with this exposure time")
    centre = SkyCoord(*tile.crval_deg, unit="deg")
    ecliptic, galactic = centre.barycentricmeanecliptic, centre.galactic
    for keyword, angle in (
        ("ELON", ecliptic.lon), ("ELAT", ecliptic.lat), ("GLON", galactic.l), ("GLAT", galactic.b),
    ):  # fmt: skip
        yield _card(keyword, f"={angle.to_value(u.deg):.11f}", "[deg] at image center")
    yield _card("MOONMASK", f"/wise/fops/ref/coadd/wise-{facts.band}-moonmask.fits", "Moon mask")
    yield _card("-", f"{tile.coadd_id}-{facts.band}-int-3.fits", "atlas image (coadd) filename")
    yield _card("FLXWTNUM", 0, "number of sources used to compute centroids")
    for axis in ("X", "Y"):
        yield _card(f"FLXWTD{axis}", "=0.0000000", f"[arcsec] mdex - flux-weighted centroid along {axis}")
        yield _card(f"FLXWTUD{axis}", "=0.0061549", "[arcsec] 1-sigma uncertainty")
        yield _card(f"FLXWTSD{axis}", "=0.0000000", "signal-to-noise ratio")


def header_bytes(tile: Tile, facts: BandFacts) -> bytes:
    """Return the two blocks (5,760 bytes) of an Atlas header, card by card in the order of the real one."""
    cards = [
        *_layout_cards(tile), *_origin_cards(tile, facts), *_depth_cards(tile, facts),
        *_position_cards(tile, facts), "END".ljust(80),
    ]  # fmt: skip
    return "".join(cards).encode("ascii").ljust(2 * BLOCK_BYTES)
