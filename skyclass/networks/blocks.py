"""What the networks share: the convolution block, the classifier's frame, and how weights start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BN_MOMENTUM = 0.1
"""The published RFB and CBAM code uses 0.01, with which running statistics lag by hundreds of steps."""
HEAD_STD = 0.01
"""Weights of the last layer: small, so that training starts from nearly equal probabilities."""


class ImageClassifier(nn.Module):
    """Frame of an image network: `features` gives (N, W), `head` turns it into (N, classes) float32 logits.

    A subclass sets `head`, an `nn.Sequential` that ends in the linear layer of the logits.
    """

    head: nn.Sequential

    def features(self, images: Tensor) -> Tensor:
        """Return what the head takes, (N, W), of images (N, in_channels, S, S)."""
        raise NotImplementedError(f"{type(self).__name__} must say how images become features")

    def embed(self, images: Tensor) -> Tensor:
        """Return what the last linear layer sees, (N, W') float32, of images (N, in_channels, S, S)."""
        return full_precision(self.head[:-1], self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return full_precision(self.head, self.features(images))


def full_precision(head: nn.Module, x: Tensor) -> Tensor:
    """Return `head(x)` in float32, under autocast too: bf16 logits would have three digits."""
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = head(x.float())
    return y


def conv_block(
    n_in: int,
    n_out: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    norm: bool = True,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return convolution, then BatchNorm if `norm`, then the activation `act`; size kept but for `stride`."""
    padding = dilation * (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, groups, bias=bias),
    ]
    if norm:
        layers.append(nn.BatchNorm2d(n_out, momentum=BN_MOMENTUM))
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)


def dense(widths: Sequence[int], *, norm: bool = False) -> nn.Sequential:
    """Return linear layers from each width to the next, each with BatchNorm if `norm`, and ReLU."""
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b, momentum=BN_MOMENTUM)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def initialise(network: nn.Module) -> None:
    """Draw the weights in place: He et al. 2015 by fan-in, biases 0, the last linear layer small.

    Fan-in keeps the scale of the activations through networks without BatchNorm (VGG16, GoogLeNet).
    """
    linear = None
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        linear = layer if isinstance(layer, nn.Linear) else linear
    if linear is not None:
        nn.init.normal_(linear.weight, std=HEAD_STD)
