"""The columns that a prior adds to the rows of a class catalogue, and the counts from which a prior is estimated. Pure.

rows of a model -> with_sky_columns -> p_<class>_sky, class_sky, prior_id, and two flags
rows of a model -> counts_of_rows -> `estimated_prior` in sky_prior.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..model.priors import BinnedCalibration, PriorTable, sky_probabilities
from ..schema import class_schema
from ..sky.galactic import abs_galactic_latitude_deg
from ..types import PRIOR_FLAGS, Bool, Flag, Float64
from .sky_prior import SkyCounts, sky_counts

UNSURE_BELOW = 0.7
"""A class of lower probability is unsure; PS1-STRM separates its classes at the same value (Beck et al. 2021)."""
NOT_OF_THE_CLASSES = Flag.OUTLIER | Flag.HALO
"""Sources with these flags do not take part in the estimate of a prior."""


@dataclass(frozen=True)
class CataloguePrior:
    """The prior of a publication, and the calibration of its model in bins of W1 and |b|."""

    calibration: BinnedCalibration
    table: PriorTable


def with_sky_columns(rows: pa.Table, prior: CataloguePrior) -> pa.Table:
    """Return rows of a model (`class_schema`) with the columns of a prior.

    A source without probabilities, or of which the prior or the calibration says nothing, has null in all of them.
    """
    classes = prior.calibration.classes
    p = sky_probabilities(_probabilities(rows, classes), w1_mag(rows), _abs_b_deg(rows), prior.calibration, prior.table)
    known: Bool = np.asarray(np.isfinite(p).all(axis=1))
    best = np.where(known, np.nan_to_num(p).argmax(axis=1), 0)
    columns = {name: rows[name] for name in rows.column_names}
    columns |= {f"p_{name}_sky": pa.array(p[:, i].astype(np.float32), mask=~known) for i, name in enumerate(classes)}
    columns["class_sky"] = pa.array(np.asarray(classes, dtype=object)[best], pa.string(), mask=~known)
    columns["prior_id"] = pa.array(np.full(len(rows), prior.table.prior_id, dtype=object), pa.string(), mask=~known)
    columns["flags"] = pa.array(_flags(rows, p, known))
    return pa.table(columns, schema=class_schema(classes, has_prior=True))


def counts_of_rows(rows: pa.Table, calibration: BinnedCalibration) -> SkyCounts:
    """Return the counts of rows of a model by bins of W1 and |b|, without sources that are none of the classes."""
    used = rows.filter(pc.equal(pc.bit_wise_and(rows["flags"], int(NOT_OF_THE_CLASSES)), 0))
    p = _probabilities(used, calibration.classes)
    return sky_counts(p, w1_mag(used), _abs_b_deg(used), calibration)


def without_prior_flags(rows: pa.Table) -> pa.Table:
    """Return rows without the flags of an earlier prior."""
    flags = pa.array(rows["flags"].to_numpy() & ~int(PRIOR_FLAGS))
    return rows.set_column(rows.column_names.index("flags"), rows.schema.field("flags"), flags)


def w1_mag(rows: pa.Table) -> Float64:
    """Return W1 (N,) in Vega mag, of the aperture where the input has none; NaN where both are unknown."""
    return _floats(pc.coalesce(rows["w1mpro"], rows["w1_aperture"]))


def _flags(rows: pa.Table, p: Float64, known: Bool) -> pa.Array:
    """Return the flags (N,) of rows, with EXTRAPOLATED and UNSURE."""
    flags = rows["flags"].to_numpy() & ~int(PRIOR_FLAGS)
    has_class = np.asarray(pc.is_valid(rows["class"]))
    flags |= np.where(has_class & ~known, int(Flag.EXTRAPOLATED), 0).astype(np.int32)
    unsure = known & (np.nan_to_num(p).max(axis=1) < UNSURE_BELOW)
    return (flags | np.where(unsure, int(Flag.UNSURE), 0)).astype(np.int32)


def _probabilities(rows: pa.Table, classes: Sequence[str]) -> Float64:
    return np.stack([_floats(rows[f"p_{name}"]) for name in classes], axis=1)


def _abs_b_deg(rows: pa.Table) -> Float64:
    return abs_galactic_latitude_deg(_floats(rows["ra"]), _floats(rows["dec"]))


def _floats(column: pa.ChunkedArray) -> Float64:
    """Return the values (N,) of a column, NaN for null."""
    return np.asarray(pc.fill_null(column, np.nan).to_numpy(), np.float64)
