"""The network of a bundle: its inputs, its module, and its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import BundleError, ConfigError
from ..import_path import is_import_path
from ..networks import build, fuse, network_inputs, to_bf16
from ..networks.blocks import ImageClassifier, full_precision
from ..networks.fusion import FusionNet
from .bundle import Bundle, check_source, load_weights
from .bundle_files import REMEDY


def inputs_of_bundle(bundle: Bundle) -> tuple[str, ...]:
    """Return the inputs of a bundle's network, "images", "photometry" or both, in the order of its arguments.

    Raises `BundleError` if there is no such network, or its source differs from that of its training.
    """
    check_source(bundle)
    try:
        return network_inputs(bundle.network)
    except ConfigError as error:
        raise _no_network(bundle, error) from error


def require_matching_photometry(bundle: Bundle) -> None:
    """Raise `BundleError` unless a bundle has photometry settings exactly if its network takes photometry."""
    inputs = inputs_of_bundle(bundle)
    if ("photometry" in inputs) != (bundle.photometry is not None):
        has = "photometry settings" if bundle.photometry else "no photometry settings"
        raise BundleError(
            f"the bundle at {bundle.path} has {has}, but its network {bundle.network!r} takes "
            f"{' and '.join(inputs)}: train it again with `skyclass train`"
        )


def inference_module(bundle: Bundle, precision: str) -> nn.Module:
    """Return the network of a bundle in the form that inference runs, in fp32 or bf16, without gradients.

    A network of skyclass is fused, and its weights are converted to bf16. Other networks run as they are, in bf16 with
    autocast as in training: nothing is known of their code. Raises the errors of `load_network`.
    """
    network = load_network(bundle)
    if is_import_path(bundle.network):
        network.requires_grad_(False)
        return AutocastBf16(network) if precision == "bf16" else network
    network = fuse(network)
    return to_bf16(network) if precision == "bf16" else network


def with_embedding(network: nn.Module) -> tuple[nn.Module, int]:
    """Return a network whose output continues with its embedding, (N, K + W), and W; W is 0 if it has no embedding.

    The embedding is the input of the last linear layer. A network of an import path has one if it derives from
    `ImageClassifier` and keeps its `forward`.
    """
    if isinstance(network, AutocastBf16):
        inner, width = with_embedding(network.network)
        return AutocastBf16(inner), width
    if not isinstance(network, ImageClassifier | FusionNet):
        return network, 0
    if type(network).forward not in (ImageClassifier.forward, FusionNet.forward):
        return network, 0
    last = network.head[-1]
    assert isinstance(last, nn.Linear)
    return WithEmbedding(network), last.in_features


class WithEmbedding(nn.Module):
    """The logits and the embedding of a network in one pass, (N, K + W) float32."""

    network: ImageClassifier | FusionNet

    def __init__(self, network: ImageClassifier | FusionNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        embedding: Tensor = self.network.embed(*inputs)
        return torch.cat((full_precision(self.network.head[-1], embedding), embedding), 1)


class AutocastBf16(nn.Module):
    """A network that torch runs in bfloat16 where its operations allow it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            logits: Tensor = self.network(*inputs)
        return logits


def load_network(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle with its weights, in eval mode, on the CPU.

    Raises `BundleError` for a network, options or weights that do not exist, do not fit or are not finite.
    """
    check_source(bundle)
    weights = load_weights(bundle)
    with torch.device("meta"):  # only shapes: wrong options could ask for more memory than there is
        expected = _build(bundle).state_dict()
    if problems := _weight_problems(weights, expected):
        raise BundleError(
            f"the weights of {bundle.path} do not fit network {bundle.network!r}: {'; '.join(problems[:5])}: {REMEDY}"
        )
    if not_finite := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise BundleError(
            f"the weights of {bundle.path} are unusable: NaN or infinite numbers in {', '.join(not_finite[:5])}: "
            f"{REMEDY}"
        )
    network = _build(bundle)
    network.load_state_dict(weights)
    return network.eval()


def _build(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle without its weights; raise `BundleError` for an unknown network or option."""
    n_features = {"features": len(bundle.photometry.features)} if bundle.photometry else {}
    try:
        return build(bundle.network, **bundle.network_options | n_features)
    except (ConfigError, TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise _no_network(bundle, error) from error


def _no_network(bundle: Bundle, error: Exception) -> BundleError:
    return BundleError(
        f"the bundle at {bundle.path} describes no network: {bundle.network!r} with {bundle.network_options}: "
        f"{one_line(error)}"
    )


def _weight_problems(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the differences in names, shapes and types between weights and the state of a network."""
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    for name in (name for name in expected if name in weights):
        stored, needed = weights[name], expected[name]
        if stored.shape != needed.shape or stored.is_floating_point() != needed.is_floating_point():
            problems.append(f"{name} is {tuple(stored.shape)} {stored.dtype}, not {tuple(needed.shape)} {needed.dtype}")
    return problems


def one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
