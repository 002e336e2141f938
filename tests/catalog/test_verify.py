"""Each way in which a publication can differ from its manifest is one line, and a good one has none."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from skyclass.catalog.manifest import read_manifest, write_manifest
from skyclass.catalog.verify import VerifyReport, quoted, repeated_ids, verify_publication
from skyclass.files import parquet_bytes
from tests.support.small_catalog import PIXEL, catalogue_table, small_catalog, with_column

SEVEN = catalogue_table(
    *({"_healpix_29": 7 * PIXEL + i, "source_id": f"s{i}", "class": "star", "flags": i % 2} for i in range(6))
)
NINE = catalogue_table({"_healpix_29": 9 * PIXEL, "source_id": "n", "class": "quasar"})
PATH = "dataset/Norder=5/Dir=0/Npix=7.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A publication of six rows in pixel 7, and of one in pixel 9."""
    return small_catalog(tmp_path, SEVEN, NINE).root


def forged(root: Path, data: bytes | pa.Table, **changes: Any) -> tuple[str, ...]:
    """Put other rows into the file of pixel 7, whose record gets the new digest, and return the problems."""
    data = data if isinstance(data, bytes) else parquet_bytes(data)
    (root / PATH).write_bytes(data)
    manifest = read_manifest(root)
    seven, nine = manifest.files
    seven = replace(seven, **{"sha256": sha256(data).hexdigest()} | changes)
    write_manifest(root, replace(manifest, files=(seven, nine)))
    return verify_publication(root).problems


def test_a_good_publication_has_no_problems(root: Path) -> None:
    report = verify_publication(root, 7)
    assert report.ok and report.problems == () and (report.files, report.rows) == (2, 7)
    assert str(report) == "7 rows in 2 files, as planned and as published: nothing lost, no key twice"
    assert verify_publication(root).ok


def test_a_report_has_a_heading_and_one_printable_line_for_each_problem() -> None:
    assert str(VerifyReport("c", 1, 1, ("a\nb",))) == "c has 1 problem:\na\\nb"
    assert str(VerifyReport("c", 2, 3, ("a", "b"))) == "c has 2 problems:\na\nb"
    report = VerifyReport("c", 1, 1, ("a",))
    assert not report.ok


def test_five_names_are_shown_in_quotes() -> None:
    assert quoted([f"s{i}" for i in range(6)]) == "'s0', 's1', 's2', 's3', 's4'"
    assert quoted(["it's"]) == '"it\'s"' and quoted([]) == ""


def test_totals_are_compared_with_the_plan_of_the_run_and_with_the_files(root: Path) -> None:
    assert verify_publication(root, 1008).problems == ("1,008 rows planned (run), 7 rows in the files",)
    manifest = read_manifest(root)

    def problems(**changes: Any) -> tuple[str, ...]:
        write_manifest(root, replace(manifest, **changes))
        return verify_publication(root, 7).problems

    total = "manifest total {} differs from the sum over its files"
    assert problems(rows_expected=8) == ("8 rows planned (manifest), 7 rows in the files",)
    assert problems(rows=8) == (total.format("rows"),)
    assert problems(n_flagged=2) == (total.format("n_flagged"),)
    assert problems(classes={"star": 7}) == (total.format("classes"),)


def test_missing_stray_and_changed_files_are_named(root: Path) -> None:
    (root / PATH).unlink()
    (root / "dataset/stray").write_text("")
    (root / "empty").mkdir()
    (root / "link").symlink_to("nowhere")
    digest = read_manifest(root).sidecars["README.txt"]
    (root / "README.txt").write_text("99 % pure")
    new = sha256(b"99 % pure").hexdigest()
    assert verify_publication(root).problems == (
        "dataset/stray: not in the manifest",
        "link: not in the manifest",
        f"README.txt: sha256 is {new[:12]}, published {digest[:12]}",
        f"{PATH}: missing",
    )


def test_rows_that_differ_from_their_record_are_told(root: Path) -> None:
    record = read_manifest(root).files[0]
    assert record.classes == {"galaxy": 0, "quasar": 0, "star": 6, "unclassified": 0} and record.n_flagged == 3
    wrong_classes = "class counts differ from the manifest"
    wrong_flags = "count of flagged rows differs from the manifest"
    wrong_range = "range of _healpix_29 differs from the manifest"
    five = f"{PATH}: 5 rows, published 6", f"{PATH}: {wrong_classes}"
    assert forged(root, SEVEN) == ()
    assert forged(root, SEVEN.slice(1)) == (*five, f"{PATH}: {wrong_range}")
    assert forged(root, SEVEN.slice(0, 5)) == (*five, f"{PATH}: {wrong_flags}", f"{PATH}: {wrong_range}")
    assert forged(root, SEVEN.take([1, 0, 2, 3, 4, 5])) == (f"{PATH}: not sorted by _healpix_29, source_id",)
    unflagged = with_column(SEVEN, "flags", pa.array([0] * 6, pa.int32()))
    assert forged(root, unflagged) == (f"{PATH}: {wrong_flags}",)
    moved = with_column(SEVEN, "_healpix_29", pa.array([7 * PIXEL + i for i in range(5)] + [8 * PIXEL]))
    assert forged(root, moved) == (f"{PATH}: rows outside pixel 7", f"{PATH}: {wrong_range}")
    nothing = {"galaxy": 0, "quasar": 0, "star": 0, "unclassified": 0}
    assert [
        text for text in forged(root, SEVEN.slice(0, 0), rows=0, n_flagged=0, classes=nothing) if PATH in text
    ] == []


def test_equal_pixels_are_sorted_by_their_id(root: Path) -> None:
    same = with_column(SEVEN, "_healpix_29", pa.array([7 * PIXEL + 5] * 6))
    assert forged(root, same, healpix_min=7 * PIXEL + 5) == ()
    assert forged(root, same.take([0, 2, 1, 3, 4, 5])) == (f"{PATH}: not sorted by _healpix_29, source_id",)


def test_files_that_are_no_rows_of_a_class_catalogue_are_told(root: Path) -> None:
    assert forged(root, SEVEN.drop_columns("ra")) == (f"{PATH}: schema is not that of the class catalogue",)
    (problem,) = forged(root, b"PAR1")
    assert problem.startswith(f"{PATH}: cannot be read: ")
    (root / PATH).write_bytes(b"other")
    bytes_problem, problem = verify_publication(root).problems
    assert re.match(f"{PATH}: sha256 is .*, published", bytes_problem) and "cannot be read" in problem


def test_ids_that_occur_twice_are_named_in_order_five_at_most(root: Path) -> None:
    manifest = read_manifest(root)
    again = catalogue_table(
        *({"_healpix_29": 9 * PIXEL + i, "source_id": f"s{5 - i}", "class": "quasar"} for i in range(6))
    )
    data = parquet_bytes(again)
    path = manifest.files[1].path
    (root / path).write_bytes(data)
    nine = replace(manifest.files[1], sha256=sha256(data).hexdigest(), rows=6, healpix_max=9 * PIXEL + 5)
    nine = replace(nine, classes=nine.classes | {"quasar": 6})
    new = replace(manifest, files=(manifest.files[0], nine), rows=12, rows_expected=12)
    write_manifest(root, replace(new, classes=manifest.classes | {"quasar": 6}))
    five = "'s0', 's1', 's2', 's3', 's4'"
    assert verify_publication(root).problems == (f"source_id is not unique: {five}",)
    assert repeated_ids(root, new.files) == ["s0", "s1", "s2", "s3", "s4"]
    assert repeated_ids(root, new.files[:1]) == [] and repeated_ids(root, []) == []
    (root / path).write_bytes(data[:-1])  # a damaged file is not searched for ids
    assert all("unique" not in text for text in verify_publication(root).problems)


def test_a_file_that_the_manifest_does_not_list_is_a_stray(root: Path) -> None:
    manifest = read_manifest(root)
    write_manifest(root, replace(manifest, files=manifest.files[1:]))
    assert verify_publication(root).problems == (
        "7 rows planned (manifest), 1 row in the files",
        *(f"manifest total {name} differs from the sum over its files" for name in ("rows", "classes", "n_flagged")),
        f"{PATH}: not in the manifest",
    )
