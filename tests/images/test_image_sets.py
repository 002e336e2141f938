"""Folders with one cutout for each source, several of them of one tile: each source has the rows of the whole tile."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skyclass.engine import engine
from skyclass.engine.cluster import connect
from skyclass.errors import ArchiveError, TileFault
from skyclass.images.archive import open_archive
from skyclass.images.cutouts import cut, group_by_image_set
from skyclass.images.identity import file_record
from skyclass.run import pipeline
from skyclass.run.progress import no_progress
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import Flag
from tests.support.runs import rows_of

BANDS = ("w1", "w2", "w3")
SIZE_PX = 45


def tile_file(root: Path, coadd_id: str, band: str) -> Path:
    return root / coadd_id[:2] / coadd_id[:4] / coadd_id / f"{coadd_id}-{band}-int-3.fits"


def write_cutout(source: Path, x: float, y: float, folder: Path, size_px: int = SIZE_PX) -> Path:
    """Write the part of an image around a FITS pixel as the IBE service does: NAXIS and CRPIX differ, nothing else."""
    with fits.open(source) as hdus:
        pixels, header = hdus[0].data, hdus[0].header.copy()
    first = [max(round(p) - 1 - size_px // 2, 0) for p in (x, y)]
    columns, rows = (slice(at, at + size_px) for at in first)
    header["CRPIX1"] -= first[0]
    header["CRPIX2"] -= first[1]
    path = folder / f"{source.stem}_x{x:.0f}_y{y:.0f}.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(pixels[rows, columns], header).writeto(path)
    return path


@pytest.fixture(scope="module")
def sources(sky) -> pa.Table:
    """Eight sources of the first tile: four neighbours, the others anywhere."""
    table = pq.read_table(sky.catalog)
    table = table.filter(pc.equal(table["coadd_id"], sky.coadd_ids[0])).sort_by("ra")
    distance = np.hypot(*(table[c].to_numpy() - table[c][100].as_py() for c in ("wx", "wy")))
    rows = sorted({*np.argsort(distance)[:4].tolist(), 3, 40, 70, 200})
    return table.take(rows)


def write_cutouts(sky, sources: pa.Table, folder: Path, size_px: int = SIZE_PX) -> Path:
    for x, y in zip(sources["wx"].to_pylist(), sources["wy"].to_pylist(), strict=True):
        for band in BANDS:
            write_cutout(tile_file(Path(sky.images), sky.coadd_ids[0], band), x, y, folder, size_px)
    return folder


@pytest.fixture
def cutouts(sky, sources, tmp_path) -> Path:
    """A folder with a cutout for each source and band."""
    return write_cutouts(sky, sources, tmp_path / "cutouts")


def classes(run, images: Path, sources: pa.Table, out: Path, client=None) -> pa.Table:
    """Return the rows of a run over a table of positions."""
    table = out.parent / f"{out.name}.csv"
    sources.select(["source_id", "ra", "dec"]).to_pandas().to_csv(table, index=False)
    run = dataclasses.replace(run, catalog=str(table), images=str(images), out=str(out), strip_sources=3)
    if client:
        engine.classify(run, client, no_progress)
    else:
        pipeline.classify(run)
    return rows_of(run).drop_columns(["run_id"]).sort_by("source_id")


@pytest.mark.integration
def test_each_source_has_the_rows_that_the_whole_tile_gives_it(run, sky, sources, cutouts, tmp_path):
    expected = classes(run, Path(sky.images), sources, tmp_path / "whole")
    assert expected["class"].null_count == 0
    found = classes(run, cutouts, sources, tmp_path / "plain")
    assert found.equals(expected)
    with connect("local", workers=1) as client:
        assert classes(run, cutouts, sources, tmp_path / "engine", client).equals(expected)
    shutil.copytree(Path(sky.images), cutouts / "whole")
    assert classes(run, cutouts, sources, tmp_path / "both").equals(expected), "a whole tile beside cutouts of it"


def test_a_cutout_is_taken_from_the_image_that_covers_it_best(sky, sources, cutouts):
    archive, whole = open_archive(str(cutouts), BANDS), open_archive(str(sky.images), BANDS)
    tile = archive.tile(sky.coadd_ids[0], BANDS)
    assert len(tile.image_sets) == len(sources) == 8 and len(file_record(tile)) == 24
    assert tile.nbytes == 8 * 3 * 4 * SIZE_PX**2
    x, y = tile_pixels(tile, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    groups = group_by_image_set(tile, x, y, 37)
    assert sorted(int(i) for group in groups for i in group.index) == list(range(8))
    for group in groups:
        assert np.abs(group.x - 23).max() < 4 and np.abs(group.y - 23).max() < 4, "its own image, or one as near"
    batch = cut(archive, tile, x, y, 37)
    on_tile = whole.tile(tile.coadd_id, BANDS)
    expected = cut(whole, on_tile, *tile_pixels(on_tile, sources["ra"].to_numpy(), sources["dec"].to_numpy()), 37)
    np.testing.assert_array_equal(batch.pixels, expected.pixels)
    np.testing.assert_array_equal(batch.flags, expected.flags)
    assert batch.zero_point_mag == expected.zero_point_mag
    beside = cut(archive, tile, x + 20, y, 37)
    assert (beside.flags & int(Flag.EDGE)).all() and not (beside.flags & int(Flag.OFF_TILE)).any()
    assert (cut(archive, tile, x + 5000, y, 37).flags & int(Flag.OFF_TILE)).all()
    assert set(archive.pixel_sha256(tile)) == set(file_record(tile))


def fault_of(folder: Path, coadd_id: str) -> TileFault:
    with pytest.raises(TileFault) as caught:
        open_archive(str(folder), BANDS).tile(coadd_id, BANDS)
    return caught.value


@pytest.mark.integration
def test_images_that_fit_no_set_are_told(sky, sources, cutouts):
    name = sky.coadd_ids[0]
    paths = sorted(cutouts.glob("*-w2-*"))
    copied = cutouts / "a copy.fits"
    shutil.copy(paths[0], copied)
    fault = fault_of(cutouts, name)
    assert fault.kind == "bad" and f"the same footprint, {paths[0]} and {copied}: keep one" in fault.reason
    copied.unlink()
    copied.symlink_to(paths[0])
    assert len(open_archive(str(cutouts), BANDS).tile(name, BANDS).other_image_sets) == 7, "one file with two names"
    copied.unlink()
    image = paths[0].read_bytes()
    paths[0].write_bytes(image[:9000])
    fault = fault_of(cutouts, name)
    assert fault.kind == "bad" and str(paths[0]) in fault.reason and "truncated" in fault.reason
    paths[0].unlink()
    fault = fault_of(cutouts, name)
    assert (fault.kind, fault.band) == (
        "missing_band",
        "w2",
    ) and "no image of w2 with the same footprint" in fault.reason
    write_cutouts(sky, sources, cutouts / "larger", 61)
    assert len(open_archive(str(cutouts), BANDS).tile(name, BANDS).image_sets) == 15, "a larger image covers the rest"
    fits.setval(sorted((cutouts / "larger").glob("*-w1-*"))[0], "MAGZP", value=20.25)
    assert "differ in pixel grid or zero point" in fault_of(cutouts, name).reason


def test_what_was_unpacked_is_not_looked_at_again(sky, cutouts):
    for path in cutouts.glob("*-w1-*"):
        path.with_suffix(".fits.gz").write_bytes(b"\x1f\x8b")
    assert len(open_archive(str(cutouts), BANDS).tile(sky.coadd_ids[0], BANDS).image_sets) == 8


def test_linked_folders_are_followed_once(sky, sources, cutouts, tmp_path):
    links = tmp_path / "links"
    (links / "a").mkdir(parents=True)
    (links / "b").symlink_to(cutouts)
    (links / "b again").symlink_to(cutouts)
    (cutouts / "up").symlink_to(tmp_path)
    os.symlink("loop", links / "a" / "loop")
    with pytest.raises(ArchiveError, match="loop leads nowhere; repair or remove it"):
        open_archive(str(links), BANDS)
    (links / "a" / "loop").unlink()
    tile = open_archive(str(links), BANDS).tile(sky.coadd_ids[0], BANDS)
    assert len(tile.image_sets) == 8 and all(file.name.startswith("b/") for file in tile.files)
