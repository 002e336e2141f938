"""Intervals of the index, the row groups that they touch, and files that are not what was published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.catalog.row_groups import Footer, open_file, read_footer, spans_of
from skyclass.errors import StoreError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of five rows in groups of two."""
    table = pa.table({"source_id": list("abcde"), "_healpix_29": [3, 5, 5, 9, 12]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    return tmp_path / "t.parquet"


@pytest.mark.parametrize(
    ("pixels", "order", "spans"),
    [
        ([], 5, []),
        ([3], 29, [[3, 3]]),
        ([0], 28, [[0, 3]]),
        ([2, 3, 5], 28, [[8, 15], [20, 23]]),
        ([2, 4, 6], 27, [[32, 47], [64, 79], [96, 111]]),
        ([1], 5, [[2**48, 2**49 - 1]]),
        ([12287], 5, [[12287 * 2**48, 12288 * 2**48 - 1]]),
    ],
)
def test_pixels_become_intervals_with_their_ends(pixels: list[int], order: int, spans: list[list[int]]) -> None:
    found = spans_of(np.array(pixels, np.int64), order)
    assert found.tolist() == spans and found.shape == (len(spans), 2) and found.dtype == np.int64


def test_a_footer_has_the_range_of_each_row_group(file: Path) -> None:
    footer = read_footer(file.parent, file.name, file.stat().st_size, "digest")
    assert footer.low.tolist() == [3, 5, 12] and footer.high.tolist() == [5, 9, 12]
    assert footer.metadata.num_rows == 5
    cases = {(0, 2): [], (0, 3): [0], (5, 5): [0, 1], (6, 8): [1], (9, 12): [1, 2], (10, 11): [], (13, 99): []}
    assert {span: footer.touched([np.array([span])]) for span in cases} == cases
    assert footer.touched([]) == [0, 1, 2]
    assert footer.touched([np.array([[0, 3], [12, 12]]), np.array([[4, 12]])]) == [0, 2]
    assert isinstance(footer, Footer)


def test_a_footer_is_read_once_for_each_digest(file: Path) -> None:
    nbytes = file.stat().st_size
    first = read_footer(file.parent, file.name, nbytes, "one")
    file.unlink()
    assert read_footer(file.parent, file.name, nbytes, "one") is first
    with pytest.raises(StoreError, match="cannot be read"):
        read_footer(file.parent, file.name, nbytes, "two")


def test_a_file_of_another_size_is_not_read(file: Path) -> None:
    nbytes = file.stat().st_size
    with open_file(file.parent, file.name, nbytes) as parquet:
        assert parquet.read()["source_id"].to_pylist() == list("abcde")
    with pytest.raises(StoreError) as caught, open_file(file.parent, file.name, nbytes + 1234567):
        pass
    told = f"{file} has {nbytes:,} bytes and was published with {nbytes + 1234567:,}: run 'skyclass verify'"
    assert str(caught.value).startswith(told)


def test_files_that_are_gone_or_damaged_are_told(file: Path) -> None:
    file.write_bytes(b"no table")
    with pytest.raises(StoreError, match=f"{file} cannot be read: .*run 'skyclass verify'"):
        with open_file(file.parent, file.name, 8):
            pass
    with pytest.raises(StoreError, match=r"t2.parquet cannot be read: \[Errno 2\].*run 'skyclass verify'"):
        with open_file(file.parent, "t2.parquet", 8):
            pass
    with pytest.raises(StoreError, match=f"the publication {file.parent}/2 is gone: 'skyclass gc' removed it"):
        with open_file(file.parent / "2", "t.parquet", 8):
            pass
