"""The network of a bundle: its inputs, its module, and its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import BundleError, ConfigError
from ..networks import INPUTS, build
from .bundle import REMEDY, Bundle, load_weights


def inputs_of_bundle(bundle: Bundle) -> tuple[str, ...]:
    """Return the inputs of a bundle's network, "images", "photometry" or both, in the order of its arguments."""
    return INPUTS.get(bundle.network, ("images",))


def require_matching_photometry(bundle: Bundle) -> None:
    """Raise `BundleError` unless a bundle has photometry settings exactly if its network takes photometry."""
    inputs = inputs_of_bundle(bundle)
    if ("photometry" in inputs) != (bundle.photometry is not None):
        has = "photometry settings" if bundle.photometry else "no photometry settings"
        raise BundleError(
            f"the bundle at {bundle.path} has {has}, but its network {bundle.network!r} takes "
            f"{' and '.join(inputs)}: train it again with `skyclass train`"
        )


def load_network(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle with its weights, in eval mode, on the CPU.

    Raises `BundleError` for a network, options or weights that do not exist, do not fit or are not finite.
    """
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
        raise BundleError(
            f"the bundle at {bundle.path} describes no network: {bundle.network!r} with {bundle.network_options}: "
            f"{one_line(error)}"
        ) from error


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
