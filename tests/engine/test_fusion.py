"""Photometry in the whole pipeline: joined by source, the same rows on every engine, refused at once when absent."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import skyclass
from skyclass import version
from skyclass.engine import engine
from skyclass.engine.cluster import connect
from skyclass.errors import CatalogError
from skyclass.model.classifier import load_classifier
from skyclass.model.photometry import features
from skyclass.run import config, pipeline, stages, strips
from skyclass.run.context import strips_of
from skyclass.run.prepare import count_here, plan_run
from skyclass.run.progress import no_progress
from skyclass.types import DEFAULT_CLASSES, FAULT_FLAGS
from tests.support.bundles import COLOUR, FUSION, PHOTOMETRY, make_bundle
from tests.support.engines import split_client
from tests.support.runs import rows_of

PHOTOMETRY_COLUMNS = ("w1mpro", "w2mpro", "w3mpro", "w1snr", "w2snr", "w3snr")

pytestmark = pytest.mark.integration

PROBABILITIES = [f"p_{name}" for name in DEFAULT_CLASSES]


@pytest.fixture(scope="module")
def fusion(tmp_path_factory) -> Path:
    """A bundle of images and photometry with random weights."""
    return make_bundle(tmp_path_factory.mktemp("models") / "fusion", **FUSION).path


@pytest.fixture
def run(run, fusion):
    return dataclasses.replace(run, model=str(fusion))


@pytest.fixture(scope="module")
def plain(sky, fusion, tmp_path_factory):
    """The rows of the plain pipeline."""
    out = tmp_path_factory.mktemp("plain") / "classes"
    run = config.RunConfig(
        str(sky.catalog), str(sky.images), str(out), str(fusion), None, "fp32", "cpu", strip_sources=128
    )
    assert pipeline.classify(run).classified == sky.n_sources
    return rows_of(run)


def catalog_of(sky) -> pa.Table:
    """All sources as the catalogue's own files have them."""
    return pa.concat_tables([pq.read_table(p, partitioning=None) for p in sorted(Path(sky.catalog).rglob("*.parquet"))])


def by_id(table: pa.Table, names: list[str]) -> dict[str, list]:
    return dict(zip(table["source_id"].to_pylist(), table.select(names).to_pandas().to_numpy().tolist(), strict=True))


def with_photometry(sky, folder: Path, change) -> Path:
    """The catalogue's files once more, each with its table changed."""
    for path in Path(sky.catalog).rglob("*.parquet"):
        target = folder / path.relative_to(sky.catalog)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(change(pq.read_table(path, partitioning=None)), target)
    return folder


def test_fused_on_workers_gives_the_rows_of_the_pipeline(plain, run):
    with connect("local", workers=1) as client:
        assert not engine.placement_of(client).split
        engine.classify(dataclasses.replace(run, strip_sources=57), client, no_progress)
    assert rows_of(run).equals(plain)


@pytest.mark.slow
def test_split_over_cpu_and_gpu_workers_gives_the_rows_of_the_pipeline(plain, run):
    """Here the photometry crosses the wire beside the composites."""
    with split_client() as client:
        assert engine.placement_of(client).split
        engine.classify(run, client, no_progress)
    assert rows_of(run).equals(plain)


def test_each_strip_carries_the_features_of_its_own_sources(run, sky):
    context, plan, _ = plan_run(run, count_here)
    catalog = catalog_of(sky)
    expected = dict(zip(catalog["source_id"].to_pylist(), features(catalog, PHOTOMETRY.features), strict=True))
    seen = 0
    for strip in [s for tile in plan.tiles for s in strips_of(tile, 57)]:
        cut = stages.cut_strip(context, strip)
        assert cut.photometry.dtype == np.float32
        np.testing.assert_array_equal(cut.photometry, [expected[i] for i in cut.source_id.to_pylist()])
        seen += len(cut.photometry)
    assert seen == sky.n_sources
    fault = stages.faulty_strip(context, strip, skyclass.errors.TileFault("t", "gone"), strips.Timing("cut", 0.0))
    assert fault.photometry is None and (fault.values.flags == FAULT_FLAGS["bad"]).all()


def test_probabilities_follow_the_photometry_of_the_source(run, sky, tmp_path):
    """A network of photometry alone: each published row must be what the network says of that source's magnitudes."""
    bundle = make_bundle(tmp_path / "colour", **COLOUR)
    pipeline.classify(dataclasses.replace(run, model=str(bundle.path)))
    catalog = catalog_of(sky)
    no_pixels = np.empty((len(catalog), 0, 0, 0), np.float16)
    p = load_classifier(bundle, "cpu", "fp32").predict(no_pixels, features(catalog, PHOTOMETRY.features))
    expected = dict(zip(catalog["source_id"].to_pylist(), p.tolist(), strict=True))
    given = by_id(rows_of(run), PROBABILITIES)
    assert given == expected
    assert len({tuple(v) for v in given.values()}) > 0.9 * sky.n_sources


def test_shuffled_photometry_gives_other_probabilities(plain, run, sky, tmp_path):
    def shuffle(table: pa.Table) -> pa.Table:
        order = pa.array(np.random.default_rng(1).permutation(len(table)))
        for name in PHOTOMETRY_COLUMNS:
            table = table.set_column(table.column_names.index(name), table.field(name), table[name].take(order))
        return table

    pipeline.classify(dataclasses.replace(run, catalog=str(with_photometry(sky, tmp_path / "shuffled", shuffle))))
    before, after = (np.array([by_id(t, PROBABILITIES)[i] for i in plain["source_id"].to_pylist()])
                     for t in (plain, rows_of(run)))  # fmt: skip
    assert (np.abs(before - after).max(axis=1) > 1e-4).mean() > 0.9


def test_sources_without_photometry_have_a_class_all_the_same(plain, run, sky, tmp_path):
    def blank(table: pa.Table) -> pa.Table:
        odd = pa.array(np.arange(len(table)) % 2 == 1)
        for name in PHOTOMETRY_COLUMNS:
            column = pc.if_else(odd, pa.scalar(None, table[name].type), table[name])
            table = table.set_column(table.column_names.index(name), table.field(name), column)
        return table

    report = pipeline.classify(dataclasses.replace(run, catalog=str(with_photometry(sky, tmp_path / "blank", blank))))
    rows = rows_of(run)
    assert report.without_class == 0 and rows["class"].null_count == 0
    known = rows["w1mpro"].is_valid()
    assert 0.4 < pc.mean(known.cast(pa.float64())).as_py() < 0.6
    old, new = by_id(plain, PROBABILITIES), by_id(rows.filter(known), PROBABILITIES)
    assert new == {i: old[i] for i in new}, "the unknown photometry of a neighbour changes nothing"


def test_a_catalogue_without_the_columns_is_refused_before_any_work(run, sky, tmp_path):
    bare = with_photometry(sky, tmp_path / "bare", lambda t: t.drop_columns(["w2mpro", "w3mpro"]))
    refused = dataclasses.replace(run, catalog=str(bare))
    with pytest.raises(
        CatalogError, match="bare has no columns w2mpro, w3mpro: tiny-.* needs .*w1mpro, w2mpro, w3mpro; .*images only"
    ):
        pipeline.classify(refused)
    assert not Path(run.out).exists()
    pipeline.classify(dataclasses.replace(refused, model="iicnet-mock"))  # images alone need no magnitudes


def test_a_table_of_positions_needs_some_of_the_photometry(run, sky, tmp_path, caplog):
    rows = catalog_of(sky).slice(0, 20)
    own = dataclasses.replace(run, catalog=str(tmp_path / "own.csv"))
    rows.select(["source_id", "ra", "dec"]).to_pandas().to_csv(own.catalog, index=False)
    with pytest.raises(CatalogError, match="own.csv has no value in w1mpro, w2mpro, w3mpro: .*images only"):
        pipeline.classify(own)
    assert not Path(run.out).exists()
    rows.select(["source_id", "ra", "dec", "w1mpro", "w2mpro"]).to_pandas().to_csv(own.catalog, index=False)
    with caplog.at_level(logging.WARNING):
        assert pipeline.classify(own).classified == 20
    assert "no value in w3mpro" in caplog.text and "training mean" in caplog.text


def test_the_fingerprint_covers_the_photometry_and_every_network():
    package = Path(skyclass.__file__).parent
    files = (path.relative_to(package.parent) for path in (package / "networks").rglob("[a-z]*.py"))
    networks = {".".join(file.with_suffix("").parts) for file in files}
    assert {"skyclass.networks.iicnet", "skyclass.networks.baselines.vgg16"} < networks
    assert networks | {"skyclass.model.photometry", "skyclass.model.bundle", "skyclass.model.classifier"} <= set(
        version.row_sources()
    )
