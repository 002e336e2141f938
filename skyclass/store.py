"""The run folder: schema, paths, commit, journal, manifest. No other file names a path in it.

run.json          the fingerprint and what the run was told           written once
sources/          a user's table of positions, made ready             written once
tiles/ID.parquet  the rows of a tile; the file is the claim           create-if-absent
journal.jsonl     what the driver saw, in order: a cache, never the truth
leases/           the one driver that works here: see lease.py
tmp/              attempts; harmless when left behind
report.json       what the run came to
catalog/          the published class catalogue; manifest.json is written last
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import CommitConflict, NotPublished, RunMismatch, StoreError
from .types import CLASSES, Flag

Json = dict[str, Any]

CATALOG_ORDER = 5
"""HEALPix order of a published file: 3.36 square degrees, about 60,000 AllWISE sources."""

ROW_GROUP_ROWS = 6_000
"""A small cone then reads about 0.4 MB of a file; readers must choose files before they open them."""

UNCLASSIFIED = "unclassified"
"""Name under which rows without a class are counted."""

REPEATING = ("coadd_id", "cc_flags", "ext_flg", "class", "flags", "valid_frac", "model_id", "run_id")
"""Columns worth a dictionary inside a file; on the others it costs a quarter more bytes."""

SORT_KEYS = ("_healpix_29", "source_id")
FOOTER_KEY = b"skyclass"
MANIFEST_FORMAT = "skyclass class catalogue 1"
RUN_FORMAT = "skyclass run 1"

FLAG_MEANINGS: dict[Flag, str] = {
    Flag.EDGE: "the cutout leaves the tile; the source stays centred, the pixels outside are missing",
    Flag.NAN_PIXELS: "pixels inside the tile are missing (saturated cores, zero coverage)",
    Flag.CENTRE_MISSING: "the central pixel is missing in at least one band",
    Flag.OFF_TILE: "no pixel of the cutout lies on the tile, or no tile covers the position",
    Flag.TILE_MISSING: "the archive has no image of this tile",
    Flag.TILE_BAD: "an image of this tile is damaged or not an Atlas image",
    Flag.BAND_MISSING: "the tile lacks a band that the model needs",
    Flag.NO_IMAGE: "no class was given: some band has no pixel at all; probabilities are null",
}

_FLAG_BITS = ", ".join(f"{flag.value} {flag.name}" for flag in Flag)

COLUMNS: dict[str, tuple[str, str, str]] = {
    "_healpix_29": ("", "pos.healpix", "HEALPix NESTED pixel of order 29, the spatial index of HATS"),
    "source_id": ("", "meta.id;meta.main", "Source identifier, unique in this catalogue"),
    "designation": ("", "meta.id", "Name by position, Jhhmmss.ss+ddmmss.s"),
    "cntr": ("", "meta.record", "Running number of the source in the input catalogue"),
    "ra": ("deg", "pos.eq.ra;meta.main", "Right ascension, ICRS"),
    "dec": ("deg", "pos.eq.dec;meta.main", "Declination, ICRS"),
    "coadd_id": ("", "meta.id;obs.field", "Atlas tile of the cutout; null where no tile covers the position"),
    "w1mpro": ("mag", "phot.mag;em.IR.3-4um", "W1 profile-fit magnitude (Vega), from the input catalogue"),
    "w2mpro": ("mag", "phot.mag;em.IR.4-8um", "W2 profile-fit magnitude (Vega), from the input catalogue"),
    "w3mpro": ("mag", "phot.mag;em.IR.8-15um", "W3 profile-fit magnitude (Vega), from the input catalogue"),
    "w1snr": ("", "stat.snr;em.IR.3-4um", "W1 profile-fit signal to noise, from the input catalogue"),
    "w2snr": ("", "stat.snr;em.IR.4-8um", "W2 profile-fit signal to noise, from the input catalogue"),
    "w3snr": ("", "stat.snr;em.IR.8-15um", "W3 profile-fit signal to noise, from the input catalogue"),
    "cc_flags": ("", "meta.code.qual", "Contamination and confusion flag per band, from the input catalogue"),
    "ext_flg": ("", "meta.code;src.morph", "Extended source flag, from the input catalogue"),
    "class": ("", "src.class", "Class of the highest probability: galaxy, quasar, star; null without image"),
    "p_galaxy": ("", "stat.probability;src.class", "Probability of a galaxy; the three sum to 1"),
    "p_quasar": ("", "stat.probability;src.class", "Probability of a quasar; the three sum to 1"),
    "p_star": ("", "stat.probability;src.class", "Probability of a star; the three sum to 1"),
    "margin": ("", "stat.probability", "Highest minus second highest probability"),
    "entropy": ("", "stat.param", "Entropy of the three probabilities in nats: 0 certain, 1.0986 no idea"),
    "flags": ("", "meta.code.qual", f"Bit mask, what was wrong with the pixels: {_FLAG_BITS}; 0 is clean"),
    "valid_frac": ("", "stat.filling", "Share of the cutout's pixels that exist and are finite"),
    "model_id": ("", "meta.id;meta.software", "Model bundle that gave the class"),
    "run_id": ("", "meta.id;meta.dataset", "Run that made the row"),
}
"""Column -> (unit, UCD, description), in the order of the catalogue; units are VOUnits, UCDs UCD1+."""

_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("_healpix_29", "cntr"), pa.int64()),
    **dict.fromkeys(("ra", "dec"), pa.float64()),
    **dict.fromkeys(("ext_flg", "flags"), pa.int32()),
    **dict.fromkeys(("source_id", "designation", "coadd_id", "cc_flags", "class"), pa.string()),
    **dict.fromkeys(("model_id", "run_id"), pa.string()),
}


def _class_schema() -> pa.Schema:
    def field(name: str, unit: str, ucd: str, description: str) -> pa.Field:
        words = {"unit": unit, "ucd": ucd, "description": description}
        return pa.field(name, _TYPES.get(name, pa.float32()), metadata=words)

    return pa.schema([field(name, *words) for name, words in COLUMNS.items()])


CLASS_SCHEMA: pa.Schema = _class_schema()
"""Schema of a row of the class catalogue; each field carries its unit, UCD and description."""

_REQUIRED = ("_healpix_29", "source_id", "ra", "dec", "flags", "run_id")


# --- paths -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies. Making one touches no disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def run_path(self) -> Path:
        return self.path / "run.json"

    @property
    def sources(self) -> Path:
        """The user's table of positions, prepared; absent where the catalogue needs no preparation."""
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
        return self.path / "catalog"

    @property
    def building(self) -> Path:
        """The catalogue while it is being published; renamed to `catalog` when whole."""
        return self.path / "catalog.building"

    def tile_path(self, coadd_id: str) -> Path:
        """Return the file of a tile; raise `StoreError` where the name could leave the folder."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", coadd_id):
            raise StoreError(f"tile {coadd_id!r} cannot be a file name: use letters, digits, '.', '_', '-'")
        return self.tiles / f"{coadd_id}.parquet"

    def make(self) -> None:
        """Make the folder and its parts; raise `StoreError` where that is not allowed."""
        with storing(self.path):
            for part in (self.path, self.tiles, self.tmp):
                part.mkdir(parents=True, exist_ok=True)


def pixel_path(pixel: int, order: int = CATALOG_ORDER) -> str:
    """Return a pixel's file relative to the catalogue, as HATS lays it out (IVOA note HATS)."""
    return f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


# --- writing ---------------------------------------------------------------------------------------


_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, then run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable, or choose another"),
}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` that names `path`, the reason and the way out."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        way_out = _WAYS_OUT.get(error.errno or 0, "mend that, then run the same command again")
        raise StoreError(f"cannot write {path}: {reason}: {way_out}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it; raise `OSError`, also where the file exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: without it a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what the block writes there takes its place, whole or not at all.

    The ending of the name is kept, for writers that go by it. Raises `StoreError` on a full disk.
    """
    temp = path.parent / f".{uuid.uuid4().hex}.{path.name}"
    try:
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp
            os.replace(temp, path)
            sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably, replacing what was there."""
    with replacing(path) as temp:
        write_durably(temp, data)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically and durably; keys keep their order."""
    write_bytes(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Json:
    """Return the JSON object in a file; raise `StoreError` where it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotPublished(f"{path} does not exist: check the folder, or classify first") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} holds {type(values).__name__}, not an object: it is damaged")
    return values


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; reads it in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the run ---------------------------------------------------------------------------------------


def start_or_resume(folder: RunFolder, fingerprint: Mapping[str, str], info: Mapping[str, Any]) -> str:
    """Return the run id of `folder`: a new run is recorded, a run with equal fingerprint goes on.

    `info` is provenance (versions, inputs, hashes, `label`: words on what the model was trained on);
    it is kept from the first start and goes into every published file. Raises `RunMismatch` naming
    every field that differs.
    """
    folder.make()
    if folder.run_path.exists():
        found = read_run(folder)
        _refuse_mismatch(folder, found["fingerprint"], fingerprint)
        return str(found["run_id"])
    run_id = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:16]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run = {"format": RUN_FORMAT, "run_id": run_id, "created": created}
    write_json(folder.run_path, {**run, "fingerprint": dict(fingerprint), "info": dict(info)})
    return run_id


IN_WORDS = {
    "plan": " (which sources lie on which tiles: the catalogue, the region or the set of images is another)",
    "model": " (weights, cut, composite, preprocessing or calibration)",
    "code": " (skyclass itself)",
}
"""What fields of a fingerprint stand for that are told as digests."""


def _refuse_mismatch(folder: RunFolder, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    fields = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if fields:
        there, now = ({name: values.get(name, "(none)") for name in fields} for values in (old, new))
        lines = [f"  {name}: {there[name]} there, {now[name]} now{IN_WORDS.get(name, '')}" for name in fields]
        raise RunMismatch(
            f"{folder.path} belongs to another run, which differs in {len(fields)} field(s):\n"
            + "\n".join(lines)
            + "\nUndo the change to resume it, or give another output folder"
        )


def read_run(folder: RunFolder) -> Json:
    """Return run.json: `run_id`, `created`, `fingerprint`, `info`; raise `StoreError` where it is none."""
    run = read_json(folder.run_path)
    if run.get("format") != RUN_FORMAT:
        raise StoreError(f"{folder.run_path} is {run.get('format')!r}, this version reads {RUN_FORMAT!r}")
    return run


def expected_rows(folder: RunFolder) -> int:
    """Return the rows that the plan counted: `n_sources` of the run's info; `StoreError` if absent."""
    rows = read_run(folder)["info"].get("n_sources")
    if not isinstance(rows, int):
        raise StoreError(f"{folder.run_path} has no n_sources in its info: run the classification first")
    return rows


# --- commit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """A tile that is done. `file` is relative to the run folder; `classes` counts rows by class.

    `fault` is why the tile was quarantined: its rows are there, without a class.
    """

    coadd_id: str
    file: str
    sha256: str
    nbytes: int
    rows: int
    n_flagged: int
    classes: dict[str, int]
    fault: str | None = None


def conform(table: pa.Table) -> pa.Table:
    """Return the rows as `CLASS_SCHEMA`, sorted by (`_healpix_29`, `source_id`), in one chunk, NaN as null.

    Raises `StoreError` naming every column that is missing, unknown or of another type, nulls in the
    columns that need values, and classes that do not exist. Any Arrow string type is a string.
    """
    problems = _schema_problems(table.schema)
    if not problems:
        table = table.select(CLASS_SCHEMA.names).cast(CLASS_SCHEMA)
        table = pa.table([_without_nan(column) for column in table.columns], schema=CLASS_SCHEMA)
        problems = _value_problems(table)
    if problems:
        raise StoreError("rows do not fit the class catalogue: " + "; ".join(problems))
    return table.sort_by([(key, "ascending") for key in SORT_KEYS]).combine_chunks()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _schema_problems(schema: pa.Schema) -> list[str]:
    problems = [f"no column {name}" for name in CLASS_SCHEMA.names if name not in schema.names]
    problems += [f"unknown column {name}" for name in schema.names if name not in COLUMNS]
    for field in schema:
        wanted = CLASS_SCHEMA.field(field.name).type if field.name in COLUMNS else field.type
        if field.type != wanted and not (_is_text(field.type) and _is_text(wanted)):
            problems.append(f"{field.name} is {field.type}, must be {wanted}")
    return problems


def _value_problems(table: pa.Table) -> list[str]:
    problems = [f"{name} has {table[name].null_count} nulls" for name in _REQUIRED if table[name].null_count]
    strange = [name for name in pc.unique(table["class"]).to_pylist() if name not in (None, *CLASSES)]
    return problems + [f"class {name!r} is none of {', '.join(CLASSES)}" for name in strange]


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def class_counts(table: pa.Table) -> dict[str, int]:
    """Return rows by class: galaxy, quasar, star and unclassified, zeros included."""
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(table["class"]).to_pylist()}
    return {**{name: counts.get(name, 0) for name in CLASSES}, UNCLASSIFIED: counts.get(None, 0)}


def flagged(table: pa.Table) -> int:
    """Return how many rows carry a flag."""
    return int(pc.sum(pc.not_equal(table["flags"], 0)).as_py() or 0)


def parquet_bytes(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> bytes:
    """Return a Parquet file as bytes, the same for the same rows: zstd, no clock, small row groups."""
    schema = table.schema.remove_metadata()
    sink = pa.BufferOutputStream()
    options = {"use_dictionary": [name for name in REPEATING if name in schema.names]}
    with pq.ParquetWriter(sink, schema, compression="zstd", sorting_columns=_sorting(schema), **options) as writer:
        writer.write_table(table.cast(schema).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        # as metadata of the schema it would stand in the footer twice, once of it in base64
        writer.add_key_value_metadata(dict(metadata or {}))
    return cast(bytes, sink.getvalue().to_pybytes())


def _sorting(schema: pa.Schema) -> Any:
    if not set(SORT_KEYS) <= set(schema.names):
        return None
    return pq.SortingColumn.from_ordering(schema, [(key, "ascending") for key in SORT_KEYS])


def commit_tile(folder: RunFolder, coadd_id: str, table: pa.Table, fault: str | None = None) -> Commit:
    """Return the commit of a tile: its rows are on disk, exactly once, when this returns.

    The file is written under `tmp/`, read back, and claimed by `link`, which succeeds once. A later
    attempt with the same bytes gets the first commit; other bytes raise `CommitConflict`. A claim that
    a power cut left unreadable is replaced. Raises `StoreError` where the rows or the disk do not fit.
    """
    target = folder.tile_path(coadd_id)
    rows = conform(table)
    counts: Json = {"rows": len(rows), "n_flagged": flagged(rows), "classes": class_counts(rows)}
    words: Json = {"coadd_id": coadd_id, **counts, "fault": fault}
    data = parquet_bytes(rows, {FOOTER_KEY: json.dumps(words, sort_keys=True).encode()})
    digest = hashlib.sha256(data).hexdigest()
    commit = Commit(file=_relative(target), sha256=digest, nbytes=len(data), **words)
    temp = folder.tmp / f"{coadd_id}.{uuid.uuid4().hex}.parquet"
    try:
        with storing(target):
            write_durably(temp, data)
            if _footer(temp) != words:
                raise StoreError(f"{temp} reads back differently from what was written: check the disk")
            winner = commit if claim(temp, target) else _settle(temp, target, commit)
            sync_folder(folder.tiles)
    finally:
        temp.unlink(missing_ok=True)
    return winner


def _relative(tile: Path) -> str:
    return f"{tile.parent.name}/{tile.name}"


def claim(temp: Path, target: Path) -> bool:
    """Return whether this attempt created `target`; nothing is ever replaced.

    A repeated NFS reply may lie, the link count does not.
    """
    try:
        os.link(temp, target)
    except FileExistsError:
        return os.stat(temp).st_nlink == 2
    return True


def _settle(temp: Path, target: Path, mine: Commit) -> Commit:
    """Return the commit that stands where the tile was claimed before."""
    theirs = read_commit(target)
    if theirs is None:
        os.replace(temp, target)
        return mine
    if theirs.sha256 != mine.sha256:
        raise CommitConflict(
            f"tile {mine.coadd_id} is committed as {target} with sha256 {theirs.sha256[:12]} and "
            f"{theirs.rows} rows; another attempt gave {mine.sha256[:12]} and {mine.rows} rows: the "
            "classification is not deterministic. Remove that file to take the new rows, or use one kind of "
            "device for a run"
        )
    return theirs


def _footer(path: Path) -> Json | None:
    """Return what a tile's footer says, or None where the file is not a whole tile."""
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno:  # without a number it is the Parquet reader on a torn footer, not the disk
            raise
        return None
    words = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    return cast(Json, words) if words.get("rows") == metadata.num_rows else None


def read_commit(path: Path) -> Commit | None:
    """Return the commit that a tile's file stands for, hashed; None where the file is not whole."""
    words = _footer(path)
    if words is None:
        return None
    return Commit(file=_relative(path), sha256=sha256_of(path), nbytes=path.stat().st_size, **words)


def standing_commit(folder: RunFolder, coadd_id: str) -> Commit | None:
    """Return the commit of a tile that is on disk, or None."""
    path = folder.tile_path(coadd_id)
    return read_commit(path) if path.exists() else None


def committed(folder: RunFolder) -> dict[str, Commit]:
    """Return the commits of a run by tile, sorted. The files are the truth.

    A file that the journal knows with its size is not opened again; any other is read and hashed; one
    that is not whole is no commit, and its tile is done again.
    """
    known = {event["file"]: event for event in read_journal(folder) if event.get("event") in ("commit", "retry")}
    found: dict[str, Commit] = {}
    for path in sorted(folder.tiles.glob("*.parquet")):
        event = known.get(_relative(path))
        fresh = event is not None and event["event"] == "commit" and event.get("nbytes") == path.stat().st_size
        commit = _commit_of(event) if event is not None and fresh else read_commit(path)
        if commit is not None:
            found[commit.coadd_id] = commit
    return found


def retry_quarantined(folder: RunFolder) -> list[str]:
    """Take back the commits of quarantined tiles, so that they are done again; return their names.

    The driver only, under its lease. Killed in between, the tiles taken back so far are to do.
    """
    faulty = [commit for commit in committed(folder).values() if commit.fault]
    for commit in faulty:
        take_back(folder, commit, str(commit.fault))
    return [commit.coadd_id for commit in faulty]


def take_back(folder: RunFolder, commit: Commit, reason: str) -> None:
    """Let a committed tile be done again; the driver only, under its lease."""
    append_journal(folder, "retry", file=commit.file, coadd_id=commit.coadd_id, fault=reason)
    with storing(folder.tiles):
        folder.tile_path(commit.coadd_id).unlink(missing_ok=True)
        sync_folder(folder.tiles)


def refuse_changed(folder: RunFolder, commits: Iterable[Commit]) -> None:
    """Raise `StoreError` for tiles that are no longer what was committed; those are taken back, to be done again."""
    changed = [c for c in commits if sha256_of(folder.path / c.file) != c.sha256]
    for commit in changed:
        take_back(folder, commit, "changed on disk")
    if changed:
        names = ", ".join(c.coadd_id for c in changed[:5])
        raise StoreError(
            f"{len(changed)} tiles in {folder.tiles} were changed after their commit ({names}): nothing was published. "
            "They are taken back: check the disk, then run the same command again"
        )


def litter(folder: RunFolder) -> list[Path]:
    """Return what killed drivers and workers left behind: attempts, half a catalogue, names that were never renamed.

    Only for who holds the lease: of a run at work these are its hands.
    """
    left = [
        *folder.tmp.glob("*"),
        folder.building,
        *unfinished(folder.path),
        *unfinished(folder.catalog),
        *unfinished(folder.sources),
    ]
    return sorted(path for path in left if path.exists())


def unfinished(folder: Path) -> list[Path]:
    """Return the files of a folder that a kill left under the temporary names of `replacing`."""
    return [path for path in folder.glob(".*") if re.match(r"\.[0-9a-f]{32}\.", path.name)]


def remove(path: Path) -> int:
    """Remove a file or folder and return how many bytes it had."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    nbytes = sum(p.stat().st_size for p in files)
    with storing(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return nbytes


def _commit_of(event: Json) -> Commit:
    return Commit(**{name: event[name] for name in Commit.__dataclass_fields__})


# --- journal ---------------------------------------------------------------------------------------


def append_journal(folder: RunFolder, event: str, **fields: Any) -> None:
    """Append one line to the journal and wait for the disk. The driver only: appends must not mix."""
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    with storing(folder.journal_path), open(folder.journal_path, "ab+") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def journal_commit(folder: RunFolder, commit: Commit) -> None:
    """Append a commit to the journal."""
    append_journal(folder, "commit", **asdict(commit))


def read_journal(folder: RunFolder) -> list[Json]:
    """Return the events of the journal in order; a line torn by a kill is left out."""
    if not folder.journal_path.exists():
        return []
    events = []
    for line in folder.journal_path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a torn line; the tiles tell what it would have said
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


# --- the published catalogue -----------------------------------------------------------------------


@dataclass(frozen=True)
class PixelRecord:
    """One published file; `path` is relative to the catalogue, `healpix_min/max` span `_healpix_29`."""

    pixel: int
    path: str
    rows: int
    sha256: str
    nbytes: int
    classes: dict[str, int]
    n_flagged: int
    healpix_min: int
    healpix_max: int


@dataclass(frozen=True)
class Manifest:
    """What a published catalogue holds. Readers trust this and list no folder.

    `sidecars` maps the files beside the data to their SHA-256; `classes` and `n_flagged` are totals.
    """

    run_id: str
    rows: int
    rows_expected: int
    classes: dict[str, int]
    n_flagged: int
    label: str
    provenance: Json
    files: tuple[PixelRecord, ...]
    sidecars: dict[str, str]


MANIFEST_NAME = "manifest.json"


def write_manifest(catalog: Path, manifest: Manifest) -> Path:
    """Write manifest.json and return its path."""
    path = catalog / MANIFEST_NAME
    write_json(path, {"format": MANIFEST_FORMAT, **asdict(manifest)})
    return path


def read_manifest(catalog: Path) -> Manifest:
    """Return the manifest of a published catalogue; raise `StoreError` where `catalog` is none."""
    values = read_json(catalog / MANIFEST_NAME)
    if values.pop("format", None) != MANIFEST_FORMAT:
        raise StoreError(f"{catalog} is no class catalogue: its {MANIFEST_NAME} is not {MANIFEST_FORMAT!r}")
    try:
        files = tuple(PixelRecord(**record) for record in values.pop("files"))
        return Manifest(files=files, **values)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{catalog / MANIFEST_NAME} is damaged: {error}") from error


def find_catalog(path: str | Path) -> Path:
    """Return the folder of the published catalogue, given it or its run folder; raise `StoreError`."""
    given = Path(path)
    for folder in (given, RunFolder(given).catalog):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise NotPublished(
        f"{given} is no published class catalogue (no {MANIFEST_NAME}): give the catalog folder of a run, "
        "or publish the run first with 'skyclass publish'"
    )
