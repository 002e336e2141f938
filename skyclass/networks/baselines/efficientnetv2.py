"""EfficientNetV2-S of Tan and Le 2021 (ICML, arXiv:2104.00298), in the layout of the first public code.

The first version of the paper and the re-implementation in PyTorch of April 2021 end in a stage of 272 and a head of
1792 channels; later versions have 256 and 1280. The former fits the cost in table 3 of Zhao et al. 2023 (2.97 G). The
parameters of that row (24.18 M) are 0.2 % above those of its form with 1000 classes; with 3 classes it has 22.34 M.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..blocks import ImageClassifier, conv_block, initialise


class Stage(NamedTuple):
    """`depth` blocks of `width` channels, the first with `stride`; hidden layers have `expand` times its input."""

    expand: int
    width: int
    depth: int
    stride: int
    depthwise: bool
    """Depthwise convolution with squeeze and excitation (MBConv), else one full 3x3 (Fused-MBConv)."""


STEM = 24
STAGES = (
    Stage(1, 24, 2, 1, False),
    Stage(4, 48, 4, 2, False),
    Stage(4, 64, 4, 2, False),
    Stage(4, 128, 6, 2, True),
    Stage(6, 160, 9, 1, True),
    Stage(6, 272, 15, 2, True),
)
HEAD = 1792
SQUEEZE = 4

conv = partial(conv_block, act=nn.SiLU)


class EfficientNetV2(ImageClassifier):
    """EfficientNetV2-S: (N, in_channels, S, S) images to (N, classes) logits; 22.34 M parameters with 3 classes."""

    def __init__(self, in_channels: int = 3, classes: int = 3, init: str = "he") -> None:
        super().__init__()
        blocks, width = [], STEM
        for stage in STAGES:
            for i in range(stage.depth):
                blocks.append(MBConv(width, stage, stride=stage.stride if i == 0 else 1))
                width = stage.width
        self.stem = conv(in_channels, STEM, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.last = conv(width, HEAD, 1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(HEAD, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(images)))  # (N, 1792, S/32, S/32)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled


class MBConv(nn.Module):
    """Inverted residual block: (N, n_in, H, W) to (N, stage.width, H/stride, W/stride)."""

    def __init__(self, n_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden = n_in * stage.expand
        if stage.depthwise:
            widen = [
                conv(n_in, hidden, 1),
                conv(hidden, hidden, 3, stride=stride, groups=hidden),
                SqueezeExcitation(hidden, n_in // SQUEEZE),
            ]
        else:
            widen = [conv(n_in, hidden, 3, stride=stride)]
        self.body = nn.Sequential(*widen, conv_block(hidden, stage.width, 1, act=None))
        self.residual = stride == 1 and n_in == stage.width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class SqueezeExcitation(nn.Module):
    """Weights for channels from their means, Hu et al. 2018 (CVPR). The shape (N, C, H, W) is kept."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        hidden = -(-hidden // 8) * 8
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(self.gap(x).flatten(1)))
        return x * gate[:, :, None, None]
