"""Configurations from TOML files, dicts and keywords: checked types, every problem in one message."""

from __future__ import annotations

import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .locations import is_storable, refuse_logins
from .sky.regions import Region, region_from_dict

T = TypeVar("T")
MOST_TOML_BYTES = 10**6


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file; `ConfigError` when it is absent or malformed."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_TOML_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MOST_TOML_BYTES:
        raise ConfigError(f"{path}: is no configuration, for it has more than {MOST_TOML_BYTES:,} bytes")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def build(cls: type[T], data: Mapping[str, Any], what: str) -> T:
    """Return dataclass `cls` from a mapping; unknown and missing keys and wrong types are told together."""
    refuse_logins(data)
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    problems = _unknown_keys(data, known)
    problems += [
        f"{f.name} is required"
        for f in known.values()
        if f.default is MISSING and f.default_factory is MISSING and f.name not in data
    ]
    values: dict[str, Any] = {}
    for key in filter(known.__contains__, data):
        try:
            values[key] = _coerce(data[key], hints[key])
        except ConfigError as error:
            problems.append(str(error))
    problems += [f"{k} = {v!r}: expected {_describe(hints[k])}" for k, v in values.items() if not _fits(v, hints[k])]
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    problems += [f"{k} = {v!a}: must be UTF-8 text without NUL" for k, v in texts.items() if not is_storable(v)]
    if problems:
        raise ConfigError(f"{what}: " + "; ".join(problems + _other_problems(cls, values, hints, what)))
    return cls(**values)


def _unknown_keys(data: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return a problem for each key that is not known, with the nearest that is; all that are, once."""
    unknown = [key for key in data if key not in known]
    near = {key: get_close_matches(key, known, n=1) for key in unknown}
    words = [f"unknown key {key!r}" + (f" (did you mean {near[key][0]}?)" if near[key] else "") for key in unknown]
    return [*words, f"known keys are {', '.join(known)}"] if unknown else []


def _other_problems(cls: type[T], values: Mapping[str, Any], hints: Mapping[str, Any], what: str) -> list[str]:
    """Return what is wrong with the values of the right type.

    Not where it has to do with one of the wrong type: that may be all that is wrong.
    """
    good = {key: value for key, value in values.items() if _fits(value, hints[key])}
    absent = {f.name: f.name for f in fields(cls) if f.default is MISSING and hints[f.name] is str}  # type: ignore[arg-type]
    try:
        cls(**absent | good)
    except ConfigError as error:
        words = str(error).removeprefix(f"{what}: ")
        return [] if any(key in words for key in values.keys() - good.keys()) else [words]
    except TypeError:  # something else that is required is absent, and that is told already
        pass
    return []


def _coerce(value: Any, hint: Any) -> Any:
    """TOML has no tuples and no regions, and a whole number where a fraction is meant is no mistake."""
    if isinstance(value, Mapping) and Region in _kinds(hint):
        return region_from_dict(value)
    if isinstance(value, list) and tuple in _kinds(hint):
        return tuple(value)
    if type(value) is int and float in _kinds(hint) and int not in _kinds(hint) and abs(value) < LARGEST_WHOLE:
        return float(value)
    return value


def _kinds(hint: Any) -> tuple[type, ...]:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(typing.get_origin(m) or m for m in members)


def _fits(value: Any, hint: Any) -> bool:
    kinds = _kinds(hint)
    if isinstance(value, bool):
        return bool in kinds
    return any(_is_instance(value, kind) for kind in kinds)


def _is_instance(value: Any, kind: type) -> bool:
    if kind is Region:  # a Protocol: anything that can say what it contains
        return hasattr(value, "contains")
    if kind is float:  # TOML and the command line know nan and inf, which no setting can use
        return isinstance(value, float) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and abs(value) < LARGEST_WHOLE
    return isinstance(value, kind)


LARGEST_WHOLE = 2**63
IN_WORDS = {
    str: "text in quotes",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    tuple: "a list",
}


def _describe(hint: Any) -> str:
    return " or ".join(IN_WORDS.get(kind, kind.__name__) for kind in _kinds(hint) if kind is not type(None))
