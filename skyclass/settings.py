"""Configurations: classes checked by pydantic, made from TOML files, mappings and keywords.

@configuration("run", {"catalog": "Input and output", ...})
class RunConfig: ...                 attribute docstrings describe the keys
build(RunConfig, read_toml(path))    `ConfigError` with every problem
keys(RunConfig)                      what docstrings, command-line options and file templates are made from
"""

from __future__ import annotations

import inspect
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from .errors import ConfigError
from .locations import is_storable, refuse_logins
from .sky.regions import region_from_dict

T = TypeVar("T")
MAX_TOML_BYTES = 10**6
MAX_SHOWN_CHARACTERS = 500
MAX_INTEGER = 2**63 - 1

RULES = ConfigDict(
    strict=True,
    extra="forbid",
    allow_inf_nan=False,
    validate_default=True,  # checks that depend on several keys also see the defaults
    arbitrary_types_allowed=True,
    use_attribute_docstrings=True,
)


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _region(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return region_from_dict(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


FROM_LIST = BeforeValidator(_list_to_tuple)
"""Annotation of tuples: TOML and JSON have lists only."""

FROM_MAPPING = (
    BeforeValidator(_region),
    WithJsonSchema({"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}),
)
"""Annotations of regions: a mapping such as {kind = "cone", ra = 150.1, dec = 2.2, radius = "30arcmin"}."""


@dataclass(frozen=True)
class Key:
    """One key of a configuration, as help texts and templates describe it."""

    name: str
    section: str
    text: str
    """The attribute docstring in one line."""
    kind: Any
    """The type, without None and constraints."""
    optional: bool
    default: Any
    """`dataclasses.MISSING` where the key is required."""
    example: Any
    usual: bool = False
    """Whether most users set the key, though it is not required."""

    @property
    def required(self) -> bool:
        """True when the key has no default."""
        return self.default is MISSING


@dataclass_transform(frozen_default=True)
def configuration(title: str, sections: Mapping[str, str], usual: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class a frozen, checked dataclass with a docstring of all its keys.

    `title` begins the messages; `sections` maps the first key of each group of keys to the name of the group. The keys
    in `usual` are not required, and set in templates.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic_dataclass(frozen=True, config=RULES)(cls)

        def checked_init(self: Any, /, *args: Any, **values: Any) -> None:
            names = [field.name for field in fields(made)]
            named = dict(zip(names, args, strict=False)) | values
            refuse_logins(named)
            problems = [f"{key} = {shown(value)}: must be UTF-8 text without NUL" for key, value in _bad_texts(named)]
            try:
                made.__pydantic_validator__.validate_python(ArgsKwargs(args, values), self_instance=self)
            except ValidationError as error:
                problems += _unknown_keys(error.errors(), names)
                handled = (UNKNOWN, NO_UTF8)
                problems += [_problem(details, made) for details in error.errors() if details["type"] not in handled]
                raise ConfigError(f"{title}: " + "; ".join(problems)) from error
            if problems:
                raise ConfigError(f"{title}: " + "; ".join(problems))

        made.__init__ = checked_init
        made.__signature__ = inspect.Signature(
            [p.replace(annotation=p.empty) for p in made.__signature__.parameters.values()]
        )
        made.sections, made.usual = dict(sections), tuple(usual)
        made.__doc__ = _documentation(made)
        return typing.cast(type[T], made)

    return decorate


def build(cls: type[T], data: Mapping[str, Any]) -> T:
    """Return a configuration from a mapping; raise one `ConfigError` with every problem."""
    return cls(**data)


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a configuration, descriptions included."""
    return TypeAdapter(cls).json_schema()


def keys(cls: type) -> list[Key]:
    """Return the keys of a configuration in their order."""
    section, described = "", []
    for field in fields(cls):
        info = cls.__pydantic_fields__[field.name]  # type: ignore[attr-defined]
        section = cls.sections.get(field.name, section)  # type: ignore[attr-defined]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        kind, optional = _without_none(info.annotation)
        text = " ".join((info.description or "").split())
        example = info.examples[0] if info.examples else None
        usual = field.name in cls.usual  # type: ignore[attr-defined]
        described.append(Key(field.name, section, text, kind, optional, default, example, usual))
    return described


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file; raise `ConfigError` when it is absent or malformed."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TOML_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_TOML_BYTES:
        raise ConfigError(f"{path}: is no configuration, because it has more than {MAX_TOML_BYTES:,} bytes")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:  # a whole number of more than 4,300 digits is a plain ValueError
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


# --- messages --------------------------------------------------------------------------------------

UNKNOWN = "unexpected_keyword_argument"
NO_UTF8 = "string_unicode"
EXPECTED = {
    "string": "text in quotes",
    "int": "a whole number",
    "float": "a finite number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a table such as {key = value}",
    "is": 'a region such as {kind = "cone", ra = 150.1, dec = 2.2, radius = "30arcmin"}',
}
"""Start of a pydantic error type -> what the key takes."""


def shown(value: Any) -> str:
    """Return a value for a message: ASCII, and not longer than `MAX_SHOWN_CHARACTERS`."""
    try:
        text = ascii(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number of more than 4,300 digits"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _unknown_keys(errors: Sequence[ErrorDetails], names: Sequence[str]) -> list[str]:
    """Return a problem for each unknown key, with the most similar known key, and then the known keys once."""
    unknown = [str(details["loc"][-1]) for details in errors if details["type"] == UNKNOWN]
    similar = {key: get_close_matches(key, names, n=1) for key in unknown}
    problems = [f"unknown key {key!a}" + "".join(f" (did you mean {s}?)" for s in similar[key]) for key in unknown]
    return [*problems, f"known keys are {', '.join(names)}"] if unknown else []


def _problem(details: ErrorDetails, cls: Any) -> str:
    """Return a problem in words: the key, the value and what the key takes."""
    kind, value = details["type"], details["input"]
    if kind == "unexpected_positional_argument":
        return f"more than {len(fields(cls))} positional values"
    first, *rest = details["loc"]
    key = first if isinstance(first, str) else fields(cls)[first].name
    if kind == "missing":
        return f"{key} is required"
    if kind == "string_too_short":
        return f"{key} is empty"
    if rest and (isinstance(rest[0], int) or rest[-1] == "[key]"):
        subject = f"{key} has {shown(value)}"
    else:
        subject = f"{'.'.join([key, *map(str, rest[:1])])} = {shown(value)}"
    return f"{subject}: {_remedy(details, cls.__pydantic_fields__[key].metadata)}"


def _remedy(details: ErrorDetails, constraints: Sequence[Any]) -> str:
    """Return what to write instead."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error" and isinstance(details["input"], str):
        return f"choose {context['expected'].replace(chr(39), '')}"
    if context.get("le") == MAX_INTEGER:
        return "must be below 2**63"
    if limits := {name: context[name] for name in LIMITS if name in context}:
        of_key = {name: getattr(c, name) for c in constraints for name in LIMITS if hasattr(c, name)}
        return _range(of_key or limits)
    expected = EXPECTED.get("string" if kind == "literal_error" else kind.partition("_")[0])
    return f"expected {expected}" if expected else details["msg"]


LIMITS = ("ge", "gt", "le", "lt")
RANGES = {
    ("ge",): "{ge} or more",
    ("gt",): "above {gt}",
    ("le",): "at most {le}",
    ("lt",): "below {lt}",
    ("ge", "le"): "from {ge} to {le}",
    ("ge", "lt"): "from {ge} to below {lt}",
    ("gt", "le"): "above {gt} and at most {le}",
    ("gt", "lt"): "above {gt} and below {lt}",
}


def _range(limits: Mapping[str, Any]) -> str:
    """Return limits in words.

    >>> _range({"gt": 0, "le": 1.0})
    'must be above 0 and at most 1.0'
    """
    stated = {name: limit for name, limit in limits.items() if limit != MAX_INTEGER}
    return "must be " + RANGES[tuple(sorted(stated))].format(**stated)


def _bad_texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of each text that no record can hold."""
    for key, value in values.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, str) and not is_storable(item):
                yield f"{prefix}{key}", item
            if isinstance(item, Mapping):
                yield from _bad_texts(item, f"{prefix}{key}.")


# --- descriptions ----------------------------------------------------------------------------------


def type_text(key: Key) -> str:
    """Return the type of a key as numpydoc writes it: str, int or None, {'auto', 'cpu'}."""
    kind, items = typing.get_origin(key.kind) or key.kind, typing.get_args(key.kind)
    if kind is typing.Literal:
        return "{" + ", ".join(map(repr, items)) + "}"
    text = f"tuple of {_item_text(items[0])}" if kind is tuple else kind.__name__
    return f"{text} or None" if key.optional else text


def _item_text(kind: Any) -> str:
    return "str" if typing.get_origin(kind) is typing.Literal else str(kind.__name__)


def _documentation(cls: Any) -> str:
    """Return the docstring of a configuration with the section Parameters, generated from its keys."""
    summary, *others = re.split(r"\n\n(?=\w+\n-{3,}\n)", inspect.cleandoc(cls.__doc__))
    lines = ["Parameters", "----------"]
    for key in keys(cls):
        default = "" if key.required else f", default {key.default!r}"
        lines.append(f"{key.name} : {type_text(key)}{default}")
        lines.append(textwrap.fill(key.text, 100, initial_indent="    ", subsequent_indent="    "))
    return "\n\n".join([summary, "\n".join(lines), *others]) + "\n"


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Return a type without None and without constraints, and whether None is allowed."""
    members = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
    kind = members[0]
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return kind, annotation is not members[0]
