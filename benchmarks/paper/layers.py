"""The layers of a network on given images: feature maps (Fig. 11) and Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skyclass.errors import ConfigError
from skyclass.types import Float32, Int64


def feature_maps(
    network: nn.Module, images: Tensor, layers: Sequence[str] = ("conv1", "rfb", "cbam1"), channels: int = 8
) -> dict[str, Float32]:
    """Return the strongest `channels` of each layer for network input (1, C, P, P): layer -> (channels, h, w).

    Strongest by their greatest value, in falling order. The network must not be fused; it is left in eval mode.
    Raises `ConfigError` for a layer that it has not.
    """
    with torch.inference_mode(), watched(network.eval(), layers) as seen:
        network(images)
    found = {}
    for name in layers:
        maps = seen[name][0].float()
        found[name] = maps[maps.amax((1, 2)).argsort(descending=True)[:channels]].cpu().numpy()
    return found


def grad_cam(network: nn.Module, images: Tensor, classes: Int64 | None = None, layer: str = "cbam2") -> Float32:
    """Return where the evidence for a class lies (Selvaraju et al. 2017, arXiv:1610.02391): (N, P, P) in [0, 1].

    `images` is network input (N, C, P, P), `classes` (N,) the class of each, the given one by default. Maps of
    `layer` are weighed by the mean gradient of the logit, summed, cut at 0 and scaled to a greatest value of 1;
    a map that is 0 throughout says that nothing there speaks for the class. It is no finer than the layer: 8 of
    80 px for cbam2.
    """
    x = images.detach().clone().requires_grad_(True)  # a fused network has no gradients of its own
    with watched(network.eval(), (layer,)) as seen:
        logits = network(x)
    wanted = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
    score = logits.gather(1, wanted[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, seen[layer])
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * seen[layer]).sum(1, keepdim=True))
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
    result: Float32 = heat.detach().float().cpu().numpy()
    return result


@contextmanager
def watched(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Give a dict that holds the output of each layer once the network has run."""
    modules = dict(network.named_modules())
    if missing := [name for name in layers if name not in modules]:
        known = ", ".join(name for name, _ in network.named_children())
        raise ConfigError(f"the network has no layer {', '.join(missing)}: it has {known}")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
