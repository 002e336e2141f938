"""Partitions that cannot be read, names of tiles, identifiers and suffixes: found when a catalogue is planned with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from skyclass.cli.main import cli
from skyclass.errors import ArchiveError, CatalogError, Interrupted
from skyclass.run import pipeline
from skyclass.run.prepare import count_here, plan_run
from skyclass.schema import bad_bits, bad_value_counts
from skyclass.sky.healpix import healpix
from skyclass.sky.regions import Pixels
from skyclass.sources.assign import assign_tiles
from skyclass.sources.by_tile import count_tiles, sources_of_tile
from skyclass.sources.names import tile_name
from skyclass.sources.opening import open_sources
from skyclass.sources.source_table import read_all
from skyclass.sources.tables import standardise_table
from skyclass.types import NO_TILE, Flag, Tile
from tests.support.faults import Chaos
from tests.support.runs import rows_of, run_on

NOBODY = 65534
UNFINISHED = [
    "part0.snappy.parquet.A1b2C3d4", ".part0.snappy.parquet.A1b2C3", "part0.snappy.parquet.tmp", "part0.parquet.part",
    "part0.snappy.parquet.crdownload", "_part0.parquet", ".part0.parquet", "part0.parquet.aria2", "part0.filepart",
]  # fmt: skip
SIDECARS = [
    "_metadata", "_common_metadata", "_SUCCESS", "_started_123", "_committed_123", "part0.snappy.parquet.md5",
    ".part0.snappy.parquet.crc", "README.md", "readme", ".DS_Store", "._part0.snappy.parquet", ".nfs000012ab",
    "md5sums.txt", "thumbnail.png", "data_thumbnail.parquet",
]  # fmt: skip


def sources(n: int = 400, seed: int = 3) -> pa.Table:
    """Return simulated sources on both sides of RA 0, on two tiles."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(-5, 5, n) % 360, rng.uniform(-5, 5, n)
    names = np.where(ra > 180, "3585p000_ac51", "0015p000_ac51")
    ids = [f"{name}-{i:06d}" for i, name in enumerate(names)]
    return pa.table({"source_id": ids, "ra": ra, "dec": dec, "coadd_id": pa.array(names), "cntr": np.arange(n)})


def with_names(table: pa.Table, names: Any) -> pa.Table:
    return table.set_column(table.column_names.index("coadd_id"), "coadd_id", pa.array(names))


def hive(root: Path, table: pa.Table) -> Path:
    pixels = healpix(5, table["ra"].to_numpy(), table["dec"].to_numpy())
    for pixel in np.unique(pixels):
        folder = root / f"healpix_k0={pixel // 1024}" / f"healpix_k5={pixel}"
        folder.mkdir(parents=True)
        pq.write_table(table.filter(pa.array(pixels == pixel)), folder / "part0.snappy.parquet")
    return root


def hats(root: Path, table: pa.Table, suffix: str = ".parquet", told: str = "", listed: bool = True) -> Path:
    """Write a HATS catalogue of order 2; with the suffix "/" each pixel is a folder."""
    pixels = healpix(2, table["ra"].to_numpy(), table["dec"].to_numpy())
    for pixel in np.unique(pixels):
        base = root / "dataset" / "Norder=2" / "Dir=0"
        path = base / f"Npix={pixel}" / "part0.parquet" if suffix == "/" else base / f"Npix={pixel}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(pixels == pixel)), path)
    (root / "hats.properties").write_text(f"dataproduct_type=object\n{told}")
    if listed:
        rows = "".join(f"2,{pixel}\n" for pixel in np.unique(pixels))
        (root / "partition_info.csv").write_text("Norder,Npix\n" + rows)
    return root


def ids_in(root: Path) -> list[str]:
    return sorted(read_all(open_sources(str(root)))["source_id"].to_pylist())


def leaf_of(root: Path) -> Path:
    return sorted(root.rglob("part0.snappy.parquet"))[0].parent


def refusal(root: Path, region: Any = None) -> str:
    with pytest.raises(CatalogError) as caught:
        open_sources(str(root), region)
    return str(caught.value)


# --- what should hold rows and cannot be read -------------------------------------------------------


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_download_is_named(tmp_path: Path, name: str) -> None:
    leaf = leaf_of(hive(tmp_path / "c", sources()))
    (leaf / "part0.snappy.parquet").rename(leaf / name)
    message = refusal(tmp_path / "c")
    assert f"1 entry that should hold rows cannot be read: {leaf / name} is an unfinished download" in message


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_download_beside_a_whole_file_is_named(tmp_path: Path, name: str) -> None:
    leaf = leaf_of(hive(tmp_path / "c", sources()))
    (leaf / name).write_bytes(b"PAR1")
    assert f"{leaf / name} is an unfinished download or write; finish or repeat it" in refusal(tmp_path / "c")


def test_sidecars_are_no_partitions(tmp_path: Path) -> None:
    table = sources()
    roots = [hive(tmp_path / "hive", table), hats(tmp_path / "hats", table, "/")]
    for root in roots:
        for folder in {root, *(path.parent for path in root.rglob("part0*.parquet"))}:
            for name in SIDECARS:
                (folder / name).write_bytes(b"no rows")
        (root / "images").mkdir()
        (root / "skymap.fits").write_bytes(b"")
        assert ids_in(root) == sorted(table["source_id"].to_pylist())


def empty(leaf: Path) -> Path:
    (leaf / "part0.snappy.parquet").unlink()
    return leaf


def nested(leaf: Path) -> Path:
    (leaf / "inner").mkdir()
    (leaf / "part0.snappy.parquet").rename(leaf / "inner" / "part0.snappy.parquet")
    return leaf / "inner"


def spark_leftover(leaf: Path) -> Path:
    (leaf / "_temporary" / "0").mkdir(parents=True)
    return leaf / "_temporary"


def broken_link(leaf: Path) -> Path:
    path = leaf / "part0.snappy.parquet"
    path.unlink()
    path.symlink_to(leaf / "gone.parquet")
    return path


def fifo(leaf: Path) -> Path:
    path = leaf / "part0.snappy.parquet"
    path.unlink()
    os.mkfifo(path)
    return path


def other_format(leaf: Path) -> Path:
    (leaf / "part0.csv").write_text("source_id,ra,dec\na,1,2\n")
    return leaf / "part0.csv"


def temporary_root(leaf: Path) -> Path:
    path = leaf.parents[1] / "_temporary"
    path.mkdir()
    return path


def half_named(leaf: Path) -> Path:
    return leaf.rename(leaf.with_name(leaf.name + ".tmp"))


def stray_file(leaf: Path) -> Path:
    return Path(leaf / "part0.snappy.parquet").rename(leaf.parents[1] / "part0.snappy.parquet")


def wrong_k0(leaf: Path) -> Path:
    target = leaf.parents[1] / "healpix_k0=11" / leaf.name
    target.parent.mkdir(exist_ok=True)
    return leaf.rename(target)


SPOILERS: dict[Callable[[Path], Path], str] = {
    empty: "holds no .parquet file; fetch this partition again",
    nested: "is a folder where partitions have none",
    spark_leftover: "is an unfinished download or write",
    broken_link: "which is not there; fetch that, or remove the link",
    fifo: "is no regular file",
    other_format: "is neither a partition nor a known file",
    temporary_root: "is an unfinished download or write",
    half_named: "is an unfinished download or write",
    stray_file: "is not where the partitions of this layout are",
    wrong_k0: "belongs in healpix_k0=",
}


@pytest.mark.fault(18)
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
def test_entries_of_the_layout_that_cannot_be_read_are_named(tmp_path: Path, spoil: Callable[[Path], Path]) -> None:
    path = spoil(leaf_of(hive(tmp_path / "c", sources())))
    message = refusal(tmp_path / "c")
    assert str(path) in message and SPOILERS[spoil] in message


@pytest.mark.fault(18)
def test_a_torn_or_empty_file_is_an_error_of_counting(tmp_path: Path) -> None:
    root = hive(tmp_path / "c", sources())
    catalog = open_sources(str(root))
    for i, content in ((1, b""), (2, b"PAR1 and then nothing"), (3, None)):
        path = Path(catalog.partitions[i].path)
        path.write_bytes(path.read_bytes()[:-100] if content is None else content)
        with pytest.raises(CatalogError, match=f"{path}: cannot be read as Parquet .*; fetch it again"):
            count_tiles(catalog, i)
    Path(catalog.partitions[0].path).unlink()
    with pytest.raises(CatalogError, match="it was there when the catalogue was listed"):
        catalog.read(0)


@pytest.mark.fault(18)
def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    table = sources()
    leaf = leaf_of(hive(tmp_path / "c", table))
    leaf.rename(tmp_path / "elsewhere")
    leaf.symlink_to(tmp_path / "elsewhere")
    assert ids_in(tmp_path / "c") == sorted(table["source_id"].to_pylist())


def test_what_is_unfinished_elsewhere_does_not_stop_a_region(tmp_path: Path) -> None:
    root = hive(tmp_path / "c", sources())
    first, *others = sorted({int(path.parent.name.split("=")[1]) for path in root.rglob("part0.snappy.parquet")})
    leaf = next(root.rglob(f"healpix_k5={first}"))
    (leaf / "part0.snappy.parquet.A1b2C3d4").write_bytes(b"")
    assert [p.pixel for p in open_sources(str(root), Pixels(5, (others[-1],))).partitions] == [others[-1]]
    assert "A1b2C3d4" in refusal(root, Pixels(5, (first,)))


def test_many_faults_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    root = hive(tmp_path / "c", sources())
    leaves = sorted(path.parent for path in root.rglob("part0.snappy.parquet"))
    for leaf in leaves:
        (leaf / "part0.snappy.parquet").unlink()
    message = refusal(root)
    assert f"{len(leaves)} entries that should hold rows" in message and f"and {len(leaves) - 5} more" in message


def as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a user without rights on the files of the tests."""
    drop = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    ready = f"import sys; sys.path[:] = {sys.path!r}\nfrom skyclass.sources import by_tile, opening\n"
    command = [sys.executable, "-c", ready]
    command[-1] += (drop if os.geteuid() == 0 else "") + code
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


OPEN_AND_COUNT = """
from skyclass.errors import CatalogError
from skyclass.sources.opening import open_sources
from skyclass.sources.by_tile import count_tiles
try:
    catalog = open_sources(sys.argv[1])
    print(sum(sum(count_tiles(catalog, i)["n"].to_pylist()) for i in range(len(catalog.partitions))))
except CatalogError as error:
    print("refused:", error)
"""


@pytest.mark.integration
@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("kind", "mode", "words"),
    [
        ("leaf", 0o000, "cannot be listed (Permission denied); give yourself permission"),
        ("leaf", 0o644, "Permission denied"),
        ("k0", 0o000, "cannot be listed (Permission denied)"),
        ("file", 0o000, "give yourself permission to read it"),
        ("root", 0o000, "cannot be listed (Permission denied)"),
        ("root", 0o644, "cannot be entered"),
        ("none", 0o755, "400"),
    ],
)
def test_what_may_not_be_read_is_named(kind: str, mode: int, words: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        root = hive(Path(folder) / "c", sources())
        leaf = leaf_of(root)
        path = {"leaf": leaf, "k0": leaf.parent, "file": leaf / "part0.snappy.parquet"}.get(kind, root)
        path.chmod(mode)
        try:
            done = as_nobody(OPEN_AND_COUNT, str(root))
        finally:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout and (kind == "none" or str(path) in done.stdout), done.stdout


# --- HATS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("suffix", [".parquet", ".parq", ".pq", ".snappy.parquet", "/"])
def test_the_suffix_of_a_hats_catalogue_is_honoured(tmp_path: Path, suffix: str, listed: bool) -> None:
    table = sources()
    root = hats(tmp_path / "c", table, suffix, f"hats_npix_suffix={suffix}\n", listed)
    assert ids_in(root) == sorted(table["source_id"].to_pylist())
    assert {part.order for part in open_sources(str(root)).partitions} == {2}


@pytest.mark.parametrize("listed", [True, False])
def test_another_suffix_than_the_told_one_is_named(tmp_path: Path, listed: bool) -> None:
    root = hats(tmp_path / "c", sources(), ".parq", listed=listed)
    assert "does not end in '.parquet', the hats_npix_suffix of this catalogue" in refusal(root)


@pytest.mark.fault(18)
def test_a_list_of_partitions_that_is_not_that_of_the_folder_is_told(tmp_path: Path) -> None:
    root = hats(tmp_path / "c", sources())
    info = root / "partition_info.csv"
    whole = info.read_text()
    *lines, last = whole.splitlines()
    info.write_text("\n".join(lines) + "\n")
    pixel = last.split(",")[1]
    assert f"Npix={pixel}.parquet is not named by {info}" in refusal(root)
    info.write_text(whole + f"{last}\n")
    assert f"{info} names Norder=2, Npix={pixel} twice; fetch it again" in refusal(root)
    info.write_text(whole)
    file = next(root.rglob(f"Npix={pixel}.parquet"))
    file.rename(file.with_name(file.name + ".A1b2C3d4"))
    assert f"{file}.A1b2C3d4 is an unfinished download" in refusal(root)
    file.with_name(file.name + ".A1b2C3d4").unlink()
    assert f"{file} is missing, though partition_info.csv names it; fetch it again" in refusal(root)
    other = int(lines[1].split(",")[1])
    assert open_sources(str(root), Pixels(2, (other,))).partitions[0].pixel == other


@pytest.mark.fault(18)
def test_a_pixel_that_is_there_twice_is_told(tmp_path: Path) -> None:
    root = hats(tmp_path / "c", sources(), listed=False)
    file = next(root.rglob("Npix=*.parquet"))
    folder = file.with_suffix("")
    folder.mkdir()
    (folder / "part0.parquet").write_bytes(file.read_bytes())
    assert f"holds the pixel of {folder}; keep one of them" in refusal(root)
    (folder / "part0.parquet").unlink()
    assert f"{folder} holds no " in refusal(root)
    folder.rmdir()
    pixel = int(file.stem.split("=")[1])
    finer = root / "dataset" / "Norder=3" / "Dir=0" / f"Npix={4 * pixel + 1}.parquet"
    finer.parent.mkdir(parents=True)
    finer.write_bytes(file.read_bytes())
    assert f"{finer} lies inside of {file}" in refusal(root)


# --- identifiers -----------------------------------------------------------------------------------


def one_partition(tmp_path: Path, table: pa.Table) -> Path:
    folder = tmp_path / "healpix_k0=0" / "healpix_k5=1"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part0.parquet")
    return tmp_path


@pytest.mark.fault(18)
def test_a_source_id_that_is_missing_or_repeated_is_told_when_counting(tmp_path: Path) -> None:
    table = sources(50)
    names = table["source_id"].to_pylist()
    for case, values, words in (
        ("null", [None, *names[1:]], f"source_id is empty in 1 of 50 rows, the first at ra {table['ra'][0]}"),
        ("blank", [*names[:7], "  ", *names[8:]], f"empty in 1 of 50 rows, the first at ra {table['ra'][7]}"),
        ("twice", [*names[:-1], names[0]], f"1 source_id occurs in more than one row, such as {names[0]} in 2 rows"),
    ):
        root = one_partition(tmp_path / case, table.set_column(0, "source_id", pa.array(values)))
        with pytest.raises(CatalogError) as caught:
            count_tiles(open_sources(str(root)), 0)
        assert "part0.parquet: " in str(caught.value) and words in str(caught.value), case


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", ["source_id", "cntr"])
def test_identifiers_that_passed_through_floats_are_refused_when_counting(tmp_path: Path, name: str) -> None:
    table = sources(3)
    column = pa.array([3.331005401351e18, 1e18, 2.0**53 + 2], pa.float64())
    root = one_partition(tmp_path, table.set_column(table.column_names.index(name), name, column))
    with pytest.raises(CatalogError, match=f"part0.parquet: column {name} is double with values such as .*int64"):
        count_tiles(open_sources(str(root)), 0)


@pytest.mark.parametrize(("unit", "factor"), [("rad", np.pi / 180), ("hourangle", 1 / 15), ("degrees", 1.0)])
def test_units_in_the_metadata_of_fields_are_honoured(tmp_path: Path, unit: str, factor: float) -> None:
    table = sources(30)
    plain = open_sources(str(one_partition(tmp_path / "plain", table))).read(0)
    for name in ("ra", "dec"):
        field = pa.field(name, pa.float64(), metadata={"unit": unit})
        table = table.set_column(table.column_names.index(name), field, pc.multiply(table[name], factor))
    read = open_sources(str(one_partition(tmp_path / "units", table))).read(0)
    for name in ("ra", "dec"):
        np.testing.assert_allclose(read[name].to_numpy(), plain[name].to_numpy(), rtol=0, atol=1e-12)


# --- names of tiles --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0098p408_ac51", "0098p408_ac51"), ("0098P408_AC51", "0098p408_ac51"), ("Field.A-1", "Field.A-1"),
        ("none", None), ("None", None), ("NaN", None), ("", None), ("--", None), ("<NA>", None), ("null", None),
        ("a/b", ""), ("../x", ""), ("a b", ""), (".hidden", ""), ("é", ""), ("x" * 300, ""), ("x" * 100, "x" * 100),
        ("a\nb", ""), ("no tile", ""),
    ],
)  # fmt: skip
def test_how_names_of_tiles_are_read(text: str, name: str | None) -> None:
    assert tile_name(text) == name


ODD = ["0015p000_ac51  ", "\t0015P000_AC51", "0015p000_ac51\0", None, "none", " ", "a/b", "x" * 300, "tile é", "other"]
READ_AS = ["0015p000_ac51"] * 3 + [None] * 6 + ["other"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_one_reading_of_names_in_planning_in_reading_and_in_tables(tmp_path: Path, kind: pa.DataType) -> None:
    table = sources(len(ODD))
    table = with_names(table, ODD).set_column(3, "coadd_id", pa.array(ODD, pa.string()).cast(kind))
    pq.write_table(table, tmp_path / "t.parquet")
    own = standardise_table(str(tmp_path / "t.parquet"))
    catalog = open_sources(str(one_partition(tmp_path / "c", table)))
    rows = catalog.read(0)
    assert rows["coadd_id"].to_pylist() == own["coadd_id"].to_pylist() == READ_AS
    assert bad_value_counts(bad_bits(rows)) == bad_value_counts(bad_bits(own)) == {"coadd_id": 3}
    counts = {row["coadd_id"]: row["n"] for row in count_tiles(catalog, 0).to_pylist()}
    assert counts == {"0015p000_ac51": 3, "other": 1, None: 6}
    for name, n in counts.items():
        assert len(sources_of_tile(catalog, 0, name or NO_TILE)) == n


def atlas_tile(name: str, ra: float, dec: float) -> Tile:
    scale = 0.0003819444391411
    return Tile(name, ("w1",), (4095, 4095), (ra, dec), (2048.0, 2048.0), (-scale, scale), (20.5,))


def test_sources_without_a_name_get_their_tile_in_planning_and_in_reading(tmp_path: Path) -> None:
    table = sources(3000)
    names = np.where(np.arange(3000) % 3 == 0, "named", None)
    names[:30] = "a/b"
    tiles = (atlas_tile("west", 359.3, 0.0), atlas_tile("east", 0.7, 0.0))
    catalog = open_sources(str(one_partition(tmp_path, with_names(table, pa.array(names, pa.string())))))
    counts = {row["coadd_id"]: row["n"] for row in count_tiles(catalog, 0, tiles=lambda: tiles).to_pylist()}
    assigned = assign_tiles(catalog.read(0), tiles)
    assert set(counts) == {"named", "west", "east", None} and min(counts.values()) > 30
    for name, n in counts.items():
        rows = sources_of_tile(catalog, 0, name or NO_TILE, tiles=lambda: tiles)
        same = assigned["coadd_id"].is_null() if name is None else pc.equal(assigned["coadd_id"], name)
        assert rows == assigned.filter(same) and len(rows) == n
    impossible = assigned.filter(pa.array(bad_bits(assigned) != 0))
    assert len(impossible) == 30 and impossible["coadd_id"].null_count == 30


def test_an_image_whose_name_cannot_be_a_tile_is_told() -> None:
    table = read_nameless()
    with pytest.raises(ArchiveError, match="COADDID 'my tile' cannot name a tile"):
        assign_tiles(table, [atlas_tile("my tile", 0.0, 0.0)])
    assert assign_tiles(table, [atlas_tile("my tile", 90.0, 0.0)])["coadd_id"].null_count == len(table)


def read_nameless() -> pa.Table:
    table = sources(20).drop_columns(["coadd_id", "cntr"])
    return table.append_column("coadd_id", pa.nulls(20, pa.string()))


# --- whole runs ------------------------------------------------------------------------------------


def rewritten(sky: Any, root: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Return the catalogue of a simulated sky as HATS, its rows changed."""
    table = pq.read_table(sky.catalog, partitioning=None).drop_columns(["w4mpro"])
    return hats(root, change(table.sort_by("source_id")))


def comparable(rows: pa.Table) -> pa.Table:
    return rows.sort_by("source_id").drop(["run_id", "flags"])


@pytest.fixture(scope="module")
def undisturbed(sky, bundle, tmp_path_factory) -> pa.Table:
    """The rows of the simulated sky as it is."""
    run = run_on(sky, bundle, tmp_path_factory.mktemp("plain") / "out", 128)
    pipeline.classify(run)
    return rows_of(run)


@pytest.fixture(scope="module")
def plain_rows(undisturbed: pa.Table) -> pa.Table:
    return comparable(undisturbed)


@pytest.mark.integration
@pytest.mark.fault(18)
def test_an_unfinished_partition_stops_a_run_until_it_is_whole(
    run, sky, undisturbed, chaos: Chaos, tmp_path: Path, monkeypatch
) -> None:
    """Before the run and between two calls of it: no row is published without those of the partition."""
    this = replace(run, catalog=str(shutil.copytree(sky.catalog, tmp_path / "c")))
    whole = sorted((tmp_path / "c").rglob("part0.snappy.parquet"))[0]
    torn = whole.with_name(whole.name + ".A1b2C3d4")
    whole.rename(torn)
    with pytest.raises(CatalogError, match=f"{torn} is an unfinished download"):
        pipeline.classify(this)
    assert not Path(this.out).exists()
    torn.rename(whole)
    commit = pipeline.commit_strips

    def stop_after_one(context: Any, tile: Any, results: Any) -> Any:
        if list((Path(this.out) / "tiles").glob("*.parquet")):
            raise Interrupted("stopped by the test")
        return commit(context, tile, results)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "commit_strips", stop_after_one)
        with pytest.raises(Interrupted):
            pipeline.classify(this)
    whole.rename(torn)
    with pytest.raises(CatalogError, match=f"{torn} is an unfinished download"):
        pipeline.classify(this)
    assert not (Path(this.out) / "catalog").exists()
    torn.rename(whole)
    assert pipeline.classify(this).tiles_resumed == 1
    chaos.injected(2)
    chaos.same_rows(rows_of(this), undisturbed)


def without_names(table: pa.Table) -> pa.Table:
    return table.drop_columns(["coadd_id"])


def half_without_names(table: pa.Table) -> pa.Table:
    odd = pa.array(np.arange(len(table)) % 2 == 1)
    return with_names(table, pc.if_else(odd, pa.scalar(None, pa.string()), table["coadd_id"]).combine_chunks())


def padded(table: pa.Table) -> pa.Table:
    return with_names(table, [f" {name.upper()}  " for name in table["coadd_id"].to_pylist()])


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [half_without_names, *(pytest.param(change, marks=pytest.mark.slow) for change in (without_names, padded))],
    ids=lambda f: f.__name__,
)
def test_a_hats_catalogue_gives_the_rows_that_a_table_gives(run, sky, plain_rows, tmp_path: Path, change) -> None:
    root = rewritten(sky, tmp_path / "c", change)
    found = {}
    for name, catalog in (("hats", root), ("table", tmp_path / "t.parquet")):
        if name == "table":
            pq.write_table(
                pa.concat_tables([pq.read_table(p, partitioning=None) for p in root.rglob("Npix=*")]), catalog
            )
        this = replace(run, catalog=str(catalog), out=str(tmp_path / name))
        report = pipeline.classify(this)
        found[name] = rows_of(this)
        assert (report.sources_in, report.without_tile, report.bad_values) == (len(plain_rows), 0, {})
    assert comparable(found["hats"]).equals(comparable(found["table"]))
    # Tiles overlap: some sources of the simulated sky are nearer to the middle of the neighbour's image.
    same = pc.equal(comparable(found["hats"])["coadd_id"], plain_rows["coadd_id"])
    assert pc.mean(same.cast(pa.float64())).as_py() > 0.9
    assert comparable(found["hats"]).filter(same).equals(plain_rows.filter(same))


@pytest.mark.integration
def test_impossible_names_finish_a_run_flagged_and_counted(run, sky, plain_rows, tmp_path: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        names = table["coadd_id"].to_pylist()
        names[0], names[1], names[2], names[3] = "a/b", "x" * 300, "none", "no tile"
        return with_names(table, names)

    this = replace(run, catalog=str(rewritten(sky, tmp_path / "c", spoil)))
    report = pipeline.classify(this)
    assert (report.bad_values, report.without_tile) == ({"coadd_id": 3}, 3)
    rows = rows_of(this).sort_by("source_id")
    bad = Flag.BAD_VALUE | Flag.OFF_TILE | Flag.TILE_MISSING | Flag.NO_IMAGE
    flags = rows["flags"].to_pylist()
    assert [flags[i] for i in (0, 1, 3)] == [int(bad)] * 3 and not flags[2] & int(Flag.BAD_VALUE)
    assert rows["coadd_id"].is_null().to_pylist()[:4] == [True, True, False, True]
    assert rows["class"][2].is_valid and rows.slice(0, 2)["class"].null_count == 2
    assert comparable(rows).slice(4).equals(plain_rows.slice(4))


@pytest.mark.integration
def test_plan_and_classify_count_sources_without_a_tile_alike(run, sky, tmp_path: Path) -> None:
    def move(table: pa.Table) -> pa.Table:
        far = np.arange(len(table)) < 5
        table = with_names(table, pc.if_else(pa.array(far), pa.scalar(None, pa.string()), table["coadd_id"]))
        return table.set_column(
            table.column_names.index("dec"), "dec", pa.array(np.where(far, 80.0, table["dec"].to_numpy()))
        )

    catalog = rewritten(sky, tmp_path / "c", move)
    options = ["--catalog", str(catalog), "--images", run.images, "--model", run.model, "--device", "cpu"]
    planned = CliRunner().invoke(cli, ["plan", *options])
    done = CliRunner().invoke(cli, ["classify", *options, "--out", run.out, "--cluster", "none"])
    assert (planned.exit_code, done.exit_code) == (0, 0), planned.output + done.output
    words = "sources without a tile: 5;"
    n_tiles = len(sky.coadd_ids)
    assert words in planned.output and f"on {n_tiles} tiles, " in planned.output
    assert words in done.output and f"\n{n_tiles} tiles (0 from" in done.output


@pytest.mark.integration
@pytest.mark.fault(18)
def test_a_copy_of_a_partition_is_told(run, sky, tmp_path: Path) -> None:
    root = shutil.copytree(sky.catalog, tmp_path / "c")
    file = sorted(root.rglob("part0.snappy.parquet"))[0]
    copy = shutil.copy(file, file.with_name("part0.snappy (1).parquet"))
    with pytest.raises(CatalogError, match="is a copy of .*: remove one of them") as caught:
        plan_run(replace(run, catalog=str(root)), count_here)
    assert str(file) in str(caught.value) and str(copy) in str(caught.value)


def test_a_tile_that_is_called_none_is_a_tile() -> None:
    table = read_nameless()
    tiles = [atlas_tile("none", 0.0, 0.0)]
    names = assign_tiles(table, tiles)["coadd_id"]
    assert 0 < names.null_count < len(table) and set(names.drop_null().to_pylist()) == {"none"} != {NO_TILE}


def test_a_run_over_an_unfinished_catalogue_writes_nothing(run, sky, tmp_path: Path) -> None:
    root = rewritten(sky, tmp_path / "c", lambda table: table)
    file = sorted(root.rglob("Npix=*.parquet"))[0]
    file.rename(file.with_name(file.name + ".A1b2C3d4"))
    command = ["classify", "--catalog", str(root), "--images", run.images, "--out", run.out, "--cluster", "none"]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, CatalogError) and "A1b2C3d4" in str(done.exception)
    assert done.exception.exit_code == 2 and not Path(run.out).exists()
