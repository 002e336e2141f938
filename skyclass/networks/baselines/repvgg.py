"""RepVGG of Ding et al. 2021 (CVPR, arXiv:2101.03697): three branches in training, one convolution after.

No public variant has the 30.07 M parameters and 3.83 G of the row "RepVGG" in table 3 of Zhao et al. 2023. The nearest
official variants, with 3 classes at 224 px in training form, are A2 with 26.81 M and 5.70 G, and B0 with 14.54 M and
3.42 G. A2 is the default because the product of its two deviations is smaller, a factor of 1.7 against 2.3 for B0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..blocks import BN_MOMENTUM, ImageClassifier, conv_block, initialise
from ..folding import bias_of, conv_of, folded_conv


class Variant(NamedTuple):
    """Widths of the stem and of the four stages, and the number of blocks in each stage."""

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]


VARIANTS = {
    "A0": Variant(48, (48, 96, 192, 1280), (2, 4, 14, 1)),
    "A1": Variant(64, (64, 128, 256, 1280), (2, 4, 14, 1)),
    "A2": Variant(64, (96, 192, 384, 1408), (2, 4, 14, 1)),
    "B0": Variant(64, (64, 128, 256, 1280), (4, 6, 16, 1)),
}


class RepVGG(ImageClassifier):
    """RepVGG: (N, in_channels, S, S) images to (N, classes) logits; 26.81 M parameters with 3 classes.

    This is the training form; `fuse` gives the exact inference form, a plain chain of 3x3 convolutions.
    `variant` is A0, A1, A2 or B0 of the paper's table 2.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3, variant: str = "A2", init: str = "he") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(f"repvgg: variant={variant!r} is unknown: use one of {', '.join(VARIANTS)}")
        stem, widths, depths = VARIANTS[variant]
        blocks, width = [RepBlock(in_channels, stem, 2)], stem
        for n_out, depth in zip(widths, depths, strict=True):
            for i in range(depth):
                blocks.append(RepBlock(width, n_out, 2 if i == 0 else 1))
                width = n_out
        self.blocks = nn.Sequential(*blocks)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(width, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.blocks(images)  # (N, width, S/32, S/32)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled


class RepBlock(nn.Module):
    """3x3, 1x1 and, where the shape allows, identity, each with BatchNorm, summed; then ReLU."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.square = conv_block(n_in, n_out, 3, stride=stride, act=None)
        self.point = conv_block(n_in, n_out, 1, act=None)
        same = n_in == n_out and stride == 1
        self.identity = nn.BatchNorm2d(n_out, momentum=BN_MOMENTUM) if same else None
        self.relu = nn.ReLU()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # Slicing replaces the stride: on CPUs the bf16 gradient of a strided 1x1 convolution of three channels writes
        # outside its buffer (oneDNN 3.12, avx512_core_bf16, channels_last), and the process crashes later.
        thinned = x[:, :, :: self.stride, :: self.stride]
        y = self.square(x) + self.point(thinned)
        out: Tensor = self.relu(y if self.identity is None else y + self.identity(x))
        return out

    def fused(self) -> nn.Sequential:
        """Return the exact inference form: one 3x3 convolution and the ReLU."""
        square, point = folded_conv(self.square), folded_conv(self.point)
        weight = square.weight + F.pad(point.weight, (1, 1, 1, 1))
        bias = bias_of(square) + bias_of(point)
        if self.identity is not None:
            scale, shift = _affine(self.identity)
            weight = weight + F.pad(torch.diag(scale)[:, :, None, None], (1, 1, 1, 1))
            bias = bias + shift
        return nn.Sequential(conv_of(weight, bias, self.stride), nn.ReLU(inplace=True))


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a BatchNorm in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean
