"""Publications of a class catalogue: each one is a new folder, and one atomic rename makes it the current one.

catalogs/000001/           a publication; no file in it changes after the folder got this name
catalogs/UUID.building/    a publication that a driver is writing
catalog                    relative symlink to the current publication

A reader resolves `catalog` once, when it opens the catalogue, and keeps that publication until `skyclass gc` removes
it. On a file system without symlinks `catalog` is a text file that holds the same relative path (as git writes links
there): skyclass follows it, and other tools need the folder that it names. A copy of a run folder may have lost the
link (`rsync -r`) or hold a folder in its place (`cp -rL`): both are read, and the next publication sets the link again.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path
from uuid import uuid4

from ..errors import NotPublished, RunMismatch
from ..files import sync_folder, translate_write_errors, write_durably
from .manifest import MANIFEST_NAME

log = logging.getLogger(__name__)

CURRENT = "catalog"
PUBLICATIONS = "catalogs"
BUILDING_SUFFIX = ".building"

_NO_SYMLINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LINKS = {*_NO_SYMLINKS, errno.EXDEV, errno.EMLINK}
_NUMBER = re.compile(r"\d{6,}")
_POINTER = re.compile(rf"{PUBLICATIONS}/\d{{6,}}")


# --- reading ---------------------------------------------------------------------------------------


def find_catalog(path: str | Path) -> Path:
    """Return the resolved folder of a publication, given that folder, `catalog`, or the run folder.

    Raises `NotPublished` where there is none.
    """
    given = Path(path)
    root = _publication_at(given) or current_publication(given)
    if root is None and given.name == CURRENT and not os.path.lexists(given):
        root = current_publication(given.parent)  # a copy without the link
    if root is None:
        raise NotPublished(
            f"{given} is no published class catalogue (no {MANIFEST_NAME}): give the catalog folder of a run, "
            "or publish the run first with 'skyclass publish'"
            if given.exists()
            else f"{given} does not exist: check the path; a class catalogue is the folder that "
            "'skyclass classify --out' wrote"
        )
    return root


def current_publication(run: Path) -> Path | None:
    """Return the resolved folder of the current publication of a run folder, or None.

    Without an entry `catalog` the newest publication is the current one.
    """
    entry = run / CURRENT
    if os.path.lexists(entry):
        return _publication_at(entry)
    whole = [folder for folder in publications(run) if (folder / MANIFEST_NAME).is_file()]
    return whole[-1].resolve() if whole else None


def publications(run: Path) -> list[Path]:
    """Return the publications of a run folder, oldest first."""
    numbered = [path for path in (run / PUBLICATIONS).glob("*") if _NUMBER.fullmatch(path.name) and path.is_dir()]
    return sorted(numbered, key=lambda path: int(path.name))


def enclosing_publication(path: Path) -> Path | None:
    """Return the publication that a path is inside of, or None. Links are followed."""
    for folder in path.resolve().parents:
        if folder.parent.name == PUBLICATIONS and _NUMBER.fullmatch(folder.name) and _publication_at(folder):
            return folder
    return None


def superseded_publications(run: Path) -> list[Path]:
    """Return the publications that are not the current one; none where there is no current one."""
    current = current_publication(run)
    return [path for path in publications(run) if current and path.resolve() != current]


def unfinished_publications(run: Path) -> list[Path]:
    """Return what killed drivers left of publications. Only the holder of the lease may ask."""
    return sorted((run / PUBLICATIONS).glob(f"*{BUILDING_SUFFIX}"))


def _publication_at(path: Path) -> Path | None:
    if path.is_file():
        pointer = _pointer(path)
        path = path.parent / (pointer or path.name)
    return path.resolve() if (path / MANIFEST_NAME).is_file() else None


def _pointer(path: Path) -> str | None:
    """Return the relative path in a text file that replaces the link, or None in any other file."""
    with open(path, "rb") as file:
        text = file.read(64).decode(errors="replace")
    return text if _POINTER.fullmatch(text) else None


# --- writing ---------------------------------------------------------------------------------------


def refuse_foreign_catalog(run: Path) -> None:
    """Raise `RunMismatch` where `catalog` or `catalogs` is something that a publication must not replace."""
    entry, parent = run / CURRENT, run / PUBLICATIONS
    if os.path.lexists(parent) and not parent.is_dir():
        raise RunMismatch(f"{parent} is no folder, and publications go there: move it away, or choose another --out")
    if os.path.lexists(entry) and not _is_own_entry(entry):
        raise RunMismatch(
            f"{entry} exists and is no class catalogue of skyclass; publishing would replace it: "
            "move it away, or give the run another output folder"
        )


def _is_own_entry(entry: Path) -> bool:
    if entry.is_symlink():
        return bool(_POINTER.fullmatch(os.readlink(entry)))
    if entry.is_file():
        return _pointer(entry) is not None
    return (entry / MANIFEST_NAME).is_file()


def begin_publication(run: Path) -> Path:
    """Return a new empty folder for a publication. The caller holds the lease of the run."""
    staging_folder = run / PUBLICATIONS / f"{uuid4().hex}{BUILDING_SUFFIX}"
    with translate_write_errors(staging_folder):
        for leftover in unfinished_publications(run):
            shutil.rmtree(leftover)
        staging_folder.mkdir(parents=True)
    return staging_folder


def make_current(run: Path, staging_folder: Path) -> Path:
    """Return the folder of the publication that `staging_folder` becomes; `catalog` names it from now on.

    A kill at any step leaves the earlier publication, or this one, as the current one.
    """
    refuse_foreign_catalog(run)
    with translate_write_errors(run / CURRENT):
        for folder, _, _ in os.walk(staging_folder, topdown=False):
            sync_folder(Path(folder))
        _number_copied_catalog(run)
        target = _next_publication(run)
        os.rename(staging_folder, target)
        sync_folder(target.parent)
        _point(run, f"{PUBLICATIONS}/{target.name}")
    return target


def restore_previous(run: Path) -> Path:
    """Publish the publication before the current one again, and return its new folder.

    Its files are linked, or copied where the file system has no links. Raises `NotPublished` where there is none. The
    caller holds the lease of the run.
    """
    current = current_publication(run)
    earlier = [path for path in publications(run) if current and int(path.name) < int(current.name)]
    if not earlier:
        raise NotPublished(f"{run} has no publication before the current one: 'skyclass gc' removes earlier ones")
    staging_folder = begin_publication(run)
    with translate_write_errors(staging_folder):
        shutil.copytree(earlier[-1], staging_folder, copy_function=_link_or_copy, dirs_exist_ok=True)
    return make_current(run, staging_folder)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def restore_link(run: Path) -> None:
    """Make `catalog` name the newest publication where there is no such entry: a kill or a copy has left it out."""
    current = current_publication(run)
    if current and not os.path.lexists(run / CURRENT):
        with translate_write_errors(run / CURRENT):
            _point(run, f"{PUBLICATIONS}/{current.name}")


def _next_publication(run: Path) -> Path:
    number = max((int(path.name) for path in publications(run)), default=0) + 1
    return run / PUBLICATIONS / f"{number:06d}"


def _number_copied_catalog(run: Path) -> None:
    """Move a `catalog` that is a folder, as a copy that followed the link has it, among the publications."""
    entry = run / CURRENT
    if entry.is_dir() and not entry.is_symlink():
        os.rename(entry, _next_publication(run))


def _point(run: Path, target: str) -> None:
    """Make `catalog` name `target`, a path relative to the run folder, by one rename."""
    temp = run / f".{uuid4().hex}.{CURRENT}"
    try:
        try:
            os.symlink(target, temp)
        except OSError as error:
            if error.errno not in _NO_SYMLINKS:
                raise
            log.warning("%s: no symbolic links here; other tools open %s", run / CURRENT, run / target)
            write_durably(temp, target.encode())
        os.replace(temp, run / CURRENT)
        sync_folder(run)
    finally:
        temp.unlink(missing_ok=True)
