"""COUNT, CUT, INFER and COMMIT one by one: what each gets, gives and measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from skyclass.errors import InputChanged, TileFault
from skyclass.model.bundle import load_bundle
from skyclass.model.outliers import OutlierStatistics
from skyclass.run import stages
from skyclass.run.config import RunConfig
from skyclass.run.context import RunContext, strips_of, tiles_near
from skyclass.run.plan import Plan
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.stages import (
    PARTITION_COUNTS,
    classify_strip,
    classify_whole,
    commit_fault,
    commit_strips,
    count_partition,
    cut_strip,
    infer_strip,
    kept_changing,
    next_attempt,
    open_tile,
    opened_tile,
    without_faults,
)
from skyclass.run.strips import CutStrip, SourceValues, StripResult, Timing, unknown
from skyclass.run.tile_sources import planned_sources, read_unchanged, tile_sources
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import DEFAULT_CLASSES, NO_TILE, Flag, Strip, Tile, TilePlan

NAME = "1500p015_ac51"
PLAN = TilePlan(NAME, 4, (0,))
STRIP = Strip(PLAN, 0, 4)
IDS = pa.array(["a", "b", "c", "d"])


@pytest.fixture
def planned(run: RunConfig) -> tuple[RunContext, Plan]:
    context, plan, _ = plan_run(run, count_here)
    context.folder.make()
    return replace(context, run_id="r-1"), plan


class Clock:
    """A clock that is one second later at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


class Doubles:
    """A classifier whose probabilities of galaxies are the first pixels of the images."""

    model_id = "doubles"

    def predict(self, images: np.ndarray, photometry: np.ndarray | None = None) -> np.ndarray:
        self.photometry = photometry
        first = images[:, 0, 0, 0].astype(np.float32)
        return np.stack([first, 1 - first, np.zeros_like(first)], 1)

    def predict_and_embed(
        self, images: np.ndarray, photometry: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(images, photometry), images[:, 0, 0, :1].astype(np.float32)


def worker(classifier: Any, outliers: OutlierStatistics | None = None) -> Any:
    bundle = SimpleNamespace(classes=DEFAULT_CLASSES, outliers=outliers)
    return SimpleNamespace(classifier=classifier, bundle=bundle)


def cut_of(flags: list[int], **changes: Any) -> CutStrip:
    """Return four sources whose images begin with 0.1, 0.2, 0.3 and 0.4."""
    images = np.ones((4, 3, 2, 2), np.float16) * np.array([0.1, 0.2, 0.3, 0.4], np.float16)[:, None, None, None]
    values = SourceValues(np.array(flags, np.int32), np.ones(4, np.float32), unknown(4), unknown(4))
    cut = CutStrip(STRIP, IDS, images, None, values, None, None, (Timing("read", 1.0), Timing("cut", 2.0)))
    return replace(cut, **changes)


# --- strips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_sources", "strip_sources", "edges"),
    [
        (10, 4, [0, 3, 7, 10]),
        (8, 4, [0, 4, 8]),
        (9, 4, [0, 3, 6, 9]),
        (4, 4, [0, 4]),
        (1, 4, [0, 1]),
        (2, 1, [0, 1, 2]),
    ],
)
def test_strips_have_equal_sizes_up_to_the_limit(n_sources: int, strip_sources: int, edges: list[int]) -> None:
    tile = TilePlan(NAME, n_sources, (0,))
    assert strips_of(tile, strip_sources) == [Strip(tile, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def test_the_size_of_a_strip_is_that_of_its_images() -> None:
    with_images, without = cut_of([0] * 4), cut_of([0] * 4, images=None)
    assert with_images.__sizeof__() - without.__sizeof__() == 4 * 3 * 2 * 2 * 2
    assert without.__sizeof__() == object.__sizeof__(without)


def test_the_values_of_sources_without_an_image() -> None:
    flags, valid_frac, *unknown_values = SourceValues.without_image(3, Flag.TILE_BAD | Flag.NO_IMAGE)
    assert flags.tolist() == [160] * 3 and valid_frac.tolist() == [0.0] * 3
    assert (flags.dtype, valid_frac.dtype) == (np.int32, np.float32)
    assert np.isnan(unknown_values).all() and np.shape(unknown_values) == (2, 3)


# --- COUNT ------------------------------------------------------------------------------------------


def test_the_counts_of_partitions_have_their_digests(planned: tuple[RunContext, Plan], sky: Any) -> None:
    context, plan = planned
    tables = [count_partition(context, i) for i in range(len(context.sources.partitions))]
    assert sum(pc.sum(table["n"]).as_py() for table in tables) == sky.n_sources == plan.n_sources
    for i, table in enumerate(tables):
        assert table.schema == PARTITION_COUNTS and set(table["partition"].to_pylist()) == {i}
        assert set(table["nbytes"].to_pylist()) == {Path(context.sources.partitions[i].path).stat().st_size}
        (footer,) = set(table["footer"].to_pylist())
        assert plan.partitions[i].footer == footer


def test_a_prepared_table_needs_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Prepared:
        sources = SimpleNamespace(is_prepared=True)

    context: Any = Prepared()
    assert tiles_near(context, 0) == ()


def test_a_context_opens_its_inputs_once_and_is_compiled_if_it_names_a_device(planned: tuple[RunContext, Plan]) -> None:
    context, _ = planned
    assert not context.is_compiled and replace(context, compile_on=("cuda",)).is_compiled
    assert context.folder.path == Path(context.out) and context.bundle == load_bundle(context.model)
    assert not context.trust_code and context.bundle is context.bundle and context.archive is context.archive


# --- the sources of a tile --------------------------------------------------------------------------


def test_the_sources_of_a_tile_come_by_pixel_row_or_by_id(planned: tuple[RunContext, Plan]) -> None:
    context, plan = planned
    tile = plan.tiles[0]
    by_id = tile_sources(context, tile)
    ids = by_id["source_id"].to_pylist()
    assert ids == sorted(ids) and len(ids) == tile.n_sources and set(by_id["coadd_id"].to_pylist()) == {tile.coadd_id}
    opened = open_tile(context, tile)
    by_row = tile_sources(context, tile, opened)
    _, y = tile_pixels(opened, by_row["ra"].to_numpy(), by_row["dec"].to_numpy())
    assert (np.diff(y) >= 0).all() and sorted(by_row["source_id"].to_pylist()) == ids
    assert planned_sources(context, replace(tile, keys=())).equals(by_id)


def test_a_partition_that_is_not_the_planned_one_is_refused(planned: tuple[RunContext, Plan]) -> None:
    context, plan = planned
    n, (key, *_) = len(context.sources.partitions), plan.tiles[0].keys
    i = plan.tiles[0].partitions[0]
    assert len(read_unchanged(context, i, key, plan.tiles[0].coadd_id)) > 0
    with pytest.raises(InputChanged):
        read_unchanged(context, i, "another", plan.tiles[0].coadd_id)
    with pytest.raises(InputChanged, match=f"has {n} partitions, fewer than when the run was planned: restore them"):
        read_unchanged(context, n, "", plan.tiles[0].coadd_id)


# --- CUT --------------------------------------------------------------------------------------------


def test_strips_of_a_tile_are_the_parts_of_the_whole(planned: tuple[RunContext, Plan]) -> None:
    context, plan = planned
    tile = plan.tiles[0]
    whole = cut_strip(context, Strip(tile, 0, tile.n_sources))
    parts = [cut_strip(context, strip) for strip in strips_of(tile, 100)]
    assert len(parts) == -(-tile.n_sources // 100) > 1 and whole.fault is None and whole.photometry is None
    assert whole.images is not None and whole.images.shape == (tile.n_sources, 3, 37, 37)
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    for i, values in enumerate(whole.values):
        np.testing.assert_array_equal(np.concatenate([part.values[i] for part in parts]), values)
    assert pa.concat_arrays([part.source_id for part in parts]).equals(whole.source_id)
    opened = open_tile(context, tile)
    assert whole.tile == opened and whole.source_id.equals(
        tile_sources(context, tile, opened)["source_id"].combine_chunks()
    )


def test_the_timings_of_a_strip(planned: tuple[RunContext, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """The five looks at the clock: begin, opened, before and after reading, end."""
    context, plan = planned
    monkeypatch.setattr(stages, "time", Clock())
    n = plan.tiles[0].n_sources
    read, cut = cut_strip(context, Strip(plan.tiles[0], 0, n)).timings
    assert (read.stage, read.seconds, read.bytes_of_tile) == ("read", 2.0, 3 * 4 * 700 * 700)
    assert 0 < read.bytes_read <= read.bytes_of_tile and read.bytes_read % (3 * 4 * 700) == 0
    assert cut == Timing("cut", 2.0)
    later, _ = cut_strip(context, Strip(plan.tiles[0], 100, n)).timings
    assert later.bytes_of_tile == 0 and later.seconds == 2.0


def test_the_first_strip_of_a_tile_verifies_its_files(
    planned: tuple[RunContext, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, plan = planned
    verified = []

    def opening(context: RunContext, tile: TilePlan, verify: bool = False) -> Tile:
        verified.append(verify)
        return open_tile(context, tile)

    monkeypatch.setattr(stages, "open_tile", opening)
    for strip in (Strip(plan.tiles[0], 0, 10), Strip(plan.tiles[0], 10, 20)):
        cut_strip(context, strip)
    assert verified == [True, False]


def test_a_repeated_attempt_verifies_the_files_of_each_strip() -> None:
    class Archive:
        def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool) -> tuple[Any, ...]:
            return coadd_id, bands, verify

    context: Any = SimpleNamespace(archive=Archive(), bundle=SimpleNamespace(bands=("w1",)))
    assert open_tile(context, PLAN) == (NAME, ("w1",), False)
    assert open_tile(context, PLAN, verify=True) == (NAME, ("w1",), True)
    assert open_tile(context, next_attempt(PLAN)) == (NAME, ("w1",), True)
    with pytest.raises(TileFault) as caught:
        open_tile(context, TilePlan(NO_TILE, 3, (0,)))
    assert caught.value.kind == "missing_tile"


@pytest.mark.parametrize(
    ("kind", "name", "flags"),
    [
        ("bad", NAME, Flag.TILE_BAD | Flag.NO_IMAGE),
        ("missing_band", NAME, Flag.BAND_MISSING | Flag.NO_IMAGE),
        ("missing_tile", NAME, Flag.TILE_MISSING | Flag.NO_IMAGE),
        ("missing_tile", NO_TILE, Flag.OFF_TILE | Flag.TILE_MISSING | Flag.NO_IMAGE),
    ],
)
def test_a_tile_that_cannot_be_opened_flags_its_sources(
    monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, flags: Flag
) -> None:
    fault = TileFault(name, "no", kind=kind)

    def opening(context: RunContext, tile: TilePlan, verify: bool = False) -> Tile:
        raise fault

    monkeypatch.setattr(stages, "open_tile", opening)
    monkeypatch.setattr(stages, "tile_sources", lambda context, tile: pa.table({"source_id": IDS}))
    monkeypatch.setattr(stages, "time", Clock())
    cut = cut_strip(worker(None), Strip(TilePlan(name, 4, (0,)), 1, 3))
    assert cut.images is cut.photometry is cut.tile is None and cut.source_id.to_pylist() == ["b", "c"]
    assert cut.values.flags.tolist() == [int(flags)] * 2 and cut.values.valid_frac.tolist() == [0, 0]
    assert cut.timings == (Timing("read", 1.0),) and cut.fault is (None if name == NO_TILE else fault)


# --- INFER ------------------------------------------------------------------------------------------


def test_only_sources_with_an_image_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "time", Clock())
    classifier = Doubles()
    photometry = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    flags = [0, int(Flag.EDGE), int(Flag.NO_IMAGE | Flag.OFF_TILE), int(Flag.NAN_PIXELS)]
    result = infer_strip(worker(classifier), cut_of(flags, photometry=photometry))
    np.testing.assert_allclose(result.probabilities[[0, 1, 3], 0], [0.1, 0.2, 0.4], atol=1e-3)
    assert np.isnan(result.probabilities[2]).all() and result.values.flags.tolist() == flags
    assert classifier.photometry is not None and classifier.photometry.ravel().tolist() == [1, 2, 4]
    assert result.timings == (Timing("read", 1.0), Timing("cut", 2.0), Timing("infer", 1.0))
    assert result.source_id is IDS and result.strip is STRIP and result.fault is None


def test_a_whole_strip_of_images_reaches_the_network_without_photometry() -> None:
    classifier = Doubles()
    result = infer_strip(worker(classifier), cut_of([0] * 4))
    np.testing.assert_allclose(result.probabilities[:, 0], [0.1, 0.2, 0.3, 0.4], atol=1e-3)
    assert classifier.photometry is None


def test_scores_of_outliers_are_those_of_the_w1_of_each_source() -> None:
    statistics = OutlierStatistics(
        (10.0, 15.0, 20.0), (((0.1,),), ((0.0,),)), ((1.0,),), ((0.1,), (0.2,)), ((9,), (9,))
    )
    flags, w1 = [0, int(Flag.NO_IMAGE), 0, 0], np.array([12.0, 12.0, 12.0, 17.0], np.float32)
    result = infer_strip(worker(Doubles(), statistics), cut_of(flags, w1=w1))
    np.testing.assert_allclose(result.values.outlier, [0, np.nan, 2, 2], atol=1e-2)
    assert np.isnan(infer_strip(worker(Doubles()), cut_of(flags, w1=w1)).values.outlier).all()


def test_w1_is_that_of_the_catalogue_or_else_of_the_aperture() -> None:
    sources = pa.table({"w1mpro": pa.array([14.0, None, 15.0, None], pa.float32())})
    values = SourceValues.without_image(4, 0)._replace(w1_aperture=np.array([9, 16, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(stages.known_w1(sources, values), np.array([14, 16, 15, np.nan], np.float32))


@pytest.mark.parametrize("changes", [{"images": None}, {}], ids=["no tile", "no image"])
def test_without_images_nothing_is_inferred(changes: dict[str, Any]) -> None:
    flags = [int(Flag.NO_IMAGE)] * 4
    result = infer_strip(worker(None), cut_of(flags, **changes))
    assert np.isnan(result.probabilities).all() and result.probabilities.shape == (4, 3)
    assert result.values.flags.tolist() == flags


def test_probabilities_that_are_none_are_a_fault_of_the_model() -> None:
    probabilities = np.array([[0.2, 0.3, 0.5], [0.5, 0.5, 0.5], [np.nan] * 3, [np.nan] * 3], np.float32)
    flags = np.array([1, 2, 4, int(Flag.NO_IMAGE)], np.int32)
    has_image = np.array([True, True, True, False])
    corrected, changed = without_faults(probabilities, flags, has_image)
    np.testing.assert_array_equal(corrected[0], probabilities[0])
    assert np.isnan(corrected[1:]).all() and corrected.dtype == np.float32
    assert changed.tolist() == [1, 2 | Flag.MODEL_FAULT, 4 | Flag.MODEL_FAULT, int(Flag.NO_IMAGE)]
    same, unchanged = without_faults(probabilities[[0, 3]], flags[[0, 3]], has_image[[0, 3]])
    assert unchanged.tolist() == [1, 128] and np.isnan(same[1]).all()


# --- COMMIT -----------------------------------------------------------------------------------------


def result_of(strip: Strip = STRIP, tile: Any = None, fault: TileFault | None = None) -> StripResult:
    probabilities = np.full((4, 3), np.nan, np.float32)
    return StripResult(strip, IDS, probabilities, SourceValues.without_image(4, 0), fault, tile, ())


def test_all_strips_must_be_cut_from_the_same_files() -> None:
    tile = Tile(NAME, ("w1",), (6, 6), (0.0, 0.0), (4.0, 4.0), (-0.0004, 0.0004), (20.5,))
    assert opened_tile([result_of(), result_of()]) is None
    assert opened_tile([result_of(tile=tile), result_of(tile=tile)]) is tile
    assert opened_tile([result_of(fault=TileFault(NAME, "truncated", kind="bad")), result_of(tile=tile)]) is tile
    with pytest.raises(TileFault) as caught:
        opened_tile([result_of(tile=tile), result_of(tile=replace(tile, shape=(7, 6)))])
    assert caught.value.kind == "changed"
    changed = TileFault(NAME, "was replaced", kind="changed")
    with pytest.raises(TileFault, match="was replaced"):
        opened_tile([result_of(tile=tile), result_of(fault=changed)])


@pytest.mark.integration
def test_a_tile_is_committed_in_strips_or_whole_with_the_same_rows(
    planned: tuple[RunContext, Plan], tmp_path: Path
) -> None:
    context, plan = planned
    tile = plan.tiles[1]
    commit, timings = classify_whole(context, tile, 100)
    assert (commit.coadd_id, commit.rows, commit.fault) == (tile.coadd_id, tile.n_sources, None)
    n_strips = -(-tile.n_sources // 100)
    assert [timing.stage for timing in timings] == ["read", "cut", "infer"] * n_strips + ["commit"]
    assert all(timing.seconds >= 0 for timing in timings) and len(commit.images) == 3
    other = replace(context, out=str(tmp_path / "other"))
    other.folder.make()
    again, _ = commit_strips(other, tile, [classify_strip(other, Strip(tile, 0, tile.n_sources))])
    assert again == commit
    assert commit_fault(other, tile, "a worker died") == (commit, ()), "a worker had committed it"


def test_a_tile_that_cannot_be_classified_keeps_its_rows(
    planned: tuple[RunContext, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, plan = planned
    monkeypatch.setattr(stages, "time", Clock())
    tile = plan.tiles[0]
    commit, timings = commit_fault(context, tile, "two workers died")
    assert commit.rows == commit.n_flagged == commit.classes["unclassified"] == tile.n_sources
    assert str(commit.fault).endswith("two workers died") and commit.images == {}
    assert commit.flags == {"TILE_BAD": tile.n_sources, "NO_IMAGE": tile.n_sources}
    assert timings == (Timing("cut", 0.0), Timing("infer", 1.0), Timing("commit", 1.0))


def test_attempts_at_a_tile_are_counted() -> None:
    assert next_attempt(next_attempt(PLAN)) == replace(PLAN, n_file_changes=2)
    assert kept_changing(TileFault(NAME, "w1 was replaced", kind="changed")).endswith("w1 was replaced (2 attempts)")
