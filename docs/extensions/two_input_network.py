"""A network that skyclass knows by its import path: it takes images and photometry."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoInputNetwork(nn.Module):
    """One convolution on images, one layer on photometry, and a layer on both."""

    inputs = ("images", "photometry")

    def __init__(self, in_channels: int = 3, features: int = 2, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.image_layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.photometry_layers = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor, photometry: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, in_channels, S, S) and photometry (N, features)."""
        both = torch.cat([self.image_layers(images), self.photometry_layers(photometry)], dim=1)
        logits: Tensor = self.head(both)
        return logits
