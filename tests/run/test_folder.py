"""The run folder: names of tiles, the identity of a run, and the differences that a refusal lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skyclass.errors import RunMismatch, StoreError
from skyclass.run.folder import RunFolder, expected_rows, fingerprint, leftover_files, read_run, start_or_resume
from skyclass.sky.regions import Cone
from skyclass.types import NO_TILE
from skyclass.version import code_version

FIELDS = {"catalog": "c", "model": "m"}


def test_the_identity_of_a_run_is_the_digest_of_its_fingerprint(tmp_path: Path) -> None:
    a, b, c = (RunFolder(tmp_path / name) for name in "abc")
    run_id = start_or_resume(a, FIELDS, {"n_sources": 1})
    assert len(run_id) == 16 and int(run_id, 16) >= 0 and read_run(a)["run_id"] == run_id
    assert start_or_resume(b, dict(reversed(FIELDS.items())), {}) == run_id
    assert start_or_resume(c, FIELDS | {"model": "n"}, {}) != run_id
    assert json.loads(a.partitions_path.read_text()) == {} and a.tiles.is_dir() and a.tmp.is_dir()


def test_the_fields_of_a_fingerprint() -> None:
    fields = fingerprint("c", Cone(1, 2, "3arcmin"), "m", "fp32", "p")
    assert fields == fields | {"catalog": "c", "plan": "p", "model": "m", "precision": "fp32", "code": code_version()}
    assert fields["region"] != fingerprint("c", None, "m", "fp32", "p")["region"] and len(fields) == 6


@pytest.mark.parametrize("n_changed", [0, 5, 6, 8])
def test_a_changed_catalogue_is_told_partition_by_partition(tmp_path: Path, n_changed: int) -> None:
    folder = RunFolder(tmp_path)
    old: dict[str, Any] = {f"k={i}": [10, "x"] for i in range(10)}
    start_or_resume(folder, FIELDS, {}, {**old, "gone": [1, "y"]})
    new = old | {f"k={i}": [10, "z"] for i in range(n_changed)} | {"added": [2, "y"]}
    with pytest.raises(RunMismatch, match="it differs in 1 field:\n") as caught:
        start_or_resume(folder, FIELDS | {"catalog": "d"}, {}, new)
    first, *lines = caught.value.details
    assert first.startswith("catalog: c there, d now (the content of the partitions")
    all_lines = ["  added is new", "  gone is missing", *(f"  k={i} was replaced" for i in range(n_changed))]
    n_more = len(all_lines) - 5
    assert lines == all_lines[:5] + ([f"  and {n_more} more partition{'s' * (n_more > 1)}"] if n_more > 0 else [])
    assert start_or_resume(folder, FIELDS, {}, new)
    with pytest.raises(RunMismatch, match="it differs in 2 fields:\n") as caught:
        start_or_resume(folder, {"catalog": "c", "model": "n", "code": "1"}, {}, new)
    assert caught.value.details == (
        "code: (none) there, 1 now (skyclass itself)",
        "model: m there, n now (weights, cut, composite, preprocessing or calibration)",
    )


OLD_DIGEST, NEW_DIGEST = "303e179eec55" + "6" * 52, "1acd8ae64eba" + "7" * 52
MEANING = " (weights, cut, composite, preprocessing or calibration)"


@pytest.mark.parametrize(
    ("there", "now", "told"),
    [
        ("iicnet-mock", "fusion-mock", "iicnet-mock-303e179eec55 there, fusion-mock-1acd8ae64eba now"),
        ("mine", "mine", f"mine-303e179eec55 there, mine-1acd8ae64eba now{MEANING}"),
        (None, "mine", f"303e179eec55 there, 1acd8ae64eba now{MEANING}"),
        (None, None, f"303e179eec55 there, 1acd8ae64eba now{MEANING}"),
    ],
    ids=["other-name", "same-name", "old-run-without-name", "no-names"],
)
def test_another_model_is_told_by_name(tmp_path: Path, there: str | None, now: str | None, told: str) -> None:
    folder, infos = RunFolder(tmp_path), []
    for name, digest in ((there, OLD_DIGEST), (now, NEW_DIGEST)):
        infos.append({"model": {"id": f"{name}-{digest[:12]}"}} if name else {})
    start_or_resume(folder, FIELDS | {"model": OLD_DIGEST}, infos[0])
    with pytest.raises(RunMismatch) as caught:
        start_or_resume(folder, FIELDS | {"model": NEW_DIGEST}, infos[1])
    assert caught.value.details == (f"model: {told}",)


def test_digests_are_told_in_twelve_digits(tmp_path: Path) -> None:
    start_or_resume(RunFolder(tmp_path), FIELDS | {"plan": OLD_DIGEST[:16]}, {})
    with pytest.raises(RunMismatch, match="plan: 303e179eec55 there, 1acd8ae64eba now [(]the sources"):
        start_or_resume(RunFolder(tmp_path), FIELDS | {"plan": NEW_DIGEST[:16]}, {})


@pytest.mark.parametrize("name", ["1500p015_ac51", NO_TILE, "a", "x" * 100])
def test_a_tile_is_a_file(tmp_path: Path, name: str) -> None:
    assert RunFolder(tmp_path).tile_path(name) == tmp_path / "tiles" / f"{name}.parquet"


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "x" * 101, "a/b"])
def test_a_name_that_is_unsafe_in_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be a file name: use up to 100 letters"):
        RunFolder(tmp_path).tile_path(name)


@pytest.mark.parametrize(
    ("rows", "is_valid"), [(0, True), (7, True), (-1, False), (True, False), ("7", False), (None, False)]
)
def test_the_planned_rows_are_a_count(tmp_path: Path, rows: Any, is_valid: bool) -> None:
    folder = RunFolder(tmp_path)
    start_or_resume(folder, FIELDS, {"n_sources": rows})
    if is_valid:
        assert expected_rows(folder) == rows
    else:
        with pytest.raises(StoreError, match="has no n_sources in its info"):
            expected_rows(folder)


def test_files_that_are_left_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.leases.mkdir()
    folder.sources.mkdir()
    token = "0" * 32
    left = [
        folder.tiles / f".{token}.a.parquet",
        folder.tiles / ".a.parquet.claim",
        folder.leases / f".{token}.lease",
        folder.leases / ".000001.json.claim",
        folder.sources / f".{token}.part0.parquet",
        folder.path / f".{token}.run.json",
        folder.tmp / "scratch",
    ]
    kept = [
        folder.tiles / "a.parquet",
        folder.leases / "000001.json",
        folder.sources / "part0.parquet",
        folder.run_path,
    ]
    for path in (*left, *kept):
        path.write_bytes(b"")
    assert leftover_files(folder) == sorted(left)
