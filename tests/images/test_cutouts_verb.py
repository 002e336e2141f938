"""The command `skyclass cutouts`: a tile whose files change while it is cut."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
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
