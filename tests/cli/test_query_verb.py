"""What `skyclass query` prints: rows, how many there are, and how many of them are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyclass.cli.main import cli
from tests.support.small_catalog import catalogue_table, small_catalog


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the lines that `skyclass query` prints."""
    assert cli.main(["query", *words], standalone_mode=False) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    sources = [{"source_id": f"s{i:02}", "ra": 10.0 + i / 100, "flags": int(i < 30)} for i in range(32)]
    return str(small_catalog(tmp_path_factory.mktemp("run"), catalogue_table(*sources)).root)


def test_rows_that_are_not_shown_are_counted_with_the_way_to_get_them(
    catalogue: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = "32 rows, the first 30 of them above; -o FILE writes all"
    for selection in (["--columns", "source_id"], ["--sql", "SELECT source_id FROM classes ORDER BY source_id"]):
        title, *rows, last = printed(capsys, catalogue, *selection)
        assert title.strip() == "source_id" and len(rows) == 30 and last == said
        file = tmp_path / f"{selection[0]}.csv"
        assert printed(capsys, catalogue, *selection, "-o", str(file)) == [f"32 rows written to {file}"]
        assert len(file.read_text().splitlines()) == 33


def test_an_answer_that_is_shown_whole_is_only_counted(catalogue: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [["--where", "flags = 1"], ["--sql", "SELECT * FROM classes WHERE flags = 1"]]
    assert [printed(capsys, catalogue, *words)[-1] for words in whole] == ["30 rows"] * 2
    assert printed(capsys, catalogue, "--sql", "SELECT count(*) AS n FROM classes")[-1] == "1 row"
