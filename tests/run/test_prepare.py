"""The preparation of a run: precision, compilation, the run folder, earlier commits and their images."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.errors import CatalogError, ConfigError, RunMismatch
from skyclass.images.records import Comparison
from skyclass.model.bundle import load_bundle
from skyclass.run import prepare
from skyclass.run.commits import Commit, commit_tile, committed, journal_commit, read_journal
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext
from skyclass.run.folder import RunFolder, read_run
from skyclass.run.plan import Plan
from skyclass.run.prepare import (
    TOO_FEW_FOR_CUDA,
    check_images,
    choose_compilation,
    choose_precision,
    count_here,
    load_committed,
    new_context,
    open_run,
    plan_partitions,
    plan_run,
)
from skyclass.sky.regions import Cone
from skyclass.text import counted
from skyclass.types import NO_TILE, TilePlan
from tests.support.bundles import FUSION, make_bundle
from tests.support.class_rows import TILES, class_rows

FEW, MANY = Plan((TilePlan("a", 10, (0,)),), "digest"), Plan((TilePlan("a", 10_000_000, (0,)),), "digest")


@pytest.fixture
def context(run: RunConfig) -> RunContext:
    return new_context(run, load_bundle(run.model))


# --- precision and compilation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "cluster", "precision", "chosen"),
    [
        ("cuda", "tcp://10.0.0.1:8786", "auto", "bf16"),
        ("cuda:1", "tcp://10.0.0.1:8786", "fp32", "fp32"),
        ("cpu", "tcp://10.0.0.1:8786", "auto", "of cpu"),
        ("cuda", "local", "auto", "of cuda"),
        ("auto", "none", "bf16", "of auto"),
    ],
)
def test_a_driver_does_not_look_at_the_devices_of_a_cluster_that_it_joins(
    monkeypatch: pytest.MonkeyPatch, device: str, cluster: str, precision: Any, chosen: str
) -> None:
    monkeypatch.setattr(prepare, "resolve_device", lambda device: device)
    monkeypatch.setattr(prepare, "resolve_precision", lambda device, precision: f"of {device}")
    run = RunConfig("c", "i", "o", device=device, cluster=cluster, precision=precision)
    assert choose_precision(run) == chosen


@pytest.mark.parametrize(
    ("compile", "plan", "faults", "is_compiled", "warning"),
    [
        ("off", MANY, [], False, ""),
        ("auto", FEW, [], False, ""),
        ("auto", MANY, [], True, ""),
        ("on", FEW, [], True, ""),
        ("auto", MANY, ["no compiler", "too old"], False, "the network is not compiled: no compiler; too old"),
        ("auto", MANY, [TOO_FEW_FOR_CUDA], False, ""),
        ("auto", MANY, [TOO_FEW_FOR_CUDA, "no compiler"], False, f"{TOO_FEW_FOR_CUDA}; no compiler"),
    ],
)
def test_a_network_is_compiled_where_it_pays_and_every_process_can(
    context: RunContext,
    caplog: pytest.LogCaptureFixture,
    compile: Any,
    plan: Plan,
    faults: list[str],
    is_compiled: bool,
    warning: str,
) -> None:
    tried: list[RunContext] = []

    def warm_up(compiled: RunContext) -> list[str]:
        tried.append(compiled)
        return faults

    run = RunConfig("c", "i", "o", compile=compile)
    with caplog.at_level(logging.WARNING, "skyclass"):
        chosen = choose_compilation(run, context, plan, warm_up)
    assert chosen.is_compiled == is_compiled and replace(chosen, compile_on=()) == context
    assert len(tried) == (1 if is_compiled or faults else 0) and all(each.is_compiled for each in tried)
    assert [warning in message for message in caplog.messages] == [True] * bool(warning)


def test_a_run_that_must_be_compiled_ends_where_it_cannot_be(context: RunContext) -> None:
    run = RunConfig("c", "i", "o", compile="on")
    with pytest.raises(ConfigError, match="compile = 'on', but the network is not compiled: no compiler; correct this"):
        choose_compilation(run, context, FEW, lambda compiled: ["no compiler"])


# --- the context and the plan -----------------------------------------------------------------------


def test_the_paths_of_a_context_are_absolute(run: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(run.model)
    context = new_context(replace(run, out="classes", images="img", catalog="https://host/cat"), bundle)
    assert (context.out, context.images, context.catalog) == (
        str(tmp_path / "classes"), str(tmp_path / "img"), "https://host/cat",
    )  # fmt: skip
    assert context.model == str(bundle.path.absolute()) and context.run_id == "" and context.precision == "fp32"
    assert new_context(run, bundle).session != new_context(run, bundle).session
    shipped = replace(run, model="iicnet-mock")
    assert new_context(shipped, load_bundle("iicnet-mock")).model == "iicnet-mock"


def test_a_table_is_planned_with_its_tiles(run: RunConfig, sky: Any, tmp_path: Path) -> None:
    sources = pq.read_table(sky.catalog, columns=["source_id", "ra", "dec"])
    table = tmp_path / "table.parquet"
    outside = pa.table({"source_id": ["zz"], "ra": [10.0], "dec": [-80.0]})
    pq.write_table(pa.concat_tables([sources.take(pa.array(range(len(sources)))[::-1]), outside]), table)
    context, plan, rows = plan_run(replace(run, catalog=str(table)), count_here)
    assert rows is not None and len(rows) == plan.n_sources == sky.n_sources + 1 and plan.without_tile == 1
    pairs = [
        (name is None, name, source)
        for name, source in zip(*(rows[c].to_pylist() for c in ("coadd_id", "source_id")), strict=True)
    ]
    assert pairs == sorted(pairs, key=lambda pair: (pair[0], pair[1] or "", pair[2]))
    assert context.catalog == str(context.folder.sources) and context.region is None
    assert sorted(tile.coadd_id for tile in plan.tiles) == sorted([*sky.coadd_ids, NO_TILE])
    with pytest.raises(CatalogError, match="table.parquet: no source in the region .*; nothing to classify"):
        plan_run(replace(run, catalog=str(table), region=Cone(100.0, 50.0, "1arcmin")), count_here)
    assert not Path(run.out).exists()


def test_a_table_without_the_photometry_of_a_model_is_not_planned(run: RunConfig, sky: Any, tmp_path: Path) -> None:
    model = make_bundle(tmp_path / "fusion", **FUSION).path
    table = tmp_path / "table.parquet"
    pq.write_table(pq.read_table(sky.catalog, columns=["source_id", "ra", "dec"]), table)
    with pytest.raises(CatalogError, match="has no value in w1mpro, w2mpro, w3mpro: .* needs the photometry"):
        plan_run(replace(run, catalog=str(table), model=str(model)), count_here)


def test_missing_partitions_are_listed_up_to_five(
    context: RunContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "refuse_copies", lambda sources, digests: None)
    empty = {"nbytes": pa.array([10]), "footer": pa.array(["x"])}
    counts = pa.table({"coadd_id": ["a"], "partition": [0], "n": [3], **empty})
    asked: list[list[int]] = []

    def count(context: RunContext, partitions: Iterable[int]) -> pa.Table:
        asked.append(list(partitions))
        return counts

    def sources(missing: list[int], n: int = 3) -> Any:
        return SimpleNamespace(location="survey", partitions=["p"] * n, missing_pixels=lambda: missing, region=None)

    with caplog.at_level(logging.WARNING, "skyclass"):
        assert plan_partitions(context, sources([]), count).n_sources == 3
        assert not caplog.messages and asked == [[0, 1, 2]]
        plan_partitions(context, sources([7]), count)
        plan_partitions(context, sources([1, 2, 3, 4, 5]), count)
        plan_partitions(context, sources([1, 2, 3, 4, 5, 6]), count)
    what = "survey lacks {} that the region touches: healpix_k5 = {}"
    assert caplog.messages == [
        what.format("1 partition", "7"),
        what.format("5 partitions", "1, 2, 3, 4, 5"),
        what.format("6 partitions", "1, 2, 3, 4, 5, ..."),
    ]
    with pytest.raises(CatalogError, match="survey: no partition of it touches the catalogue"):
        plan_partitions(context, sources([], n=0), count)


# --- the run folder ---------------------------------------------------------------------------------


def test_a_run_is_opened_with_its_identity(run: RunConfig, context: RunContext) -> None:
    plan = Plan((TilePlan("a", 10, (0,)), TilePlan(NO_TILE, 2, (0,))), "d", "c")
    opened = open_run(run, context, plan, None)
    recorded = read_run(context.folder)
    assert opened == replace(context, run_id=recorded["run_id"]) and not context.folder.sources.exists()
    assert recorded["info"]["n_sources"] == 12 and recorded["info"]["n_tiles"] == 1
    assert recorded["info"]["config"] == run.to_dict() and recorded["info"]["label"] == "random weights, for tests"
    assert recorded["info"]["model"]["id"] == context.bundle.model_id
    assert recorded["fingerprint"]["precision"] == "fp32" and recorded["fingerprint"]["catalog"] == "c"
    with pytest.raises(RunMismatch, match="precision: fp32 there, fp32, compiled now"):
        open_run(run, replace(context, compile_on=("cpu",)), plan, None)


def test_the_rows_of_a_table_are_kept_in_the_run_folder(run: RunConfig, context: RunContext) -> None:
    table = pa.table({"source_id": ["a", "b"], "coadd_id": ["t", None]})
    context.folder.sources.mkdir(parents=True)
    unfinished = context.folder.sources / f".{'0' * 32}.part0.parquet"
    unfinished.write_bytes(b"half")
    open_run(run, context, FEW, table)
    assert [path.name for path in context.folder.sources.iterdir()] == ["part0.parquet"]
    assert pq.read_table(context.folder.sources / "part0.parquet").equals(table)


def test_quarantined_tiles_are_withdrawn_on_request(run: RunConfig, context: RunContext) -> None:
    folder = context.folder
    folder.make()
    names = [TILES[0][0], TILES[1][0]]
    for name, fault in zip(names, (None, "zeroed"), strict=True):
        journal_commit(folder, commit_tile(folder, name, class_rows(name, 5, 150, 1.5), fault))
    assert sorted(load_committed(run, context)) == sorted(names)
    assert list(load_committed(replace(run, retry_quarantined=True), context)) == names[:1]
    assert not folder.tile_path(names[1]).exists()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Comparison]:
    """What the comparison of the images of each tile says."""
    answers: dict[str, Comparison] = {}
    monkeypatch.setattr(prepare, "compare_files", lambda archive, bands, coadd_id, record: answers[coadd_id])
    return answers


def commit_with(images: dict[str, Any], i: int) -> Commit:
    return Commit(f"t{i}", f"tiles/t{i}.parquet", "0", 1, 1, 0, {}, {}, images=images)


RECORD: dict[str, Any] = {"a.fits": {"size_bytes": 1}}


@pytest.mark.parametrize(("n", "more"), [(1, []), (5, []), (7, ["and 2 more"])])
def test_tiles_made_from_other_images_are_listed_up_to_five(
    run: RunConfig, context: RunContext, compared: dict[str, Comparison], n: int, more: list[str]
) -> None:
    commits = {f"t{i}": commit_with(RECORD, i) for i in range(n)} | {"t9": commit_with({}, 9)}
    compared |= {f"t{i}": Comparison(f"t{i}", f"w1 differs {i}", RECORD) for i in range(n)}
    with pytest.raises(
        RunMismatch, match=f"the images at .* are not those of {counted(n, 'committed tile')}; put"
    ) as caught:
        check_images(run, context, commits)
    assert list(caught.value.details) == [f"tile t{i}: w1 differs {i}" for i in range(min(n, 5))] + more


def test_the_record_of_copied_images_is_journalled(
    run: RunConfig, context: RunContext, compared: dict[str, Comparison]
) -> None:
    context.folder.make()
    copied = {"a.fits": {"size_bytes": 1, "inode": 7}}
    compared |= {"t0": Comparison("t0", "", RECORD), "t1": Comparison("t1", "", copied)}
    check_images(run, context, {f"t{i}": commit_with(RECORD, i) for i in range(2)})
    (event,) = read_journal(context.folder)
    assert (event["event"], event["coadd_id"], event["images"]) == ("commit", "t1", copied)


def test_loaded_commits_carry_no_records_of_images(run: RunConfig, context: RunContext, compared: Any) -> None:
    name = TILES[0][0]
    record = {"a.fits": dict.fromkeys(("size_bytes", "mtime_ns", "inode", "tag", "data_offset", "header_sha256"), 1)}
    compared |= {name: Comparison(name, "", record)}
    context.folder.make()
    commit = commit_tile(context.folder, name, class_rows(name, 5, 150, 1.5), images=record)
    assert load_committed(run, context) == {name: replace(commit, images={})}
    assert committed(RunFolder(context.out))[name].images == record
