"""The networks, by name: `build("iicnet")` gives a module from (N, bands, 80, 80) images to (N, K) logits.

`NETWORKS` has the reconstruction of IICnet, the six networks that Zhao et al. 2023 compare it with in table 3, a
network and a random forest of photometry, and a network of images and photometry. A name such as "package.module:Class"
is the import path of another network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..import_path import import_class, is_import_path
from ..text import named
from .baselines.efficientnetv2 import EfficientNetV2
from .baselines.googlenet import GoogLeNet
from .baselines.mobilenet import MobileNet
from .baselines.repvgg import RepVGG
from .baselines.resnet34 import ResNet34
from .baselines.vgg16 import VGG16
from .colour import ColourNet
from .count import macs, parameters
from .folding import fuse
from .forest import ForestNet
from .fusion import FusionNet
from .iicnet import IICnet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "iicnet": IICnet,
    "vgg16": VGG16,
    "googlenet": GoogLeNet,
    "resnet34": ResNet34,
    "mobilenet": MobileNet,
    "efficientnetv2": EfficientNetV2,
    "repvgg": RepVGG,
    "colour": ColourNet,
    "forest": ForestNet,
    "fusion": FusionNet,
}

IMAGES = ("images",)
INPUTS = (IMAGES, ("photometry",), ("images", "photometry"))
"""What a network may take, as the names of its arguments: images (N, bands, S, S), photometry (N, F)."""

FULL_PRECISION = ("head", "colour")
"""Parts that stay in float32: logits and photometry in bfloat16 would have three digits."""

__all__ = [
    "INPUTS",
    "NETWORKS",
    "build",
    "channels_last",
    "fuse",
    "macs",
    "network_class",
    "network_inputs",
    "parameters",
    "to_bf16",
]


def network_class(name: str) -> Callable[..., nn.Module]:
    """Return the class of a network: one of `NETWORKS`, or the one that an import path names, whose code this runs.

    Raises `ConfigError` if there is no such network.
    """
    if not is_import_path(name):
        if name not in NETWORKS:
            raise ConfigError(
                f"network {name!r} is unknown: use one of {', '.join(sorted(NETWORKS))}, or an import path such as "
                "package.module:Class"
            )
        return NETWORKS[name]
    found = import_class(name)
    if not issubclass(found, nn.Module):
        raise ConfigError(f"network {name!r} is not a class of network: derive it from torch.nn.Module")
    inputs = getattr(found, "inputs", IMAGES)
    if inputs not in INPUTS:
        choices = ", ".join(map(str, INPUTS))
        raise ConfigError(f"network {name!r} has inputs = {inputs!r}: choose one of {choices}")
    return found


def network_inputs(name: str) -> tuple[str, ...]:
    """Return what a network takes: "images", "photometry" or both, in the order of its arguments.

    This is the attribute `inputs` of its class; a class without it takes images.
    """
    inputs: tuple[str, ...] = getattr(network_class(name), "inputs", IMAGES)
    return inputs


def build(name: str, **options: object) -> nn.Module:
    """Return a network with random weights.

    Parameters
    ----------
    name : str
        One of `NETWORKS`, or an import path such as "package.module:Class".
    **options
        Arguments of its class.

    Returns
    -------
    torch.nn.Module
        A function of its inputs, images (N, in_channels, S, S) and photometry (N, F), to (N, classes) float32 logits.
        The image networks of skyclass take S from 64 to 224 px.

    Raises
    ------
    ConfigError
        For an unknown name or option; the message has the choices.

    Examples
    --------
    >>> parameters(build("iicnet"))
    1748407
    """
    make = network_class(name)
    known = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if (unknown := sorted(set(options) - set(known))) and not takes_any:
        raise ConfigError(f"network {name!r} has no {named('option', unknown)}: it has {', '.join(known)}")
    return make(**options)


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
        if keep_fp32 and not is_mixed and not isinstance(child, nn.ModuleList | nn.Identity):
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
    """Return the network with weights in the layout of (N, H, W, C) images, which is faster on CPU and GPU."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
