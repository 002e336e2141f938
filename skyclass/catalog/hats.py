"""Files of a HATS catalogue beside its rows: VOTable headers, properties, partition list, README (IVOA note HATS)."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..files import parquet_bytes
from ..schema import FOOTER_KEY, class_columns
from ..sky.healpix import MAX_ORDER
from ..types import Flag
from .manifest import CATALOG_ORDER, Manifest, PixelRecord, label_of, manifest_of, schema_of


def file_metadata(
    schema: pa.Schema, provenance: Mapping[str, Any], text_bytes: Mapping[str, int] | None = None
) -> dict[bytes, bytes]:
    """Return the footer of a file: provenance, and a VOTable header (VOParquet, IVOA note 1.0).

    `text_bytes` gives the length in bytes of the longest text of columns. The footer has these lengths as `table::len`:
    without `table::len`, astropy measures the rows, and fails at the first missing text.
    """
    lengths = {f"table::len::{name}".encode(): b"%d" % max(n, 1) for name, n in (text_bytes or {}).items()}
    return lengths | {
        FOOTER_KEY: json.dumps(provenance, sort_keys=True).encode(),
        b"IVOA.VOTable-Parquet.version": b"1.0",
        b"IVOA.VOTable-Parquet.content": votable_header(schema, label_of(provenance), text_bytes or {}),
    }


def text_sizes(table: pa.Table) -> dict[str, int]:
    """Return the length in bytes of the longest text of each column of text."""
    names = [field.name for field in table.schema if _is_text(field.type)]
    return {name: pc.max(pc.binary_length(table[name])).as_py() or 0 for name in names}


def votable_header(schema: pa.Schema, label: str, text_bytes: Mapping[str, int]) -> bytes:
    """Return a VOTable without data: unit, UCD and description of each column; positions are ICRS.

    A column of a type that VOTable does not have gets no FIELD.
    """
    from astropy.io.votable import tree  # takes half a second, and only writing a catalogue needs it
    from astropy.io.votable.exceptions import W03

    document = tree.VOTableFile(version="1.4")
    resource = tree.Resource()
    document.resources.append(resource)
    resource.coordinate_systems.append(tree.CooSys(ID="ICRS", system="ICRS"))
    table = tree.TableElement(document, name="classes")
    table.description = f"skyclass class catalogue. {label}"
    resource.tables.append(table)
    fields = (_votable_field(document, field, text_bytes.get(field.name, TEXT_BYTES)) for field in schema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", W03)  # a name that is no ID: the ID goes away again
        table.fields.extend(field for field in fields if field)
    text = io.BytesIO()
    document.to_xml(text)
    return text.getvalue()


def _votable_field(document: Any, field: pa.Field, text_bytes: int) -> Any:
    """Return the FIELD of a column, or None where VOTable lacks the type.

    The FIELD has no ID, because astropy takes an ID for the name of the column. Text has a fixed size, because astropy
    reads text of free size as objects, and cannot join objects to the rows.
    """
    from astropy.io.votable import tree

    words = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    datatype = next((name for has_type, name in _VOTABLE_TYPES if has_type(field.type)), None)
    if not datatype:
        return None
    size = {"arraysize": str(max(TEXT_BYTES, text_bytes))} if datatype == "char" else {}
    frame = {"ref": "ICRS"} if field.name in ("ra", "dec") else {}
    made = tree.Field(document, name=field.name, datatype=datatype, unit=words.get("unit") or None,
                      ucd=words.get("ucd") or None, **size, **frame)  # fmt: skip
    del made.ID
    made.description = words.get("description")
    return made


TEXT_BYTES = 64
"""Least size that the header gives for text."""


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_VOTABLE_TYPES = (
    (pa.types.is_uint64, ""),
    (lambda kind: pa.types.is_int64(kind) or pa.types.is_uint32(kind), "long"),
    (pa.types.is_integer, "int"),
    (pa.types.is_float64, "double"),
    (pa.types.is_floating, "float"),
    (pa.types.is_boolean, "boolean"),
    (_is_text, "char"),
)


# --- the files beside the data ---------------------------------------------------------------------


def sidecar_files(records: Sequence[PixelRecord], provenance: Mapping[str, Any], created: str) -> dict[str, bytes]:
    properties = _properties_text(records, provenance, created).encode()
    pixels = "".join(f"{CATALOG_ORDER},{record.pixel}\n" for record in records)
    schema = schema_of(provenance)
    return {
        "hats.properties": properties,
        "properties": properties,  # the name that readers of HATS before 0.6 look for
        "partition_info.csv": f"Norder,Npix\n{pixels}".encode(),
        "dataset/_common_metadata": parquet_bytes(
            schema.empty_table(), file_metadata(schema, provenance), store_schema=False
        ),
        "README.txt": _readme(records, provenance).encode(),
    }


def _properties_text(records: Sequence[PixelRecord], provenance: Mapping[str, Any], created: str) -> str:
    """Return `hats.properties` (IVOA note HATS)."""
    values = {
        "obs_collection": f"skyclass_{provenance['run_id']}",
        "obs_title": "skyclass class catalogue",
        "obs_description": label_of(provenance),
        "dataproduct_type": "object",
        "hats_nrows": sum(record.rows for record in records),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": MAX_ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_order": CATALOG_ORDER,
        "hats_max_rows": max((record.rows for record in records), default=0),
        "hats_estsize": sum(record.nbytes for record in records) // 1024,
        "hats_builder": "skyclass",
        "hats_creation_date": created,
        "moc_sky_fraction": f"{len(records) / (12 * 4**CATALOG_ORDER):.7f}",
    }
    return "#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def creation_date(root: Path) -> str:
    """Return the time in `hats.properties` of a published catalogue at which its run began."""
    lines = (root / "hats.properties").read_text().splitlines()
    fields = {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}
    return fields.get("hats_creation_date", "")


def _readme(records: Sequence[PixelRecord], provenance: Mapping[str, Any]) -> str:
    manifest = manifest_of(records, sum(record.rows for record in records), provenance, {}, "")
    counts = "\n".join(f"  {name:<14}{count:>14,}" for name, count in manifest.classes.items())
    columns = "\n".join(
        f"  {name:<14}{unit or '-':<6}{ucd:<28}{text}"
        for name, (unit, ucd, text) in class_columns(manifest.class_names, "prior" in provenance).items()
    )
    flags = "\n".join(f"  {flag.value:>4}  {flag.name:<16}{flag.meaning}" for flag in Flag)
    return _README.format(
        run_id=manifest.run_id, label=manifest.label, rows=manifest.rows, files=len(records),
        n_flagged=manifest.n_flagged, counts=counts, columns=columns, flags=flags, advice=_advice(manifest),
    )  # fmt: skip


def _advice(manifest: Manifest) -> str:
    """Return which probabilities to use, for the README."""
    prior = manifest.provenance.get("prior")
    if prior is None:
        return (
            "The columns p_<class> are\nfor the class shares in the training of the model. For those of your sky, "
            "publish with a prior:\nskyclass recalibrate CATALOGUE --prior estimate."
        )
    return (
        f"Use class_sky and p_<class>_sky:\nthey are for the class shares of {prior['prior_id']} ({prior['label']}).\n"
        "prior.json has these shares by W1 and |b|; 'skyclass report' shows the expected purity and\ncompleteness, and "
        "cuts for a purity."
    )


_README = """\
skyclass class catalogue, run {run_id}
The model: {label}

{rows:,} sources in {files:,} files, {n_flagged:,} of them with a flag.
{counts}

READ THIS BEFORE YOU COUNT QUASARS. An accuracy measured on a balanced test set is not the purity of this
catalogue. Where 0.5 % of the sources on the sky are quasars, the published rates of IICnet (recall 97.1 %,
specificity 98.3 %) give a quasar sample that is about 22 % pure. {advice}

LAYOUT. HATS (IVOA note): dataset/Norder=5/Dir=D/Npix=N.parquet, N the HEALPix NESTED pixel of order 5, rows
sorted by _healpix_29 and source_id. manifest.json lists every file with rows, SHA-256 and class counts;
trust it rather than a directory listing. Each file carries a VOTable header (VOParquet) and its provenance.

COLUMNS (name, unit, UCD, meaning). A missing value is a Parquet null, never a number.
{columns}

FLAGS (bits of the column flags)
{flags}

OPEN IT
  skyclass query CATALOGUE --cone 150.1,2.2,30arcmin --where "p_quasar > 0.9" -o quasars.fits
  Python: skyclass.open_catalog(CATALOGUE).cone(150.1, 2.2, "30arcmin").to_pandas()
  Python: lsdb.open_catalog(CATALOGUE)
  skyclass verify CATALOGUE      checks every file against the manifest
"""
