"""Columns that a model needs and a class catalogue lacks: read from catalogues and tables, or missed at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.errors import CatalogError
from skyclass.model.bundle import Bundle
from skyclass.model.classifier import load_classifier
from skyclass.model.photometry import PhotometrySettings, features
from skyclass.run.config import RunConfig
from skyclass.run.pipeline import classify
from skyclass.schema import class_schema
from tests.support.bundles import COLOUR, make_bundle
from tests.support.runs import rows_of

NAMES = ("w1-w2", "j-w1", "w4", "pmra")


@pytest.fixture
def model(tmp_path: Path) -> Bundle:
    photometry = PhotometrySettings(NAMES, (0.5, 1.0, 9.0, 0.0), (0.4, 1.0, 1.0, 50.0))
    return make_bundle(tmp_path / "model", **COLOUR | {"photometry": photometry})


def with_columns(path: Path, target: Path) -> None:
    """Copy a partition with columns of 2MASS, W4 and proper motion; half of the W4 magnitudes are limits."""
    table = pq.ParquetFile(path).read().drop_columns(["w4mpro", "w4snr"])
    number = np.arange(len(table))
    added = {
        "j_m_2mass": 12 + number % 5,
        "w4mpro": 8.5 + number % 3,
        "w4snr": 1.0 + number % 2 * 9,
        "pmra": 7 * number,
    }
    for name, values in added.items():
        table = table.append_column(name, pa.array(values.astype(np.float64)))
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target)


def test_a_model_gets_its_columns_of_a_catalogue_and_of_a_table(
    model: Bundle, run: RunConfig, sky, tmp_path: Path
) -> None:
    for path in sky.catalog.rglob("*.parquet"):
        with_columns(path, tmp_path / "catalog" / path.relative_to(sky.catalog))
    sources = pq.read_table(tmp_path / "catalog", partitioning=None).sort_by("source_id")
    pq.write_table(sources, tmp_path / "table.parquet")
    photometry = features(sources, NAMES)
    assert np.isnan(photometry[:, 2]).any() and np.isfinite(photometry[:, [1, 3]]).all()
    images = np.zeros((len(sources), 3, 37, 37), np.float16)
    expected = load_classifier(model, "cpu", "fp32").predict(images, photometry)
    for name in ("catalog", "table.parquet"):
        given = replace(run, catalog=str(tmp_path / name), model=str(model.path), out=str(tmp_path / f"of-{name}"))
        classify(given)
        rows = rows_of(given).sort_by("source_id")
        assert rows.schema.names == class_schema(model.classes).names
        known = np.array(rows["class"].is_valid())
        assert known.sum() > 500
        np.testing.assert_allclose(rows["p_quasar"].to_numpy()[known], expected[known, 1], atol=1e-6)


def test_a_catalogue_without_a_needed_column_is_refused_before_the_run(
    model: Bundle, run: RunConfig, sky, tmp_path: Path
) -> None:
    table = pq.read_table(sky.catalog, partitioning=None)
    pq.write_table(table, tmp_path / "table.parquet")
    lacks = {str(sky.catalog): "columns j_m_2mass", str(tmp_path / "table.parquet"): "value in j_m_2mass, w4mpro"}
    for catalog, what in lacks.items():
        with pytest.raises(CatalogError, match=f"has no {what}, pmra: .* needs the photometry w1mpro"):
            classify(replace(run, catalog=catalog, model=str(model.path)))
        assert not Path(run.out).exists()
