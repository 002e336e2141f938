"""SQL from outside, checked before anything is read: one condition, or one SELECT."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import ConfigError, StoreError
from ..schema import UNCLASSIFIED, classes_of
from .duckdb import connect, literal

_EQUALITIES = {"COMPARE_EQUAL", "COMPARE_NOTEQUAL", "COMPARE_DISTINCT_FROM", "COMPARE_NOT_DISTINCT_FROM", "COMPARE_IN"}
_CLASS_COLUMNS = ("class", "class_sky")
_UNKNOWN_COLUMN = re.compile(r'olumn "(.+)" (?:in \w+ list )?not found|does not have a column named "(.+)"')
MAX_TREE_DEPTH = 500
"""Levels in the syntax tree of a query, some two for each level of its text. Python's own limit differs by process."""


def check_condition(expression: str, schema: pa.Schema) -> None:
    """Raise `ConfigError` unless `expression` is one condition on the columns and classes of a catalogue."""
    _refuse_undecoded(expression)
    if not expression.strip():
        raise ConfigError(f"where takes a condition, such as p_quasar > 0.9; {expression!r} is empty")
    text = f"({expression}\n)"
    with translate_duckdb_errors(expression, schema), connect(None) as connection:
        # parsed without brackets first: the expression must not close the bracket that it is put into
        statements = duckdb.extract_statements(f"SELECT 1 WHERE {expression}\n")
        if len(statements) != 1:
            raise ConfigError(f"where takes one condition, and {expression!r} holds {len(statements)} statements")
        connection.register("classes", schema.empty_table())
        answer = connection.sql(f"SELECT {text} AS condition FROM classes WHERE {text}").to_arrow_table()
    kind = answer.schema.field(0).type
    if not pa.types.is_boolean(kind):
        raise ConfigError(f"where takes a condition, such as p_quasar > 0.9; {expression!r} gives {kind}")
    _refuse_unknown_classes(_nodes(_condition_query(expression)), classes_of(schema))


def check_query(query: str, schema: pa.Schema) -> None:
    """Raise `ConfigError` unless `query` is one SELECT, on classes of a catalogue."""
    _refuse_undecoded(query)
    with translate_duckdb_errors(query, schema):
        statements = duckdb.extract_statements(query)
    if len(statements) != 1:
        raise ConfigError(f"sql takes one SELECT, and {query!r} holds {len(statements)} statements")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise ConfigError(f"sql takes one SELECT, not {query!r}: catalogues are read, never changed")
    nodes = _nodes(query)
    if not any(str(node.get("alias", "")).lower() in _CLASS_COLUMNS for node in nodes):  # else another column
        _refuse_unknown_classes(nodes, classes_of(schema))


def _refuse_undecoded(text: str) -> None:
    """Raise `ConfigError` for text of the command line that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{text!r} is no UTF-8 text, and SQL must be") from error


def has_subquery(expression: str) -> bool:
    """Return whether a condition, which `check_condition` let pass, asks about other rows too."""
    return any(node.get("class") == "SUBQUERY" for node in _nodes(_condition_query(expression)))


@contextmanager
def translate_duckdb_errors(question: str, schema: pa.Schema, root: Path | None = None) -> Iterator[None]:
    """Turn an error of DuckDB into a `ConfigError`, which lists the columns where the question names an unknown one.

    Where it names a class instead of a column, the message shows the quotes of text. An error about a file of the
    catalogue at `root` is a `StoreError`.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = str(error).strip().split("\n")[0].rstrip("!.")
        if root and "No files found" in reason:
            raise unreadable(root, "a file of the catalogue is gone") from error
        if root and str(root) in reason and str(root) not in question:
            raise unreadable(root, f"a file of the catalogue is damaged ({reason})") from error
        remedy = _column_remedy(question, reason, schema)
        raise ConfigError(f"cannot answer {question!r}: {reason}{remedy}") from error


def _column_remedy(question: str, reason: str, schema: pa.Schema) -> str:
    """Return what to write in place of a column where DuckDB says that there is no such column, else ""."""
    unknown = _UNKNOWN_COLUMN.search(reason)
    if not unknown:
        return ""
    name = unknown[1] or unknown[2]
    for known in classes_of(schema):
        if known == name.lower():
            return f". Text is in single quotes: {_CLASS_COLUMNS[0]} = {literal(known)}"
    suggestion = similar_column(name, schema)
    quoted = name.replace('"', '""')
    if f'"{quoted}"' in question:
        return f"{suggestion}. Double quotes name a column. Text is in single quotes: {literal(name)}"
    return f"{suggestion}. Columns: {', '.join(schema.names)}"


def similar_column(name: str, schema: pa.Schema) -> str:
    """Return a question after the column that is most similar to a name, "" if none is."""
    similar = get_close_matches(name.lower(), schema.names)
    return f" (did you mean {similar[0]}?)" if similar else ""


def unreadable(root: Path, reason: str) -> StoreError:
    """Return the error of a publication that cannot be read."""
    if not root.exists():
        return StoreError(f"the publication {root} is gone: 'skyclass gc' removed it; open the catalogue again")
    return StoreError(f"{reason}: run 'skyclass verify', then publish the run again")


# --- the syntax tree ---------------------------------------------------------------------------------


def _condition_query(expression: str) -> str:
    return f"SELECT 1 FROM classes WHERE ({expression}\n)"


@lru_cache(maxsize=64)
def _nodes(query: str) -> tuple[dict[str, Any], ...]:
    """Return all nodes of the syntax tree of a SELECT; none where DuckDB has no JSON form of it."""
    with connect(None) as connection:
        row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    try:
        return tuple(_tree_nodes(json.loads(row[0]))) if row else ()
    except RecursionError as error:
        raise ConfigError(f"{query[:60]!r}... is nested too deeply: write it with fewer levels") from error


def _tree_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the dicts of a JSON tree, level by level; `RecursionError` for more than `MAX_TREE_DEPTH` levels."""
    level = [tree]
    for _ in range(MAX_TREE_DEPTH):
        yield from (value for value in level if isinstance(value, dict))
        parts = (value.values() if isinstance(value, dict) else value for value in level)
        level = [part for values in parts for part in values if isinstance(part, dict | list)]
        if not level:
            return
    raise RecursionError


def _refuse_unknown_classes(nodes: Collection[dict[str, Any]], classes: Collection[str]) -> None:
    for node in nodes:
        for text in _compared_classes(node):
            if text not in classes:
                hint = " (a source without a class: class IS NULL)" if text == UNCLASSIFIED else ""
                raise ConfigError(f"no source has class {text!r}: the classes are {', '.join(classes)}{hint}")


def _compared_classes(node: dict[str, Any]) -> list[str]:
    """Return the texts that a node of the tree compares the columns `class` and `class_sky` with."""
    operands = [node[side] for side in ("left", "right") if side in node] + node.get("children", [])
    if node.get("function_name") == "contains":  # class IN ['galaxy', 'star']
        operands = [argument["expression"] for argument in node["arguments"]]
    elif node.get("type") not in _EQUALITIES:
        return []
    if not any(_is_class_column(operand) for operand in operands):
        return []
    return [text for operand in operands for text in _texts(operand)]


def _is_class_column(node: dict[str, Any]) -> bool:
    names = node.get("column_names") or [""]
    return bool(node.get("class") == "COLUMN_REF" and names[-1].lower() in _CLASS_COLUMNS)


def _texts(node: dict[str, Any]) -> list[str]:
    """Return the literal texts of an operand: a literal, a cast of one, or a list of them."""
    if node.get("class") == "CAST":
        return _texts(node["child"])
    if node.get("function_name") == "list_value":
        return [text for argument in node["arguments"] for text in _texts(argument["expression"])]
    literal = node.get("literal") or {}
    return [literal["text"]] if literal.get("kind") == "STRING" else []
