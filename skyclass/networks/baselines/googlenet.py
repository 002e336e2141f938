"""GoogLeNet as first published, Szegedy et al. 2015 (CVPR, arXiv:1409.4842): true 5x5, no BatchNorm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..blocks import ImageClassifier, conv_block, initialise

CELLS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Table 1 of the paper: widths of 1x1 | 3x3 reduction, 3x3 | 5x5 reduction, 5x5 | pool projection, by stage."""
DROPOUT = 0.4

conv = partial(conv_block, bias=True, norm=False)


class GoogLeNet(ImageClassifier):
    """GoogLeNet: (N, in_channels, S, S) images to (N, classes) logits; 5.977 M parameters with 3 classes.

    Convolutions have biases. The auxiliary classifiers and the local response normalisation of the paper are omitted,
    as in the implementation that has the counts of Zhao et al. 2023, table 3.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3, init: str = "he") -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(conv(in_channels, 64, 7, stride=2), _halve()),
            *(conv(64, 64, 1), conv(64, 192, 3), _halve()),
        )
        self.stage3, width = _stage(192, CELLS[0])
        self.stage4, width = _stage(width, CELLS[1])
        self.stage5, width = _stage(width, CELLS[2])
        self.halve = _halve()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.stage3(self.stem(images))  # (N, 480, S/8, S/8)
        x = self.stage5(self.halve(self.stage4(self.halve(x))))  # (N, 1024, S/32, S/32)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled


class Inception(nn.Module):
    """The inception cell: (N, n_in, H, W) to (N, sum of the four branch widths, H, W)."""

    def __init__(self, n_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        w1, lead3, w3, lead5, w5, w_pool = widths
        self.branch1 = conv(n_in, w1, 1)
        self.branch3 = nn.Sequential(conv(n_in, lead3, 1), conv(lead3, w3, 3))
        self.branch5 = nn.Sequential(conv(n_in, lead5, 1), conv(lead5, w5, 5))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(n_in, w_pool, 1))
        self.n_out = w1 + w3 + w5 + w_pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)), 1)


def _stage(n_in: int, cells: tuple[tuple[int, ...], ...]) -> tuple[nn.Sequential, int]:
    """Return the cells of a stage in sequence, and the width of the last one."""
    stage = []
    for widths in cells:
        stage.append(Inception(n_in, widths))
        n_in = stage[-1].n_out
    return nn.Sequential(*stage), n_in


def _halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)
