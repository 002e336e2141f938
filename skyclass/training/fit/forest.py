"""Fit a forest with scikit-learn, and copy its trees into the tensors of `ForestNet`.

scikit-learn sees the same standardised photometry as the network: an unknown feature is 0, the training mean.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ...errors import ConfigError
from ...networks.forest import ForestNet
from ...types import Float32, Float64, Int64
from ..extra import train_extra
from .job import Job

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

MIN_LEAF_ROWS = 10
"""Training rows in a leaf: with fewer, the shares of rare classes follow single sources."""
NEVER = np.finfo(np.float32).max
"""Threshold of a node where every source goes left."""
ROWS = 4096
"""Rows in one call of the network."""


def fit_forest(job: Job) -> dict[str, Any]:
    """Fit the forest of a job to its training rows, and return the record of this only epoch."""
    network, photometry = job.network, job.photometry
    assert isinstance(network, ForestNet) and photometry is not None
    if job.group.world > 1:
        raise ConfigError(f"network 'forest' is fitted by one process, and this is one of {job.group.world} ranks")
    started, rows = time.monotonic(), job.train_rows
    x, labels = photometry[rows], job.dataset.labels[rows]
    weights = job.class_weights.cpu().numpy()[labels]
    copy_forest(fitted_forest(x, labels, weights, network.trees, network.depth, job.run.seed), network)
    return {
        "epoch": 1,
        "loss": loss_of(job, network, x, labels),
        "learning_rate": 0.0,
        "images_per_s": round(len(rows) / (time.monotonic() - started), 1),
    }


def fitted_forest(
    x: Float32, labels: Int64, weights: Float32, trees: int, depth: int, seed: int
) -> RandomForestClassifier:
    """Return a random forest of scikit-learn for features (N, F) without NaN, labels (N,) and weights (N,)."""
    with train_extra("network 'forest'"):
        from sklearn.ensemble import RandomForestClassifier
    forest = RandomForestClassifier(
        trees, max_depth=depth, min_samples_leaf=MIN_LEAF_ROWS, random_state=seed % 2**32, n_jobs=-1
    )
    return forest.fit(x, labels, weights)


@torch.no_grad()
def copy_forest(forest: RandomForestClassifier, network: ForestNet) -> None:
    """Copy the trees of a forest into a network of as many trees, and of its depth or more."""
    parts = zip(*(complete_tree(one.tree_, network.depth) for one in forest.estimators_), strict=True)
    for tensor, values in zip((network.split_feature, network.threshold, network.leaves), parts, strict=True):
        tensor.copy_(torch.from_numpy(np.stack(values)))


def complete_tree(tree: Any, depth: int) -> tuple[Int64, Float32, Float32]:
    """Return the feature and threshold of each node of a complete tree, level by level, and the shares of its leaves.

    `tree` is the attribute `tree_` of a decision tree of scikit-learn.
    """
    nodes, split_features, thresholds = np.zeros(1, np.int64), [], []
    for _ in range(depth):
        is_leaf = tree.children_left[nodes] < 0
        split_features.append(np.where(is_leaf, 0, tree.feature[nodes]))
        thresholds.append(np.where(is_leaf, NEVER, rounded_down(tree.threshold[nodes])))
        children = [np.where(is_leaf, nodes, side[nodes]) for side in (tree.children_left, tree.children_right)]
        nodes = np.stack(children, axis=1).ravel()
    counts = tree.value[nodes, 0]
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.concatenate(split_features), np.concatenate(thresholds), shares.astype(np.float32)


def rounded_down(thresholds: Float64) -> Float32:
    """Return the largest float32 that are not above thresholds: a float32 is below both or above both."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


@torch.inference_mode()
def loss_of(job: Job, network: ForestNet, x: Float32, labels: Int64) -> float:
    """Return the mean loss of a network on rows, weighted by class as in other trainings."""
    device = job.group.device
    parts = range(0, len(x), ROWS)
    logits = torch.cat([network(torch.from_numpy(x[first : first + ROWS]).to(device)) for first in parts])
    return float(F.cross_entropy(logits, torch.from_numpy(labels).to(device), job.class_weights))
