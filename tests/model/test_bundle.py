"""Model bundles: a round trip, and every way in which a folder may not be what it claims."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from skyclass.errors import BundleError, ConfigError
from skyclass.images.composite import atlas_settings
from skyclass.model.bundle import (
    Preprocessing,
    load_bundle,
    load_weights,
    save_bundle,
)
from skyclass.model.bundle_files import MODEL_FILE, WEIGHTS_FILE
from skyclass.model.network import inference_module, load_network
from skyclass.networks import build
from tests.support.bundles import BANDS, FIELDS, FUSION, PHOTOMETRY, make_bundle, rewritten


def test_round_trip(tmp_path: Path) -> None:
    written = make_bundle(tmp_path / "deep" / "model")
    read = load_bundle(tmp_path / "deep" / "model")
    assert read == written
    assert {k: getattr(read, k) for k in FIELDS} == FIELDS
    assert read.classes == ("galaxy", "quasar", "star")
    assert read.model_id == f"tiny-{read.digest[:12]}"
    network = build("iicnet", head=[8])
    network.load_state_dict(load_weights(read))
    again = save_bundle(tmp_path / "again", FIELDS, network.state_dict())
    assert again.digest == read.digest
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "again"}, "no temporary folder stays"


@pytest.mark.integration
def test_digest_follows_every_part(tmp_path: Path) -> None:
    digests = {
        make_bundle(tmp_path / str(i), **change).digest
        for i, change in enumerate(
            [{}, {"temperature": 1.5}, {"preprocessing": Preprocessing(64, (0, 0, 0), (1, 1, 1))},
             {"composite": atlas_settings(BANDS, stretch="log")}, {"network_options": {"head": [9]}},
             {"bias": (0, 0, 0.1)}, FUSION, FUSION | {"photometry": replace(PHOTOMETRY, mean=(0.5, 2.0, 14.0))}]
        )
    }  # fmt: skip
    assert len(digests) == 8


def test_photometry_and_bias_come_back(tmp_path: Path) -> None:
    fusion = make_bundle(tmp_path / "fusion", **FUSION)
    assert load_bundle(fusion.path) == fusion
    assert fusion.photometry == PHOTOMETRY and fusion.bias == (0.5, -0.25, 0.0)
    plain = load_bundle(make_bundle(tmp_path / "plain").path)
    assert plain.photometry is None and plain.bias == (0.0, 0.0, 0.0)
    with pytest.raises(BundleError, match="one number for each class"):
        make_bundle(tmp_path / "short", bias=(0.5, 0.5))


@pytest.mark.parametrize("network", ["iicnet", "fusion"])
def test_options_of_the_start_change_nothing_in_a_trained_network(network: str, tmp_path: Path) -> None:
    start = {"cbam_start": "open", "init": "he"}
    fields = FUSION | {"network": network} if network == "fusion" else {}
    written = make_bundle(tmp_path / "open", **fields, network_options={"head": [8], **start})
    bundle = load_bundle(written.path)
    assert bundle.network_options == {"head": [8], **start}
    plain = save_bundle(tmp_path / "plain", FIELDS | fields, load_weights(bundle))
    torch.manual_seed(0)
    inputs = [torch.randn(3, 3, 64, 64), *([torch.randn(3, 3)] if network == "fusion" else [])]
    with torch.inference_mode():
        expected = load_network(plain)(*inputs)
        assert torch.equal(load_network(bundle)(*inputs), expected)
        torch.testing.assert_close(inference_module(bundle, "fp32")(*inputs), expected, atol=1e-4, rtol=1e-4)
        narrow = inference_module(bundle, "bf16")(*inputs)
    assert expected.std() > 0.01 and (narrow - expected).norm() < 0.1 * expected.norm()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": 1, "photometry": ..., "bias": ...}, "schema 1, this version reads 2: use the skyclass version"),
        ({"schema": 99}, "schema 99"),
        ({"bias": ...}, "wrong fields .'bias'"),
        ({"photometry": {"features": ["W9"], "mean": [0.0], "std": [1.0]}}, "wrong fields .*unknown feature 'W9'"),
        ({"photometry": {"features": ["w1"]}}, "wrong fields .*features, mean and std"),
        ({"photometry": 5}, "wrong fields"),
        ({"classes": ["quasar", "galaxy", "QSO"]}, r"classes = .'quasar', 'galaxy', 'QSO'.: 'QSO' is no name"),
        ({"classes": ["galaxy", "quasar", "quasar"]}, "quasar is repeated"),
        ({"classes": ["galaxy"], "bias": [0.0]}, "the number of classes is 1: give 2 to 64"),
        ({"classes": ["galaxy", "quasar"]}, r"bias = .*one number for each class .galaxy, quasar"),
        ({"temperature": 0}, "temperature = 0: must be a positive number"),
        ({"temperature": -1.5}, "temperature = -1.5: must be"),
        ({"temperature": "1.5"}, "temperature = '1.5': must be"),
        ({"temperature": 10**400}, "temperature = 1000.*must be"),
        ({"temperature": True}, "temperature = True: must be"),
        ({"bias": [0.0, 0.0, "1"]}, "bias = .*one number for each class"),
        (
            {"preprocessing": {"input_px": 64, "mean": [0, 0, 0], "std": [1, 0, 1]}},
            r"std = .1, 0, 1.: must be positive",
        ),
        (
            {"preprocessing": {"input_px": 64, "mean": [0, 0], "std": [1, 1, 1]}},
            r"mean = .0, 0.: give one .* each band",
        ),
        ({"preprocessing": {"input_px": 64, "mean": "abc", "std": [1, 1, 1]}}, "mean = .*must be finite numbers"),
        ({"preprocessing": {"input_px": 10**9, "mean": [0] * 3, "std": [1] * 3}}, "input_px = 1000000000: must be"),
        ({"preprocessing": 1.5}, "wrong fields"),
        ({"cut": {"size_px": 0, "bands": ["w1", "w2", "w3"]}}, "size_px = 0: must be"),
        ({"cut": {"size_px": 37.5, "bands": ["w1", "w2", "w3"]}}, "size_px = 37.5: must be"),
        ({"cut": {"size_px": 37, "bands": ["w1", "w2", "w9"]}}, "bands = .*w9.*choose different ones of w1, w2"),
        ({"cut": {"size_px": 37, "bands": ["w1", "w1", "w3"]}}, "bands = .*choose different"),
        ({"composite": {"softening_dn": [1, 1, 1], "zero_point_mag": [20, 19, 1e4]}}, "zero_point_mag = .*within 80"),
        ({"composite": {"softening_dn": [1, 1], "zero_point_mag": [20, 19]}}, "softening_dn = .*each band"),
        ({"composite": {"softening_dn": [1] * 3, "zero_point_mag": [1] * 3, "percentiles": [1]}}, "percentiles"),
        ({"composite": {"softening_dn": [1] * 3, "zero_point_mag": [1] * 3, "lupton_q": 0}}, "lupton_q = 0"),
        ({"training": ["x"]}, "training must have"),
        ({"network_options": [1]}, "network_options = .1.: must be"),
        ({"name": 5}, "name = 5: must be text"),
        ({"weights_sha256": ...}, "wrong fields .*weights_sha256"),
        ({"colour": "red"}, "wrong fields .*colour"),
    ],
)
def test_other_schemas_and_fields_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(BundleError, match=word):
        load_bundle(rewritten(make_bundle(tmp_path / "m").path, **changes))


@pytest.mark.integration
@pytest.mark.parametrize("file", [MODEL_FILE, WEIGHTS_FILE])
@pytest.mark.fault(25)
def test_one_flipped_byte_is_refused(tmp_path: Path, file: str) -> None:
    bundle = make_bundle(tmp_path / "m")
    path = tmp_path / "m" / file
    sound = path.read_bytes()
    places = range(0, len(sound), max(1, len(sound) // 60))
    for i in places:
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :])
        with pytest.raises(BundleError, match=f"{file}.*(restore|train)"):
            load_bundle(tmp_path / "m")
    with pytest.raises(BundleError, match=WEIGHTS_FILE):  # damaged between reading the bundle and its weights
        (tmp_path / "m" / WEIGHTS_FILE).write_bytes(b"x")
        load_weights(bundle)


def test_what_is_missing_or_foreign_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")
    make_bundle(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match=f"{WEIGHTS_FILE} is missing"):
        load_bundle(tmp_path / "m")


def test_numbers_that_json_does_not_have_are_refused_on_saving(tmp_path: Path) -> None:
    sound = make_bundle(tmp_path / "m")
    for change, name in [
        ({"temperature": float("nan")}, "temperature"),
        ({"bias": (0.0, float("inf"), 0.0)}, "bias"),
        (
            {"preprocessing": Preprocessing(64, (0.0,) * 3, (1.0,) * 3), "classes": ("star", "QSO", "galaxy")},
            "classes",
        ),
    ]:
        with pytest.raises(BundleError, match=f"{name} = "):
            make_bundle(tmp_path / "m", **change)
    with pytest.raises(ConfigError, match="std = .*must be positive"):
        Preprocessing(64, (0.0,) * 3, (1.0, float("nan"), 1.0))
    assert load_bundle(tmp_path / "m") == sound, "the bundle that was there is kept"


def test_a_document_that_nests_too_deep_or_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m").path
    for raw in (b"[" * 100_000, b" " * (2**24 + 1), b"5\n", b"", b"\xff\xfe{}"):
        (folder / MODEL_FILE).write_bytes(raw)
        with pytest.raises(BundleError, match=f"{MODEL_FILE} is damaged"):
            load_bundle(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads every file; another user is tried, which only root can")
@pytest.mark.parametrize("name", [MODEL_FILE, WEIGHTS_FILE, ""])
def test_a_bundle_that_may_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "m").path
    (folder / name).chmod(0)
    code = (
        "import os, sys, skyclass.model.bundle as b; from skyclass.errors import BundleError; os.setuid(65534)\n"
        "try: b.load_bundle(sys.argv[1])\n"
        "except BundleError as error: print(error)"
    )
    for parent in [*tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    out = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert f"the model bundle at {folder} cannot be read" in out.stdout and "Permission denied" in out.stdout


def test_saving_replaces_a_bundle_but_nothing_else(tmp_path: Path) -> None:
    make_bundle(tmp_path / "m")
    assert make_bundle(tmp_path / "m", temperature=2.0) == load_bundle(tmp_path / "m")
    (tmp_path / "m" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="choose another folder"):
        make_bundle(tmp_path / "m")
    assert (tmp_path / "m" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(BundleError, match="simulated"):
        make_bundle(tmp_path / "n", training={"label": "who knows"})


def test_reading_a_bundle_does_not_import_torch(tmp_path: Path) -> None:
    make_bundle(tmp_path / "m")
    code = "import sys, skyclass.model.bundle as b; b.load_bundle(sys.argv[1]); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_bundle_stays_where_a_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    before, rename = make_bundle(tmp_path / "model"), Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        make_bundle(tmp_path / "model", temperature=2.0)
    assert load_bundle(tmp_path / "model") == before and [p.name for p in tmp_path.iterdir()] == ["model"]
