"""Run folder -> HATS class catalogue, and the check that a catalogue is still what was published.

One sorted file per HEALPix pixel, units and UCDs as a VOTable inside the Parquet file, the manifest last.
Nothing here knows Dask: a cluster maps `publish_pixel` over `publish_plan`, `publish` does so in a loop.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import starmap
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import store
from .catalog.manifest import (
    CATALOG_ORDER,
    MANIFEST_NAME,
    Manifest,
    PixelRecord,
    find_catalog,
    pixel_path,
    read_manifest,
    write_manifest,
)
from .errors import RowsLost, RunMismatch, StoreError
from .files import parquet_bytes, sha256_of, storing, sync_folder, write_bytes
from .schema import CLASS_SCHEMA, COLUMNS, FLAG_MEANINGS, FOOTER_KEY, SORT_KEYS, class_counts, conform, flagged
from .sky import MAX_ORDER
from .store import RunFolder
from .text import printable
from .types import Flag, Json

_SHIFT = 2 * (MAX_ORDER - CATALOG_ORDER)
_ID_MEMORY = "2GB"
"""Above this the search for repeated ids works on disk."""

Progress = Callable[[int, int], None]
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Gives work(*item) for items in any order, as `itertools.starmap` does."""


# --- what stands in every file ---------------------------------------------------------------------


def provenance(folder: RunFolder) -> Json:
    """Return what is known of the run: `run_id`, `fingerprint`, `info`. No clock: equal runs, equal bytes."""
    run = store.read_run(folder)
    return {name: run[name] for name in ("run_id", "fingerprint", "info")}


def label_of(provenance: Mapping[str, Any]) -> str:
    """Return the words on what the model was trained on; "simulated" stands in them where it applies."""
    training = provenance.get("info", {}).get("model", {}).get("training", {})
    label = str(training.get("label", "training of the model not recorded"))
    if training.get("simulated") and "simulated" not in label.lower():
        label = f"trained on simulated data: {label}"
    return " ".join(label.split())


def file_metadata(schema: pa.Schema, provenance: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the footer of a file: provenance, and a VOTable header (VOParquet, IVOA note 1.0)."""
    return {
        FOOTER_KEY: json.dumps(provenance, sort_keys=True).encode(),
        b"IVOA.VOTable-Parquet.version": b"1.0",
        b"IVOA.VOTable-Parquet.content": votable_header(schema, label_of(provenance)),
    }


def votable_header(schema: pa.Schema, label: str) -> bytes:
    """Return a VOTable without data: unit, UCD and description of each column; positions are ICRS."""
    from astropy.io.votable import tree  # half a second, and only who writes a catalogue needs it

    document = tree.VOTableFile(version="1.4")
    resource = tree.Resource()
    document.resources.append(resource)
    resource.coordinate_systems.append(tree.CooSys(ID="ICRS", system="ICRS"))
    table = tree.TableElement(document, name="classes")
    table.description = f"skyclass class catalogue. {label}"
    resource.tables.append(table)
    table.fields.extend(_votable_field(document, table, field) for field in schema)
    text = io.BytesIO()
    document.to_xml(text)
    return text.getvalue()


def _votable_field(document: Any, table: Any, field: pa.Field) -> Any:
    from astropy.io.votable import tree

    words = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    kind = next((name for test, name in _VOTABLE_TYPES if test(field.type)), "char")
    size = {"arraysize": "*"} if kind == "char" else {}
    frame = {"ref": "ICRS"} if field.name in ("ra", "dec") else {}
    made = tree.Field(document, name=field.name, ID=f"col_{len(table.fields)}_{field.name.strip('_')}",
                      datatype=kind, unit=words.get("unit") or None, ucd=words.get("ucd") or None,
                      **size, **frame)  # fmt: skip
    made.description = words.get("description")
    return made


_VOTABLE_TYPES = (
    (pa.types.is_int64, "long"),
    (pa.types.is_integer, "int"),
    (pa.types.is_float64, "double"),
    (pa.types.is_floating, "float"),
    (pa.types.is_boolean, "boolean"),
)


# --- publishing ------------------------------------------------------------------------------------


def begin_catalog(folder: RunFolder) -> Path:
    """Return an empty folder to publish into; readers see nothing of it until `finish_catalog`.

    Raises `StoreError` where `catalog/` is something else than a catalogue of ours: it would be replaced.
    """
    refuse_foreign(folder)
    with storing(folder.building):
        if folder.building.exists():  # left behind by a kill
            shutil.rmtree(folder.building)
        folder.building.mkdir(parents=True)
    return folder.building


def refuse_foreign(folder: RunFolder) -> None:
    """Raise `RunMismatch` for an output folder that holds anything else than a run of ours: it stays as it is."""
    if folder.catalog.exists() and not (folder.catalog / MANIFEST_NAME).exists():
        raise RunMismatch(
            f"{folder.catalog} exists and is no class catalogue of skyclass; publishing would replace it: "
            "move it away, or give the run another output folder"
        )
    if folder.path.exists() and not folder.path.is_dir():
        raise RunMismatch(f"{folder.path} is a file, and a run needs a folder: give the run another output folder")
    if folder.path.exists() and not folder.run_path.exists():
        ours = {
            p.name
            for p in (folder.tmp, folder.tiles, folder.leases, folder.partitions_path, *store.unfinished(folder.path))
        }
        if foreign := sorted({p.name for p in folder.path.iterdir()} - ours):
            raise RunMismatch(f"{folder.path} is no run of skyclass and holds {foreign[0]}: give a new folder")


def publish_plan(folder: RunFolder) -> list[tuple[int, tuple[str, ...]]]:
    """Return (order-5 pixel, files of the tiles that have rows in it), by pixel; reads one column."""
    files: dict[int, list[str]] = defaultdict(list)
    for commit in store.committed(folder).values():
        path = str(folder.path / commit.file)
        column = pq.read_table(path, columns=["_healpix_29"])["_healpix_29"]
        for pixel in np.unique(column.to_numpy() >> _SHIFT).tolist():
            files[pixel].append(path)
    return [(pixel, tuple(files[pixel])) for pixel in sorted(files)]


def publish_pixel(folder: RunFolder, target: Path, pixel: int, files: Sequence[str]) -> PixelRecord:
    """Return the record of one published file, written below `target`: all rows of an order-5 pixel, sorted.

    Safe to repeat. Raises `StoreError` on repeated source ids and on a full disk.
    """
    low, high = pixel << _SHIFT, (pixel + 1) << _SHIFT
    inside = (pc.field("_healpix_29") >= low) & (pc.field("_healpix_29") < high)
    parts = [pq.read_table(path, schema=CLASS_SCHEMA, filters=inside) for path in files]
    rows = conform(pa.concat_tables(parts))
    data = parquet_bytes(rows, file_metadata(CLASS_SCHEMA, provenance(folder)))
    path = pixel_path(pixel)
    write_bytes(Path(target) / path, data)
    span = pc.min_max(rows["_healpix_29"]).as_py()
    return PixelRecord(
        pixel, path, len(rows), sha256(data).hexdigest(), len(data), class_counts(rows),
        flagged(rows), span["min"], span["max"],
    )  # fmt: skip


def finish_catalog(
    folder: RunFolder,
    records: Iterable[PixelRecord],
    expected_rows: int,
    provenance: Mapping[str, Any],
) -> Path:
    """Return the manifest of the catalogue, which is now in place of any earlier one.

    Raises `RowsLost` unless the files together hold `expected_rows`, and `StoreError` where a source id
    occurs twice; then the earlier catalogue stays.
    """
    records = sorted(records, key=lambda record: record.pixel)
    _conserve(sum(record.rows for record in records), expected_rows, f"the {len(records)} published files")
    repeated = repeated_ids(folder.building, records, folder.tmp)
    if repeated:
        raise StoreError(f"source_id is not unique: {_some(repeated)} occur more than once; mend the input")
    sidecars = _sidecars(records, provenance, str(store.read_run(folder)["created"]))
    for name, data in sidecars.items():
        write_bytes(folder.building / name, data)
    digests = {name: sha256(data).hexdigest() for name, data in sidecars.items()}
    write_manifest(folder.building, _manifest(records, expected_rows, provenance, digests))
    _swap(folder)
    return folder.catalog / MANIFEST_NAME


def _conserve(rows: int, expected_rows: int, where: str) -> None:
    if rows != expected_rows:
        raise RowsLost(
            f"{expected_rows:,} rows planned, {rows:,} in {where}: nothing was published. If tiles are not "
            "committed yet, run the same command again; if all are, this is a defect to report"
        )


def _manifest(
    records: Sequence[PixelRecord],
    expected_rows: int,
    provenance: Mapping[str, Any],
    sidecars: dict[str, str],
) -> Manifest:
    classes: Counter[str] = Counter()
    for record in records:
        classes.update(record.classes)
    return Manifest(
        run_id=str(provenance["run_id"]),
        rows=sum(record.rows for record in records),
        rows_expected=expected_rows,
        classes=dict(classes),
        n_flagged=sum(record.n_flagged for record in records),
        label=label_of(provenance),
        provenance=dict(provenance),
        files=tuple(records),
        sidecars=sidecars,
    )


def _swap(folder: RunFolder) -> None:
    """Put the new catalogue in place of the old: two renames, and whole files at every moment."""
    refuse_foreign(folder)
    folder.make()
    aside = folder.tmp / f"catalog.{uuid.uuid4().hex}"
    with storing(folder.catalog):
        if folder.catalog.exists():
            os.rename(folder.catalog, aside)
        os.rename(folder.building, folder.catalog)
        sync_folder(folder.path)
        if aside.exists():
            shutil.rmtree(aside)


def repeated_ids(catalog: Path, records: Sequence[PixelRecord], tmp: Path, limit: int = 5) -> list[str]:
    """Return source ids that occur more than once in the files, at most `limit`; empty is good."""
    paths = [str(catalog / record.path) for record in records]
    if not paths:
        return []
    query = (
        "SELECT source_id FROM read_parquet(?) GROUP BY source_id HAVING count(*) > 1 "
        f"ORDER BY source_id LIMIT {int(limit)}"
    )
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{_ID_MEMORY}'; SET preserve_insertion_order = false")
        connection.execute("SET temp_directory = ?", [str(tmp)])
        return [row[0] for row in connection.execute(query, [paths]).fetchall()]


def is_published(folder: RunFolder) -> bool:
    """Return whether `catalog/` is the published catalogue of this run, its files there with their sizes."""
    if not (folder.catalog / MANIFEST_NAME).exists():
        return False
    manifest = read_manifest(folder.catalog)
    for record in manifest.files:
        path = folder.catalog / record.path
        if not path.is_file() or path.stat().st_size != record.nbytes:
            return False
    return manifest.run_id == store.read_run(folder)["run_id"] and manifest.rows == store.expected_rows(folder)


def publish(
    folder: RunFolder | str | Path,
    progress: Progress | None = None,
    expected_rows: int | None = None,
    each: Each = starmap,
) -> Path:
    """Return the manifest of the class catalogue, published from the committed tiles of a run.

    `progress(done, total)` is called after each file. `expected_rows` is what the plan counted unless
    given. `each` does the work of the files, here or on a cluster. The caller holds the lease. Raises
    `RowsLost` and `StoreError` as `finish_catalog`.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    expected = store.expected_rows(folder) if expected_rows is None else expected_rows
    commits = store.committed(folder).values()
    _conserve(sum(commit.rows for commit in commits), expected, f"the {len(commits)} committed tiles")
    store.refuse_changed(folder, commits)
    target, plan, records = begin_catalog(folder), publish_plan(folder), []
    for record in each(partial(publish_pixel, folder, target), plan):
        records.append(record)
        if progress:
            progress(len(records), len(plan))
    return finish_catalog(folder, records, expected, provenance(folder))


# --- the files beside the data ---------------------------------------------------------------------


def _sidecars(records: Sequence[PixelRecord], provenance: Mapping[str, Any], created: str) -> dict[str, bytes]:
    properties = _properties(records, provenance, created).encode()
    pixels = "".join(f"{CATALOG_ORDER},{record.pixel}\n" for record in records)
    empty = CLASS_SCHEMA.empty_table()
    return {
        "hats.properties": properties,
        "properties": properties,  # the name that readers of HATS before 0.6 look for
        "partition_info.csv": f"Norder,Npix\n{pixels}".encode(),
        "dataset/_common_metadata": parquet_bytes(empty, file_metadata(CLASS_SCHEMA, provenance)),
        "README.txt": _readme(records, provenance).encode(),
    }


def _properties(records: Sequence[PixelRecord], provenance: Mapping[str, Any], created: str) -> str:
    """Return `hats.properties` (IVOA note HATS)."""
    values = {
        "obs_collection": f"skyclass_{provenance['run_id']}",
        "obs_title": "skyclass class catalogue",
        "obs_description": label_of(provenance),
        "dataproduct_type": "object",
        "hats_nrows": sum(record.rows for record in records),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": MAX_ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_order": CATALOG_ORDER,
        "hats_max_rows": max((record.rows for record in records), default=0),
        "hats_estsize": sum(record.nbytes for record in records) // 1024,
        "hats_builder": "skyclass",
        "hats_creation_date": created,
        "moc_sky_fraction": f"{len(records) / (12 * 4**CATALOG_ORDER):.7f}",
    }
    return "#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def _readme(records: Sequence[PixelRecord], provenance: Mapping[str, Any]) -> str:
    manifest = _manifest(records, sum(record.rows for record in records), provenance, {})
    counts = "\n".join(f"  {name:<14}{count:>14,}" for name, count in manifest.classes.items())
    columns = "\n".join(f"  {name:<14}{unit or '-':<6}{ucd:<28}{words}" for name, (unit, ucd, words) in COLUMNS.items())
    flags = "\n".join(f"  {flag.value:>4}  {flag.name:<16}{FLAG_MEANINGS[flag]}" for flag in Flag)
    return _README.format(
        run_id=manifest.run_id, label=manifest.label, rows=manifest.rows, files=len(records),
        n_flagged=manifest.n_flagged, counts=counts, columns=columns, flags=flags,
    )  # fmt: skip


_README = """\
skyclass class catalogue, run {run_id}
The model: {label}

{rows:,} sources in {files:,} files, {n_flagged:,} of them with a flag.
{counts}

READ THIS BEFORE YOU COUNT QUASARS. An accuracy measured on a balanced test set is not the purity of this
catalogue. Where 0.5 % of the sources on the sky are quasars, the published rates of IICnet (recall 97.1 %,
specificity 98.3 %) give a quasar sample that is about 22 % pure. Cut on p_quasar, look at flags, and
calibrate against the mix of classes of your own field.

LAYOUT. HATS (IVOA note): dataset/Norder=5/Dir=D/Npix=N.parquet, N the HEALPix NESTED pixel of order 5, rows
sorted by _healpix_29 and source_id. manifest.json lists every file with rows, SHA-256 and class counts;
trust it rather than a directory listing. Each file carries a VOTable header (VOParquet) and its provenance.

COLUMNS (name, unit, UCD, meaning). A missing value is a Parquet null, never a number.
{columns}

FLAGS (bits of the column flags)
{flags}

OPEN IT
  skyclass query CATALOGUE --cone 150.1,2.2,30arcmin --where "p_quasar > 0.9" -o quasars.fits
  Python: skyclass.open_catalog(CATALOGUE).cone(150.1, 2.2, "30arcmin").to_pandas()
  Python: lsdb.open_catalog(CATALOGUE)
  skyclass verify CATALOGUE      checks every file against the manifest
"""


# --- verify ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found: no `problems` in a good catalogue; `files` and `rows` are the manifest's."""

    catalog: str
    files: int
    rows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        """Return what was found, a problem a line."""
        if self.ok:
            return f"{self.rows:,} rows in {self.files} files, as planned and as published: nothing lost, no key twice"
        return "\n".join(map(printable, [f"{self.catalog} has {len(self.problems)} problems:", *self.problems]))


def verify(catalog: str | Path) -> VerifyReport:
    """Return every way in which a catalogue (or the one of a run folder) differs from what was published.

    Checks SHA-256, schema, rows, sorting, pixel and class counts of each file, unique source ids, totals
    against the plan, and files that nobody published. Raises `StoreError` where there is no catalogue.
    """
    root = find_catalog(catalog)
    manifest = read_manifest(root)
    problems = _total_problems(root, manifest) + _stray_problems(root, manifest)
    for name, digest in manifest.sidecars.items():
        problems += _bytes_problems(root / name, name, digest)
    found = {record.path: _file_problems(root, record) for record in manifest.files}
    problems += [words for file_problems in found.values() for words in file_problems]
    with tempfile.TemporaryDirectory() as tmp:
        repeated = repeated_ids(root, [r for r in manifest.files if not found[r.path]], Path(tmp))
    problems += [f"source_id is not unique: {_some(repeated)}"] if repeated else []
    return VerifyReport(str(root), len(manifest.files), manifest.rows, tuple(problems))


def _total_problems(root: Path, manifest: Manifest) -> list[str]:
    problems = []
    planned = {"manifest": manifest.rows_expected}
    run = RunFolder(root.parent)
    if run.catalog == root and run.run_path.exists() and store.read_run(run)["run_id"] == manifest.run_id:
        planned["run"] = store.expected_rows(run)
    rows = sum(record.rows for record in manifest.files)
    for where, expected in planned.items():
        if rows != expected:
            problems.append(f"{expected:,} rows planned ({where}), {rows:,} rows in the files")
    totals = _manifest(manifest.files, manifest.rows_expected, manifest.provenance, manifest.sidecars)
    for name in ("rows", "classes", "n_flagged"):
        if getattr(totals, name) != getattr(manifest, name):
            problems.append(f"manifest total {name} differs from the sum over its files")
    return problems


def _stray_problems(root: Path, manifest: Manifest) -> list[str]:
    known = {record.path for record in manifest.files} | {*manifest.sidecars, MANIFEST_NAME}
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    return [f"{name}: not in the manifest" for name in sorted(found) if name not in known]


def _bytes_problems(path: Path, name: str, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{name}: missing"]
    found = sha256_of(path)
    return [] if found == digest else [f"{name}: sha256 is {found[:12]}, published {digest[:12]}"]


def _file_problems(root: Path, record: PixelRecord) -> list[str]:
    path = root / record.path
    problems = _bytes_problems(path, record.path, record.sha256)
    if not path.is_file():
        return problems
    try:
        if not pq.read_schema(path).equals(CLASS_SCHEMA):
            return [*problems, f"{record.path}: schema is not that of the class catalogue"]
        rows = pq.ParquetFile(path).read(["_healpix_29", "source_id", "class", "flags"])
    except (OSError, pa.ArrowException) as error:
        return [*problems, f"{record.path}: cannot be read: {error}"]
    return problems + [f"{record.path}: {words}" for words in _row_problems(rows, record)]


def _row_problems(rows: pa.Table, record: PixelRecord) -> list[str]:
    healpix = rows["_healpix_29"].to_numpy()
    order = pc.sort_indices(rows, sort_keys=[(key, "ascending") for key in SORT_KEYS]).to_numpy()
    checks = {
        f"{len(rows):,} rows, published {record.rows:,}": len(rows) != record.rows,
        f"rows outside pixel {record.pixel}": bool((healpix >> _SHIFT != record.pixel).any()),
        "not sorted by _healpix_29, source_id": bool((order != np.arange(len(rows))).any()),
        "class counts differ from the manifest": class_counts(rows) != record.classes,
        "count of flagged rows differs from the manifest": flagged(rows) != record.n_flagged,
        "range of _healpix_29 differs from the manifest": bool(len(healpix))
        and (int(healpix.min()), int(healpix.max())) != (record.healpix_min, record.healpix_max),
    }
    return [words for words, wrong in checks.items() if wrong]


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5])
