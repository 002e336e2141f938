"""The classic methods: random forest, support vector machine, logistic regression; on photometry or embeddings.

    photometry features (N, F), NaN unknown  --+
                                               +-->  impute, scale, fit  -->  probabilities (N, 3)
    embedding of a network (N, 64)           --+

scikit-learn is imported where it is used; it comes with the extra `train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from skyclass.errors import BundleError, ConfigError
from skyclass.model.bundle import Bundle, Preprocessing, load_weights
from skyclass.model.devices import resolve_device
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build, network_inputs
from skyclass.training.data.composites import composites
from skyclass.training.data.dataset import Dataset
from skyclass.training.extra import train_extra
from skyclass.types import DEFAULT_CLASSES, Float16, Float32, Int64

TREES = 400
LEAF_ROWS = 3
"""Rows in a leaf: with single rows in the leaves the probabilities of a forest are far too sure."""
TREE_ROWS = 100_000
"""Rows a tree draws at most, so that a million sources stay minutes."""
SVM_ROWS = 20_000
"""Rows an SVM is fitted on at most; its time grows with their square."""
FOLDS = 3


@dataclass(frozen=True)
class Classic:
    """A fitted classic method: a scikit-learn pipeline whose answers come in the order of `DEFAULT_CLASSES`."""

    name: str
    pipeline: Any

    def predict_proba(self, x: Float32) -> Float32:
        """Return (N, 3) float32 probabilities for features (N, F), NaN = unknown; 0 for a class never seen."""
        out = np.zeros((len(x), len(DEFAULT_CLASSES)), dtype=np.float32)
        if len(x):
            out[:, self.pipeline.classes_] = self.pipeline.predict_proba(np.asarray(x, dtype=np.float32))
        return out


def fit_forest(x: Float32, y: Int64, seed: int, *, trees: int = TREES, jobs: int = 1) -> Classic:
    """Return a random forest (Breiman 2001, Machine Learning 45, 5) fitted to features (N, F) and labels (N,).

    Unknown features (NaN) become the training median, with an indicator column beside them. Classes weigh
    the same whatever their numbers. `jobs` threads; the result does not depend on them. Raises `ConfigError`.
    """
    check_rows(x, y)
    with train_extra("the random forest"):
        from sklearn.ensemble import RandomForestClassifier
    forest = RandomForestClassifier(
        n_estimators=trees,
        min_samples_leaf=LEAF_ROWS,
        max_samples=TREE_ROWS if len(x) > TREE_ROWS else None,
        class_weight="balanced",
        random_state=seed,
        n_jobs=jobs,
    )
    return _fitted("random forest", [_imputer(), forest], x, y)


def fit_svm(x: Float32, y: Int64, seed: int, *, c: float = 1.0, max_rows: int = SVM_ROWS) -> Classic:
    """Return a support vector machine with an RBF kernel (Cortes & Vapnik 1995) on scaled features (N, F).

    Probabilities are Platt's sigmoids, fitted on held-out thirds. Unknown features as in `fit_forest`. Beyond
    `max_rows` a random part of the rows is used, each class in its share. Raises `ConfigError`.
    """
    check_rows(x, y)
    with train_extra("the support vector machine"):
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedKFold
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    if (least := int(np.bincount(y)[np.unique(y)].min())) < FOLDS:
        raise ConfigError(f"support vector machine: a class has only {least} rows, {FOLDS} are needed to calibrate it")
    chosen = thinned(y, max_rows, seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    machine = CalibratedClassifierCV(SVC(C=c, class_weight="balanced", random_state=seed), cv=folds, ensemble=False)
    return _fitted("support vector machine", [_imputer(), StandardScaler(), machine], x[chosen], y[chosen])


def fit_logistic(x: Float32, y: Int64, seed: int, *, c: float = 1.0) -> Classic:
    """Return a logistic regression on scaled features (N, F): the linear probe of an embedding."""
    check_rows(x, y)
    with train_extra("the logistic regression"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    regression = LogisticRegression(C=c, class_weight="balanced", max_iter=2000, random_state=seed)
    return _fitted("logistic regression", [_imputer(), StandardScaler(), regression], x, y)


METHODS: dict[str, Callable[..., Classic]] = {"forest": fit_forest, "svm": fit_svm, "logistic": fit_logistic}


def embeddings(bundle: Bundle, dataset: Dataset, index: Int64, device: str = "auto") -> Float32:
    """Return what the last layer of a bundle's network sees of the sources at `index`: (N, 64) for IICnet.

    Fit any of `METHODS` on it. Raises `ConfigError` when the network has no embedding of images or the dataset
    is cut otherwise.
    """
    if dataset.cut.size_px != bundle.cut.size_px:
        raise ConfigError(
            f"the dataset is cut at {dataset.cut.size_px} px, {bundle.name} expects {bundle.cut.size_px}: "
            f"make the dataset with --size {bundle.cut.size_px}px"
        )
    images = composites(dataset, bundle.bands, bundle.composite)
    return embed_images(network_of(bundle), bundle.preprocessing, images, index, device)


def embed_images(
    network: nn.Module,
    preprocessing: Preprocessing,
    images: Float16,
    index: Int64 | None = None,
    device: str = "auto",
    batch_size: int = 256,
) -> Float32:
    """Return the embedding (N, D) float32 of composites (M, C, S, S) at `index`, all of them by default.

    `images` may be memory-mapped: a batch is read at a time. The network is left in eval mode.
    """
    embed = getattr(network, "embed", None)
    if embed is None:
        raise ConfigError(f"{type(network).__name__} has no embedding of images: take iicnet")
    place = torch.device(resolve_device(device))
    network.to(place).eval()
    preprocess = Preprocess(preprocessing).to(place)
    rows = np.arange(len(images)) if index is None else index
    parts = np.array_split(rows, max(1, math.ceil(len(rows) / batch_size)))
    with torch.inference_mode():
        found = [embed(preprocess(torch.from_numpy(images[part]).to(place))).float().cpu() for part in parts]
    result: Float32 = torch.cat(found).numpy()
    return result


def network_of(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle as it was trained, unfused, in eval mode, on the CPU.

    Raises `ConfigError` for one that takes more than images, `BundleError` when the weights do not fit.
    """
    if network_inputs(bundle.network) != ("images",):
        raise ConfigError(f"{bundle.name} is a {bundle.network} network: give a bundle that sees images only")
    network = build(bundle.network, **bundle.network_options)
    try:
        network.load_state_dict(load_weights(bundle))
    except RuntimeError as error:
        raise BundleError(f"the weights of {bundle.path} do not fit network {bundle.network!r}: {error}") from error
    return network.eval()


def thinned(y: Int64, max_rows: int, seed: int) -> Int64:
    """Return sorted positions of at most about `max_rows` rows, each class in its share and none left out."""
    if len(y) <= max_rows:
        return np.arange(len(y))
    generator = np.random.default_rng(seed)
    share = max_rows / len(y)
    groups = [np.flatnonzero(y == k) for k in np.unique(y)]
    return np.sort(np.concatenate([generator.permutation(g)[: max(FOLDS, round(share * len(g)))] for g in groups]))


def check_rows(x: Float32, y: Int64) -> None:
    """Raise `ConfigError` with every reason why features (N, F) and labels (N,) cannot be fitted."""
    problems = []
    if x.ndim != 2 or len(x) != len(y):
        problems.append(f"features {x.shape} and labels {y.shape} do not belong together: give (N, F) and (N,)")
    if np.isinf(x).any():
        problems.append("a feature is infinite: give NaN where it is unknown")
    if not ((y >= 0) & (y < len(DEFAULT_CLASSES))).all():
        problems.append(f"a label is not an index into {DEFAULT_CLASSES}")
    if len(np.unique(y)) < 2:
        problems.append("the labels hold fewer than two classes")
    if problems:
        raise ConfigError("classic method: " + "; ".join(problems))


def _imputer() -> Any:
    from sklearn.impute import SimpleImputer

    return SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)


def _fitted(name: str, steps: list[Any], x: Float32, y: Int64) -> Classic:
    from sklearn.pipeline import make_pipeline

    return Classic(name, make_pipeline(*steps).fit(np.asarray(x, dtype=np.float32), y))
