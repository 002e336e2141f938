"""Photometry as network input: columns of the catalogue -> features, and their training statistics.

A model bundle names its features and holds their mean and standard deviation in training, so training and inference
agree. An unknown feature is NaN; standardised it is 0, the training mean. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import CatalogError, ConfigError
from ..schema import SOURCE_SCHEMA
from ..text import named
from ..types import BANDS, Float32, Float64

MAGNITUDES = {
    **{band: f"{band}mpro" for band in BANDS},
    "j": "j_m_2mass",
    "h": "h_m_2mass",
    "k": "k_m_2mass",
}
"""Short name of a magnitude (Vega) -> its column in AllWISE: profile-fit magnitudes of WISE, and those of 2MASS."""

LIMIT_SNR = 2.0
"""Below this S/N the magnitude is a 95 % upper limit (AllWISE Explanatory Supplement, section II.1)."""

NO_FEATURES = {"label", "class", "split", "flags", "bad_values"} | {
    field.name for field in SOURCE_SCHEMA if pa.types.is_string(field.type)
}
"""Columns that are no photometry: text, and the columns that a dataset adds."""

CHOICES = (
    "a magnitude (w1, w2, w3, w4, j, h or k), a colour such as w1-w2, w1_snr to w4_snr, w1_limit to w4_limit, or a "
    "numeric column of the catalogue in lower case, such as pmra"
)
_QUALITY = re.compile(r"(w[1-4])_(snr|limit)")
_COLUMN = re.compile(r"[a-z_][a-z0-9_]{0,99}")


class Feature(NamedTuple):
    """A feature: its columns, and the function of their values, each (N,) float64 with NaN where unknown."""

    columns: tuple[str, ...]
    compute: Callable[..., Float64]


def as_is(values: Float64) -> Float64:
    """Return values unchanged."""
    return values


def is_limit(snr: Float64) -> Float64:
    """Return 1.0 where a magnitude is an upper limit or its S/N is unknown, else 0.0."""
    return np.where(snr >= LIMIT_SNR, 0.0, 1.0)


def feature(name: str) -> Feature | None:
    """Return the feature of a name, None for a name that is none.

    >>> feature("j-w1").columns, feature("w3_snr").columns, feature("pmra").columns, feature("W1 - W2")
    (('j_m_2mass', 'w1mpro'), ('w3snr',), ('pmra',), None)
    """
    if match := _QUALITY.fullmatch(name):
        return Feature((f"{match[1]}snr",), np.arcsinh if match[2] == "snr" else is_limit)
    columns = tuple(MAGNITUDES.get(part, part) for part in name.split("-"))
    if len(columns) > 2 or any(not _COLUMN.fullmatch(c) or c in NO_FEATURES for c in columns):
        return None
    return Feature(columns, as_is if len(columns) == 1 else np.subtract)


Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each column."""


@dataclass(frozen=True)
class PhotometrySettings:
    """The features that a network takes, in its order, with their mean and standard deviation in training.

    Raises `ConfigError`, with all problems in one message, for unknown features, for a number of means or deviations
    that differs from the number of features, and for deviations that are not positive.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        problems = feature_problems(self.features)
        if not len(self.features) == len(self.mean) == len(self.std):
            problems.append(f"{len(self.features)} features, {len(self.mean)} means, {len(self.std)} deviations")
        if not np.isfinite(self.mean).all():
            problems.append(f"mean = {self.mean}: must be finite")
        if not all(np.isfinite(s) and s > 0 for s in self.std):
            problems.append(f"std = {self.std}: must be positive")
        if problems:
            raise ConfigError("photometry: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {k: list(v) for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PhotometrySettings:
        """Return the settings that `to_dict` wrote; raise `ConfigError` for unknown or missing keys."""
        if set(data) != {"features", "mean", "std"}:
            raise ConfigError(f"photometry: settings are features, mean and std, not {sorted(data)}")
        return PhotometrySettings(**{k: tuple(v) for k, v in data.items()})


def feature_problems(names: Sequence[str]) -> list[str]:
    """Return the problems of a choice of features; an empty list if there is none."""
    problems = [f"unknown feature {name!r}: name {CHOICES}" for name in names if feature(name) is None]
    if len(set(names)) < len(names):
        problems.append(f"features {', '.join(names)}: name each once")
    if not names:
        problems.append(f"no feature is named: name {CHOICES}")
    return problems


def _features_of(names: Sequence[str]) -> list[Feature]:
    if problems := feature_problems(names):
        raise ConfigError("photometry: " + "; ".join(problems))
    return [chosen for name in names if (chosen := feature(name))]


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that some features need of a catalogue; raise `ConfigError` for an unknown feature."""
    return tuple(dict.fromkeys(column for chosen in _features_of(names) for column in chosen.columns))


def further_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Return those of the columns that are to be read beside `SOURCE_SCHEMA`, and the S/N that tells their limits.

    >>> further_columns(("w1mpro", "w4mpro", "pmra"))
    ('w4mpro', 'pmra', 'w4snr')
    """
    snr = [f"{band}snr" for band in BANDS if MAGNITUDES[band] in columns]
    return tuple(dict.fromkeys(name for name in (*columns, *snr) if name not in SOURCE_SCHEMA.names))


def features(rows: pa.Table, names: tuple[str, ...]) -> Float32:
    """Return the features of catalogue rows.

    A magnitude with an S/N below 2 is an upper limit. It counts as unknown unless the features tell the network so:
    with `w3_snr` or `w3_limit`, the limits of W3 count as magnitudes.

    Parameters
    ----------
    rows : (N,) pyarrow.Table
        Rows with the columns `columns_of(names)`, and with S/N to recognise limits.
    names : tuple of str
        F features: magnitudes (`w1` to `w4`, `j`, `h`, `k`), colours such as `w1-w2`, `w1_snr` to `w4_snr`, `w1_limit`
        to `w4_limit`, and names of numeric columns.

    Returns
    -------
    (N, F) float32
        Colours and magnitudes in mag (Vega), S/N as arcsinh(S/N), limits as 0 and 1, other columns as they are. NaN
        where unknown.

    Raises
    ------
    CatalogError
        If a column is absent.
    ConfigError
        If a feature is unknown.

    Examples
    --------
    >>> rows = pa.table({"w1mpro": [15.0, None, 15.0], "w2mpro": [14.5, 14.0, 16.0], "w2snr": [20.0, 30.0, 1.5]})
    >>> features(rows, ("w1-w2",)).tolist()
    [[0.5], [nan], [nan]]
    >>> features(rows, ("w1-w2", "w2_limit"))[2].tolist()
    [-1.0, 1.0]
    """
    chosen, needed = _features_of(names), columns_of(names)
    if absent := [column for column in needed if column not in rows.column_names]:
        raise CatalogError(
            f"no {named('column', absent)} for the {named('feature', names)}: add the columns (AllWISE names), "
            "or choose features without them"
        )
    values = {column: numbers(rows[column]) for column in needed}
    for band in BANDS:
        magnitude, snr = MAGNITUDES[band], f"{band}snr"
        sees_limits = not {f"{band}_snr", f"{band}_limit"}.isdisjoint(names)
        if magnitude in values and snr in rows.column_names and not sees_limits:
            values[magnitude][numbers(rows[snr]) < LIMIT_SNR] = np.nan
    computed = [one.compute(*(values[column] for column in one.columns)) for one in chosen]
    return np.stack(computed, axis=1).astype(np.float32)


def numbers(column: pa.ChunkedArray) -> Float64:
    """Return a column as (N,) float64, NaN where it is null or not finite."""
    values = np.array(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def standardise(values: Float32, settings: PhotometrySettings) -> Float32:
    """Return features (N, F) as network input: (values - mean) / std, 0 where unknown."""
    return scaled(values, (settings.mean, settings.std))


def scale_of(values: Float32) -> Scale:
    """Return the mean and standard deviation of each column of (N, ...) without NaN. Use it on training rows only.

    A column that is constant or wholly unknown has the deviation 1, so that it scales to 0.
    """
    known = np.isfinite(values)
    n = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0, dtype=np.float64) / n
    std = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0, dtype=np.float64) / n)
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def scaled(values: Float32, scale: Scale) -> Float32:
    """Return (values - mean) / std as float32; values that are not finite become 0, the training mean."""
    mean, std = (np.asarray(part) for part in scale)
    with np.errstate(invalid="ignore"):
        result = (values - mean) / std
    return np.where(np.isfinite(result), result, 0).astype(np.float32)
