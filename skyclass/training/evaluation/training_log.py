"""The log of a training: one JSON line for each epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ConfigError


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of OUT.jsonl without an incomplete last line; raise `ConfigError` for other damage."""
    lines = [line for line in Path(path).read_text().splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ConfigError(f"{path} is not a log of JSON lines: {error} in line {number}") from error
    return records
