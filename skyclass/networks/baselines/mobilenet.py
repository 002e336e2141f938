"""MobileNet v1, width 1.0, of Howard et al. 2017 (arXiv:1704.04861), with a bias on every convolution."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..blocks import ImageClassifier, conv_block, initialise

STEM = 32
LAYERS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
"""Table 1 of the paper: width and stride of the thirteen depthwise-separable layers."""

conv = partial(conv_block, bias=True)


class MobileNet(ImageClassifier):
    """MobileNet v1: (N, in_channels, S, S) images to (N, classes) logits; 3.221 M parameters with 3 classes.

    The biases precede a BatchNorm and change only the number of parameters: with them it is that of Zhao et al. 2023,
    table 3 (3.22 M, 587.94 M), without them 3.210 M.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3, init: str = "he") -> None:
        super().__init__()
        self.stem = conv(in_channels, STEM, 3, stride=2)
        layers, width = [], STEM
        for n_out, stride in LAYERS:
            layers += [conv(width, width, 3, stride=stride, groups=width), conv(width, n_out, 1)]
            width = n_out
        self.layers = nn.Sequential(*layers)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(width, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.layers(self.stem(images))  # (N, 1024, S/32, S/32)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled
