"""What terminals and shells are given: no control character of a name reaches them, and commands can be pasted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skyclass.errors import ArchiveDown, RunMismatch, TileFault
from skyclass.run.finish import publish_run
from skyclass.text import counted, named, one_or_many, printable, shell_command, table_text
from tests.support.class_rows import make_run
from tests.support.command_line import skyclass

EVIL = "a\x1b]0;title\x07\x1b[2J\nb\r\u202ec\u2028d\x9be\udcfff\u00a0"
ESCAPED = r"a\x1b]0;title\x07\x1b[2J\nb\r\u202ec\u2028d\u009be\xfff\u00a0"


def test_control_characters_become_escapes() -> None:
    assert printable(EVIL) == ESCAPED
    assert printable("Größe 5″ – αβγ 星 \\n") == "Größe 5″ – αβγ 星 \\n"
    assert printable(Path("/data/x\ty")) == "/data/x\\ty"
    assert all(printable(chr(c)).isprintable() for c in range(0x3000))


def test_words_fit_the_number_of_things() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert [one_or_many(n, "has", "have") for n in (0, 1, 2)] == ["have", "has", "have"]
    assert [named("column", names) for names in (["a"], ["a", "b"])] == ["column a", "columns a, b"]


@pytest.mark.parametrize(
    "word", ["plain", "two words", "it's", "$(rm -rf x)", "", "a\nb\tc", "\x1b[31m", "q'\\\n\x07é\u202e"]
)
def test_commands_can_be_pasted(word: str) -> None:
    command = shell_command([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", word, "end"])
    assert "\n" not in command and command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii([word, "end"])


def test_cells_and_column_names_of_tables_are_printable() -> None:
    frame = pd.DataFrame({"id": ["x\x1b[2J", None], "n\n": [1.5, np.nan], "lists": [["\x07"], 5]})
    text = table_text(frame)
    assert text.split("\n")[0].split() == ["id", "n\\n", "lists"] and len(text.split("\n")) == 3
    assert r"x\x1b[2J" in text and "\x1b" not in text and "\x07" not in text and "1.5" in text
    plain = pd.DataFrame({"a": ["x", None], "b": np.array([1.5, 2.25], np.float32), "c": [1, 2]})
    assert table_text(plain) == plain.to_string(index=False)
    assert table_text(frame[:0]) == "id  n\\n  lists"


def test_details_stand_below_a_message_and_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RunMismatch("differs:", ["a", "b"])))
    assert (error.message, error.details, str(error)) == ("differs:", ("a", "b"), "differs:\n  a\n  b")
    for one in (TileFault("t", "gone", "w1"), ArchiveDown("s3://x", "slow", 3)):
        again = pickle.loads(pickle.dumps(one))
        assert str(again) == str(one) == one.message and not one.details


@pytest.mark.integration
def test_no_name_reaches_the_terminal_raw(tmp_path: Path) -> None:
    folder, rows = make_run(tmp_path / "a\x1b[31m\nb", (("1500p015_ac51", 40, 150.0, 1.5),))
    publish_run(folder)
    catalog = folder.catalog
    listed = skyclass(
        "query", catalog, "--sql", 'SELECT source_id || chr(27) || chr(10) AS "i\x07d" FROM classes LIMIT 2'
    )
    assert listed.returncode == 0 and r"i\x07d" in listed.stdout and r"\x1b\n" in listed.stdout
    stray = catalog / "dataset" / "Norder=5" / "stray\x1b[2J\n.parquet"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"")
    verified = skyclass("verify", catalog)
    assert verified.returncode == 1 and r"stray\x1b[2J\n.parquet" in verified.stdout
    missing = skyclass("verify", tmp_path / "no\x1b[31m\nthing")
    assert missing.returncode == 2 and r"no\x1b[31m\nthing" in missing.stderr
    unknown = skyclass("verify", catalog, "--no\x1b[31m")
    assert unknown.returncode == 2
    for done in (listed, verified, missing, unknown):
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr
    for done in (missing,):
        assert done.stderr.count("\n") == 1


@pytest.mark.integration
def test_output_that_the_terminal_cannot_encode_is_escaped(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run", (("1500p015_ac51", 4, 150.0, 1.5),))
    publish_run(folder)
    import os

    done = subprocess.run(
        [sys.executable, "-m", "skyclass", "query", str(folder.path), "--sql", "SELECT 'é星' AS word"],
        capture_output=True, timeout=240, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0 and b"\xe9\\u661f" in done.stdout


@pytest.mark.integration
def test_warnings_are_printable(tmp_path: Path) -> None:
    code = (
        "import logging; from skyclass.cli.main import print_any_character; print_any_character();"
        "logging.getLogger('skyclass.run.plan').warning('%s is odd', 'x\\x1b[2J\\ny');"
        "import astropy, warnings;"
        "warnings.warn_explicit('card \\x1b[2J', UserWarning, 'card.py', 1, module='astropy.io.fits.card')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "x\\x1b[2J\\ny is odd\n"
