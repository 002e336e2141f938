"""What a connection may read, and how much memory it may use."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.catalog.duckdb import connect, literal, parquet_scan


@pytest.mark.parametrize(
    ("memory_gib", "limit"),
    [(0.25, "128.0 MiB"), (2, "1.0 GiB"), (7, "3.5 GiB"), (8, "3.7 GiB"), (1024, "3.7 GiB")],
)
def test_the_limit_is_half_of_the_memory_and_at_most_four_gigabytes(
    monkeypatch: pytest.MonkeyPatch, memory_gib: float, limit: str
) -> None:
    sizes = {"SC_PHYS_PAGES": int(memory_gib * 2**18), "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    with connect(None) as connection:
        assert connection.execute("SELECT current_setting('memory_limit')").fetchone() == (limit,)


def test_a_connection_reads_the_files_below_its_folder_only(tmp_path: Path) -> None:
    root = tmp_path / "it's"
    inside, outside = root / "Norder=5" / "a.parquet", tmp_path / "it's2" / "b.parquet"
    for path in (inside, outside):
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"n": [1, 2]}), path)
    with connect(root, tmp_path) as connection:
        answer = connection.sql(f"SELECT * FROM {parquet_scan([str(inside), str(inside)])}").to_arrow_table()
        assert answer.to_pydict() == {"n": [1, 2, 1, 2]}  # and no column Norder
        assert [path.name[:9] for path in tmp_path.iterdir() if "it's" not in path.name] == ["skyclass-"]
        with pytest.raises(duckdb.PermissionException):
            connection.sql(f"SELECT * FROM {parquet_scan([str(outside)])}")
    with connect(None) as connection, pytest.raises(duckdb.PermissionException):
        connection.sql(f"SELECT * FROM {parquet_scan([str(inside)])}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it's", "it's2"]


@pytest.mark.parametrize("root", ["/data/run", "/data/it's", None])
def test_folders_are_named_to_duckdb_with_a_slash(root: str | None) -> None:
    with connect(Path(root) if root else None) as connection:
        (folders,) = connection.execute("SELECT current_setting('allowed_directories')").fetchone()
    spill = [folder for folder in folders if "/skyclass-" in folder]
    assert len(spill) == 1 and set(folders) - {*spill} == ({f"{root}/"} if root else set())


def test_a_text_is_one_literal() -> None:
    with connect(None) as connection:
        for text in ("plain", "it's", "''", "a'; SELECT '1", "ünï"):
            assert connection.sql(f"SELECT {literal(text)}").fetchall() == [(text,)]
