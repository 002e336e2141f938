"""Another prior for a published class catalogue, from its own rows: no image and no network is needed."""

from __future__ import annotations

from pathlib import Path

from ..catalog.hats import creation_date
from ..catalog.manifest import read_manifest
from ..catalog.prior_files import NO_CALIBRATION, read_calibration, read_prior
from ..catalog.publish import CatalogRows, publish_catalog
from ..catalog.verify import changed_files, quoted
from ..catalog.versions import PUBLICATIONS, find_catalog, restore_previous
from ..errors import ConfigError, StoreError
from ..text import counted
from .folder import RunFolder
from .lease import hold_lease


def recalibrate(catalog: str | Path, prior: str, out: str | Path | None = None) -> Path:
    """Publish the rows of a class catalogue with another prior, and return the folder of the new publication.

    Parameters
    ----------
    catalog : str or Path
        Run folder, or a published class catalogue. Its raw columns stay as they are.
    prior : str
        "none", "estimate", the name of a shipped prior table, or a JSON file with one.
    out : str or Path, optional
        New folder for the publication. By default it is a new version in the run folder, and `undo_recalibration`
        restores the earlier one.

    Returns
    -------
    Path
        Folder of the publication.

    Raises
    ------
    ConfigError
        If the prior cannot be used, or the catalogue is no version of a run folder and there is no `out`.
    NotPublished
        If there is no class catalogue at this path.
    StoreError
        If a file of the catalogue was changed after its publication, or the disk is full.

    Examples
    --------
    >>> import skyclass as sc
    >>> folder = sc.recalibrate("classes", "none", out="classes-without-prior")
    >>> sc.open_catalog(folder).count() == sc.open_catalog("classes").count()
    True
    """
    root = find_catalog(catalog)
    manifest = read_manifest(root)
    target = Path(out) if out is not None else _home(root)
    if out is not None and target.exists():
        raise ConfigError(f"{target} exists: give a new folder for the publication")
    table, calibration = read_prior(prior, manifest.class_names), read_calibration(root)
    if table is not None and calibration is None:
        raise ConfigError(f"prior = {prior!r}: {NO_CALIBRATION}")
    if changed := changed_files(root, manifest):
        raise StoreError(
            f"{root}: {counted(len(changed), 'file')} changed since the publication ({quoted(changed)}): run 'skyclass "
            "verify', then publish the run again"
        )
    folder = RunFolder(target)
    folder.make()
    with hold_lease(folder) as lease:
        rows = CatalogRows(
            folder=folder.path,
            tmp=folder.tmp,
            files=tuple(root / record.path for record in manifest.files),
            nbytes=sum(record.nbytes for record in manifest.files),
            n_rows=manifest.rows,
            digest=manifest.tiles,
            provenance={key: value for key, value in manifest.provenance.items() if key != "prior"},
            created=creation_date(root),
            calibration=calibration,
            prior=table,
        )
        return publish_catalog(rows, fence=lease.check).parent.resolve()


def undo_recalibration(catalog: str | Path) -> Path:
    """Make the publication before the current one current again, as a new version, and return its folder.

    Parameters
    ----------
    catalog : str or Path
        Run folder, or its published class catalogue.

    Returns
    -------
    Path
        Folder of the new version. Its files are those of the restored one.

    Raises
    ------
    ConfigError
        If the catalogue is no version of a run folder.
    NotPublished
        If there is no earlier publication.

    Examples
    --------
    >>> import skyclass as sc
    >>> folder = sc.recalibrate("classes", "none")
    >>> sc.open_catalog(sc.undo_recalibration("classes")).count() == sc.open_catalog(folder).count()
    True
    """
    folder = RunFolder(_home(find_catalog(catalog)))
    with hold_lease(folder):
        return restore_previous(folder.path)


def _home(root: Path) -> Path:
    """Return the folder of a publication's run; raise `ConfigError` for a catalogue that is in no such folder."""
    if root.parent.name != PUBLICATIONS:
        raise ConfigError(f"{root} is no version of a run folder: give a new folder for the publication, --out FOLDER")
    return root.parent.parent
