"""Parts that the networks share: the convolution block, the base class of classifiers, and initial weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError

BN_MOMENTUM = 0.1
"""The published code of RFB and CBAM uses 0.01; running statistics then lag by hundreds of steps."""
HEAD_STD = 0.01
"""Standard deviation of the last layer's weights: training starts from nearly equal probabilities."""
INITS = ("torch", "he")


class ImageClassifier(nn.Module):
    """Base class of an image network: `features` returns (N, W), and `head` maps it to (N, classes) float32 logits.

    A subclass sets `head`, an `nn.Sequential` that ends with the linear layer of the logits.
    """

    head: nn.Sequential

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the head, (N, W), for images (N, in_channels, S, S)."""
        raise NotImplementedError(f"{type(self).__name__} must define `features`")

    def embed(self, images: Tensor) -> Tensor:
        """Return the input of the last linear layer, (N, W') float32, for images (N, in_channels, S, S)."""
        return full_precision(self.head[:-1], self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return full_precision(self.head, self.features(images))


def full_precision(head: nn.Module, x: Tensor) -> Tensor:
    """Return `head(x)` in float32, also under autocast: bf16 logits would have three digits."""
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
    """Return a convolution, BatchNorm if `norm`, and the activation `act`. Only `stride` changes the size."""
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
    """Return linear layers from each width to the next, each followed by BatchNorm if `norm`, and ReLU."""
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b, momentum=BN_MOMENTUM)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def initialise(network: nn.Module, init: str) -> None:
    """Draw the weights of all convolutions and linear layers in place; `ConfigError` for another `init`.

    "torch" keeps the weights and biases that torch has drawn. "he" is He et al. 2015 (arXiv:1502.01852) with fan-in and
    the gain of ReLU, biases 0, and small weights in the last linear layer. Fan-in keeps the scale of the activations
    through networks without BatchNorm.
    """
    if init not in INITS:
        raise ConfigError(f"init={init!r} is unknown: use one of {', '.join(INITS)}")
    if init == "torch":
        return
    linear = None
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        linear = layer if isinstance(layer, nn.Linear) else linear
    if linear is not None:
        nn.init.normal_(linear.weight, std=HEAD_STD)
