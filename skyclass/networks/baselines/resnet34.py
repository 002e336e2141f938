"""ResNet34 of He et al. 2016 (CVPR, arXiv:1512.03385), by default with the doubled widths of a tutorial.

The row "ResNet34" of Zhao et al. 2023, table 3 (46.99 M parameters, 12.25 G) fits stages of the widths 128/256/512/512,
which an early edition of a much copied PyTorch tutorial has, not those of the paper, 64/128/256/512 (21.29 M, 3.68 G).
The option `widths` selects either.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..blocks import ImageClassifier, conv_block, initialise

DEPTHS = (3, 4, 6, 3)
STEM = 64
PUBLISHED = (64, 128, 256, 512)
TUTORIAL = (128, 256, 512, 512)


class ResNet34(ImageClassifier):
    """ResNet34: (N, in_channels, S, S) images to (N, classes) logits; 46.994 M parameters with 3 classes.

    `widths` are those of the four stages: (128, 256, 512, 512) reproduces table 3 of Zhao et al. 2023,
    (64, 128, 256, 512) is the network of He et al. 2016. The first block of a stage has a 1x1 shortcut where
    width or stride change.
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 3, widths: Sequence[int] = TUTORIAL, init: str = "he"
    ) -> None:
        super().__init__()
        if len(widths) != len(DEPTHS):
            raise ConfigError(f"resnet34: widths={widths!r} must be four, such as {TUTORIAL} or {PUBLISHED}")
        self.stem = nn.Sequential(*conv_block(in_channels, STEM, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        blocks, width = [], STEM
        for stage, (depth, n_out) in enumerate(zip(DEPTHS, widths, strict=True)):
            for i in range(depth):
                blocks.append(Residual(width, n_out, stride=2 if i == 0 and stage > 0 else 1))
                width = n_out
        self.blocks = nn.Sequential(*blocks)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(width, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images))  # (N, 512, S/32, S/32)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, n_in, H, W) to (N, n_out, H/stride, W/stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_block(n_in, n_out, 3, stride=stride), conv_block(n_out, n_out, 3, act=None))
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_block(n_in, n_out, 1, stride=stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))
