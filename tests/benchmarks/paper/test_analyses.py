"""The paper's analyses: numbers that are known beforehand, and figures that can be drawn."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.paper import analyses, layers, pictures
from skyclass.errors import CatalogError, ConfigError
from skyclass.images.composite import atlas_settings, composite
from skyclass.model.bundle import Cut
from skyclass.networks import build
from skyclass.report import save_figure
from skyclass.training.data.dataset import Dataset
from skyclass.types import DEFAULT_CLASSES

BANDS = ("w1", "w2", "w3", "w4")
SIZE = 37
SKY_DN = np.array([3.0, 7.0, 450.0, 140.0])
NOISE_DN = np.array([0.11, 0.06, 0.30, 0.03])


def psf(dy: float = 0.0, dx: float = 0.0):
    """Return a round source of 6 px FWHM, 1 at its peak, away from the centre by dy, dx."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / (2 * 2.55**2))


def smooth_noise(rng, shape):
    """Return noise of unit scatter that is correlated as in an Atlas image."""
    white = rng.normal(0, 1, (*shape, SIZE, SIZE))
    kernel = np.fft.rfft2(np.fft.ifftshift(psf() ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(white) * kernel, (SIZE, SIZE))
    return noise / noise.std()


def scene(n: int, peak_sigma: float = 40.0, seed: int = 0, bands=BANDS, **columns) -> Dataset:
    """Return n simulated sources at the centre of cutouts, `peak_sigma` times the noise in every band."""
    rng = np.random.default_rng(seed)
    k = len(bands)
    pixels = SKY_DN[:k, None, None] + NOISE_DN[:k, None, None] * (smooth_noise(rng, (n, k)) + peak_sigma * psf())
    labels = np.arange(n) % 3
    rows = pa.table({"source_id": [str(i) for i in range(n)]} | columns)
    zero_point_mag = atlas_settings(bands).zero_point_mag
    return Dataset(pixels.astype(np.float32), labels, rows, Cut(SIZE, bands), zero_point_mag, {"simulated": True})


def shown(dataset: Dataset):
    return composite(dataset.pixels[:, :3], dataset.zero_point_mag[:3], atlas_settings(BANDS[:3]))


def test_the_signal_to_noise_of_nothing_is_near_zero_and_that_of_a_source_grows_with_it():
    nothing = analyses.cutout_snr(scene(300, 0.0).pixels)
    assert nothing.shape == (300, 4)
    assert abs(np.median(nothing)) < 0.3 and (np.abs(nothing) > 3).mean() < 0.03
    faint, bright = (np.median(analyses.cutout_snr(scene(100, p).pixels)) for p in (5, 50))
    assert 3 < faint < 9 and bright / faint == pytest.approx(10, rel=0.2)


def test_missing_pixels_take_part_in_no_aperture():
    pixels = scene(20).pixels
    whole = analyses.cutout_snr(pixels)
    pixels[:, :, :4] = np.nan  # the edge of a tile
    np.testing.assert_allclose(np.median(analyses.cutout_snr(pixels)), np.median(whole), rtol=0.3)
    pixels[0] = np.nan
    assert np.isnan(analyses.cutout_snr(pixels)[0]).all() and np.isfinite(analyses.cutout_snr(pixels)[1:]).all()
    with pytest.raises(ConfigError, match="cut larger"):
        analyses.cutout_snr(pixels[:, :, :9, :9])


def test_snr_statistics_take_the_catalogue_where_it_has_all_bands_and_else_measure_all():
    columns = {f"{band}snr": pa.array([1.0, 2.5, 4.0, 6.0, None, 30.0]) for band in BANDS}
    known = analyses.snr_statistics(scene(6, **columns))
    assert known["source"] == "catalogue"
    row = known["table"]["w1"]["quasar"]  # 2.5 and unknown
    assert (row["n"], row["unknown"], row["median"]) == (2, 1, 2.5)
    assert row["above"] == {2.0: 0.5, 3.0: 0.0, 5.0: 0.0}
    measured = analyses.snr_statistics(scene(30, w1snr=[1.0] * 30))
    assert measured["source"] == "cutouts" and measured["table"]["w4"]["star"]["above"][5.0] == 1.0


def test_planted_empty_centres_are_found_and_true_sources_are_not():
    dataset = scene(90, 30.0)
    noise, rng = NOISE_DN[:, None, None], np.random.default_rng(1)
    dataset.pixels[:20] = SKY_DN[:, None, None] + noise * smooth_noise(rng, (20, 4))  # nothing there
    dataset.pixels[20:40] += noise * (200 * psf(4, 5) - 30 * psf())  # only a bright neighbour, 6.4 px away
    dataset.pixels[40:60] += noise * 200 * psf(10, 10)  # a source, and a bright neighbour farther out
    found = analyses.empty_centres(dataset.pixels)
    assert found["empty"][:40].mean() > 0.9 and not found["empty"][40:].any()
    assert found["faint"][:20].mean() >= 0.9 and found["off_centre"][20:40].all()
    np.testing.assert_array_equal(analyses.empty_centres(dataset.pixels, np.array([5, 70]))["empty"], [True, False])


@pytest.mark.integration
def test_the_group_of_empty_cutouts_is_named_among_the_misclassified():
    dataset = scene(80, 30.0)
    colours = np.array([[30, 1, 1, 1], [1, 30, 1, 1], [1, 1, 30, 1], [0, 0, 0, 0]])[np.arange(80) // 20]
    signal = (colours - 30)[:, :, None, None] * psf()
    dataset.pixels[:] += NOISE_DN[:, None, None] * signal
    images = shown(dataset)
    probabilities = np.eye(3, dtype=np.float32)[(dataset.labels + 1) % 3] * 0.8 + 0.1
    probabilities[::10] = np.eye(3, dtype=np.float32)[dataset.labels[::10]]  # eight right ones take no part
    features = analyses.ring_features(images, np.arange(80))
    groups = analyses.misclassified(dataset.labels, probabilities, features, dataset.pixels)
    assert sorted(groups["counts"]) == [18, 18, 18, 18] and not (groups["index"] % 10 == 0).any()
    in_class_4 = groups["index"][groups["cluster"] == groups["empty_cluster"]]
    assert (in_class_4 >= 60).all() and groups["empty_share"][groups["empty_cluster"]] == 1.0
    assert groups["empty_count"] == 18
    pictures.draw_misclassified(groups, images, dataset.labels, probabilities, simulated=True)


def test_without_wrong_answers_there_are_no_groups():
    dataset = scene(6)
    sure = np.eye(3, dtype=np.float32)[dataset.labels]
    groups = analyses.misclassified(dataset.labels, sure, np.zeros((6, 2), np.float32), dataset.pixels)
    assert groups["counts"] == [0, 0, 0, 0] and groups["empty_cluster"] is None


def test_ring_features_do_not_change_when_an_image_is_turned():
    images = shown(scene(5))
    turned = np.rot90(images, axes=(2, 3))
    first, second = (analyses.ring_features(i, np.arange(5)) for i in (images, turned))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_outliers_are_right_but_unsure():
    labels = np.array([0, 0, 1, 2])
    rows = [[0.55, 0.3, 0.15], [0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.3, 0.3, 0.4]]
    found = analyses.outliers(labels, np.array(rows, np.float32))
    assert found["index"].tolist() == [3, 0] and found["share"] == pytest.approx(2 / 3)
    assert found["counts"] == {"galaxy": 1, "quasar": 0, "star": 1}


def test_samples_are_the_first_of_each_class_whatever_the_answer():
    labels = np.array([2, 0, 2, 1, 0])
    rows = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0, 0, 1], [0.8, 0.1, 0.1], [1, 0, 0]], np.float32)
    found = analyses.samples(labels, rows, list("abcde"))
    assert {kind: sample["name"] for kind, sample in found.items()} == {"galaxy": "b", "quasar": "d", "star": "a"}
    assert found["star"]["probabilities"] == pytest.approx({"galaxy": 0.1, "quasar": 0.7, "star": 0.2})


def test_roc_has_the_area_of_scikit_learn_and_no_curve_for_a_class_without_rows():
    rng = np.random.default_rng(3)
    labels, probabilities = rng.integers(0, 2, 300), rng.dirichlet((2, 2, 2), 300).astype(np.float32)
    curves = analyses.roc(labels, probabilities)
    assert curves["star"] is None
    for k, name in ((0, "galaxy"), (1, "quasar")):
        area = np.trapezoid(curves[name]["tpr"], curves[name]["fpr"])
        assert area == pytest.approx(roc_auc_score(labels == k, probabilities[:, k]), abs=0.005)


def test_the_confusion_figure_has_true_classes_in_columns():
    figure = pictures.draw_confusion({"confusion": [[5, 1, 0], [2, 6, 0], [3, 0, 7]]}, simulated=True)
    assert "6 of 24 test images misclassified" in figure.get_suptitle()
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true class", "predicted class")
    words = {text.get_position(): text.get_text().splitlines()[0] for text in axes.texts}
    assert (words[2, 0], words[0, 1]) == ("3", "1"), "three stars called galaxy, one galaxy called quasar"


class Corner(nn.Module):
    """A network whose evidence for class 1 is the light in its second channel, wherever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.cbam2 = nn.AvgPool2d(4)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def forward(self, x):
        return self.head(self.cbam2(x).mean((2, 3)))


def test_grad_cam_peaks_where_the_evidence_is():
    x = torch.zeros(2, 2, 40, 40)
    x[0, 1, 8:12, 28:32] = 5.0
    x[0, 0, 30:34, 4:8] = 1.0
    x[1, 0, 20:24, 20:24] = 3.0
    heat = layers.grad_cam(Corner(), x)
    peaks = [np.unravel_index(h.argmax(), h.shape) for h in heat]
    assert [(8 <= y < 12, 28 <= x < 32) for y, x in peaks[:1]] == [(True, True)]
    assert 20 <= peaks[1][0] < 24 and heat.max() == pytest.approx(1) and heat.min() >= 0
    other = layers.grad_cam(Corner(), x, np.array([0, 2]))
    assert np.unravel_index(other[0].argmax(), (40, 40))[0] >= 30 and not other[1].any()


def test_grad_cam_and_feature_maps_of_iicnet_have_the_shapes_of_its_layers():
    network, x = build("iicnet"), torch.randn(1, 3, 64, 64)
    maps = layers.feature_maps(network, x)
    assert {name: m.shape for name, m in maps.items()} == dict.fromkeys(("conv1", "rfb", "cbam1"), (8, 32, 32))
    peaks = maps["conv1"].max((1, 2))
    assert (np.diff(peaks) <= 0).all()
    assert layers.grad_cam(network, x).shape == (1, 64, 64)
    assert not network.conv1._forward_hooks
    with pytest.raises(ConfigError, match="no layer conv9.*conv1"):
        layers.feature_maps(network, x, ("conv9",))


def test_histograms_count_each_class_and_channel_apart():
    images = np.full((6, 3, 8, 8), 1.5, np.float16)
    images[:, 1] = 3.5
    images[0, 0, 0] = np.nan
    found = analyses.rgb_histograms(images, np.arange(6) % 3, BANDS[:3], bins=4, span=(0, 4))
    for name in DEFAULT_CLASSES:
        np.testing.assert_allclose(found["density"][name], [[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]])


def test_colours_are_those_of_the_catalogue_and_nulls_are_counted():
    mags = {"w1mpro": [15.0, 16.0, None], "w2mpro": [14.0, 16.0, 3.0], "w3mpro": [11.0, 15.9, 3.0]}
    found = analyses.colour_colour(scene(3, **mags))
    assert found["dropped"] == 1 and found["table"]["star"]["n"] == 0
    np.testing.assert_allclose(found["w1-w2"], [1, 0])
    assert found["table"]["galaxy"]["w2-w3"]["median"] == 3
    with pytest.raises(CatalogError, match="no columns w1mpro"):
        analyses.colour_colour(scene(3))


def test_a_sweep_gathers_the_seeds():
    records = [{"first_kernel": k, "balanced_accuracy": k / 10 + s} for k in (5, 3) for s in (0.0, 0.02)]
    curve = analyses.sweep(records, "first_kernel")
    assert curve["x"] == [3, 5] and curve["n"].tolist() == [2, 2]
    np.testing.assert_allclose([curve["low"], curve["mean"], curve["high"]], [[0.3, 0.5], [0.31, 0.51], [0.32, 0.52]])
    with pytest.raises(ConfigError, match="record 0 has no input_px"):
        analyses.sweep(records, "input_px")


def test_the_course_of_a_training_is_read_from_its_log(tmp_path):
    log = tmp_path / "model.jsonl"
    records = [{"epoch": e, "loss": 1 / e, "val_loss": abs(e - 2) + 0.1} for e in (1, 2, 3)]
    log.write_text("".join(json.dumps(r) + "\n" for r in [{"event": "resumed"}, *records, records[2] | {"loss": 9}]))
    curves = analyses.training_curves(log)
    assert curves["epoch"].tolist() == [1, 2, 3] and curves["best"] == 2 and curves["loss"][2] == 9
    assert np.isnan(curves["val_balanced_accuracy"]).all()
    with pytest.raises(ConfigError, match="no such training log"):
        analyses.training_curves(tmp_path / "none.jsonl")
    log.write_text("{\n{}\n")
    with pytest.raises(ConfigError, match="not a log of JSON lines"):
        analyses.training_curves(log)


@pytest.mark.integration
def test_every_figure_is_drawn_and_says_that_the_data_are_simulated(tmp_path):
    mags = {f"w{b}mpro": np.random.default_rng(b).normal(15 - b, 0.4, 24) for b in (1, 2, 3)}
    dataset = scene(24, **mags)
    images = shown(dataset)
    probabilities = np.random.default_rng(0).dirichlet((2, 2, 2), 24).astype(np.float32)
    network, x = build("iicnet"), torch.randn(3, 3, 64, 64)
    log = [{"epoch": e, "loss": 1 / e, "val_loss": 1.1 / e, "val_balanced_accuracy": 0.9} for e in (1, 2, 3)]
    curve = analyses.sweep([{"input_px": p, "balanced_accuracy": 0.9} for p in (64, 80)], "input_px")
    simulated = {"simulated": True}
    figures = {
        "snr": pictures.draw_snr(analyses.snr_statistics(dataset), **simulated),
        "histograms": pictures.draw_histograms(analyses.rgb_histograms(images, dataset.labels, BANDS[:3]), **simulated),
        "colours": pictures.draw_colour_colour(analyses.colour_colour(dataset), **simulated),
        "sweep": pictures.draw_sweep(curve, "input size [px]", paper={64: 0.94, 80: 0.95}, **simulated),
        "training": pictures.draw_training(analyses.training_curves(log), **simulated),
        "roc": pictures.draw_roc(
            {"roc": analyses.roc(dataset.labels, probabilities), "auc": dict.fromkeys(DEFAULT_CLASSES, 0.5)},
            **simulated,
        ),
        "validation": pictures.draw_validation({"IICnet": [0.8, 0.9], "VGG16": [0.7, 0.8]}, {}, **simulated),
        "confusion": pictures.draw_confusion({"confusion": np.eye(3, dtype=int).tolist()}, **simulated),
        "maps": pictures.draw_feature_maps(layers.feature_maps(network, x[:1]), images[0], **simulated),
        "cam": pictures.draw_grad_cam(images[:3], layers.grad_cam(network, x), ["a", "b", "c"], **simulated),
        "outliers": pictures.draw_outliers(
            analyses.outliers(dataset.labels, probabilities), images, dataset.labels, probabilities, **simulated
        ),
    }
    for name, figure in figures.items():
        assert figure.get_suptitle().startswith("SIMULATED"), name
        assert save_figure(figure, tmp_path / f"{name}.png").stat().st_size > 5000
    real = pictures.draw_training(analyses.training_curves(log), simulated=False)
    assert "SIMULATED" not in real.get_suptitle()
