"""The two files of a model bundle: found, read, verified and written, whatever `model.json` describes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BundleError

SCHEMA = 2
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
PACKAGED = Path(__file__).parents[1] / "models"
REMEDY = "restore the bundle from its source, or train it again with `skyclass train`"
MOST_DOCUMENT_BYTES = 2**24


@contextmanager
def translate_bundle_errors(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` within the block into a `BundleError` that names the file."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"the model bundle at {path} cannot be read: {error.filename or path}: {error.strerror or error}; make it "
            "readable, or give another bundle"
        ) from error


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle. A bare name means a shipped model if there is one, else a folder."""
    path = Path(name_or_path)
    packaged = PACKAGED / path.name
    if str(name_or_path) == path.name and (packaged / MODEL_FILE).is_file():
        return packaged
    if not (path / MODEL_FILE).is_file():
        shipped = sorted(p.parent.name for p in PACKAGED.glob(f"*/{MODEL_FILE}"))
        raise BundleError(
            f"no model bundle at {path}: {path / MODEL_FILE} is missing; give the folder of a bundle"
            + (f" or a shipped name ({', '.join(shipped)})" if shipped else "")
        )
    return path


def check_target(path: str | Path) -> None:
    """Raise `BundleError` unless a bundle may be written at `path`: it is free or holds a bundle."""
    path = Path(path)
    names = [p.name for p in path.iterdir()] if path.is_dir() else [path.name] if path.exists() else []
    if set(names) - {MODEL_FILE, WEIGHTS_FILE}:
        raise BundleError(f"{path} holds something that is not a model bundle: choose another folder")


def write_durably(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def digest_of(document: Mapping[str, Any]) -> str:
    content = {k: v for k, v in document.items() if k != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


_NUMBERS = re.compile(r'\[\n[^\[\]{}"]*\]')


def render(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of model.json, each list of numbers in one line."""
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    lines = _NUMBERS.sub(lambda found: "[" + ", ".join(found[0][1:-1].replace(",", " ").split()) + "]", text)
    return (lines + "\n").encode()


def read_document(path: Path) -> dict[str, Any]:
    """Return the verified content of model.json, whose bytes must be exactly those that `render` writes."""
    if path.stat().st_size > MOST_DOCUMENT_BYTES:
        raise BundleError(f"{path} is damaged (more than {MOST_DOCUMENT_BYTES:,} bytes): {REMEDY}")
    raw = path.read_bytes()
    try:
        document: dict[str, Any] = json.loads(raw)
        intact = render(document) == raw and document["digest"] == digest_of(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({type(error).__name__}): {REMEDY}") from error
    if not intact:
        raise BundleError(f"{path} was changed after it was written (its digest does not fit): {REMEDY}")
    if document.get("schema") != SCHEMA:
        raise BundleError(
            f"{path} has schema {document.get('schema')!r}, this version reads {SCHEMA}: "
            "use the skyclass version that wrote it, or train the model again"
        )
    return document


def verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: {REMEDY}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise BundleError(f"{path} was changed after it was written (its sha256 does not fit): {REMEDY}")
