"""Error texts of libraries that the package parses: each test provokes the error, and fails if its text changes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import obstore
import obstore.exceptions
import obstore.store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from astropy.io import fits

from skyclass.catalog.duckdb import connect, parquet_scan
from skyclass.catalog.sql import check_condition
from skyclass.errors import ConfigError
from skyclass.images.atlas import _damage
from skyclass.images.remote import _reason, _status
from skyclass.sky.moc import _rust_panics
from skyclass.training.data.service import PassingFault, Unreachable, _send
from skyclass.training.fit.ddp import LOST
from tests.support.archiveserver import ArchiveServer, Fault, forbidden, hang_up, slow_down, stalled, torn
from tests.support.class_rows import CLASS_SCHEMA


def since(library: str, text: object) -> str:
    """Return the message of a failed test: the version of a library, and its text."""
    return f"{library} {version(library)} says: {text}"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- astropy ---------------------------------------------------------------------------------------


def test_contract_astropy_names_a_card_that_it_cannot_read() -> None:
    with pytest.raises(fits.VerifyError) as caught:
        _ = fits.Card.fromstring("BUNIT   = 'DN".ljust(80)).value
    assert _damage(caught.value) == "card BUNIT cannot be read", since("astropy", caught.value)


# --- obstore ---------------------------------------------------------------------------------------


def obstore_error(url: str, name: str = "tile.fits", timeout_s: float = 20.0) -> Exception:
    store = obstore.store.HTTPStore(
        url,
        client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_s)},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )
    with pytest.raises(obstore.exceptions.BaseError) as caught:
        obstore.get_range(store, name, start=0, end=100)
    return caught.value


@pytest.fixture
def server(tmp_path: Path) -> Any:
    (tmp_path / "tile.fits").write_bytes(b"x" * 500_000)
    with ArchiveServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize(("fault", "status", "name"), [(forbidden, 403, "403 Forbidden"), (slow_down, 503, "503")])
def test_contract_obstore_names_the_status(server: ArchiveServer, fault: Fault, status: int, name: str) -> None:
    server.always = fault
    error = obstore_error(server.url)
    assert _status(error) == status, since("obstore", error)
    assert _reason(error, server.url).startswith(name), since("obstore", error)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(stalled, "silent for"), (torn, "the answer broke off"), (hang_up, "the connection was closed without an answer")],
)
def test_contract_obstore_names_the_kind_of_a_lost_answer(server: ArchiveServer, fault: Fault, reason: str) -> None:
    server.always = fault
    error = obstore_error(server.url, timeout_s=0.5 if fault is stalled else 20.0)
    assert _status(error) is None, since("obstore", error)
    assert _reason(error, server.url).startswith(reason), since("obstore", error)


def test_contract_obstore_names_the_reason_of_a_refused_connection() -> None:
    error = obstore_error(f"http://127.0.0.1:{closed_port()}")
    assert _reason(error, "http://127.0.0.1") == "no connection (Connection refused)", since("obstore", error)


# --- duckdb ----------------------------------------------------------------------------------------


def duckdb_error(root: Path, name: str) -> str:
    with connect(root) as connection, pytest.raises(duckdb.Error) as caught:
        connection.sql(f"SELECT * FROM {parquet_scan([str(root / name)])}").to_arrow_table()
    return str(caught.value).strip().split("\n")[0]


def test_contract_duckdb_says_that_a_file_is_gone(tmp_path: Path) -> None:
    text = duckdb_error(tmp_path, "gone.parquet")
    assert "No files found" in text, since("duckdb", text)


def test_contract_duckdb_names_a_column_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"\(did you mean p_quasar\?\)\. Columns: "):
        check_condition("p_quasr > 0.9", CLASS_SCHEMA)


def test_contract_duckdb_names_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"a": list(range(100_000))}), path)
    path.write_bytes(path.read_bytes()[:-100])
    text = duckdb_error(tmp_path, "damaged.parquet")
    assert str(tmp_path) in text, since("duckdb", text)


# --- requests --------------------------------------------------------------------------------------


def fault_of(url: str) -> PassingFault:
    def send() -> requests.Response:
        return requests.get(url, timeout=0.5)

    with pytest.raises(PassingFault) as caught:
        _send(send, 0.5)
    return caught.value


def test_contract_requests_names_a_service_that_cannot_be_reached() -> None:
    for url in (f"http://127.0.0.1:{closed_port()}", "http://no-such-host.invalid"):
        fault = fault_of(url)
        assert isinstance(fault, Unreachable), since("requests", fault.__cause__)


def test_contract_requests_says_that_an_answer_took_too_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fault = fault_of(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "time-out" in str(fault) and not isinstance(fault, Unreachable), since("requests", fault.__cause__)


# --- mocpy, torch ----------------------------------------------------------------------------------


def test_contract_mocpy_registers_the_exception_of_failed_assertions() -> None:
    import mocpy

    names = [f"{cls.__module__}.{cls.__name__}" for cls in BaseException.__subclasses__()]
    assert _rust_panics() and mocpy, since("mocpy", names)
    assert all(cls.__name__ == "PanicException" for cls in _rust_panics())


RANK = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
dist.barrier()
if rank:
    os._exit(0)
try:
    for _ in range(100):
        dist.all_reduce(torch.ones(1000))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.integration
def test_contract_torch_says_that_another_rank_is_gone(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    text = ranks[0].communicate(timeout=200)[0].decode()
    ranks[1].communicate(timeout=60)
    assert any(words in text.lower() for words in LOST), since("torch", text)


def provoked(work: Callable[[], object]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: B017 - the text is the contract, not the class
        work()
    return str(caught.value)


@pytest.mark.integration
def test_contract_torch_says_that_a_store_timed_out() -> None:
    from torch.distributed import TCPStore

    text = provoked(lambda: TCPStore("127.0.0.1", closed_port(), 2, False, timeout=timedelta(seconds=1)))
    assert any(words in text.lower() for words in LOST), since("torch", text)
    store = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=1))
    text = provoked(lambda: store.wait(["absent"], timedelta(milliseconds=100)))
    assert any(words in text.lower() for words in LOST), since("torch", text)
    assert re.search("time", text)
