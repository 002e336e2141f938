"""The examples in docstrings run in a folder with a simulated sky in sky/ and its class catalogue in classes/."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a simulated sky in sky/ and its classified run in classes/."""
    import skyclass as sc
    from skyclass.mock import write_mock
    from skyclass.run.progress import no_progress

    folder = tmp_path_factory.mktemp("tutorial")
    sky = write_mock(folder / "sky", n_tiles=1, seed=1, sources_per_tile=40, size_px=512)
    run = sc.RunConfig(catalog=str(sky.catalog), images=str(sky.images), out=str(folder / "classes"), cluster="none")
    sc.classify(run, watch=no_progress)
    return folder


@pytest.fixture(autouse=True)
def examples_in_the_tutorial(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("tutorial"))
