"""Counts and depth of the SIMULATED sky beside published numbers.

    python -m benchmarks.sky_counts --out benchmarks/results/sky_counts.md

Counts: simulated catalogues at galactic longitude 90 and five latitudes, beside the published counts of stars, galaxies
and quasars of the same direction (`skyclass.mock.counts` names them). Depth: the magnitude at S/N 5 at four ecliptic
latitudes, beside the published limit on the ecliptic and its growth with the number of exposures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from astropy.coordinates import SkyCoord

from skyclass.mock import write_mock
from skyclass.mock.conditions import expected_coverage
from skyclass.mock.counts import natural_counts
from skyclass.mock.selection import listed_deg2

LATITUDES_DEG = (5.0, 15.0, 30.0, 50.0, 80.0)
LONGITUDE_DEG = 90.0
BINS_W1 = np.arange(9.0, 18.01, 1.0)
MIN_SOURCES = 100
ECLIPTIC_LATITUDES_DEG = (0.0, 30.0, 60.0, 85.0)
BANDS = ("w1", "w2", "w3")
ARP_220_LIMIT_MAG = {"w1": 17.92, "w2": 16.56, "w3": 12.37}
"""S/N 5 of the 319 WISE All-Sky sources within 5 arcmin of Arp 220 (ecliptic latitude 42 degrees)."""
ARP_220_LATITUDE_DEG = 42.0


def catalogue(center: tuple[float, float], size_px: int, seed: int) -> pd.DataFrame:
    """Return the catalogue of one simulated tile at a position, with the true class of each source."""
    with tempfile.TemporaryDirectory() as folder:
        sky = write_mock(folder, n_tiles=1, seed=seed, size_px=size_px, centers=[center])
        rows = pd.concat(
            [pq.ParquetFile(path).read().to_pandas() for path in sorted(sky.catalog.glob("*/*/*.parquet"))]
        )
        return rows.merge(pd.read_parquet(sky.truth)[["source_id", "class"]], on="source_id", validate="one_to_one")


def counts_rows(size_px: int, seed: int) -> Iterable[str]:
    """Yield the rows of the table of counts, in sources per square degree and magnitude."""
    for b_deg in LATITUDES_DEG:
        position = SkyCoord(LONGITUDE_DEG, b_deg, unit="deg", frame="galactic").icrs
        rows = catalogue((float(position.ra.deg), float(position.dec.deg)), size_px, seed)
        area_deg2 = listed_deg2(size_px)
        centre = SkyCoord(rows["ra"].median(), rows["dec"].median(), unit="deg").galactic
        published = natural_counts(float(centre.l.deg), float(centre.b.deg))
        cells = []
        for bright, faint in zip(BINS_W1[:-1], BINS_W1[1:], strict=True):
            n = int(rows["w1mpro"].between(bright, faint).sum())
            expected = published.between(bright, faint)
            ratio = n / area_deg2 / expected
            cells.append(f"{n / area_deg2:,.0f} / {expected:,.0f} = {ratio:.2f}" if n >= MIN_SOURCES else "-")
        flagged = (rows["cc_flags"] != "0000").mean()
        yield f"| {b_deg:g} | {len(rows) / area_deg2:,.0f} | {100 * flagged:.1f} | " + " | ".join(cells) + " |"


def depth_rows(size_px: int, seed: int) -> Iterable[str]:
    """Yield the rows of the table of depth."""
    for latitude_deg in ECLIPTIC_LATITUDES_DEG:
        position = SkyCoord(180.0, latitude_deg, unit="deg", frame="barycentricmeanecliptic").icrs
        rows = catalogue((float(position.ra.deg), float(position.dec.deg)), size_px, seed)
        cells = []
        for band in BANDS:
            limit = rows.loc[rows[f"{band}snr"].between(4.5, 5.5), f"{band}mpro"].median()
            gain = expected_coverage(band, latitude_deg) / expected_coverage(band, ARP_220_LATITUDE_DEG)
            simulated = f"{limit:.2f}" if np.isfinite(limit) else "no source so faint"
            cells.append(f"{simulated} / {ARP_220_LIMIT_MAG[band] + 1.25 * np.log10(gain):.2f}")
        yield f"| {latitude_deg:g} | {expected_coverage('w1', latitude_deg):.0f} | " + " | ".join(cells) + " |"


def document(size_px: int, seed: int) -> str:
    """Return both tables in Markdown."""
    bins = [f"{low:g} to {high:g}" for low, high in zip(BINS_W1[:-1], BINS_W1[1:], strict=True)]
    lines = [
        "Sources per square degree and magnitude in bins of W1: simulated catalogue / published counts = ratio, in",
        f"bins with {MIN_SOURCES} sources or more. SIMULATED sky, seed {seed}, tiles of {size_px} px, longitude 90.",
        "",
        f"| b, deg | all per deg2 | with `cc_flags`, % | {' | '.join(bins)} |",
        "|" + "---|" * (len(bins) + 3),
        *counts_rows(size_px, seed),
        "",
        "Magnitude at a stated S/N of 5: simulated / that around Arp 220, scaled with the root of the exposures.",
        "",
        "| ecliptic latitude, deg | exposures in W1 | W1 | W2 | W3 |",
        "|---|---|---|---|---|",
        *depth_rows(min(size_px, 1500), seed),
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/sky_counts.md"))
@click.option("--size", "size_px", default=4095, show_default=True)
@click.option("--seed", default=5, show_default=True)
def main(out: Path, size_px: int, seed: int) -> None:
    """Write the tables."""
    out.write_text(document(size_px, seed), "utf-8")
    click.echo(out.read_text())


if __name__ == "__main__":
    main()
