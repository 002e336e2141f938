"""Small changes of source code, each of which a test should notice."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One change of a file: the characters `start:stop` become `new`; they lie on `first_line` to `last_line`."""

    file: str
    first_line: int
    last_line: int
    start: int
    stop: int
    old: str
    new: str

    def apply(self, source: str) -> str:
        """Return the source with the change."""
        return source[: self.start] + self.new + source[self.stop :]


COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "/",
    ast.Mod: "*",
    ast.BitOr: "&",
    ast.BitAnd: "|",
}


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Yield each mutant of a file: operators, conditions, numbers and calls of no value; no annotation, no text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def text_of(node: ast.expr) -> str:
        return ast.get_source_segment(source, node) or ""

    def mutant(node: ast.expr, new: str) -> Mutant:
        old = text_of(node)
        start = len(source[: starts[node.lineno - 1]]) + _characters(source, starts, node.lineno, node.col_offset)
        return Mutant(file, node.lineno, node.end_lineno or node.lineno, start, start + len(old), old, new)

    for node in _code(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                yield mutant(node, f"{text_of(left)} {COMPARISONS[type(op)]} {text_of(right)}")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS and not _has_text(left, right):
                yield mutant(node, f"{text_of(left)} {OPERATORS[type(op)]} {text_of(right)}")
            case ast.BoolOp(op=op, values=values):
                word = " or " if isinstance(op, ast.And) else " and "
                yield mutant(node, f"({word.join(map(text_of, values))})")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield mutant(node, text_of(operand))
            case ast.Constant(value=bool() as value):
                yield mutant(node, str(not value))
            case ast.Constant(value=int() | float() as value):
                yield mutant(node, repr(value + 1))
            case ast.Expr(value=ast.Call() as call):
                yield mutant(call, "None")
            case ast.IfExp(test=test, body=body, orelse=orelse):
                yield mutant(node, f"{text_of(orelse)} if {text_of(test)} else {text_of(body)}")


def _characters(source: str, starts: Sequence[int], line: int, utf8_offset: int) -> int:
    """Return a column of `ast`, which counts UTF-8 bytes, in characters."""
    return len(source[starts[line - 1] : starts[line]].encode()[:utf8_offset].decode())


def _has_text(*nodes: ast.expr) -> bool:
    """Return whether one of the operands is a text: a path or a message, on which arithmetic always fails."""
    return any(isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", None), str) for n in nodes)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes whose change can have an effect: no annotations, no format strings, no types of isinstance.

    Decorators of dataclasses and caches are left out too: tests/test_architecture.py checks that dataclasses are
    frozen, and the size of a cache changes no value.
    """
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
        yield from _code(node.args[0])
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("dataclass", "lru_cache"):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield child
                yield from _code(child)


def sample(root: Path, packages: Sequence[str], n: int, seed: int) -> list[Mutant]:
    """Return `n` mutants of the packages below `root`, drawn without replacement; the same ones for the same seed."""
    everything: list[Mutant] = []
    for package in packages:
        for path in sorted((root / "skyclass" / package).rglob("*.py")):
            everything += mutants_of(str(path.relative_to(root)), path.read_text())
    return random.Random(seed).sample(everything, min(n, len(everything)))
