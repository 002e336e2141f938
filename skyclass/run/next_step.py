"""What is at a path that holds no class catalogue, and the command that makes one of it."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from ..errors import CatalogError, NotPublished
from ..sky.regions import Cone
from ..sources.layouts import open_catalog
from ..text import shell_command
from .commits import committed
from .config import RunConfig, run_config
from .folder import RunFolder, expected_rows, read_run


def not_published(path: str, error: NotPublished) -> NotPublished:
    """Return the error of a path without a class catalogue, with the command that leads to one."""
    for folder in map(RunFolder, (Path(path), Path(path).parent)):
        if folder.run_path.is_file():
            return _unfinished(folder)
    return _input_catalogue(path) or error


def _unfinished(folder: RunFolder) -> NotPublished:
    commits, run = committed(folder), read_run(folder)["info"]
    n_rows, planned = sum(commit.rows for commit in commits.values()), expected_rows(folder)
    if n_rows == planned:
        state = f"all {planned:,} sources are classified, and the class catalogue is not published"
        command = shell_command(["skyclass", "publish", folder.path])
    else:
        state = f"{n_rows:,} of {planned:,} sources are classified"
        command = classify_command(run_config(run["config"] | {"out": str(folder.path)}))
    return NotPublished(f"{folder.path} is an unfinished run: {state}. To finish it: {command}")


def classify_command(run: RunConfig) -> str:
    """Return the command of a run: the flags whose values are not the defaults."""
    words: list[object] = ["skyclass", "classify"]
    for field in fields(run):
        value = getattr(run, field.name)
        if isinstance(value, Cone):
            words += ["--cone", f"{value.ra},{value.dec},{value.radius_deg}deg"]
        elif field.name == "region" and value is not None:
            # no flag has such a region, only RUN.toml
            return f"the command that began it; its settings are in {Path(run.out) / 'run.json'}"
        elif value is True:
            words += [f"--{field.name.replace('_', '-')}"]
        elif value != field.default:
            words += [f"--{field.name.replace('_', '-')}", value]
    return shell_command(words)


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
        catalog = open_catalog(path)
    except CatalogError:  # it is something else
        return None
    return NotPublished(
        f"{path} is a catalogue of sources without classes ({len(catalog.partitions):,} partitions), the input of "
        f"a run: {command} --images IMAGES --out OUT makes a class catalogue"
    )
