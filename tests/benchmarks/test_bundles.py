"""The table that compares two bundles on the same skies."""

import numpy as np
import pytest

from benchmarks import bundles


def columns(n_rows: int) -> bundles.Columns:
    """Return rows of all classes in turn; the old bundle is right, the new one misses every second star."""
    label = np.arange(n_rows) % 3.0
    new = ~((label == 2) & (np.arange(n_rows) // 3 % 2 == 0))
    values = {
        "abs_b_deg": np.full(n_rows, 40.0),
        "w1snr": np.where(np.arange(n_rows) < n_rows / 2, 15.0, 30.0),
        "w1mpro": np.full(n_rows, 15.5),
    }
    return {
        "label": label,
        "right_old": np.ones(n_rows),
        "right_new": new,
        "abs_b_deg": np.full(n_rows, 40.0),
        **values,
    }


def test_the_difference_is_that_of_the_mean_recalls_and_paired():
    part = columns(1200)
    right = np.column_stack([part["right_old"], part["right_new"]]).astype(float)
    old, new, gain, low, high = bundles.compared(part["label"], right)
    assert (old, new, gain) == (100, pytest.approx(500 / 6), pytest.approx(-100 / 6))
    assert -20 < low < gain < high < -14
    assert np.all(bundles.compared(part["label"], right[:, [1, 1]])[2:] == 0)


def test_the_table_has_bins_and_datasets_and_no_value_for_few_rows():
    text = bundles.document({"a": columns(600), "b": columns(30)}, ("iicnet-mock", "iicnet-mock"), "SIMULATED")
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert "SIMULATED" in text and "| 630 | 100.0 | 83.3 | -16.7 (" in lines["all"]
    assert lines["W1 (mag) 15 to 16"].split(" | ")[1] == "630" and "| 315 |" in lines["W1 S/N > 20"]
    assert lines["b, all"] == "| b, all | 30 | - | - | - |"
