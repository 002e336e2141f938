"""The label table: one AllWISE source and one class in each row, made of spectra and their AllWISE sources. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...schema import SOURCE_SCHEMA, bad_value_counts, without_bad_values
from ...types import DEFAULT_CLASSES, Int32
from .allwise import PHOTOMETRY
from .sdss import SDSS_CLASSES

LABEL_SCHEMA = pa.schema(
    [
        *(SOURCE_SCHEMA.field(name) for name in ("ra", "dec")), ("class", pa.string()),
        *(SOURCE_SCHEMA.field(name) for name in ("source_id", "coadd_id", *PHOTOMETRY)),
        ("specobjid", pa.uint64()), ("z", pa.float64()), ("subclass", pa.string()), ("match_arcsec", pa.float64()),
    ]
)  # fmt: skip
"""The label table: position (deg), tile and photometry (Vega mag) of AllWISE; class and z of SDSS."""
SPECTRUM_COLUMNS = ("class", "specobjid", "z", "subclass")


def clean_spectra(spectra: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return one row for each All-Sky source, by specobjid, and the number of rows that each step drops.

    `spectra` has `SPECTRUM_SCHEMA`. The result has the class names of skyclass, and null where a value is outside its
    physical range. Of several spectra of one source and class the nearest stays; a source with spectra of different
    classes is dropped.
    """
    counts = {"spectra": len(spectra)}
    sdss_names = pa.array(list(SDSS_CLASSES.values()))
    class_index = pc.index_in(pc.utf8_upper(pc.utf8_trim_whitespace(spectra["class"])), sdss_names)
    counts["of_another_class"] = class_index.null_count
    classified = spectra.set_column(1, "class", pa.array(DEFAULT_CLASSES).take(class_index)).filter(
        pc.is_valid(class_index)
    )
    classified, bad_bits = without_bad_values(classified)
    counts |= _bad_counts(bad_bits, "sdss")
    cleaned, n_conflicting = nearest_of_each(classified, "cntr", "match_dist")
    counts["conflicting_class_in_sdss"] = n_conflicting
    counts["repeated_spectra"] = len(classified) - n_conflicting - len(cleaned)
    return cleaned, counts


def label_table(
    cleaned: pa.Table, matches: pa.Table, min_snr: float, counts: Mapping[str, int]
) -> tuple[pa.Table, dict[str, int]]:
    """Return the label table (`LABEL_SCHEMA`, by specobjid) of cleaned spectra and their AllWISE sources.

    `matches` has `MATCH_SCHEMA`. Each AllWISE source gets the label of the nearest spectrum, and none where labels of
    different classes belong to it. Sources without W1 and W2 S/N above `min_snr` in AllWISE are dropped.
    """
    counts = dict(counts) | {"without_allwise_source": len(cleaned) - len(matches)}
    spectra = cleaned.take(matches["label_row"])
    columns = [spectra[name] if name in SPECTRUM_COLUMNS else matches[name] for name in LABEL_SCHEMA.names]
    table, bad_bits = without_bad_values(pa.table(columns, schema=LABEL_SCHEMA))
    counts |= _bad_counts(bad_bits, "allwise")
    above = pc.and_(pc.greater(table["w1snr"], min_snr), pc.greater(table["w2snr"], min_snr)).fill_null(False)
    measured = table.filter(above)
    counts["below_min_snr_in_allwise"] = len(table) - len(measured)
    labels, n_conflicting = nearest_of_each(measured, "source_id", "match_arcsec")
    counts["conflicting_class_in_allwise"] = n_conflicting
    counts["sharing_an_allwise_source"] = len(measured) - n_conflicting - len(labels)
    per_class = Counter(labels["class"].to_pylist())
    return labels, counts | {"labels": len(labels)} | {name: per_class[name] for name in DEFAULT_CLASSES}


def _bad_counts(bad_bits: Int32, service: str) -> dict[str, int]:
    """Return the number of values outside their physical range in each column of a service."""
    return {f"bad_{name}_in_{service}": n for name, n in bad_value_counts(bad_bits).items()}


def nearest_of_each(table: pa.Table, key: str, distance: str) -> tuple[pa.Table, int]:
    """Return the nearest row of each value of `key`, by specobjid, and the number of rows with conflicting classes.

    All rows of a value with more than one class are dropped, and so are rows where `key` is null.
    """
    table = table.filter(pc.is_valid(table[key]))
    if not len(table):
        return table, 0
    group = pc.dictionary_encode(table[key].combine_chunks()).indices.to_numpy()
    label = pc.index_in(table["class"], pa.array(DEFAULT_CLASSES)).to_numpy()
    order = np.lexsort((table["specobjid"].to_numpy(), table[distance].to_numpy(), group))
    first = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    size = np.diff(np.r_[first, len(order)])
    agreed = np.minimum.reduceat(label[order], first) == np.maximum.reduceat(label[order], first)
    nearest = table.take(order[first[agreed]]).sort_by([("specobjid", "ascending"), (key, "ascending")])
    return nearest.combine_chunks(), int(size[~agreed].sum())
