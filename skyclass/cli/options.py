"""Command-line options made from the keys of a configuration: each key is an option, and each option is a key."""

from __future__ import annotations

import shlex
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import click

from ..errors import ConfigError
from ..settings import Key, build, keys, read_toml
from ..sky.regions import Region
from .output import naming_file
from .parameters import parse_box, parse_cone, parse_moc, parse_polygon

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

REGIONS: dict[str, tuple[str, str, Callable[[str], Region]]] = {
    "cone": ("RA,DEC,RADIUS", "Circle, in degrees; the radius may carry a unit: 30arcmin.", parse_cone),
    "box": ("RA0,RA1,DEC0,DEC1", "Range of RA and Dec in degrees; RA0 above RA1 crosses RA 0.", parse_box),
    "polygon": ("RA,DEC,...", "Three or more vertices in degrees, joined by great circles.", parse_polygon),
    "moc": ("FILE", "Multi-Order Coverage map: a FITS, JSON or ASCII file.", parse_moc),
}
"""Options that set the key `region`."""

TABLE_ENDINGS = (".csv", ".tsv", ".fits", ".fit", ".vot", ".votable", ".xml", ".ecsv", ".tbl", ".parquet")
TEXT_ENDINGS = (".txt", ".dat")
"""Endings of tables and of any other text."""
TABLE_REMEDIES = {
    "RunConfig": "give a table as --catalog {}",
    "DatasetConfig": "give a table as --labels {}",
    "TrainConfig": "make a dataset of a table (skyclass dataset --labels {}), and give its folder as --dataset FOLDER",
}
"""Configuration -> where its command takes a table."""
NO_TABLE = "this command takes no table"


class KeyOption(click.Option):
    """An option that sets a key, or a part of the key `region`, and is listed in a group."""

    def __init__(self, declarations: list[str], section: str = "Options", **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self.section = section


class NamedChoice(click.Choice[str]):
    """Choices that help and completion show; the configuration refuses others, together with all other problems."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as it is."""
        return value


class ConfigCommand(click.Command):
    """A command whose help lists the options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group in the order of the keys; options without a key come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in sorted(self.get_params(ctx), key=lambda p: not isinstance(p, KeyOption)):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections.setdefault(getattr(parameter, "section", "Other options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def config_options(cls: type, argument: str, not_required: Sequence[str] = ()) -> Callable[[F], F]:
    """Return a decorator that adds the argument of a TOML file and an option for each key.

    The help does not mark the keys `not_required` as required: the command has a value for them.
    """

    def decorate(command: F) -> F:
        for option in reversed(list(_options(cls, not_required))):
            command = option(command)
        return click.argument("toml", metavar=f"[{argument}]", required=False, type=click.Path(dir_okay=False))(command)

    return decorate


def read_config(
    cls: type[T], toml: str | None, options: Mapping[str, Any], make: Callable[[Mapping[str, Any]], T] | None = None
) -> T:
    """Return the configuration of a file and options; options override the file."""
    data = (_read_file(cls, toml) if toml else {}) | values_of_options(cls, options)
    with naming_file(toml), _naming_options(cls, data):
        return make(data) if make else build(cls, data)


def _read_file(cls: type, toml: str) -> dict[str, Any]:
    """Return the content of a TOML file; where it has none and has the name of a table, the error says where tables go.

    A TOML file may have any name.
    """
    try:
        return read_toml(toml)
    except ConfigError as error:
        name = toml.lower().removesuffix(".gz")
        if not name.endswith(TABLE_ENDINGS + TEXT_ENDINGS):
            raise
        remedy = TABLE_REMEDIES.get(cls.__name__, NO_TABLE)
        fault = f"{toml}: this argument is a configuration file (TOML), and the name is that of a table"
        fault = error.message if name.endswith(TEXT_ENDINGS) else fault
        raise ConfigError(f"{fault}; {remedy.format(shlex.quote(toml))}") from error


@contextmanager
def _naming_options(cls: type, data: Mapping[str, Any]) -> Iterator[None]:
    """Add the options of missing keys to a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        missing = [option_name(key.name) for key in keys(cls) if key.required and key.name not in data]
        remedy = f"; set {', '.join(missing)}" if missing else ""
        raise ConfigError(error.message + remedy, error.details) from error


def values_of_options(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the keys that options set."""
    given = {name: value for name, value in options.items() if value is not None}
    values = {key.name: _value(key, given[key.name]) for key in keys(cls) if key.name in given}
    regions = [name for name in REGIONS if name in given]
    if len(regions) > 1:
        raise ConfigError(f"{', '.join(f'--{name}' for name in regions)}: choose one region")
    for name in regions:
        values["region"] = REGIONS[name][2](given[name])
    return values


def option_name(name: str) -> str:
    """Return the option of a key."""
    return "--" + name.replace("_", "-")


def _options(cls: type, not_required: Sequence[str]) -> Iterator[Callable[[F], F]]:
    for key in keys(cls):
        key = replace(key, default=None) if key.name in not_required else key
        if key.name == "region":
            for name, (metavar, text, _) in REGIONS.items():
                if name == "box" or key.example["kind"] != "box":  # labels accept boxes only
                    yield click.option(
                        option_name(name), cls=KeyOption, section=key.section, metavar=metavar, help=text
                    )
        else:
            yield _option(key)


def _option(key: Key) -> Callable[[F], F]:
    attributes: dict[str, Any] = {"cls": KeyOption, "section": key.section, "default": None, "help": _help(key)}
    kind, declaration = typing.get_origin(key.kind) or key.kind, option_name(key.name)
    if kind is bool and key.name.startswith("no_"):
        attributes["is_flag"] = True
    elif kind is bool:
        declaration += f"/--no-{key.name.replace('_', '-')}"
    elif kind is typing.Literal:
        attributes["type"] = NamedChoice(typing.get_args(key.kind))
    elif kind in (int, float):
        attributes["type"] = kind
    elif kind is tuple:
        attributes["metavar"] = "A,B,..."
    elif kind is dict:
        attributes["metavar"] = "KEY=VALUE,..."
    return click.option(declaration, key.name, **attributes)


def _help(key: Key) -> str:
    default = key.default
    if isinstance(default, bool):
        shown = "on" if default else "off"
    elif isinstance(default, tuple):
        shown = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
    else:
        shown = "" if key.required or default in (None, {}) else str(default)
    return key.text + (f"  [default: {shown}]" if shown else "") + ("  [required]" if key.required else "")


def _value(key: Key, given: Any) -> Any:
    """Return the value of a key from the text of its option."""
    kind = typing.get_origin(key.kind) or key.kind
    if kind is tuple:
        number = float in typing.get_args(key.kind)
        return [_number(item) if number else item for item in map(str.strip, given.split(",")) if item]
    return _table(key, given) if kind is dict else given


def _number(text: str) -> float | str:
    """Return a number, or the text itself, which the configuration refuses."""
    try:
        return float(text)
    except ValueError:
        return text


def _table(key: Key, text: str) -> Any:
    """Return the table of "KEY=VALUE,...", which is the inside of a TOML table in braces; texts need no quotes."""
    items = [item.partition("=") for item in text.split(",")]
    if typing.get_args(key.kind)[1] is str and all(value and value[0] not in "\"'" for _, _, value in items):
        return {name.strip(): value.strip() for name, _, value in items}
    try:
        table = tomllib.loads(f"_ = {{{text}}}")
        if len(table) > 1:
            raise ValueError("the text does not end with the table")
    except (ValueError, RecursionError) as error:
        example = ",".join(f"{name}={value}" for name, value in (key.example or {}).items()) or """'bn="all"'"""
        raise ConfigError(
            f"{option_name(key.name)} {text!r}: write KEY=VALUE,..., such as {example}, with text in quotes ({error})"
        ) from error
    return table["_"]
