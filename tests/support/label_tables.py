"""Label tables and the labels that they must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skyclass.sky.healpix import healpix, separation_deg

ARCSEC = 1 / 3600
CLASS_OF = {"GALAXY": "galaxy", "QSO": "quasar", "STAR": "star"}


BIG = 1 << 63  # specObjID of the late plates is above int64


def simulated_tables(n: int = 120, seed: int = 7) -> dict[str, pa.Table]:
    """Simulated SDSS and AllWISE, with every trouble that the cleaning is for; RA runs through 0."""
    rng = np.random.default_rng(seed)
    spec, xmatch, allsky, allwise = [], [], [], []

    def add(kind: str, i: int, wise: int, ra: float, dec: float, dist: float = 0.3, **more: object) -> None:
        spec_id = (i + 1) * 1024 + (BIG if i % 3 == 0 else 0)
        spec.append({"specObjID": spec_id, "bestObjID": 5000 + i, "class": kind, "subClass": "AGN, BROADLINE" if i % 5
                     else "", "z": 0.01 * i, "zWarning": 0, "ra": ra, "dec": dec, "plate": 266 + i % 7,
                     "fiberID": i % 640, "mjd": 51_600 + i} | more)  # fmt: skip
        xmatch.append({"sdss_objid": 5000 + i, "wise_cntr": wise, "match_dist": dist})

    for i in range(n):
        kind = ("GALAXY", "QSO", "STAR")[i % 3 if i % 4 else 0]
        ra, dec = (359.8 + 0.4 * rng.random()) % 360, 0.4 * rng.random() - 0.2
        snr = 40.0 - (38.0 if i % 17 == 1 else 0.0)
        w3 = 9999.0 if i % 6 == 0 else 11.5
        allsky.append({"cntr": 900 + i, "ra": ra, "dec": dec, "w1mpro": 9999.0 if i == 25 else 14.0 + 0.01 * i,
                       "w2mpro": 13.5, "w3mpro": w3, "w1snr": snr, "w2snr": 30.0, "w3snr": 3.0})  # fmt: skip
        more = {"zWarning": 4} if i % 19 == 2 else {}
        add(kind, i, 900 + i, ra, dec, dist=3.5 if i % 23 == 3 else 0.3, **more)
        if i % 11 != 4:  # the others have no AllWISE source
            shift = 3.0 if i % 29 == 5 else 0.8
            allwise.append({"source_id": f"3599p000_ac51-{i:06d}", "coadd_id": "3599p000_ac51", "ra": ra,
                            "dec": dec + shift * ARCSEC, "w1mpro": 14.02 + 0.01 * i, "w2mpro": 13.4,
                            "w3mpro": None if i % 6 == 0 else 11.4, "w1snr": None if i == 33 else 42.0,
                            "w2snr": 4.0 if i == 35 else 31.0, "w3snr": None if i % 6 == 0 else 3.1})  # fmt: skip
    by_id = {row["cntr"]: row for row in allsky}
    # A second spectrum of one source: the same class (farther), and another class.
    add(spec[44]["class"], n, 944, by_id[944]["ra"], by_id[944]["dec"], 0.9)
    add("STAR" if spec[41]["class"] != "STAR" else "QSO", n + 1, 941, by_id[941]["ra"], by_id[941]["dec"], 0.1)
    # One spectrum with several WISE sources: a page may end between them.
    xmatch += [{"sdss_objid": 5042, "wise_cntr": 943, "match_dist": 1.9}, {"sdss_objid": 5042, "wise_cntr": 944,
                                                                            "match_dist": 1.8}]  # fmt: skip
    # Two All-Sky sources on one AllWISE source: of one class, and of two.
    for twin_of, other, i in ((50, spec[50]["class"], n + 2), (56, "STAR", n + 3)):
        base = by_id[900 + twin_of]
        allsky.append(base | {"cntr": 2000 + i, "ra": base["ra"] + 1.0 * ARCSEC})
        add(other, i, 2000 + i, base["ra"], base["dec"])
    # A neighbour that is also within the radius, but farther.
    allwise.append(allwise[9] | {"source_id": "3599p000_ac51-999999", "dec": allwise[9]["dec"] + 0.9 * ARCSEC})
    python = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    types = {f"w{b}{what}": pa.float32() for b in (1, 2, 3) for what in ("mpro", "snr")} | {"specObjID": pa.uint64()}

    def table(rows: list[dict[str, object]]) -> pa.Table:
        fields = [(name, types.get(name) or python[type(value)]) for name, value in rows[1].items()]
        return pa.Table.from_pylist(rows, schema=pa.schema(fields))

    return {"SpecObj": table(spec), "WISE_xmatch": table(xmatch), "WISE_allsky": table(allsky),
            "allwise_p3as_psd": table(allwise)}  # fmt: skip


TABLES = simulated_tables()


def expected_labels(tables: dict[str, pa.Table]) -> dict[str, tuple[str, int]]:
    """source_id -> (class, specobjid), by loops over every pair."""
    spec, xmatch, allsky, allwise = (tables[n].to_pylist() for n in ("SpecObj", "WISE_xmatch", "WISE_allsky",
                                                                     "allwise_p3as_psd"))  # fmt: skip
    wise = {row["cntr"]: row for row in allsky}
    per_source: dict[int, list[tuple[float, int, str]]] = {}
    for s in spec:
        for x in xmatch:
            if x["sdss_objid"] != s["bestObjID"] or s["zWarning"] or x["match_dist"] >= 2:
                continue
            w = wise[x["wise_cntr"]]
            if w["w1snr"] > 5 and w["w2snr"] > 5 and w["w1mpro"] < 30 and w["w2mpro"] < 30:
                per_source.setdefault(w["cntr"], []).append((x["match_dist"], s["specObjID"], CLASS_OF[s["class"]]))
    per_allwise: dict[str, list[tuple[float, int, str]]] = {}
    for cntr, found in per_source.items():
        if len({kind for _, _, kind in found}) > 1:
            continue
        _, spec_id, kind = min(found)
        ra, dec = wise[cntr]["ra"], wise[cntr]["dec"]
        near = [(float(separation_deg(ra, dec, a["ra"], a["dec"])) * 3600, a["source_id"], a) for a in allwise]
        arcsec, source_id, a = min(near, key=lambda item: item[:2])
        if arcsec <= 2 and (a["w1snr"] or 0) > 5 and (a["w2snr"] or 0) > 5:
            per_allwise.setdefault(source_id, []).append((arcsec, spec_id, kind))
    return {sid: (min(f)[2], min(f)[1]) for sid, f in per_allwise.items() if len({kind for _, _, kind in f}) == 1}


def as_dict(path: Path) -> dict[str, tuple[str, int]]:
    rows = pq.read_table(path).to_pylist()
    assert len({row["source_id"] for row in rows}) == len(rows)
    return {row["source_id"]: (row["class"], row["specobjid"]) for row in rows}


def write_catalog(root: Path, allwise: pa.Table) -> Path:
    """The simulated AllWISE as an IRSA hive folder."""
    pixels = healpix(5, allwise["ra"].to_numpy(), allwise["dec"].to_numpy())
    for pixel in np.unique(pixels):
        folder = root / f"healpix_k0={pixel // 1024}" / f"healpix_k5={pixel}"
        folder.mkdir(parents=True)
        pq.write_table(allwise.filter(pa.array(pixels == pixel)), folder / "part0.snappy.parquet")
    return root
