"""Training: a bundle that beats chance, and the same weights however often, wherever and by whomever it is stopped."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from hypothesis import given
from hypothesis import strategies as st

from skyclass.errors import CannotCompile, ConfigError, Interrupted, StoreError
from skyclass.images.composite import composite
from skyclass.model.bundle import load_bundle, load_weights, save_bundle
from skyclass.model.classifier import load_classifier
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build
from skyclass.training.data.dataset import Dataset, save_dataset
from skyclass.training.evaluation.evaluate import evaluate
from skyclass.training.fit import job as job_module
from skyclass.training.fit.augment import Augmentation, augment, draw_augmentation
from skyclass.training.fit.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from skyclass.training.fit.ddp import Group, rank_numbers
from skyclass.training.fit.initial import composite_settings
from skyclass.training.fit.job import (
    Position,
    bundle_fields,
    class_weights,
    input_statistics,
    on_device,
    prepare,
)
from skyclass.training.fit.recipe import TrainConfig, rate_factor, train_config
from skyclass.training.fit.train import batches, close_epoch, logits_of, missing_photometry, train, validate
from tests.support.datasets import SMALL, ZERO_POINTS, blobs, written

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "data"
    save_dataset(folder, blobs(200))
    return folder


def test_a_short_training_beats_chance_and_leaves_a_bundle(data: Path, tmp_path: Path) -> None:
    run = TrainConfig(out=str(tmp_path / "model"), dataset=str(data), **SMALL | {"epochs": 5})
    records: list[dict[str, Any]] = []
    bundle = train(run, records.append)
    epochs = [r for r in records if "val_loss" in r]
    assert records[0] == {
        "network": "iicnet", "start_from": "", "recipe": "modern", "epochs": 5, "patience": 0, "inputs": ["images"],
        "n_train": 140, "steps": 9, "finished_epochs": 0, "finished_steps": 0,
    }  # fmt: skip
    assert bundle == load_bundle(tmp_path / "model")
    assert bundle.training["simulated"] is True and "SIMULATED" in bundle.training["label"]
    assert sum(bundle.training["train_counts"].values()) == 140
    best = min(epochs, key=lambda r: r["val_loss"])
    assert (bundle.training["best_epoch"], bundle.temperature) == (best["epoch"], best["temperature"])
    assert [json.loads(line) for line in (tmp_path / "model.jsonl").read_text().splitlines()] == epochs
    assert list((tmp_path / "model.tensorboard").iterdir())
    assert not (tmp_path / "model.checkpoints").exists()
    result = evaluate(bundle, blobs(200, seed=1), split="all", device="cpu")
    assert result["balanced_accuracy"] > 0.7

    records.clear()
    assert train(run, records.append) == bundle and not records, "a finished training is not done again"
    with pytest.raises(ConfigError, match="holds another model"):
        train(replace(run, seed=5))
    brighter = replace(blobs(200), pixels=3 * blobs(200).pixels)
    with pytest.raises(ConfigError, match="holds another model"):
        train(run, dataset=brighter)
    with pytest.raises(ConfigError, match="has no w4"):
        train(replace(run, out=str(tmp_path / "new"), bands=("w1", "w4")))


def test_images_on_the_device_give_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainConfig(out=str(tmp_path / "host"), dataset=str(data), **SMALL | {"epochs": 1})
    on_host = train(run)
    seen: list[str] = []

    def on_device(images: Any, device: str) -> torch.Tensor:
        seen.append(device)
        return torch.from_numpy(np.array(images))

    monkeypatch.setattr(job_module, "on_device", on_device)
    as_tensor = train(replace(run, out=str(tmp_path / "device")))
    assert seen == ["cpu"]
    weights = load_weights(on_host)
    assert all(torch.equal(weights[k], v) for k, v in load_weights(as_tensor).items())


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_a_compiled_training_learns_the_same_and_resumes_to_the_same_bundle(tmp_path: Path) -> None:
    facts = {"network": "colour", "features": ("w1-w2", "w2-w3"), "dataset": "-", "compile": True, "precision": "fp32"}
    data, run = blobs(100), TrainConfig(out=str(tmp_path / "compiled"), **SMALL | facts)
    compiled = train(run, dataset=data)
    plain = train(replace(run, out=str(tmp_path / "plain"), compile=False), dataset=data)
    assert compiled.training["val_loss"] == pytest.approx(plain.training["val_loss"], abs=0.01)
    assert load_weights(compiled).keys() == load_weights(plain).keys()
    stopped = replace(run, out=str(tmp_path / "stopped"))
    with pytest.raises(Interrupted):
        train(stopped, stop_at(3), dataset=data)
    with pytest.raises(ConfigError, match="compile"):
        train(replace(stopped, compile=False), dataset=data)
    assert train(stopped, dataset=data).digest == compiled.digest


def test_a_network_that_does_not_compile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainConfig(out=str(tmp_path / "m"), dataset="-", **SMALL | {"compile": True, "precision": "fp32"})
    with pytest.raises(ConfigError, match="compile = true with bf16 on a CPU is not supported"):
        train(replace(run, precision="bf16"), dataset=blobs(60))
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        with pytest.raises(CannotCompile, match="no C\\+\\+ compiler: no-such-compiler is not installed"):
            train(run, dataset=blobs(60))

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "false"), "force_disable_caches": True}):
        with pytest.raises(CannotCompile, match="torch cannot compile this network: .*; set compile = false"):
            train(run, dataset=blobs(60))


def test_images_stay_on_the_host_without_a_gpu_that_has_memory_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((2, 3, 8, 8), np.float16)
    assert on_device(images, "cpu") is images and on_device(None, "cuda") is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (images.nbytes, images.nbytes))
    assert on_device(images, "cuda") is images


@pytest.mark.parametrize("network", ["colour", "fusion"])
def test_networks_that_see_photometry(network: str, tmp_path: Path) -> None:
    run = TrainConfig(
        out=str(tmp_path / network), dataset="-", network=network, features=("w1-w2", "w2-w3", "w3_limit"),
        **SMALL | {"learning_rate": 1e-2},
    )  # fmt: skip
    bundle = train(run, dataset=blobs(300))
    assert bundle.photometry is not None and bundle.photometry.features == run.features
    assert evaluate(bundle, blobs(200, seed=1), split="all", device="cpu")["balanced_accuracy"] > 0.7
    with pytest.raises(ConfigError, match="needs features"):
        replace(run, features=())


def test_training_goes_on_from_the_weights_of_another_model(tmp_path: Path) -> None:
    run = TrainConfig(out=str(tmp_path / "first"), dataset="-", **SMALL | {"epochs": 1})
    first = train(run, dataset=blobs(100))
    second = replace(run, out=str(tmp_path / "second"), start_from=str(tmp_path / "first"))
    job = job_of(second, blobs(100))
    assert all(torch.equal(v, load_weights(first)[k]) for k, v in job.network.state_dict().items())
    for options, name in (({"first_kernel": 3}, "option first_kernel"), ({"init": "he"}, "option init")):
        with pytest.raises(ConfigError, match=f"start_from = .*its weights fit no others: leave out the {name}$"):
            job_of(replace(second, options=options), blobs(100))
    with pytest.raises(ConfigError, match="holds iicnet, and this run trains vgg16: name a model of vgg16, or set net"):
        job_of(replace(second, network="vgg16"), blobs(100))


def test_a_start_on_cutouts_of_another_angle_is_refused(tmp_path: Path) -> None:
    first = TrainConfig(out=str(tmp_path / "first"), dataset="-", **SMALL | {"epochs": 1})
    train(first, dataset=blobs(100))
    second = replace(first, out=str(tmp_path / "second"), start_from=str(tmp_path / "first"))
    message = r"trained on cutouts of 21 px \(28.9 arcsec\), and those of the dataset have 31 px \(42.6 arcsec\)"
    with pytest.raises(ConfigError, match=message + ".* --size 21px"):
        job_of(second, blobs(100, size=31))
    wide = blobs(100)
    with pytest.raises(
        ConfigError, match=r"21 px \(28.9 arcsec\), and those of the dataset have 21 px \(57.8 arcsec\)"
    ):
        job_of(second, replace(wide, cut=replace(wide.cut, pixel_scale_arcsec=2.75)))


def test_few_validation_rows_of_a_class_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = TrainConfig(out=str(tmp_path / "a"), dataset="-", **SMALL)
    job_of(run, blobs(100))
    (record,) = caplog.records
    assert re.search(
        r"few validation rows \(\d+ galaxy, \d+ quasar, \d+ star, fewer than 50 of a class\)", record.message
    )
    caplog.clear()
    job_of(run, blobs(900))
    assert not caplog.records


def test_a_training_takes_the_network_options_of_its_start(tmp_path: Path) -> None:
    run = TrainConfig(out=str(tmp_path / "first"), dataset="-", options={"bn": "all"}, **SMALL | {"epochs": 1})
    first = train(run, dataset=blobs(100))
    second = replace(run, out=str(tmp_path / "second"), start_from=str(tmp_path / "first"), options={})
    job = job_of(second, blobs(100))
    assert job.run.options == {"bn": "all"} and job.fingerprint["options"] == {"bn": "all"}
    assert all(torch.equal(v, load_weights(first)[k]) for k, v in job.network.state_dict().items())
    fusion = replace(second, network="fusion", features=("w1-w2", "w2-w3", "w1"))
    assert job_of(fusion, blobs(100)).run.network_options(3) == {"bn": "all", "features": 3}
    own = replace(fusion, options={"bn": "all", "colour_hidden": [8]})
    assert job_of(own, blobs(100)).run.network_options(3) == {"bn": "all", "features": 3, "colour_hidden": [8]}
    with pytest.raises(ConfigError, match="holds iicnet, and this run trains colour"):
        job_of(replace(fusion, network="colour"), blobs(100))


def test_a_model_of_a_shipped_name_is_not_taken_for_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = TrainConfig(out="iicnet-mock", dataset="-", **SMALL | {"epochs": 1})
    made = train(run, dataset=blobs(60))
    assert made.path == tmp_path / "iicnet-mock"
    assert made.weights_sha256 != load_bundle("iicnet-mock").weights_sha256
    assert train(run, dataset=blobs(60)) == made


def test_frozen_parts_keep_their_weights_and_statistics(tmp_path: Path) -> None:
    data = blobs(100)
    first = TrainConfig(out=str(tmp_path / "images"), dataset="-", **SMALL | {"epochs": 1})
    start = load_weights(train(first, dataset=data))
    facts = {"network": "fusion", "features": ("w1-w2", "w3_limit"), "frozen": ("images",)}
    run = replace(first, out=str(tmp_path / "fusion"), start_from=str(tmp_path / "images"), **facts)
    weights = load_weights(train(run, dataset=data))
    kept = {k.removeprefix("images."): v for k, v in weights.items() if k.startswith("images.")}
    assert len(kept) > 50 and all(torch.equal(v, start[k]) for k, v in kept.items())
    own = start[max(k for k in start if k.startswith("head.") and k.endswith("weight"))]
    assert not torch.equal(weights["head.0.weight"][:, : own.shape[1]], own)
    with pytest.raises(ConfigError, match="the network has no part trunk; its parts are images, colour, head"):
        job_of(replace(run, frozen=("trunk",)), data)
    with pytest.raises(ConfigError, match="random weights would stay"):
        replace(run, start_from="")
    colour = replace(first, out=str(tmp_path / "colour"), network="colour", features=("w1-w2", "w3_limit"))
    train(colour, dataset=data)
    other = replace(colour, out="-", start_from=str(tmp_path / "colour"), features=("w1", "w2_snr"))
    with pytest.raises(ConfigError, match="uses the features w1-w2, w3_limit, this run w1, w2_snr"):
        job_of(other, data)


def test_values_of_the_wrong_kind_are_told(tmp_path: Path) -> None:
    run = TrainConfig(out="-", dataset="-", **SMALL)
    for changes in ({"composite": {"border_px": "3"}}, {"options": {"first_kernel": "5"}}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            job_of(replace(run, **changes), blobs(60))
    for changes in ({"noise": float("inf")}, {"shift_px": float("nan")}, {"features": (("w1",),), "network": "colour"}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            replace(run, **changes)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    run = TrainConfig(out=str(tmp_path / "m"), dataset="-", **SMALL)
    job = job_of(run, blobs(60))
    with torch.no_grad():
        next(iter(job.network.parameters())).fill_(math.nan)
    with pytest.raises(ConfigError, match="training diverged in epoch 1: lower learning_rate"):
        close_epoch(job, Position(), validate(job))


def test_fusion_begins_as_the_image_network_it_starts_from(tmp_path: Path) -> None:
    data = blobs(60)
    first = TrainConfig(out=str(tmp_path / "images"), dataset="-", **SMALL | {"epochs": 1})
    train(first, dataset=data)
    facts = {"network": "fusion", "features": ("w1-w2", "w3_limit"), "hide_photometry": 0.5}
    run = replace(first, out=str(tmp_path / "fusion"), start_from=str(tmp_path / "images"), **facts)
    job, plain = job_of(run, data), job_of(replace(first, start_from=str(tmp_path / "images")), data)
    images, photometry = torch.from_numpy(job.images), torch.from_numpy(job.photometry)
    job.network.eval(), plain.network.eval()
    with torch.inference_mode():
        fused, alone = logits_of(job, job.network, [images, photometry]), logits_of(plain, plain.network, [images])
    assert torch.allclose(fused, alone, atol=1e-5)
    shown = np.concatenate([inputs[1].numpy() for _, inputs, _ in batches(job, 1, 0)])
    hidden = (shown == missing_photometry(job.photometry_settings).numpy()).all(1)
    assert 0.2 < hidden.mean() < 0.8
    with pytest.raises(ConfigError, match="other images"):
        job_of(replace(run, composite={"stretch": "linear"}), data)


def job_of(run: TrainConfig, dataset: Dataset, group: Group | None = None) -> Any:
    settings = composite_settings(run)
    return prepare(run, dataset, composite(dataset.pixels, ZERO_POINTS, settings), settings, group)


def test_training_and_inference_preprocess_alike_to_the_bit(tmp_path: Path) -> None:
    data = blobs(40)
    job = job_of(TrainConfig(out="-", dataset="-", **SMALL), data)
    seen: list[torch.Tensor] = []
    job.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    job.network.eval()
    with torch.inference_mode():
        logits = logits_of(job, job.network, [torch.from_numpy(job.images)])
    fields = bundle_fields(job, {"epoch": 1, "loss": 1.0} | validate(job)) | {"temperature": 1.0}
    bundle = save_bundle(tmp_path / "m", fields, job.network.state_dict())
    classifier = load_classifier(bundle, "cpu", "fp32")
    seen[1:] = []
    classifier.module.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    probabilities = classifier.predict(job.images)
    assert torch.equal(torch.cat(seen[1:])[:40], seen[0])
    assert np.abs(probabilities - torch.softmax(logits, 1).numpy()).max() < 1e-5
    inputs = Preprocess(job.preprocessing)(torch.from_numpy(job.images[job.train_rows]))
    assert job.preprocessing == input_statistics(job.images, job.train_rows, job.run)
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-3
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_what_augmentation_does_to_an_image() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(0, 1, (1, 2, 9, 9)).astype(np.float16)).repeat(8, 1, 1, 1)
    job = job_of(TrainConfig(out="-", dataset="-", **SMALL), blobs(40))
    settings = replace(job.preprocessing, input_px=27, mean=(0.0, 0.0), std=(1.0, 1.0))
    preprocess = Preprocess(settings)
    plain = preprocess(images)
    still = np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (8, 1, 1))
    same = augment(preprocess, images, Augmentation(still, None))
    assert (same - plain).abs().max() < 1e-5, "nothing drawn: the very interpolation of inference, rim included"

    run = TrainConfig(out="-", dataset="-", flips=True)
    turned = {
        augment(preprocess, images[:1], draw_augmentation(run, np.random.default_rng(k), (1, 2, 9, 9)))
        .numpy()
        .round(3)
        .tobytes()
        for k in range(60)
    }
    assert len(turned) == 8
    shifted = still + np.float32([[0, 0, 2 / 9], [0, 0, 0]])  # one native pixel to the left
    moved = augment(preprocess, images, Augmentation(shifted, None))
    assert (moved[..., 3:-6] - plain[..., 6:-3])[..., 3:-3, :].abs().max() < 1e-5
    noisy = draw_augmentation(replace(run, flips=False, noise=0.5), rng, (8, 2, 9, 9))
    assert noisy.noise is not None and np.std(noisy.noise) == pytest.approx(0.5, rel=0.1)
    holes = images.clone()
    holes[:, :, 4, 4] = torch.nan
    assert torch.isfinite(augment(preprocess, holes, noisy)).all()


@given(st.integers(0, 200), st.integers(1, 9))
def test_ranks_share_a_batch_without_gap_or_overlap(n: int, world: int) -> None:
    parts = [np.arange(n)[Group(rank, world).share(n)] for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_who_a_rank_is_by_torchrun_and_by_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    assert rank_numbers({}) == (0, 1, 0)
    assert rank_numbers({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == (3, 4, 1)
    with pytest.raises(ConfigError, match="LOCAL_RANK is not set"):
        rank_numbers({"RANK": "3", "WORLD_SIZE": "4"})
    slurm = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "node7"}
    assert rank_numbers(slurm | {"SLURM_NTASKS": "4"}) == (0, 1, 0), "a batch script is not a step"
    assert rank_numbers(slurm | {"SLURM_STEP_NUM_TASKS": "4"}) == (2, 4, 0)
    assert os.environ["MASTER_ADDR"] == "node7"


def stop_at(step: int) -> Any:
    """Return a watcher that sends this process SIGTERM after a number of steps."""
    seen = []

    def watch(record: dict[str, Any]) -> None:
        seen.append(record)
        if len([r for r in seen if "step" in r]) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def test_a_stopped_training_goes_on_to_the_same_bundle(data: Path, tmp_path: Path) -> None:
    run = TrainConfig(out=str(tmp_path / "plain"), dataset=str(data), noise=0.5, rotate_deg=20, **SMALL)
    plain = train(run)
    stopped = replace(run, out=str(tmp_path / "stopped"))
    for step in (4, 7, 3):
        with pytest.raises(Interrupted, match="resume"):
            train(stopped, stop_at(step))
    events: list[dict[str, Any]] = []
    assert train(stopped, events.append).digest == plain.digest
    assert (events[0]["finished_epochs"], events[0]["finished_steps"], events[0]["steps"]) == (1, 5, 9)
    logs = [(tmp_path / f"{name}.jsonl").read_text() for name in ("plain", "stopped")]
    speed = re.compile(r', "images_per_s": [\d.]+')
    assert speed.sub("", logs[0]) == speed.sub("", logs[1])
    with pytest.raises(Interrupted):
        train(replace(run, out=str(tmp_path / "other")), stop_at(2))
    with pytest.raises(ConfigError, match="batch_size 16 there, 8 here"):
        train(replace(run, out=str(tmp_path / "other"), batch_size=8))


@pytest.mark.fault(28)
def test_an_unfinished_checkpoint_is_none_and_is_swept(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, number, {"number": number})
    (tmp_path / f".{'a' * 32}.{3:012d}.ckpt").write_bytes(b"killed while it was writ")
    assert latest_checkpoint(tmp_path) == 2 and load_checkpoint(tmp_path, 2) == {"number": 2}
    save_checkpoint(tmp_path, 3, {"number": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n:012d}.ckpt" for n in (2, 3)]


@pytest.mark.fault(28)
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, number, {"number": number, "weights": torch.full((100,), float(number))})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000002.ckpt", "000000000003.ckpt"]
    newest = tmp_path / "000000000003.ckpt"
    whole = newest.read_bytes()
    for torn in (whole[: len(whole) // 2], whole[:-1], whole[:500] + b"x" + whole[501:], b""):
        newest.write_bytes(torn)
        assert latest_checkpoint(tmp_path) == 2 and load_checkpoint(tmp_path, 2)["number"] == 2
        with pytest.raises(StoreError, match="3.ckpt cannot be read"):
            load_checkpoint(tmp_path, 3)
    assert "damaged" in caplog.text
    newest.write_bytes(whole)
    assert latest_checkpoint(tmp_path) == 3 and load_checkpoint(tmp_path, 3)["weights"][0] == 3


def torchrun(toml: Path, ranks: int) -> subprocess.Popen[str]:
    """Start `skyclass train` under torchrun on this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "skyclass", "train", str(toml)],
        text=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.fault(27)
def test_two_ranks_are_one_and_survive_the_death_of_one(data: Path, tmp_path: Path) -> None:
    """fp32, 35 steps: the weights of 1 and 2 ranks are 2 % of their way apart at most (Adam magnifies rounding).

    And after kill -9 of a rank in mid-epoch they are the same to the last bit.
    """
    slow = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4}
    toml = written(tmp_path, "two", data, **slow)
    two = torchrun(toml, 2)
    killed = torchrun(written(tmp_path, "killed", data, checkpoint_minutes=0.0001, **slow), 2)
    kill_a_rank(killed, tmp_path / "killed.checkpoints")
    outputs = [process.communicate(timeout=250)[0] for process in (two, killed)]
    assert two.returncode == 0, outputs[0]
    assert killed.returncode == 0, outputs[1]
    assert "failed (exitcode" in outputs[1], outputs[1]
    run = train_config(json.loads(json.dumps(toml_of(toml))))
    one = load_weights(train(replace(run, out=str(tmp_path / "one"))))
    both, after = load_weights(load_bundle(tmp_path / "two")), load_weights(load_bundle(tmp_path / "killed"))
    torch.manual_seed(run.seed)
    start = build(run.network).state_dict()
    apart, travelled = flat(one) - flat(both), flat(one) - flat(start)
    assert apart.norm() < 0.02 * travelled.norm(), float(apart.norm() / travelled.norm())
    assert all(torch.equal(after[name], both[name]) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(27)
def test_three_ranks_go_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    """Two numbers have one sum, three have several: it takes three ranks to see whether a resume adds in another order.

    The checkpoint that a training resumes from lies within the first epoch, or at its end.
    """
    digests = {}
    for name, minutes in (("plain", 0), ("within", 0.0001), ("between", 0)):
        toml = written(tmp_path, name, data, batch_size=6, learning_rate=1e-4, checkpoint_minutes=minutes)
        process = torchrun(toml, 3)
        if name != "plain":
            kill_a_rank(process, tmp_path / f"{name}.checkpoints")
        output = process.communicate(timeout=250)[0]
        assert process.returncode == 0, output
        assert ("failed (exitcode" in output) == (name != "plain"), output
        bundle = load_bundle(tmp_path / name)
        assert bundle.training["best_epoch"] == 2, "else the weights are from before a resume in epoch 2"
        digests[name] = bundle.weights_sha256
    assert digests["within"] == digests["between"] == digests["plain"]


def kill_a_rank(process: subprocess.Popen[str], checkpoints: Path) -> None:
    """Kill a rank of a torchrun as soon as there is a whole checkpoint."""
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("[0-9]*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(ranks_of(process.pid)[-1], signal.SIGKILL)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all weights in one row, running statistics of BatchNorm included."""
    return torch.cat([weights[name].float().ravel() for name in sorted(weights) if "num_batches" not in name])


def toml_of(path: Path) -> dict[str, Any]:
    from skyclass.settings import read_toml

    return read_toml(path)


def ranks_of(parent: int) -> list[int]:
    """Return the processes that a torchrun has started."""
    import psutil

    return sorted(p.pid for p in psutil.Process(parent).children(recursive=True) if "skyclass" in " ".join(p.cmdline()))


def test_scores_and_weights_by_hand() -> None:
    assert class_weights(np.array([0, 0, 0, 1]), 3, True).tolist() == pytest.approx([2 / 3, 2, 0])
    assert class_weights(np.array([0, 0, 0, 1]), 3, False).tolist() == [1, 1, 1]


def test_schedules_and_recipes() -> None:
    where = {"out": "-", "dataset": "-"}
    modern = train_config(where | {"recipe": "modern", "epochs": 10})
    cosine = [rate_factor(modern, 10)(i) for i in range(100)]
    assert max(cosine) == 1
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[-1] < 0.01
    paper = train_config(where)
    assert (paper.epochs, paper.learning_rate, paper.weight_decay) == (200, 1e-4, 0)
    assert [rate_factor(paper, 10)(i) for i in (0, 499, 500, 1999)] == [1, 1, 0.5, 0.5]


def test_all_config_mistakes_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        train_config({"out": "m", "epochs": "many", "learning": 0.1})
    for part in ("dataset is required", "epochs", "'learning'"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"bands = \['w9'\].*epochs.*schedule"):
        train_config({"out": "m", "dataset": "d", "schedule": "step", "epochs": 0, "bands": ["w9"]})
    with pytest.raises(ConfigError, match="takes no features"):
        train_config({"out": "m", "dataset": "d", "features": ["w1-w2"]})


def test_a_dataset_without_a_class_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = blobs(100)
    few = data.take(np.flatnonzero(data.labels != 1))
    with pytest.raises(ConfigError, match="no quasar in its split 'train'"):
        train(TrainConfig(out=str(tmp_path / "m"), dataset="few", **SMALL), dataset=few)
    assert not (tmp_path / "m").exists()
