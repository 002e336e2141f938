"""Image files at `s3://bucket/prefix` or `https://host/path`, read by byte ranges with obstore.

There the files are in the layout of the archive, so that every path is computed. A tile costs one request for the
header of each band, and a strip costs one request for its rows in each band. The `.md5` files are not used: to compare
a checksum, the complete file would have to be read, twice the traffic of a run, and HTTP already checks the length of
an answer.

An archive that does not answer is not a fault of a tile. Each request is repeated within the limits below; then
`ArchiveDown` stops the run. Attempts are counted here, and the retries of obstore are switched off: it resumes an
interrupted body only if the server sends an ETag, and two nested loops would multiply the requests.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import ModuleType
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from ..errors import ArchiveDown, ArchiveError, ConfigError
from ..locations import refuse_logins, without_secrets
from ..types import ATLAS_COADD_ID, FileStamp
from .atlas import BLOCK_BYTES
from .layout import Positions, layout_footprints, layout_path, names_near, ra_folders_near
from .source import Piece, SourceChanged

DEFAULT_REGION = "us-west-2"
"""Region of the public bucket of AllWISE."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""Silence before or within an answer, after which the request is abandoned."""
ANSWER_TIMEOUT_S = 120.0
"""Limit for one complete answer: one band of a complete tile, 67 MB, at 0.6 MB/s."""
ATTEMPTS = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0
"""Waits between attempts double from the first to the longest. Each is multiplied by a random factor from 0.5 to 1, so
that the workers of a run do not repeat their requests at the same moment."""
LAST_ATTEMPT_S = 150.0
"""No attempt begins later than this after the first. Together with one complete answer it is shorter than `STALL_S`
in `engine/window.py`: an outage must end the run before its tiles count as stalled and are quarantined."""
UNRANGED_ATTEMPTS = 3
"""Number of range requests that a server may answer with a complete file before a run ends with that reason."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteSource:
    """Atlas images in the layout of the archive below a URL; nothing is requested before the first read.

    `opening` distinguishes calls of `open_remote`: headers that a process remembers from an earlier call are not used
    again. Every method that sends a request raises `ArchiveDown` if the archive does not answer.
    """

    location: str
    opening: str
    is_remote: ClassVar[bool] = True

    def names(self, coadd_id: str, band: str) -> Sequence[str]:
        """Return the name that the image has if it exists; no request."""
        name = layout_path(coadd_id, band)
        return (name,) if name else ()

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Yield bytes `start:stop` of a file in one piece, from one request."""
        try:
            piece = _range(self, name, start, stop)
        except _obstore().exceptions.NotSupportedError as error:  # a complete file, or a page instead of it
            if start:
                raise SourceChanged("the server sends something else") from error
            piece = _beginning(self, name)
        if piece is None:
            raise FileNotFoundError(name)
        yield piece

    def footprints(self, bands: Sequence[str], near: Positions | None) -> Iterable[Sequence[str]]:
        """Yield the images of each tile in a bucket; only folders near the positions are listed.

        Raises `ConfigError` for http(s), which cannot list.
        """
        if not self.location.startswith("s3://"):
            raise ConfigError(
                f"images at {self.location}: positions without coadd_id need a list of the tiles, and http has none; "
                "add a column coadd_id to the table, or give a folder or s3:// location"
            )
        names = _tile_names(self, None if near is None else ra_folders_near(near))
        return layout_footprints(names if near is None else names_near(names, near), bands)


def open_remote(location: str, bands: tuple[str, ...]) -> RemoteSource:
    """Return the images at a URL, without a request.

    Raises `ArchiveError` for a malformed URL. Raises `ConfigError` if obstore, or a library that the credentials need,
    is not installed, and for a login in the URL or in the endpoint of the environment.
    """
    refuse_logins({"images": location} | {name: os.environ.get(name) for name in ENDPOINTS})
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise ArchiveError(f"images at {without_secrets(location)}: this is no URL ({error})") from error
    if not parts.netloc or parts.query or parts.fragment:
        raise ArchiveError(f"images at {without_secrets(location)}: give s3://bucket/prefix or https://host/path")
    source = RemoteSource(location.rstrip("/"), uuid4().hex)
    _store(source)
    return source


def _tile_names(source: RemoteSource, ra_folders: set[str] | None) -> list[str]:
    """Return the tile names below the root, sorted; with `ra_folders` only those in these second-level folders."""
    names = []
    for first in _folders(source, ""):
        if not re.fullmatch(r"\d\d", first):
            continue
        for second in _folders(source, first):
            if ra_folders is None or second in ra_folders:
                names += [name for name in _folders(source, f"{first}/{second}") if ATLAS_COADD_ID.fullmatch(name)]
    return sorted(names)


# --- requests --------------------------------------------------------------------------------------


def _range(source: RemoteSource, name: str, start: int, stop: int) -> Piece | None:
    """Return bytes `start:stop` of a file, fewer if it ends before, None if there is no such file."""

    def request() -> Piece:
        try:
            answer = _obstore().get(_store(source), name, options={"range": (start, stop)})
            data = memoryview(answer.bytes())
            n_expected = answer.range[1] - answer.range[0]  # obstore compares this range with the requested one
            if len(data) != n_expected:
                raise _obstore().exceptions.GenericError(f"{len(data)} bytes came instead of {n_expected}")
            return Piece(data, _stamp(answer.meta))
        except _obstore().exceptions.GenericError as error:
            if _status(error) == 416:  # the file ends before `start`
                return Piece(memoryview(b""), FileStamp(0))
            raise

    return _ask(source, name, request)


def _beginning(source: RemoteSource, name: str) -> Piece | None:
    """Return the first bytes of a page that the server sends in place of a file.

    Raises `ArchiveError` if it is the file: then the server ignores ranges, and each strip would cost a complete file.
    """

    def request() -> Piece:
        answer = _obstore().get(_store(source), name)
        chunk = next(iter(answer.stream(min_chunk_size=BLOCK_BYTES)), b"")  # the rest is not awaited
        return Piece(memoryview(chunk), _stamp(answer.meta))

    piece = _ask(source, name, request)
    if piece is not None and bytes(piece.data[:6]) == b"SIMPLE":
        raise ArchiveError(
            f"images at {source.location}: this server ignores byte ranges and sends whole files; mirror the tiles "
            "and give that folder"
        )
    return piece


def _stamp(meta: Any) -> FileStamp:
    """Return size and ETag of an answer; without an ETag, the time of the last change."""
    return FileStamp(meta["size"], tag=meta["e_tag"] or meta["last_modified"].isoformat())


def _folders(source: RemoteSource, path: str) -> list[str]:
    """Return the names of the folders at a path of a bucket."""
    listing = _ask(source, path, lambda: _obstore().list_with_delimiter(_store(source), path or None))
    return [prefix.rstrip("/").split("/")[-1] for prefix in (listing or {"common_prefixes": []})["common_prefixes"]]


def _ask(source: RemoteSource, path: str, request: Callable[[], T]) -> T | None:
    """Return the result of a request, repeated within the limits; None for a 404.

    Raises `ArchiveDown` after the last attempt, or at once if another attempt cannot help.
    """
    exceptions, began, attempt = _obstore().exceptions, time.monotonic(), 0
    while True:
        attempt += 1
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        try:
            return request()
        except FileNotFoundError:
            return None
        except exceptions.NotSupportedError:
            if attempt >= UNRANGED_ATTEMPTS:
                raise
        except exceptions.BaseError as error:
            is_late = time.monotonic() + wait_s > began + LAST_ATTEMPT_S
            if attempt >= ATTEMPTS or is_late or not _is_transient(error):
                # Without its cause: that is a page of obstore's internals, and may not pickle.
                raise ArchiveDown(f"{source.location}/{path}", _reason(error, source.location), attempt) from None
        time.sleep(wait_s)


def _is_transient(error: Exception) -> bool:
    """Return whether another attempt may help: no answer, an incomplete answer, or a server that is overloaded."""
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _status(error: Exception) -> int | None:
    """Return the HTTP status in the message of an obstore error, None if no answer came."""
    match = re.search(r"status code: (\d{3})", str(error))
    return int(match[1]) if match else None


def _reason(error: Exception, location: str) -> str:
    """Return why a request failed, in a few words, with a hint for a refused one."""
    message, status = str(error), _status(error)
    if status is None:
        kind = re.search(r"HttpError \{\s*kind: (\w+)", message)
        system = re.search(r'(?:message|error): "([^"]+)"', message)
        reasons = {
            "Connect": f"no connection{f' ({system[1]})' if system else ''}",
            "Timeout": f"silent for {READ_TIMEOUT_S:g} s, or slower than {ANSWER_TIMEOUT_S:g} s for one answer",
            "Interrupted": "the answer broke off",
            "Request": "the connection was closed without an answer",
        }
        return reasons.get(kind[1] if kind else "", message.splitlines()[0])
    name = re.search(r"status code: (\d{3}(?: [A-Z][A-Za-z' -]*)?)", message)
    hint = ""
    if status in (401, 403) and location.startswith("s3://"):
        hint = ", which is also the answer of S3 for a missing file to users who may not list the bucket"
        if not _has_credentials():
            hint += "; asked without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return f"{name[1] if name else status}{hint}"


# --- the store -------------------------------------------------------------------------------------


def _obstore() -> ModuleType:
    """Return the optional library; `ConfigError` if it is not installed."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise ConfigError("images at s3:// and https:// need obstore: pip install 'skyclass[cloud]'") from error
    return obstore


@lru_cache(maxsize=4)
def _store(source: RemoteSource) -> Any:
    """Return the obstore store of a source, opened once per process."""
    parts = urlsplit(source.location)
    retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=LAST_ATTEMPT_S)}
    if parts.scheme != "s3":
        options = _client_options(is_plain=parts.scheme == "http")
        return _obstore().store.HTTPStore(source.location, client_options=options, retry_config=retry)
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return _obstore().store.S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=_s3_config(endpoint),
        client_options=_client_options(is_plain=endpoint.startswith("http://")),
        retry_config=retry,
        credential_provider=None if os.environ.get("AWS_ACCESS_KEY_ID") else _profile_credentials(),
    )


def _client_options(is_plain: bool) -> dict[str, object]:
    return {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=ANSWER_TIMEOUT_S),
        "allow_http": is_plain,
    }


def _s3_config(endpoint: str) -> dict[str, object]:
    """Return region, endpoint and signature from the environment; obstore reads the keys from there itself."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    config: dict[str, object] = {"region": region, "skip_signature": not _has_credentials()}
    return config | ({"endpoint": endpoint} if endpoint else {})


def _has_credentials() -> bool:
    return any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))


def _profile_credentials() -> Any:
    """Return the provider of the credentials of AWS_PROFILE, None without one; obstore alone reads no profiles."""
    if not os.environ.get("AWS_PROFILE"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ConfigError(
            "AWS_PROFILE is set, and profiles are read with boto3: pip install boto3, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or unset AWS_PROFILE for a public bucket"
        ) from error
    return Boto3CredentialProvider()
