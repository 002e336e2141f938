"""Damaged configurations and records of a run: one message that names the file, or the tiles tell it instead."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyclass.cli.parameters import parse_cone
from skyclass.errors import ConfigError, StoreError
from skyclass.images.archive import open_archive
from skyclass.images.size import parse_size
from skyclass.locations import user_path
from skyclass.mock import write_mock
from skyclass.run import lease as leases
from skyclass.run import pipeline
from skyclass.run.commits import FOOTER_KEY, committed, pq
from skyclass.run.config import RunConfig, run_config
from skyclass.run.finish import verify
from skyclass.run.folder import RunFolder, read_run
from skyclass.run.lease import hold_lease
from skyclass.settings import read_toml
from skyclass.sources.opening import open_sources
from skyclass.training.data.config import dataset_config, labels_config
from skyclass.training.fit.recipe import train_config
from tests.support.class_rows import make_run
from tests.support.command_line import skyclass

TEXT = 'catalog = "größe"\n'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_toml_in_another_encoding_is_told(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "run.toml").write_bytes(TEXT.encode(encoding))
    with pytest.raises(ConfigError, match=r"run.toml: (is not UTF-8 text .*save it as UTF-8|not valid TOML)"):
        read_toml(tmp_path / "run.toml")


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(TEXT.encode("utf-8-sig"))
    assert read_toml(tmp_path / "run.toml") == {"catalog": "größe"}


@pytest.mark.parametrize("content", [b"a = " + b"[" * 50_000, b"a = 1\x00", b"#" * 2_000_000, b"\xff" * 100])
def test_toml_that_is_none_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="run.toml: ") as refused:
        read_toml(tmp_path / "run.toml")
    assert "\n" not in str(refused.value)
    for path in (tmp_path, tmp_path / "nothing.toml", "nul\x00.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_toml(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"run_id": 5}, "run_id"),
        ({"run_id": ""}, "run_id"),
        ({"created": None}, "created"),
        ({"fingerprint": ["a"]}, "fingerprint"),
        ({"fingerprint": {"model": 1}}, "fingerprint"),
        ({"info": "text"}, "info"),
        ({"info": {"model": 3}}, "info.model"),
        ({"info": {"model": {"training": []}}}, "info.model"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 5, 150.0, 1.5),))
    values = json.loads(folder.run_path.read_text())
    (key,) = change
    absent = {k: v for k, v in values.items() if k != key}
    for damaged, name in ((values | change, field), (absent, key)):
        folder.run_path.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match=f"run.json is damaged .*{name}.*restore it from a copy"):
            read_run(folder)
    for content in (b"", b"\xff\xfe\x00", b"[" * 100_000, b"[1]", b'{"a":', b'"text"'):
        folder.run_path.write_bytes(content)
        with pytest.raises(StoreError, match="run.json"):
            read_run(folder)


EVENTS: list[Any] = [
    5,
    "text",
    {"event": "commit"},
    {"event": "commit", "file": ["a"]},
    {"event": "commit", "file": "tiles/1500p015_ac51.parquet", "nbytes": ...},
    {"event": "commit", "file": "tiles/1500p015_ac51.parquet", "nbytes": ..., "rows": "7", "sha256": 1},
    {"event": {"a": 1}, "file": None},
]


@pytest.mark.parametrize("event", EVENTS)
def test_a_damaged_journal_is_told_by_the_tiles(tmp_path: Path, event: Any) -> None:
    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 7, 150.0, 1.5),))
    before = committed(folder)
    if isinstance(event, dict) and "nbytes" in event:
        event = event | {"nbytes": before["1500p015_ac51"].nbytes}
    folder.journal_path.write_bytes(b"\xff\xfe{\n" + b"[" * 100_000 + b"\n" + json.dumps(event).encode() + b"\n{torn")
    assert committed(folder) == before and before["1500p015_ac51"].rows == 7


def test_a_tile_whose_footer_is_damaged_is_done_again(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 7, 150.0, 1.5),))
    folder.journal_path.unlink()
    path = folder.tile_path("1500p015_ac51")
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    table = pq.read_table(path)
    for damaged in ([1], footer | {"classes": 5}, footer | {"rows": -1}, {"rows": 7}, footer | {"coadd_id": None}):
        pq.write_table(table.replace_schema_metadata({FOOTER_KEY: json.dumps(damaged)}), path)
        assert committed(folder) == {}


@pytest.mark.integration
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[1]",
        b'{"pid": "x"}',
        b'{"pid": -1}',
        b'{"pid": 1e400}',
        b'{"host": 5, "pid": 1}',
    ],
)
def test_a_damaged_lease_is_passed_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(leases, "SILENT_S", 0.3)
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.leases.mkdir()
    (folder.leases / "000001.json").write_bytes(content)
    with hold_lease(folder) as lease:
        assert lease.epoch == 2


def test_a_holder_with_an_impossible_process_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SILENT_S", 0.3)
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.leases.mkdir()
    mine = {"host": leases.socket.gethostname(), "start": "1", **leases._process_table()}
    for i, pid in enumerate([10**30, 0, -5, True, "5", None, 2.5]):
        (folder.leases / f"{i + 10:06d}.json").write_text(json.dumps(mine | {"pid": pid}))
        (folder.leases / f"{i + 9:06d}.done").touch()
        assert leases._read(folder.leases / f"{i + 10:06d}.json") == {}


@pytest.mark.integration
def test_a_run_goes_on_with_a_damaged_journal(run: RunConfig) -> None:
    before = pipeline.classify(run)
    folder = RunFolder(Path(run.out))
    lines = folder.journal_path.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    folder.journal_path.write_text("\n".join(json.dumps(e | {"classes": None, "rows": "many"}) for e in events))
    again = pipeline.classify(run)
    assert again.tiles_resumed == again.tiles == before.tiles and again.class_counts == before.class_counts
    assert verify(folder.catalog).ok


AS_ANOTHER_USER = """
import os, sys
import duckdb, pandas
from skyclass.catalog import query
from skyclass.cli import main as cli
from skyclass.run import commits, finish, lease
duckdb.sql("select 1").df()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.argv = ["skyclass", *sys.argv[1:]]
cli.main()
"""
"""The interpreter itself may lie where only root reads: what is needed is imported before the user is changed."""


def skyclass_as_another_user(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AS_ANOTHER_USER, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="root reads every file; another user is tried, which only root can")
@pytest.mark.parametrize(
    ("verb", "name"),
    [("verify", "catalog/manifest.json"), ("query", "catalog"), ("query", "."), ("publish", "run.json"), ("gc", ".")],
)
def test_a_run_folder_that_may_not_be_read_is_named(tmp_path: Path, verb: str, name: str) -> None:
    from skyclass.run.finish import publish_run

    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 5, 150.0, 1.5),))
    publish_run(folder)
    for parent in [*tmp_path.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    (folder.path / name).chmod(0)
    done = skyclass_as_another_user(verb, folder.path)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("skyclass: ") == 1, done.stderr
    assert str(folder.path) in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources_per_tile": 0}, "sources per tile = 0: a tile of 256 px holds 1 to [0-9]+"),
        ({"sources_per_tile": -4}, "sources per tile = -4: a tile of 256 px holds"),
        ({"sources_per_tile": 10**30}, "sources per tile = 1000"),
        ({"seed": -4}, "seed = -4: choose 0 to"),
        ({"seed": 2**63}, "seed = 9223372036854775808: choose"),
        ({"n_tiles": 0}, "tiles = 0: choose 1 to 18,240"),
        ({"n_tiles": 10**9}, "tiles = 1000000000: choose"),
        ({"size_px": 0, "sources_per_tile": None}, "size = 0 px: choose"),
        ({"size_px": -(10**20), "seed": -1}, "seed = -1.*size = -1000"),
    ],
)
def test_wrong_numbers_of_a_simulated_sky_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    numbers = {"n_tiles": 1, "seed": 1, "sources_per_tile": 5, "size_px": 256} | change
    with pytest.raises(ConfigError, match=f"the simulated sky cannot be made: .*{words}"):
        write_mock(tmp_path / "sky", **numbers)
    assert not (tmp_path / "sky").exists()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("make", "key", "rest"),
    [
        (labels_config, "min_snr", {"out": "l.parquet"}),
        (labels_config, "timeout_s", {"out": "l.parquet"}),
        (dataset_config, "min_w1snr", {"out": "d", "labels": "l", "images": "i"}),
        (train_config, "learning_rate", {"recipe": "modern", "out": "m", "dataset": "d", "name": "m", "label": "l"}),
        (train_config, "weight_decay", {"recipe": "modern", "out": "m", "dataset": "d", "name": "m", "label": "l"}),
    ],
)
def test_numbers_that_no_setting_can_use_are_refused(
    tmp_path: Path, make: Callable[[dict[str, Any]], object], key: str, rest: dict[str, Any], value: str
) -> None:
    (tmp_path / "c.toml").write_text(f"{key} = {value}")
    with pytest.raises(ConfigError, match=f"{key} = .*expected .*number"):
        make(rest | read_toml(tmp_path / "c.toml"))


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb", "\ud800"])
@pytest.mark.parametrize("key", ["catalog", "images", "model", "out"])
def test_text_that_no_record_can_hold_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = 'a?.*must be UTF-8 text without NUL"):
        run_config({"catalog": "c", "images": "i", "out": "o"} | {key: text})


@pytest.mark.parametrize("location", ["~nobody-has-this-name/x", "file://~nobody-has-this-name"])
def test_an_unknown_user_in_a_path_is_told(location: str) -> None:
    with pytest.raises(ConfigError, match="no home folder for ~nobody-has-this-name"):
        user_path(location)
    with pytest.raises(ConfigError, match="no home folder"):
        open_sources(location)
    with pytest.raises(ConfigError, match="no home folder"):
        open_archive(location, ("w1",))
    assert user_path("~/x") == Path.home() / "x" and user_path("file:///a/b") == Path("/a/b")


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["verify", "query", "report"])
def test_a_name_that_is_too_long_is_wrong_input(tmp_path: Path, verb: str) -> None:
    path = tmp_path / ("x" * 300)
    done = skyclass(verb, path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"skyclass: File name too long: {path}")


def test_more_wrong_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed = -1: must be 0 or more"):
        dataset_config({"out": "d", "labels": "l", "images": "i", "seed": -1})
    for workers in (0, -4, 10**30):
        with pytest.raises(ConfigError, match=f"workers = {workers}: must be from 1 to 10000"):
            RunConfig(catalog="c", images="i", out="o", workers=workers)
    for size in ("0px", "-5px", "1e308", "-1e308deg", "9" * 5000 + "px", "nan", "-3arcsec", "1000000000px"):
        with pytest.raises(ConfigError, match=" pixels; choose 1 to|angle .* is not understood"):
            parse_size(size)
    for cone in ("nan,0,1", "1e400,0,1deg", f"{10**400},0,1", "0,91,1", "0,0,-1", "0,0,0", "0,0,nan", "0,0,1e300deg"):
        with pytest.raises(ConfigError, match="cone|angle"):
            parse_cone(cone)
