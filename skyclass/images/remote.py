"""Atlas tiles far away, at `s3://bucket/prefix` or `https://host/path`, read by ranges with obstore.

Only the archive's own layout is known there: every path is computed. Of a band the header is asked for first, then
the rows of a strip in one request. The `.md5` files are not looked at: to hold a file against its checksum it would
have to be fetched whole, twice the traffic of a run, and the transport already checks the length of what it brings.

An archive that does not answer is no fault of a tile. Each request is tried again within the bounds below, and
then `ArchiveDown` stops the run. The attempts are counted here and obstore's own are switched off: it takes up
a torn body again only from servers that send an ETag, and two loops would multiply their requests.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArchiveDown, ArchiveError, ConfigError
from ..locations import refuse_logins, without_secrets
from ..types import BANDS, FileStamp, Float32, Tile
from .atlas import (
    check_pixels,
    check_rows,
    each_band,
    layout_path,
    names_near,
    own_image,
    ra_names_near,
    raise_missing,
    row_range,
    tile_of,
)
from .header import BLOCK_BYTES, TILE_NAME, AtlasImage, Refusal, header_blocks, read_header
from .identity import changed_fault, image_file, stamp_change

SCHEMES = ("s3://", "https://", "http://")
DEFAULT_REGION = "us-west-2"
"""Of the public bucket of AllWISE."""
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
LAYOUT_HINT = (
    "give the location that holds the folders 00 to 35; the public ones are "
    "s3://nasa-irsa-wise/wise/allwise/images/p3am_cdd and https://irsa.ipac.caltech.edu/ibe/data/wise/allwise/p3am_cdd"
)

HEADER_BYTES = 16 * BLOCK_BYTES
"""Asked for to see a header: eight times what a real one takes, a thousandth of its file."""

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""Silence, before an answer or in the midst of it, after which the request is given up."""
ANSWER_TIMEOUT_S = 120.0
"""For one answer as a whole: a band of a whole tile, 67 MB, at 0.6 MB/s."""
ATTEMPTS = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0
"""Waits between attempts double from the one to the other. Each is cut by chance, to half of it at least, so that the
workers of a run do not come back all at once."""
LAST_ATTEMPT_S = 150.0
"""After the first, later than which no attempt begins. With the whole of an answer this is less than the watchdog waits
for a strip (`engine.STALL_S`): an outage must end the run before tiles are taken for hung and quarantined."""

UNKNOWN = Refusal("", "not asked yet")
_headers: dict[tuple[RemoteArchive, str, str], AtlasImage | Refusal | None] = {}
MAX_HEADERS = 512

CONFIRMATIONS = 2
"""Answers that must agree before a file counts as damaged or changed: a single answer may be wrong."""
UNRANGED_ATTEMPTS = 3
"""Requests for a part of a file that are answered with a whole one before the server counts as one without ranges."""

HASH_ROWS = 512
"""Rows in one request when pixels are hashed: 8 MB of a whole tile."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """The bytes that came, and the stamp of the whole file."""

    data: memoryview
    stamp: FileStamp


# --- the archive -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteArchive:
    """Atlas tiles in the archive's layout below a URL; asks for nothing before it must, so it is cheap to pickle.

    `opening` names one call of `open_remote`: what a process remembers of an earlier one is not used again. Every
    method raises `ArchiveDown` when the archive does not answer.
    """

    root: str
    bands: tuple[str, ...]
    opening: str

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the tile as the headers of `bands` describe it.

        With `verify` the headers are requested although this process knows them: the tile then has the files that the
        archive has now. No checksum is compared, as explained above. Raises `TileFault` whose `kind` is
        "missing_tile", "missing_band" or "bad", with the reason.
        """
        if not bands:
            raise ValueError("no band was asked for")
        return tile_of(each_band(bands, lambda band: self._image(coadd_id, band, verify)), self.root)

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return the bands, of all four, of which the archive has a file; () if it has no such tile."""
        return tuple(band for band in BANDS if _describe(self, coadd_id, band) is not None)

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows `start:stop` (0-based) of a band: (rows, columns) native float32 DN, one request.

        Raises `TileFault` if the file is no longer the one that `tile` was made from, or has a row with too many
        exact zeros; `ValueError` if the rows are not on the tile.
        """
        check_rows(tile, start, stop)
        data = _read(self, tile, band, start, stop)
        pixels = np.frombuffer(data, dtype=">f4").reshape(stop - start, tile.shape[1]).astype(np.float32)
        check_pixels(tile, band, start, pixels)
        return pixels

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return the SHA-256 of the pixels of rows `start:stop`, by the names of the tile's files."""
        start, stop = row_range(tile, start, stop)
        digests = {}
        for band in tile.bands:
            digest = hashlib.sha256()
            for first in range(start, stop, HASH_ROWS):
                digest.update(_read(self, tile, band, first, min(first + HASH_ROWS, stop)))
            digests[image_file(tile, band).name] = digest.hexdigest()
        return digests

    def list_tiles(self, near: tuple[ArrayLike, ArrayLike] | None = None) -> list[Tile]:
        """Return the footprints of the tiles, sorted by name, to assign positions to; one header is read for each.

        `near` (ra, dec in degrees) spares folders and headers of tiles that hold none of the positions. Raises
        `ConfigError` for http(s), which lists nothing.
        """
        if not self.root.startswith("s3://"):
            raise ConfigError(
                f"images at {self.root}: positions without coadd_id need a list of the tiles, and http has none; "
                "add a column coadd_id to the table, or give a folder or s3:// location"
            )
        names = _tile_names(self, None if near is None else ra_names_near(*near))
        wanted = names if near is None else names_near(names, *near)
        tiles = (self._first_tile(name) for name in wanted)
        return [tile for tile in tiles if tile is not None]

    def _image(self, coadd_id: str, band: str, fresh: bool) -> AtlasImage:
        """Return the good image of a band, or raise the `TileFault` that says why not."""
        image = _describe(self, coadd_id, band, fresh)
        if image is None:
            raise_missing(self.root, coadd_id, band, self.bands_of(coadd_id))
        return own_image(image, coadd_id, band)

    def _first_tile(self, coadd_id: str) -> Tile | None:
        """Return a tile with the first band whose header is good, of the wanted bands or any other."""
        for band in dict.fromkeys((*self.bands, *BANDS)):
            image = _describe(self, coadd_id, band)
            if isinstance(image, AtlasImage):
                return tile_of([image], self.root)
        return None


def open_remote(location: str, bands: tuple[str, ...]) -> RemoteArchive:
    """Return the archive at a URL, not yet asked for anything.

    Raises `ArchiveError` for what is no location of that kind, `ConfigError` without obstore or its credentials, and
    for a login in the URL or in the endpoint of the environment.
    """
    refuse_logins({"images": location} | {name: os.environ.get(name) for name in ENDPOINTS})
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise ArchiveError(f"images at {without_secrets(location)}: this is no URL ({error})") from error
    if not parts.netloc or parts.query or parts.fragment:
        raise ArchiveError(f"images at {without_secrets(location)}: give s3://bucket/prefix or https://host/path")
    archive = RemoteArchive(location.rstrip("/"), bands, uuid4().hex)
    _store(archive)
    return archive


def _describe(archive: RemoteArchive, coadd_id: str, band: str, fresh: bool = False) -> AtlasImage | Refusal | None:
    """Return what the file of a band holds, None where there is none.

    The answer is remembered for one opening of an archive; with `fresh` the server is asked again.
    """
    key = (archive, coadd_id, band)
    image = UNKNOWN if fresh else _headers.get(key, UNKNOWN)
    if image is UNKNOWN:
        image = _request_header(archive, coadd_id, band)
        if len(_headers) >= MAX_HEADERS:
            _headers.clear()
        _headers[key] = image
    return image


def _request_header(archive: RemoteArchive, coadd_id: str, band: str) -> AtlasImage | Refusal | None:
    """Return what the file of a band holds. After a refusal it is asked for again, because that answer may be torn."""
    path = layout_path(coadd_id, band)
    image: AtlasImage | Refusal | None = None
    for _ in range(CONFIRMATIONS if path else 0):
        answer = _beginning(archive, path)
        if answer is None:
            return None
        image = read_header(f"{archive.root}/{path}", header_blocks(io.BytesIO(answer.data)), answer.stamp)
        if isinstance(image, AtlasImage):
            break
    return image


def _read(archive: RemoteArchive, tile: Tile, band: str, start: int, stop: int) -> memoryview:
    """Return the bytes of rows `start:stop` of a band; `TileFault` unless they are those of the tile's file."""
    file = image_file(tile, band)
    first, last = (file.data_offset + 4 * tile.shape[1] * row for row in (start, stop))
    for _ in range(CONFIRMATIONS):
        try:
            answer = _range(archive, file.name, first, last)
        except _obstore().exceptions.NotSupportedError:  # a page instead of the file
            difference = "the server sends something else"
            continue
        difference = stamp_change(file.stamp, answer.stamp) if answer else "it was removed"
        if answer and not difference:
            return answer.data
    raise changed_fault(tile, band, f"{archive.root}/{file.name}", difference)


def _tile_names(archive: RemoteArchive, ra_names: set[str] | None) -> list[str]:
    """Return the tile names below the root, sorted; with `ra_names` only those that begin with one of them."""
    names = []
    for first in _folders(archive, ""):
        if not re.fullmatch(r"\d\d", first):
            continue
        for second in _folders(archive, first):
            if ra_names is None or second in ra_names:
                names += [name for name in _folders(archive, f"{first}/{second}") if TILE_NAME.fullmatch(name)]
    return sorted(names)


# --- requests --------------------------------------------------------------------------------------


def _beginning(archive: RemoteArchive, path: str) -> Answer | None:
    """Return the first bytes of a file, None where there is none; `ArchiveError` for a server that knows no ranges."""
    try:
        return _range(archive, path, 0, HEADER_BYTES)
    except _obstore().exceptions.NotSupportedError:  # a file sent whole, or a page instead of it
        answer = _ask(archive, path, lambda: _unranged(archive, path))
    if answer is not None and bytes(answer.data[:6]) == b"SIMPLE":
        raise ArchiveError(
            f"images at {archive.root}: this server sends whole files whatever part is asked for; mirror the tiles "
            "and give that folder"
        )
    return answer


def _range(archive: RemoteArchive, path: str, start: int, stop: int) -> Answer | None:
    """Return bytes `start:stop` of a file, fewer where it ends before them, None where there is none."""

    def request() -> Answer:
        try:
            got = _obstore().get(_store(archive), path, options={"range": (start, stop)})
            answer = Answer(memoryview(got.bytes()), _stamp(got.meta))
            n_expected = got.range[1] - got.range[0]  # obstore compares this range with what was asked for
            if len(answer.data) != n_expected:
                raise _obstore().exceptions.GenericError(f"{len(answer.data)} bytes came instead of {n_expected}")
            return answer
        except _obstore().exceptions.GenericError as error:
            if _status(error) == 416:  # the file ends before `start`
                return Answer(memoryview(b""), FileStamp(0))
            raise

    return _ask(archive, path, request)


def _unranged(archive: RemoteArchive, path: str) -> Answer:
    """Return the first bytes of a file that comes whole; the rest of it is not waited for."""
    got = _obstore().get(_store(archive), path)
    chunk = next(iter(got.stream(min_chunk_size=BLOCK_BYTES)), b"")
    return Answer(memoryview(chunk), _stamp(got.meta))


def _stamp(meta: Any) -> FileStamp:
    """Return size and ETag of an answer; without an ETag, the time of the last change."""
    return FileStamp(meta["size"], tag=meta["e_tag"] or meta["last_modified"].isoformat())


def _folders(archive: RemoteArchive, path: str) -> list[str]:
    """Return the names of the folders at a path of a bucket."""
    listing = _ask(archive, path, lambda: _obstore().list_with_delimiter(_store(archive), path or None))
    return [prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in (listing or {"common_prefixes": []})["common_prefixes"]]


def _ask(archive: RemoteArchive, path: str, request: Callable[[], T]) -> T | None:
    """Return what a request gives, tried again within the bounds, None for a 404.

    Raises `ArchiveDown` at the last attempt, or at once when asking again cannot help.
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
            if attempt >= ATTEMPTS or is_late or not _may_pass(error):
                # Without its cause: that is a page of obstore's internals, and may not pickle.
                raise ArchiveDown(f"{archive.root}/{path}", _reason(error, archive.root), attempt) from None
        time.sleep(wait_s)


def _may_pass(error: Exception) -> bool:
    """Return whether asking again may help: no answer, half an answer, or a server that is overloaded."""
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error of obstore tells, None where no answer came."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _reason(error: Exception, root: str) -> str:
    """Return in a few words why a request failed, with a hint for one that was refused."""
    said = str(error)
    status = _status(error)
    if status is None:
        kind = re.search(r"HttpError \{\s*kind: (\w+)", said)
        system = re.search(r'(?:message|error): "([^"]+)"', said)
        words = {
            "Connect": f"no connection{f' ({system[1]})' if system else ''}",
            "Timeout": f"silent for {READ_TIMEOUT_S:g} s, or slower than {ANSWER_TIMEOUT_S:g} s for one answer",
            "Interrupted": "the answer broke off",
            "Request": "the connection was closed without an answer",
        }
        return words.get(kind[1] if kind else "", said.splitlines()[0])
    named = re.search(r"status code: (\d{3}(?: [A-Z][A-Za-z' -]*)?)", said)
    hint = ""
    if status in (401, 403) and root.startswith("s3://"):
        hint = ", as S3 also says of a missing file to those who may not list the bucket"
        if not _has_credentials():
            hint += "; asked without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return f"{named[1] if named else status}{hint}"


# --- the store -------------------------------------------------------------------------------------


def _obstore() -> ModuleType:
    """Return the library, an optional one."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise ConfigError("images at s3:// and https:// need obstore: pip install 'skyclass[cloud]'") from error
    return obstore


@lru_cache(maxsize=4)
def _store(archive: RemoteArchive) -> Any:
    """Return the obstore store of an archive, opened once a process."""
    parts = urlsplit(archive.root)
    retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=LAST_ATTEMPT_S)}
    if parts.scheme != "s3":
        options = _client_options(is_plain=parts.scheme == "http")
        return _obstore().store.HTTPStore(archive.root, client_options=options, retry_config=retry)
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
    """Return region, endpoint and signature as the environment says; obstore takes the keys from there itself."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    config: dict[str, object] = {"region": region, "skip_signature": not _has_credentials()}
    return config | ({"endpoint": endpoint} if endpoint else {})


def _has_credentials() -> bool:
    return any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))


def _profile_credentials() -> Any:
    """Return what reads the profile of AWS_PROFILE, None without one: boto3 can, obstore alone cannot."""
    if not os.environ.get("AWS_PROFILE"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ConfigError(
            "AWS_PROFILE is set, and to read profiles takes boto3: pip install boto3, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or unset AWS_PROFILE for a public bucket"
        ) from error
    return Boto3CredentialProvider()
