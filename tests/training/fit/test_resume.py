"""Resuming a training: what is told about checkpoints of another one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from skyclass.errors import ConfigError
from skyclass.training.fit.checkpoint import save_checkpoint
from skyclass.training.fit.ddp import Group
from skyclass.training.fit.resume import load_position


def test_checkpoints_of_another_dataset_are_told_with_short_digests(tmp_path: Path) -> None:
    settings = {"rows": "303e179eec55" + "6" * 52, "seed": 1, "network": "iicnet"}
    save_checkpoint(tmp_path, 3, {"fingerprint": settings})
    here = settings | {"rows": "1acd8ae64eba" + "7" * 52, "seed": 2}
    job = SimpleNamespace(checkpoints=tmp_path, group=Group(), fingerprint=here)
    told = "rows '303e179eec55' there, '1acd8ae64eba' here; seed 1 there, 2 here"
    with pytest.raises(ConfigError, match=f"belongs to another training [(]{told}[)]: "):
        load_position(job)
