"""The schema of the class catalogue: what `conform` accepts, and that it changes no value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from skyclass.errors import StoreError
from skyclass.schema import SORT_KEYS, conform
from tests.support.class_rows import CLASS_SCHEMA, class_rows


def test_conform_sorts_rows_and_keeps_each_bit_of_each_value() -> None:
    rows = class_rows("1500p015_ac51", 500, 150.0, 1.5)
    conformed = conform(rows)
    expected = rows.sort_by([(key, "ascending") for key in SORT_KEYS])
    for field in CLASS_SCHEMA:
        assert conformed[field.name].to_pylist() == expected[field.name].to_pylist(), field.name


def test_conform_writes_null_for_nan_and_leaves_the_other_values() -> None:
    rows = class_rows("1500p015_ac51", 3, 150.0, 1.5)
    values = np.array([np.nan, 13.123457, -1e-7], np.float32)
    rows = rows.set_column(rows.column_names.index("w1mpro"), "w1mpro", pa.array(values))
    by_id = dict(zip(conform(rows)["source_id"].to_pylist(), conform(rows)["w1mpro"].to_pylist(), strict=True))
    expected = [None, *map(float, values[1:])]
    assert [by_id[name] for name in rows["source_id"].to_pylist()] == expected


def test_rows_without_probabilities_of_classes_are_refused() -> None:
    rows = class_rows("1500p015_ac51", 3, 150.0, 1.5)
    for names in (["p_galaxy", "p_quasar", "p_star"], ["p_galaxy", "p_quasar"]):
        with pytest.raises(StoreError, match="fewer than two columns p_<class>"):
            conform(rows.drop_columns(names))
