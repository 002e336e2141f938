"""Self-supervised pre-training: the loss falls, the probe gains, the weights carry over."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.paper.selfsup import Views, linear_probe, nt_xent, pretrain, random_state, transfer, view
from skyclass.errors import ConfigError
from skyclass.model.bundle import Preprocessing
from skyclass.networks import build
from skyclass.training.evaluation.metrics import balanced_accuracy, confusion

SMALL = Preprocessing(16, (0.2, 0.2, 0.2), (1.0, 1.0, 1.0))


def blobs(n: int, seed: int):
    """Return simulated composites (n, 3, 37, 37) whose classes differ a little in colour, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    y, x = np.mgrid[:37, :37] - 18
    flux = rng.uniform(10, 60, n)[:, None] * np.array([[1.5, 1, 1], [1, 1.5, 1], [1, 1, 1.5]])[labels]
    images = rng.normal(0, 1, (n, 3, 37, 37)) + flux[:, :, None, None] * np.exp(-(x**2 + y**2) / 12)
    return np.arcsinh(images).astype(np.float16), labels


def probe(state, seed: int = 10) -> float:
    (known, labels), (asked, true) = blobs(90, seed), blobs(300, seed + 1)
    given = linear_probe(state, SMALL, known, labels, asked, device="cpu")
    return balanced_accuracy(confusion(true, given.argmax(1), 3))


@pytest.mark.slow
def test_pre_training_lowers_its_loss_and_the_probe_beats_that_of_a_random_trunk():
    images, _ = blobs(256, 0)
    records: list[dict] = []
    options = {"epochs": 5, "batch_size": 32, "device": "cpu", "precision": "fp32"}
    state = pretrain(images, SMALL, progress=records.append, **options)
    losses = [record["loss"] for record in records]
    assert losses[-1] < 0.9 * losses[0] and losses[-1] < 0.95 * records[0]["chance_loss"]
    assert probe(state) > probe(random_state()) + 0.15


@pytest.mark.integration
def test_pre_training_follows_its_seed():
    images, _ = blobs(32, 0)
    options = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "fp32"}
    first, again, other = (pretrain(images, SMALL, seed=s, **options)["conv1.0.weight"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.integration
def test_the_weights_go_into_a_supervised_network_but_for_its_last_layer():
    state = random_state(seed=3)
    target = build("iicnet", classes=2)
    last = target.head[-1].weight.clone()
    transfer(state, target)
    assert torch.equal(target.state_dict()["conv5.0.weight"], state["conv5.0.weight"])
    assert torch.equal(target.head[-1].weight, last)
    with pytest.raises(ConfigError, match="another network or other options: conv1"):
        transfer(state, build("iicnet", first_kernel=3))
    with pytest.raises(ConfigError, match="another network or other options"):
        transfer(state, build("resnet34"))


def test_nt_xent_is_that_of_the_paper_written_out():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    likeness = np.exp(unit @ unit.T / 0.5)
    losses = [-np.log(likeness[i, (i + 4) % 8] / (likeness[i].sum() - likeness[i, i])) for i in range(8)]
    assert float(nt_xent(z, 0.5)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_view_keeps_the_source_in_the_middle_and_its_colour():
    images = torch.from_numpy(blobs(60, 1)[0])
    images[:, :, 0] = math.nan
    seen = view(images, Views(), torch.Generator().manual_seed(0))
    assert seen.shape == images.shape and torch.isfinite(seen).all()
    centre = torch.sinh(seen[:, :, 14:23, 14:23]).sum((2, 3))
    before = torch.sinh(images[:, :, 14:23, 14:23].float()).sum((2, 3))
    assert ((centre / before).log().abs() < 1.2).all()
    assert ((centre[:, 0] / centre[:, 1]) / (before[:, 0] / before[:, 1])).log().abs().median() < 0.12
    assert not torch.allclose(seen, view(images, Views(), torch.Generator().manual_seed(1)))


def test_still_views_are_the_images_and_the_draws_make_the_rest():
    images = torch.from_numpy(blobs(4, 2)[0])
    still = Views(turn=False, shift_px=0, brightness_mag=0, colour_mag=0, noise=0, neighbours=False)
    torch.testing.assert_close(view(images, still, torch.Generator()), images.float(), atol=2e-3, rtol=1e-3)


def test_neighbours_come_from_another_cutout():
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 37, 37)
    still = Views(turn=False, shift_px=0, brightness_mag=0, colour_mag=0, noise=0, stretch="linear")
    seen = view(images, still, torch.Generator().manual_seed(0))
    assert torch.equal(seen[:, 0, 18, 18], torch.arange(8.0))
    assert not torch.equal(seen[:, 0, 0, 0], torch.arange(8.0))


def test_wrong_settings_are_told_together():
    images, _ = blobs(8, 0)
    with pytest.raises(ConfigError, match="epochs = 0.*batch_size = 64"):
        pretrain(images, SMALL, epochs=0, batch_size=64)
    with pytest.raises(ConfigError, match="noise = -1.*stretch = 'log'"):
        Views(noise=-1, stretch="log")
    with pytest.raises(ConfigError, match="takes other than images"):
        pretrain(images, SMALL, network="colour", options={"features": 2}, batch_size=4)
