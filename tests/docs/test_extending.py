"""The extensions that docs/extending.md shows do what the page says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from skyclass.catalog.query import open_catalog
from skyclass.mock import MockReport
from tests.support.command_line import skyclass

CHECKOUT = Path(__file__).parents[2]
CLASSIFY = """
import json, sys
from skyclass.catalog.query import open_catalog
from skyclass.run import pipeline
from skyclass.run.config import RunConfig
from skyclass.sky.regions import Cone
catalog, images, out, model, ra, dec = sys.argv[1:]
region = Cone(float(ra), float(dec), "2arcmin")
pipeline.classify(RunConfig(catalog, images, out, model, region, precision="fp32", device="cpu"))
rows = open_catalog(out).to_pandas()
print(json.dumps([list(rows), float((rows["w1_w2"] - (rows["w1mpro"] - rows["w2mpro"])).abs().max())]))
"""


@pytest.mark.integration
def test_the_patch_adds_a_column(sky: MockReport, bundle: Path, tmp_path: Path) -> None:
    for folder in ("skyclass", "tests/support"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    patch = CHECKOUT / "docs" / "extensions" / "column.patch"
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    some = pq.read_table(sky.truth).slice(0, 1).to_pylist()[0]
    arguments = (sky.catalog, sky.images, tmp_path / "classes", bundle, some["ra"], some["dec"])
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY, *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    columns, largest_difference = json.loads(done.stdout.splitlines()[-1])
    assert columns[columns.index("w3snr") + 1] == "w1_w2" and largest_difference == 0


@pytest.mark.integration
def test_the_commands_for_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (CHECKOUT / "docs" / "extending.md").read_text()
    block = page.split("From labels to classes")[1].split("```sh\n")[1].split("```")[0]
    first, *commands = block.replace("\\\n", " ").splitlines()
    assert first == "export PYTHONPATH=." and len(commands) == 5
    for command in commands:
        program, *words = shlex.split(command)
        words += {"train": ["--batch-size", "256"], "classify": ["--cluster", "none"]}.get(words[0], [])
        done = skyclass(*words, env=os.environ | {"PYTHONPATH": str(CHECKOUT)})
        assert program == "skyclass" and done.returncode == 0, done.stderr
    rows = open_catalog("classes").to_arrow()
    assert len(rows) > 500 and rows["class"].null_count < 10
    assert rows["model_id"][0].as_py().startswith("my-model-")
