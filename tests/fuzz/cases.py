"""The categories of damaged input: each writes one into a scratch folder and returns the command to run on it."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.fits import VerifyError
from astropy.io.votable.exceptions import VOTableSpecError

from .damage import (
    ODD_NUMBERS,
    Rng,
    damage_bytes,
    damage_fits,
    damage_json,
    damage_text,
    json_copy,
    odd_word,
)

Words = list[str]
FAST = ["--precision", "fp32", "--device", "cpu", "--compile", "off", "--cluster", "none"]


@dataclass
class Case:
    """One damaged input: where it lies, the sound files, and what was done, in words."""

    seeds: Path
    folder: Path
    rng: Rng
    url: str = ""
    notes: list[str] = field(default_factory=list)

    def pick(self, *choices: str) -> str:
        """Return one of the choices."""
        return choices[self.rng.integers(len(choices))]

    def note(self, what: str) -> None:
        """Record what was done."""
        self.notes.append(what)

    def copy(self, name: str, target: str = "") -> Path:
        """Return a copy of a sound file or folder in the scratch folder."""
        there, here = self.seeds / name, self.folder / (target or name)
        here.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copytree(there, here) if there.is_dir() else shutil.copy(there, here))

    def file_of(self, folder: Path, pattern: str = "*") -> Path:
        """Return one of the files below a folder."""
        files = sorted(path for path in folder.rglob(pattern) if path.is_file())
        return files[self.rng.integers(len(files))]

    def damage(self, path: Path) -> None:
        """Damage the bytes of a file."""
        self.note(f"bytes of {path.name}")
        path.write_bytes(damage_bytes(path.read_bytes(), self.rng))

    def spoil_path(self, path: Path) -> None:
        """Put something else where a file is: nothing, a folder, a link to itself or to nowhere, an empty file."""
        what = self.pick(
            "nothing", "a folder", "a link to itself", "a link to nowhere", "an empty file", "another name"
        )
        self.note(f"{what} instead of {path.name}")
        kept = path.read_bytes()
        path.unlink()
        if what == "a folder":
            path.mkdir()
        elif what.startswith("a link"):
            path.symlink_to(path if "itself" in what else "/nonexistent/file")
        elif what == "an empty file":
            path.touch()
        elif what == "another name":
            (
                path.parent / self.pick(f"{path.name}.A1b2", "a\x1b[31m\nb.parquet", f"_{path.name}", path.name.upper())
            ).write_bytes(kept)

    def classify(self, **changes: str) -> Words:
        """Return a command that classifies: the sound inputs, but for `changes`."""
        options = {
            "catalog": str(self.seeds / "sky" / "catalog"),
            "images": str(self.seeds / "sky" / "images"),
            "model": str(self.seeds / "model"),
            "out": "out",
        } | changes
        return ["classify", *(word for name, value in options.items() for word in (f"--{name}", value)), *FAST]


def tables(case: Case) -> Words:
    """A table of positions of any format, damaged as bytes, as text or as a table."""
    name = case.pick("t.csv", "t.csv", "t.csv.gz", "t.tbl", "t.vot", "b.vot", "t.fits", "t.ecsv", "t.parquet")
    path = case.copy(f"tables/{name}", name)
    choice = case.rng.random()
    if choice < 0.35:
        case.damage(path)
    elif choice < 0.65 and name in ("t.csv", "t.csv.gz", "t.tbl", "t.vot", "t.ecsv"):
        _damage_words(case, path)
    elif choice < 0.95:
        _write_odd_table(case, path)
    else:
        case.spoil_path(path)
    if case.rng.random() < 0.15:
        return ["cutouts", "--catalog", str(path), "--images", str(case.seeds / "sky" / "images"), "-o", "c.npz"]
    verb = ["plan"] if case.rng.random() < 0.1 else ["classify"]
    return [*verb, *case.classify(catalog=str(path))[1:]]


def _damage_words(case: Case, path: Path) -> None:
    case.note(f"words of {path.name}")
    data = path.read_bytes()
    zipped = path.suffix == ".gz"
    text = damage_text((gzip.decompress(data) if zipped else data).decode(), case.rng).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if zipped else text)


UNWRITABLE = (
    *(ValueError, TypeError, KeyError, OverflowError, UnicodeError, AttributeError, OSError),
    *(pa.ArrowException, VerifyError, VOTableSpecError),
)
"""What writing an odd table raises, by the libraries that write it."""


def _write_odd_table(case: Case, path: Path) -> None:
    """Write the table again with odd columns, in its own format."""
    from astropy.table import Table

    frame = (
        pq.read_table(case.seeds / "tables" / "t.parquet").to_pandas().astype({"source_id": object, "coadd_id": object})
    )
    for _ in range(int(case.rng.integers(1, 4))):
        frame = _odd_frame(case, frame)
    plain, name = frame.convert_dtypes() if case.rng.random() < 0.3 else frame, path.name
    path.unlink()
    try:
        if name.endswith((".csv", ".gz")):
            plain.to_csv(path, index=False)
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pandas(plain, preserve_index=bool(case.rng.random() < 0.3)), path)
        else:
            kind = {"t.tbl": "ascii.ipac", "t.ecsv": "ascii.ecsv", "t.fits": "fits"}.get(name, "votable")
            Table.from_pandas(frame.infer_objects()).write(path, format=kind)
    except UNWRITABLE as error:
        case.note(f"not writable as {name} ({type(error).__name__}): bytes instead")
        shutil.copy(case.seeds / "tables" / name, path)
        case.damage(path)


def _odd_frame(case: Case, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table one of whose columns is gone, renamed, of another type or full of odd values."""
    names = list(frame.columns)
    name, choice = names[case.rng.integers(len(names))] if names else "ra", int(case.rng.integers(9))
    if not names or not len(frame):
        return frame
    case.note(f"column {name}: way {choice}")
    rows = case.rng.random(len(frame)) < case.rng.random()
    if choice == 0:
        return frame.drop(columns=name)
    if choice == 1:
        other = case.pick(
            "ra", "RA", "_ra", "ra\n", "\x1b[31m", "", "dec", "raj2000", "é", "coadd_id", "cntr", "flags", "class"
        )
        return frame.rename(columns={name: other})
    if choice == 2:
        return frame.iloc[: int(case.rng.integers(2))]
    changed = frame.copy()
    if choice == 3:
        changed[name] = changed[name].astype(str)
    elif choice == 4:
        odd = float(case.pick("nan", "inf", "-inf", "-9999", "1e308", "-1", "400", "1e-300", "9.2e18"))
        changed[name] = np.where(rows, odd, np.arange(len(frame), dtype=float))
    elif choice == 5:
        changed[name] = changed[name].astype(object).where(~rows, odd_word(case.rng))
    elif choice == 6:
        changed[name] = None
    elif choice == 7:
        changed[name] = changed[name].iloc[0]
    else:
        changed[name] = case.rng.integers(-(2**63), 2**63 - 1, len(frame))
    return changed


def partitions(case: Case) -> Words:
    """The survey's partitions with one file or name damaged."""
    catalog = case.copy("sky/catalog", "catalog")
    path = case.file_of(catalog)
    choice = case.rng.random()
    if choice < 0.4:
        case.damage(path)
    elif choice < 0.7 and path.suffix == ".parquet":
        frame = pq.read_table(path, partitioning=None).to_pandas()
        frame = _odd_frame(case, _odd_frame(case, frame))
        try:
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
        except UNWRITABLE:
            case.damage(path)
    elif choice < 0.85:
        case.spoil_path(path)
    else:
        folder = path.parent
        other = folder.with_name(
            case.pick("healpix_k5=abc", "healpix_k5=-1", "healpix_k5=999999999", "x\ny", "tmp", "Npix=5")
        )
        if not other.exists():
            case.note(f"{folder.name} renamed to {other.name!a}")
            folder.rename(other)
    words = case.classify(catalog=str(catalog))
    return [*words, "--cone", "150.1,2.2,1deg"] if case.rng.random() < 0.2 else words


def images(case: Case) -> Words:
    """The folder of tiles with one image damaged."""
    folder = case.copy("sky/images", "images")
    path = case.file_of(folder, "*.fits*")
    choice = case.rng.random()
    if choice < 0.55 and path.suffix == ".fits":
        case.note(f"header of {path.name}")
        path.write_bytes(damage_fits(path.read_bytes(), case.rng))
    elif choice < 0.8:
        case.damage(path)
    elif choice < 0.9:
        (path.parent / f"{path.name}.md5").write_bytes(
            damage_bytes(hashlib.md5(path.read_bytes()).hexdigest().encode(), case.rng)
        )
        case.note(f"{path.name}.md5")
    else:
        case.spoil_path(path)
    if case.rng.random() < 0.15:
        table = str(case.seeds / "tables" / "t.csv")
        return [
            "cutouts",
            "--catalog",
            table,
            "--images",
            str(folder),
            "-o",
            "c.npz",
            "--bands",
            case.pick("w1", "w1,w2,w3"),
        ]
    return case.classify(images=str(folder))


def bundles(case: Case) -> Words:
    """A model bundle damaged as bytes, as JSON whose digest fits, or in its weights."""
    from skyclass.model.bundle_files import MODEL_FILE, WEIGHTS_FILE

    folder = case.copy("model", "m")
    choice = case.rng.random()
    if choice < 0.15:
        case.damage(folder / case.pick(MODEL_FILE, WEIGHTS_FILE))
    elif choice < 0.25:
        case.spoil_path(folder / case.pick(MODEL_FILE, WEIGHTS_FILE))
    elif choice < 0.65:
        document = json.loads((folder / MODEL_FILE).read_bytes())
        for _ in range(int(case.rng.integers(1, 3))):
            document = damage_json(document, case.rng)
        case.note("model.json, digest fitting")
        _write_document(folder / MODEL_FILE, document)
    else:
        _damage_weights(case, folder)
    return [case.pick("classify", "classify", "plan"), *case.classify(model=str(folder))[1:]]


def _write_document(path: Path, document: object) -> None:
    """Write model.json with a digest that fits: what another version, or an enemy, may write."""
    from skyclass.model import bundle_files

    if isinstance(document, dict):
        document = document | {"digest": bundle_files.digest_of(document)}
    path.write_bytes(bundle_files.render(document))  # type: ignore[arg-type]


def _damage_weights(case: Case, folder: Path) -> None:
    """Write weights that are unusable as numbers, shapes or a file, with a SHA-256 that fits."""
    import torch
    from safetensors.torch import load, save

    from skyclass.model.bundle_files import MODEL_FILE, WEIGHTS_FILE

    path = folder / WEIGHTS_FILE
    state = load(path.read_bytes())
    names = sorted(state)
    name, how = (
        names[case.rng.integers(len(names))],
        case.pick("nan", "inf", "huge", "zero", "shape", "type", "gone", "file"),
    )
    case.note(f"weights {name}: {how}")
    values = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38, "zero": 0.0}
    if how in values:
        state[name] = torch.full_like(state[name], values[how]) if state[name].is_floating_point() else state[name]
    elif how == "shape":
        state[name] = torch.zeros(3, 5)
    elif how == "type":
        state[name] = state[name].to(torch.int64 if case.rng.random() < 0.5 else torch.float64)
    elif how == "gone":
        del state[name]
    data = (
        damage_bytes(path.read_bytes(), case.rng)
        if how == "file"
        else save({k: v.contiguous() for k, v in state.items()})
    )
    path.write_bytes(data)
    document = json.loads((folder / MODEL_FILE).read_bytes()) | {"weights_sha256": hashlib.sha256(data).hexdigest()}
    _write_document(folder / MODEL_FILE, document)


def toml(case: Case) -> Words:
    """A TOML file of a verb, damaged as text or bytes."""
    verb, name = [
        ("classify", "run"),
        ("classify", "region"),
        ("plan", "run"),
        ("dataset", "dataset"),
        ("train", "train"),
    ][case.rng.integers(5)]
    path = case.folder / f"{name}.toml"
    text = (case.seeds / "toml" / f"{name}.toml").read_text().replace("@", str(case.seeds))
    for _ in range(int(case.rng.integers(1, 3))):
        text = damage_text(text, case.rng)
    case.note(f"{name}.toml")
    path.write_bytes(text.encode(errors="surrogatepass"))
    if case.rng.random() < 0.3:
        case.damage(path)
    safe = ["--cluster", "none", "--out", "out"] if verb == "classify" else []
    return [verb, str(path), *safe]


def runs(case: Case) -> Words:
    """A run folder whose records, tiles or catalogue are damaged; the next command on it."""
    name = case.pick("run", "table_run")
    folder = case.copy(name, "out")
    parts = ["run.json", "journal.jsonl", "report.json", "leases", "tiles", "catalog", "sources"]
    part = folder / parts[case.rng.integers(len(parts))]
    path = case.file_of(part) if part.is_dir() else part
    if not path.is_file():
        path = folder / "run.json"
    choice = case.rng.random()
    if choice < 0.45 and path.suffix in (".json", ".jsonl"):
        _damage_record(case, path)
    elif choice < 0.8:
        case.damage(path)
    else:
        case.spoil_path(path)
    if case.rng.random() < 0.3:
        shutil.rmtree(folder / "catalog")
        case.note("no catalogue")
    catalog = str(case.seeds / ("sky/catalog" if name == "run" else "tables/t.csv"))
    verb = case.pick("classify", "classify", "retry", "publish", "verify", "query", "gc", "report")
    if verb in ("classify", "retry"):
        return [*case.classify(catalog=catalog), *(["--retry-quarantined"] if verb == "retry" else [])]
    return [verb, "out"]


def _damage_record(case: Case, path: Path) -> None:
    """Replace values of a JSON file, or of one line of JSON lines."""
    case.note(f"values of {path.name}")
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    if not lines:
        return case.damage(path)
    at = int(case.rng.integers(len(lines)))
    lines[at] = json.dumps(damage_json(json_copy(json.loads(lines[at])), case.rng))
    path.write_text("\n".join(lines) + "\n")
    return None


def http(case: Case) -> Words:
    """An archive behind a web server that lies; how is in the address."""
    how = case.pick(*LIES)
    case.note(f"answers: {how}")
    return case.classify(images=f"{case.url}/{how}/{int(case.rng.integers(2**31))}")


ODD_PLACES = (
    *(
        "~nobody-here/x",
        "x" * 300,
        "/dev/null",
        "/dev/zero",
        "s3://",
        "https://",
        "http://[::1",
        "ftp://x/y",
        "file://",
    ),
    *("/proc/self/mem", "\udcff", "a\nb", "http://127.0.0.1:1/x", "a:b@c"),
)


LIES = (
    "status",
    "length",
    "range",
    "html",
    "empty",
    "bytes",
    "header",
    "slow",
    "short",
    "redirect",
    "garbage",
    "sometimes",
)
"""What the server of `answers.py` does wrong; the name is the first part of the path."""


def options(case: Case) -> Words:
    """Numbers and words on the command line that make no sense."""
    odd = ODD_NUMBERS[case.rng.integers(len(ODD_NUMBERS))] if case.rng.random() < 0.8 else odd_word(case.rng)
    odd = odd.replace("\x00", "\x01")  # no argument of a process holds NUL
    run, table, seeds = str(case.seeds / "run"), str(case.seeds / "tables" / "t.csv"), case.seeds
    commands: list[Words] = [
        ["mock", "m", "--size", "128", "--tiles", "1", "--sources-per-tile", odd],
        ["mock", "m", "--size", "128", "--tiles", "1", "--sources-per-tile", "5", "--seed", odd],
        ["mock", "m", "--sources-per-tile", "5", "--tiles", "1", "--size", odd],
        ["mock", "m", "--sources-per-tile", "5", "--size", "128", "--tiles", odd],
        ["mock", "m", "--sources-per-tile", "5", "--size", "128", "--tiles", "1", "--bands", odd],
        ["query", run, "--cone", f"{odd},2.2,1deg"],
        ["query", run, "--cone", f"150,{odd},1deg"],
        ["query", run, "--cone", f"150,2.2,{odd}"],
        ["query", run, "--cone", odd],
        ["query", run, "--where", f"p_star > {odd}"],
        ["query", run, "--where", odd],
        ["query", run, "--columns", odd],
        ["query", run, "--sql", f"SELECT {odd} FROM classes"],
        ["query", run, "--sql", odd],
        ["query", run, "-o", odd],
        ["query", run, "-o", f"x.{case.pick('fits', 'csv', 'parquet', 'vot', 'txt')}", "--where", f"ra < {odd}"],
        ["cutouts", "--catalog", table, "--images", str(seeds / "sky" / "images"), "-o", "c.npz", "--size", odd],
        ["cutouts", "--catalog", table, "--images", str(seeds / "sky" / "images"), "-o", "c.npz", "--size", f"{odd}px"],
        ["cutouts", "--catalog", table, "--images", str(seeds / "sky" / "images"), "-o", "c.npz", "--bands", odd],
        ["cutouts", "--catalog", table, "--images", str(seeds / "sky" / "images"), "-o", odd],
        [*case.classify(), "--strip-sources", odd],
        [*case.classify(), "--cone", f"{odd},{odd},{odd}"],
        [*case.classify(), "--workers", odd],
        [*case.classify(), "--memory-limit", odd],
        ["plan", *case.classify()[1:], "--memory-limit", odd],
        case.classify(model=odd or "x"),
        case.classify(catalog=odd),
        case.classify(images=odd),
        case.classify(out=odd),
        case.classify(**{case.pick("catalog", "images", "out", "model"): case.pick(*ODD_PLACES)}),
        ["dataset", "--labels", str(seeds / "sky" / "truth.parquet"), "--images", str(seeds / "sky" / "images"),
         "--catalog", str(seeds / "sky" / "catalog"), "--out", "set", "--size", odd],
        ["dataset", "--labels", str(seeds / "sky" / "truth.parquet"), "--images", str(seeds / "sky" / "images"),
         "--out", "set", case.pick("--min-w1snr", "--min-w2snr", "--seed", "--bands", "--counts"), odd],
        ["labels", "--out", "l.parquet", case.pick("--data-release", "--per-class", "--one-in"), case.pick("x", "0.5")],
        ["labels", "--out", "l.parquet", "--box", f"{odd},1,2"],
        ["evaluate", str(seeds / "model"), odd, "-o", "e"],
        ["report", odd],
        ["verify", odd],
        ["publish", odd],
        ["gc", odd],
        ["train", odd],
    ]  # fmt: skip
    words = commands[case.rng.integers(len(commands))]
    case.note(f"{words[0]} with {odd!a}")
    return words


CATEGORIES: dict[str, tuple[int, Callable[[Case], Words]]] = {
    "tables": (6, tables),
    "partitions": (2, partitions),
    "images": (3, images),
    "bundles": (2, bundles),
    "toml": (2, toml),
    "run folders": (3, runs),
    "http": (1, http),
    "options": (2, options),
}
"""Category -> its share of the cases, and what makes one."""

_CYCLE = [name for name, (share, _) in CATEGORIES.items() for _ in range(share)]


def category_of(index: int) -> str:
    """Return the category of a case: they take turns."""
    return _CYCLE[(8 * index) % len(_CYCLE)]
