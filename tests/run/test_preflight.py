"""What is checked before a run begins: photometry, copies of partitions, the model, the images."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.errors import ArchiveError, BundleError, CannotCompile, CatalogError, RunMismatch
from skyclass.model.bundle import Bundle, load_bundle
from skyclass.run import preflight
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext
from skyclass.run.preflight import check_photometry, refuse_copies, refuse_faulty_model
from skyclass.run.prepare import TOO_FEW_FOR_CUDA, count_here, new_context, plan_run, warm_up_local
from skyclass.sources.footers import PartitionDigest
from skyclass.sources.opening import open_sources
from tests.support.atlas_files import write_layout
from tests.support.bundles import FUSION, make_bundle

NEEDED = ["w1mpro", "w2mpro", "w3mpro"]


@dataclass(frozen=True)
class Partitioned:
    """A catalogue in partitions that lacks some columns."""

    absent: tuple[str, ...]
    location: str = "survey"
    is_partitioned: bool = True
    is_prepared: bool = False

    def absent_columns(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.absent]


@pytest.fixture
def fusion(tmp_path: Path) -> Bundle:
    """A model of images and the photometry `NEEDED`."""
    return make_bundle(tmp_path / "fusion", **FUSION)


def table_file(folder: Path, columns: Sequence[str]) -> str:
    path = folder / "table.csv"
    path.write_text(",".join(["ra", "dec", *columns]) + "\n" + ",".join(["1"] * (2 + len(columns))) + "\n")
    return str(path)


def test_a_catalogue_off_all_tiles_names_a_position(run: RunConfig, sky, tmp_path: Path) -> None:
    for path in Path(sky.catalog).rglob("*.parquet"):
        target = tmp_path / "catalog" / path.relative_to(sky.catalog)
        target.parent.mkdir(parents=True)
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["coadd_id"]), target)
    write_layout(tmp_path / "images")
    elsewhere = replace(run, catalog=str(tmp_path / "catalog"), images=str(tmp_path / "images"))
    with pytest.raises(
        ArchiveError, match=r"source \S+ is at ra \d+\.\d{4}, dec .*; the folder has 1 tile, 0098p408_ac51 "
    ):
        plan_run(elsewhere, count_here)


def test_a_survey_needs_every_column_of_the_photometry(fusion: Bundle, tmp_path: Path) -> None:
    check_photometry(fusion, Partitioned(()))
    for absent in (["w3mpro"], NEEDED):
        columns = "column w3mpro" if len(absent) == 1 else f"columns {', '.join(absent)}"
        with pytest.raises(CatalogError, match=f"survey has no {columns}: .* needs the photometry w1mpro"):
            check_photometry(fusion, Partitioned(tuple(absent)))
    check_photometry(make_bundle(tmp_path / "images"), Partitioned(tuple(NEEDED)))


def test_a_table_may_lack_a_part_of_the_photometry(
    fusion: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def check(columns: Sequence[str]) -> None:
        sources = open_sources(table_file(tmp_path, columns))
        check_photometry(fusion, sources, sources.read(0))

    check(NEEDED)
    assert not [message for message in caplog.messages if "training mean" in message]
    with caplog.at_level(logging.WARNING, "skyclass"):
        check(NEEDED[:2])
    assert "w3mpro" in caplog.text and "uses the training mean of the features" in caplog.text
    with pytest.raises(CatalogError, match="table.csv has no value in w1mpro, w2mpro, w3mpro: .* needs the photometry"):
        check([])


def test_a_copy_of_a_partition_is_named(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)

    files: Any = SimpleNamespace(partitions=[SimpleNamespace(path=str(tmp_path / name)) for name in "abc"])
    same, other = PartitionDigest(1, "x"), PartitionDigest(1, "y")
    refuse_copies(files, {0: same, 1: other})
    refuse_copies(files, {0: same, 1: same})  # equal footers, other bytes
    with pytest.raises(CatalogError, match=f"{tmp_path / 'c'} is a copy of {tmp_path / 'a'}: remove one"):
        refuse_copies(files, {0: same, 1: other, 2: same})


@pytest.fixture
def context(run: RunConfig) -> RunContext:
    return new_context(run, load_bundle(run.model))


@pytest.mark.parametrize(
    ("device", "cuda", "tried"),
    [("cpu", True, "itself"), ("auto", False, "itself"), ("auto", True, "cpu"), ("cuda:1", True, "cpu")],
)
def test_the_driver_tries_the_model_on_its_cpu(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, device: str, cuda: bool, tried: str
) -> None:
    loaded: list[tuple[str, str]] = []

    def load(self: RunContext) -> None:
        loaded.append((self.device, self.precision))

    monkeypatch.setattr(preflight, "has_cuda", lambda: cuda)
    monkeypatch.setattr(RunContext, "classifier", property(load))
    refuse_faulty_model(replace(context, device=device, precision="bf16"))
    assert loaded == [("cpu", "fp32") if tried == "cpu" else (device, "bf16")]


def test_a_network_that_is_compiled_on_cuda_alone_is_not_compiled_here(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = ""

    def load(self: RunContext) -> None:
        if reason:
            raise CannotCompile(reason)

    monkeypatch.setattr(RunContext, "classifier", property(load))
    assert warm_up_local(replace(context, compile_on=("cuda",))) == [TOO_FEW_FOR_CUDA]
    assert warm_up_local(replace(context, compile_on=("cpu",))) == []
    reason = "no compiler"
    assert warm_up_local(replace(context, compile_on=("cpu", "cuda"))) == ["no compiler"]


def test_a_faulty_model_is_refused(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: RunContext) -> None:
        raise BundleError("the weights are unusable")

    monkeypatch.setattr(RunContext, "classifier", property(load))
    with pytest.raises(BundleError, match="unusable"):
        refuse_faulty_model(context)


def test_columns_without_values_count_as_absent(fusion: Bundle, tmp_path: Path) -> None:
    sources = open_sources(table_file(tmp_path, NEEDED))
    rows = sources.read(0)
    empty = rows.set_column(rows.column_names.index("w1mpro"), "w1mpro", pa.nulls(len(rows), pa.float32()))
    for name in NEEDED[1:]:
        empty = empty.set_column(empty.column_names.index(name), name, pa.nulls(len(rows), pa.float32()))
    with pytest.raises(CatalogError, match="needs the photometry"):
        check_photometry(fusion, sources, empty)


def test_images_of_which_none_is_usable_end_a_run_before_it_begins(run: RunConfig, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(run.images, images)
    for path in images.rglob("*-w2-*.fits"):
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ArchiveError, match="of 2 tiles looked at, none is usable: .*truncated"):
        plan_run(replace(run, images=str(images)), count_here)
    assert not Path(run.out).exists()


def test_a_folder_with_other_files_is_refused_by_the_plan(run: RunConfig) -> None:
    Path(run.out).mkdir()
    (Path(run.out) / "letter.txt").write_bytes(b"")
    with pytest.raises(RunMismatch, match="is no run of skyclass and holds letter.txt"):
        plan_run(run, count_here)
