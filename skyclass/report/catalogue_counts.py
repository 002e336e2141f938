"""What the report of a class catalogue counts: SQL aggregates over class, magnitude, colour, position and flag.

DuckDB streams every aggregate from the files, so memory grows with the number of bins, not of rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import Flag

if TYPE_CHECKING:
    from ..catalog.query import ClassCatalog

MAGNITUDE_BIN = 0.5
COLOUR_FRAME = {"w2-w3": (-1.5, 6.0, 0.1), "w1-w2": (-1.0, 2.5, 0.05)}
"""Axis of the colour-colour figure -> lower end, upper end, width of a bin (Vega mag)."""
PROBABILITY_BINS = 40
MOST_CELLS, ROWS_PER_CELL = 64, 10
"""The map of a field has at most `MOST_CELLS` cells a side and a mean of at least `ROWS_PER_CELL` sources in a cell."""
ALL_SKY_DEG, ALL_SKY_ORDER = 40.0, 5
"""A catalogue of a larger radius is drawn on the whole sky, by HEALPix pixels of this order."""


def catalogue_statistics(classes: ClassCatalog) -> dict[str, Any]:
    """Return the counts of a class catalogue by class, magnitude, colour, probability, flag and position."""
    names = classes.manifest.class_names
    highest = f"greatest({', '.join(f'p_{name}' for name in names)})"
    training = classes.manifest.provenance.get("info", {}).get("model", {}).get("training", {})
    return {
        "label": classes.manifest.label,
        "simulated": bool(training.get("simulated")) or "simulated" in classes.manifest.label.lower(),
        "run_id": classes.manifest.run_id,
        "rows": classes.count(),
        "counts": classes.class_counts(),
        "classes": list(names),
        "magnitudes": _rows(classes, _magnitude_query(highest)),
        "colours": _rows(classes, _colour_query()),
        "probabilities": {name: _rows(classes, _probability_query(name)) for name in names},
        "flags": _rows(classes, _flag_query())[0],
        "summary": _rows(classes, _summary_query(highest)),
        "sky": _sky(classes),
    }


def _rows(classes: ClassCatalog, query: str) -> list[dict[str, Any]]:
    return list(classes.sql_arrow(query).to_pylist())


def _summary_query(highest: str) -> str:
    return (
        "SELECT coalesce(class, 'unclassified') AS class, count(*) AS n, count(*) FILTER (flags = 0) AS clean, "
        f"avg({highest}) AS confidence, count(*) FILTER ({highest} > 0.9) AS confident, median(w1mpro) AS w1mpro "
        "FROM classes GROUP BY ALL ORDER BY class"
    )


def _magnitude_query(highest: str) -> str:
    return (
        f"SELECT floor(w1mpro / {MAGNITUDE_BIN}) * {MAGNITUDE_BIN} AS low, coalesce(class, 'unclassified') AS class, "
        f"count(*) AS n, avg({highest}) AS confidence "
        "FROM classes WHERE w1mpro BETWEEN -5 AND 30 GROUP BY ALL ORDER BY ALL"
    )


def _colour_query() -> str:
    (x0, x1, dx), (y0, y1, dy) = COLOUR_FRAME.values()
    return (
        f"SELECT class, CAST(floor((w2mpro - w3mpro - {x0}) / {dx}) AS INTEGER) AS x, "
        f"CAST(floor((w1mpro - w2mpro - {y0}) / {dy}) AS INTEGER) AS y, count(*) AS n FROM classes "
        f"WHERE class IS NOT NULL AND w2mpro - w3mpro >= {x0} AND w2mpro - w3mpro < {x1} "
        f"AND w1mpro - w2mpro >= {y0} AND w1mpro - w2mpro < {y1} GROUP BY ALL"
    )


def _probability_query(name: str) -> str:
    bins = PROBABILITY_BINS
    return (
        f"SELECT class, CAST(least(floor(p_{name} * {bins}), {bins - 1}) AS INTEGER) AS bin, count(*) AS n "
        "FROM classes WHERE class IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )


def _flag_query() -> str:
    counts = ", ".join(f"count(*) FILTER (flags & {flag.value} != 0) AS {flag.name}" for flag in Flag)
    return f"SELECT count(*) FILTER (flags = 0) AS clean, {counts} FROM classes"


def _sky(classes: ClassCatalog) -> dict[str, Any]:
    """Return sources by cell: on a SIN projection about the centre, or by HEALPix pixel for a wide catalogue."""
    ra, dec, radius_deg = _centre(classes)
    if radius_deg > ALL_SKY_DEG:
        shift = 2 * (29 - ALL_SKY_ORDER)
        query = f"SELECT _healpix_29 >> {shift} AS pixel, class, count(*) AS n FROM classes GROUP BY ALL"
        return {"kind": "all", "order": ALL_SKY_ORDER, "cells": _rows(classes, query)}
    n_cells = min(MOST_CELLS, max(4, math.isqrt(classes.count() // ROWS_PER_CELL)))
    cell_deg = max(2.04 * radius_deg / n_cells, 1 / 3600)
    x, y = _sin_projection(ra, dec)
    query = (
        f"SELECT CAST(floor({x} / {cell_deg!r}) AS INTEGER) AS x, CAST(floor({y} / {cell_deg!r}) AS INTEGER) AS y, "
        "class, count(*) AS n FROM classes GROUP BY ALL"
    )
    return {"kind": "field", "ra": ra, "dec": dec, "cell_deg": cell_deg, "cells": _rows(classes, query)}


def _centre(classes: ClassCatalog) -> tuple[float, float, float]:
    """Return RA and Dec (deg) of the mean direction of the sources, and the radius (deg) that holds all of them."""
    if not classes.count():
        return 0.0, 0.0, 0.0
    components = "cos(radians(ra)) * cos(radians(dec))", "sin(radians(ra)) * cos(radians(dec))", "sin(radians(dec))"
    means = ", ".join(f"avg({part})" for part in components)
    mean = np.array([column[0].as_py() for column in classes.sql_arrow(f"SELECT {means} FROM classes").columns])
    length = float(np.linalg.norm(mean))
    if length < 1e-9:  # the directions of sources all over the sky cancel
        return 0.0, 0.0, 180.0
    x, y, z = (mean / length).tolist()
    cosine = " + ".join(f"({part}) * {value!r}" for part, value in zip(components, (x, y, z), strict=True))
    least = classes.sql_arrow(f"SELECT min({cosine}) AS c FROM classes")["c"][0].as_py()
    ra, dec = math.degrees(math.atan2(y, x)) % 360, math.degrees(math.asin(min(max(z, -1.0), 1.0)))
    return ra, dec, math.degrees(math.acos(min(max(least, -1.0), 1.0)))


def _sin_projection(ra: float, dec: float) -> tuple[str, str]:
    """Return SQL for the offsets east and north (deg) of a source from a position (deg)."""
    delta_ra = f"radians(ra - {ra!r})"
    sin, cos = math.sin(math.radians(dec)), math.cos(math.radians(dec))
    east = f"degrees(cos(radians(dec)) * sin({delta_ra}))"
    return east, f"degrees(sin(radians(dec)) * {cos!r} - cos(radians(dec)) * {sin!r} * cos({delta_ra}))"
