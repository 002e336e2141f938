"""Rows of the simulated catalogue and of the truth, with the names, types, units and descriptions of AllWISE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from astropy import units as u
from astropy.coordinates import SkyCoord

from skyclass.types import BANDS, Float64, Int64, Tile

from .field import Sources
from .measure import Photometry
from .population import CLASS_NAMES, CLASS_OF_SUBTYPE, SUBTYPES

SIMULATED = "SIMULATED by skyclass mock: no row describes a real source"
_D, _F, _I, _S = pa.float64(), pa.float32(), pa.int32(), pa.string()
_HEAD: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("designation", _S, "", "sexagesimal name of the source"),
    ("ra", _D, "deg", "right ascension (J2000)"),
    ("dec", _D, "deg", "declination (J2000)"),
    ("sigra", _D, "arcsec", "uncertainty in RA"),
    ("sigdec", _D, "arcsec", "uncertainty in DEC"),
    ("sigradec", _D, "arcsec", "uncertainty cross-term"),
    ("glon", _D, "deg", "galactic longitude"),
    ("glat", _D, "deg", "galactic latitude"),
    ("elon", _D, "deg", "ecliptic longitude"),
    ("elat", _D, "deg", "ecliptic latitude"),
    ("wx", _D, "pix", "x-pixel coordinate on the Atlas image"),
    ("wy", _D, "pix", "y-pixel coordinate on the Atlas image"),
    ("cntr", pa.int64(), "", "unique identification number"),
    ("source_id", _S, "", "unique source identifier: tile and number"),
    ("coadd_id", _S, "", "Atlas tile of the source"),
    ("src", _I, "", "sequential number of the source in the tile"),
)
_BAND: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("{b}mpro", _F, "mag", "profile-fit magnitude, {B}; 95 % upper limit where the error is null"),
    ("{b}sigmpro", _F, "mag", "profile-fit photometric uncertainty, {B}; null for an upper limit"),
    ("{b}snr", _F, "", "profile-fit signal-to-noise ratio, {B}"),
    ("{b}rchi2", _F, "", "reduced chi^2 of the profile fit, {B}"),
)
_FLAGS: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("nb", _I, "", "number of components close by"),
    ("na", _I, "", "1 if actively deblended"),
    *((f"{b}sat", _F, "", f"fraction of saturated pixels, {b.upper()}") for b in BANDS),
    ("cc_flags", _S, "", "contamination and confusion flags, one per band"),
    ("ext_flg", _I, "", "extended source flag: 0 point-like, 1 poor profile fit"),
    ("ph_qual", _S, "", "photometric quality, one letter per band"),
)
_FLUX: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("{b}flux", _F, "DN", "profile-fit flux, {B}"),
    ("{b}sigflux", _F, "DN", "uncertainty of the profile-fit flux, {B}"),
    ("{b}sky", _F, "DN", "local background, {B}"),
)


def _field(name: str, kind: pa.DataType, unit: str, text: str) -> pa.Field:
    """Return an Arrow field with its unit and description, as in `_common_metadata` of AllWISE."""
    return pa.field(name, kind, metadata={"units": unit, "description": text})


def _per_band(layout: Sequence[tuple[str, pa.DataType, str, str]]) -> list[pa.Field]:
    """Return the fields of a layout for all four bands."""
    return [
        _field(name.format(b=b), kind, unit, text.format(B=b.upper()))
        for b in BANDS
        for name, kind, unit, text in layout
    ]


CATALOGUE_SCHEMA = pa.schema(
    [*(_field(*f) for f in _HEAD), *_per_band(_BAND), *(_field(*f) for f in _FLAGS), *_per_band(_FLUX)],
    metadata={"simulated": SIMULATED},
)
COMMON_SCHEMA = CATALOGUE_SCHEMA.append(_field("healpix_k0", _I, "", "HEALPix order 0, NESTED")).append(
    _field("healpix_k5", _I, "", "HEALPix order 5, NESTED")
)
TRUTH_SCHEMA = pa.schema(
    [
        _field("source_id", _S, "", "identifier of the row of the simulated catalogue"),
        _field("cntr", pa.int64(), "", "number of the row of the simulated catalogue"),
        _field("coadd_id", _S, "", "Atlas tile of the source"),
        _field("ra", _D, "deg", "catalogue right ascension"),
        _field("dec", _D, "deg", "catalogue declination"),
        _field("true_ra", _D, "deg", "simulated right ascension"),
        _field("true_dec", _D, "deg", "simulated declination"),
        _field("class", _S, "", "simulated class: galaxy, quasar, star, or the kind of an outlier"),
        _field("subtype", _S, "", "simulated kind within the class"),
        *(_field(f"true_{b}_mag", _F, "mag", f"simulated total magnitude, {b.upper()}") for b in BANDS[:3]),
        _field("half_light_radius_arcsec", _F, "arcsec", "simulated half-light radius, 0 for a point"),
        _field("axis_ratio", _F, "", "simulated axis ratio"),
    ],
    metadata={"simulated": SIMULATED},
)


def _sexagesimal(value: Float64, decimals: int) -> list[str]:
    """Return values (hours or degrees, >= 0) as ddmmss with truncated decimals."""
    scale = 10**decimals
    # Truncated as in the archive; the offset allows for binary fractions.
    ticks = np.floor(value * 3600 * scale + 1e-6).astype(np.int64)
    seconds, fraction = np.divmod(ticks, scale)
    h, m, s = seconds // 3600, seconds // 60 % 60, seconds % 60
    return [f"{a:02d}{b:02d}{c:02d}.{d:0{decimals}d}" for a, b, c, d in zip(h, m, s, fraction, strict=True)]


def designations(ra: Float64, dec: Float64) -> list[str]:
    """Return names of the form Jhhmmss.ss+ddmmss.s."""
    signs = np.where(dec < 0, "-", "+")
    return [
        f"J{a}{s}{b}" for a, s, b in zip(_sexagesimal(ra / 15, 2), signs, _sexagesimal(np.abs(dec), 1), strict=True)
    ]


def counters(coadd_id: str, src: Int64) -> Int64:
    """Return `cntr`: RRRR, sign (1 for p), DDD, 01351, running number. It identifies the tile."""
    base = int(f"{coadd_id[:4]}{int(coadd_id[4] == 'p')}{coadd_id[5:8]}01351") * 1_000_000
    return base + np.asarray(src, np.int64)


def _quality(snr: Float64) -> np.ndarray:
    """Return the letter of `ph_qual`: A from S/N 10, B from 3, C from 2, U below."""
    return np.select([snr >= 10, snr >= 3, snr >= 2], ["A", "B", "C"], "U")


def _position_columns(ra: Float64, dec: Float64, sigma: Float64) -> dict[str, object]:
    """Return the columns of names, positions and their errors."""
    position = SkyCoord(ra, dec, unit="deg")
    galactic, ecliptic = position.galactic, position.barycentricmeanecliptic
    return {
        "designation": designations(ra, dec), "ra": ra, "dec": dec,
        "sigra": sigma.round(4), "sigdec": sigma.round(4), "sigradec": np.zeros(len(ra)),
        "glon": galactic.l.to_value(u.deg).round(7), "glat": galactic.b.to_value(u.deg).round(7),
        "elon": ecliptic.lon.to_value(u.deg).round(7), "elat": ecliptic.lat.to_value(u.deg).round(7),
    }  # fmt: skip


def _band_columns(band: str, phot: Photometry | None, n: int) -> dict[str, object]:
    """Return the columns of one band, all null where the band was not simulated."""
    names = ("mpro", "sigmpro", "snr", "rchi2", "flux", "sigflux", "sky", "sat")
    if phot is None:
        return {f"{band}{name}": pa.nulls(n, _F) for name in names}
    values = (phot.mag, phot.mag_error, phot.snr, phot.chi2, phot.flux, phot.sigma, phot.sky, phot.saturated)
    digits = (3, 3, 1, 3, 3, 4, 3, 3)
    return {
        f"{band}{name}": pa.array(v.round(d).astype(np.float32), _F, from_pandas=True)
        for name, v, d in zip(names, values, digits, strict=True)
    }


def _flag_columns(
    bands: Mapping[str, Photometry], n: int, n_near: Int64, contamination: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Return the columns of flags."""
    artifacts = [contamination.get(b, np.full(n, "0")) for b in BANDS]
    # The fourth band of the mock is not in the catalogue, so its letter is X and its flag is 0.
    letters = [_quality(bands[b].snr) if b in bands else np.full(n, "X") for b in BANDS]
    poor = np.any([phot.chi2 > 3 for phot in bands.values()], axis=0) if n else np.zeros(0, np.bool_)
    return {
        "nb": (1 + n_near).astype(np.int32), "na": np.zeros(n, np.int32),
        "cc_flags": ["".join(four) for four in zip(*artifacts, strict=True)], "ext_flg": poor.astype(np.int32),
        "ph_qual": ["".join(four) for four in zip(*letters, strict=True)],
    }  # fmt: skip


def catalogue_rows(
    tile: Tile, ra: Float64, dec: Float64, x: Float64, y: Float64, sigma_arcsec: Float64,
    bands: Mapping[str, Photometry], n_near: Int64, contamination: Mapping[str, np.ndarray],
) -> pa.Table:  # fmt: skip
    """Return the catalogue rows of one tile, in `CATALOGUE_SCHEMA`.

    `x`, `y` are 1-based FITS pixels, `contamination` has a letter of `cc_flags` for each source of a band.
    """
    n = len(ra)
    src = np.arange(1, n + 1)
    columns: dict[str, object] = {
        **_position_columns(ra, dec, sigma_arcsec),
        "wx": x.round(3), "wy": y.round(3), "cntr": counters(tile.coadd_id, src),
        "source_id": [f"{tile.coadd_id}-{s:06d}" for s in src], "coadd_id": [tile.coadd_id] * n,
        "src": src.astype(np.int32), **_flag_columns(bands, n, n_near, contamination),
    }  # fmt: skip
    for band in BANDS:
        columns |= _band_columns(band, bands.get(band), n)
    return pa.table({f.name: columns[f.name] for f in CATALOGUE_SCHEMA}, schema=CATALOGUE_SCHEMA)


def truth_rows(catalogue: pa.Table, sources: Sources) -> pa.Table:
    """Return the truth of catalogue rows, in `TRUTH_SCHEMA`; `sources` are the rows' sources, in order."""
    shared = ("source_id", "cntr", "coadd_id", "ra", "dec")
    columns: dict[str, object] = {name: catalogue[name] for name in shared}
    columns |= {
        "true_ra": sources.ra, "true_dec": sources.dec,
        "class": np.array(CLASS_NAMES)[CLASS_OF_SUBTYPE[sources.subtype]].tolist(),
        "subtype": np.array(SUBTYPES)[sources.subtype].tolist(),
        "half_light_radius_arcsec": sources.radius_arcsec.astype(np.float32),
        "axis_ratio": np.where(sources.radius_arcsec > 0, sources.axis_ratio, 1).astype(np.float32),
    }  # fmt: skip
    columns |= {f"true_{b}_mag": sources.mags[:, i].astype(np.float32) for i, b in enumerate(BANDS[:3])}
    return pa.table({f.name: columns[f.name] for f in TRUTH_SCHEMA}, schema=TRUTH_SCHEMA)
