"""The end of a run: publish its committed tiles as a class catalogue, and verify the catalogue against the plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import starmap
from pathlib import Path

from ..catalog.manifest import read_manifest
from ..catalog.prior_files import NONE, read_prior
from ..catalog.publish import CatalogRows, Progress, publish_catalog, require_row_total
from ..catalog.verify import VerifyReport, verify_publication
from ..catalog.versions import PUBLICATIONS, current_publication, find_catalog, refuse_foreign_catalog
from ..errors import RunMismatch, StoreError
from ..files import unfinished
from ..model.priors import BinnedCalibration
from ..text import counted
from ..types import ParallelMap
from .commits import Commit, committed, refuse_changed
from .folder import RunFolder, expected_rows, read_run
from .next_step import unfinished_run


def publish_run(
    folder: RunFolder | str | Path,
    progress: Progress | None = None,
    n_expected: int | None = None,
    parallel_map: ParallelMap = starmap,
    fence: Callable[[], None] = lambda: None,
    prior: str | None = None,
) -> Path:
    """Return the manifest of the class catalogue, published from the committed tiles of a run.

    The caller holds the lease of the run. `n_expected` is the number of rows; the default is the count of the plan.
    `prior` is that of `RunConfig`; the default is the one of the call that started the run.
    The other parameters, and further errors, are those of `publish_catalog`. Raises `NotPublished` where a tile is not
    committed, and `StoreError` where a tile was changed after its commit.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    n_rows = expected_rows(folder) if n_expected is None else n_expected
    commits = committed(folder)
    n_committed = sum(commit.rows for commit in commits.values())
    if n_committed < n_rows:
        raise unfinished_run(folder)
    require_row_total(n_committed, n_rows, f"the {counted(len(commits), 'committed tile')}")
    refuse_changed(folder, commits.values())
    check_output_folder(folder)
    folder.make()
    return publish_catalog(catalog_rows(folder, commits, n_rows, prior), progress, parallel_map, fence)


def catalog_rows(
    folder: RunFolder, commits: Mapping[str, Commit], n_rows: int, prior: str | None = None
) -> CatalogRows:
    """Return the committed tiles of a run as the rows of a class catalogue."""
    run = read_run(folder)
    model = dict(run["info"].get("model", {}))
    calibration = model.pop("binned_calibration", None)  # a file beside the catalogue has it, instead of every file
    request = prior or run["info"].get("config", {}).get("prior", NONE)
    return CatalogRows(
        folder=folder.path,
        tmp=folder.tmp,
        files=tuple(folder.path / commit.file for commit in commits.values()),
        nbytes=sum(commit.nbytes for commit in commits.values()),
        n_rows=n_rows,
        digest=tiles_digest(commits),
        provenance={name: run[name] for name in ("run_id", "fingerprint")} | {"info": run["info"] | {"model": model}},
        created=str(run["created"]),
        calibration=BinnedCalibration.from_dict(calibration) if calibration else None,
        prior=read_prior(request, model.get("classes", ())),
    )


def tiles_digest(commits: Mapping[str, Commit]) -> str:
    """Return a digest of the content of all committed tiles."""
    content = sorted((commit.coadd_id, commit.sha256) for commit in commits.values())
    return sha256(json.dumps(content).encode()).hexdigest()


def is_published(folder: RunFolder, prior: str = NONE) -> bool:
    """Return whether the current publication holds the committed tiles of this run with a prior, and is complete."""
    root = current_publication(folder.path)
    if root is None:
        return False
    try:
        manifest = read_manifest(root)
    except StoreError:  # of another version, or damaged: a new publication replaces it
        return False
    for record in manifest.files:
        path = root / record.path
        if not path.is_file() or path.stat().st_size != record.nbytes:
            return False
    rows = catalog_rows(folder, committed(folder), manifest.rows, prior)
    return (
        manifest.run_id == read_run(folder)["run_id"]
        and manifest.rows == expected_rows(folder)
        and manifest.tiles == rows.digest
        and manifest.prior_key == rows.prior_key
    )


def check_output_folder(folder: RunFolder) -> None:
    """Raise `RunMismatch` for an output folder that holds anything other than a run of skyclass."""
    refuse_foreign_catalog(folder.path)
    if folder.path.exists() and not folder.path.is_dir():
        raise RunMismatch(f"{folder.path} is a file, and a run needs a folder: give the run another output folder")
    if folder.path.exists() and not folder.run_path.exists():
        parts = (folder.tmp, folder.tiles, folder.leases, folder.partitions_path, *unfinished(folder.path))
        if foreign := sorted({path.name for path in folder.path.iterdir()} - {path.name for path in parts}):
            raise RunMismatch(f"{folder.path} is no run of skyclass and holds {foreign[0]}: give a new folder")


def verify(catalog: str | Path) -> VerifyReport:
    """Return every way in which a catalogue, or the one of a run folder, differs from its manifest and its plan.

    Parameters
    ----------
    catalog : str or Path
        Folder of a class catalogue, or a run folder.

    Returns
    -------
    VerifyReport
        Its `problems` are empty for a good catalogue. It covers the SHA-256, schema, rows, sorting, pixel and class
        counts of each file, unique source ids, the totals of the plan, and files that no manifest names.

    Raises
    ------
    NotPublished
        If there is no class catalogue at this path.

    Examples
    --------
    >>> import skyclass as sc
    >>> sc.verify("classes").ok
    True
    """
    root = find_catalog(catalog)
    run = RunFolder(root.parent.parent if root.parent.name == PUBLICATIONS else root.parent)
    is_of_run = run.run_path.is_file() and read_run(run)["run_id"] == read_manifest(root).run_id
    return verify_publication(root, expected_rows(run) if is_of_run else None)
