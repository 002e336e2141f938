"""A run knows its inputs: replaced ones are refused by name, moved and copied ones are not."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.engine import engine
from skyclass.engine.cluster import connect
from skyclass.errors import CatalogError, InputChanged, RunMismatch
from skyclass.run import pipeline, stages, tile_sources
from skyclass.run.commits import committed, uncommit
from skyclass.run.config import RunConfig
from skyclass.run.folder import RunFolder
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.progress import no_progress
from skyclass.sources.footers import partition_digest, unchanged
from tests.support.faults import Chaos
from tests.support.runs import rows_of, run_on


@pytest.fixture(scope="module")
def undisturbed(sky, bundle, tmp_path_factory) -> pa.Table:
    """The rows of the plain pipeline."""
    run = run_on(sky, bundle, tmp_path_factory.mktemp("undisturbed") / "classes", 128)
    pipeline.classify(run)
    return rows_of(run)


@pytest.fixture
def own(run: RunConfig, sky, tmp_path: Path) -> RunConfig:
    """A run over a copy of the catalogue."""
    shutil.copytree(sky.catalog, tmp_path / "catalog")
    return dataclasses.replace(run, catalog=str(tmp_path / "catalog"))


def partitions(run: RunConfig) -> list[Path]:
    return sorted(Path(run.catalog).rglob("*.parquet"))


def other_sources(path: Path) -> None:
    """Replace a partition by one with as many sources in each tile, of other names and at other positions."""
    table = pq.read_table(path)
    names = pa.array([f"other-{i}" for i in range(len(table))])
    for name, values in {"source_id": names, "dec": pa.array(table["dec"].to_numpy() + 1 / 3600)}.items():
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def undo_one(run: RunConfig) -> None:
    """Leave a run as an interruption leaves it: one of its two tiles to do."""
    folder = RunFolder(Path(run.out))
    uncommit(folder, next(iter(committed(folder).values())), "to be done again")
    folder.catalog.unlink() if folder.catalog.is_symlink() else shutil.rmtree(folder.catalog)


@pytest.mark.integration
@pytest.mark.fault(11)
def test_a_catalogue_with_as_many_other_sources_is_refused_by_the_name_of_the_partition(own, undisturbed, chaos: Chaos):
    pipeline.classify(own)
    undo_one(own)
    first = partitions(own)[0]
    kept = first.read_bytes()
    other_sources(first)
    with pytest.raises(RunMismatch) as caught:
        pipeline.classify(own)
    said = str(caught.value)
    assert caught.value.exit_code == 2 and "\n  catalog: " in said and "\n  plan: " not in said, said
    assert f"    {first.relative_to(own.catalog)} was replaced" in said.splitlines()
    assert not [path for path in partitions(own)[1:] if str(path.relative_to(own.catalog)) in said]
    first.write_bytes(kept)
    pipeline.classify(own)
    chaos.same_rows(rows_of(own), undisturbed)


@pytest.mark.integration
@pytest.mark.fault(11)
def test_partitions_that_disappear_or_are_added_are_named(own, chaos: Chaos):
    pipeline.classify(own)
    first, second = partitions(own)[:2]
    first.rename(first.with_name("part7.snappy.parquet"))
    other_sources(first.with_name("part7.snappy.parquet"))
    other_sources(second)
    with pytest.raises(RunMismatch) as caught:
        pipeline.classify(own)
    folder = first.parent.relative_to(own.catalog)
    lines = str(caught.value).splitlines()
    assert f"    {folder}/part0.snappy.parquet is missing" in lines
    assert f"    {folder}/part7.snappy.parquet is new" in lines
    assert f"    {second.relative_to(own.catalog)} was replaced" in lines
    chaos.injected(3)


@pytest.mark.integration
@pytest.mark.parametrize(
    "how",
    [
        "mv",
        "renamed file",
        *(pytest.param(h, marks=pytest.mark.slow) for h in ("rsync", "copy", "symlink", "other mtime")),
    ],
)
def test_a_catalogue_that_was_moved_copied_or_linked_resumes(own, undisturbed, tmp_path, how):
    pipeline.classify(own)
    undo_one(own)
    there = tmp_path / "there"
    if how == "mv":
        shutil.move(own.catalog, there)
    elif how == "rsync":
        subprocess.run(["cp", "-a", own.catalog, there], check=True)
    elif how == "copy":
        shutil.copytree(own.catalog, there, copy_function=shutil.copyfile)
    elif how == "symlink":
        there.symlink_to(own.catalog)
    else:
        there = Path(own.catalog)
        first = partitions(own)[0]
        first.rename(first.with_name("renamed.parquet")) if how == "renamed file" else first.touch()
    report = pipeline.classify(dataclasses.replace(own, catalog=str(there)))
    assert report.tiles_resumed == 1 and rows_of(own).equals(undisturbed)


@pytest.mark.fault(11)
def test_a_users_table_of_another_content_is_refused_and_a_moved_one_is_not(run, sky, tmp_path):
    table = pq.read_table(sky.catalog).select(["source_id", "coadd_id", "ra", "dec"]).slice(0, 30)
    pq.write_table(table, tmp_path / "own.parquet")
    own = dataclasses.replace(run, catalog=str(tmp_path / "own.parquet"))
    pipeline.classify(own)
    (tmp_path / "own.parquet").rename(tmp_path / "moved.parquet")
    moved = dataclasses.replace(own, catalog=str(tmp_path / "moved.parquet"))
    assert pipeline.classify(moved).tiles_resumed > 0
    shifted = pa.array(table["ra"].to_numpy() + np.arange(30) * 1e-4)
    pq.write_table(table.set_column(2, "ra", shifted), tmp_path / "moved.parquet")
    with pytest.raises(RunMismatch, match="\n  catalog: .* there, .* now .*table"):
        pipeline.classify(moved)


def replaced_at_first_strip(monkeypatch, path: Path) -> None:
    """Replace a partition once the first strip of a run is done."""
    infer, done = stages.infer_strip, []

    def replacing(*args):
        if not done:
            done.append(other_sources(path))
            tile_sources.tile_sources.cache_clear()
            tile_sources.planned_sources.cache_clear()
        return infer(*args)

    monkeypatch.setattr(stages, "infer_strip", replacing)
    monkeypatch.setattr(pipeline, "infer_strip", replacing)


@pytest.mark.integration
@pytest.mark.fault(31)
def test_a_partition_replaced_during_the_run_ends_it_and_is_named(own, undisturbed, chaos: Chaos, monkeypatch):
    first = partitions(own)[0]
    kept = first.read_bytes()
    with monkeypatch.context() as patch:
        replaced_at_first_strip(patch, first)
        with pytest.raises(InputChanged, match=f"{first} was replaced while the run .*same command") as caught:
            pipeline.classify(own)
    assert caught.value.exit_code == 2 and not RunFolder(own.out).catalog.exists()
    with pytest.raises(RunMismatch, match=f"{first.relative_to(own.catalog)} was replaced"):
        pipeline.classify(own)
    first.write_bytes(kept)
    pipeline.classify(own)
    chaos.same_rows(rows_of(own), undisturbed)


@pytest.mark.integration
@pytest.mark.fault(31)
def test_a_partition_replaced_after_the_plan_ends_a_run_on_workers(own, undisturbed, chaos: Chaos, monkeypatch):
    """All workers see the new file at their first look; the plan has seen the old one."""
    first, begin = partitions(own)[0], engine.open_run
    kept = first.read_bytes()

    def replaced(*args):
        other_sources(first)
        return begin(*args)

    with connect("local", workers=1) as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "open_run", replaced)
            with pytest.raises(InputChanged, match=f"{first} was replaced"):
                engine.classify(own, client, no_progress)
        first.write_bytes(kept)
        engine.classify(own, client, no_progress)
    chaos.same_rows(rows_of(own), undisturbed)


def test_a_partition_that_disappears_during_the_run_is_named(own, monkeypatch):
    context, plan, _ = plan_run(own, count_here)
    gone = partitions(own)[0]
    gone.unlink()
    with pytest.raises(CatalogError, match=str(gone)):
        for tile in plan.tiles:
            tile_sources.tile_sources(context, tile)


def test_a_partition_is_known_by_size_and_footer_whatever_its_times(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2, 3]}), path)
    digest = partition_digest(str(path))
    assert digest.nbytes == path.stat().st_size and len(digest.footer) == 64
    path.touch()
    assert partition_digest(str(path)) == digest
    with pytest.raises(InputChanged, match="a.parquet"), unchanged(str(path), digest.key):
        pq.write_table(pa.table({"x": [1, 2, 4]}), path)
    assert partition_digest(str(path)) != digest
    with pytest.raises(InputChanged, match="a.parquet"), unchanged(str(path), digest.key):
        pass
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CatalogError, match="a.parquet: cannot be read as Parquet"):
        partition_digest(str(path))


def test_a_partition_that_is_a_folder_is_known_by_all_its_files(tmp_path: Path):
    """A HATS partition may be a folder."""
    folder = tmp_path / "Npix=1"
    folder.mkdir()
    for name, value in {"a": 1, "b": 2}.items():
        pq.write_table(pa.table({"x": [value]}), folder / f"{name}.parquet")
    digest = partition_digest(str(folder))
    assert digest.nbytes == sum(path.stat().st_size for path in folder.iterdir())
    pq.write_table(pa.table({"x": [3]}), folder / "b.parquet")
    assert partition_digest(str(folder)) != digest


COUNT = """
import sys
from skyclass.run.config import RunConfig
from skyclass.run.prepare import count_here, plan_run
_, plan, _ = plan_run(RunConfig(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]), count_here)
print(plan.catalog, plan.digest)
"""


@pytest.mark.slow
def test_the_digests_are_the_same_in_every_process(own):
    command = [sys.executable, "-c", COUNT, own.catalog, own.images, own.out, own.model]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    _, plan, _ = plan_run(own, count_here)
    assert said[0] == said[1] == f"{plan.catalog} {plan.digest}\n"
