"""Models with two and with five classes: from the label table through training and a run to queries and reports."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse
from click.testing import CliRunner
from distributed import Client

from skyclass import open_catalog, verify
from skyclass.catalog.manifest import read_manifest
from skyclass.cli.main import cli
from skyclass.errors import ConfigError, SkyclassError
from skyclass.model.bundle import load_bundle, load_weights, save_bundle
from skyclass.model.priors import BinnedCalibration, PriorTable
from skyclass.training.evaluation.calibration import fields_of
from skyclass.types import class_problems

pytestmark = pytest.mark.integration

NAMES = {
    "two": ("quasar", "other"),
    "five": ("star", "galaxy", "quasar", "t_dwarf", "young_stellar_object"),
}
"""Classes that a label table below has; the order is that of the configuration."""


def skyclass(*words: object) -> str:
    """Run the command line in this process and return what it printed."""
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False, catch_exceptions=False)
    assert not result.return_value, result.output
    return result.output


def relabelled(truth: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the labels of a simulated sky under other names, in the spelling of catalogues."""
    number = np.arange(len(truth))
    name = truth["class"].to_numpy(object)
    if kind == "two":
        name = np.where(name == "quasar", "QSO", "Other")
    else:
        name = np.where((name == "star") & (number % 3 == 0), "T dwarf", name)
        name = np.where((name == "galaxy") & (number % 3 == 0), "Young-stellar object", name)
        name = np.where(name == "quasar", " QSO ", name)
    return truth.assign(**{"class": name})


@pytest.fixture(scope="module", params=list(NAMES))
def made(request, sky, tmp_path_factory) -> SimpleNamespace:
    """A dataset, a model and a class catalogue with other classes, and what the commands printed."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    labels = folder / "labels.parquet"
    relabelled(pd.read_parquet(sky.truth), kind).to_parquet(labels)
    dataset = skyclass(
        "dataset", "--labels", labels, "--catalog", sky.catalog, "--images", sky.images, "--out", folder / "data",
        "--bands", "w1,w2,w3", "--classes", ",".join(NAMES[kind]), "--simulated", "--split", "6,2,2",
    )  # fmt: skip
    training = skyclass(
        "train", "--dataset", folder / "data", "--out", folder / "model", "--name", kind, "--recipe", "modern",
        "--input-px", 32, "--epochs", 1, "--batch-size", 32, "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    run = skyclass(
        "classify", "--catalog", sky.catalog, "--images", sky.images, "--model", folder / "model",
        "--out", folder / "classes", "--precision", "fp32",
    )  # fmt: skip
    return SimpleNamespace(
        kind=kind, classes=NAMES[kind], folder=folder, dataset=dataset, training=training, run=run,
        catalog=folder / "classes" / "catalog",
    )  # fmt: skip


def test_every_class_is_counted_in_dataset_and_run(made) -> None:
    for name in made.classes:
        assert f"\n{name} " in made.dataset and f" {name}" in made.run
    bundle = load_bundle(made.folder / "model")
    assert bundle.classes == made.classes and len(bundle.bias) == len(made.classes)
    assert set(bundle.training["train_counts"]) == set(made.classes)


def test_the_catalogue_has_a_probability_for_each_class_in_the_order_of_the_model(made) -> None:
    assert verify(made.catalog).ok
    classes = open_catalog(made.catalog)
    rows = classes.to_pandas()
    columns = [name for name in rows.columns if name.startswith("p_")]
    assert columns == [f"p_{name}" for name in made.classes]
    known = rows.dropna(subset=["class"])
    p = known[columns].to_numpy(np.float64)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert known["class"].tolist() == [made.classes[k] for k in p.argmax(axis=1)]
    assert list(classes.class_counts()) == [*made.classes, "unclassified"]
    assert sum(classes.class_counts().values()) == len(rows)
    entropy = classes.to_arrow().schema.field("entropy").metadata[b"description"].decode()
    assert f"{np.log(len(made.classes)):.4f} (ln {len(made.classes)})" in entropy


def test_queries_know_the_classes_of_the_catalogue(made) -> None:
    classes, name = open_catalog(made.catalog), made.classes[-1]
    assert classes.where(f"class = '{name}'").count() == classes.class_counts()[name]
    assert classes.where(f"p_{name} >= 0").count() == classes.where("class IS NOT NULL").count()
    absent = "star" if made.kind == "two" else "nova"
    with pytest.raises(ConfigError, match=f"no source has class '{absent}': the classes are {', '.join(made.classes)}"):
        classes.where(f"class = '{absent}'")
    with pytest.raises(ConfigError, match=rf"did you mean p_{name}\?"):
        classes.where(f"p_{name}x > 0.5")
    path = made.folder / "some.csv"
    skyclass("query", made.catalog, "--columns", f"source_id,p_{name}", "-o", path, "--overwrite")
    assert list(pd.read_csv(path)) == ["source_id", f"p_{name}"]


def test_files_describe_the_classes(made) -> None:
    manifest = read_manifest(made.catalog)
    assert manifest.class_names == made.classes
    metadata = pq.read_metadata(made.catalog / manifest.files[0].path).metadata
    table = parse(io.BytesIO(metadata[b"IVOA.VOTable-Parquet.content"]), verify="exception").get_first_table()
    described = {field.name: field.description for field in table.fields}
    for name in made.classes:
        text = " ".join(described[f"p_{name}"].split())
        assert text.startswith(f"Probability of {name} for the class shares in the training of the model, not for")
        assert f"p_{name}" in (made.catalog / "README.txt").read_text()
    assert "p_star" in described or made.kind == "two"


def test_a_model_is_evaluated_calibrated_and_reported(made) -> None:
    folder = made.folder
    skyclass(
        "evaluate", folder / "model", folder / "data", "-o", folder / "evaluation", "--calibrate", folder / "calibrated"
    )
    results = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert results["classes"] == list(made.classes) and results["colour_cuts"] is None
    model = results["models"][0]
    assert set(model["recall"]) == set(made.classes) and np.shape(model["confusion"]) == (len(made.classes),) * 2
    assert np.shape(model["intervals"]["accuracy"]) == (2,)
    assert set(model["intervals"]["recall"]) == set(made.classes)
    assert load_bundle(folder / "calibrated").classes == made.classes
    skyclass("report", folder / "evaluation")
    skyclass("report", made.catalog, "-o", folder / "report.html")
    page = (folder / "report.html").read_text()
    counts = open_catalog(made.catalog).class_counts()
    assert all(f">{name}</" in page for name, n in counts.items() if n) and page.count("data:image/png") == 4


def test_a_model_and_a_dataset_of_other_classes_do_not_fit(made, bundle: Path) -> None:
    with pytest.raises(SkyclassError, match="its classes are galaxy, quasar, star, those of the dataset"):
        skyclass("evaluate", bundle, made.folder / "data", "-o", made.folder / "no")
    with pytest.raises(SkyclassError, match="has the classes galaxy, quasar, star, the dataset has"):
        skyclass(
            "train", "--dataset", made.folder / "data", "--out", made.folder / "other", "--start-from", "iicnet-mock",
            "--device", "cpu", "--epochs", 1, "--input-px", 80,
        )  # fmt: skip


def test_names_that_no_column_can_have_are_refused(sky, tmp_path) -> None:
    with pytest.raises(SkyclassError, match="'T dwarf' is no name of a class"):
        skyclass(
            "dataset", "--labels", sky.truth, "--images", sky.images, "--out", tmp_path / "d",
            "--classes", "star,T dwarf",
        )  # fmt: skip
    assert class_problems(("star",)) == ["the number of classes is 1: give 2 to 64"]
    assert class_problems(("star", "total")) == ["total is reserved: choose another name"]
    assert class_problems(("star", "star_sky")) == ["star_sky is reserved: choose another name"]
    assert class_problems(("a", "b", "a")) == ["a is repeated"]


def test_a_preset_needs_its_classes(sky, tmp_path) -> None:
    with pytest.raises(SkyclassError, match="the preset paper needs the classes galaxy, star among `classes`"):
        skyclass(
            "dataset", "--labels", sky.truth, "--images", sky.images, "--out", tmp_path / "d", "--preset", "paper",
            "--classes", "quasar,other",
        )  # fmt: skip


def test_a_prior_is_published_changed_and_undone(made, sky) -> None:
    """A calibration by hand, because the small dataset has too few rows for a fit in bins of W1."""
    bundle, k = load_bundle(made.folder / "model"), len(made.classes)
    one, equal, cells = (1.0,) * k, (1 / k,) * k, ((((10,) * (5 * k),) * k,),)
    calibration = BinnedCalibration(
        made.classes, (5.0, 19.0), (0.0, 90.0), (one,), ((0.0,) * k,), (equal,), ((50 * k,) * k,), cells, ((0.2,) * k,)
    )
    save_bundle(made.folder / "w1", fields_of(bundle) | {"binned_calibration": calibration}, load_weights(bundle))
    shares = (0.7, *((0.3 / (k - 1),) * (k - 1)))
    prior = PriorTable(made.classes, (5.0, 19.0), (0.0, 90.0), ((shares,),), "by hand")
    (made.folder / "prior.json").write_text(json.dumps(prior.to_dict()))
    out = made.folder / "with-prior"
    printed = skyclass(
        "classify", "--catalog", sky.catalog, "--images", sky.images, "--model", made.folder / "w1", "--out", out,
        "--precision", "fp32", "--prior", made.folder / "prior.json", "--cluster", "none",
    )  # fmt: skip
    assert f"prior {prior.prior_id}: by hand" in printed
    rows = open_catalog(out).to_pandas().dropna(subset=["class", "w1mpro"])
    raw, adjusted = (rows[[f"p_{name}{end}" for name in made.classes]].to_numpy(float) for end in ("", "_sky"))
    expected = raw * shares / (raw * shares).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adjusted, expected, atol=1e-5)
    sets = [set(filter(None, text.split("|"))) for text in rows["set_90"]]
    assert sets == [{name for name, p in zip(made.classes, row, strict=True) if p >= 0.2} for row in raw]
    name = made.classes[0]
    n = open_catalog(out).where(f"p_{name}_sky > 0.5 AND class_sky = '{name}'").count()
    assert n == (adjusted[:, 0] > 0.5).sum()
    with pytest.raises(ConfigError, match="no source has class 'nova': the classes are"):
        open_catalog(out).where("class_sky = 'nova'")
    skyclass("report", out, "-o", made.folder / "prior.html")
    assert "Expected for the class shares" in (made.folder / "prior.html").read_text()
    assert "published" in skyclass("recalibrate", out, "--prior", "none")
    assert "class_sky" not in open_catalog(out).to_pandas() and verify(out).ok
    assert prior.prior_id in skyclass("recalibrate", out, "--undo") and verify(out).ok
    assert "class_sky" in open_catalog(out).to_pandas()
    assert prior.prior_id in skyclass("publish", out)


@pytest.mark.filterwarnings("ignore")
def test_lsdb_reads_the_probabilities_for_the_sky(made) -> None:
    lsdb = pytest.importorskip("lsdb")
    with Client(processes=False, n_workers=1, dashboard_address=None):
        rows = lsdb.open_catalog(made.folder / "with-prior" / "catalog").compute()
    expected = open_catalog(made.folder / "with-prior").to_pandas()
    column = f"p_{made.classes[-1]}_sky"
    joined = expected.set_index("source_id")[column].reindex(rows["source_id"])
    np.testing.assert_allclose(rows[column].to_numpy(float), joined.to_numpy(float))
