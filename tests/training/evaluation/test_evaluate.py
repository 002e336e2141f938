"""Scores against scikit-learn, intervals against repeated samples, calibration against what was put in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from skyclass.errors import BundleError, ConfigError
from skyclass.images.composite import atlas_settings
from skyclass.model.bundle import Bundle, Cut, Preprocessing, load_bundle, save_bundle
from skyclass.model.photometry import PhotometrySettings
from skyclass.model.photometry import numbers as floats
from skyclass.model.priors import calibrated_in_bins
from skyclass.networks import build
from skyclass.sky.galactic import abs_galactic_latitude_deg
from skyclass.training.data.dataset import Dataset
from skyclass.training.evaluation.bootstrap import bootstrap, differences, interval, resamples, strata
from skyclass.training.evaluation.calibration import (
    calibrate,
    fit_bias_and_temperature,
    fit_temperature,
    negative_log_likelihood,
    softmax,
)
from skyclass.training.evaluation.evaluate import (
    evaluate,
    evaluate_models,
    training_log,
    write_evaluation,
)
from skyclass.training.evaluation.metrics import (
    balanced_accuracy,
    calibration_error,
    calibration_floor,
    colour_cuts,
    confusion,
    confusion_scores,
    metric_terms,
    metrics_from_weights,
    metrics_of,
    precision_at,
    reliability,
    roc_curve,
    scores,
    table_rates,
)
from skyclass.training.evaluation.predictions import embeddings_of, logits_of, probabilities_of, rows_of
from skyclass.types import DEFAULT_CLASSES
from tests.support.bundles import make_bundle

BANDS = ("w1", "w2", "w3")


def drawn_logits(n: int, seed: int, shares: tuple[float, ...] = (0.5, 0.2, 0.3), signal: float = 2.0) -> Any:
    """Return labels and logits whose softmax is the exact probability of each class at these shares."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=shares)
    x = rng.normal(0, 1, (n, 3)) + np.sqrt(signal) * np.eye(3)[labels]
    return labels, np.sqrt(signal) * x + np.log(shares)


def drawn(n: int, seed: int, **options: Any) -> Any:
    labels, logits = drawn_logits(n, seed, **options)
    return labels, softmax(logits).astype(np.float32)


# --- scores ----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_rates_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra `train`")
    labels, p = drawn(500, 1)
    guess = p.argmax(1)
    found = scores(labels, p, DEFAULT_CLASSES)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, guess)
    tables = metrics.multilabel_confusion_matrix(labels, guess).astype(float)
    for k, name in enumerate(DEFAULT_CLASSES):
        (tn, fp), (fn, tp) = tables[k]
        rates = (precision[k], recall[k], tn / (tn + fp), f1[k], (tp + tn) / 500)
        names = ("precision", "recall", "specificity", "f1", "class_accuracy")
        assert [found[n][name] for n in names] == pytest.approx(rates, abs=1e-12)
    assert found["confusion"] == metrics.confusion_matrix(labels, guess).tolist()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, guess))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, guess))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy(confusion(labels, guess, 3)))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, guess, average="macro"))
    assert found["macro_specificity"] == pytest.approx(np.mean(list(found["specificity"].values())))
    double = p.astype(np.float64) / p.astype(np.float64).sum(1, keepdims=True)
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, double), abs=1e-6)
    assert found["brier"] == pytest.approx(((np.eye(3)[labels] - p) ** 2).sum(1).mean(), abs=1e-6)
    assert found["macro_auc"] == pytest.approx(metrics.roc_auc_score(labels, double, multi_class="ovr"), abs=1e-9)


@pytest.mark.integration
@pytest.mark.parametrize("digits", [7, 1], ids=["few ties", "many ties"])
def test_roc_and_auc_are_those_of_scikit_learn(digits: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra `train`")
    labels, p = drawn(3000, 2)
    p = np.round(p, digits)
    found = metrics_from_weights(metric_terms(labels, p), np.ones((1, len(labels))))["auc"][0]
    for k in range(3):
        assert found[k] == pytest.approx(metrics.roc_auc_score(labels == k, p[:, k]), abs=1e-12)
        curve = roc_curve(labels == k, p[:, k])
        fpr, tpr, _ = metrics.roc_curve(labels == k, p[:, k], drop_intermediate=False)
        assert len(curve["fpr"]) <= 200 and (curve["fpr"][0], curve["tpr"][-1], curve["fpr"][-1]) == (0, 1, 1)
        pairs = {(round(a, 6), round(b, 6)) for a, b in zip(fpr, tpr, strict=True)}
        assert set(zip(curve["fpr"], curve["tpr"], strict=True)) <= pairs, "every point kept is one of the curve"
        assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(found[k], abs=2e-3), "thinned evenly"
        true = [(p[labels == k, k] >= t).mean() for t in curve["threshold"][1:]]
        assert true == pytest.approx(curve["tpr"][1:], abs=1e-6), "the thresholds are those of the points"


def test_what_a_missing_class_leaves_undefined_is_none() -> None:
    labels = np.array([0, 0, 2, 2])
    p = np.array([[0.8, 0.1, 0.1], [0.6, 0.1, 0.3], [0.2, 0.1, 0.7], [0.5, 0.1, 0.4]], np.float32)
    found = scores(labels, p, DEFAULT_CLASSES)
    assert found["recall"] == {"galaxy": 1.0, "quasar": None, "star": 0.5}
    assert found["precision"]["quasar"] is None and found["auc"]["quasar"] is None and found["roc"]["quasar"] is None
    assert (found["balanced_accuracy"], found["accuracy"]) == (0.75, 0.75)
    assert found["auc"]["galaxy"] == 1.0
    json.dumps(found, allow_nan=False)
    assert confusion_scores(np.zeros((3, 3), np.int64), DEFAULT_CLASSES)["accuracy"] is None
    only = bootstrap(labels, {"m": p}, draws=50)["m"]["auc"]
    assert np.isnan(only[:, 1]).all()


def test_calibration_error_of_known_cases() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    sure = np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (100, 1))
    assert calibration_error(labels, sure) == pytest.approx(0, abs=1e-6)
    proud = np.tile(np.array([[0.95, 0.03, 0.02]], np.float32), (100, 1))
    assert calibration_error(labels, proud) == pytest.approx(0.25, abs=1e-6)
    assert scores(labels, proud, DEFAULT_CLASSES)["ece"] == pytest.approx(0.25, abs=1e-6)
    assert scores(labels, proud, DEFAULT_CLASSES)["classwise_ece"] == pytest.approx((0.25 + 0.27 + 0.02) / 3, abs=1e-6)
    table = reliability(labels, proud, DEFAULT_CLASSES)["given"]
    assert len(table) == 15 and [part["n"] for part in table if part["n"]] == [100]
    assert table[14] | {"confidence": None} == {"low": 14 / 15, "high": 1, "n": 100, "confidence": None, "share": 0.7}
    assert table[0]["share"] is None


def test_the_floor_is_the_calibration_error_of_a_perfect_model() -> None:
    _, p = drawn(400, 3)
    rng = np.random.default_rng(0)
    chance = (p.cumsum(1)[None] < rng.random((300, 400, 1))).sum(2).clip(max=2)
    assert calibration_floor(p) == pytest.approx(np.mean([calibration_error(y, p) for y in chance]), rel=0.05)


def test_colour_cuts_take_nan_for_no() -> None:
    given = colour_cuts([16.0, 14.0, 12.0, np.nan], [14.9, 13.8, 12.0, 12.0], [11.8, 10.5, np.nan, 10.0], [5.0] * 4)
    assert given.tolist() == ["quasar", "galaxy", "star", "galaxy"]


def test_an_upper_limit_of_w3_makes_no_galaxy() -> None:
    """W2-W3 = 3.3 at most; with an unknown S/N the magnitude counts as measured."""
    given = colour_cuts([14.0] * 4, [13.8] * 4, [10.5] * 4, [1.99, 2.0, np.nan, -3.0])
    assert given.tolist() == ["star", "galaxy", "galaxy", "star"]


def test_the_published_rates_leave_a_fifth_of_the_quasars_pure() -> None:
    """Recall 97.1 % and specificity 98.3 % at 0.5 % quasars: about 22 %."""
    table = np.array([[983, 17, 0], [15, 971, 14], [0, 17, 983]])
    assert precision_at(table, {"galaxy": 0.5, "quasar": 0.005, "star": 0.495})["quasar"] == pytest.approx(
        0.22, abs=0.01
    )
    same = {name: n / 3 for name, n in zip(DEFAULT_CLASSES, (1, 1, 1), strict=True)}
    assert precision_at(table, same) == pytest.approx(confusion_scores(table, DEFAULT_CLASSES)["precision"])
    assert precision_at([[5, 1, 0], [0, 0, 0], [0, 1, 5]], same)["quasar"] is None
    with pytest.raises(ConfigError, match="one number >= 0"):
        precision_at(table, {"quasar": 0.005})


# --- intervals -------------------------------------------------------------------------------------


@pytest.mark.integration
def test_intervals_cover_the_truth_nineteen_times_in_twenty() -> None:
    names = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "nll", "brier")
    big, p = drawn(200_000, 10)
    truth = metrics_of(big, p)
    inside = dict.fromkeys(names, 0)
    for trial in range(200):
        labels, p = drawn(250, 100 + trial)
        found = bootstrap(labels, {"m": p}, draws=200, seed=trial)["m"]
        for name in names:
            low, high = interval(truth[name], found[name], name)
            inside[name] += low <= truth[name] <= high
    assert all(0.9 <= n / 200 <= 0.99 for n in inside.values()), inside


def test_draws_are_the_numbers_of_resampled_rows() -> None:
    labels, p = drawn(300, 4)
    weights = np.concatenate(list(resamples(300, 40, seed=7)))
    assert weights.shape == (40, 300) and (weights.sum(1) == 300).all()
    found = bootstrap(labels, {"m": p}, draws=40, seed=7)["m"]
    for d in (0, 13, 39):
        rows = np.repeat(np.arange(300), weights[d].astype(int))
        again = scores(labels[rows], p[rows], DEFAULT_CLASSES)
        for name in ("accuracy", "balanced_accuracy", "ece", "classwise_ece", "nll", "brier"):
            assert found[name][d] == pytest.approx(again[name], abs=1e-9)
        assert found["recall"][d] == pytest.approx(list(again["recall"].values()))
        assert found["auc"][d] == pytest.approx(list(again["auc"].values()), abs=5e-3), "first order in the weights"


def test_pairing_makes_a_small_difference_certain() -> None:
    labels, p = drawn(1500, 5)
    worse = p.copy()
    spoilt = np.flatnonzero(p.argmax(1) == labels)[::60]
    worse[spoilt] = np.roll(p[spoilt], 1, axis=1)
    given = {"good": p, "worse": worse}
    (pair,) = differences(labels, given, bootstrap(labels, given, draws=400), DEFAULT_CLASSES)
    assert (pair["a"], pair["b"]) == ("good", "worse")
    value, low, high = pair["numbers"]["accuracy"]
    assert value == pytest.approx(-len(spoilt) / 1500) and low < value < high < 0
    alone = interval(0.0, bootstrap(labels, given, draws=400)["good"]["accuracy"])
    assert high - low < (alone[1] - alone[0]) / 2


def test_the_interval_of_a_difference_of_calibration_errors_is_moved_to_its_value() -> None:
    labels, logits = drawn_logits(400, 12)
    given = {"fair": softmax(logits).astype(np.float32), "proud": softmax(logits * 4).astype(np.float32)}
    made = bootstrap(labels, given, draws=600)
    found = differences(labels, given, made, DEFAULT_CLASSES)[0]["numbers"]
    for name in ("ece", "classwise_ece"):
        value, low, high = found[name]
        raw = made["proud"][name] - made["fair"][name]
        assert raw.mean() < value - 0.1 * (high - low), "noise adds to the error of the fair model only"
        assert [low, high] == pytest.approx(np.quantile(raw, [0.025, 0.975]) + value - raw.mean())
    assert found["nll"][1:] == pytest.approx(np.quantile(made["proud"]["nll"] - made["fair"]["nll"], [0.025, 0.975]))


def test_no_draw_of_an_area_under_the_curve_is_above_one() -> None:
    labels = np.arange(60) % 3
    p = np.full((60, 3), 0.1, np.float32)
    p[np.arange(60), labels] = 0.8
    p[[0, 1]] = p[[1, 0]]  # one mistake for two classes, none for the third
    drawn = bootstrap(labels, {"it": p}, draws=400)["it"]
    for name in ("auc", "macro_auc"):
        assert 0 <= np.nanmin(drawn[name]) and np.nanmax(drawn[name]) <= 1


def test_strata_add_up_and_an_empty_bin_is_none() -> None:
    labels, p = drawn(900, 6)
    value = np.random.default_rng(0).uniform(0, 30, 900)
    value[:5] = np.nan
    value[5] = 10.0
    found = strata(labels, p.argmax(1), value, (-np.inf, 0, 10, 20, 30), DEFAULT_CLASSES, draws=100)
    assert [(part["low"], part["high"]) for part in found] == [(None, 0), (0, 10), (10, 20), (20, 30)]
    nothing = dict.fromkeys(("accuracy", "balanced_accuracy", "recall"))
    assert found[0] == {"low": None, "high": 0, "n": 0, "counts": dict.fromkeys(DEFAULT_CLASSES, 0)} | nothing
    assert sum(part["n"] for part in found) == 895 and found[2]["n"] == ((value >= 10) & (value < 20)).sum()
    for part in found[1:]:
        for rate in (part["accuracy"], part["balanced_accuracy"], *part["recall"].values()):
            assert rate[1] <= rate[0] <= rate[2]


def test_rates_of_many_tables_at_once() -> None:
    tables = np.random.default_rng(0).integers(0, 50, (20, 3, 3))
    together = table_rates(tables)
    for d in (0, 7):
        alone = confusion_scores(tables[d], DEFAULT_CLASSES)
        assert together["f1"][d] == pytest.approx(list(alone["f1"].values()))
        assert together["macro_class_accuracy"][d] == pytest.approx(alone["macro_class_accuracy"])


# --- calibration -----------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_known_temperature_and_bias_are_found_again() -> None:
    labels, logits = drawn_logits(30_000, 8)
    assert fit_temperature(logits * 1.7, labels) == pytest.approx(1.7, rel=0.03)
    assert fit_temperature(torch.from_numpy(logits * 0.4), torch.from_numpy(labels), torch.ones(3)) == pytest.approx(
        0.4, rel=0.03
    )
    shift = np.array([0.9, -0.6, -0.3])
    temperature, bias = fit_bias_and_temperature((logits - shift) * 2.5, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    assert bias == pytest.approx(shift, abs=0.05) and sum(bias) == pytest.approx(0, abs=1e-5)


def test_the_fitted_loss_is_the_least() -> None:
    labels, logits = drawn_logits(400, 9)
    logits = logits * 3 + [0.5, -1, 0.5]
    weights = np.array([1.0, 3.0, 0.5])
    temperature, bias = fit_bias_and_temperature(logits, labels, weights)
    least = negative_log_likelihood(logits / temperature + bias, labels, weights)
    rng = np.random.default_rng(0)
    for _ in range(50):
        t, b = temperature * np.exp(rng.normal(0, 0.1)), bias + rng.normal(0, 0.1, 3)
        assert negative_log_likelihood(logits / t + b, labels, weights) >= least - 1e-7
    assert least < negative_log_likelihood(logits / fit_temperature(logits, labels, weights), labels, weights)


# n, seed, scale and shift of the logits, class weights -> temperature; temperature and biases fitted together.
# Values of golden-section search and of Newton's method with the exact Hessian.
FITTED = [
    ((400, 100, 1.7, (0, 0, 0), None), 1.723321, (1.637155, -0.232267, 0.013355, 0.218911)),
    ((3000, 101, 0.4, (0.9, -0.6, -0.3), None), 1.168468, (0.407982, -2.162239, 1.41185, 0.75039)),
    ((1000, 103, 8.0, (0, 0, 0), (1, 1, 1)), 7.718977, (7.69881, -0.027223, -0.018127, 0.04535)),
    ((60, 104, 0.1, (1, 0, -1), (1, 2, 3)), 20.0, (0.104785, -10.476602, 0.391361, 10.085241)),
    ((2000, 105, 30.0, (0, 0, 0), None), 20.0, (20.0, -0.071363, 0.084198, -0.012835)),
    ((2000, 106, 0.02, (0, 0, 0), None), 0.05, (0.05, 0.211357, -0.215523, 0.004165)),
]


@pytest.mark.parametrize(("drawn", "temperature", "both"), FITTED)
def test_the_fits_agree_with_other_methods_to_six_digits(
    drawn: tuple[int, int, float, tuple[float, ...], Any], temperature: float, both: tuple[float, ...]
) -> None:
    n, seed, scale, shift, weights = drawn
    labels, logits = drawn_logits(n, seed)
    logits = logits * scale + np.array(shift)
    assert fit_temperature(logits, labels, weights) == pytest.approx(temperature, abs=1.5e-6)
    fitted, bias = fit_bias_and_temperature(logits, labels, weights)
    assert (fitted, *bias) == pytest.approx(both, abs=1.5e-6)


def test_temperatures_stay_in_range() -> None:
    labels = np.tile([0, 1, 2], 50)
    perfect, upside_down = np.eye(3)[labels] / 2, -np.eye(3)[labels] / 2
    assert fit_bias_and_temperature(perfect, labels)[0] == pytest.approx(0.05)
    assert fit_bias_and_temperature(upside_down, labels)[0] == pytest.approx(20)
    with pytest.raises(ConfigError, match="no label 1 among"):
        fit_bias_and_temperature(perfect[labels != 1], labels[labels != 1])


# --- a model on a dataset --------------------------------------------------------------------------


def small_dataset(n: int = 90, size: int = 37, **changes: Any) -> Dataset:
    """Return simulated noise with labels, photometry that tells the classes, and a split in three."""
    rng = np.random.default_rng(3)
    labels = np.arange(n) % 3
    w1 = rng.uniform(12, 17, n)
    w2 = w1 - np.choose(labels, [0.2, 1.2, 0.0]) + rng.normal(0, 0.2, n)
    w3 = w2 - np.choose(labels, [2.5, 2.8, 0.1]) + rng.normal(0, 0.2, n)
    rows = pa.table(
        {
            "source_id": [f"s{i}" for i in range(n)],
            "ra": rng.uniform(0, 360, n),
            "dec": rng.uniform(-60, 60, n),
            **{f"{b}mpro": pa.array(m, pa.float32()) for b, m in zip(BANDS, (w1, w2, w3), strict=True)},
            "w1snr": pa.array(rng.uniform(2, 60, n), pa.float32(), mask=np.arange(n) == 5),
            "split": np.array(["train", "val", "test"])[np.arange(n) // 3 % 3],
        }
    )
    pixels = rng.normal(3, 1, (n, 3, size, size)).astype(np.float32)
    parts = {"simulated": True, "counts": {}}
    return replace(Dataset(pixels, labels, rows, Cut(size, BANDS), (20.5, 19.5, 18.0), parts, None), **changes)


@pytest.fixture(scope="module")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained colour network: photometry alone."""
    torch.manual_seed(1)
    fields = {
        "name": "colour",
        "network": "colour",
        "network_options": {},
        "cut": Cut(37, BANDS),
        "composite": atlas_settings(BANDS),
        "preprocessing": Preprocessing(80, (0.0,) * 3, (1.0,) * 3),
        "photometry": PhotometrySettings(("w1-w2", "w2-w3"), (0.5, 2.0), (0.5, 1.0)),
        "classes": DEFAULT_CLASSES,
        "temperature": 2.0,
        "training": {"simulated": True, "label": "random weights, for tests"},
    }
    path = tmp_path_factory.mktemp("models") / "colour"
    return save_bundle(path, fields, build("colour", features=2).state_dict())


@pytest.mark.integration
def test_an_evaluation_of_two_models_says_all_it_should(bundle: Path, colour_bundle: Bundle, tmp_path: Path) -> None:
    data = small_dataset()
    found = evaluate_models([str(bundle), colour_bundle], data, device="cpu", precision="fp32", draws=60)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["n"] == 30 and found["simulated_data"] and "SIMULATED" in found["caveats"][0]
    assert any("purity" in words for words in found["caveats"])
    assert [m["name"] for m in found["models"]] == ["untrained", "colour"]
    assert [(d["a"], d["b"]) for d in found["differences"]] == [
        ("untrained", "colour"), ("untrained", "colour cuts"), ("colour", "colour cuts"),
    ]  # fmt: skip
    assert found["colour_cuts"]["balanced_accuracy"] > 0.9 and "ece" not in found["colour_cuts"]
    assert set(found["models"][0]["strata"]) == {"w1snr", "w1mpro", "abs_b_deg"}
    test = rows_of(data, "test")
    expected = scores(data.labels[test], probabilities_of(colour_bundle, data, test, "cpu", "fp32"), DEFAULT_CLASSES)
    alone = evaluate(colour_bundle, data, device="cpu", precision="fp32", draws=60)
    for name in ("accuracy", "recall", "ece", "confusion"):
        assert found["models"][1][name] == expected[name] == alone[name]
    assert alone["intervals"] == found["models"][1]["intervals"] and alone["model_id"] == colour_bundle.model_id
    assert evaluate(colour_bundle, data, "all", "cpu", "fp32", draws=10)["n"] == 90


@pytest.mark.integration
def test_probabilities_are_the_calibrated_logits(bundle: Path, colour_bundle: Bundle) -> None:
    data = small_dataset(30)
    for model in (load_bundle(bundle), colour_bundle):
        z = logits_of(model, data, None, "cpu", "fp32")
        p = probabilities_of(model, data, np.array([7, 2]), "cpu", "fp32")
        expected = softmax(z / model.temperature + np.array(model.bias))[[7, 2]]
        assert p == pytest.approx(expected, abs=1e-5)


@pytest.mark.integration
def test_rows_that_a_model_has_seen_are_told(colour_bundle: Bundle, tmp_path: Path) -> None:
    parts = {"simulated": True, "counts": {}}
    here, there, unknown = (small_dataset(provenance=parts | more) for more in (
        {"digests": {"pixels": "p1"}}, {"digests": {"pixels": "p2"}}, {},
    ))  # fmt: skip
    print_ = replace(colour_bundle, training=colour_bundle.training | {"fingerprint": {"pixels": "p1"}})

    def told(model: Bundle, data: Dataset, split: str) -> list[str]:
        words = evaluate(model, data, split, "cpu", "fp32", draws=5)["caveats"]
        return [w.split(" ", 1)[0] for w in words if "flatter" in w]

    for split in ("train", "val", "all"):
        assert told(print_, here, split) == ["Fitted"]
        assert told(print_, there, split) == told(print_, unknown, split) == ["May"]
        assert told(colour_bundle, here, split) == ["May"], "a model that does not say what it was trained on"
    assert told(print_, here, "test") == []
    again = print_.training["fingerprint"] | {"rows": "split otherwise"}
    resplit = replace(print_, training=print_.training | {"fingerprint": again})
    assert told(resplit, here, "test") == ["Fitted"], "the same sources, but other ones are for testing"
    fitted = calibrate(colour_bundle, here, "test", tmp_path / "fitted", device="cpu", precision="fp32")
    assert fitted.training["calibration"]["pixels"] == "p1"
    assert (told(fitted, here, "test"), told(fitted, there, "test")) == (["Fitted"], ["May"])
    blind = calibrate(colour_bundle, unknown, "test", tmp_path / "blind", device="cpu", precision="fp32")
    assert blind.training["calibration"]["pixels"] is None
    assert told(blind, unknown, "test") == told(blind, here, "test") == ["May"]


def test_a_dataset_that_does_not_fit_is_refused_in_one_message(bundle: Path, colour_bundle: Bundle) -> None:
    data = small_dataset(30, size=21, cut=Cut(21, ("w1", "w2", "w4")))
    data = replace(data, rows=data.rows.drop_columns("w3mpro"))
    with pytest.raises(ConfigError, match=r"37 px.*21 px.*needs w3, the dataset has.*column w3mpro"):
        evaluate_models([str(bundle), colour_bundle], data)
    with pytest.raises(ConfigError, match="named twice"):
        evaluate_models([colour_bundle, colour_bundle], small_dataset(30))
    few = small_dataset(6)
    with pytest.raises(ConfigError, match="no rows of split 'test'"):
        evaluate(colour_bundle, few)
    with pytest.raises(ConfigError, match="does not say `simulated`"):
        evaluate(colour_bundle, small_dataset(30, provenance={}), device="cpu")


def test_a_dataset_without_magnitudes_has_no_cuts(bundle: Path) -> None:
    data = small_dataset(18)
    data = replace(data, rows=data.rows.select(["source_id", "ra", "dec", "split"]))
    found = evaluate(load_bundle(bundle), data, "all", "cpu", "fp32", draws=20)
    assert found["colour_cuts"] is None and set(found["strata"]) == {"abs_b_deg"}


@pytest.mark.integration
def test_photometry_that_rows_lack_is_told_and_a_model_of_nothing_else_is_refused(
    bundle: Path, colour_bundle: Bundle
) -> None:
    data = small_dataset(18)
    nothing = pa.nulls(18, pa.float32())
    for name in ("w1mpro", "w2mpro", "w3mpro", "w1snr"):
        data = replace(data, rows=data.rows.set_column(data.rows.column_names.index(name), name, nothing))
    found = evaluate(load_bundle(bundle), data, "all", "cpu", "fp32", draws=20)
    assert found["colour_cuts"] is None, "cuts on no magnitude call all sources stars"
    with pytest.raises(ConfigError, match="looks at w1mpro, w2mpro, w3mpro alone, and no row has a value"):
        evaluate(colour_bundle, data, "all")
    half = small_dataset(18)
    some = pa.array([15.0] * 9 + [None] * 9, pa.float32())
    for name in ("w1mpro", "w2mpro", "w3mpro"):
        half = replace(half, rows=half.rows.set_column(half.rows.column_names.index(name), name, some))
    told = evaluate(colour_bundle, half, "all", "cpu", draws=20)["caveats"]
    assert any("colour looks at photometry, and 9 of the 18 rows have none" in words for words in told)


@pytest.mark.integration
def test_calibrate_leaves_a_bundle_that_knows_where_it_comes_from(colour_bundle: Bundle, tmp_path: Path) -> None:
    data = small_dataset(900)
    made = calibrate(colour_bundle, data, out=tmp_path / "better", kind="bias", device="cpu", precision="fp32")
    assert made == load_bundle(tmp_path / "better") and made.weights_sha256 == colour_bundle.weights_sha256
    record = made.training["calibration"]
    assert record["simulated"] and record["of"] == colour_bundle.model_id and record["split"] == "val"
    assert record["loss_after"] < record["loss_before"] and sum(record["counts"].values()) == 300
    assert sum(made.bias) == pytest.approx(0, abs=1e-5)
    val = rows_of(data, "val")
    p = probabilities_of(made, data, val, "cpu", "fp32")
    assert scores(data.labels[val], p, DEFAULT_CLASSES)["nll"] == pytest.approx(record["loss_after"], abs=1e-4)
    plain = calibrate(colour_bundle, data, out=tmp_path / "plain", prior="equal", device="cpu", precision="fp32")
    assert plain.bias == (0, 0, 0) and plain.training["prior"] == "equal classes"
    pair = evaluate_models([made, plain], data, device="cpu", draws=20)
    assert [m["name"] for m in pair["models"]] == ["better", "plain"]
    with pytest.raises(ConfigError, match="kind = 'magic'.*prior = 'sky'"):
        calibrate(colour_bundle, data, out=tmp_path / "no", kind="magic", prior="sky")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(BundleError, match="not a model bundle"):
        calibrate(colour_bundle, data, out=tmp_path / "full")


def test_a_calibration_in_bins_is_kept_in_the_bundle(colour_bundle: Bundle, tmp_path: Path) -> None:
    data = small_dataset(1500)
    made = calibrate(colour_bundle, data, out=tmp_path / "binned", kind="bins", device="cpu", precision="fp32")
    again, val = load_bundle(tmp_path / "binned"), rows_of(data, "val")
    assert again == made and made.model_id != colour_bundle.model_id and made.temperature == colour_bundle.temperature
    assert made.binned_calibration is not None and made.binned_calibration.classes == made.classes
    before, p = (probabilities_of(b, data, val, "cpu", "fp32") for b in (colour_bundle, made))
    np.testing.assert_array_equal(before, p)
    w1, labels = floats(data.rows["w1mpro"])[val], data.labels[val]
    b = abs_galactic_latitude_deg(floats(data.rows["ra"])[val], floats(data.rows["dec"])[val])
    fitted, index = calibrated_in_bins(p, w1, b, made.binned_calibration)
    known = index >= 0
    assert np.array(made.binned_calibration.counts).sum() == known.sum() > 0.5 * len(val)
    assert negative_log_likelihood(np.log(fitted[known]), labels[known]) < negative_log_likelihood(
        np.log(p[known]), labels[known]
    )
    record = made.training["binned_calibration"]
    assert record["of"] == colour_bundle.model_id and record["split"] == "val" and record["simulated"]
    assert set(record["held_out_loss"]) == {"temperature", "vector"}
    with pytest.raises(ConfigError, match="too few rows for a bin of .b.: give 100"):
        calibrate(colour_bundle, small_dataset(30), out=tmp_path / "few", kind="bins", device="cpu")
    with pytest.raises(ConfigError, match="the kind bins is fitted for the class shares of the sample: leave out"):
        calibrate(colour_bundle, data, out=tmp_path / "no", kind="bins", prior="equal", device="cpu")


@pytest.mark.integration
def test_statistics_of_outliers_are_kept_in_the_bundle(colour_bundle: Bundle, tmp_path: Path) -> None:
    data, plain = small_dataset(1500), make_bundle(tmp_path / "plain")
    made = calibrate(plain, data, "all", tmp_path / "made", kind="outliers", device="cpu", precision="fp32")
    statistics = load_bundle(tmp_path / "made").outliers
    assert statistics is not None and statistics == made.outliers and np.sum(statistics.counts) == 1500
    assert made.digest != plain.digest and made.weights_sha256 == plain.weights_sha256
    assert made.training["outliers"]["of"] == plain.model_id and made.training["outliers"]["split"] == "all"
    everything = np.arange(1500)
    pair = (probabilities_of(b, data, everything, "cpu", "fp32") for b in (plain, made))
    np.testing.assert_array_equal(*pair)
    scores_of_all = statistics.scores(embeddings_of(made, data, None, "cpu", "fp32"), floats(data.rows["w1mpro"]))
    assert 0 < np.mean(scores_of_all > 1) < 0.04
    with pytest.raises(ConfigError, match="the network of the model gives no embedding"):
        calibrate(colour_bundle, data, "all", tmp_path / "no", kind="outliers", device="cpu")


def test_the_training_log_beside_a_bundle_is_read(colour_bundle: Bundle) -> None:
    log = Path(f"{colour_bundle.path}.jsonl")
    assert training_log(colour_bundle) == []
    log.write_text('{"epoch": 1, "loss": 0.5}\n{"event": "resumed"}\n{"epoch": 2, "lo')
    try:
        assert training_log(colour_bundle) == [{"epoch": 1, "loss": 0.5}]
    finally:
        log.unlink()


@pytest.mark.slow
def test_an_evaluation_is_written_over_an_evaluation_only(
    colour_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `train`")
    found = evaluate_models([colour_bundle], small_dataset(90), device="cpu", draws=20)
    folder = write_evaluation(tmp_path / "out", found)
    assert {p.name for p in folder.glob("*.png")} == {
        f"{n}.png" for n in ("scores", "confusion", "roc", "reliability", "strata")
    }
    assert json.loads((folder / "evaluation.json").read_text()) == found
    text = (folder / "evaluation.md").read_text()
    assert "SIMULATED" in text.splitlines()[0] and "purity" in text and "Precision at assumed class shares" in text
    (folder / "evaluation.json").unlink()  # as an interrupted one leaves it
    write_evaluation(folder, found)
    monkeypatch.setattr("skyclass.report.evaluation_figures", lambda _: {})
    with pytest.raises(ConfigError, match="out holds an evaluation: give another folder with `-o`, or --overwrite"):
        write_evaluation(folder, found)
    assert list(folder.glob("*.png"))
    write_evaluation(folder, found, overwrite=True)
    assert not list(folder.glob("*.png")), "figures of the evaluation before are gone"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").write_text("")
    with pytest.raises(ConfigError, match="no evaluation"):
        write_evaluation(tmp_path / "other", found)
