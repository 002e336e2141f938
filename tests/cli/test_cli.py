"""The command line as a user meets it: exit codes, one clear message for bad input, nothing half-written."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.catalog.query import open_catalog
from skyclass.cli.main import cli
from skyclass.errors import ConfigError
from skyclass.types import Flag
from tests.support.command_line import skyclass
from tests.support.paths import SHARED, TESTS

ATLAS = SHARED / "data" / "atlas_cutouts"
LOOKALIKES = SHARED / "data" / "lookalikes"


def classify(sky, bundle, out, *words, **options) -> subprocess.CompletedProcess:
    """Classify the small sky without Dask, which starts faster; `words` override."""
    base = ["--catalog", sky.catalog, "--images", sky.images, "--model", bundle, "--out", out, "--cluster", "none"]
    return skyclass("classify", *base, "--precision", "fp32", "--device", "cpu", *words, **options)


def refused(done: subprocess.CompletedProcess, out: Path, *words: str, code: int = 2) -> None:
    """One message on standard error with these words, the code, no traceback, and nothing written."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("skyclass: ") == 1
    for word in words:
        assert word in done.stderr, done.stderr
    assert not out.exists()


def write_csv(path: Path, **columns) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.mark.integration
def test_classify_verify_and_query_from_the_command_line(sky, bundle, tmp_path):
    out = tmp_path / "classes"
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'catalog = "{sky.catalog}"\nimages = "{sky.images}"\nmodel = "nonsense"\nout = "{out}"\n'
        'cluster = "none"\nprecision = "fp32"\n'
    )
    done = skyclass("classify", toml, "--model", bundle)  # the flag overrides the file
    assert done.returncode == 0, done.stderr
    assert f"{sky.n_sources:,} sources in = {sky.n_sources:,} classified" in done.stdout
    assert "SIMULATED" in done.stdout and '"sources_per_s"' in done.stderr
    verified = skyclass("verify", out / "catalog")
    assert verified.returncode == 0 and f"{sky.n_sources:,} rows" in verified.stdout
    csv = tmp_path / "stars.csv"
    asked = skyclass(
        "query", out / "catalog", "--where", "p_star >= 0 AND w1snr > 20", "--columns", "source_id,w1snr", "-o", csv
    )
    assert asked.returncode == 0, asked.stderr
    rows = pd.read_csv(csv)
    assert len(rows) and (rows["w1snr"] > 20).all() and list(rows) == ["source_id", "w1snr"]
    nothing = skyclass("query", out / "catalog", "--where", "p_star > 2", "--columns", "source_id,w1snr")
    assert nothing.stdout == "source_id  w1snr\n0 rows\n"
    counted = skyclass("query", out / "catalog", "--sql", "SELECT count(*) AS n FROM classes")
    assert str(sky.n_sources) in counted.stdout and counted.stdout.endswith("\n1 row\n")

    file = next((out / "catalog").rglob("Npix=*.parquet"))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    failed = skyclass("verify", out / "catalog")
    assert failed.returncode == 1 and "skyclass publish RUN_FOLDER" in failed.stdout
    assert skyclass("publish", out).returncode == 0 and skyclass("verify", out).returncode == 0


@pytest.mark.integration
def test_a_cone_prunes_and_an_empty_one_is_refused(sky, bundle, tmp_path):
    rows = pq.read_table(sky.truth.parent / "catalog").to_pandas()
    ra, dec = rows["ra"].iloc[0], rows["dec"].iloc[0]
    out = tmp_path / "cone"
    assert classify(sky, bundle, out, "--cone", f"{ra},{dec},3arcmin").returncode == 0
    found = pq.read_table(next((out / "catalog" / "dataset").rglob("*.parquet")))
    assert 0 < len(found) < len(rows)
    words = "no partition of it touches the region {kind = cone, ra = 10.0, dec = -40.0, radius = 1deg}"
    refused(classify(sky, bundle, tmp_path / "a", "--cone", "10,-40,1deg"), tmp_path / "a", words)
    far = f"{ra},{dec + 0.7},1arcsec"
    refused(classify(sky, bundle, tmp_path / "b", "--cone", far), tmp_path / "b", "nothing to classify")
    refused(classify(sky, bundle, tmp_path / "c", "--cone", "1,2"), tmp_path / "c", "RA,DEC,RADIUS")
    refused(classify(sky, bundle, tmp_path / "d", "--cone", "1,2,3parsec"), tmp_path / "d", "3parsec")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ra": [150.0, np.nan], "dec": [2.0, 2.0]}, ["row 2 (ra is missing, dec 2.0)"]),
        ({"ra": [150.0, 151.0], "dec": [95.0, 2.0]}, ["row 1", "95"]),
        ({"x": [1.0], "y": [2.0]}, ["ra", "dec", "x, y"]),
        ({"ra": ["10:20:30"], "dec": ["1:2:3"]}, ["degrees"]),
        ({"ra": [150.1, 150.2], "dec": [2.0, 2.0], "source_id": ["a", "a"]}, ["source_id", "a"]),
        (
            {"ra": [10.0], "dec": [-80.0]},
            ["none of the positions", "ra 10.0000, dec -80.0000", "has 2 tiles", "in hours"],
        ),
    ],
    ids=["nan", "range", "columns", "sexagesimal", "duplicates", "no-tile"],
)
def test_bad_tables_are_refused(sky, bundle, tmp_path, columns, words):
    table = write_csv(tmp_path / "table.csv", **columns)
    out = tmp_path / "out"
    refused(classify(sky, bundle, out, "--catalog", table), out, *words)


@pytest.mark.integration
def test_bad_catalogues_are_refused(sky, bundle, tmp_path):
    out = tmp_path / "out"
    refused(classify(sky, bundle, out, "--catalog", tmp_path / "nowhere"), out, "nowhere", "no such file")
    refused(classify(sky, bundle, out, "--catalog", sky.images), out, "healpix_k0")
    copy = tmp_path / "catalog"
    shutil.copytree(sky.catalog, copy)
    part = next(copy.rglob("part0*.parquet"))
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["source_id"]), part)
    refused(classify(sky, bundle, out, "--catalog", copy), out, "source_id", part.name)


@pytest.mark.integration
def test_bad_image_folders_are_refused(sky, bundle, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(classify(sky, bundle, out, "--images", tmp_path / "nowhere"), out, "nowhere")
    refused(classify(sky, bundle, out, "--images", tmp_path / "empty"), out, "empty")
    images = tmp_path / "images"
    shutil.copytree(sky.images, images)
    for path in images.rglob("*-w3-int-3.fits"):
        path.unlink()
    refused(classify(sky, bundle, out, "--images", images), out, "w3")
    for i, path in enumerate(images.rglob("*-w1-int-3.fits")):
        path.write_bytes(path.read_bytes()[:9000] if i else b"<!DOCTYPE html><html>503 Slow down</html>")
    refused(classify(sky, bundle, out, "--images", images), out, "HTML", "truncated")


@pytest.mark.skipif(not LOOKALIKES.is_dir(), reason="the look-alikes of ../shared are not here")
@pytest.mark.integration
def test_images_of_other_surveys_are_refused(sky, bundle, tmp_path):
    out = tmp_path / "out"
    refused(classify(sky, bundle, out, "--images", LOOKALIKES), out, "unWISE", "single exposure")


@pytest.mark.integration
def test_one_bad_tile_is_quarantined_with_exit_code_3(sky, bundle, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(sky.images, images)
    broken = next(images.rglob(f"{sky.coadd_ids[0]}-w2-int-3.fits"))
    whole = broken.read_bytes()
    broken.write_bytes(b"<html>not here</html>")
    out, given = tmp_path / "out", ("--images", images)
    done = classify(sky, bundle, out, *given)
    assert done.returncode == 3 and f"quarantined {sky.coadd_ids[0]}" in done.stdout, done.stderr
    assert skyclass("verify", out).returncode == 0
    broken.write_bytes(whole)
    again = classify(sky, bundle, out, *given)
    assert again.returncode == 3 and "(2 from an earlier run)" in again.stdout, "it stays so until it is asked for"
    mended = classify(sky, bundle, out, *given, "--retry-quarantined")
    assert mended.returncode == 0 and "(1 from an earlier run)" in mended.stdout, mended.stderr
    assert skyclass("verify", out).returncode == 0
    (out / "tmp" / "half.parquet").write_bytes(b"half")
    done = skyclass("gc", out)
    assert done.returncode == 0 and "1 leftover and 1 earlier publication removed" in done.stdout, done.stderr
    assert skyclass("verify", out).returncode == 0
    assert skyclass("gc", tmp_path).returncode == 2


@pytest.mark.integration
def test_a_damaged_bundle_is_refused(sky, bundle, tmp_path):
    out = tmp_path / "out"
    for name in ("weights.safetensors", "model.json"):
        copy = tmp_path / name.split(".")[0]
        shutil.copytree(bundle, copy)
        data = bytearray((copy / name).read_bytes())
        data[-200 if name.startswith("w") else 60] ^= 1
        (copy / name).write_bytes(data)
        refused(classify(sky, copy, out), out, name)
    refused(classify(sky, "no-such-model", out), out, "no-such-model")


def files(folder: Path) -> dict[Path, bytes]:
    """Return all of a run folder but who drove it."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.parent.name != "leases"}


@pytest.mark.integration
def test_the_folder_of_another_run_is_refused_and_left_as_it_was(sky, bundle, tmp_path):
    out = tmp_path / "out"
    assert classify(sky, bundle, out).returncode == 0
    before = files(out)
    done = classify(sky, bundle, out, "--precision", "bf16")
    assert done.returncode == 2 and "precision: fp32 there, bf16 now" in done.stderr
    table = pq.read_table(sky.truth.parent / "catalog").select(["ra", "dec"]).slice(0, 20)
    done = classify(sky, bundle, out, "--catalog", write_csv(tmp_path / "t.csv", **table.to_pydict()))
    assert done.returncode == 2 and "plan: " in done.stderr
    assert files(out) == before


@pytest.mark.integration
@pytest.mark.fault(17)
def test_a_full_disk_ends_cleanly_and_the_same_command_resumes(sky, bundle, tmp_path):
    out = tmp_path / "out"
    done = classify(sky, bundle, out, limit_bytes=12_000)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "same command" in done.stderr, done.stderr
    assert not (out / "catalog").exists() and not list((out / "tmp").iterdir())
    assert classify(sky, bundle, out).returncode == 0
    assert skyclass("verify", out).returncode == 0


@pytest.mark.integration
def test_wrong_usage_is_told_all_at_once(tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text('catalog = 3\nimags = "x"\nworkers = "two"\nregion = {kind = "moon"}\n')
    done = skyclass("classify", toml)
    assert done.returncode == 2
    for word in (
        "'imags' (did you mean images?)",
        "images is required",
        "out is required",
        "catalog = 3",
        "workers = 'two'",
        "'moon'",
    ):
        assert word in done.stderr
    toml.write_text('catlog = "c"\nimages = "i"\nout = "o"\nworkers = 0\nprecision = "fp64"\ncompile = true\n')
    done = skyclass("classify", toml)
    for word in (
        "compile = True: expected text in quotes",
        "precision = 'fp64'",
        "workers = 0: must be from 1",
    ):
        assert word in done.stderr
    assert done.stderr.startswith(f"skyclass: {toml}: run: "), done.stderr
    assert skyclass("classify", "--nonsense").returncode == 2
    assert skyclass("classify", "--catalog", "x", "--images", "y").returncode == 2


@pytest.mark.integration
def test_plan_writes_nothing(sky, bundle, tmp_path):
    done = skyclass("plan", "--catalog", sky.catalog, "--images", sky.images, "--model", bundle)
    assert done.returncode == 0 and f"{sky.n_sources:,} sources on 2 tiles" in done.stdout
    words = ("--catalog", sky.catalog, "--images", sky.images, "--memory-limit", "3 elephants")
    assert "write an amount such as 3GB" in skyclass("plan", *words).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_cutouts_are_in_the_order_of_the_table(sky, tmp_path):
    table = pq.read_table(sky.truth.parent / "catalog").select(["ra", "dec", "wx", "wy", "source_id", "coadd_id"])
    table = table.to_pandas().sample(40, random_state=1)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), tmp_path / "table.parquet")
    done = skyclass(
        "cutouts", "--catalog", tmp_path / "table.parquet", "--images", sky.images, "-o", tmp_path / "c.npz"
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "c.npz") as data:
        assert data["cutouts"].shape == (40, 3, 37, 37) and data["cutouts"].dtype == np.float32
        assert data["source_id"].tolist() == table["source_id"].tolist()
        np.testing.assert_allclose(data["x"], table["wx"], atol=0.01)
        np.testing.assert_allclose(data["y"], table["wy"], atol=0.01)
    assert (
        skyclass("cutouts", "--catalog", tmp_path / "table.parquet", "--images", sky.images, "-o", "c.png").returncode
        == 2
    )
    words = ("--catalog", tmp_path / "table.parquet", "--images", sky.images, "-o", "c.npz", "--size", "-5px")
    assert "-5 pixels; choose 1 to" in skyclass("cutouts", *words).stderr


@pytest.mark.integration
def test_the_choices_of_a_missing_argument_are_lines_without_escapes():
    done = skyclass("init")
    assert done.returncode == 2 and "Choose from:\n  run,\n  labels,\n  dataset,\n  train\n" in done.stderr


@pytest.mark.parametrize(
    "words", [["query"], ["gc"], ["report"], ["plan", "--images=x", "--catalog"], ["plan", "--images"]]
)
def test_a_login_on_the_command_line_is_refused_and_not_repeated(words):
    with pytest.raises(ConfigError, match="must not contain a user name or password") as caught:
        cli([*words, "https://me:hunter2@host/c"], standalone_mode=False)
    with pytest.raises(ConfigError, match=r"--out = https://\*\*\*@host/c") as second:
        cli([*words, "--out=https://me:hunter2@host/c"], standalone_mode=False)
    assert "hunter2" not in f"{caught.value} {second.value}"
    option = words[-1] if words[-1].startswith("--") else "argument"
    assert str(caught.value).startswith(f"{option} = https://***@host/c: ")


@pytest.mark.integration
def test_cutouts_name_the_faults_of_tiles(sky, tmp_path):
    """As `classify` does: 3 with the reasons where some tiles are good, 2 where none is."""
    images, (first, second) = tmp_path / "images", sky.coadd_ids
    shutil.copytree(sky.images, images)
    table = pq.read_table(sky.catalog).select(["ra", "dec", "source_id", "coadd_id"]).to_pandas()
    sources = pd.concat([table[table["coadd_id"] == name].head(5) for name in (second, first)])
    pq.write_table(pa.Table.from_pandas(sources, preserve_index=False), tmp_path / "t.parquet")
    w2 = images / first[:2] / first[:4] / first / f"{first}-w2-int-3.fits"

    def cutouts() -> tuple[subprocess.CompletedProcess[str], np.ndarray, np.ndarray]:
        words = ("--catalog", tmp_path / "t.parquet", "--images", images, "-o", tmp_path / "c.npz", "--overwrite")
        done = skyclass("cutouts", *words)
        assert done.returncode == 3, done.stderr
        assert "10 cutouts" in done.stdout and "in some band: 5" in done.stdout and "to do these again: " in done.stdout
        with np.load(tmp_path / "c.npz") as data:
            assert np.isfinite(data["cutouts"][:5]).all() and np.isnan(data["cutouts"][5:]).all()
            return done, data["flags"], data["x"]

    whole = w2.read_bytes()
    w2.write_bytes(whole[:-700_000])
    done, flags, x = cutouts()
    assert f"quarantined {first}: tile {first} w2: {w2} is refused: truncated" in done.stdout
    assert flags.tolist() == [0] * 5 + [int(Flag.TILE_BAD | Flag.NO_IMAGE)] * 5 and np.isnan(x[5:]).all()
    w2.write_bytes(whole[:5760] + bytes(len(whole) - 5760))
    assert f"quarantined {first}: tile {first} w2: zeroed pixels" in cutouts()[0].stdout
    w2.unlink()
    done, flags, _ = cutouts()
    assert f"quarantined {first}: tile {first} w2: missing band" in done.stdout
    assert flags.tolist() == [0] * 5 + [int(Flag.BAND_MISSING | Flag.NO_IMAGE)] * 5
    shutil.rmtree(w2.parent)
    done, flags, _ = cutouts()
    assert f"quarantined {first}: tile {first}: missing tile" in done.stdout
    assert flags.tolist() == [0] * 5 + [int(Flag.TILE_MISSING | Flag.NO_IMAGE)] * 5
    for path in images.rglob(f"{second}-w1-*"):
        path.write_bytes(b"")
    (tmp_path / "c.npz").unlink()
    done = skyclass("cutouts", "--catalog", tmp_path / "t.parquet", "--images", images, "-o", tmp_path / "c.npz")
    assert done.returncode == 2 and "of 2 tiles looked at, none is usable: " in done.stderr
    assert "empty file" in done.stderr and not (tmp_path / "c.npz").exists()


@pytest.mark.integration
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the real Atlas cutouts of ../shared are not here")
def test_the_shipped_model_on_two_real_fields(tmp_path):
    """Both host galaxies are galaxies, the point sources are stars; the target of 2010ai overhangs."""
    rows = {}
    for field in ("2010H", "2010ai"):
        out = tmp_path / field
        positions = TESTS / "data" / f"{field}.csv"
        done = skyclass("classify", "--catalog", positions, "--images", ATLAS, "--out", out, "--cluster", "none")
        assert done.returncode == 0 and "SIMULATED" in done.stdout, done.stderr
        rows[field] = open_catalog(out).to_pandas().set_index("source_id")
    host, target = rows["2010H"].loc["2010H-host"], rows["2010ai"].loc["2010ai-target"]
    assert host["class"] == "galaxy" and host["coadd_id"] == "1210p015_ac51"
    assert host["flags"] == Flag.NO_PHOTOMETRY, "the table has positions alone"
    assert (rows["2010H"].drop("2010H-host")["class"] == "star").sum() >= 10
    assert rows["2010ai"].drop("2010ai-target")["class"].to_dict() == {
        "2010ai-host": "galaxy",
        "extended-1": "galaxy",  # half as bright as its peak at 3.7 pixels, point-1 at 2.9
        "point-1": "star",
    }
    expected = Flag.NO_PHOTOMETRY | Flag.EDGE | Flag.BLANK  # a transient: the images hold no source there
    assert target["flags"] & expected == expected and target["class"] is not None
    assert abs(target["valid_frac"] - 32 / 37) < 1e-6


@pytest.mark.integration
def test_a_folder_of_somebody_else_is_left_alone(sky, bundle, tmp_path):
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    (theirs / "chapter1.tex").write_text("important")
    done = classify(sky, bundle, theirs)
    assert done.returncode == 2 and "chapter1.tex" in done.stderr
    assert [p.name for p in theirs.iterdir()] == ["chapter1.tex"]
    done = classify(sky, bundle, theirs / "chapter1.tex")
    assert done.returncode == 2 and "chapter1.tex is a file" in done.stderr


@pytest.mark.integration
def test_a_damaged_catalogue_is_published_again_by_the_same_command(sky, bundle, tmp_path):
    out = tmp_path / "out"
    assert classify(sky, bundle, out).returncode == 0
    next((out / "catalog").rglob("Npix=*.parquet")).write_bytes(b"junk")
    assert skyclass("verify", out).returncode == 1
    assert classify(sky, bundle, out).returncode == 0
    assert skyclass("verify", out).returncode == 0
    next((out / "catalog").rglob("Npix=*.parquet")).unlink()
    gone = skyclass("query", out)
    assert gone.returncode == 1 and "skyclass verify" in gone.stderr


@pytest.mark.integration
def test_what_is_no_catalogue_is_wrong_input(tmp_path):
    for verb in ("query", "verify", "publish"):
        done = skyclass(verb, tmp_path / "nowhere")
        assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.integration
def test_a_condition_cannot_close_our_bracket_and_sql_reads_no_other_file(sky, bundle, tmp_path):
    out = tmp_path / "out"
    assert classify(sky, bundle, out).returncode == 0
    secret = write_csv(tmp_path / "secret.csv", word=["hush"])
    assert skyclass("query", out, "--where", "1=0) OR (1=1").returncode == 2
    read = skyclass("query", out, "--sql", f"SELECT * FROM read_csv('{secret}')")
    assert read.returncode == 2 and "hush" not in read.stdout


def truncated_votable(path: Path, rows: pd.DataFrame) -> Path:
    """Write a VOTable that a service says it cut at its row limit."""
    text, degrees = 'datatype="char" arraysize="*"', 'datatype="double" unit="deg"'
    heads = "".join(f'<FIELD name="{c}" {degrees if c in ("ra", "dec") else text}/>' for c in rows.columns)
    cells = "".join(
        "<TR>" + "".join(f"<TD>{value}</TD>" for value in row) + "</TR>" for row in rows.itertuples(index=False)
    )
    path.write_text(
        '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE type="results">'
        f'<TABLE>{heads}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE><INFO name="QUERY_STATUS" value="OVERFLOW"/>'
        "</RESOURCE></VOTABLE>"
    )
    return path


@pytest.mark.integration
def test_a_truncated_votable_is_classified_only_when_allowed(sky, bundle, tmp_path):
    truth = pq.read_table(sky.truth).to_pandas()[["source_id", "ra", "dec", "class"]].groupby("class").head(5)
    table, out, data = truncated_votable(tmp_path / "table.xml", truth), tmp_path / "out", tmp_path / "data"
    refused(classify(sky, bundle, out, "--catalog", table), out, "OVERFLOW", "sources are missing", "--allow-truncated")
    done = classify(sky, bundle, out, "--catalog", table, "--allow-truncated")
    assert done.returncode == 0, done.stderr
    assert open_catalog(out).count() == 15

    given = ("--catalog", table, "--images", sky.images, "-o", tmp_path / "cutouts.npz")
    refused(skyclass("cutouts", *given), tmp_path / "cutouts.npz", "OVERFLOW", "--allow-truncated")
    done = skyclass("cutouts", *given, "--allow-truncated")
    assert done.returncode == 0, done.stderr
    assert len(np.load(tmp_path / "cutouts.npz")["cutouts"]) == 15

    given = ("--labels", table, "--images", sky.images, "--bands", "w1,w2,w3", "--simulated", "--out", data)
    refused(skyclass("dataset", *given), data, "OVERFLOW", "--allow-truncated")
    done = skyclass("dataset", *given, "--allow-truncated")
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_a_warning_about_a_table_is_one_line(sky, bundle, tmp_path):
    rows = pq.read_table(sky.truth).to_pandas()[["source_id", "ra", "dec"]].head(3)
    table = write_csv(tmp_path / "table.csv", **rows, w1mpro=["<15.2", "14.5", ""])
    done = classify(sky, bundle, tmp_path / "out", "--catalog", table)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "skyclass: warning:" in line or "Warning" in line]
    assert len(warnings) == 1 and warnings[0].startswith("skyclass: warning: "), done.stderr
    assert "1 value of column w1mpro, '<15.2', is no number and becomes null (flag 256)" in warnings[0]
    assert "values read as missing (flag 256): w1mpro 1 (no number from -8.5 to 29.5)" in done.stdout
