"""The networks, by name: `build("iicnet")` gives a module from (N, bands, 80, 80) images to (N, 3) logits.

`NETWORKS` has the reconstruction of IICnet, the six networks it is compared with in table 3 of Zhao et al.
2023, and those on colours and on images with colours. `INPUTS` says what each is called with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .colour import ColourNet
from .count import macs, parameters
from .efficientnetv2 import EfficientNetV2
from .folding import fuse
from .fusion import FusionNet
from .googlenet import GoogLeNet
from .iicnet import IICnet
from .mobilenet import MobileNet
from .repvgg import RepVGG
from .resnet34 import ResNet34
from .vgg16 import VGG16

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "iicnet": IICnet,
    "vgg16": VGG16,
    "googlenet": GoogLeNet,
    "resnet34": ResNet34,
    "mobilenet": MobileNet,
    "efficientnetv2": EfficientNetV2,
    "repvgg": RepVGG,
    "colour": ColourNet,
    "fusion": FusionNet,
}

INPUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NETWORKS, ("images",)),
    "colour": ("photometry",),
    "fusion": ("images", "photometry"),
}
"""What `network(*inputs)` takes: images (N, bands, S, S), photometry (N, F)."""

FULL_PRECISION = ("head", "colour")
"""Parts that stay in float32: the logits keep their digits, and photometry is not rounded to three."""

__all__ = ["INPUTS", "NETWORKS", "build", "channels_last", "fuse", "macs", "parameters", "to_bf16"]


def build(name: str, **options: object) -> nn.Module:
    """Return a freshly initialised network: its `INPUTS` to (N, classes) float32 logits.

    An image network takes (N, in_channels, S, S) with S from 64 to 224 px.
    An unknown name or option raises `ConfigError` with the choices.

    >>> parameters(build("iicnet"))
    1748407
    """
    if name not in NETWORKS:
        raise ConfigError(f"network {name!r} is unknown: use one of {', '.join(sorted(NETWORKS))}")
    known = inspect.signature(NETWORKS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"network {name!r} has no option {', '.join(unknown)}: it has {', '.join(known)}")
    return NETWORKS[name](**options)


def to_bf16(network: nn.Module) -> nn.Module:
    """Return the network with its weights in bfloat16, but for heads, colour branches, and what a module names `wide`.

    What stands beside a wide part takes its float32 and gives bfloat16.
    """
    wide = getattr(network, "wide", ())
    for name, child in list(network.named_children()):
        if name in FULL_PRECISION or name in wide:
            continue
        to_bf16(child)
        for own in (*child.parameters(recurse=False), *child.buffers(recurse=False)):
            if own.is_floating_point():
                own.data = own.data.to(torch.bfloat16)
        has_wide = any(hasattr(inner, "wide") for inner in child.modules())
        if wide and not has_wide and not isinstance(child, nn.ModuleList):
            setattr(network, name, Narrow(child))
    return network


class Narrow(nn.Module):
    """A part of a network that works in bfloat16, whatever it is given."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.part(x.to(torch.bfloat16))
        return narrow


def channels_last(network: nn.Module) -> nn.Module:
    """Return the network with its weights laid out for (N, H, W, C) images: faster on CPU and GPU."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
