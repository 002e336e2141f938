"""Folders of a catalogue: what holds rows, what may be there beside it, and what should hold rows but cannot be read.

A name that belongs to the layout must be readable as what it says. Other names inside a partition's folder must be
known sidecars, because a download or a write that was interrupted leaves rows under names of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import CatalogError
from ..locations import refuse_logins, user_path, without_secrets

ANYWHERE = -1
"""Order of a file that may hold any part of the sky."""

SIDECAR = re.compile(
    r"_metadata|_common_metadata|_SUCCESS|_(started|committed)_\d+|(.*_)?thumbnail\.parquet|README.*|LICENSE.*"
    r"|.*\.(md5|md5sum|md5sums|crc|sha1|sha256|sha512|md|txt|json|html?|ya?ml|log|sh|pdf|png|jpe?g|svg)"
    r"|\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|\.git(keep|ignore|attributes)|\.keep|\.nfs[0-9a-f]+",
    re.IGNORECASE,
)
"""Files beside partitions that hold no rows."""

STAGING = ("_temporary", ".rsync-partial", ".~tmp~")
"""Folders of Spark and rsync for what they have not finished."""

UNFINISHED = re.compile(
    r".*\.(tmp|temp|part|partial|filepart|crdownload|download|opdownload|aria2|inprogress|incomplete)", re.IGNORECASE
)
"""Names that programs give to files that they have not finished."""

PARQUET = (".parquet", ".parq", ".pq")
"""Suffixes of Parquet files."""

UNFINISHED_TEXT = "is an unfinished download or write; finish or repeat it, and remove what is left of it"

MAX_NAMED = 5


class Unreadable(NamedTuple):
    """An entry of the catalogue's layout that should hold rows and cannot be read, and the pixel of its rows."""

    path: str
    reason: str
    order: int = ANYWHERE
    pixel: int = 0


class Numbered(NamedTuple):
    """An entry whose name holds a number, such as `healpix_k5=11`."""

    path: Path
    number: int


def local_path(location: str) -> Path:
    refuse_logins({"catalog": location})
    if "://" in location and not location.startswith("file://"):
        raise CatalogError(
            f"catalogue {without_secrets(location)}: this version reads local files only; copy the partitions you need "
            "first, for example with `aws s3 sync --no-sign-request`"
        )
    path = user_path(location).absolute()
    if not os.path.exists(path):
        raise CatalogError(f"catalogue {location}: there is no such file or folder")
    return path


def folder_names(folder: Path) -> list[str]:
    """Return the names in a folder; `CatalogError` where it cannot be listed or entered."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise CatalogError(f"catalogue {faults_text([listing_fault(folder, error)])}") from error
    if not os.access(folder, os.X_OK):
        raise CatalogError(f"catalogue {folder} cannot be entered; give yourself permission (chmod u+x)")
    return names


def holds(folder: Path, key: str) -> bool:
    """Return whether a folder is there and holds an entry whose name begins with `key`."""
    return folder.is_dir() and any(name.startswith(key) for name in folder_names(folder))


def folder_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name; raises `OSError`."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def listing_fault(folder: Path, error: OSError, order: int = ANYWHERE, pixel: int = 0) -> Unreadable:
    """Return the fault of a folder that cannot be listed."""
    reason = f"cannot be listed ({error.strerror or error}); give yourself permission to read it, or fetch it again"
    return Unreadable(str(folder), reason, order, pixel)


def is_partition_like(name: str, key: str) -> bool:
    """Return whether an entry's name says that it holds rows, in a folder whose partitions begin with `key`."""
    if SIDECAR.fullmatch(name):
        return False
    return key in name or ".parquet" in name.lower() or name in STAGING


def entry_fault(entry: os.DirEntry[str]) -> str:
    """Return why an entry that is no partition cannot be read as one, and the remedy."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return f"is a link to {os.readlink(entry.path)}, which is not there; fetch that, or remove the link"
    if not (entry.is_dir() or entry.is_file()):
        return "is no regular file; remove it, or fetch the partition again"
    if UNFINISHED.fullmatch(entry.name) or entry.name[0] in "._":
        return UNFINISHED_TEXT
    if entry.is_dir():
        return "is a folder where partitions have none; move its files one level up, or remove it"
    if entry.name.endswith(PARQUET):
        return "is not where the partitions of this layout are; move it into its folder, or out of the catalogue"
    if ".parq" in entry.name.lower():
        return UNFINISHED_TEXT
    return "is neither a partition nor a known file beside partitions; fetch it again, or move it out of the catalogue"


def numbered_folders(
    folder: Path, key: str, order: int = ANYWHERE, pixel: int = 0
) -> tuple[list[Numbered], list[Unreadable]]:
    """Return the sub-folders `{key}NUMBER` of a folder by number, and what should be one and cannot be read.

    A folder without any such sub-folder is unreadable itself: it should hold some. `order` and `pixel` say which rows
    the folder holds.
    """
    try:
        entries = folder_entries(folder)
    except OSError as error:
        return [], [listing_fault(folder, error, order, pixel)]
    folders, faults = [], []
    for entry in entries:
        match = re.fullmatch(rf"{re.escape(key)}(\d+)", entry.name)
        if match and entry.is_dir():
            folders.append(Numbered(Path(entry.path), int(match[1])))
        elif is_partition_like(entry.name, key):
            faults.append(Unreadable(entry.path, entry_fault(entry), order, pixel))
    if not folders and not faults:
        faults.append(Unreadable(str(folder), f"holds no {key}*; fetch it again, or remove it", order, pixel))
    return sorted(folders, key=lambda item: item.number), faults


def row_files(
    folder: Path, suffixes: tuple[str, ...], order: int = ANYWHERE, pixel: int = 0
) -> tuple[list[str], list[Unreadable]]:
    """Return the files with rows in a partition's folder, and everything else there that is no known sidecar.

    A folder without any file with rows is unreadable itself.
    """
    try:
        entries = [entry for entry in folder_entries(folder) if not SIDECAR.fullmatch(entry.name)]
    except OSError as error:
        return [], [listing_fault(folder, error, order, pixel)]
    files = [e.path for e in entries if e.name[0] not in "._" and e.name.endswith(suffixes) and e.is_file()]
    others = [entry for entry in entries if entry.path not in set(files)]
    faults = [Unreadable(entry.path, entry_fault(entry), order, pixel) for entry in others]
    if not files and not faults:
        reason = f"holds no {' or '.join(suffixes)} file; fetch this partition again, or remove the folder"
        faults.append(Unreadable(str(folder), reason, order, pixel))
    return files, faults


def faults_text(faults: Iterable[Unreadable]) -> str:
    """Return faults as text, the first few named."""
    lines = [f"{fault.path} {fault.reason}" for fault in faults]
    more = [f"and {len(lines) - MAX_NAMED:,} more"] if len(lines) > MAX_NAMED else []
    return ". ".join([*lines[:MAX_NAMED], *more])
