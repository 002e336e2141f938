"""Self-supervised pre-training on unlabelled cutouts (SimCLR, Chen et al. 2020, arXiv:2002.05709), and its probe.

    composites (N, C, S, S)
      two random views of each: turned, shifted, dimmed, noisier, among other neighbours
      network.embed, projection      (2N, D)
      NT-Xent loss: a view must find its twin among the 2N - 1 others
    then, with few labels: embed -> logistic regression, or load the weights into a supervised training.

No label is used before the probe. Cutouts are never cropped: the source stays in the middle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skyclass.errors import ConfigError
from skyclass.images.composite import FLOAT16_MAX
from skyclass.model.bundle import Preprocessing
from skyclass.model.devices import resolve_device, resolve_precision
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build, channels_last, network_inputs
from skyclass.types import Float16, Float32, Int64

from .classic import embed_images, fit_logistic

TEMPERATURE = 0.2
PROJECTION = 128
WARM_UP = 0.1

Progress = Callable[[dict[str, Any]], None]

TO_FLUX: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "asinh": (torch.sinh, torch.asinh),
    "linear": (torch.Tensor.clone, torch.Tensor.clone),
}
"""Stretch of the composites -> functions to units of flux (in softenings, about the noise) and back."""
FLUX_LIMIT = 80.0
"""Largest stretched value that is turned into a flux: sinh of it still is a float32."""


@dataclass(frozen=True)
class Views:
    """How far a random view may differ from its cutout. What differs between twins, the network learns to ignore."""

    turn: bool = True
    """Any angle, and a flip: the sky has no up."""
    shift_px: float = 1.0
    """Native pixels, by fractions, along each axis: positions are good to less than that."""
    brightness_mag: float = 1.0
    """Change of all bands together, either way: large, or twins are found by their brightness, not their colour."""
    colour_mag: float = 0.05
    """Change of each band by itself: small, since colour tells the classes apart."""
    noise: float = 0.5
    """Largest standard deviation of added noise, in softenings of the stretch (about the noise of the sky)."""
    neighbours: bool = True
    """Put the outskirts of another cutout around the source: else twins are found by their common neighbours."""
    stretch: str = "asinh"
    """Stretch of the composites; brightness and noise act on flux."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must not be negative"
            for name in ("shift_px", "brightness_mag", "colour_mag", "noise")
            if getattr(self, name) < 0
        ]
        if self.stretch not in TO_FLUX:
            problems.append(f"stretch = {self.stretch!r}: choose {', '.join(TO_FLUX)}")
        if problems:
            raise ConfigError("views: " + "; ".join(problems))


def pretrain(
    images: Float16,
    preprocessing: Preprocessing,
    *,
    network: str = "iicnet",
    options: dict[str, Any] | None = None,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    learning_rate: float = 1e-3,
    views: Views | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Tensor]:
    """Return the weights (a state dict on the CPU) of `network`, pre-trained on composites (N, C, S, S).

    SimCLR with a two-layer projection on `embed`; AdamW, one cosine cycle. The state dict is whole: its last
    layer, which the pre-training does not touch, is as initialised. `images` may be memory-mapped. `progress`
    gets {"epoch", "loss", "chance_loss", "images_per_s"} after each epoch; `chance_loss` is that of guessing.
    On one device the result follows from `seed`. Raises `ConfigError`.
    """
    _check(images, epochs, batch_size)
    place = resolve_device(device)
    bf16 = resolve_precision(place, precision) == "bf16"
    trunk, projection = _networks(network, options or {}, images.shape[1], seed)
    model = channels_last(nn.ModuleList([trunk, projection]).to(place)).train()
    preprocess = Preprocess(preprocessing).to(place)
    steps = len(images) // batch_size
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate(epochs * steps))
    order, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    views = views or Views()
    for epoch in range(1, epochs + 1):
        began, total = time.monotonic(), 0.0
        for rows in order.permutation(len(images))[: steps * batch_size].reshape(steps, batch_size):
            cutouts = torch.from_numpy(images[np.sort(rows)]).to(place)
            both = torch.cat([view(cutouts, views, draws) for _ in range(2)])
            with torch.autocast(torch.device(place).type, torch.bfloat16, enabled=bf16):
                z = projection(trunk.embed(preprocess(both)))  # type: ignore[operator]
            loss = nt_xent(z.float(), TEMPERATURE)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        record = {"epoch": epoch, "loss": total / steps, "chance_loss": math.log(2 * batch_size - 1)}
        if not math.isfinite(record["loss"]):
            raise ConfigError(f"pre-training diverged in epoch {epoch}: lower learning_rate = {learning_rate}")
        if progress:
            progress(record | {"images_per_s": steps * batch_size / (time.monotonic() - began)})
    return {k: v.detach().cpu().contiguous() for k, v in trunk.state_dict().items()}


def linear_probe(
    state: dict[str, Tensor],
    preprocessing: Preprocessing,
    images: Float16,
    labels: Int64,
    test_images: Float16,
    *,
    network: str = "iicnet",
    options: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Float32:
    """Return probabilities (M, 3) for `test_images` by a logistic regression on frozen embeddings.

    It is fitted to the embeddings of `images` (N, C, S, S) with `labels` (N,); the weights in `state` stay as
    they are. Columns in the order of `DEFAULT_CLASSES`. Raises `ConfigError`.
    """
    frozen = transfer(state, _networks(network, options or {}, images.shape[1], seed)[0])
    known, asked = (embed_images(frozen, preprocessing, part, device=device) for part in (images, test_images))
    return fit_logistic(known, labels, seed).predict_proba(asked)


def random_state(network: str = "iicnet", options: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Return the weights of an untrained network: what a probe of a pre-trained one must beat."""
    channels = int((options or {}).get("in_channels", 3))
    return _networks(network, options or {}, channels, seed)[0].state_dict()


def transfer(state: dict[str, Tensor], network: nn.Module) -> nn.Module:
    """Return `network` with the pre-trained weights in it, its own last layer kept.

    The last layer has learnt nothing in pre-training and may have another number of classes. Raises
    `ConfigError` when the weights are of another network.
    """
    own = network.state_dict()
    last = {f"{last_linear(network)}.{part}" for part in ("weight", "bias")}
    problems = [k for k in own if k not in last and (k not in state or state[k].shape != own[k].shape)]
    if problems or set(state) - set(own):
        strange = [*problems, *sorted(set(state) - set(own))]
        raise ConfigError(f"the pre-trained weights are of another network or other options: {', '.join(strange[:4])}")
    network.load_state_dict({k: own[k] if k in last else v for k, v in state.items()})
    return network


def last_linear(network: nn.Module) -> str:
    """Return the dotted name of the linear layer that gives the logits of an image network."""
    return f"head.{len(network.head) - 1}"  # type: ignore[arg-type]


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of (2N, D): row i and row i + N are twins."""
    z = F.normalize(z, dim=1)
    likeness = z @ z.T / temperature
    likeness.fill_diagonal_(-math.inf)  # a view is not its own twin
    twin = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(likeness, twin)


def view(images: Tensor, views: Views, draws: torch.Generator) -> Tensor:
    """Return one random view (N, C, S, S) float32 of each composite; missing pixels become 0, the sky.

    `draws` is a CPU generator, so that every device sees the same views.
    """
    x = torch.nan_to_num(images.float(), nan=0.0).clamp(-FLUX_LIMIT, FLUX_LIMIT)
    to_flux, from_flux = TO_FLUX[views.stretch]
    flux = _moved(to_flux(x), views, draws)
    flux = _lit(flux, views, draws)
    x = from_flux(flux).clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return _among_others(x, draws) if views.neighbours else x


def _moved(flux: Tensor, views: Views, draws: torch.Generator) -> Tensor:
    """Turn, flip and shift each image about its centre; what comes in from outside is sky."""
    n, size = len(flux), flux.shape[-1]
    angle = 2 * math.pi * torch.rand(n, generator=draws) * views.turn
    flip = 1 - 2.0 * torch.randint(0, 2, (n,), generator=draws) * views.turn
    step = (2 * torch.rand((n, 2), generator=draws) - 1) * (2 * views.shift_px / size)  # grid units: size = 2
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack((cos * flip, -sin, step[:, 0], sin * flip, cos, step[:, 1]), 1).reshape(n, 2, 3)
    grid = F.affine_grid(matrix.to(flux.device), list(flux.shape), align_corners=False)
    return F.grid_sample(flux, grid, align_corners=False)


def _lit(flux: Tensor, views: Views, draws: torch.Generator) -> Tensor:
    """Dim or brighten each image, tint it a little, and add noise."""
    n, bands = flux.shape[:2]
    both = views.brightness_mag * (2 * torch.rand((n, 1), generator=draws) - 1)
    each = views.colour_mag * (2 * torch.rand((n, bands), generator=draws) - 1)
    factor = torch.pow(10.0, 0.4 * (both + each))[:, :, None, None]
    sigma = views.noise * torch.rand((n, 1, 1, 1), generator=draws)
    noise = torch.randn(flux.shape, generator=draws)
    return flux * factor.to(flux.device) + (sigma * noise).to(flux.device)


def _among_others(x: Tensor, draws: torch.Generator) -> Tensor:
    """Beyond a random radius, replace the pixels of each image by those of another one."""
    n, size = len(x), x.shape[-1]
    axis = torch.arange(size) - (size - 1) / 2
    radius = torch.hypot(axis[:, None], axis[None, :])
    reach = size * (0.25 + 0.2 * torch.rand(n, generator=draws))
    outside = (radius > reach[:, None, None])[:, None].to(x.device)
    return torch.where(outside, x[torch.randperm(n, generator=draws).to(x.device)], x)


def _networks(name: str, options: dict[str, Any], channels: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Return a fresh network with `embed`, and a projection on it, both initialised from `seed`."""
    if network_inputs(name) != ("images",):
        raise ConfigError(f"network {name!r} takes other than images: pre-train an image network, such as iicnet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = build(name, **{"in_channels": channels} | options)
        width = int(trunk.get_submodule(last_linear(trunk)).in_features)  # type: ignore[arg-type]
        projection = nn.Sequential(
            nn.BatchNorm1d(width),  # a fresh trunk gives nearly the same to every image: spread them first
            nn.Linear(width, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION),
            nn.ReLU(),
            nn.Linear(PROJECTION, PROJECTION),
        )
    return trunk, projection


def _rate(total: int) -> Callable[[int], float]:
    rise = max(1, int(WARM_UP * total))
    return lambda step: min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / max(1, total))))


def _check(images: Float16, epochs: int, batch_size: int) -> None:
    problems = []
    if images.ndim != 4:
        problems.append(f"images have shape {images.shape}: give composites (N, C, S, S)")
    if epochs < 1:
        problems.append(f"epochs = {epochs}: must be at least 1")
    if not 2 <= batch_size <= len(images):
        problems.append(f"batch_size = {batch_size}: must lie from 2 to the number of images, {len(images)}")
    if problems:
        raise ConfigError("pre-training: " + "; ".join(problems))
