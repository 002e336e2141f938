"""A stand-in for the image archive on the loopback, over a folder: a web server with ranges, and S3 beside it.

It serves `/archive/<path>` to GET and HEAD, whole or by Range, and answers ListObjectsV2 for a bucket `archive`.
Faults are queued, one a request, and `always` is what happens to every request that takes none from the queue.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.serving import LocalServer

Fault = Callable[["Handler"], None]

BUCKET = "archive"


class ArchiveServer(LocalServer):
    """The folder `root` at `url` and, with `endpoint` for AWS_ENDPOINT_URL, at s3://archive."""

    def __init__(self, root: Path, etag: bool = True) -> None:
        super().__init__()
        self.root, self.etag = root, etag
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.asked: list[str] = []
        """Method, path and query, and Range of each request."""
        self.signed: list[bool] = []

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{BUCKET}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def archive(self) -> ArchiveServer:
        return self.server.owner  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        archive = self.archive
        archive.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip())
        archive.signed.append("Authorization" in self.headers)
        fault = archive.faults.popleft() if archive.faults else archive.always
        (fault or Handler.serve)(self)

    do_HEAD = do_GET

    def serve(self) -> None:
        parts = urlsplit(self.path)
        if parse_qs(parts.query).get("list-type") == ["2"]:
            return self.answer(self.listing(parse_qs(parts.query)), "application/xml")
        path = self.file()
        if not path.is_file():
            return self.answer(b"<Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)
        return self.send_part(path.read_bytes())

    def validators(self) -> dict[str, str]:
        """The date of the file, and its ETag, as S3 makes it."""
        path = self.file()
        if not path.is_file():
            return {}
        date = {"Last_Modified": formatdate(path.stat().st_mtime, usegmt=True)}
        return date | ({"ETag": f'"{md5(path.read_bytes()).hexdigest()}"'} if self.archive.etag else {})

    def file(self) -> Path:
        return self.archive.root / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def send_part(self, data: bytes, missing_bytes: int = 0) -> None:
        """Answer with what Range asks for of `data`, less the last bytes although they are promised."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(data, "image/x-fits")
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if first > last:
            return self.answer(b"", "text/plain", 416, Content_Range=f"bytes */{len(data)}")
        part, where = data[first : last + 1], f"bytes {first}-{last}/{len(data)}"
        sent = part[: len(part) - missing_bytes]
        return self.answer(sent, "image/x-fits", 206, Content_Range=where, Content_Length=str(len(part)))

    def answer(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        named = {"Content_Type": kind, "Content_Length": str(len(body))} | self.validators()
        self.send_response(status)
        for name, value in (named | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(ConnectionError):  # who has seen enough of a file hangs up
            self.wfile.write(body if self.command == "GET" else b"")

    def listing(self, query: dict[str, list[str]]) -> bytes:
        """ListObjectsV2 with the delimiter /: the folders at a prefix and the files among them."""
        prefix = query.get("prefix", [""])[0]
        folder = self.archive.root / prefix
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(prefix + p.name)}/</Prefix></CommonPrefixes>"
            for p in entries
            if p.is_dir()
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><Delimiter>/</Delimiter><KeyCount>{len(entries)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{folders}</ListBucketResult>"
        ).encode()


# --- faults ----------------------------------------------------------------------------------------


def slow_down(handler: Handler) -> None:
    """503 as S3 gives it to who asks too much."""
    handler.answer(b"<Error><Code>SlowDown</Code></Error>", "application/xml", 503)


def forbidden(handler: Handler) -> None:
    handler.answer(b"<Error><Code>AccessDenied</Code></Error>", "application/xml", 403)


def page(handler: Handler) -> None:
    """A page with status 200, instead of the file."""
    handler.answer(b"<!DOCTYPE html><html>maintenance</html>", "text/html")


def whole(handler: Handler) -> None:
    """The whole file, whatever part was asked for."""
    handler.answer(handler.file().read_bytes(), "image/x-fits")


def torn(handler: Handler) -> None:
    """The connection ends before the answer does."""
    handler.close_connection = True
    handler.send_part(handler.file().read_bytes(), missing_bytes=1000)


def short_body(handler: Handler) -> None:
    """A part that is complete by its Content-Length, and shorter than its Content-Range."""
    send_odd(handler, missing_bytes=1)


def other_range(handler: Handler) -> None:
    """A part, rightly labelled, that ends before the one that was asked for."""
    send_odd(handler, missing_bytes=1, last_offset=-1)


def other_total(handler: Handler) -> None:
    """A part whose Content-Range has another size of the file."""
    send_odd(handler, total_bytes=100_000)


def short_length(handler: Handler) -> None:
    """A part whose Content-Length is too small."""
    send_odd(handler, length_offset=-10)
    handler.close_connection = True


def no_range(handler: Handler) -> None:
    """A part without a Content-Range."""
    send_odd(handler, has_range=False)


def beyond_the_end(handler: Handler) -> None:
    """416, although the file has this part."""
    handler.answer(b"", "text/plain", 416, Content_Range="bytes */0")


def send_odd(
    handler: Handler,
    missing_bytes: int = 0,
    last_offset: int = 0,
    total_bytes: int = 0,
    length_offset: int = 0,
    has_range: bool = True,
) -> None:
    """Send a 206 with a body or headers that are not what was asked for."""
    data = handler.file().read_bytes()
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    first, last = (int(asked[1]), min(int(asked[2]), len(data) - 1)) if asked else (0, len(data) - 1)
    part = data[first : last + 1 - missing_bytes]
    where = {"Content_Range": f"bytes {first}-{last + last_offset}/{total_bytes or len(data)}"} if has_range else {}
    handler.answer(part, "image/x-fits", 206, **where, Content_Length=str(len(part) + length_offset))


def stalled(handler: Handler) -> None:
    """Half an answer, then silence."""
    torn(handler)
    handler.wfile.flush()
    handler.archive.closing.wait(20)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


ArchiveServer.handler = Handler
