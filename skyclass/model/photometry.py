"""Photometry as network input: magnitudes and S/N of the catalogue -> features, and their training statistics.

A model bundle names its features and holds their mean and standard deviation in training, so training and inference
agree. An unknown feature is NaN; standardised it is 0, the training mean. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CatalogError, ConfigError
from ..text import named
from ..types import Float32, Float64

PHOTOMETRY_COLUMNS = ("w1mpro", "w2mpro", "w3mpro", "w1snr", "w2snr", "w3snr")
"""Columns of the catalogue from which features are computed: profile-fit magnitudes (Vega) and S/N."""

LIMIT_SNR = 2.0
"""Below this S/N the magnitude is a 95 % upper limit (AllWISE Explanatory Supplement, section II.1)."""


def as_is(values: Float64) -> Float64:
    """Return magnitudes unchanged."""
    return values


def is_limit(snr: Float64) -> Float64:
    """Return 1.0 where a magnitude is an upper limit or its S/N is unknown, else 0.0."""
    return np.where(snr >= LIMIT_SNR, 0.0, 1.0)


FEATURES: dict[str, Callable[..., Float64]] = {
    "w1-w2": np.subtract,
    "w2-w3": np.subtract,
    "w1": as_is,
    "w1_snr": np.arcsinh,
    "w2_snr": np.arcsinh,
    "w3_snr": np.arcsinh,
    "w3_limit": is_limit,
}
"""Feature -> function of its columns, each (N,) float64 with NaN where unknown."""

MADE_OF: dict[str, tuple[str, ...]] = {
    "w1-w2": ("w1mpro", "w2mpro"),
    "w2-w3": ("w2mpro", "w3mpro"),
    "w1": ("w1mpro",),
    "w1_snr": ("w1snr",),
    "w2_snr": ("w2snr",),
    "w3_snr": ("w3snr",),
    "w3_limit": ("w3snr",),
}
"""Feature -> the columns from which it is computed."""


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
    problems = [f"unknown feature {n!r} (known: {', '.join(FEATURES)})" for n in names if n not in FEATURES]
    if len(set(names)) < len(names):
        problems.append(f"features {', '.join(names)}: name each once")
    if not names:
        problems.append(f"no feature is named: choose from {', '.join(FEATURES)}")
    return problems


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of some features, as in `PHOTOMETRY_COLUMNS`; raise `ConfigError` for an unknown feature."""
    if problems := feature_problems(names):
        raise ConfigError("photometry: " + "; ".join(problems))
    return tuple(column for column in PHOTOMETRY_COLUMNS if any(column in MADE_OF[name] for name in names))


def features(rows: pa.Table, names: tuple[str, ...]) -> Float32:
    """Return the features of catalogue rows.

    Parameters
    ----------
    rows : (N,) pyarrow.Table
        Rows with the columns `columns_of(names)`.
    names : tuple of str
        F features of `FEATURES`.

    Returns
    -------
    (N, F) float32
        Colours and magnitudes in mag (Vega), S/N as arcsinh(S/N), NaN where unknown. Upper limits count as magnitudes;
        the feature `w3_limit` distinguishes them.

    Raises
    ------
    CatalogError
        If a column is absent.
    ConfigError
        If a feature is unknown.

    Examples
    --------
    >>> rows = pa.table({"w1mpro": [15.0, None], "w2mpro": [14.5, 14.0]})
    >>> features(rows, ("w1-w2",)).tolist()
    [[0.5], [nan]]
    """
    needed = columns_of(names)
    if absent := [column for column in needed if column not in rows.column_names]:
        raise CatalogError(
            f"no {named('column', absent)} for the {named('feature', names)}: add the columns (AllWISE names), "
            "or choose features without them"
        )
    values = {column: numbers(rows[column]) for column in needed}
    computed = [FEATURES[name](*(values[column] for column in MADE_OF[name])) for name in names]
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
