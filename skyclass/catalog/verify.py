"""The check that a catalogue is still what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import sha256_of
from ..schema import SORT_KEYS, class_counts, flagged
from ..text import counted, printable
from .duckdb import connect, parquet_scan
from .manifest import MANIFEST_NAME, PIXEL_SHIFT, Manifest, PixelRecord, manifest_of, read_manifest

SHOWN_IDS = 5


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`; `str` gives it as text, one problem a line.

    Parameters
    ----------
    catalog : str
        Folder of the publication.
    files, rows : int
        Numbers of files and rows in the manifest.
    problems : tuple of str
        Differences from the manifest and the plan; none for a good catalogue.
    """

    catalog: str
    files: int
    rows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        """Return the result in one line, or a heading and one line for each problem."""
        if self.ok:
            amount = f"{counted(self.rows, 'row')} in {counted(self.files, 'file')}"
            return f"{amount}, as planned and as published: nothing lost, no key twice"
        heading = f"{self.catalog} has {counted(len(self.problems), 'problem')}:"
        return "\n".join(map(printable, [heading, *self.problems]))


def verify_publication(root: Path, planned_rows: int | None = None) -> VerifyReport:
    """Return every way in which a publication differs from its manifest.

    Checks SHA-256, schema, rows, sorting, pixel and class counts of each file, unique source ids, totals
    against the plan (`planned_rows`, where the run is known), and files that no publication made.
    """
    manifest = read_manifest(root)
    problems = _total_problems(manifest, planned_rows) + _stray_problems(root, manifest)
    for name, digest in manifest.sidecars.items():
        problems += _bytes_problems(root / name, name, digest)
    by_file = {record.path: _file_problems(root, record, manifest) for record in manifest.files}
    problems += [text for texts in by_file.values() for text in texts]
    repeated = repeated_ids(root, [record for record in manifest.files if not by_file[record.path]])
    problems += [f"source_id is not unique: {quoted(repeated)}"] if repeated else []
    return VerifyReport(str(root), len(manifest.files), manifest.rows, tuple(problems))


def repeated_ids(root: Path, records: Sequence[PixelRecord], tmp: Path | None = None) -> list[str]:
    """Return source ids that occur more than once in the files below `root`, the first few; empty is good."""
    if not records:
        return []
    query = (
        f"SELECT source_id FROM {parquet_scan([str(root / record.path) for record in records])} "
        f"GROUP BY source_id HAVING count(*) > 1 ORDER BY source_id LIMIT {SHOWN_IDS}"
    )
    with connect(root, tmp) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]


def changed_files(root: Path, manifest: Manifest) -> list[str]:
    """Return the files of a publication that are missing or changed."""
    return [record.path for record in manifest.files if _bytes_problems(root / record.path, record.path, record.sha256)]


def quoted(names: Sequence[str]) -> str:
    """Return a few names in quotes."""
    return ", ".join(repr(name) for name in names[:SHOWN_IDS])


def _total_problems(manifest: Manifest, planned_rows: int | None) -> list[str]:
    problems = []
    rows = sum(record.rows for record in manifest.files)
    for source, expected in {"manifest": manifest.rows_expected, "run": planned_rows}.items():
        if expected is not None and rows != expected:
            problems.append(f"{counted(expected, 'row')} planned ({source}), {counted(rows, 'row')} in the files")
    totals = manifest_of(manifest.files, manifest.rows_expected, manifest.provenance, manifest.sidecars, manifest.tiles)
    for name in ("rows", "classes", "n_flagged"):
        if getattr(totals, name) != getattr(manifest, name):
            problems.append(f"manifest total {name} differs from the sum over its files")
    return problems


def _stray_problems(root: Path, manifest: Manifest) -> list[str]:
    known = {record.path for record in manifest.files} | {*manifest.sidecars, MANIFEST_NAME}
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    return [f"{name}: not in the manifest" for name in sorted(names) if name not in known]


def _bytes_problems(path: Path, name: str, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{name}: missing"]
    sha256 = sha256_of(path)
    return [] if sha256 == digest else [f"{name}: sha256 is {sha256[:12]}, published {digest[:12]}"]


def _file_problems(root: Path, record: PixelRecord, manifest: Manifest) -> list[str]:
    path = root / record.path
    problems = _bytes_problems(path, record.path, record.sha256)
    if not path.is_file():
        return problems
    try:
        if not pq.read_schema(path).equals(manifest.schema):
            return [*problems, f"{record.path}: schema is not that of the class catalogue"]
        rows = pq.ParquetFile(path).read(["_healpix_29", "source_id", "class", "flags"])
    except (OSError, pa.ArrowException) as error:
        return [*problems, f"{record.path}: cannot be read: {error}"]
    return problems + [f"{record.path}: {text}" for text in _row_problems(rows, record, manifest.class_names)]


def _row_problems(rows: pa.Table, record: PixelRecord, classes: Sequence[str]) -> list[str]:
    healpix = rows["_healpix_29"].to_numpy()
    order = pc.sort_indices(rows, sort_keys=[(key, "ascending") for key in SORT_KEYS]).to_numpy()
    checks = {
        f"{counted(len(rows), 'row')}, published {record.rows:,}": len(rows) != record.rows,
        f"rows outside pixel {record.pixel}": bool((healpix >> PIXEL_SHIFT != record.pixel).any()),
        "not sorted by _healpix_29, source_id": bool((order != np.arange(len(rows))).any()),
        "class counts differ from the manifest": class_counts(rows, classes) != record.classes,
        "count of flagged rows differs from the manifest": flagged(rows) != record.n_flagged,
        "range of _healpix_29 differs from the manifest": bool(len(healpix))
        and (int(healpix.min()), int(healpix.max())) != (record.healpix_min, record.healpix_max),
    }
    return [text for text, wrong in checks.items() if wrong]
