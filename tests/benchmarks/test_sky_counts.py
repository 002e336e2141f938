"""The tables of counts and depth compare the simulated catalogue with published numbers."""

import re

import pytest

from benchmarks import sky_counts


@pytest.mark.integration
def test_the_tables_have_ratios_near_one_where_the_catalogue_is_complete(monkeypatch):
    monkeypatch.setattr(sky_counts, "LATITUDES_DEG", (50.0,))
    monkeypatch.setattr(sky_counts, "ECLIPTIC_LATITUDES_DEG", (0.0,))
    monkeypatch.setattr(sky_counts, "MIN_SOURCES", 30)
    text = sky_counts.document(1200, seed=3)
    counts = next(line for line in text.splitlines() if line.startswith("| 50 |")).split("|")
    ratios = [float(match[1]) if (match := re.search(r"= ([\d.]+)", cell)) else None for cell in counts[4:-1]]
    known = [ratio for ratio in ratios[:-1] if ratio is not None]
    assert len(ratios) == 9 and len(known) >= 2 and all(0.5 < ratio < 1.6 for ratio in known)
    assert ratios[-1] is not None and ratios[-1] < 0.8  # beyond the limit of the catalogue
    depth = text.splitlines()[-1].split("|")
    assert depth[1].strip() == "0"
    for cell in depth[3:6]:
        simulated, published = map(float, cell.split("/"))
        assert abs(simulated - published) < 0.5
