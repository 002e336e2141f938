"""The plan of a run: tiles with most sources first, exact counts, and digests of what they depend on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from skyclass.errors import CatalogError
from skyclass.run.plan import (
    catalog_digest,
    make_plan,
    partition_digests,
    partition_names,
    table_counts,
    without_tile_lines,
)
from skyclass.sky.regions import Cone
from skyclass.sources.footers import PartitionDigest
from skyclass.types import NO_TILE, TilePlan

A, B, C = "1500p015_ac51", "1515p015_ac51", "1530p015_ac51"
CONTEXT: Any = SimpleNamespace(catalog="survey", region=None)


def counts(*rows: tuple[str | None, int, int]) -> pa.Table:
    """Return counts (coadd_id, partition, n)."""
    names, partitions, numbers = zip(*rows, strict=True)
    return pa.table({"coadd_id": pa.array(names, pa.string()), "partition": partitions, "n": numbers})


def test_tiles_come_by_their_number_of_sources_and_then_by_name() -> None:
    plan = make_plan(CONTEXT, counts((B, 0, 5), (A, 7, 2), (A, 3, 3), (C, 1, 9), (None, 2, 4)))
    assert plan.tiles == (
        TilePlan(C, 9, (1,)),
        TilePlan(A, 5, (3, 7)),
        TilePlan(B, 5, (0,)),
        TilePlan(NO_TILE, 4, (2,)),
    )
    assert (plan.n_sources, plan.without_tile) == (23, 4)
    assert [tile.coadd_id for tile in plan.on_tiles] == [C, A, B]


def test_the_digest_is_that_of_names_and_counts() -> None:
    plan = make_plan(CONTEXT, counts((A, 0, 2), (B, 1, 5)))
    assert len(plan.digest) == 16 and plan.catalog == ""
    same = make_plan(CONTEXT, counts((B, 4, 3), (A, 2, 2), (B, 0, 2)), "content")
    assert same.digest == plan.digest and same.catalog == "content"
    for other in (counts((A, 0, 2), (B, 1, 6)), counts((A, 0, 2), (C, 1, 5)), counts((A, 0, 2))):
        assert make_plan(CONTEXT, other).digest != plan.digest


def test_each_tile_has_the_keys_of_its_partitions_in_their_order() -> None:
    digests = {3: PartitionDigest(10, "x"), 7: PartitionDigest(20, "y")}
    plan = make_plan(CONTEXT, counts((A, 7, 2), (A, 3, 3), (B, 7, 1)), "content", digests)
    assert [tile.keys for tile in plan.tiles] == [(digests[3].key, digests[7].key), (digests[7].key,)]
    assert plan.partitions == digests
    context: Any = SimpleNamespace(
        sources=SimpleNamespace(
            location="/survey", partitions=[SimpleNamespace(path=f"/survey/k={i}/part0.parquet") for i in range(9)]
        )
    )
    assert list(partition_names(context, plan).items()) == [
        ("k=3/part0.parquet", digests[3]),
        ("k=7/part0.parquet", digests[7]),
    ]


def test_a_plan_without_sources_is_refused() -> None:
    empty = counts((A, 0, 1)).slice(1)
    with pytest.raises(CatalogError, match="survey: no source in the catalogue; nothing to classify"):
        make_plan(CONTEXT, empty)
    context: Any = SimpleNamespace(catalog="survey", region=Cone(1, 2, "3arcmin"))
    with pytest.raises(CatalogError, match=r"survey: no source in the region .kind = cone, .*; nothing to classify"):
        make_plan(context, empty)


def test_digests_of_partitions() -> None:
    table = counts((A, 3, 2), (B, 3, 1), (B, 5, 1))
    table = table.append_column("nbytes", pa.array([10, 10, 20])).append_column("footer", pa.array(["x", "x", "y"]))
    digests = partition_digests(table)
    assert digests == {3: PartitionDigest(10, "x"), 5: PartitionDigest(20, "y")}
    content = catalog_digest(digests.values())
    assert len(content) == 16 and catalog_digest(reversed(digests.values())) == content
    assert catalog_digest([PartitionDigest(10, "x"), PartitionDigest(21, "y")]) != content


def test_a_table_is_one_partition() -> None:
    table = pa.table({"source_id": ["a", "b", "c"], "coadd_id": pa.array([A, None, A])})
    rows = sorted(table_counts(table).to_pylist(), key=str)
    assert rows == [{"coadd_id": A, "partition": 0, "n": 2}, {"coadd_id": None, "partition": 0, "n": 1}]


def test_sources_without_a_tile_have_a_line_of_their_own() -> None:
    assert without_tile_lines(0) == []
    (line,) = without_tile_lines(1234)
    assert line.startswith("sources without a tile: 1,234; ") and line.endswith("their rows have no class")
