"""What the command line says where there is no class catalogue, and where a file is in the way."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from skyclass.catalog.query import open_catalog
from skyclass.cli.main import cli
from skyclass.cli.parameters import parse_cone
from skyclass.errors import ConfigError, NotPublished, SkyclassError
from skyclass.run.commits import commit_tile, journal_commit
from skyclass.run.config import RunConfig
from skyclass.run.finish import publish_run
from skyclass.run.folder import RunFolder, start_or_resume
from skyclass.run.next_step import classify_command
from skyclass.sky.moc import read_moc
from skyclass.sky.regions import Box, Cone, Pixels, Polygon, region_identity
from tests.support.class_rows import FINGERPRINT, MODEL, TILES, class_rows, make_run

TRIANGLE = Polygon(((0, 0), (2, 0), (1, 2)))
VERBS = ("verify", "query", "report")


def skyclass(*words: object) -> Any:
    """Run a verb in this process and return its exit code; errors come through."""
    return cli([str(word) for word in words], standalone_mode=False)


def message(*words: object) -> str:
    """Return the message of a refusal with exit code 2."""
    with pytest.raises(SkyclassError) as caught:
        skyclass(*words)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def unfinished(tmp_path: Path) -> RunFolder:
    """A run of two tiles, of which one is committed, in a folder whose name needs quotes."""
    folder = RunFolder(tmp_path / "my run")
    run = RunConfig(
        "sky/catalog", "sky images", "o", region=Cone(150.1, 2.2, "30arcmin"), cluster="none", strip_sources=99
    )
    info = {"config": run.to_dict(), "n_sources": 30, "n_tiles": 2, "model": MODEL}
    start_or_resume(folder, FINGERPRINT, info)
    journal_commit(folder, commit_tile(folder, TILES[0][0], class_rows(TILES[0][0], 20, 150, 1.5)))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_an_unfinished_run_names_the_command_that_finishes_it(unfinished: RunFolder, verb: str) -> None:
    command = (
        f"skyclass classify --catalog sky/catalog --images 'sky images' --out '{unfinished.path}' "
        "--cone 150.1,2.2,0.5deg --cluster none --strip-sources 99"
    )
    for path in (unfinished.path, unfinished.catalog):
        text = message(verb, path)
        assert text.endswith(f"an unfinished run: 20 of 30 sources are classified. To finish it: {command}"), text
    assert message(verb, unfinished.path).endswith(message("publish", unfinished.path))
    assert shlex.split(command)[5] == "sky images"
    journal_commit(unfinished, commit_tile(unfinished, TILES[1][0], class_rows(TILES[1][0], 10, 151.5, 1.5)))
    text = message(verb, unfinished.path)
    assert "all 30 sources are classified, and the class catalogue is not published" in text
    assert text.endswith(f"To finish it: skyclass publish '{unfinished.path}'")
    assert skyclass("publish", unfinished.path) == 0 and skyclass("verify", unfinished.path) == 0


@pytest.mark.parametrize(
    ("n_done", "said"), [(0, "0 of 1 source are classified"), (1, "the only source is classified")]
)
def test_a_run_of_one_source_is_told_in_the_singular(tmp_path: Path, n_done: int, said: str) -> None:
    folder = RunFolder(tmp_path / "run")
    config = RunConfig("c", "i", "o").to_dict()
    start_or_resume(folder, FINGERPRINT, {"config": config, "n_sources": 1, "n_tiles": 1})
    if n_done:
        journal_commit(folder, commit_tile(folder, TILES[0][0], class_rows(TILES[0][0], 1, 150, 1.5)))
    assert f"is an unfinished run: {said}" in message("verify", folder.path)


def test_commands_of_runs() -> None:
    run = RunConfig("c", "i", "o", model="m x", compile="off", retry_quarantined=True, strip_sources=5)
    assert classify_command(run) == (
        "skyclass classify --catalog c --images i --out o --model 'm x' --compile off --strip-sources 5 "
        "--retry-quarantined"
    )
    regions = {"--box 1.0,2.0,3.0,4.0": Box(1, 2, 3, 4), "--polygon 0.0,0.0,2.0,0.0,1.0,2.0": TRIANGLE}
    for option, region in regions.items():
        assert classify_command(RunConfig("c", "i", "o", region=region)).endswith(f" --out o {option}")
    pixels = RunConfig("c", "i", "o", region=Pixels(3, (5,)))
    assert classify_command(pixels) == "the command that started it; its settings are in o/run.json"


@pytest.mark.parametrize("radius", ["40arcmin", "1arcsec", "1rad", "0.25deg"])
def test_the_command_of_a_run_in_a_cone_resumes_the_same_run(radius: str) -> None:
    cone = Cone(150.1, -1 / 3, radius)
    words = shlex.split(classify_command(RunConfig("c", "i", "o", region=cone)))
    assert words[-2] == "--cone" and parse_cone(words[-1]) == cone
    assert region_identity(parse_cone(words[-1])) == region_identity(cone)
    if radius != "1rad":
        assert words[-1] == f"150.1,-0.3333333333333333,{radius}"


def test_a_run_whose_moc_file_has_vanished_still_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "field.moc").write_text("5/1-3")
    folder = RunFolder(tmp_path / "run")
    run = RunConfig("sky/catalog", "images", "o", region=read_moc(tmp_path / "field.moc"))
    start_or_resume(folder, FINGERPRINT, {"config": run.to_dict(), "n_sources": 30, "n_tiles": 2, "model": MODEL})
    assert message("verify", folder.path).endswith(f"--out {folder.path} --moc {tmp_path}/field.moc")
    (tmp_path / "field.moc").unlink()
    hint = f"To finish it: the command that started it; its settings are in {folder.run_path}"
    assert message("verify", folder.path).endswith(hint)


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_folder_and_an_input_catalogue_are_told(sky: Any, tmp_path: Path, verb: str) -> None:
    assert f"{tmp_path / 'nowhere'} does not exist" in message(verb, tmp_path / "nowhere")
    text = message(verb, sky.catalog)
    assert "is a catalogue of sources without classes" in text
    assert f"skyclass classify --catalog {sky.catalog} --images IMAGES --out OUT" in text
    table = tmp_path / "my table.csv"
    table.write_text("ra,dec\n1,2\n")
    assert f"--catalog '{table}' --images IMAGES" in message(verb, table)
    (tmp_path / "empty").mkdir()
    assert "no published class catalogue" in message(verb, tmp_path / "empty")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, pa.Table]:
    folder, rows = make_run(tmp_path_factory.mktemp("run"), TILES[3:])
    publish_run(folder)
    return folder, rows


@pytest.mark.parametrize("words", [(), ("--sql", "SELECT 1 AS one")], ids=["rows", "sql"])
def test_query_overwrites_on_request_only(
    published: tuple[RunFolder, pa.Table], tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "rows.csv"
    assert skyclass("query", published[0].path, *words, "-o", path) == 0
    first = path.read_bytes()
    path.write_text("precious")
    assert f"{path} exists: give another name, or --overwrite" in message(
        "query", published[0].path, *words, "-o", path
    )
    assert path.read_text() == "precious"
    assert skyclass("query", published[0].path, *words, "-o", path, "--overwrite") == 0 and path.read_bytes() == first


def test_cutouts_and_reports_overwrite_on_request_only(sky: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pa.table({"ra": [0.0], "dec": [80.0]})
    for name in ("c.npz", "report.html", "page.html"):
        Path(name).write_text("precious")
    table = tmp_path / "t.parquet"
    pa.parquet.write_table(rows, table)
    cutouts = ("cutouts", "--catalog", table, "--images", sky.images, "-o", "c.npz")
    assert re.search(r"^c.npz exists: .*--overwrite", message(*cutouts))
    assert "c.npz exists" not in message(*cutouts, "--overwrite"), "and then there is no tile for the position"
    folder, _ = make_run(tmp_path / "run", TILES[3:])
    publish_run(folder)
    assert "report.html exists" in message("report", folder.path)
    assert "page.html exists" in message("report", folder.path, "-o", "page.html")
    assert {Path(name).read_text() for name in ("c.npz", "report.html", "page.html")} == {"precious"}


def test_query_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    start_or_resume(folder, FINGERPRINT, {"n_sources": 2, "model": MODEL})
    rows = class_rows("1500p015_ac51", 2, 150, 1.5)
    ids = pa.array(["\x1b[2Jevil", "two\nlines"])
    commit_tile(folder, "1500p015_ac51", rows.set_column(1, rows.schema.field("source_id"), ids))
    publish_run(folder)
    assert skyclass("query", tmp_path, "--columns", "source_id") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and r"\x1b[2Jevil" in shown and r"two\nlines" in shown
    assert sorted(open_catalog(tmp_path).to_arrow()["source_id"].to_pylist()) == sorted(ids.to_pylist())


def test_a_class_that_does_not_exist_is_told_by_the_command_line(published: tuple[RunFolder, pa.Table]) -> None:
    for words in (("--where", "class = 'qso'"), ("--sql", "SELECT * FROM classes WHERE class = 'qso'")):
        assert "no source has class 'qso': the classes are galaxy, quasar, star" in message(
            "query", published[0].path, *words
        )


@pytest.mark.integration
def test_gc_removes_earlier_publications(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = make_run(tmp_path, TILES[3:])
    for _ in range(3):
        publish_run(folder)
    (folder.tmp / "half.parquet").write_bytes(b"half")
    assert skyclass("gc", tmp_path) == 0
    assert capsys.readouterr().out.startswith("1 leftover and 2 earlier publications removed, ")
    assert [path.name for path in (tmp_path / "catalogs").iterdir()] == ["000003"]
    assert skyclass("verify", tmp_path) == 0 and open_catalog(tmp_path).count() == len(rows)
    assert json.loads((folder.catalog / "manifest.json").read_text())["rows"] == len(rows)
    with pytest.raises(NotPublished):
        skyclass("gc", tmp_path / "catalogs")
    with pytest.raises(ConfigError):
        open_catalog(tmp_path).sql("SELECT 1; SELECT 2")


ODD_ANSWERS = [
    "SELECT date 'infinity' AS d, date '0044-03-15 (BC)' AS e",
    "SELECT ra, ra FROM classes LIMIT 1",
    "SELECT interval '1 day 2 hours' AS i, '101'::BIT AS b, uuid() AS u, 'a'::BLOB AS c",
    "SELECT {'a': 1, 'b': [1, 2]} AS s, map {'a': 1} AS m, NULL AS n, 170141183460469231731687303715884105727 AS h",
]


@pytest.mark.parametrize("sql", ODD_ANSWERS)
def test_answers_of_every_type_are_shown(published: tuple[RunFolder, pa.Table], sql: str) -> None:
    assert skyclass("query", published[0].path, "--sql", sql) == 0


@pytest.mark.integration
@pytest.mark.parametrize("recursion_limit", [sys.getrecursionlimit(), 20_000])
def test_the_depth_of_a_condition_is_limited_alike_in_every_process(
    published: tuple[RunFolder, pa.Table], recursion_limit: int
) -> None:
    """Some libraries raise the recursion limit of the process."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(recursion_limit)
    try:
        assert "nested too deeply" in message("query", published[0].path, "--where", "NOT " * 901 + "true")
        assert skyclass("query", published[0].path, "--where", "NOT " * 100 + "true") == 0
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sql", "SELECT union_value(a := 1) AS u"), "columns u have values of several types: CAST them to VARCHAR"),
        (("--sql", "SELECT 1 WHERE " + "NOT " * 900 + "true"), "nested too deeply"),
        (("--where", "NOT " * 900 + "true"), "nested too deeply"),
        (("--where", "class = '\udcff'"), "is no UTF-8 text"),
        (("--sql", "SELECT '\udcff'"), "is no UTF-8 text"),
        (("--where", ""), "'' is empty"),
        (("--sql", ""), "holds 0 statements"),
        (("--columns", ""), "unknown column"),
        (("--cone", ""), "write RA,DEC,RADIUS"),
    ],
    ids=["union", "deep sql", "deep where", "bytes in where", "bytes in sql", "where", "sql", "columns", "cone"],
)
def test_odd_questions_are_refused(
    published: tuple[RunFolder, pa.Table], words: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    assert expected in message("query", published[0].path, *words)
    assert expected in message("query", published[0].path, *words, "-o", tmp_path / "t.vot")
    assert not list(tmp_path.iterdir())
