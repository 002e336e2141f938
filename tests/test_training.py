"""Training: from labels and tiles to a dataset, from there to a bundle that beats chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from skyclass.bundle import Cut, load_bundle
from skyclass.composite import atlas_settings, composite
from skyclass.cutouts import cut
from skyclass.errors import CatalogError, ConfigError, TileFault
from skyclass.infer import Preprocess, load_classifier, set_threads
from skyclass.sky import healpix, tile_pixels
from skyclass.training import dataset as dataset_module
from skyclass.training.dataset import (
    Dataset,
    build_dataset,
    load_dataset,
    read_labels,
    save_dataset,
    split_sky,
)
from skyclass.training.evaluate import colour_cuts, confusion, evaluate, scores
from skyclass.training.train import (
    TrainConfig,
    class_weights,
    fit_temperature,
    input_statistics,
    logits_of,
    prepare,
    rate_factor,
    shift,
    train,
    train_config,
    turn,
)
from skyclass.types import CLASSES, Tile

BANDS = ("w1", "w2", "w3")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make seconds into minutes."""
    n = torch.get_num_threads()
    set_threads(1)
    yield
    torch.set_num_threads(n)


def blobs(n: int, seed: int = 0) -> Dataset:
    """Return simulated sources, brighter in another band for each class, spread over a few hundred pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    y, x = np.mgrid[:37, :37] - 18
    colours = np.array([[3, 1, 0], [0, 3, 1], [1, 0, 3]])[labels] + rng.normal(0, 0.3, (n, 3))
    images = rng.normal(0, 1, (n, 3, 37, 37)) + 2 * colours[:, :, None, None] * np.exp(-(x**2 + y**2) / 30)
    images[:, :, 0, :3] = np.nan
    rows = pa.table(
        {
            "source_id": [str(i) for i in range(n)],
            "coadd_id": ["0000p000_ac51"] * n,
            "ra": rng.uniform(0, 20, n),
            "dec": rng.uniform(-10, 10, n),
            "w1mpro": rng.normal(15, 1, n),
            "w2mpro": rng.normal(14, 1, n),
            "w3mpro": rng.normal(12, 1, n),
        }
    )
    return Dataset(images.astype(np.float16), labels, rows, Cut(37, BANDS), atlas_settings(BANDS))


def test_a_short_training_beats_chance_and_leaves_a_bundle(tmp_path: Path) -> None:
    save_dataset(tmp_path / "data", blobs(240))
    run = TrainConfig(
        out=str(tmp_path / "model"),
        dataset=str(tmp_path / "data"),
        simulated=True,
        label="simulated blobs",
        input_px=64,
        epochs=3,
        batch_size=16,
        val_fraction=0.3,
    )
    records: list[dict[str, object]] = []
    bundle = train(run, records.append)
    assert bundle == load_bundle(tmp_path / "model")
    assert bundle.training["simulated"] is True
    assert sum(bundle.training["train_counts"].values()) + sum(bundle.training["val_counts"].values()) == 240
    best = min(records, key=lambda r: float(r["val_loss"]))  # type: ignore[arg-type]
    assert bundle.training["best_epoch"] == best["epoch"]
    assert bundle.temperature == best["temperature"]
    assert [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()] == records
    result = evaluate(bundle, blobs(90, seed=1), "cpu")
    assert result["balanced_accuracy"] > 0.7
    assert result["n"] == 90
    assert result["colour_cuts"]["balanced_accuracy"] < 0.6, "the magnitudes of the blobs mean nothing"
    with pytest.raises(ConfigError, match="other settings"):
        train(TrainConfig(**vars(run) | {"size_px": 36}))


def test_training_and_inference_preprocess_alike_to_the_bit(tmp_path: Path) -> None:
    data = blobs(40)
    run = TrainConfig(out="-", dataset="-", simulated=True, val_fraction=0.5, input_px=64, precision="fp32")
    job = prepare(run, data)
    seen: list[torch.Tensor] = []
    job.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    job.network.eval()
    with torch.inference_mode():
        logits = logits_of(job, data.images)
    from skyclass.bundle import save_bundle

    fields = {
        "name": "x", "network": "iicnet", "network_options": {}, "cut": data.cut, "composite": data.composite,
        "preprocessing": job.preprocessing, "temperature": 1.0, "training": {"simulated": True, "label": "-"},
    }  # fmt: skip
    bundle = save_bundle(tmp_path / "m", fields, job.network.state_dict())
    classifier = load_classifier(bundle, "cpu", "fp32")
    classifier._network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    probabilities = classifier.predict(data.images)
    assert torch.equal(torch.cat(seen[1:])[:40], seen[0])
    assert np.abs(probabilities - torch.softmax(logits, 1).numpy()).max() < 1e-5
    assert job.preprocessing == input_statistics(data.images, job.train_rows, 64)
    inputs = Preprocess(job.preprocessing)(torch.from_numpy(data.images[job.train_rows]))
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-3
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_the_split_is_disjoint_on_the_sky_and_lasting() -> None:
    data = blobs(600)
    train_rows, val_rows = split_sky(data, 0.2)
    pixels = healpix(9, data.rows["ra"].to_numpy(), data.rows["dec"].to_numpy())
    assert not set(pixels[train_rows]) & set(pixels[val_rows])
    assert sorted([*train_rows, *val_rows]) == list(range(600))
    assert 0.1 < len(val_rows) / 600 < 0.3
    part = np.arange(200, 500)
    _, val_part = split_sky(data.take(part), 0.2)
    assert set(part[val_part]) == set(val_rows) & set(part), "a row stays on its side in any other dataset"
    with pytest.raises(ConfigError, match="more sky"):
        split_sky(data.take(np.arange(1)), 0.2)


class FakeArchive:
    """Three tiles in memory: one good, one whose second band breaks, one whose sources have no W3."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(2).normal(5, 1, (3, 200, 200)).astype(np.float32)

    def tile(self, coadd_id: str, bands: tuple[str, ...]) -> Tile:
        ra = 10.0 + int(coadd_id[0])
        scale = 1.375 / 3600
        return Tile(coadd_id, bands, (200, 200), (ra, 0.0), (100.5, 100.5), (-scale, scale), (20.5, 19.5, 18.0))

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> np.ndarray:
        if tile.coadd_id[0] == "1" and band == "w2":
            raise TileFault(tile.coadd_id, "cut short", band)
        empty = tile.coadd_id[0] == "2" and band == "w3"
        return np.full((stop - start, 200), np.nan, np.float32) if empty else self.pixels[int(band[1]) - 1, start:stop]


def test_a_dataset_holds_each_labelled_source_with_its_own_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, archive = np.random.default_rng(0), FakeArchive()
    tiles = ["0000p000_ac51", "1000p000_ac51", "2000p000_ac51"]
    where = np.repeat([0, 1, 2], 20)
    rows = pa.table(
        {
            "source_id": [f"s{i:02}" for i in range(60)],
            "coadd_id": [tiles[i] for i in where],
            "ra": 10.0 + where + rng.uniform(-0.03, 0.03, 60),
            "dec": rng.uniform(-0.03, 0.03, 60),
        }
    ).take(rng.permutation(60))
    pq.write_table(rows, tmp_path / "catalog.parquet")
    labels = pa.table({"source_id": [f"s{i:02}" for i in range(0, 60, 2)], "class": [*CLASSES] * 10})
    pyarrow.csv.write_csv(labels, tmp_path / "labels.csv")
    monkeypatch.setattr(dataset_module, "open_archive", lambda *_: archive)
    events: list[dict[str, object]] = []
    settings = atlas_settings(BANDS)
    out, arguments = tmp_path / "data", (str(tmp_path / "catalog.parquet"), "-", str(tmp_path / "labels.csv"))
    data = build_dataset(*arguments, BANDS, 21, settings, out, events.append)

    assert sorted(data.rows["source_id"].to_pylist()) == [f"s{i:02}" for i in range(0, 20, 2)]
    assert [(e["tile"], e["dropped"], e["fault"]) for e in events] == [
        (tiles[0], 0, None), (tiles[1], 10, "cut short"), (tiles[2], 20, None),
    ]  # fmt: skip
    named = dict(zip(labels["source_id"].to_pylist(), labels["class"].to_pylist(), strict=True))
    tile = archive.tile(tiles[0], BANDS)
    for i, row in enumerate(data.rows.to_pylist()):
        assert CLASSES[data.labels[i]] == named[row["source_id"]]
        one = cut(archive, tile, *tile_pixels(tile, [row["ra"]], [row["dec"]]), 21)
        expected = composite(one.pixels, one.zero_point_mag, settings)[0]
        assert np.array_equal(data.images[i], expected, equal_nan=True)
    save_dataset(tmp_path / "copy", data)
    assert np.array_equal(load_dataset(tmp_path / "copy").images, data.images, equal_nan=True)
    with pytest.raises(ConfigError, match="exists"):
        build_dataset(*arguments, BANDS, 21, settings, out)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_label_tables_are_checked(tmp_path: Path) -> None:
    def written(**columns: list[str]) -> str:
        pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
        return str(tmp_path / "labels.parquet")

    assert read_labels(written(source_id=["a"], **{"class": ["star"]}))["label"].to_pylist() == [2]
    for columns, message in (
        ({"source_id": ["a"]}, "column class"),
        ({"source_id": ["a"], "class": ["QSO"]}, "QSO"),
        ({"source_id": ["a", "a"], "class": ["star", "star"]}, "twice"),
    ):
        with pytest.raises(CatalogError, match=message):
            read_labels(written(**columns))


def test_turns_and_shifts_move_whole_images() -> None:
    image = np.arange(2 * 5 * 5, dtype=np.float16).reshape(1, 2, 5, 5)
    turned = turn(np.repeat(image, 8, axis=0), np.arange(8))
    assert len({t.tobytes() for t in turned}) == 8
    assert all(np.array_equal(np.sort(t.ravel()), np.sort(image.ravel())) for t in turned)
    moved = shift(np.repeat(image, 2, axis=0), np.array([[1, -2], [0, 0]]))
    assert np.array_equal(moved[0, :, 1:, :3], image[0, :, :4, 2:])
    assert np.isnan(moved[0, :, 0]).all()
    assert np.isnan(moved[0, :, :, 3:]).all()
    assert np.array_equal(moved[1], image[0])


def test_temperature_finds_how_sure_the_logits_should_be() -> None:
    rng = np.random.default_rng(0)
    honest = torch.from_numpy(rng.normal(0, 2, (20_000, 3))).float()
    p = torch.softmax(honest, 1).numpy()
    labels = torch.from_numpy((rng.random((20_000, 1)) > np.cumsum(p, 1)).sum(1).clip(0, 2))
    assert fit_temperature(3 * honest, labels, torch.ones(3)) == pytest.approx(3, rel=0.05)
    given = scores(labels.numpy(), p)
    overconfident = scores(labels.numpy(), torch.softmax(3 * honest, 1).numpy())
    assert given["ece"] < 0.02 < 0.1 < overconfident["ece"]


def test_scores_and_weights_by_hand() -> None:
    table = confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]))
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert class_weights(np.array([0, 0, 0, 1]), True).tolist() == pytest.approx([2 / 3, 2, 0])
    assert class_weights(np.array([0, 0, 0, 1]), False).tolist() == [1, 1, 0]


def test_colour_cuts_and_missing_magnitudes() -> None:
    nan = np.nan
    w1, w2, w3 = [16, 14, 12, nan, 14, 16], [14.9, 13.8, 12, 13, 13.9, 15], [11.8, 10.5, 12, 10, nan, nan]
    assert colour_cuts(w1, w2, w3).tolist() == ["quasar", "galaxy", "star", "galaxy", "star", "quasar"]


def test_colour_cuts_on_real_sources() -> None:
    tables = Path(__file__).parents[2] / "shared" / "data" / "tables"
    if not tables.exists():
        pytest.skip("the real tables are not here")
    for name, kind in (
        ("sdss_galaxies", "galaxy"),
        ("desi_quasars", "quasar"),
        ("exoplanet_host_stars", "star"),
    ):
        table = pq.read_table(tables / f"{name}.parquet")
        magnitudes = [table[f"w{b}mpro"].to_numpy() for b in (1, 2, 3)]
        assert (colour_cuts(*magnitudes) == kind).mean() > 0.95


def test_schedules() -> None:
    run = {"out": "-", "dataset": "-", "simulated": True}
    cosine = [rate_factor(TrainConfig(**run, epochs=10), 10)(i) for i in range(100)]  # type: ignore[arg-type]
    assert max(cosine) == 1
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[-1] < 0.01
    paper = rate_factor(TrainConfig(**run, epochs=200, schedule="paper"), 10)  # type: ignore[arg-type]
    assert [paper(i) for i in (0, 499, 500, 1999)] == [1, 1, 0.5, 0.5]


def test_all_config_mistakes_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        train_config({"out": "m", "epochs": "many", "learning": 0.1})
    for part in ("dataset is required", "simulated is required", "epochs", "'learning'"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="schedule.*epochs"):
        train_config({"out": "m", "dataset": "d", "simulated": False, "schedule": "step", "epochs": 0, "bands": ["w1"]})
