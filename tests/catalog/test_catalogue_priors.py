"""Class catalogues published with a prior, recalibrated, and restored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

import skyclass as sc
from skyclass.catalog.expected import expected_confusion
from skyclass.catalog.manifest import read_manifest
from skyclass.catalog.prior_files import prior_lines, read_prior
from skyclass.catalog.publish import CatalogRows, publish_catalog
from skyclass.catalog.sky_columns import UNSURE_BELOW, counts_of_rows, w1_mag
from skyclass.catalog.verify import verify_publication
from skyclass.errors import ConfigError, NotPublished, StoreError
from skyclass.model.priors import BinnedCalibration, PriorTable, confidence_counts, sky_probabilities
from skyclass.report import write_html
from skyclass.report.expectations import _cell_query, confusion_of, expectation_tables, expectations
from skyclass.run.finish import is_published, publish_run
from skyclass.sky.galactic import abs_galactic_latitude_deg
from skyclass.types import DEFAULT_CLASSES, PRIOR_FLAGS, Flag
from tests.support.class_rows import CLASS_SCHEMA, make_run

SKY = [f"p_{name}_sky" for name in DEFAULT_CLASSES]
TILES = (("1500p015_ac51", 3000, 150.0, 1.5), ("0000m015_ac51", 900, 0.0, -1.5))
"""At |b| of about 41 and 62 degrees."""
EXACT = tuple(np.full(3, 1 / 3).tolist())
CALIBRATION = BinnedCalibration(
    DEFAULT_CLASSES, (13.0, 15.0, 16.5), (0.0, 90.0), ((0.8,) * 3, (1.2, 1.0, 0.9)), ((0.0,) * 3, (0.2, -0.4, 0.2)),
    (EXACT, (0.4, 0.2, 0.4)), ((900,) * 3,) * 2, ((((60,) * 15,) * 3,),) * 2, ((0.2,) * 3,) * 2,
)  # fmt: skip
PRIOR = PriorTable(
    DEFAULT_CLASSES, (13.0, 15.0, 16.5), (0.0, 50.0, 90.0),
    (((0.2, 0.01, 0.79), (0.7, 0.05, 0.25)), ((0.5, 0.02, 0.48), None)), "by hand",
)  # fmt: skip


@pytest.fixture
def prior_file(tmp_path: Path) -> Path:
    path = tmp_path / "prior.json"
    path.write_text(json.dumps(PRIOR.to_dict()))
    return path


def rows_of(root: Path) -> pa.Table:
    manifest = read_manifest(root)
    return pa.concat_tables([pq.read_table(root / record.path) for record in manifest.files])


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_table_of_shares_adds_columns_and_changes_no_other(tmp_path: Path, prior_file: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder)
    raw = rows_of(folder.catalog.resolve())
    assert "skyclass recalibrate CATALOGUE --prior estimate" in (folder.catalog / "README.txt").read_text()
    assert is_published(folder) and not is_published(folder, str(prior_file))
    publish_run(folder, prior=str(prior_file))
    root = folder.catalog.resolve()
    rows, manifest = rows_of(root), read_manifest(root)
    assert is_published(folder, str(prior_file)) and not is_published(folder, "estimate")
    assert manifest.provenance["prior"] == {"key": PRIOR.prior_id, "prior_id": PRIOR.prior_id, "label": "by hand"}
    others = [name for name in CLASS_SCHEMA.names if name != "flags"]
    assert rows.select(others).equals(raw.select(others), check_metadata=False)
    assert ((rows["flags"].to_numpy() & ~int(PRIOR_FLAGS)) == raw["flags"].to_numpy()).all()
    p = np.stack([pc.fill_null(rows[f"p_{name}"], np.nan).to_numpy() for name in DEFAULT_CLASSES], axis=1)
    w1, b = rows["w1mpro"].to_numpy(), abs_galactic_latitude_deg(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    expected = sky_probabilities(p, w1, b, CALIBRATION, PRIOR)
    known = np.isfinite(expected[:, 0])
    found = np.stack([pc.fill_null(rows[name], np.nan).to_numpy() for name in SKY], axis=1)
    assert 0.1 < known.mean() < 0.9
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert rows["prior_id"].to_pylist() == [PRIOR.prior_id if one else None for one in known]
    classes = np.array(rows["class_sky"].to_pylist(), object)
    assert (classes[known] == np.array(DEFAULT_CLASSES)[expected[known].argmax(1)]).all() and set(classes[~known]) == {
        None
    }
    flags, has_class = rows["flags"].to_numpy(), np.isfinite(p[:, 0])
    assert ((flags & Flag.EXTRAPOLATED != 0) == (has_class & ~known)).all()
    assert ((flags & Flag.UNSURE != 0) == (np.nan_to_num(expected, nan=1).max(1) < UNSURE_BELOW)).all()
    assert verify_publication(root, len(raw)).problems == ()
    catalog = sc.open_catalog(folder.path)
    assert catalog.where("p_quasar_sky > 0.3").count() == int((expected[:, 1] > 0.3).sum())
    assert prior_lines(root) == [f"prior {PRIOR.prior_id}: by hand"]
    text = (root / "README.txt").read_text()
    assert f"they are for the class shares of {PRIOR.prior_id} (by hand)" in text and "p_quasar_sky" in text


def drawn(n: int, shares: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return exact probabilities (n, 3) for equal class shares, and labels (n,), of a sky with class shares."""
    means = np.array([[0.0, 0.0], [2.5, 0.4], [0.3, 2.6]])
    labels = rng.choice(3, n, p=shares)
    x = means[labels] + rng.normal(size=(n, 2))
    return softmax(-0.5 * ((x[:, None] - means) ** 2).sum(-1), axis=1), labels


def exact_calibration(rng: np.random.Generator) -> BinnedCalibration:
    p, labels = drawn(9000, np.full(3, 1 / 3), rng)
    reference = tuple(tuple(confidence_counts(p[labels == k]).tolist()) for k in range(3))
    return BinnedCalibration(
        DEFAULT_CLASSES, (13.0, 17.0), (30.0, 90.0), ((1.0,) * 3,), ((0.0,) * 3,), (EXACT,), ((3000,) * 3,),
        ((reference,),), ((0.2,) * 3,),
    )  # fmt: skip


def test_an_estimate_has_the_shares_of_the_sources(tmp_path: Path) -> None:
    """The sky has 5 % quasars."""
    rng, shares = np.random.default_rng(4), np.array([0.55, 0.05, 0.4])
    calibration = exact_calibration(rng)
    _, rows = make_run(tmp_path / "run", TILES)
    p, labels = drawn(len(rows), shares, rng)
    for k, name in enumerate(DEFAULT_CLASSES):
        field = CLASS_SCHEMA.field(f"p_{name}")
        rows = rows.set_column(rows.column_names.index(field.name), field, pa.array(p[:, k].astype(np.float32)))
    pq.write_table(rows, tmp_path / "rows.parquet")
    provenance = {"run_id": "r1", "info": {"model": {"classes": list(DEFAULT_CLASSES)}}}
    (tmp_path / "sky").mkdir()
    root = publish_catalog(
        CatalogRows(
            tmp_path / "sky", tmp_path, (tmp_path / "rows.parquet",), 10**6, len(rows), "digest", provenance,
            "2026-01-01", calibration, "estimate",
        )
    ).parent.resolve()  # fmt: skip
    bins = json.loads((root / "prior.json").read_text())["bins"]
    inside = (rows["w1mpro"].to_numpy() >= 13) & (rows["w1mpro"].to_numpy() <= 17)
    assert sum(one["n_sources"] for one in bins) == int(inside.sum())
    adjusted = [one for one in bins if not one["refusal"]]
    assert [one["abs_b_deg"] for one in adjusted] == [[30.0, 45.0], [60.0, 90.0]]
    for one in adjusted:
        np.testing.assert_allclose(one["shares"], shares, atol=0.04)
    found = rows_of(root)
    known = found.filter(pc.is_valid(found["p_quasar_sky"]))
    by_id = dict(zip(rows["source_id"].to_pylist(), labels.tolist(), strict=True))
    n_true = sum(by_id[name] == 1 for name in known["source_id"].to_pylist())
    assert abs(pc.sum(known["p_quasar_sky"]).as_py() - n_true) < max(0.15 * n_true, 2 * n_true**0.5)
    assert read_manifest(root).prior_key == "estimate"
    n_adjusted = sum(one["n_sources"] for one in adjusted)
    assert len(known) == n_adjusted
    assert prior_lines(root)[1].startswith(f"class shares for {n_adjusted:,} sources; none for ")


def test_recalibration_gives_the_files_of_publication_and_is_undone(tmp_path: Path, prior_file: Path) -> None:
    folder, rows = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder)
    first = folder.catalog.resolve()
    second = sc.recalibrate(folder.path, str(prior_file))
    assert second == folder.catalog.resolve() != first
    publish_run(folder, prior=str(prior_file))
    assert files_of(second) == files_of(folder.catalog.resolve())
    fourth = sc.recalibrate(folder.catalog, "none")
    assert files_of(fourth) == files_of(first)
    assert verify_publication(fourth, len(rows)).problems == ()
    fifth = sc.undo_recalibration(folder.path)
    assert files_of(fifth) == files_of(second) and fifth == folder.catalog.resolve()
    assert is_published(folder, str(prior_file))


def test_a_catalogue_without_its_run_is_recalibrated_into_a_new_folder(tmp_path: Path, prior_file: Path) -> None:
    folder, rows = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder)
    copy = tmp_path / "downloaded"
    shutil.copytree(folder.catalog.resolve(), copy)
    with pytest.raises(ConfigError, match="downloaded is no version of a run folder: give .* --out FOLDER"):
        sc.recalibrate(copy, str(prior_file))
    root = sc.recalibrate(copy, str(prior_file), tmp_path / "mine")
    assert files_of(root) == files_of(sc.recalibrate(folder.path, str(prior_file)))
    assert sc.open_catalog(tmp_path / "mine").count() == len(rows)
    with pytest.raises(ConfigError, match="mine exists: give a new folder"):
        sc.recalibrate(copy, "none", tmp_path / "mine")
    with pytest.raises(NotPublished, match="mine has no publication before the current one"):
        sc.undo_recalibration(tmp_path / "mine")


def test_priors_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path, prior_file: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES)
    publish_run(folder)
    before = files_of(folder.path)
    with pytest.raises(ConfigError, match="prior = 'estimate': the model has no calibration in bins of W1"):
        sc.recalibrate(folder.path, "estimate")
    with pytest.raises(ConfigError, match="prior = 'counts.jsn': .*counts.jsn does not exist.*; choose none, estimate"):
        sc.recalibrate(folder.path, "counts.jsn")
    with pytest.raises(ConfigError, match="it has the classes galaxy, quasar, star, and the model has galaxy, star"):
        read_prior(str(prior_file), ("galaxy", "star"))
    prior_file.write_text('{"shares": []}')
    with pytest.raises(ConfigError, match="prior table: its keys are classes, w1_edges, abs_b_edges, shares, label"):
        sc.recalibrate(folder.path, str(prior_file))
    after = files_of(folder.path)
    assert {name: data for name, data in after.items() if "leases" not in name} == before


def test_a_changed_file_is_not_recalibrated(tmp_path: Path, prior_file: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder)
    root = folder.catalog.resolve()
    path = root / read_manifest(root).files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="1 file changed since the publication .'dataset/Norder=5"):
        sc.recalibrate(folder.path, str(prior_file))
    assert folder.catalog.resolve() == root


def test_the_prior_of_a_catalogue_serves_another_one(tmp_path: Path, prior_file: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder, prior=str(prior_file))
    assert read_prior(str(folder.catalog / "prior.json"), DEFAULT_CLASSES) == PRIOR


def test_the_report_expects_what_the_probabilities_say(tmp_path: Path, prior_file: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES, CALIBRATION)
    publish_run(folder)
    assert expectations(sc.open_catalog(folder.path)) is None
    publish_run(folder, prior=str(prior_file))
    rows = rows_of(folder.catalog.resolve())
    rows = rows.filter(pc.is_valid(rows["class_sky"]))
    p = np.stack([rows[name].to_numpy() for name in SKY], axis=1).astype(float)
    predicted = np.array([DEFAULT_CLASSES.index(name) for name in rows["class_sky"].to_pylist()])
    found = expectations(sc.open_catalog(folder.path))
    assert found is not None
    table = confusion_of(found["cells"], found["classes"])
    np.testing.assert_allclose(table, expected_confusion(p, predicted), rtol=1e-5)
    b = abs_galactic_latitude_deg(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    cells = {(cell["w1"], cell["b"]) for cell in found["cells"]}
    w1 = rows["w1mpro"].to_numpy()
    assert cells == set(zip((w1 >= 15).astype(int).tolist(), (b >= 50).astype(int).tolist(), strict=True))
    total, by_cell, cuts = expectation_tables(found)
    purity = table[2, 2] / table[:, 2].sum()
    assert total.rows[2][:4] == ("star", f"{(predicted == 2).sum():,}", f"{p[:, 2].sum():,.0f}", f"{purity:.3f}")
    assert len(by_cell.rows) == 3 and len(cuts.rows) == 9
    condition, n = next(row[2:4] for row in cuts.rows if row[:2] == ("star", "0.9"))
    chosen = p[:, 2] >= float(condition.split()[-1])
    assert n == f"{chosen.sum():,}" and p[chosen, 2].mean() >= 0.9
    page = write_html(folder.path, tmp_path / "report.html").read_text()
    assert f"Expected for the class shares of {PRIOR.prior_id} (by hand)" in page


def test_expected_counts_of_an_estimate_have_an_interval() -> None:
    """Two bins of 1,000 and 500 sources: 30 + 50 quasars, with half-widths of 10 and 20 that add up."""
    bins = [
        {"refusal": "", "n_sources": 1000, "shares": [0.97, 0.03], "intervals": [[0.96, 0.98], [0.02, 0.04]]},
        {"refusal": "", "n_sources": 500, "shares": [0.9, 0.1], "intervals": [[0.86, 0.94], [0.06, 0.14]]},
        {"refusal": "does not fit", "n_sources": 500, "shares": None, "intervals": None},
    ]
    cells = [{"w1": 0, "b": 0, "class_sky": "star", "n": 1500, "p_star": 1420.0, "p_quasar": 80.0}]
    found = {"classes": ["star", "quasar"], "cells": cells, "bins": bins, "prior_id": "p", "label": "x"}
    found |= {"w1_edges": [8, 9], "abs_b_edges": [0, 90], "cuts": {"star": [], "quasar": []}}
    rows = expectation_tables(found)[0].rows
    assert rows[1][:4] == ("quasar", "0", "80 (50 to 110)", "-") and rows[0][2] == "1,420 (1,390 to 1,450)"


def test_w1_of_the_aperture_serves_sources_without_w1_and_outliers_do_not_count(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", TILES)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(folder.tiles.glob("*.parquet"))])
    n = len(rows)
    without = rows.set_column(rows.column_names.index("w1mpro"), rows.schema.field("w1mpro"), pa.nulls(n, pa.float32()))
    aperture = pc.fill_null(rows["w1_aperture"], np.nan).to_numpy()
    np.testing.assert_allclose(w1_mag(without), aperture)
    np.testing.assert_allclose(w1_mag(rows), rows["w1mpro"].to_numpy())
    everything = counts_of_rows(rows, CALIBRATION)
    flags = pa.array(np.where(np.arange(n) % 2 == 0, int(Flag.OUTLIER), 0).astype(np.int32))
    half = rows.set_column(rows.column_names.index("flags"), rows.schema.field("flags"), flags)
    total, left = (
        sum(one.cells.n.sum() for one in counts.values()) for counts in (everything, counts_of_rows(half, CALIBRATION))
    )
    assert 0.4 * total < left < 0.6 * total


def test_classes_named_as_columns_of_the_report_are_counted() -> None:
    """The classes b and n share their names with the bin of |b| and the number of sources."""
    cells = [{"w1": 0, "b": 2, "class_sky": "b", "n": 50, "p_b": 40.0, "p_n": 10.0}]
    assert confusion_of(cells, ["b", "n"]).tolist() == [[40.0, 0.0], [10.0, 0.0]]
    rows = pa.table({"w1mpro": [12.0], "w1_aperture": [12.0], "ra": [10.0], "dec": [20.0], "class_sky": ["b"],
                     "p_b_sky": [0.75], "p_n_sky": [0.25]})  # fmt: skip
    query = _cell_query(["b", "n"], [8.0, 17.0], [0.0, 30.0, 90.0]).replace("FROM classes", "FROM rows")
    found = duckdb.query(query).to_arrow_table().to_pylist()
    assert found == [{"w1": 0, "b": 1, "class_sky": "b", "n": 1, "p_b": 0.75, "p_n": 0.25}] and len(rows) == 1
