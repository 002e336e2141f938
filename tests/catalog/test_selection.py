"""Which files, row groups and columns a selection reads, and that it gives the same rows however it reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skyclass import files
from skyclass.catalog import selection
from skyclass.catalog.duckdb import connect
from skyclass.catalog.manifest import Manifest, PixelRecord, manifest_of
from skyclass.catalog.query import ClassCatalog
from skyclass.catalog.selection import Selection
from tests.support.class_rows import CLASS_SCHEMA
from tests.support.small_catalog import PIXEL, PROVENANCE, catalogue_table, small_catalog


@dataclass(frozen=True)
class Cells:
    """A region that contains a range of RA, and whose cover is the first cell in each of some pixels of order 5."""

    pixels: tuple[int, ...]
    ra: tuple[float, float] = (0, 360)
    orders: list[int] = field(default_factory=list)

    def contains(self, ra: Any, dec: Any) -> Any:
        return (ra >= self.ra[0]) & (ra <= self.ra[1])

    def cover(self, order: int) -> Any:
        self.orders.append(order)
        return np.array(self.pixels, np.int64) << 2 * (order - 5)

    def to_dict(self) -> dict[str, Any]:
        return {}


def manifest(*pixels: int) -> Manifest:
    records = [PixelRecord(pixel, f"{pixel}.parquet", 1, "", 1, {}, 0, 0, 0) for pixel in pixels]
    return manifest_of(records, len(pixels), PROVENANCE, {}, "")


def plan(*regions: Cells) -> tuple[list[int], list[list[list[int]]]]:
    """Return the pixels of the files, of which there are three, and the spans."""
    chosen, spans = Selection(Path("nowhere"), manifest(0, 4, 64), regions)._plan()
    return [record.pixel for record in chosen], [span.tolist() for span in spans]


@pytest.mark.parametrize(
    ("n", "orders", "pixels"),
    [(1, [5, 11], [0]), (4, [5, 11], [0]), (5, [5, 8], [0, 4]), (64, [5, 8], [0, 4]), (65, [5], [0, 4, 64])],
)
def test_a_small_region_chooses_row_groups_by_a_finer_cover(n: int, orders: list[int], pixels: list[int]) -> None:
    """Four pixels of order 5 by cells of order 11, sixty-four by cells of order 8; more choose files only."""
    region = Cells(tuple(range(n)))
    files, spans = plan(region)
    assert region.orders == orders and files == pixels
    width = {11: 2**36, 8: 2**42}.get(orders[-1])
    assert spans == ([[[i * PIXEL, i * PIXEL + width - 1] for i in range(n)]] if width else [])


def test_regions_leave_the_files_that_all_of_them_touch() -> None:
    assert plan() == ([0, 4, 64], [])
    assert plan(Cells((0, 4)), Cells((4, 64))) == (
        [4],
        [[[i * PIXEL, i * PIXEL + 2**36 - 1] for i in pair] for pair in ((0, 4), (4, 64))],
    )
    assert plan(Cells((0,)), Cells((64,)))[0] == []


def test_a_selection_that_names_nothing_is_everything() -> None:
    whole = Selection(Path("nowhere"), manifest(7))
    assert whole.is_everything and replace(whole, columns=("ra",)).is_everything
    assert not replace(whole, regions=(Cells(()),)).is_everything
    assert not replace(whole, predicates=("flags = 0",)).is_everything
    assert whole.schema.equals(CLASS_SCHEMA, check_metadata=True)
    assert replace(whole, columns=("dec", "ra")).schema.names == ["dec", "ra"]


STARS = [
    {"_healpix_29": 7 * PIXEL, "source_id": "a", "ra": 1.0, "w1mpro": 10.0, "class": "star"},
    {"_healpix_29": 7 * PIXEL + 2**36 - 1, "source_id": "b", "ra": 2.0, "w1mpro": 11.0, "class": "star"},
    {"_healpix_29": 7 * PIXEL + 2**36, "source_id": "c", "ra": 3.0, "w1mpro": 12.0, "class": "quasar"},
    {"_healpix_29": 7 * PIXEL + 2**40, "source_id": "d", "ra": 4.0, "w1mpro": None},
    {"_healpix_29": 9 * PIXEL, "source_id": "e", "ra": 5.0, "w1mpro": 14.0, "class": "star"},
    {"_healpix_29": 9 * PIXEL, "source_id": "f", "ra": 6.0, "w1mpro": 15.0},
    {"_healpix_29": 12 * PIXEL, "source_id": "g", "ra": 7.0, "w1mpro": 16.0, "class": "galaxy"},
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ClassCatalog:
    """Seven rows in three files, two rows in a row group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROW_GROUP_ROWS", 2)
        return small_catalog(tmp_path_factory.mktemp("run"), catalogue_table(*reversed(STARS)))


def ids(found: ClassCatalog | pa.Table) -> str:
    table = found if isinstance(found, pa.Table) else found.to_arrow()
    return "".join(table["source_id"].to_pylist())


MEAN = "w1mpro < (SELECT avg(w1mpro) FROM classes)"
"""The mean of all rows is 13."""


def test_rows_of_other_files_and_row_groups_are_not_read(catalog: ClassCatalog) -> None:
    """The region contains every position, so the rows of the answer are those that were read."""
    assert ids(catalog) == "abcdefg"
    assert ids(catalog.region(Cells((7,)))) == "ab"
    assert ids(catalog.region(Cells((7, 9)))) == "abef"
    assert ids(catalog.region(Cells((7, 9))).region(Cells((9, 12)))) == "ef"
    assert ids(catalog.region(Cells((8,)))) == "" and ids(catalog.region(Cells((8,))).where(MEAN)) == ""
    assert ids(catalog.region(Cells((9, 12))).where("w1mpro > 14")) == "fg"
    assert ids(catalog.region(Cells((7, 8))).where(MEAN)) == "abc"  # whole files, as DuckDB reads them


@pytest.mark.parametrize(("at_once", "pieces"), [(1, ["abcd", "ef", "g"]), (2, ["abcdef", "g"]), (3, ["abcdefg"])])
def test_files_are_read_some_at_a_time_in_order(
    catalog: ClassCatalog, monkeypatch: pytest.MonkeyPatch, at_once: int, pieces: list[str]
) -> None:
    monkeypatch.setattr(selection, "FILES_AT_ONCE", at_once)
    assert [ids(piece) for piece in catalog.selection.pieces()] == pieces
    some = catalog.where("class IS NULL").select(["source_id"])
    nulls = {1: ["d", "f", ""], 2: ["df", ""], 3: ["df"]}
    assert [ids(piece) for piece in some.selection.pieces()] == nulls[at_once]


EVERYWHERE = Cells(tuple(range(13)))
SOMEWHERE = replace(EVERYWHERE, ra=(1.5, 4.5))


@pytest.mark.parametrize(
    ("regions", "conditions", "expected"),
    [
        ([], [], "abcdefg"),
        ([EVERYWHERE, SOMEWHERE], [], "bcd"),
        ([], ["class = 'star' OR source_id = 'f' -- two files"], "abef"),
        ([SOMEWHERE], ["W1MPRO < 13"], "bc"),
        ([], [MEAN, "ra > 1"], "bc"),
        ([SOMEWHERE], [MEAN], "bc"),
        ([], ["flags = 1"], ""),
        ([SOMEWHERE], [MEAN, "flags = 1"], ""),
    ],
)
def test_every_way_of_reading_gives_the_same_schema(
    catalog: ClassCatalog, regions: list[Cells], conditions: list[str], expected: str
) -> None:
    whole = replace(catalog.selection, regions=tuple(regions), predicates=tuple(conditions))
    table = whole.to_arrow()
    assert ids(table) == expected and table.schema.equals(CLASS_SCHEMA, check_metadata=True)
    narrow = replace(whole, columns=("p_star", "source_id"))
    assert narrow.to_arrow().equals(table.select(["p_star", "source_id"]))
    assert narrow.to_arrow().schema.equals(narrow.schema, check_metadata=True)
    assert all(piece.schema.equals(narrow.schema, check_metadata=True) for piece in narrow.pieces())
    with connect(catalog.root) as connection:
        narrow.make_view(connection)
        view = connection.sql("SELECT * FROM classes").to_arrow_table()
    assert "".join(sorted(ids(view))) == expected and view.column_names == ["p_star", "source_id"]


def test_a_catalogue_without_rows_answers_every_question(tmp_path: Path) -> None:
    empty = small_catalog(tmp_path, catalogue_table())
    assert empty.manifest.files == () and (empty.count(), empty.where("flags = 0").count()) == (0, 0)
    for found in (empty, empty.where(MEAN), empty.region(SOMEWHERE)):
        assert len(found.to_arrow()) == 0 and found.to_arrow().schema.equals(CLASS_SCHEMA)
        assert found.sql("SELECT count(*) AS n FROM classes")["n"].tolist() == [0]
