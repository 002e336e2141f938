"""Columns of a class catalogue against numbers that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyclass.images.composite import CompositeSettings
from skyclass.run import context as run_context
from skyclass.run.class_rows import class_columns
from skyclass.run.pipeline import classify
from skyclass.run.progress import no_progress
from skyclass.run.stages import cut_and_composite
from skyclass.types import DEFAULT_CLASSES, Flag, RowRange, Tile
from tests.support.runs import rows_of

HAND = [
    # p_galaxy, p_quasar, p_star, class, margin, entropy in nats
    (0.7, 0.2, 0.1, "galaxy", 0.5, 0.8018186),  # 0.7 ln(10/7) + 0.2 ln 5 + 0.1 ln 10
    (0.05, 0.9, 0.05, "quasar", 0.85, 0.3943977),  # 0.9 ln(10/9) + 0.1 ln 20
    (0.3, 0.2, 0.5, "star", 0.2, 1.0296530),  # 0.3 ln(10/3) + 0.2 ln 5 + 0.5 ln 2
    (0.0, 0.0, 1.0, "star", 1.0, 0.0),  # 0 ln 0 is 0
    (1 / 3, 1 / 3, 1 / 3, "galaxy", 0.0, math.log(3)),  # the first of equal classes
]


def test_class_margin_and_entropy_equal_numbers_by_hand() -> None:
    columns = class_columns(np.array([row[:3] for row in HAND], np.float32), DEFAULT_CLASSES)
    assert columns["class"].to_pylist() == [row[3] for row in HAND]
    assert columns["margin"].to_pylist() == pytest.approx([row[4] for row in HAND], abs=1e-7)
    assert columns["entropy"].to_pylist() == pytest.approx([row[5] for row in HAND], abs=1e-6)
    for i, name in enumerate(("p_galaxy", "p_quasar", "p_star")):
        assert columns[name].to_pylist() == [float(np.float32(row[i])) for row in HAND]


def test_a_source_without_probabilities_has_null_in_each_column_of_its_class() -> None:
    columns = class_columns(np.array([[np.nan] * 3, [0.7, 0.2, 0.1]], np.float32), DEFAULT_CLASSES)
    assert all(values.is_null().to_pylist() == [True, False] for values in columns.values())


def tile_of(image: np.ndarray) -> tuple[Tile, list[RowRange]]:
    """Return a tile of one band, and all its rows."""
    tile = Tile("0000p000_ac51", ("w1",), image.shape, (0.0, 0.0), (4.0, 4.0), (-0.0004, 0.0004), (20.5,))
    return tile, [RowRange(0, image, bool(np.isfinite(image).all()))]


def test_valid_frac_and_flags_equal_numbers_by_hand() -> None:
    """Cutouts of 3 x 3 pixels from 6 x 6: whole, over a side, over a corner, with a NaN beside and in the centre."""
    image = np.ones((6, 6), np.float32)
    image[4, 4] = np.nan
    tile, rows = tile_of(image)
    x, y = np.array([2.0, 1.0, 1.0, 4.0, 5.0]), np.array([2.0, 2.0, 1.0, 4.0, 5.0])  # FITS pixels: from 1
    settings = CompositeSettings((1.0,), (20.5,), stretch="linear", sky="none")
    images, values = cut_and_composite(rows, tile, x, y, 3, settings)
    assert values.valid_frac.tolist() == [float(np.float32(f)) for f in (1, 6 / 9, 4 / 9, 8 / 9, 8 / 9)]
    assert [Flag(int(f)) for f in values.flags] == [
        Flag(0),
        Flag.EDGE,
        Flag.EDGE,
        Flag.NAN_PIXELS,
        Flag.NAN_PIXELS | Flag.CENTRE_MISSING,
    ]
    assert np.isfinite(images).sum(axis=(1, 2, 3)).tolist() == [9, 6, 4, 8, 8]


class Fixed:
    """A classifier that gives the rows of `HAND` in turns."""

    model_id = "fixed"

    def predict(self, images: np.ndarray, photometry: np.ndarray | None = None) -> np.ndarray:
        return np.resize(np.array([row[:3] for row in HAND], np.float32), (len(images), 3))

    def predict_and_embed(
        self, images: np.ndarray, photometry: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(images, photometry), np.zeros((len(images), 0), np.float32)


@pytest.mark.integration
def test_a_run_publishes_what_the_network_gives(run, sky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source has the probabilities of its own image, and the columns that follow from them."""
    monkeypatch.setattr(run_context, "cached_classifier", lambda *args: Fixed())
    classify(run, no_progress)
    rows = rows_of(run).to_pylist()
    sources = pq.read_table(sky.catalog).num_rows
    by_hand = {tuple(map(float, np.float32(row[:3]))): row[3:] for row in HAND}
    known = [row for row in rows if row["class"] is not None]
    assert len(rows) == sources and len(known) > 0.9 * sources
    for row in known:
        name, margin, entropy = by_hand[row["p_galaxy"], row["p_quasar"], row["p_star"]]
        assert row["class"] == name and row["margin"] == pytest.approx(margin, abs=1e-6)
        assert row["entropy"] == pytest.approx(entropy, abs=1e-6) and 0 < row["valid_frac"] <= 1
