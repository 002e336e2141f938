"""A web server on the loopback that serves a folder of tiles and lies; a path names the way and the seed."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SLOW_S = 3.0
PAGE = b"<!DOCTYPE html><html><body>maintenance</body></html>"


class Liar(BaseHTTPRequestHandler):
    """Answers `/LIE/SEED/path`: each lie is a method; the random numbers follow from the whole request."""

    protocol_version = "HTTP/1.1"
    root = Path()
    counts = Counter[str]()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        _, lie, seed, path = unquote(self.path).split("/", 3)
        asked = self.headers.get("Range", "")
        self.rng = random.Random(f"{lie} {seed} {path} {asked}")
        file = self.root / path
        if not file.is_file():
            return self.send(404, b"not here")
        data, status, headers = file.read_bytes(), 200, {}
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", asked):
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, status = data[first : last + 1], 206
        with suppress(ConnectionError):
            getattr(self, f"lie_{lie}")(status, data, headers)
        return None

    do_HEAD = do_GET

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def lie_status(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(
            self.rng.choice([100, 200, 204, 206, 301, 304, 400, 401, 403, 404, 410, 416, 418, 429, 500, 503, 599]), data
        )

    def lie_length(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.close_connection = True
        self.send(status, data, headers, self.rng.choice([0, len(data) // 2, len(data) + 10, 2**40, -1]))

    def lie_range(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        wrong = [
            "bytes 0-0/1",
            "bytes */5",
            "bytes 5-1/9",
            "items 1-2/3",
            "",
            "bytes 0-99999999999999999999/5",
            "\u00e9",
        ]
        self.send(status, data, {"Content-Range": self.rng.choice(wrong)})

    def lie_html(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(self.rng.choice([200, status]), PAGE, headers if self.rng.random() < 0.5 else None)

    def lie_empty(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(status, b"", headers)

    def lie_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        broken = bytearray(data)
        for _ in range(self.rng.randrange(1, 30)):
            broken[self.rng.randrange(len(broken))] = self.rng.randrange(256)
        self.send(status, bytes(broken), headers)

    def lie_header(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        odd = {
            "Last-Modified": "yesterday",
            "ETag": self.rng.choice(['""', "x" * 5000, 'W/"1"']),
            "Content-Encoding": "gzip",
        }
        name = self.rng.choice(sorted(odd))
        self.send(status, data, headers | {name: odd[name]})

    def lie_slow(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        time.sleep(SLOW_S)
        self.send(status, data, headers)

    def lie_short(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(status, data[: self.rng.randrange(len(data))], headers)

    def lie_redirect(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send(
            302, b"", {"Location": self.rng.choice([self.path, "http://127.0.0.1:1/x", "file:///etc/passwd", "::"])}
        )

    def lie_garbage(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.close_connection = True
        self.wfile.write(
            self.rng.choice([b"\x00\xff" * 100, b"HTTP/9.9 nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b""])
        )

    def lie_sometimes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.counts[self.path] += 1  # another answer to each attempt, and the same ones in a replay
        if random.Random(f"{self.path} {self.counts[self.path]}").random() < 0.3:
            self.send(503, b"busy")
        else:
            self.send(status, data, headers)


def serve(root: Path) -> ThreadingHTTPServer:
    """Return a server of a folder of tiles on a free port; the caller runs it."""
    handler = type("Handler", (Liar,), {"root": root})
    server = QuietServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    return server


class QuietServer(ThreadingHTTPServer):
    """A server that does not mind clients that hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""
