"""The rows of a tile in the class catalogue, from its sources and the results of its strips."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RowsLost
from ..images.cutouts import flag_where
from ..model.photometry import numbers
from ..model.priors import BinnedCalibration, in_sets
from ..schema import bad_bits, class_schema
from ..sky.galactic import abs_galactic_latitude_deg
from ..sky.healpix import healpix29
from ..types import Flag, Float32, Int32, Int64, TilePlan
from .context import RunContext
from .strips import SourceValues, StripResult
from .tile_sources import ids_of, tile_sources


def class_rows(context: RunContext, tile: TilePlan, results: list[StripResult]) -> pa.Table:
    """Return the rows of a tile in the `class_schema` of the model.

    Raises `RowsLost` unless each source has exactly one result.

    A fault of one strip is a fault of the tile, so that rows do not depend on the division into strips.
    """
    sources, classes = tile_sources(context, tile), context.bundle.classes
    probabilities, values = join_results(sources, results, tile, len(classes))
    columns = {name: sources[name] for name in sources.column_names}
    columns |= class_columns(probabilities, classes)
    w1, calibration = known_w1(sources, values), context.bundle.binned_calibration
    columns |= {
        "outlier": pa.array(values.outlier, from_pandas=True),  # NaN as null
        "w1_aperture": pa.array(values.w1_aperture, from_pandas=True),
        "set_90": class_sets(probabilities, sources, w1, calibration, classes),
        "_healpix_29": healpix29(sources["ra"].to_numpy(), sources["dec"].to_numpy()),
        "flags": values.flags | flags_of_rows(sources, values),
        "valid_frac": values.valid_frac,
        "model_id": pa.array([context.bundle.model_id] * len(sources)),
        "run_id": pa.array([context.run_id] * len(sources)),
    }
    schema = class_schema(classes)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def flags_of_rows(sources: pa.Table, values: SourceValues) -> Int32:
    """Return the flags (N,) that follow from the catalogue and from the scores of the sources."""
    no_w1 = np.asarray(sources["w1mpro"].is_null())
    return (
        flag_where(bad_bits(sources) != 0, Flag.BAD_VALUE)
        | flag_where(values.outlier > 1, Flag.OUTLIER)
        | flag_where(no_w1, Flag.NO_PHOTOMETRY)
    )


def known_w1(sources: pa.Table, values: SourceValues) -> Float32:
    """Return W1 (N,) of the catalogue, that of the aperture where it has none, NaN where both are unknown."""
    w1 = numbers(sources["w1mpro"]).astype(np.float32)
    return np.where(np.isnan(w1), values.w1_aperture, w1)


def join_results(
    sources: pa.Table, results: list[StripResult], tile: TilePlan, n_classes: int
) -> tuple[Float32, SourceValues]:
    """Return the probabilities and values of the results in the order of the sources, joined by `source_id`."""
    n = len(sources)
    if faulty := next((r for r in results if r.fault), None):
        # Only count the results: a faulty strip is in `source_id` order, so its ids may repeat those of another strip.
        n_classified = sum(len(r.values.flags) for r in results)
        require_one_result_each(tile, n, n_classified, n_classified)
        return np.full((n, n_classes), np.nan, np.float32), SourceValues.without_image(n, faulty.values.flags[0])
    index = result_index(sources, results, tile)
    probabilities, *values = (
        np.concatenate(parts)[index] for parts in zip(*((r.probabilities, *r.values) for r in results), strict=True)
    )
    return probabilities, SourceValues(*values)


def result_index(sources: pa.Table, results: list[StripResult], tile: TilePlan) -> Int64:
    """Return the index of each source in the concatenated `results`."""
    source_id = pa.concat_arrays([r.source_id for r in results])
    index = pc.index_in(ids_of(sources), value_set=source_id)
    n_distinct = len(pc.unique(index)) - bool(index.null_count)  # `unique` counts the null of sources without a result
    require_one_result_each(tile, len(sources), len(source_id), n_distinct)
    return np.asarray(index.to_numpy(zero_copy_only=False), dtype=np.int64)


def require_one_result_each(tile: TilePlan, n_read: int, n_classified: int, n_distinct: int) -> None:
    """Raise `RowsLost` unless each planned source was read once and has one result."""
    if {n_read, n_classified, n_distinct} != {tile.n_sources}:
        raise RowsLost(
            f"tile {tile.coadd_id}: {tile.n_sources} sources planned, {n_read} read, {n_classified} classified, "
            f"{n_distinct} of them distinct; does the catalogue repeat a source_id?"
        )


def class_columns(probabilities: Float32, classes: tuple[str, ...]) -> dict[str, pa.Array]:
    """Return the columns class, p_*, margin and entropy (nats) for (N, K) probabilities; NaN rows become null."""
    p, known = probabilities, ~np.isnan(probabilities.sum(axis=1))
    ranked = np.sort(p, axis=1)
    numbers = {f"p_{name}": p[:, i] for i, name in enumerate(classes)}
    numbers["margin"] = ranked[:, -1] - ranked[:, -2]
    numbers["entropy"] = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1)
    columns = {name: pa.array(v.astype(np.float32), mask=~known) for name, v in numbers.items()}
    columns["class"] = pa.array(np.asarray(classes, dtype=object)[p.argmax(axis=1)], pa.string(), mask=~known)
    return columns


def class_sets(
    probabilities: Float32,
    sources: pa.Table,
    w1: Float32,
    calibration: BinnedCalibration | None,
    classes: tuple[str, ...],
) -> pa.Array:
    """Return the column set_90: the classes that each source may have, such as "galaxy|star", joined in their order.

    Null for sources without W1 or probabilities, and for a model without calibration.
    """
    if calibration is None:
        return pa.nulls(len(probabilities), pa.string())
    abs_b_deg = abs_galactic_latitude_deg(sources["ra"].to_numpy(), sources["dec"].to_numpy())
    members, has_set = in_sets(probabilities, w1, abs_b_deg, calibration)
    combinations, index = np.unique(members, axis=0, return_inverse=True)
    texts = ["|".join(name for name, inside in zip(classes, row, strict=True) if inside) for row in combinations]
    return pa.array(np.asarray(texts, dtype=object)[index.ravel()], pa.string(), mask=~has_set)
