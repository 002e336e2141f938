"""Results of strips joined with the sources of their tile: each source has its own result, or the tile is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skyclass.errors import RowsLost, TileFault
from skyclass.model.priors import BinnedCalibration
from skyclass.run import class_rows as module
from skyclass.run.class_rows import class_rows, class_sets, flags_of_rows, join_results, known_w1
from skyclass.run.strips import SourceValues, StripResult
from skyclass.schema import BAD_NAME, SOURCE_SCHEMA
from skyclass.sky.healpix import healpix29
from skyclass.types import DEFAULT_CLASSES, Flag, Strip, TilePlan
from tests.support.class_rows import CLASS_SCHEMA

TILE = TilePlan("1500p015_ac51", 4, (0,))
SOURCES = pa.table({"source_id": ["d", "a", "c", "b"]})


def result(ids: str, start: int, fault: TileFault | None = None) -> StripResult:
    """Return the result of a strip whose values follow from the ids: a is 0, b is 1, and so on."""
    codes = np.array([ord(letter) - ord("a") for letter in ids])
    probabilities = np.stack([codes / 10, 1 - codes / 10, np.zeros(len(ids))], 1).astype(np.float32)
    values = SourceValues(codes.astype(np.int32), *(codes / scale for scale in np.float32([4, 2, 8])))
    if fault:
        values = SourceValues.without_image(len(ids), Flag.TILE_BAD | Flag.NO_IMAGE)
    strip = Strip(TILE, start, start + len(ids))
    return StripResult(strip, pa.array(list(ids)), probabilities, values, fault, None, ())


def test_each_source_has_the_values_of_its_own_result() -> None:
    probabilities, values = join_results(SOURCES, [result("ba", 0), result("dc", 2)], TILE, 3)
    np.testing.assert_allclose(probabilities[:, 0], [0.3, 0.0, 0.2, 0.1], atol=1e-6)
    assert values.flags.tolist() == [3, 0, 2, 1] and values.valid_frac.tolist() == [0.75, 0.0, 0.5, 0.25]
    assert values.w1_aperture.tolist() == [1.5, 0.0, 1.0, 0.5] and values.outlier.tolist() == [0.375, 0.0, 0.25, 0.125]


@pytest.mark.parametrize(
    ("strips", "numbers"),
    [
        (["abc"], "4 read, 3 classified, 3 of them distinct"),
        (["abc", "a"], "4 read, 4 classified, 3 of them distinct"),
        (["abcd", "a"], "4 read, 5 classified, 4 of them distinct"),
        (["abcx"], "4 read, 4 classified, 3 of them distinct"),
    ],
)
def test_a_missing_a_repeated_and_a_foreign_result_are_refused(strips: list[str], numbers: str) -> None:
    with pytest.raises(RowsLost, match=f"tile 1500p015_ac51: 4 sources planned, {numbers}"):
        join_results(SOURCES, [result(ids, 0) for ids in strips], TILE, 3)


def test_the_fault_of_one_strip_is_that_of_all_sources() -> None:
    fault: Any = TileFault(TILE.coadd_id, "truncated", "w2")
    probabilities, values = join_results(SOURCES, [result("ba", 0), result("ab", 2, fault)], TILE, 3)
    assert np.isnan(probabilities).all() and probabilities.shape == (4, 3)
    assert values.flags.tolist() == [int(Flag.TILE_BAD | Flag.NO_IMAGE)] * 4 and not values.valid_frac.any()
    with pytest.raises(RowsLost, match="4 sources planned, 4 read, 3 classified"):
        join_results(SOURCES, [result("b", 0), result("ab", 2, fault)], TILE, 3)
    _, values = join_results(SOURCES, [result("bac", 0), result("d", 3, fault)], TILE, 3)
    assert values.flags.tolist() == [int(Flag.TILE_BAD | Flag.NO_IMAGE)] * 4


def test_the_columns_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the catalogue, from the pixels, and from the run."""
    columns = {"source_id": ["d", "a"], "ra": [150.0, 10.0], "dec": [1.5, -2.5], "coadd_id": [TILE.coadd_id, None]}
    columns |= {"bad_values": [0, BAD_NAME], "w1mpro": [15.5, None]}
    nulls = {field.name: pa.nulls(2, field.type) for field in SOURCE_SCHEMA}
    sources = pa.table(nulls | columns).select(SOURCE_SCHEMA.names).cast(SOURCE_SCHEMA)
    monkeypatch.setattr(module, "tile_sources", lambda context, tile: sources)
    context: Any = SimpleNamespace(
        bundle=SimpleNamespace(model_id="m-1", classes=DEFAULT_CLASSES, binned_calibration=None), run_id="r-1"
    )
    rows = class_rows(context, TilePlan(TILE.coadd_id, 2, (0,)), [result("ad", 0)])
    assert rows.schema == CLASS_SCHEMA
    assert rows["flags"].to_pylist() == [3, Flag.BAD_VALUE | Flag.NO_PHOTOMETRY]
    assert rows["valid_frac"].to_pylist() == [
        0.75,
        0.0,
    ]
    assert rows["_healpix_29"].to_pylist() == healpix29(np.array([150.0, 10.0]), np.array([1.5, -2.5])).tolist()
    assert rows["model_id"].to_pylist() == ["m-1"] * 2 and rows["run_id"].to_pylist() == ["r-1"] * 2
    assert rows["class"].to_pylist() == ["quasar", "quasar"] and rows["w1mpro"].to_pylist() == [15.5, None]
    assert rows["coadd_id"].to_pylist() == [TILE.coadd_id, None] and rows["source_id"].to_pylist() == ["d", "a"]
    assert rows["set_90"].to_pylist() == [None, None]


def test_the_sets_of_sources_name_the_classes_above_their_thresholds() -> None:
    """Thresholds by hand: 0.3, 0.2, 0.5 below W1 = 15, and 0.05, 0.1, 0.9 above."""
    calibration = BinnedCalibration(
        DEFAULT_CLASSES, (8.0, 15.0, 17.0), (10.0, 90.0), ((1.0,) * 3,) * 2, ((0.0,) * 3,) * 2, ((1 / 3,) * 3,) * 2,
        ((9,) * 3,) * 2,
        ((((0,) * 15,) * 3,),) * 2, ((0.3, 0.2, 0.5), (0.05, 0.1, 0.9)),
    )  # fmt: skip
    p = np.array(
        [[0.3, 0.3, 0.4], [0.3, 0.3, 0.4], [0.04, 0.06, 0.91], [0.29, 0.19, 0.49], [0.3, 0.3, 0.4]], np.float32
    )
    p = np.vstack([p, np.full(3, np.nan, np.float32), p[:1]])
    w1 = np.array([10.0, 16.0, 16.0, 10.0, np.nan, 10.0, 18.0, 10.0], np.float32)
    sources = pa.table({"ra": [150.0] * 7 + [266.4], "dec": [2.0] * 7 + [-28.9]})
    texts = class_sets(np.vstack([p, p[:1]]), sources, w1, calibration, DEFAULT_CLASSES).to_pylist()
    assert texts == ["galaxy|quasar", "galaxy|quasar", "star", "", None, None, None, None]


def test_flags_of_scores_and_of_missing_photometry() -> None:
    sources = pa.table({"w1mpro": pa.array([15.0, None, 15.0, 15.0], pa.float32()), "bad_values": [0, 0, 0, 1]})
    scores = np.array([0.5, 1.0, 1.01, np.nan], np.float32)
    flags = flags_of_rows(sources, SourceValues.without_image(4, 0)._replace(outlier=scores))
    assert flags.tolist() == [0, Flag.NO_PHOTOMETRY, Flag.OUTLIER, Flag.BAD_VALUE]


def test_w1_is_that_of_the_catalogue_or_of_the_aperture() -> None:
    values = SourceValues.without_image(3, 0)._replace(w1_aperture=np.array([1.0, 15.0, np.nan], np.float32))
    sources = pa.table({"w1mpro": pa.array([16.5, None, None], pa.float32())})
    np.testing.assert_array_equal(known_w1(sources, values), np.array([16.5, 15.0, np.nan], np.float32))
