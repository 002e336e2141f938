"""The command `skyclass cutouts`: a tile whose files change while it is cut."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyclass.errors import TileFault
from skyclass.images import export


@pytest.mark.parametrize(("n_changes", "n_attempts"), [(0, 1), (1, 2), (2, 2)])
def test_a_tile_that_changes_is_cut_again_once(monkeypatch, n_changes, n_attempts):
    class Changing:
        n_opened = 0

        def tile(self, coadd_id, bands, verify):
            assert verify
            self.n_opened += 1
            return f"{coadd_id} {self.n_opened}"

    archive = Changing()

    def cut_or_fault(archive, tile, x, y, size_px):
        if archive.n_opened <= n_changes:
            raise TileFault("t", "it was replaced", "w1", "changed")
        return tile

    monkeypatch.setattr(export, "tile_pixels", lambda tile, ra, dec: (ra, dec))
    monkeypatch.setattr(export, "cut", cut_or_fault)
    ends_well = n_changes < 2
    with nullcontext() if ends_well else pytest.raises(TileFault, match="it was replaced"):
        assert export.cut_tile(archive, "t", ("w1",), np.zeros(1), np.zeros(1), 9) == f"t {n_attempts}"
    assert archive.n_opened == n_attempts


def test_another_fault_of_a_tile_is_not_tried_again(monkeypatch):
    def fault(*arguments):
        raise TileFault("t", "truncated", "w1", "bad")

    class Archive:
        n_opened = 0

        def tile(self, coadd_id, bands, verify):
            self.n_opened += 1

    archive = Archive()
    monkeypatch.setattr(export, "tile_pixels", lambda tile, ra, dec: (ra, dec))
    monkeypatch.setattr(export, "cut", fault)
    with pytest.raises(TileFault, match="truncated"):
        export.cut_tile(archive, "t", ("w1",), np.zeros(1), np.zeros(1), 9)
    assert archive.n_opened == 1


def test_the_summary_counts_sources_without_an_image(sky, tmp_path):
    rows = pq.read_table(sky.catalog).to_pandas()
    middle = rows.loc[np.hypot(rows["wx"] - 350, rows["wy"] - 350).idxmin()]
    ra, dec = float(middle["ra"]), float(middle["dec"])
    table = tmp_path / "table.csv"
    table.write_text(f"ra,dec\n{ra},{dec}\n10.0,-80.0\n{ra},{dec}\n")
    report = export.write_cutouts(str(table), str(sky.images), str(tmp_path / "a.npz"), "9px", ("w1", "w2"))
    assert report.summary == (
        f"3 cutouts of 9 x 9 pixels in w1, w2 written to {tmp_path / 'a.npz'}; without an image in some band: 1"
    )
    with np.load(tmp_path / "a.npz") as file:
        assert file["cutouts"].shape == (3, 2, 9, 9) and np.isnan(file["cutouts"][1]).all()
        assert file["flags"].tolist()[0] == 0 == file["flags"].tolist()[2] and file["flags"][1] & 128
        np.testing.assert_array_equal(file["cutouts"][0], file["cutouts"][2])
    table.write_text(f"ra,dec\n{ra},{dec}\n")
    whole = export.write_cutouts(str(table), str(sky.images), str(tmp_path / "b.npz"), "9px", ("w1", "w2"))
    assert whole.summary.startswith("1 cutout of 9 x 9 pixels") and "without" not in whole.summary
