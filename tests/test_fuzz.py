"""A short part of the fuzz run, and that the fuzzer sees what it looks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.cases import CATEGORIES, category_of
from tests.fuzz.damage import damage_bytes, damage_json, damage_text
from tests.fuzz.harness import CRASHED, fault_of
from tests.support.paths import CHECKOUT

SHORT = 42
MESSAGE = "skyclass: the file is damaged\n"


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_damaged_inputs_end_in_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "3", "--n", str(SHORT), "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--patience", "4"], cwd=CHECKOUT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SHORT} cases" in done.stdout and all(f"| {name} |" in done.stdout for name in CATEGORIES)


@pytest.mark.slow
def test_a_case_can_be_replayed_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "3", "--only", "5", "--folder", str(tmp_path)]
    outputs = [
        subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280).stdout for _ in range(2)
    ]
    first, again = (output.split("\n\nseed")[0] for output in outputs)
    assert first == again and first.startswith("5 [") and "--only 5" in first


@pytest.mark.parametrize(
    ("category", "code", "stdout", "stderr", "peak", "fault"),
    [
        ("tables", 0, "done\n", "", 0, ""),
        ("tables", 2, "", MESSAGE, 0, ""),
        ("tables", 2, "", "Usage: skyclass\nError: no such option\n", 0, ""),
        ("run folders", 1, "", MESSAGE, 0, ""),
        ("tables", 1, "", MESSAGE, 0, "exit code 1"),
        ("tables", 5, "", MESSAGE, 0, "exit code 5"),
        ("tables", 2, "", "", 0, "0 messages"),
        ("tables", 2, "", MESSAGE * 2, 0, "2 messages"),
        ("tables", 2, "", "skyclass: warning: column cntr is left out\n" + MESSAGE, 0, ""),
        ("tables", 0, "", "skyclass: warning: column cntr is left out\n", 0, ""),
        ("tables", 0, "", MESSAGE, 0, "and a message"),
        ("tables", 2, "", "Traceback (most recent call last):\nValueError: x\n", 0, "traceback: ValueError: x"),
        ("tables", CRASHED, "", "", 0, "traceback"),
        ("tables", -11, "", "", 0, "ended by signal 11"),
        ("tables", 2, "", MESSAGE, 3_000_000_000, "more than 2 GB"),
        ("tables", 2, "", "skyclass: a\x1b[31m\n", 0, "control character"),
        ("tables", 0, "", "/x/y.py:3: RuntimeWarning: overflow\n", 0, "warning of a library"),
    ],
)
def test_faults_are_seen(category: str, code: int, stdout: str, stderr: str, peak: int, fault: str) -> None:
    found = fault_of(category, "['classify']", code, stdout, stderr, peak)
    assert fault in found and bool(found) == bool(fault)


def test_damage_follows_from_the_seed_and_changes_something() -> None:
    data = bytes(range(256)) * 8
    assert damage_bytes(data, np.random.default_rng(4)) == damage_bytes(data, np.random.default_rng(4))
    assert sum(damage_bytes(data, np.random.default_rng(i)) != data for i in range(50)) >= 49
    text = "ra,dec\n1,2\n3,4\n"
    assert sum(damage_text(text, np.random.default_rng(i)) != text for i in range(50)) > 40
    documents = [damage_json({"a": [1, {"b": 2}], "c": "x"}, np.random.default_rng(i)) for i in range(50)]
    assert sum(document != {"a": [1, {"b": 2}], "c": "x"} for document in documents) > 45


def test_every_category_has_its_share() -> None:
    n = sum(share for share, _ in CATEGORIES.values())
    names = [category_of(index) for index in range(n)]
    assert {name: names.count(name) for name in CATEGORIES} == {name: share for name, (share, _) in CATEGORIES.items()}
