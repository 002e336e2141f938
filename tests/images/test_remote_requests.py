"""Requests to a remote archive, with answers made here: repetitions, waits, reasons, and the options of the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.exceptions import GenericError, NotSupportedError

from skyclass.errors import ArchiveDown, ArchiveError, ConfigError
from skyclass.images import remote
from skyclass.images.layout import layout_path
from skyclass.images.remote import RemoteSource, open_remote
from skyclass.images.source import Piece, SourceChanged
from skyclass.types import FileStamp

COADD_ID = "1497p015_ac51"
WHEN = datetime(2013, 11, 13, tzinfo=UTC)
ENVIRONMENT = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE", "REGION", "DEFAULT_REGION", "ENDPOINT_URL")


class Clock:
    """Stands in for `time` and `random`: nobody waits, and waits have the whole length."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.factors: set[tuple[float, float]] = set()
        self.now, self.answer_s = 1000.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def uniform(self, low: float, high: float) -> float:
        self.factors.add((low, high))
        return high


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    monkeypatch.setattr(remote, "random", clock)
    for name in ENVIRONMENT:
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    return clock


def answer(
    data: bytes = b"SIMPLE", first: int = 0, size: int = 5000, e_tag: str | None = '"a"', promised: int | None = None
):
    """Return what obstore returns for a range from `first` on."""
    meta = {"size": size, "e_tag": e_tag, "last_modified": WHEN}
    end = first + (len(data) if promised is None else promised)
    return SimpleNamespace(
        bytes=lambda: data, range=(first, end), meta=meta, stream=lambda min_chunk_size: iter([data, b""])
    )


@pytest.fixture
def answers(monkeypatch, clock) -> list[Any]:
    """The answers to come, the last one for ever; an exception is raised. `asked` has the range of each request."""

    class Answers(list):
        asked: list[tuple[str, Any]]

    queue = Answers()
    queue.asked = []

    def get(store, name: str, options: dict[str, Any] | None = None):
        queue.asked.append((name, (options or {}).get("range")))
        clock.now += clock.answer_s
        next_one = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(next_one, BaseException):
            raise next_one
        return next_one

    monkeypatch.setattr(obstore, "get", get)
    return queue


@pytest.fixture
def source() -> RemoteSource:
    return open_remote("http://127.0.0.1:9/p3am_cdd/", ("w1",))


def read(source: RemoteSource, start: int = 0, stop: int = 6) -> Piece:
    (piece,) = source.read("a.fits", start, stop)
    return piece


def status(text: str) -> GenericError:
    return GenericError(f"Generic HTTP error: Server returned non-2xx status code: {text}: <body>\n\nDebug source: ...")


def test_bytes_come_with_the_size_and_the_tag_of_the_file(source, answers):
    answers[:] = [answer(b"123456", 10), answer(b"123456", 10, e_tag=None), answer(b"123", 10)]
    piece = read(source, 10, 16)
    assert bytes(piece.data) == b"123456" and piece.stamp == FileStamp(5000, tag='"a"')
    assert read(source, 10, 16).stamp == FileStamp(5000, tag="2013-11-13T00:00:00+00:00")
    assert bytes(read(source, 10, 16).data) == b"123", "the file ends"
    assert answers.asked == [("a.fits", (10, 16))] * 3


def test_waits_double_to_a_limit_and_vary_by_a_half(source, answers, clock, monkeypatch):
    answers[:] = [status("503 Service Unavailable")]
    with pytest.raises(ArchiveDown) as caught:
        read(source)
    assert (len(answers.asked), caught.value.attempts) == (6, 6)
    assert clock.waits == [1, 2, 4, 8, 16] and clock.factors == {(0.5, 1)}
    assert "http://127.0.0.1:9/p3am_cdd/a.fits" in str(caught.value)
    clock.waits.clear()
    monkeypatch.setattr(remote, "ATTEMPTS", 8)
    with pytest.raises(ArchiveDown):
        read(source)
    assert clock.waits == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize(("answer_s", "attempts"), [(149.0, 2), (149.1, 1), (73.5, 3), (73.6, 2), (200.0, 1)])
def test_no_attempt_begins_more_than_150_seconds_after_the_first(source, answers, clock, answer_s, attempts):
    """After answers of 73.5 s the third attempt begins at 2 * 73.5 + 1 + 2 = 150 s."""
    clock.answer_s, answers[:] = answer_s, [status("503 Service Unavailable")]
    with pytest.raises(ArchiveDown) as caught:
        read(source)
    assert caught.value.attempts == attempts


def test_only_an_overloaded_or_broken_server_is_asked_again(source, answers):
    cases = [(n, 6) for n in (408, 429, 500, 501, 599)] + [(n, 1) for n in (400, 401, 403, 407, 409, 428, 430, 499)]
    for text, attempts in cases:
        answers[:], answers.asked[:] = [status(f"{text} Some Reason")], []
        with pytest.raises(ArchiveDown, match=f"{text} Some Reason") as caught:
            read(source)
        assert caught.value.attempts == len(answers.asked) == attempts and caught.value.__cause__ is None


def test_an_answer_after_faults_is_used(source, answers, clock):
    short = answer(b"12345", promised=6)
    answers[:] = [status("500 X"), GenericError("torn"), short, answer(b"123456")]
    assert bytes(read(source).data) == b"123456" and clock.waits == [1, 2, 4]
    answers[:] = [short]
    with pytest.raises(ArchiveDown, match="5 bytes came instead of 6"):
        read(source)


def test_a_file_that_is_not_there_is_not_asked_for_again(source, answers, clock):
    answers[:] = [FileNotFoundError("404")]
    with pytest.raises(FileNotFoundError, match=r"^a\.fits$"):
        read(source)
    assert len(answers.asked) == 1 and clock.waits == []


def test_a_range_behind_the_end_of_a_file_is_empty(source, answers):
    answers[:] = [status("416 Range Not Satisfiable")]
    piece = read(source, 9000, 9006)
    assert bytes(piece.data) == b"" and piece.stamp == FileStamp(0) and len(answers.asked) == 1


def test_a_server_may_ignore_the_range_twice(source, answers, clock):
    whole = NotSupportedError("200 instead of 206")
    answers[:] = [whole, whole, answer(b"123456")]
    assert bytes(read(source).data) == b"123456" and clock.waits == [1, 2]
    answers[:] = [whole] * 3 + [answer(b"<html>")]
    answers.asked.clear()
    assert bytes(read(source).data) == b"<html>"
    assert answers.asked == [("a.fits", (0, 6))] * 3 + [("a.fits", None)], "a page in place of the file"
    answers[:] = [whole] * 3 + [answer(b"SIMPLE  = T")]
    with pytest.raises(ArchiveError, match="images at http://127.0.0.1:9/p3am_cdd: this server ignores byte ranges"):
        read(source)
    answers[:] = [whole] * 3 + [answer(b"")]
    assert bytes(read(source).data) == b""
    answers[:] = [whole] * 3 + [FileNotFoundError("404")]
    with pytest.raises(FileNotFoundError):
        read(source)
    answers[:], answers.asked[:] = [whole], []
    with pytest.raises(SourceChanged, match="the server sends something else"):
        read(source, 6, 12)
    assert len(answers.asked) == 3


def test_the_reason_is_given_in_a_few_words(source, answers):
    cases = [
        (
            'HttpError { kind: Connect, source: Os { message: "Connection refused" } }',
            "no connection (Connection refused)",
        ),
        ('HttpError { kind: Connect, error: "dns error" }', "no connection (dns error)"),
        ("HttpError {\n kind: Connect }", "no connection"),
        ("HttpError { kind: Timeout }", "silent for 30 s, or slower than 120 s for one answer"),
        ("HttpError { kind: Interrupted }", "the answer broke off"),
        ("HttpError { kind: Request }", "the connection was closed without an answer"),
        ("something else\nin two lines", "something else"),
        ("HttpError { kind: Decode }\nmore", "HttpError { kind: Decode }"),
        ("status code: 503 Service Unavailable: <Error>", "503 Service Unavailable"),
        ("status code: 599: <Error>", "599"),
        ("status code: 403 Forbidden: <Error>", "403 Forbidden"),
    ]
    for message, reason in cases:
        answers[:] = [GenericError(message)]
        with pytest.raises(ArchiveDown) as caught:
            read(source)
        n = caught.value.attempts
        words = f"{n} attempt" + "s" * (n > 1)
        assert caught.value.trouble == f"{source.location}/a.fits: {reason} ({words})"


@pytest.mark.parametrize("code", ["401 Unauthorized", "403 Forbidden"])
def test_a_refusal_of_a_bucket_hints_at_missing_files_and_credentials(answers, monkeypatch, code):
    answers[:] = [status(code)]
    hint = f"{code}, which is also the answer of S3 for a missing file to users who may not list the bucket"
    advice = "; asked without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    for credentials, expected in (
        ({}, hint + advice),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, hint),
    ):
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ArchiveDown) as caught:
            read(open_remote("s3://bucket/prefix", ("w1",)))
        assert caught.value.trouble == f"s3://bucket/prefix/a.fits: {expected} (1 attempt)"
    answers[:] = [status("400 Bad Request")]
    with pytest.raises(ArchiveDown) as caught:
        read(open_remote("s3://bucket/prefix", ("w1",)))
    assert caught.value.trouble == "s3://bucket/prefix/a.fits: 400 Bad Request (1 attempt)"


# --- names and lists -------------------------------------------------------------------------------


def test_names_are_computed_without_a_request(source, answers):
    assert source.names(COADD_ID, "w2") == (layout_path(COADD_ID, "w2"),)
    assert source.names(COADD_ID, "w5") == source.names("../x", "w1") == () and answers.asked == []
    with pytest.raises(ConfigError, match="http has none; add a column coadd_id to the table"):
        source.footprints(("w1",), None)


def test_a_bucket_is_listed_by_its_two_levels_of_folders(monkeypatch):
    tree = {
        None: ["14/", "15/", "1/", "readme/", "145/"],
        "14": ["14/1400/", "14/1497/"], "15": ["15/1500/"],
        "14/1400": ["14/1400/1400p015_ac51/"],
        "14/1497": ["14/1497/1497p030_ac51/", "14/1497/1497p015_ac51/", "14/1497/notes/"],
        "15/1500": ["15/1500/1500p000_ac51/"],
    }  # fmt: skip
    asked: list[str | None] = []

    def listing(store, path: str | None):
        asked.append(path)
        if path not in tree:
            raise FileNotFoundError(path)
        return {"common_prefixes": [f"p3am_cdd/{folder}" for folder in tree[path]]}

    monkeypatch.setattr(obstore, "list_with_delimiter", listing)
    source = open_remote("s3://bucket/p3am_cdd", ("w1",))

    def tiles(near=None) -> list[str]:
        asked.clear()
        return [names[0].split("/")[2] for names in source.footprints(("w3",), near)]

    assert tiles() == ["1400p015_ac51", "1497p015_ac51", "1497p030_ac51", "1500p000_ac51"]
    assert asked == [None, "14", "14/1400", "14/1497", "15", "15/1500"]
    assert tiles((np.array([149.8]), np.array([3.2]))) == ["1497p015_ac51", "1497p030_ac51"]
    assert asked == [None, "14", "14/1497", "15", "15/1500"]
    first = next(iter(source.footprints(("w3",), None)))
    assert [name[-13:-11] for name in first] == ["w3", "w1", "w2", "w4"]
    tree.clear()
    assert tiles() == [], "an empty bucket"


# --- opening ---------------------------------------------------------------------------------------


def test_each_opening_is_another_source_without_the_last_slash():
    one, other = (open_remote("https://host/path//", ("w1",)) for _ in range(2))
    assert one.location == other.location == "https://host/path" and one != other and one.is_remote


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://[::1/x", r"this is no URL \("),
        ("https://", "give s3://bucket/prefix or https://host/path"),
        ("https://host/p?a=1", "give s3://bucket/prefix or https://host/path"),
        ("https://host/p#part", "give s3://bucket/prefix or https://host/path"),
    ],
)
def test_a_malformed_location_is_an_error_of_input(url, words):
    with pytest.raises(ArchiveError, match=words):
        open_remote(url, ("w1",))


@pytest.fixture
def stores(monkeypatch) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments with which stores are made."""
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def make(*arguments, **options):
        made.append((arguments, options))
        return len(made)

    for name in ("S3Store", "HTTPStore"):
        monkeypatch.setattr(f"obstore.store.{name}", make)
    yield made
    remote._store.cache_clear()


@pytest.mark.parametrize(("url", "is_plain"), [("http://host/p", True), ("https://host/p", False)])
def test_a_web_server_is_asked_with_time_limits_and_obstore_repeats_nothing(stores, answers, url, is_plain):
    source = open_remote(url, ("w1",))
    answers[:] = [answer()]
    read(source), read(source)
    (((location,), options),) = stores
    seconds = timedelta(seconds=1)
    assert location == url and options["retry_config"]["max_retries"] == 0
    assert options["client_options"] == {
        "connect_timeout": 5 * seconds, "read_timeout": 30 * seconds, "timeout": 120 * seconds, "allow_http": is_plain,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "environment", "config", "prefix", "is_plain"),
    [
        ("s3://bucket", {}, {"region": "us-west-2", "skip_signature": True}, None, False),
        (
            "s3://bucket/a/b/", {"REGION": "here", "DEFAULT_REGION": "there"},
            {"region": "here", "skip_signature": True}, "a/b", False,
        ),
        ("s3://bucket", {"DEFAULT_REGION": "there"}, {"region": "there", "skip_signature": True}, None, False),
        (
            "s3://bucket", {"ENDPOINT_URL": "http://host:1", "ACCESS_KEY_ID": "a"},
            {"region": "us-west-2", "skip_signature": False, "endpoint": "http://host:1"}, None, True,
        ),
        (
            "s3://bucket", {"ENDPOINT_URL": "https://host"},
            {"region": "us-west-2", "skip_signature": True, "endpoint": "https://host"}, None, False,
        ),
    ],
)  # fmt: skip
def test_a_bucket_is_opened_as_the_environment_says(stores, monkeypatch, url, environment, config, prefix, is_plain):
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    open_remote(url, ("w1",))
    (((bucket,), options),) = stores
    assert (bucket, options["prefix"], options["config"]) == ("bucket", prefix, config)
    assert options["client_options"]["allow_http"] is is_plain and options["retry_config"]["max_retries"] == 0
    assert options["credential_provider"] is None


def test_the_credentials_of_a_profile_are_used_unless_keys_are_given(stores, monkeypatch):
    provider = object()
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", SimpleNamespace(Boto3CredentialProvider=lambda: provider))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    open_remote("s3://bucket", ("w1",))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    open_remote("s3://bucket", ("w1",))
    (_, by_profile), (_, by_key) = stores
    assert by_profile["credential_provider"] is provider and by_profile["config"]["skip_signature"] is False
    assert by_key["credential_provider"] is None and by_key["config"]["skip_signature"] is False
