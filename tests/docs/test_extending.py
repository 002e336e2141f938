"""The extensions that docs/extending.md shows do what the page says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from skyclass.mock import MockReport

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
