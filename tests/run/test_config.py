"""The limits and the defaults of the configuration of a run."""

from __future__ import annotations

from typing import Any

import pytest

from skyclass.errors import ConfigError
from skyclass.run.config import RunConfig, run_config
from skyclass.sky.regions import Cone

LOCATIONS = {"catalog": "c", "images": "i", "out": "o"}


def test_a_run_needs_three_locations_and_has_these_defaults() -> None:
    assert RunConfig(**LOCATIONS).to_dict() == {
        **LOCATIONS, "model": "iicnet-mock", "region": None, "prior": "none", "precision": "auto", "device": "auto",
        "compile": "auto", "cluster": "local", "workers": None, "memory_limit": "3GB", "strip_sources": 16_384,
        "allow_truncated": False, "retry_quarantined": False, "trust_code": False,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        run_config({})
    assert all(f"{name} is required" in str(caught.value) for name in LOCATIONS)


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("workers", [1, 10_000], [0, 10_001]),
        ("strip_sources", [1, 2**31], [0, -1]),
        ("catalog", ["x"], [""]),
        ("images", ["x"], [""]),
        ("out", ["x"], ["", "s3://bucket/x"]),
        ("model", ["x"], [""]),
        ("device", ["cpu", "cuda", "cuda:1", "auto"], ["gpu", "cpux"]),
        ("cluster", ["none", "local", "tcp://127.0.0.1:8786"], ["slurm", "127.0.0.1:8786"]),
        ("precision", ["fp32", "bf16"], ["fp16"]),
        ("compile", ["on", "off"], ["yes"]),
    ],
)
def test_the_limits_of_a_value(key: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        assert getattr(run_config(LOCATIONS | {key: value}), key) == value
    for value in refused:
        with pytest.raises(ConfigError, match=key):
            run_config(LOCATIONS | {key: value})


def test_a_region_survives_the_file_of_a_run() -> None:
    run = RunConfig(**LOCATIONS, region=Cone(150.1, 2.2, "30arcmin"))
    assert run.to_dict()["region"] == {"kind": "cone", "ra": 150.1, "dec": 2.2, "radius": 0.5}
    assert run_config(run.to_dict()) == run
