"""Columns in and out: the schema of a source, the schema of the class catalogue, units, UCDs and descriptions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import CatalogError, ConfigError, StoreError
from .types import Bool, Flag, Float64, Int32

# --- sources in -------------------------------------------------------------------------------------

SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()), ("designation", pa.string()), ("cntr", pa.int64()),
        ("ra", pa.float64()), ("dec", pa.float64()), ("coadd_id", pa.string()),
        ("w1mpro", pa.float32()), ("w2mpro", pa.float32()), ("w3mpro", pa.float32()),
        ("w1snr", pa.float32()), ("w2snr", pa.float32()), ("w3snr", pa.float32()),
        ("cc_flags", pa.string()), ("ext_flg", pa.int32()), ("bad_values", pa.int32()),
    ]
)  # fmt: skip
"""Columns of a source: positions in degrees (ICRS), magnitudes Vega; null where a table lacks a column.

`bad_values` is a bit mask: bit i is set where the value of column i of `CHECKED` was bad and is read as null.
"""

INPUT_COLUMNS = tuple(name for name in SOURCE_SCHEMA.names if name != "bad_values")
"""Columns of a source that a catalogue or table may have."""

CATALOG_COLUMNS = ("source_id", "ra", "dec")
"""Columns that a catalogue of partitions needs; a table of positions needs `TABLE_COLUMNS` only."""
TABLE_COLUMNS = ("ra", "dec")


def source_schema(further: Sequence[str] = ()) -> pa.Schema:
    """Return `SOURCE_SCHEMA`, and after it further numeric columns (float64) that a model needs of a catalogue."""
    return pa.schema([*SOURCE_SCHEMA, *(pa.field(name, pa.float64()) for name in further)])


def listed_names(columns: Iterable[str]) -> list[str]:
    """Return names of columns as a list; raise `ConfigError` for one text, whose letters would each be a name."""
    if isinstance(columns, str):
        names = [name.strip() for name in columns.split(",") if name.strip()] or ["ra"]
        example = json.dumps(names, ensure_ascii=False)
        raise ConfigError(f"columns is {columns!r}: it must be a list of names, such as {example}")
    return list(columns)


class PhysicalRange(NamedTuple):
    """A measurement is at least `low` and at most `high`; any other number stands for "not measured"."""

    low: float
    high: float
    reason: str


_MAGNITUDE = PhysicalRange(
    -8.5,
    29.5,
    "the brightest star at 12 um, IRC+10216, has W3 = -7.9, and the deepest WISE coadds reach W1 = 20; tables write "
    "-9, -9.99, -99, -9999, 30, 99 and more for no magnitude",
)
_SNR = PhysicalRange(
    -90.0,
    900.0,
    "S/N in AllWISE is at most about 160, as errors below 0.007 mag do not occur, and about -10 in real fields; tables "
    "write -99, -999, -9999, 999 and more for no S/N",
)
PHYSICAL_RANGES: dict[str, PhysicalRange] = {
    **dict.fromkeys(("w1mpro", "w2mpro", "w3mpro", "w4mpro"), _MAGNITUDE),
    **dict.fromkeys(("j_m_2mass", "h_m_2mass", "k_m_2mass"), _MAGNITUDE),
    **dict.fromkeys(("w1snr", "w2snr", "w3snr", "w4snr"), _SNR),
    "ext_flg": PhysicalRange(0, 5, "the extended source flag of AllWISE is 0 to 5"),
    "cntr": PhysicalRange(0, 9.2e18, "in AllWISE they begin with the RA in 0.1 degree; others count from 0 or 1"),
}
"""Column -> the range of its measurements. Numbers outside are read as null, counted and flagged `BAD_VALUE`.

In a user's table, the same holds for text that is neither a number nor a word for "no value" (but not in `cntr`)."""

_MAGNITUDE_OF = {f"w{band}snr": f"w{band}mpro" for band in (1, 2, 3, 4)}

CHECKED = (*PHYSICAL_RANGES, "coadd_id")
"""Columns in the order of the bits of `bad_values`."""

BAD_NAME = 1 << CHECKED.index("coadd_id")


def without_bad_values(table: pa.Table) -> tuple[pa.Table, Int32]:
    """Return the table with numbers outside their `PHYSICAL_RANGES` null, and for each row a bit mask of their columns.

    An S/N of 99 is possible, but where the magnitude of the same band is bad and has the same value both are bad. NaN
    and null are missing, not bad.
    """
    bits = np.zeros(len(table), np.int32)
    numbers = {name: _numbers(table[name]) for name in PHYSICAL_RANGES if name in table.column_names}
    outside = {name: _outside(values, PHYSICAL_RANGES[name]) for name, values in numbers.items()}
    for snr, magnitude in _MAGNITUDE_OF.items():
        if snr in outside and magnitude in outside:
            outside[snr] |= outside[magnitude] & (numbers[snr] == numbers[magnitude])
    for name, bad in outside.items():
        bits |= bad.astype(np.int32) << CHECKED.index(name)
        missing = bad | np.isnan(numbers[name]) if pa.types.is_floating(table[name].type) else bad
        if missing.any():
            column = pc.if_else(pa.array(missing), None, without_dictionary(table[name]))
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(name).with_type(column.type), column)
    return table, bits


def _numbers(column: pa.ChunkedArray) -> Float64:
    """Return a column as float64, NaN for null and for a column of text that is no numbers."""
    try:
        column = without_dictionary(column).cast(pa.float64(), safe=False)
    except pa.ArrowException:  # casting the column to its type reports it
        return np.full(len(column), np.nan)
    return np.asarray(pc.fill_null(column, np.nan).to_numpy(), np.float64)


def _outside(values: Float64, bounds: PhysicalRange) -> Bool:
    return (values < bounds.low) | (values > bounds.high)


def bad_value_counts(bits: Int32) -> dict[str, int]:
    """Return how many values of each column were bad; columns without any are left out."""
    counts = {name: int(np.count_nonzero(bits & (1 << i))) for i, name in enumerate(CHECKED)}
    return {name: n for name, n in counts.items() if n}


def bad_bits(sources: pa.Table) -> Int32:
    """Return the column `bad_values` of sources, 0 where there is none."""
    if "bad_values" not in sources.column_names:
        return np.zeros(len(sources), np.int32)
    return np.asarray(pc.fill_null(sources["bad_values"], 0).to_numpy(), np.int32)


def bad_values_text(counts: Mapping[str, int]) -> str:
    """Return the counts as text, such as "w3mpro 12 (no number from -8.5 to 29.5)"."""
    bounds = {name: f"no number from {r.low:g} to {r.high:g}" for name, r in PHYSICAL_RANGES.items()}
    bounds["coadd_id"] = "names that no tile can have"
    return ", ".join(f"{name} {n:,} ({bounds[name]})" for name, n in counts.items())


def conform_sources(table: pa.Table, source: str, further: Sequence[str] = ()) -> pa.Table:
    """Return the table in `source_schema(further)`; NaN and bad values, empty text and absent columns are null."""
    table, bits = without_bad_values(table)
    given = {name: table[name] for name in table.column_names if name != "bad_values"}
    given["bad_values"] = pa.chunked_array([pa.array(bits | bad_bits(table))])
    schema = source_schema(further)
    columns = [
        cast_column(given[field.name], field, source) if field.name in given else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def cast_column(column: pa.ChunkedArray, field: pa.Field, source: str) -> pa.ChunkedArray:
    """Return a column cast to its field's type; `CatalogError` names the column and the reason."""
    try:
        if pa.types.is_string(field.type):
            text = pc.utf8_trim_whitespace(without_dictionary(column).cast(field.type))
            return pc.if_else(pc.equal(text, ""), None, text)
        column = without_dictionary(column)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if pa.types.is_floating(column.type) and field.name not in TABLE_COLUMNS:
            column = pc.if_else(pc.is_finite(column), column, None)
        # float32 of a float64 magnitude rounds, on purpose; an integer must come through whole.
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowException as error:
        raise CatalogError(f"{source}: column {field.name} is not {field.type} ({error})") from error


def without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without its dictionary, if it has one."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def sky_positions(table: pa.Table) -> tuple[Float64, Float64, Bool]:
    """Return ra, dec (NaN for null) and which rows are not a position on the sky."""
    ra, dec = (pc.fill_null(table[name], np.nan).to_numpy() for name in TABLE_COLUMNS)
    good = (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)
    return ra, dec, ~good


def check_positions(table: pa.Table, source: str) -> None:
    ra, dec, bad = sky_positions(table)
    if bad.any():
        first = int(np.argmax(bad))
        raise CatalogError(
            f"{source}: {bad.sum()} of {len(table)} positions are missing or not on the sky, the first is "
            f"source_id {table['source_id'][first]} (ra {ra[first]}, dec {dec[first]}); fetch the file again"
        )


# --- rows out ---------------------------------------------------------------------------------------

ROW_GROUP_ROWS = 6_000
"""A small cone then reads about 0.4 MB of a file; readers must choose files before they open them."""

UNCLASSIFIED = "unclassified"
"""Name under which rows without a class are counted."""

REPEATING = (
    *("coadd_id", "cc_flags", "ext_flg", "class", "set_90", "flags", "valid_frac", "model_id", "run_id"),
    *("class_sky", "prior_id"),
)
"""Columns worth a dictionary inside a file; on the others it costs a quarter more bytes."""

SORT_KEYS = ("_healpix_29", "source_id")
FOOTER_KEY = b"skyclass"
_FLAG_BITS = ", ".join(f"{flag.value} {flag.name}" for flag in Flag)
_SOURCE_COLUMNS: dict[str, tuple[str, str, str]] = {
    "_healpix_29": ("", "pos.healpix", "HEALPix NESTED pixel of order 29, the spatial index of HATS"),
    "source_id": ("", "meta.id;meta.main", "Source identifier, unique in this catalogue"),
    "designation": ("", "meta.id", "Name in the input, Jhhmmss.ss+ddmmss.s in AllWISE; null if it has none"),
    "cntr": ("", "meta.record", "Running number of the source in the input catalogue"),
    "ra": ("deg", "pos.eq.ra;meta.main", "Right ascension, ICRS"),
    "dec": ("deg", "pos.eq.dec;meta.main", "Declination, ICRS"),
    "coadd_id": ("", "meta.id;obs.field", "Atlas tile of the cutout; null where no tile covers the position"),
    "w1mpro": ("mag", "phot.mag;em.IR.3-4um", "W1 profile-fit magnitude (Vega), from the input catalogue"),
    "w2mpro": ("mag", "phot.mag;em.IR.4-8um", "W2 profile-fit magnitude (Vega), from the input catalogue"),
    "w3mpro": ("mag", "phot.mag;em.IR.8-15um", "W3 profile-fit magnitude (Vega), from the input catalogue"),
    "w1snr": ("", "stat.snr;em.IR.3-4um", "W1 profile-fit signal to noise, from the input catalogue"),
    "w2snr": ("", "stat.snr;em.IR.4-8um", "W2 profile-fit signal to noise, from the input catalogue"),
    "w3snr": ("", "stat.snr;em.IR.8-15um", "W3 profile-fit signal to noise, from the input catalogue"),
    "cc_flags": ("", "meta.code.qual", "Contamination and confusion flag per band, from the input catalogue"),
    "ext_flg": ("", "meta.code;src.morph", "Extended source flag, from the input catalogue"),
}
"""Column -> (unit, UCD, description), in the order of the catalogue; units are VOUnits, UCDs UCD1+."""


def class_columns(classes: tuple[str, ...], has_prior: bool = False) -> dict[str, tuple[str, str, str]]:
    """Return (unit, UCD, description) of each column of a catalogue with these classes, in its order.

    The columns of `sky_columns` come last, where the catalogue was published with a prior.
    """
    total = f"the {NUMBER_WORDS.get(len(classes), len(classes))} sum to 1"
    equal = f"{math.log(len(classes)):.4f} (ln {len(classes)})"
    names = ", ".join(classes)
    probabilities = {
        f"p_{name}": (
            "",
            "stat.probability;src.class",
            f"Probability of {name} for the class shares in the training of the model, not for those of the sky; "
            f"{total}; null without class",
        )
        for name in classes
    }
    return {
        **_SOURCE_COLUMNS,
        "class": ("", "src.class", f"Most probable class: {names}; null where the model gave no probabilities"),
        **probabilities,
        "margin": ("", "stat.param", "Highest minus second highest p_<class>; no probability, same with any prior"),
        "entropy": ("", "stat.param", f"Entropy of the probabilities in nats: 0 certain, {equal} all equal"),
        "set_90": (
            "",
            "src.class",
            "Classes that the source may have, such as galaxy|star. On average over a bin of W1 and |b|, 90 % of the "
            "sources of a class have the class in their set, if they look like those of the calibration. Empty where "
            "the source is undecided; null without class, W1 or calibration, and outside its bins",
        ),
        "outlier": (
            "",
            "stat.param",
            "Distance of the image from the nearest class at the same W1, over the distance that 2 % of the sources of "
            "the class exceed; null if the model has no such score",
        ),
        "w1_aperture": (
            "mag",
            "phot.mag;em.IR.3-4um",
            "W1 magnitude (Vega) within 8.25 arcsec on the cutout; null without positive flux or with a missing pixel",
        ),
        "flags": ("", "meta.code.qual", f"Bit mask, what was wrong with the source: {_FLAG_BITS}; 0 is clean"),
        "valid_frac": ("", "stat.filling", "Share of the cutout's pixels that exist and are finite"),
        "model_id": ("", "meta.id;meta.software", "Model bundle that gave the class"),
        "run_id": ("", "meta.id;meta.dataset", "Run that made the row"),
        **(sky_columns(classes) if has_prior else {}),
    }


def sky_columns(classes: tuple[str, ...]) -> dict[str, tuple[str, str, str]]:
    """Return (unit, UCD, description) of the columns that a publication with a prior adds."""
    prior = "for the class shares that the prior states at its W1 and |b|"
    return {
        **{
            f"p_{name}_sky": (
                "",
                "stat.probability;src.class",
                f"Probability of {name} {prior}; null where the prior says nothing (flag {Flag.EXTRAPOLATED:d}), and "
                "without class",
            )
            for name in classes
        },
        "class_sky": ("", "src.class", f"Most probable class {prior}; unsure where flag {Flag.UNSURE:d} is set"),
        "prior_id": ("", "meta.id", "Prior of the row, see prior.json of the catalogue; null where p_<class>_sky are"),
    }


NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("_healpix_29", "cntr"), pa.int64()),
    **dict.fromkeys(("ra", "dec"), pa.float64()),
    **dict.fromkeys(("ext_flg", "flags"), pa.int32()),
    **dict.fromkeys(("source_id", "designation", "coadd_id", "cc_flags", "class", "set_90"), pa.string()),
    **dict.fromkeys(("model_id", "run_id", "class_sky", "prior_id"), pa.string()),
}


@cache
def class_schema(classes: tuple[str, ...], has_prior: bool = False) -> pa.Schema:
    """Return the schema of a class catalogue of a model with these classes, published with a prior or without.

    Each field has its unit, UCD and description. The probabilities `p_<class>` have the order of the classes.

    >>> class_schema(("galaxy", "star")).names[15:18]
    ['class', 'p_galaxy', 'p_star']
    """

    def field(name: str, unit: str, ucd: str, description: str) -> pa.Field:
        metadata = {"unit": unit, "ucd": ucd, "description": description}
        return pa.field(name, _TYPES.get(name, pa.float32()), metadata=metadata)

    return pa.schema([field(name, *facts) for name, facts in class_columns(classes, has_prior).items()])


def classes_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the classes of a catalogue from its columns `p_<class>`."""
    return tuple(name[2:] for name in schema.names if name.startswith("p_") and not name.endswith("_sky"))


_REQUIRED = ("_healpix_29", "source_id", "ra", "dec", "flags", "run_id")


def conform(table: pa.Table) -> pa.Table:
    """Return the rows in the `class_schema` of their classes, in one chunk, NaN as null.

    The rows are sorted by (`_healpix_29`, `source_id`). Raises `StoreError` naming every column that is missing,
    unknown or of another type, nulls in the columns that need values, and classes without a column of probabilities.
    Any Arrow string type is a string.
    """
    classes = classes_of(table.schema)
    if len(classes) < 2:
        raise StoreError("rows do not fit the class catalogue: fewer than two columns p_<class>")
    schema = class_schema(classes, "prior_id" in table.column_names)
    problems = _schema_problems(table.schema, schema)
    if not problems:
        table = table.select(schema.names).cast(schema)
        table = pa.table([_without_nan(column) for column in table.columns], schema=schema)
        problems = _value_problems(table)
    if problems:
        raise StoreError("rows do not fit the class catalogue: " + "; ".join(problems))
    return table.sort_by([(key, "ascending") for key in SORT_KEYS]).combine_chunks()


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is any Arrow string type, or a dictionary of one."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _schema_problems(schema: pa.Schema, expected: pa.Schema) -> list[str]:
    problems = [f"no column {name}" for name in expected.names if name not in schema.names]
    problems += [f"unknown column {name}" for name in schema.names if name not in expected.names]
    for field in schema:
        wanted = expected.field(field.name).type if field.name in expected.names else field.type
        if field.type != wanted and not (is_text(field.type) and is_text(wanted)):
            problems.append(f"{field.name} is {field.type}, must be {wanted}")
    return problems


def _value_problems(table: pa.Table) -> list[str]:
    problems = [f"{name} has {table[name].null_count} nulls" for name in _REQUIRED if table[name].null_count]
    classes = classes_of(table.schema)
    for column in {"class", "class_sky"} & set(table.column_names):
        strange = [name for name in pc.unique(table[column]).to_pylist() if name not in (None, *classes)]
        problems += [f"{column} {name!r} is none of {', '.join(classes)}" for name in strange]
    return problems


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def class_counts(table: pa.Table, classes: Iterable[str]) -> dict[str, int]:
    """Return rows by class and "unclassified", zeros included."""
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(table["class"]).to_pylist()}
    return {**{name: counts.get(name, 0) for name in classes}, UNCLASSIFIED: counts.get(None, 0)}


def flagged(table: pa.Table) -> int:
    """Return how many rows carry a flag."""
    return int(pc.sum(pc.not_equal(table["flags"], 0)).as_py() or 0)


def flag_counts(table: pa.Table) -> dict[str, int]:
    """Return how many rows carry each flag, by its name; flags that no row carries are left out."""
    flags = table["flags"].to_numpy()
    counts = {str(flag.name): int(np.count_nonzero(flags & flag.value)) for flag in Flag}
    return {name: n for name, n in counts.items() if n}
