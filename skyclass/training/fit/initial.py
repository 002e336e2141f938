"""The network and the optimiser before the first step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...errors import ConfigError
from ...images.composite import CompositeSettings
from ...model.bundle import Bundle, Cut, load_weights, read_bundle
from ...networks import build
from ...networks.fusion import FusionNet
from ...text import named
from .recipe import TrainConfig, changed_composite


def composite_settings(run: TrainConfig) -> CompositeSettings:
    """Return the composite settings of a training: those of Atlas images with the changes of the run."""
    return changed_composite(run.bands, run.composite)


def with_start_options(run: TrainConfig) -> TrainConfig:
    """Return the run with the network options of `start_from` beside its own."""
    if not run.start_from:
        return run
    start = read_bundle(run.start_from)
    _check_network(run, start)
    derived = ("in_channels", "classes", "features", "colour_hidden")
    inherited = {name: value for name, value in start.network_options.items() if name not in derived}
    return replace(run, options=inherited | run.options)


def initial_network(run: TrainConfig, classes: tuple[str, ...], cut: Cut) -> nn.Module:
    """Return the network before the first step, with random weights or those of `start_from`.

    `classes` and `cut` are those of the dataset.
    """
    options = run.network_options(len(classes))
    try:
        network = build(run.network, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"options = {run.options} do not make a {run.network}: {error}") from error
    if not run.start_from:
        return network
    start = read_bundle(run.start_from)
    _check_start(run, start, classes, cut)
    if run.network == "fusion" and start.network == "iicnet":
        assert isinstance(network, FusionNet)
        network.begin_with(load_weights(start))
    else:
        network.load_state_dict(load_weights(start))
    return network


def _check_network(run: TrainConfig, start: Bundle) -> None:
    """Raise `ConfigError` unless a network can begin with the weights of another."""
    if start.network != run.network and (start.network, run.network) != ("iicnet", "fusion"):
        raise ConfigError(
            f"start_from = {run.start_from!r} holds {start.network}, and this run trains {run.network}: name a model "
            f"of {run.network}, or set network to {start.network}"
        )


def _check_start(run: TrainConfig, start: Bundle, classes: tuple[str, ...], cut: Cut) -> None:
    """Raise `ConfigError` unless a run has the classes, images, features and options of its start."""
    if start.classes != classes:
        raise ConfigError(
            f"start_from = {run.start_from!r} has the classes {', '.join(start.classes)}, the dataset has "
            f"{', '.join(classes)}: make a dataset with the classes of the model, or train without start_from"
        )
    if "images" in run.inputs and (start.size_px, start.cut.pixel_scale_arcsec) != (
        cut.size_px,
        cut.pixel_scale_arcsec,
    ):
        raise ConfigError(
            f"start_from = {run.start_from!r} was trained on cutouts of {_side_text(start.cut)}, and those of the "
            f"dataset have {_side_text(cut)}: a source would have another size on the input of the network. Make a "
            f"dataset with --size {start.size_px}px, or train without start_from"
        )
    images = (run.bands, composite_settings(run), run.input_px)
    if (start_images := (start.bands, start.composite, start.preprocessing.input_px)) != images:
        raise ConfigError(
            f"start_from = {run.start_from!r} was trained on other images: {start_images}, this run on {images}"
        )
    start_features = start.photometry.features if start.photometry else ()
    if start_features and start_features != run.features:
        raise ConfigError(
            f"start_from = {run.start_from!r} uses the features {', '.join(start_features)}, "
            f"this run {', '.join(run.features)}"
        )
    options = run.network_options(len(classes))
    added = ("features", "colour_hidden") if start.network != run.network else ()
    other = [
        k
        for k in sorted({*options, *start.network_options} - {*added})
        if start.network_options.get(k) != options.get(k)
    ]
    if other:
        raise ConfigError(
            f"start_from = {run.start_from!r} has the options {start.network_options}, and its weights fit no others: "
            f"leave out the {named('option', other)}"
        )


def _side_text(cut: Cut) -> str:
    """Return the side of cutouts as text, such as "37 px (50.9 arcsec)"."""
    return f"{cut.size_px} px ({cut.size_px * cut.pixel_scale_arcsec:.1f} arcsec)"


def freeze(network: nn.Module, names: tuple[str, ...]) -> None:
    """Keep the weights of some parts of a network; `ConfigError` for a part that the network does not have."""
    parts = dict(network.named_children())
    if unknown := [name for name in names if name not in parts]:
        raise ConfigError(f"frozen: the network has no {named('part', unknown)}; its parts are {', '.join(parts)}")
    for name in names:
        parts[name].requires_grad_(False)


def make_optimiser(run: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) with weight decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if run.weight_decay:
        return torch.optim.AdamW(parameters, run.learning_rate, weight_decay=run.weight_decay, fused=True)
    return torch.optim.Adam(parameters, run.learning_rate, fused=True)
