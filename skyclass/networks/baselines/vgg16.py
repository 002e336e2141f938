"""VGG16, configuration D of Simonyan and Zisserman 2015 (ICLR, arXiv:1409.1556), without BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import ImageClassifier, conv_block, initialise

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the 3x3 convolutions between the five poolings."""
GRID = 7
HIDDEN = 4096
DROPOUT = 0.5


class VGG16(ImageClassifier):
    """VGG16: (N, in_channels, S, S) images to (N, classes) logits; 134.27 M parameters with 3 classes.

    The last feature map is averaged to 7 x 7, its size for the 224 px of the paper, so that the same linear layers
    accept any S from 32 px on. The row "VGG16" of Zhao et al. 2023, table 3, is this network at 224 px.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3, init: str = "he") -> None:
        super().__init__()
        self.convs = nn.Sequential(*_convolutions(in_channels))
        self.grid = nn.AdaptiveAvgPool2d(GRID)
        self.hidden = nn.Sequential(
            *(nn.Linear(STAGES[-1][-1] * GRID**2, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)),
            *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)),
        )
        self.head = nn.Sequential(nn.Linear(HIDDEN, classes))
        initialise(self, init)

    def features(self, images: Tensor) -> Tensor:
        x = self.grid(self.convs(images))  # (N, 512, 7, 7)
        hidden: Tensor = self.hidden(x.flatten(1))
        return hidden


def _convolutions(n_in: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for stage in STAGES:
        for width in stage:
            layers.append(conv_block(n_in, width, 3, bias=True, norm=False))
            n_in = width
        layers.append(nn.MaxPool2d(2))
    return layers
