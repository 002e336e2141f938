"""Networks: counts as published, sizes and bands, the exact inference form, precision, gradients."""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skyclass.errors import ConfigError
from skyclass.model.devices import resolve_precision
from skyclass.networks import NETWORKS, build, channels_last, fuse, macs, network_inputs, parameters, to_bf16
from tests.support.networks import lived_in

IMAGE_NETWORKS = [name for name in NETWORKS if network_inputs(name) == ("images",)]
SHAPES = {"images": (3, 64, 64), "photometry": (2,)}
LARGE = ("vgg16", "resnet34")
MARKED = {name: pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in sorted(NETWORKS)}
EACH_NETWORK = pytest.mark.parametrize("name", MARKED.values())

COUNTS = {
    "iicnet": (1_748_407, (216_770_440, 1_698_239_200), (218_657_315, 1_713_019_475)),
    "vgg16": (134_272_835, (2_077_028_352, 15_466_180_608), (2_081_283_587, 15_499_438_595)),
    "googlenet": (5_976_627, (196_152_064, 1_581_650_944), (197_331_923, 1_591_029_155)),
    "resnet34": (46_994_499, (1_599_714_816, 12_230_903_296), (1_602_050_563, 12_249_016_835)),
    "mobilenet": (3_220_995, (76_779_264, 567_719_424), (79_400_707, 587_940_355)),
    "efficientnetv2": (22_336_515, (415_796_224, 2_942_326_272), (419_931_979, 2_971_682_955)),
    "repvgg": (26_805_827, (739_864_704, 5_683_941_504), (742_334_339, 5_703_121_283)),
}
"""Parameters; multiply-accumulates at 80 and 224 px, of convolutions and linear layers; the same by ptflops."""

TABLE_3 = {
    "iicnet": (80, 218.66e6, 1.75e6),
    "vgg16": (224, 15.5e9, 134.27e6),
    "googlenet": (224, 1.59e9, 5.98e6),
    "resnet34": (224, 12.25e9, 46.99e6),
    "mobilenet": (224, 587.94e6, 3.22e6),
}
"""Zhao et al. 2023: size at which the printed cost fits, cost, parameters; only the rows that a variant fits."""


@lru_cache(maxsize=2)
def built(name: str) -> nn.Module:
    """The network with its defaults and weights of seed 0; nobody may change it."""
    torch.manual_seed(0)
    return build(name).eval()


def inputs_of(name: str, n: int = 3, seed: int = 0, **shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *(SHAPES | shapes)[kind], generator=generator) for kind in network_inputs(name)]


@torch.no_grad()
def settled(name: str) -> nn.Module:
    """Return the network in eval mode with BatchNorms as after training: statistics of data, weights not 1."""
    torch.manual_seed(1)
    network = build(name)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.6, 1.4)
        norm.bias.uniform_(-0.3, 0.3)
        norm.momentum = 1.0
    network.train()(*inputs_of(name, n=12, seed=5))
    return network.eval()


@pytest.mark.integration
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_counts_of_the_image_networks(name: str) -> None:
    count, costs, _ = COUNTS[name]
    assert parameters(built(name)) == count
    assert tuple(macs(built(name), (1, 3, px, px)) for px in (80, 224)) == costs


@pytest.mark.integration
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_ptflops_counts_what_the_paper_prints(name: str) -> None:
    ptflops = pytest.importorskip("ptflops", reason="the counter of the paper's table 3, pip install ptflops==0.7")
    if version("ptflops") != "0.7":
        pytest.skip(f"ptflops {version('ptflops')} counts other layers than 0.7 does")
    counted = {}
    for px in (80, 224):
        with contextlib.redirect_stdout(io.StringIO()):
            cost, _ = ptflops.get_model_complexity_info(
                built(name), (3, px, px), as_strings=False, print_per_layer_stat=False
            )
        counted[px] = int(cost)
    assert tuple(counted.values()) == COUNTS[name][2]
    if name in TABLE_3:
        px, cost, count = TABLE_3[name]
        assert float(f"{counted[px]:.{len(digits(cost))}g}") == cost
        assert float(f"{COUNTS[name][0]:.{len(digits(count))}g}") == count


def digits(printed: float) -> str:
    return f"{printed:.0f}".rstrip("0")


@pytest.mark.integration
def test_counts_of_the_other_networks_and_variants() -> None:
    assert parameters(build("colour")) == 2_595
    assert macs(build("colour"), (1, 2)) == 2 * 32 + 32 * 64 + 64 * 3
    assert parameters(build("fusion")) == 1_750_999
    assert macs(build("fusion"), (1, 3, 80, 80), (1, 2)) == 216_770_440 - 64 * 3 + 2 * 32 + 32 * 64 + 128 * 3
    assert parameters(build("iicnet", in_channels=4)) == 1_750_007
    assert parameters(build("resnet34", widths=(64, 128, 256, 512))) == 21_286_211
    assert parameters(build("repvgg", variant="B0")) == 14_540_803


@pytest.mark.integration
def test_counting_leaves_the_network_in_its_mode() -> None:
    network = build("colour").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    macs(network, (4, 2))
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.integration
@torch.inference_mode()
def test_all_input_sizes_run_without_change() -> None:
    network = build("iicnet", first_kernel=3).eval()
    for size in range(64, 129, 8):
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


@pytest.mark.integration
@torch.inference_mode()
@pytest.mark.parametrize("name", [*IMAGE_NETWORKS, "fusion"])
def test_four_bands_and_other_classes(name: str) -> None:
    network = build(name, in_channels=4, classes=5).eval()
    assert network(*inputs_of(name, n=1, images=(4, 72, 72))).shape == (1, 5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"bn": "all", "pool": "avg"}, {"rfb": False}, {"cbam": False, "head": ()}, {"in_channels": 4}),
        *({"cbam_start": "open"}, {"init": "he"}, {"cbam_start": "open", "init": "he", "bn": "all"}),
    ],
)
def test_fused_network_computes_the_same(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = lived_in(build("iicnet", **options))
    channels = options.get("in_channels", 3)
    images = torch.randn(4, channels, 80, 80) * torch.tensor([0.1, 1, 5, 20])[:, None, None, None]
    plain, fused = network(images), fuse(network)(images)
    assert plain.std(0).max() > 0.01
    assert (fused - plain).abs().max() < 1e-5 * max(1, plain.abs().max())
    assert torch.equal(network(images), plain), "fuse must not touch the original"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fuse(network).modules())


@pytest.mark.integration
@torch.inference_mode()
@EACH_NETWORK
def test_every_network_fuses_and_runs_in_bf16(name: str) -> None:
    network, inputs = settled(name), inputs_of(name)
    plain, inference = network(*inputs), fuse(network)
    scale = max(plain.std(0).max(), plain.abs().max())
    assert (inference(*inputs) - plain).abs().max() < 1e-4 * scale
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in inference.modules())
    narrow = channels_last(to_bf16(inference))
    assert all(p.dtype == torch.float32 for n, p in narrow.named_parameters() if n.startswith(("head", "colour")))
    kinds, dtype = network_inputs(name), next(narrow.parameters()).dtype
    logits = narrow(*(x if kind == "photometry" else x.to(dtype) for kind, x in zip(kinds, inputs, strict=True)))
    with torch.autocast("cpu", torch.bfloat16):
        trained_like = network(*inputs)
    assert logits.dtype == trained_like.dtype == torch.float32
    bound = 2 if resolve_precision("cpu", "auto") == "bf16" else 10  # emulated, bf16 rounds more often
    assert (logits - plain).norm() < bound * (trained_like - plain).norm() + 1e-3 * scale, "worse than autocast"


def test_what_iicnet_rounds_first_stays_float32() -> None:
    narrow = to_bf16(fuse(build("iicnet")))
    wide = {name.split(".")[0] for name, p in narrow.named_parameters() if p.dtype == torch.float32}
    assert wide == {"conv1", "rfb", "cbam1", "head"}
    assert {name for name, p in narrow.rfb.named_parameters() if p.dtype == torch.float32} == {
        "shortcut.weight",
        "shortcut.bias",
    }


@torch.inference_mode()
@pytest.mark.parametrize("absent", ["rfb", "cbam"])
def test_iicnet_without_a_block_runs_in_bf16(absent: str) -> None:
    network = build("iicnet", **{absent: False}).eval()
    images = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    plain, narrow = network(images), to_bf16(fuse(network))(images)
    assert torch.allclose(narrow, plain, atol=0.1 * float(plain.abs().max()))


@pytest.mark.integration
@EACH_NETWORK
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(2)
    network = channels_last(build(name)).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(*inputs_of(name, n=6))
    assert logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        assert parameter.ndim == 1 or parameter.grad.any(), label  # biases before BatchNorm have none


@pytest.mark.integration
def test_no_strided_point_convolution_of_few_channels() -> None:
    """Its bf16 gradient writes outside its buffer on CPU (oneDNN 3.12): RepVGG's stem would be one."""
    for name in (*IMAGE_NETWORKS, "fusion"):
        for module in built(name).modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                assert module.stride == (1, 1) or module.in_channels % 16 == 0, name


@pytest.mark.integration
@torch.inference_mode()
@pytest.mark.parametrize("name", [*IMAGE_NETWORKS, "fusion"])
def test_the_embedding_is_what_the_last_layer_sees(name: str) -> None:
    network, inputs = built(name), inputs_of(name, n=2)
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    embedding = network.embed(*inputs)
    assert embedding.shape == (2, last.in_features) and embedding.dtype == torch.float32
    torch.testing.assert_close(last(embedding), network(*inputs))


@torch.inference_mode()
def test_fusion_looks_at_both_of_its_inputs() -> None:
    images, photometry = inputs_of("fusion")
    network = lived_in(build("fusion"))
    logits = network(images, photometry)
    assert network.embed(images, photometry).shape == (3, 128)
    assert not torch.equal(logits, network(images.flip(0), photometry))
    assert not torch.equal(logits, network(images, photometry.flip(0)))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("icnet", {}, "iicnet"),
        ("iicnet", {"batchnorm": "all"}, "bn"),
        ("iicnet", {"bn": "some"}, "first, all"),
        ("iicnet", {"pool": "min"}, "max, avg"),
        ("iicnet", {"first_kernel": 4}, "odd"),
        ("iicnet", {"cbam_start": "closed"}, "cbam_start='closed' is unknown: use one of half, open"),
        *(
            (name, {"init": "xavier"}, "init='xavier' is unknown: use one of torch, he")
            for name in ("iicnet", "fusion")
        ),
        *((name, {"init": "xavier"}, "torch, he") for name in ("googlenet", "mobilenet")),
        ("vgg16", {"rfb": True}, "in_channels, classes"),
        ("repvgg", {"variant": "B9"}, "A0, A1, A2, B0"),
        ("resnet34", {"widths": (64, 128)}, "four"),
        ("colour", {"hidden": ()}, "hidden"),
        ("fusion", {"head": ()}, "embedding"),
        ("fusion", {"features": 0}, "features"),
    ],
)
def test_mistakes_name_the_choices(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(name, **options)


def layers_of(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def fan_in(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.weight[0].numel()


@pytest.mark.integration
@pytest.mark.parametrize("name", [MARKED[name] for name in (*IMAGE_NETWORKS, "fusion")])
def test_one_rule_draws_the_weights_of_every_image_network(name: str) -> None:
    torch.manual_seed(4)
    drawn_by_torch, network = build(name, init="torch"), build(name, init="he")
    *layers, last = layers_of(network)
    for layer in layers:
        scale = layer.weight.std() * (fan_in(layer) / 2) ** 0.5
        assert abs(scale - 1) < 5 / (2 * layer.weight.numel()) ** 0.5, layer
    assert abs(last.weight.std() - 0.01) < 0.003
    assert not any(layer.bias.any() for layer in layers_of(network) if layer.bias is not None)
    assert drawn_by_torch.state_dict().keys() == network.state_dict().keys()
    for layer in layers_of(drawn_by_torch):  # uniform up to this bound
        assert 0.8 < layer.weight.abs().max() * fan_in(layer) ** 0.5 <= 1, layer


def test_iicnet_is_drawn_by_torch_unless_told_otherwise() -> None:
    torch.manual_seed(5)
    plain = build("iicnet").state_dict()
    torch.manual_seed(5)
    told = build("iicnet", init="torch", cbam_start="half").state_dict()
    assert all(torch.equal(plain[name], values) for name, values in told.items())
    assert plain.keys() == build("iicnet", init="he", cbam_start="open").state_dict().keys()
    assert parameters(build("iicnet", init="he", cbam_start="open")) == 1_748_407


@pytest.mark.parametrize("init", ["torch", "he"])
def test_open_gates_let_all_images_through_until_training_changes_them(init: str) -> None:
    torch.manual_seed(6)
    network = build("iicnet", cbam_start="open", init=init)
    fused = build("fusion", cbam_start="open", init=init).images
    images = torch.randn(4, 64, 9, 9) * torch.tensor([0.1, 1, 5, 20])[:, None, None, None]
    for block in (network.cbam1, network.cbam1.eval(), fused.cbam1):
        torch.testing.assert_close(block(images), images * 0.952574**2)
    half = build("iicnet", init=init).cbam1(images) / images
    assert 0.1 < half.mean() < 0.4 and half.std() > 0.01
    wide = torch.randn(4, 256, 9, 9)
    torch.testing.assert_close(network.cbam2(wide), wide * 0.952574**2)


def test_open_gates_learn_from_the_first_step_on() -> None:
    torch.manual_seed(7)
    block = build("iicnet", cbam_start="open").cbam1.train()
    images = torch.randn(4, 64, 9, 9)
    optimiser = torch.optim.SGD(block.parameters(), 1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        (block(images) - images.roll(1, 0)).square().mean().backward()
        optimiser.step()
    for name, parameter in block.named_parameters():
        assert parameter.grad.any() and parameter.grad.norm() < 10, name
