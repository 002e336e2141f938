"""Ways to damage bytes, text, JSON and FITS headers, all drawn from one random generator."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Rng = np.random.Generator

ODD_NUMBERS = ("0", "-1", "-4", "nan", "inf", "-inf", "1e308", "1e400", "9" * 30, "0.5", "-0.0", "1e-320", "2147483648")
ODD_WORDS = (
    "",
    " ",
    "none",
    "null",
    "--",
    "\x1b[31m",
    "a\nb",
    "é星",
    "../../etc/passwd",
    "'; drop",
    "x" * 5000,
    "\x00",
)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e308, "", "text", "\x1b[2J\n", [], [1, "a"], {}, {"a": 1},
    "9" * 5000, [[[]]],
)  # fmt: skip
TOKENS = (
    b"NULL",
    b"nan",
    b"-9999",
    b"\x00",
    b"\xff\xfe",
    b",",
    b"\n",
    b'"',
    b"|",
    b"<",
    b">",
    b"&",
    b"1e999",
    b"=",
    b"'",
)


def damage_bytes(data: bytes, rng: Rng) -> bytes:
    """Return bytes after one to three accidents."""
    for _ in range(int(rng.integers(1, 4))):
        data = BYTE_ACCIDENTS[rng.integers(len(BYTE_ACCIDENTS))](data, rng)
    return data


def _at(data: bytes, rng: Rng) -> int:
    """Return a position, near the beginning half of the time: headers and footers decide most."""
    n = max(1, len(data))
    near = int(rng.integers(min(n, 400)))
    return [int(rng.integers(n)), near, n - 1 - near][int(rng.integers(3))] if rng.random() < 0.75 else near


def _flip(data: bytes, rng: Rng) -> bytes:
    broken = bytearray(data or b"\x00")
    for _ in range(int(rng.integers(1, 9))):
        broken[_at(broken, rng)] ^= 1 << int(rng.integers(8))
    return bytes(broken)


def _truncate(data: bytes, rng: Rng) -> bytes:
    return data[: _at(data, rng)]


def _cut_out(data: bytes, rng: Rng) -> bytes:
    start = _at(data, rng)
    return data[:start] + data[start + int(rng.integers(1, 200)) :]


def _insert(data: bytes, rng: Rng) -> bytes:
    start = _at(data, rng)
    token = TOKENS[rng.integers(len(TOKENS))] if rng.random() < 0.7 else rng.bytes(int(rng.integers(1, 60)))
    return data[:start] + token + data[start:]


def _repeat(data: bytes, rng: Rng) -> bytes:
    start = _at(data, rng)
    part = data[start : start + int(rng.integers(1, 3000))]
    return data[:start] + part * int(rng.integers(2, 5)) + data[start:]


def _empty(data: bytes, rng: Rng) -> bytes:
    return (b"", b"\x00" * 4096, b"<!DOCTYPE html><html>404</html>", rng.bytes(3000))[rng.integers(4)]


def _encode(data: bytes, rng: Rng) -> bytes:
    text = data.decode("latin-1")
    return text.encode(("utf-16", "utf-32", "utf-8-sig")[rng.integers(3)])


BYTE_ACCIDENTS = (_flip, _flip, _truncate, _cut_out, _insert, _insert, _repeat, _empty, _encode)


def damage_text(text: str, rng: Rng) -> str:
    """Return text in which words were swapped, lost, doubled or replaced by odd ones, line by line."""
    lines = text.split("\n")
    for _ in range(int(rng.integers(1, 4))):
        row = int(rng.integers(len(lines)))
        lines[row] = _damage_line(lines[row], rng)
        if rng.random() < 0.15:
            other = int(rng.integers(len(lines)))
            lines[row], lines[other] = lines[other], lines[row]
    return "\n".join(lines)


def _damage_line(line: str, rng: Rng) -> str:
    mark = next((m for m in (",", "|", "=", " ", "<") if m in line), " ")
    words = line.split(mark)
    at = int(rng.integers(len(words)))
    choice = int(rng.integers(5))
    if choice == 0:
        words[at] = odd_word(rng)
    elif choice == 1:
        words.pop(at)
    elif choice == 2:
        words.insert(at, words[int(rng.integers(len(words)))])
    elif choice == 3:
        words[at] = words[at].upper()
    else:
        rng.shuffle(words)
    return mark.join(words)


def odd_word(rng: Rng) -> str:
    """Return an odd number or an odd word."""
    words = ODD_NUMBERS if rng.random() < 0.6 else ODD_WORDS
    return words[rng.integers(len(words))]


def damage_json(value: Any, rng: Rng) -> Any:
    """Return a JSON document in which one value, somewhere, was replaced, removed or renamed."""
    holders = [item for item in _walk(value) if len(item)]
    if not holders or rng.random() < 0.05:
        return ODD_VALUES[rng.integers(len(ODD_VALUES))]
    holder = holders[rng.integers(len(holders))]
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[rng.integers(len(keys))]
    choice = rng.random()
    if choice < 0.6:
        holder[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    elif choice < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(key) + "_"] = holder.pop(key)
    else:
        holder.append(holder[key])
    return value


def _walk(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return [] if inner is None else [value, *(deeper for item in inner for deeper in _walk(item))]


def json_copy(value: Any) -> Any:
    """Return a document that may be changed in place."""
    return json.loads(json.dumps(value))


def damage_fits(data: bytes, rng: Rng) -> bytes:
    """Return a FITS file one of whose header cards was removed, doubled, renamed or given an odd value."""
    end = data.find(b"END" + b" " * 77)
    n_cards = max(1, end // 80)
    cards = [data[80 * i : 80 * i + 80] for i in range(n_cards)]
    at = int(rng.integers(n_cards))
    choice = int(rng.integers(5))
    if choice == 0:
        cards[at] = b" " * 80
    elif choice == 1:
        cards[at] = cards[int(rng.integers(n_cards))]
    elif choice == 2:
        cards[at] = b"%-8s" % rng.choice([b"NAXIS", b"BITPIX", b"CTYPE1", b"XTENSION", b"\x00\xff"]) + cards[at][8:]
    else:
        odd = (*ODD_NUMBERS, "'text'", "T", "''", "(1, 2)", "'RA---TAN'", "16", "-64", "3")
        cards[at] = (
            (cards[at][:8].decode("latin-1") + "= " + odd[rng.integers(len(odd))])[:80].ljust(80).encode("latin-1")
        )
    return b"".join(cards) + data[80 * n_cards :]
