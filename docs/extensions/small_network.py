"""A network outside of skyclass: two convolutions and a mean."""

from __future__ import annotations

from torch import Tensor, nn


class SmallNetwork(nn.Module):
    """Images (N, in_channels, S, S) to logits (N, classes)."""

    def __init__(self, in_channels: int = 3, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 5, stride=2, padding=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images))
        return logits
