"""TOML files written from configurations: commented templates, and the settings of a run."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from ..settings import Key, keys

WIDTH = 80
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def template(cls: Any, command: str) -> str:
    """Return a TOML file with every key: its text, and `#key = default`, which says what an absent key means.

    Required and usual keys are not commented out; their values, and those of keys whose default is to be absent, are
    examples.
    """
    title = cls.__doc__.partition("\n")[0].partition(":")[0]
    lines = [f"# {title}, for `{command}`.", "# Remove the # before a key to change its value.", ""]
    section = None
    for key in keys(cls):
        if key.section != section:
            lines += [f"# --- {key.section} ".ljust(WIDTH, "-"), ""]
            section = key.section
        lines += [
            *_comment(key),
            f"{'' if key.required or key.usual else '#'}{key.name} = {toml_value(template_value(key))}",
            "",
        ]
    return "\n".join(lines)


def template_value(key: Key) -> Any:
    """Return the value of a key in a template: its default, or an example where it has none."""
    return key.example if key.required or key.default is None else key.default


def toml_text(values: Mapping[str, Any]) -> str:
    """Return values as a TOML file; absent values (None) are left out."""
    return "".join(f"{_key(name)} = {toml_value(value)}\n" for name, value in values.items() if value is not None)


def toml_value(value: Any) -> str:
    """Return a value as TOML, tables in one line.

    >>> print(toml_value({"bn": "all", "sizes": (1, 2.5), "on": True}))
    {bn = "all", sizes = [1, 2.5], on = true}
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else toml_value(name)


def _comment(key: Key) -> list[str]:
    text = key.text
    if key.default is None and not key.usual:
        text += " Absent by default; the value here is an example."
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
