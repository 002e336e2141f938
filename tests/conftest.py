"""A small simulated sky, an untrained model and a run on them, made once a session."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from skyclass.images.composite import atlas_settings
from skyclass.mock import write_mock
from skyclass.model.bundle import Cut, Preprocessing, save_bundle
from skyclass.model.devices import set_threads
from skyclass.networks import build
from skyclass.run.config import RunConfig
from skyclass.types import DEFAULT_CLASSES

pytest_plugins = ("tests.support.faults", "tests.support.fork_server")

BANDS = ("w1", "w2", "w3")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # started by nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)  # two threads on busy cores are slower than one; workers have one


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make seconds into minutes."""
    n = torch.get_num_threads()
    set_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="session")
def sky(tmp_path_factory):
    """Two small simulated tiles with a few hundred sources."""
    return write_mock(str(tmp_path_factory.mktemp("sky")), n_tiles=2, seed=5, sources_per_tile=300, size_px=700)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle with random weights: enough to follow rows, not to believe them."""
    torch.manual_seed(0)
    network = build("iicnet")
    fields = {
        "name": "untrained",
        "network": "iicnet",
        "network_options": {},
        "cut": Cut(37, BANDS),
        "composite": atlas_settings(BANDS),
        "preprocessing": Preprocessing(24, (0.3, 0.3, 0.1), (1.0, 1.0, 1.0)),
        "classes": DEFAULT_CLASSES,
        "temperature": 1.0,
        "training": {"simulated": True, "label": "random weights, for tests"},
    }
    return save_bundle(tmp_path_factory.mktemp("models") / "untrained", fields, network.state_dict()).path


@pytest.fixture
def run(sky, bundle, tmp_path) -> RunConfig:
    """A run over the whole small sky."""
    return RunConfig(
        catalog=str(sky.catalog),
        images=str(sky.images),
        model=str(bundle),
        out=str(tmp_path / "classes"),
        precision="fp32",
        device="cpu",
        strip_sources=128,
    )
