"""Errors for a path without a class catalogue, with the command that makes one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import CatalogError, ConfigError, NotPublished
from ..sky.healpix import angle_text
from ..sources.opening import open_sources
from ..text import counted, one_or_many, shell_command
from .commits import committed
from .config import RunConfig, run_config
from .folder import RunFolder, expected_rows, read_run


def not_published(path: str, error: NotPublished) -> NotPublished:
    """Return the error for a path without a class catalogue, with the command that makes one."""
    for folder in map(RunFolder, (Path(path), Path(path).parent)):
        if folder.run_path.is_file():
            return unfinished_run(folder)
    return _input_catalogue(path) or error


def unfinished_run(folder: RunFolder) -> NotPublished:
    """Return the error for a run without a class catalogue, with its state and the command that finishes it."""
    commits, config = committed(folder), read_run(folder)["info"].get("config", {})
    n_rows, planned = sum(commit.rows for commit in commits.values()), expected_rows(folder)
    if n_rows == planned:
        all_are = one_or_many(planned, "the only source is", f"all {planned:,} sources are")
        state = f"{all_are} classified, and the class catalogue is not published"
        command = shell_command(["skyclass", "publish", folder.path])
    else:
        state = f"{n_rows:,} of {counted(planned, 'source')} {one_or_many(n_rows, 'is', 'are')} classified"
        command = _resuming_command(folder, config)
    return NotPublished(f"{folder.path} is an unfinished run: {state}. To finish it: {command}")


def _resuming_command(folder: RunFolder, config: Mapping[str, Any]) -> str:
    """Return the command that resumes a run, or where to find its settings if they cannot be used, as without a MOC."""
    try:
        return classify_command(run_config({**config, "out": str(folder.path)}))
    except ConfigError:
        return _started_by(folder.path)


def _started_by(folder: Path) -> str:
    return f"the command that started it; its settings are in {folder / 'run.json'}"


def classify_command(run: RunConfig) -> str:
    """Return the command of a run, with the options whose values are not the defaults."""
    command: list[object] = ["skyclass", "classify"]
    for field in fields(run):
        value = getattr(run, field.name)
        if field.name == "region" and value is not None:
            option = _region_option(value.to_dict())
            if option is None:
                return _started_by(Path(run.out))
            command += option
        elif value is True:
            command += [f"--{field.name.replace('_', '-')}"]
        elif value != field.default:
            command += [f"--{field.name.replace('_', '-')}", value]
    return shell_command(command)


def _region_option(region: Mapping[str, Any]) -> list[str] | None:
    """Return the option of a region; None for pixels, which have no option."""
    match region:
        case {"kind": "cone", "ra": ra, "dec": dec, "radius": radius_deg}:
            return ["--cone", f"{ra},{dec},{angle_text(radius_deg)}"]
        case {"kind": "box", "ra_min": ra_min, "ra_max": ra_max, "dec_min": dec_min, "dec_max": dec_max}:
            return ["--box", f"{ra_min},{ra_max},{dec_min},{dec_max}"]
        case {"kind": "polygon", "vertices": vertices}:
            return ["--polygon", ",".join(f"{ra},{dec}" for ra, dec in vertices)]
        case {"kind": "moc", "path": path}:
            return ["--moc", path]
    return None


def _input_catalogue(path: str) -> NotPublished | None:
    command = shell_command(["skyclass", "classify", "--catalog", path])
    if os.path.isfile(path):
        return NotPublished(
            f"{path} is a file, and a class catalogue is a folder. If it is a table of positions: {command} "
            "--images IMAGES --out OUT makes a class catalogue"
        )
    if not os.path.isdir(path):
        return None
    try:
        sources = open_sources(path)
    except CatalogError:  # no catalogue of sources either
        return None
    return NotPublished(
        f"{path} is a catalogue of sources without classes ({counted(len(sources.partitions), 'partition')}), the "
        f"input of a run: {command} --images IMAGES --out OUT makes a class catalogue"
    )
