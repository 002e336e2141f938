"""A random forest (Breiman 2001, Machine Learning 45, 5) as a network: complete binary trees in tensors.

Trees of equal depth make the shapes of the tensors depend on the options alone. A branch that ends early repeats its
leaf: everything goes left there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError

MOST_TREES, MOST_LEVELS = 10_000, 14
LEAST_SHARE = 1e-7
"""Logits are logarithms: the share of a class that no leaf has seen becomes this."""


class ForestNet(nn.Module):
    """Random forest: standardised photometry (N, features) to (N, classes) float32 logits, log of the mean leaf shares.

    It has 76,800 parameters with the defaults, the class shares (trees, 2**depth, classes) of its leaves. The splits
    are buffers: `split_feature` and `threshold` (trees, 2**depth - 1), the nodes of each tree level by level. A source
    goes left where its feature is at most the threshold. `skyclass.training.fit.forest` fits it; the leaves of a new
    network have equal shares.
    """

    inputs = ("photometry",)
    split_feature: Tensor
    threshold: Tensor

    def __init__(self, features: int = 2, classes: int = 3, trees: int = 100, depth: int = 8) -> None:
        super().__init__()
        if not (features >= 1 and 1 <= trees <= MOST_TREES and 1 <= depth <= MOST_LEVELS):
            raise ConfigError(
                f"forest: features={features!r}, trees={trees!r} and depth={depth!r} must be one or more, at most "
                f"{MOST_TREES:,} trees and a depth of {MOST_LEVELS}"
            )
        self.trees, self.depth = trees, depth
        self.n_splits = 2**depth - 1
        self.register_buffer("split_feature", torch.zeros((trees, self.n_splits), dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros((trees, self.n_splits)))
        self.leaves = nn.Parameter(torch.full((trees, 2**depth, classes), 1 / classes))

    def forward(self, photometry: Tensor) -> Tensor:
        tree = torch.arange(self.trees, device=photometry.device)
        node = torch.zeros((len(photometry), self.trees), dtype=torch.int64, device=photometry.device)
        for _ in range(self.depth):
            value = photometry.gather(1, self.split_feature[tree, node])
            node = 2 * node + 1 + (value > self.threshold[tree, node])
        shares = self.leaves[tree, node - self.n_splits].mean(1)
        return shares.clamp_min(LEAST_SHARE).log()
