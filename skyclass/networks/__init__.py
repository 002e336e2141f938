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
    """Return the network with weights in bfloat16, except heads, colour branches and the parts in `keep_fp32`.

    A module names the parts that stay in float32 in its attribute `keep_fp32`. The parts beside them cast their float32
    input to bfloat16.
    """
    keep_fp32 = getattr(network, "keep_fp32", ())
    for name, child in list(network.named_children()):
        if name in FULL_PRECISION or name in keep_fp32:
            continue
        to_bf16(child)
        for tensor in (*child.parameters(recurse=False), *child.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)
        is_mixed = any(hasattr(inner, "keep_fp32") for inner in child.modules())
        if keep_fp32 and not is_mixed and not isinstance(child, nn.ModuleList):
            setattr(network, name, CastBf16(child))
    return network


class CastBf16(nn.Module):
    """A part of a network that computes in bfloat16 for an input of any type."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x.to(torch.bfloat16))
        return y


def channels_last(network: nn.Module) -> nn.Module:
    """Return the network with its weights laid out for (N, H, W, C) images: faster on CPU and GPU."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
