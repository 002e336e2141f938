"""The run folder: its paths, and the identity of a run. No other module names a path in it.

run.json          the fingerprint and the provenance of the run         written once
partitions.json   the digests of the catalogue's files, by name         written once, before run.json
sources/          a user's table of positions, with its tiles           written once
tiles/ID.parquet  the rows of a tile; the file is the claim             created if absent
journal.jsonl     the commits in the order in which the driver saw them, with the SHA-256 of each tile's file
leases/           the lease of the driver: see lease.py
tmp/              scratch files; harmless when they are left behind
report.json       the report of the run
catalogs/         publications of the class catalogue, each a folder: see catalog/versions.py
catalog           link to the current publication
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..catalog.versions import CURRENT, unfinished_publications
from ..errors import NotPublished, RunMismatch, StoreError
from ..files import read_json, translate_write_errors, unfinished, write_json
from ..sky.regions import Region, region_identity
from ..text import counted, short_digest
from ..types import FILE_SAFE_NAME, NO_TILE, Json
from ..version import code_version

RUN_FORMAT = "skyclass run 1"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder. Constructing it does not access the disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def run_path(self) -> Path:
        return self.path / "run.json"

    @property
    def partitions_path(self) -> Path:
        return self.path / "partitions.json"

    @property
    def sources(self) -> Path:
        """The user's table of positions with its tiles; absent for a catalogue in partitions."""
        return self.path / "sources"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def leases(self) -> Path:
        return self.path / "leases"

    @property
    def report_path(self) -> Path:
        return self.path / "report.json"

    @property
    def tiles(self) -> Path:
        return self.path / "tiles"

    @property
    def tmp(self) -> Path:
        return self.path / "tmp"

    @property
    def catalog(self) -> Path:
        return self.path / CURRENT

    def tile_path(self, coadd_id: str) -> Path:
        """Return the file of a tile; raise `StoreError` for a `coadd_id` that is not safe in a file name."""
        if coadd_id != NO_TILE and not FILE_SAFE_NAME.fullmatch(coadd_id):
            raise StoreError(f"tile {coadd_id!r} cannot be a file name: use up to 100 letters, digits, '.', '_', '-'")
        return self.tiles / f"{coadd_id}.parquet"

    def make(self) -> None:
        """Make the folder and its subfolders; raise `StoreError` where that is not allowed."""
        with translate_write_errors(self.path):
            for part in (self.path, self.tiles, self.tmp):
                part.mkdir(parents=True, exist_ok=True)


def start_or_resume(
    folder: RunFolder,
    fingerprint: Mapping[str, str],
    info: Mapping[str, Any],
    partitions: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> str:
    """Record a new run in `folder`, or resume the run with the same fingerprint, and return the run id.

    `info` is provenance: versions, inputs, hashes, and the `label` of the model's training set. The first start writes
    `info`, and every published file has a copy. `partitions` are the digests of the catalogue's files by name. Raises
    `RunMismatch`, which names every field that differs, and the files that differ in the catalogue.
    """
    folder.make()
    if folder.run_path.exists():
        run = read_run(folder)
        _refuse_mismatch(folder, run, {"fingerprint": fingerprint, "info": info}, partitions)
        return str(run["run_id"])
    write_json(folder.partitions_path, {name: list(digest) for name, digest in partitions.items()})
    run_id = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:16]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run = {"format": RUN_FORMAT, "run_id": run_id, "created": created}
    write_json(folder.run_path, run | {"fingerprint": dict(fingerprint), "info": dict(info)})
    return run_id


FIELD_MEANINGS = {
    "catalog": " (the content of the partitions, or of the table with the tile of each source)",
    "plan": " (the sources of each tile: the catalogue, the region or the set of images differs)",
    "model": " (weights, cut, composite, preprocessing or calibration)",
    "code": " (skyclass itself)",
}
"""Field of the fingerprint that holds a digest -> the content behind the digest, for messages."""


def _refuse_mismatch(
    folder: RunFolder, old: Mapping[str, Any], new: Mapping[str, Any], partitions: Mapping[str, Sequence[Any]]
) -> None:
    """Raise `RunMismatch` where the fingerprints of two runs differ. Each has `fingerprint` and `info`."""
    there, now = old["fingerprint"], new["fingerprint"]
    fields = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
    if fields:
        lines = [_difference(name, old, new) for name in fields]
        lines += _partition_changes(folder, partitions) if "catalog" in fields else []
        raise RunMismatch(
            f"{folder.path} belongs to another run; undo the change to resume it, or give another output folder; it "
            f"differs in {counted(len(fields), 'field')}:",
            lines,
        )


def _difference(field: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return one line about a field of the fingerprint that differs; a model is shown by its name."""
    digests = [short_digest(run["fingerprint"].get(field, "(none)")) for run in (old, new)]
    models = [str(run["info"].get("model", {}).get("id", "")) for run in (old, new)]
    if field == "model" and all(models):
        names = {model.removesuffix(digest) for model, digest in zip(models, digests, strict=True)}
        return f"model: {models[0]} there, {models[1]} now" + FIELD_MEANINGS[field] * (len(names) == 1)
    return f"{field}: {digests[0]} there, {digests[1]} now{FIELD_MEANINGS.get(field, '')}"


def _partition_changes(folder: RunFolder, new: Mapping[str, Sequence[Any]], limit: int = 5) -> list[str]:
    """Return a line for each partition that differs from those at the start of the run, at most `limit`."""
    old = read_json(folder.partitions_path) if folder.partitions_path.exists() else {}
    states = {name: "is missing" for name in old.keys() - new.keys()}
    states |= {name: "is new" for name in new.keys() - old.keys()}
    states |= {name: "was replaced" for name in old.keys() & new.keys() if list(new[name]) != list(old[name])}
    lines = [f"  {name} {states[name]}" for name in sorted(states)[:limit]]
    return [*lines, f"  and {counted(len(states) - limit, 'more partition')}"] if len(states) > limit else lines


def read_run(folder: RunFolder) -> Json:
    """Return run.json: `run_id`, `created`, `fingerprint`, `info`; raise `StoreError` where it is damaged."""
    remedy = "restore it from a copy, or classify into another folder"
    try:
        run = read_json(folder.run_path)
    except NotPublished:
        raise
    except StoreError as error:
        raise StoreError(f"{error}: {remedy}") from error
    if run.get("format") != RUN_FORMAT:
        raise StoreError(f"{folder.run_path} is {run.get('format')!r}, this version reads {RUN_FORMAT!r}")
    if damaged := _damaged_fields(run):
        raise StoreError(f"{folder.run_path} is damaged ({', '.join(damaged)}): {remedy}")
    return run


def _damaged_fields(run: Json) -> list[str]:
    """Return the fields of run.json that are absent or have a wrong type."""
    info, fingerprint = run.get("info"), run.get("fingerprint")
    model = info.get("model", {}) if isinstance(info, dict) else {}
    is_valid = {
        "run_id": isinstance(run.get("run_id"), str) and run["run_id"] != "",
        "created": isinstance(run.get("created"), str),
        "fingerprint": isinstance(fingerprint, dict) and all(isinstance(v, str) for v in fingerprint.values()),
        "info": isinstance(info, dict),
        "info.model": isinstance(model, dict) and isinstance(model.get("training", {}), dict),
    }
    return [name for name, valid in is_valid.items() if not valid]


def expected_rows(folder: RunFolder) -> int:
    """Return the number of rows that the plan counted; raise `StoreError` if run.json does not have it."""
    rows = read_run(folder)["info"].get("n_sources")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise StoreError(f"{folder.run_path} has no n_sources in its info: run the classification first")
    return rows


def leftover_files(folder: RunFolder) -> list[Path]:
    """Return the files that killed drivers and workers left behind: attempts at tiles, incomplete publications.

    Only the holder of the lease may remove these files: while another driver runs, they are in use.
    """
    paths = [
        *folder.tmp.glob("*"),
        *unfinished_publications(folder.path),
        *unfinished(folder.path),
        *unfinished(folder.sources),
    ]
    paths += [path for part in (folder.tiles, folder.leases) for path in (*unfinished(part), *part.glob(".*.claim"))]
    return sorted(path for path in paths if os.path.lexists(path))


def fingerprint(
    catalog_digest: str, region: Region | None, model_digest: str, precision: str, plan_digest: str
) -> dict[str, str]:
    """Return the fields that decide the rows of a run. A run resumes only where all of them are equal.

    Inputs enter as digests of their contents, so files can be moved. Images are not in the fingerprint: the commit of
    each tile records the images that it was cut from.
    """
    return {
        "catalog": catalog_digest,  # the partitions, or a user's table with its tiles
        "region": region_identity(region),
        "plan": plan_digest,  # how many sources on which tiles
        "model": model_digest,  # weights, cut, composite, preprocessing and calibration
        "precision": precision,
        "code": code_version(),
    }
